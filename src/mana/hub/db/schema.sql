-- The schema after all migrations, read from the catalogue. Not run by anything.
-- Write it anew with: python -m mana.hub.db.dump

create schema mana;
grant usage on schema mana to mana_app;
grant usage on schema mana to mana_runner;
create schema mana_ai;
grant usage on schema mana_ai to mana_app;
grant usage on schema mana_ai to mana_runner;
create sequence mana.security_events_number_seq as bigint;
create sequence mana_ai.hub_spend_part_seq as bigint;

CREATE OR REPLACE FUNCTION mana.admit_sign_up(p_demo boolean, p_invite bytea, p_invites_only boolean)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform pg_catalog.pg_advisory_xact_lock(1835101793, 1);
  if not p_demo and not exists (select from mana.accounts a where not a.demo) then
    return 'administrator';
  end if;
  if p_invites_only then
    delete from mana.invites i
     where i.invite_hash = p_invite and i.expires_at > pg_catalog.now();
    if not found then
      return null;
    end if;
  end if;
  return 'member';
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.clear_attempts(p_login_mac bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.login_attempts l where l.login_mac = p_login_mac;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.count_attempt(p_login_mac bytea, p_now timestamp with time zone, p_window interval, p_attempts_max integer)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
declare
  counted bigint;
  oldest timestamptz;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended(pg_catalog.encode(p_login_mac, 'hex'), 1835101793));
  delete from mana.login_attempts l where l.ctid in (
    select d.ctid from mana.login_attempts d
     where d.attempted_at <= p_now - p_window limit 100 for update skip locked);
  select pg_catalog.count(*), pg_catalog.min(l.attempted_at) into counted, oldest
    from mana.login_attempts l
   where l.login_mac = p_login_mac and l.attempted_at > p_now - p_window;
  if counted >= p_attempts_max then
    return oldest + p_window;
  end if;
  insert into mana.login_attempts (login_mac, attempted_at) values (p_login_mac, p_now);
  return null;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.count_code(p_place bytea, p_codes_max integer)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana.letter_places as p (place, codes, codes_since) values (p_place, 1, v_now)
  on conflict (place) do update
     set codes = case when p.codes_since > v_now - interval '1 day' then p.codes + 1 else 1 end,
         codes_since = case when p.codes_since > v_now - interval '1 day'
                            then p.codes_since else v_now end
   where p.codes < p_codes_max or p.codes_since is null
      or p.codes_since <= v_now - interval '1 day';
  return found;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.current_account()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.current_invitation()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.invitation', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.current_space()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.current_space', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.end_code(p_account text, p_code text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l set code = null, code_due_at = null
   where l.account_id = p_account and l.code = p_code;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.end_letter(p_account text, p_sent boolean, p_place bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l
     set waiting = false, due_at = null, attempts = 0,
         sent_at = case when p_sent then pg_catalog.clock_timestamp() else l.sent_at end,
         place = case when l.address <> '' then coalesce(l.place, p_place) end
   where l.account_id = p_account;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.former_devices(p_space text)
 RETURNS SETOF mana.devices
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select d.* from mana.departures p
      join mana.devices d on d.account_id = p.account_id and d.registered_at <= p.departed_at
     where p.space_id = p_space
       and exists (select from mana.memberships m
                    where m.space_id = p_space and m.account_id = mana.current_account());
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.kek_batch(p_kek_id text, p_limit integer)
 RETURNS TABLE(account_id text, kek_wrap text, kek_id text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kek_wrap, a.kek_id from mana.accounts a
     where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id
     order by a.account_id limit p_limit for no key update;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.kek_left(p_kek_id text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (select pg_catalog.count(*) from mana.accounts a
           where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.login_facts(p_login_key text)
 RETURNS TABLE(account_id text, kdf jsonb, login_hash text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kdf, a.login_hash from mana.accounts a where a.login_key = p_login_key;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.moving_space()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.moving_space', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.next_letter()
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return least(
    (select pg_catalog.min(l.due_at) from mana.letters l where l.waiting),
    (select pg_catalog.min(l.code_due_at) from mana.letters l where l.code is not null));
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.open_reset(p_token_hash bytea, p_login_key text, p_now timestamp with time zone, p_expires timestamp with time zone)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
declare
  held record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.resets r where r.expires_at <= p_now;
  select a.account_id, a.mode into held from mana.accounts a where a.login_key = p_login_key;
  if held.mode = 'standard' then
    insert into mana.resets (token_hash, account_id, created_at, expires_at)
      values (p_token_hash, held.account_id, p_now, p_expires);
    insert into mana.security_events (account_id, at, action, ok, detail)
      values (held.account_id, p_now, 'reset', true, 'token');
  end if;
  return held.mode;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.recovery_facts(p_login_key text)
 RETURNS TABLE(account_id text, recovery_hash bytea)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.recovery_hash from mana.accounts a
     where a.login_key = p_login_key and a.recovery_hash is not null;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.reset_account(p_token_hash bytea, p_login_key text, p_now timestamp with time zone)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (
    select r.account_id from mana.resets r join mana.accounts a on a.account_id = r.account_id
     where r.token_hash = p_token_hash and a.login_key = p_login_key and r.expires_at > p_now);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.rotate_token(p_old bytea, p_new bytea, p_now timestamp with time zone, p_grace interval, p_life interval)
 RETURNS TABLE(outcome text, account_id text, session_id text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  held record;
  sess record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  select * into held from mana.refresh_tokens t where t.token_hash = p_old;
  if not found then
    return query select 'unknown', null::text, null::text;
    return;
  end if;
  select * into sess from mana.sessions s where s.session_id = held.session_id for update;
  -- Read again: another exchange may have come first while this one waited for the session.
  select * into held from mana.refresh_tokens t where t.token_hash = p_old;
  if held.token_hash is null or sess.session_id is null then
    return query select 'unknown', null::text, null::text;
    return;
  end if;
  if sess.revoked then
    return query select 'revoked', null::text, null::text;
    return;
  end if;
  if sess.ended_at is not null or held.issued_at <= p_now - p_life then
    return query select 'ended', null::text, null::text;
    return;
  end if;
  if held.replaced or held.used_at is not null then
    if held.replaced or held.used_at <= p_now - p_grace or exists (
      select from mana.refresh_tokens t where t.parent_hash = p_old and t.used_at is not null)
    then
      update mana.sessions s set ended_at = p_now where s.session_id = held.session_id;
      insert into mana.security_events (account_id, at, action, ok, session_id, detail)
        values (held.account_id, p_now, 'session-ended', false, held.session_id, 'reused');
      return query select 'reused', null::text, null::text;
      return;
    end if;
    update mana.refresh_tokens t set replaced = true where t.parent_hash = p_old;
  else
    update mana.refresh_tokens t set used_at = p_now where t.token_hash = p_old;
  end if;
  delete from mana.refresh_tokens t
   where t.session_id = held.session_id and t.issued_at <= p_now - p_life;
  update mana.sessions s set seen_at = p_now where s.session_id = held.session_id;
  insert into mana.refresh_tokens (token_hash, session_id, account_id, parent_hash, issued_at)
    values (p_new, held.session_id, held.account_id, p_old, p_now);
  return query select 'ok', held.account_id, held.session_id;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.set_kek_wrap(p_account text, p_wrap text, p_kek_id text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.accounts a set kek_wrap = p_wrap, kek_id = p_kek_id
   where a.account_id = p_account and a.kek_wrap is not null;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.sweep_waiting(p_now timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.links l where l.expires_at <= p_now;
  delete from mana.factor_challenges c where c.expires_at <= p_now;
  delete from mana.second_factors f
   where f.state = 'pending' and f.created_at <= p_now - interval '10 minutes';
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.take_letters(p_limit integer)
 RETURNS TABLE(account_id text, address text, attempts integer, code text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
  v_letter record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l set code = null, code_due_at = null
   where l.code is not null and l.code_due_at <= v_now and l.code_until <= v_now;
  return query
    update mana.letters l
       set code_attempts = l.code_attempts + 1,
           code_due_at = v_now + least(pg_catalog.power(2, l.code_attempts), 10) * interval '1 minute'
     where l.account_id in (
       select w.account_id from mana.letters w
        where w.code is not null and w.code_due_at <= v_now
        order by w.code_due_at limit p_limit for update skip locked)
    returning l.account_id, l.address, l.code_attempts, l.code;
  -- In the order of addresses, so that no two hubs wait for each other.
  for v_letter in
    select due.account_id, due.place from (
      select w.account_id, w.place from mana.letters w
       where w.waiting and w.due_at <= v_now
       order by w.due_at limit p_limit for update skip locked) due
     order by due.place, due.account_id
  loop
    if v_letter.place is not null then
      insert into mana.letter_places as p (place, letter_at, letter_for)
      values (v_letter.place, v_now, v_letter.account_id)
      on conflict (place) do update
         set letter_at = excluded.letter_at, letter_for = excluded.letter_for
       where p.letter_at is null or p.letter_for = excluded.letter_for
          or p.letter_at <= v_now - interval '1 hour';
      if not found then
        update mana.letters l
           set due_at = p.letter_at + interval '1 hour'
          from mana.letter_places p
         where l.account_id = v_letter.account_id and p.place = v_letter.place;
        continue;
      end if;
    end if;
    return query
      update mana.letters l
         set attempts = l.attempts + 1,
             due_at = v_now + least(pg_catalog.power(2, l.attempts), 360) * interval '1 minute'
       where l.account_id = v_letter.account_id
      returning l.account_id, l.address, l.attempts, null::text;
  end loop;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.tell_ended_session()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
begin
  if tg_op = 'DELETE' then
    perform pg_catalog.pg_notify('mana_live', 'ended:' || old.session_id);
  elsif new.revoked then
    perform pg_catalog.pg_notify('mana_live', 'revoked:' || new.session_id);
  elsif new.ended_at is not null then
    perform pg_catalog.pg_notify('mana_live', 'ended:' || new.session_id);
  end if;
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana.touch_attempts(p_login_mac bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.login_attempts l set attempted_at = l.attempted_at where l.login_mac = p_login_mac;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.add_spend(p_ids text[], p_tokens bigint[], p_costs bigint[], p_calls bigint[], p_confirmed_tokens bigint[] DEFAULT '{}'::bigint[], p_confirmed_costs bigint[] DEFAULT '{}'::bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
declare
  moved record;
begin
  insert into mana_ai.spend as s (scope, space_id, id, account_id, hour, tokens, cost, calls,
                                  confirmed_tokens, confirmed_cost)
  select k.scope, k.space_id, k.id, u.account_id, date_trunc('hour', u.ts, 'UTC'),
         sum(d.tokens), sum(d.cost), sum(d.calls), coalesce(sum(d.confirmed_tokens), 0),
         coalesce(sum(d.confirmed_cost), 0)
    from unnest(p_ids, p_tokens, p_costs, p_calls, p_confirmed_tokens, p_confirmed_costs)
           as d (usage_id, tokens, cost, calls, confirmed_tokens, confirmed_cost)
    join mana_ai.token_usage u on u.usage_id = d.usage_id
   cross join lateral (values ('account', '', u.account_id), ('agent', u.space_id, u.agent_id),
                              ('mission', u.space_id, u.mission_id)) as k (scope, space_id, id)
   group by 1, 2, 3, 4, 5
  on conflict (scope, space_id, id, hour, account_id) do update
    set tokens = s.tokens + excluded.tokens, cost = s.cost + excluded.cost,
        calls = s.calls + excluded.calls,
        confirmed_tokens = s.confirmed_tokens + excluded.confirmed_tokens,
        confirmed_cost = s.confirmed_cost + excluded.confirmed_cost;
  for moved in
    select date_trunc('hour', u.ts, 'UTC') as hour, sum(d.tokens) as tokens, sum(d.cost) as cost,
           sum(d.calls) as calls
      from unnest(p_ids, p_tokens, p_costs, p_calls) as d (usage_id, tokens, cost, calls)
      join mana_ai.token_usage u on u.usage_id = d.usage_id and u.for_hub
     group by 1
  loop
    update mana_ai.hub_spend s
       set tokens = s.tokens + moved.tokens, cost = s.cost + moved.cost,
           calls = s.calls + moved.calls
     where s.hour = moved.hour
       and s.part = (select free.part from mana_ai.hub_spend free where free.hour = moved.hour
                      order by free.part limit 1 for update skip locked);
    if not found then
      insert into mana_ai.hub_spend (hour, tokens, cost, calls)
      values (moved.hour, moved.tokens, moved.cost, moved.calls);
    end if;
  end loop;
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.agent_moved()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.stop_runs(new.space_id, null, new.agent_id);
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.caps_of(p_spaces text[], p_missions text[], p_agents text[], p_is_hub boolean)
 RETURNS TABLE(place integer, has_mission boolean, has_agent boolean, mission_at integer, mission_token_cap bigint, mission_cost_cap bigint, mission_tokens bigint, mission_costs bigint, agent_at integer, agent_token_cap bigint, agent_cost_cap bigint, agent_tokens bigint, agent_costs bigint, account_token_cap bigint, account_cost_cap bigint, account_tokens bigint, account_costs bigint, hub_token_cap bigint, hub_cost_cap bigint, hub_tokens bigint, hub_costs bigint)
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  since constant timestamptz := mana_ai.day_begins();
  account_token_cap bigint; account_cost_cap bigint; account_tokens bigint; account_costs bigint;
  hub_token_cap bigint; hub_cost_cap bigint; hub_tokens bigint; hub_costs bigint;
begin
  select case when p_is_hub then l.tokens_per_day_max end,
         case when p_is_hub then l.cost_per_day_max end,
         least(l.account_tokens_per_day_max, w.tokens_per_day_max),
         least(l.account_cost_per_day_max, w.cost_per_day_max)
    into hub_token_cap, hub_cost_cap, account_token_cap, account_cost_cap
    from mana_ai.hub_limits l left join mana_ai.account_work w on w.account_id = me
   where l.one;
  if account_token_cap is not null or account_cost_cap is not null then
    select sum(s.tokens), sum(s.cost) into account_tokens, account_costs
      from mana_ai.spend s
     where s.scope = 'account' and s.space_id = '' and s.id = me and s.hour >= since;
  end if;
  if hub_token_cap is not null or hub_cost_cap is not null then
    select sum(s.tokens), sum(s.cost) into hub_tokens, hub_costs
      from mana_ai.hub_spend s where s.hour >= since;
  end if;
  return query
  select b.place::integer, b.has_mission, b.has_agent,
         b.mission_at::integer, b.mission_token_cap, b.mission_cost_cap,
         of_mission.tokens, of_mission.cost,
         b.agent_at::integer, b.agent_token_cap, b.agent_cost_cap,
         of_agent.tokens, of_agent.cost,
         account_token_cap, account_cost_cap,
         coalesce(account_tokens, 0), coalesce(account_costs, 0),
         hub_token_cap, hub_cost_cap, coalesce(hub_tokens, 0), coalesce(hub_costs, 0)
    from (
      select a.place, a.space_id, a.mission_id, a.agent_id,
             m.mission_id is not null as has_mission, g.agent_id is not null as has_agent,
             min(a.place) over of_mission as mission_at, min(a.place) over of_agent as agent_at,
             c.mission_token_cap, c.mission_cost_cap, c.agent_token_cap, c.agent_cost_cap,
             -- Grants of one agent's missions may differ in what they say of the agent.
             bool_or(coalesce(c.agent_token_cap, c.agent_cost_cap) is not null)
               over of_agent as is_agent_capped
        from unnest(p_spaces, p_missions, p_agents) with ordinality
          as a (space_id, mission_id, agent_id, place)
        left join mana_ai.mission_snapshots m
          on m.space_id = a.space_id and m.mission_id = a.mission_id and not m.deleted
        left join mana_ai.agent_snapshots g
          on g.space_id = a.space_id and g.agent_id = a.agent_id and not g.deleted
        left join mana_ai.grants r
          on p_is_hub and r.space_id = a.space_id and r.mission_id = a.mission_id
         and r.state = 'active'
       -- Canonical headers have their caps near the beginning; others are not read as JSON.
       cross join lateral (
         select case when strpos(left(r.header, 400), '"caps":{') > 0
                     then r.header::json -> 'caps' end as caps) signed
       cross join lateral (
         select least(m.max_tokens_per_day, (signed.caps ->> 'missionTokens')::bigint)
                  as mission_token_cap,
                least(m.max_cost_per_day, (signed.caps ->> 'missionCost')::bigint)
                  as mission_cost_cap,
                least(g.max_tokens_per_day, (signed.caps ->> 'agentTokens')::bigint)
                  as agent_token_cap,
                least(g.max_cost_per_day, (signed.caps ->> 'agentCost')::bigint)
                  as agent_cost_cap) c
      window of_mission as (partition by a.space_id, a.mission_id),
             of_agent as (partition by a.space_id, a.agent_id)) b
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'mission' and s.space_id = b.space_id and s.id = b.mission_id
        and s.hour >= since and b.place = b.mission_at
        and coalesce(b.mission_token_cap, b.mission_cost_cap) is not null) of_mission
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'agent' and s.space_id = b.space_id and s.id = b.agent_id
        and s.hour >= since and b.place = b.agent_at and b.is_agent_capped) of_agent
   order by b.place;
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.changed(p_space text, p_tables text, p_records text, p_visibilities text, p_ops text, p_origins text, p_groups text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
declare
  v_now timestamptz := pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp());
  v_queued boolean := false;
  v_mission record;
  v_waiting record;
  v_last timestamptz;
  v_newest timestamptz;
  v_debounce interval;
  v_due timestamptz;
begin
  for v_mission in
    with logged as materialized (
      select c.* from unnest(
          pg_catalog.string_to_array(p_tables, e'\x1f'),
          pg_catalog.string_to_array(p_records, e'\x1f'),
          pg_catalog.string_to_array(p_visibilities, e'\x1f'),
          pg_catalog.string_to_array(p_ops, e'\x1f'),
          pg_catalog.string_to_array(p_origins, e'\x1f'),
          pg_catalog.string_to_array(p_groups, e'\x1f', ''))
        as c (table_name, record_id, visibility, op, origin, group_id)
    ), touched as materialized (
      select distinct w.mission_id
        from logged c
       cross join lateral (
         select w.mission_id from mana_ai.watched w
          where w.space_id = p_space and w.table_name = c.table_name
            and w.record_id = c.record_id offset 0) w
       where c.origin = 'user' and c.visibility = 'space'
         and c.op in ('insert', 'update', 'delete')
         and (c.group_id is null or not exists (
           select from logged other
            where other.group_id = c.group_id and other.origin <> 'user')))
    select m.mission_id, m.account_id, m.agent_id,
           pg_catalog.make_interval(mins => (m.cadence ->> 'debounceMinutes')::integer) as debounce,
           pg_catalog.make_interval(mins => (m.cadence ->> 'spacingMinutes')::integer) as spacing
      from mana_ai.mission_snapshots m
     where m.space_id = p_space and m.mission_id in (select t.mission_id from touched t)
       and m.hold is null and m.state = 'active' and not m.deleted and m.runs_on = 'hub'
       and m.cadence ->> 'kind' = 'onChange'
     order by m.mission_id
       for no key update
  loop
    v_debounce := v_mission.debounce;
    select o.occurrence_id, o.scheduled_for, o.due_at into v_waiting
      from mana_ai.occurrences o
     where o.space_id = p_space and o.mission_id = v_mission.mission_id and o.state = 'queued'
       and o.kind = 'change'
     order by o.scheduled_for desc limit 1;
    if v_waiting.occurrence_id is not null then
      -- What waits for its spacing or for a retry is never moved to an earlier time.
      update mana_ai.occurrences o
         set due_at = greatest(o.due_at, least(v_now + v_debounce,
                                               v_waiting.scheduled_for + 4 * v_debounce))
       where o.occurrence_id = v_waiting.occurrence_id and o.state = 'queued';
      v_queued := v_queued or found;
      continue when found;
    end if;
    select o.started_at into v_last from mana_ai.occurrences o
     where o.space_id = p_space and o.mission_id = v_mission.mission_id and o.kind = 'change'
       and o.state <> 'queued'
     order by o.scheduled_for desc limit 1;
    select o.scheduled_for into v_newest from mana_ai.occurrences o
     where o.space_id = p_space and o.mission_id = v_mission.mission_id
     order by o.scheduled_for desc limit 1;
    v_due := greatest(v_now + v_debounce, v_last + v_mission.spacing);
    insert into mana_ai.occurrences
      (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
    values (p_space, v_mission.mission_id, v_mission.account_id, v_mission.agent_id,
            greatest(v_now, v_newest + interval '1 millisecond'), 'change', 'queued', v_due);
    v_queued := true;
  end loop;
  if v_queued then
    perform pg_catalog.pg_notify('mana_due', '');
  end if;
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.cost_of(prompt bigint, reply bigint, prompt_price bigint, reply_price bigint)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
  select least(
    coalesce(
      pg_catalog.ceil((prompt::numeric * prompt_price + reply::numeric * reply_price) / 1000000), 0),
    1000000000000)::bigint
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.day_begins()
 RETURNS timestamp with time zone
 LANGUAGE sql
 PARALLEL SAFE
AS $function$ select pg_catalog.date_trunc('hour', pg_catalog.clock_timestamp(), 'UTC') - interval '24 hours' $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.end_grants()
 RETURNS TABLE(grant_id text, expires_at timestamp with time zone)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana_ai.grants g
     set state = 'expired', ended_at = pg_catalog.clock_timestamp(), wrapped_key = null,
         sealed_keys = null
   where g.state = 'active' and g.expires_at <= pg_catalog.clock_timestamp();
  delete from mana_ai.grants g
   where g.state = 'pending'
     and g.created_at < pg_catalog.clock_timestamp() - interval '1 hour';
  return query
    select g.grant_id, g.expires_at from mana_ai.grants g
     where g.state in ('revoked', 'replaced') and g.expires_at > pg_catalog.clock_timestamp();
end
$function$;
-- execute: mana_runner

CREATE OR REPLACE FUNCTION mana_ai.forget_spend(p_account text, p_is_hub boolean)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
declare
  before constant timestamptz := clock_timestamp() - interval '400 days';
begin
  delete from mana_ai.token_usage u
   where u.usage_id = any (array(
     select old.usage_id from mana_ai.token_usage old
      where old.account_id = p_account and old.ts < before order by old.ts limit 2000));
  delete from mana_ai.spend s
   where s.ctid = any (array(
     select old.ctid from mana_ai.spend old
      where old.account_id = p_account and old.hour < before order by old.hour limit 2000));
  if p_is_hub then
    delete from mana_ai.hub_spend s
     where s.ctid = any (array(
       select old.ctid from mana_ai.hub_spend old
        where old.hour < before order by old.hour limit 2000 for update skip locked));
  end if;
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.grant_moved()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.watch(new.space_id, new.mission_id);
  if new.state in ('expired', 'revoked') then
    perform mana_ai.stop_runs(new.space_id, new.mission_id, null);
  end if;
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.guard_grant()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
begin
  if (new.grant_id, new.account_id, new.space_id, new.mission_id, new.agent_id, new.header,
      new.suite, new.runner_key_id, new.expires_at, new.created_at)
     is distinct from
     (old.grant_id, old.account_id, old.space_id, old.mission_id, old.agent_id, old.header,
      old.suite, old.runner_key_id, old.expires_at, old.created_at) then
    raise exception 'the scope and life of a grant do not change' using errcode = '42501';
  end if;
  if old.state <> 'pending'
     and (new.signer, new.signature, new.hub_signature, new.wrapped_key_hash,
          new.sealed_keys_hash, new.completed_at)
         is distinct from
         (old.signer, old.signature, old.hub_signature, old.wrapped_key_hash,
          old.sealed_keys_hash, old.completed_at) then
    raise exception 'the signatures of a grant do not change' using errcode = '42501';
  end if;
  if old.revocation is not null
     and (new.revoker, new.revocation) is distinct from (old.revoker, old.revocation) then
    raise exception 'the word that a grant ended does not change' using errcode = '42501';
  end if;
  if old.state in ('expired', 'revoked', 'replaced')
     and (new.state, new.ended_at, new.wrapped_key, new.sealed_keys)
         is distinct from (old.state, old.ended_at, old.wrapped_key, old.sealed_keys) then
    raise exception 'an ended grant does not change' using errcode = '42501';
  end if;
  if old.state = 'active' and new.state = 'active' and new is distinct from old
     or old.state = 'active' and new.state = 'pending' then
    raise exception 'an active grant only ends' using errcode = '42501';
  end if;
  return new;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.hold_spaces(p_after text, p_limit integer)
 RETURNS text[]
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (
    with held as (
      select h.space_id from mana.space_heads h
       where h.space_id > p_after order by h.space_id limit p_limit for update)
    select pg_catalog.array_agg(h.space_id order by h.space_id) from held h);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.keep_moved_turn()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select a.account_id, new.due_at from mana.accounts a where a.account_id = new.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.keep_turn()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select q.account_id, pg_catalog.min(q.due_at) from queued q
   where q.state = 'queued'
     and exists (select from mana.accounts a where a.account_id = q.account_id)
   group by q.account_id order by q.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.lease(p_worker text, p_free integer, p_life interval, p_leases_max integer)
 RETURNS SETOF mana_ai.occurrences
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_limits record;
  v_free integer;
  v_leased text[] := '{}';
  v_accounts text[];
  v_shares integer[];
  v_some text[];
  v_served text[];
  v_done text[] := '{}';
  -- No runner leases for longer than an hour. What lies beyond comes from a clock that was ahead.
  v_end timestamptz;
begin
  perform pg_catalog.pg_advisory_xact_lock(1835101793, 3);
  v_now := pg_catalog.clock_timestamp();
  v_end := v_now + interval '1 hour';
  select * into v_limits from mana_ai.hub_limits;
  if v_limits.stopped_at is not null then
    return;
  end if;
  select least(p_free, v_limits.runs_max - pg_catalog.count(*)) into v_free
    from mana_ai.occurrences o where o.state = 'leased' and o.lease_until between v_now and v_end;
  if v_free <= 0 then
    return;
  end if;

  with behind as materialized (
    select o.occurrence_id, o.account_id, o.lease_until from mana_ai.occurrences o
     where o.state = 'leased' and o.lease_until not between v_now and v_end
       and o.attempts < p_leases_max
       and not exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
       and not exists (select from mana_ai.account_work w
                        where w.account_id = o.account_id and w.stopped_at is not null)
     order by o.lease_until limit 1000 for update of o skip locked
  ), placed as (
    select b.occurrence_id, b.lease_until,
           pg_catalog.row_number() over (partition by b.account_id order by b.lease_until) as place,
           (select pg_catalog.count(*) from mana_ai.occurrences r
             where r.state = 'leased' and r.lease_until between v_now and v_end
               and r.account_id = b.account_id) as running
      from behind b
  ), chosen as (
    select p.occurrence_id from placed p
     where p.place + p.running <= v_limits.runs_per_account_max
     order by p.lease_until limit v_free
  ), taken as (
    update mana_ai.occurrences o
       set lease_until = v_now + p_life, fence = o.fence + 1, attempts = o.attempts + 1,
           worker = p_worker, admitted = false, phase = 'leased'
      from chosen c where o.occurrence_id = c.occurrence_id
    returning o.occurrence_id)
  select coalesce(pg_catalog.array_agg(t.occurrence_id), '{}') into v_leased from taken t;
  v_free := v_free - pg_catalog.cardinality(v_leased);

  while v_free > 0 loop
    -- In a statement of its own: what follows then sees all that was queued before the row was held.
    with running as materialized (
      select r.account_id, pg_catalog.count(*) as number from mana_ai.occurrences r
       where r.state = 'leased' and r.lease_until between v_now and v_end group by r.account_id
    ), turn as materialized (
      select w.account_id, w.served_at,
             (v_limits.runs_per_account_max - coalesce(r.number, 0))::integer as room
        from mana_ai.account_work w left join running r on r.account_id = w.account_id
       where w.stopped_at is null and w.next_due <= v_now
         and coalesce(r.number, 0) < v_limits.runs_per_account_max
         and w.account_id <> all (v_done)
       order by w.served_at, w.account_id limit v_free for update of w skip locked
    ), placed as (
      select t.*, pg_catalog.row_number() over (order by t.served_at, t.account_id) as place,
             pg_catalog.count(*) over () as number
        from turn t)
    select pg_catalog.array_agg(p.account_id order by p.place),
           pg_catalog.array_agg(least(p.room, v_free / p.number)::integer order by p.place)
      into v_accounts, v_shares from placed p;
    exit when v_accounts is null;

    with picked as materialized (
      select q.occurrence_id
        from unnest(v_accounts, v_shares) as t (account_id, share)
       cross join lateral (
         select o.occurrence_id from mana_ai.occurrences o
          where o.account_id = t.account_id and o.state = 'queued' and o.due_at <= v_now
          order by o.due_at limit t.share for update skip locked) q
    ), taken as (
      update mana_ai.occurrences o
         set state = 'leased', lease_until = v_now + p_life, fence = o.fence + 1,
             attempts = o.attempts + 1, worker = p_worker, admitted = false, phase = 'leased',
             started_at = coalesce(o.started_at, v_now)
        from picked p where o.occurrence_id = p.occurrence_id
      returning o.occurrence_id, o.account_id)
    select coalesce(pg_catalog.array_agg(t.occurrence_id), '{}'),
           coalesce(pg_catalog.array_agg(t.account_id), '{}')
      into v_some, v_served from taken t;

    update mana_ai.account_work w
       set served_at = case when w.account_id = any (v_served)
                            then pg_catalog.clock_timestamp() else w.served_at end,
           next_due = (select o.due_at from mana_ai.occurrences o
                        where o.account_id = w.account_id and o.state = 'queued'
                        order by o.due_at limit 1)
     where w.account_id = any (v_accounts);
    -- Who had less than their share has no more that is due.
    select v_done || coalesce(pg_catalog.array_agg(t.account_id), '{}') into v_done
      from unnest(v_accounts, v_shares) as t (account_id, share)
     where t.share > (select pg_catalog.count(*) from unnest(v_served) as s (account_id)
                       where s.account_id = t.account_id);
    v_leased := v_leased || v_some;
    v_free := v_free - pg_catalog.cardinality(v_some);
  end loop;
  return query select o.* from mana_ai.occurrences o where o.occurrence_id = any (v_leased);
end
$function$;
-- execute: mana_runner

CREATE OR REPLACE FUNCTION mana_ai.lock_spend(key text)
 RETURNS void
 LANGUAGE sql
AS $function$
  select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(key, 1835101796))
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.mission_moved()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.watch(new.space_id, new.mission_id);
  if new.state <> 'active' or new.deleted or new.runs_on <> 'hub' then
    perform mana_ai.stop_runs(new.space_id, new.mission_id, null);
  end if;
  return null;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.plain_agents(p_spaces text[], p_after text, p_limit integer)
 RETURNS TABLE(space_id text, record_id text, author_id text, fields text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
 SET plan_cache_mode TO 'force_custom_plan'
AS $function$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select e.space_id, e.record_id, e.author_id, e.fields::text
      from unnest(p_spaces) with ordinality as s (space_id, place)
     cross join lateral (
       select * from mana.records e
        where e.space_id = s.space_id and e.table_name = 'agents'
          and (s.place > 1 or e.record_id > p_after)
        order by e.record_id limit p_limit) e
     order by s.place, e.record_id limit p_limit;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.plain_missions(p_spaces text[], p_after text, p_limit integer)
 RETURNS TABLE(space_id text, record_id text, author_id text, fields text, stands boolean, account_id text, hold text, failures integer, failure text, waits_for timestamp with time zone, last_for timestamp with time zone, lines json)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
 SET plan_cache_mode TO 'force_custom_plan'
 SET enable_seqscan TO 'on'
AS $function$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select r.space_id, r.record_id, r.author_id, r.fields::text,
           m.mission_id is not null, coalesce(m.account_id, g.account_id), m.hold, m.failures,
           m.failure, o.scheduled_for,
           case when o.scheduled_for is null then (
             select l.scheduled_for from mana_ai.occurrences l
              where l.space_id = r.space_id and l.mission_id = r.record_id
                and l.kind = 'scheduled'
              order by l.scheduled_for desc limit 1) end,
           case when m.mission_id is null then (
             select pg_catalog.json_agg(pg_catalog.json_build_array(
                      l.state, l.reason, coalesce(g.state, '') = 'active')
                    order by l.scheduled_for desc)
               from (select * from mana_ai.occurrences n
                      where n.space_id = r.space_id and n.mission_id = r.record_id
                      order by n.scheduled_for desc limit 20) l) end
      from (
        select e.*, s.place from unnest(p_spaces) with ordinality as s (space_id, place)
         cross join lateral (
           select * from mana.records e
            where e.space_id = s.space_id and e.table_name = 'aiMissions'
              and (s.place > 1 or e.record_id > p_after)
            order by e.record_id limit p_limit) e
         order by s.place, e.record_id limit p_limit) r
      left join lateral (
        select n.* from mana_ai.mission_snapshots n
         where n.space_id = r.space_id and n.mission_id = r.record_id offset 0) m on true
      left join lateral (
        select q.scheduled_for from mana_ai.occurrences q
         where q.space_id = r.space_id and q.mission_id = r.record_id
           and q.state in ('queued', 'leased') and q.kind = 'scheduled'
         order by q.scheduled_for limit 1) o on true
      left join lateral (
        select c.account_id, c.state from mana_ai.grants c
         where m.mission_id is null and c.space_id = r.space_id and c.mission_id = r.record_id
           and c.completed_at is not null
         order by c.completed_at desc limit 1) g on true
     order by r.place, r.record_id;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.put_agents(p_spaces text[], p_ids text[], p_accounts text[], p_states text[], p_tokens bigint[], p_costs bigint[], p_concurrent integer[], p_deleted boolean[])
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
 SET plan_cache_mode TO 'force_custom_plan'
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.agent_snapshots as a
    (space_id, agent_id, account_id, state, max_tokens_per_day, max_cost_per_day,
     max_concurrent_missions, deleted)
  select * from unnest(p_spaces, p_ids, p_accounts, p_states, p_tokens, p_costs, p_concurrent,
                       p_deleted)
  on conflict (space_id, agent_id) do update set
    account_id = excluded.account_id, state = excluded.state,
    max_tokens_per_day = excluded.max_tokens_per_day,
    max_cost_per_day = excluded.max_cost_per_day,
    max_concurrent_missions = excluded.max_concurrent_missions, deleted = excluded.deleted
   where (a.*) is distinct from (excluded.*);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.put_missions(p_spaces text[], p_ids text[], p_accounts text[], p_states text[], p_cadences text[], p_zones text[], p_agents text[], p_places text[], p_anchors bigint[], p_deleted boolean[], p_next timestamp with time zone[], p_holds text[], p_missed text[], p_tokens bigint[], p_costs bigint[], p_failures integer[], p_failed text[], p_due timestamp with time zone[])
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
 SET plan_cache_mode TO 'force_custom_plan'
 SET enable_seqscan TO 'on'
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.mission_snapshots as m
    (space_id, mission_id, account_id, state, cadence, time_zone, agent_id, runs_on, anchor_ms,
     deleted, next_run_at, hold, if_missed, max_tokens_per_day, max_cost_per_day, failures,
     failure)
  select k.space_id, k.mission_id, k.account_id, k.state, k.cadence::jsonb, k.time_zone,
         k.agent_id, k.runs_on, k.anchor_ms, k.deleted, k.next_run_at, k.hold, k.if_missed,
         k.tokens, k.cost, k.failures, k.failure
    from unnest(p_spaces, p_ids, p_accounts, p_states, p_cadences, p_zones, p_agents, p_places,
                p_anchors, p_deleted, p_next, p_holds, p_missed, p_tokens, p_costs, p_failures,
                p_failed)
      as k (space_id, mission_id, account_id, state, cadence, time_zone, agent_id, runs_on,
            anchor_ms, deleted, next_run_at, hold, if_missed, tokens, cost, failures, failure)
  on conflict (space_id, mission_id) do update set
    state = excluded.state, cadence = excluded.cadence, time_zone = excluded.time_zone,
    agent_id = excluded.agent_id, runs_on = excluded.runs_on, anchor_ms = excluded.anchor_ms,
    deleted = excluded.deleted, if_missed = excluded.if_missed,
    max_tokens_per_day = excluded.max_tokens_per_day,
    max_cost_per_day = excluded.max_cost_per_day, next_run_at = excluded.next_run_at
   where (m.*) is distinct from (excluded.*);
  insert into mana_ai.occurrences
    (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
  select k.space_id, k.mission_id, k.account_id, k.agent_id, k.next_run_at, 'scheduled',
         'queued', k.due_at
    from unnest(p_spaces, p_ids, p_accounts, p_agents, p_next, p_due)
      as k (space_id, mission_id, account_id, agent_id, next_run_at, due_at)
   where k.due_at is not null
  on conflict (space_id, mission_id, scheduled_for) do nothing;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.put_turns()
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select o.account_id, pg_catalog.min(o.due_at) from mana_ai.occurrences o
    join mana.accounts a on a.account_id = o.account_id
   where o.state = 'queued' group by o.account_id order by o.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  perform pg_catalog.pg_notify('mana_due', '');
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.reserve_calls(p_spaces text[], p_missions text[], p_agents text[], p_occurrences text[], p_prompts bigint[], p_replies bigint[], p_floors bigint[], p_endpoints text[], p_models text[], p_purposes text[], p_prompt_prices bigint[], p_reply_prices bigint[], p_holder text)
 RETURNS TABLE(place integer, usage_id text, reply bigint, reason text, scope text, unit text, remaining bigint, cap bigint)
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  is_hub constant boolean := p_holder is null;
  scopes constant text[] := array['mission', 'agent', 'account', 'hub'];
  count_of constant integer := coalesce(array_length(p_spaces, 1), 0);
  this_hour timestamptz;
  nothing constant bigint[] := array_fill(0::bigint, array[count_of]);
  key text;
  run record;
  caps bigint[]; sums bigint[];
  mission_tokens bigint[] := nothing; mission_costs bigint[] := nothing;
  agent_tokens bigint[] := nothing; agent_costs bigint[] := nothing;
  more_tokens bigint := 0; more_costs bigint := 0;
  hub_more_tokens bigint := 0; hub_more_costs bigint := 0;
  is_for_hub boolean;
  ids text[] := array_fill(null::text, array[count_of]);
  tokens bigint[] := nothing; costs bigint[] := nothing;
  prompt bigint; floor_of bigint; room bigint; fits bigint; price_p bigint; price_r bigint;
  takes_what_is_left boolean;
  has_granted boolean := false;
begin
  perform mana_ai.lock_spend('account:' || me);
  for key in
    select distinct a.space_id || ':' || a.agent_id from unnest(p_spaces, p_agents)
      as a (space_id, agent_id) order by 1
  loop
    perform mana_ai.lock_spend('agent:' || key);
  end loop;
  for key in
    select distinct a.space_id || ':' || a.mission_id from unnest(p_spaces, p_missions)
      as a (space_id, mission_id) order by 1
  loop
    perform mana_ai.lock_spend('mission:' || key);
  end loop;
  if is_hub and exists (select from mana_ai.hub_limits l where l.one
                         and (l.tokens_per_day_max is not null or l.cost_per_day_max is not null))
  then
    perform mana_ai.lock_spend('hub');
  end if;

  -- The statement begins after the locks, so it reads what those before us have committed.
  for run in select * from mana_ai.caps_of(p_spaces, p_missions, p_agents, is_hub) loop
    place := run.place;
    usage_id := null; reply := null; scope := null; unit := null; cap := null;
    prompt := p_prompts[place]; floor_of := p_floors[place]; room := p_replies[place];
    price_p := p_prompt_prices[place]; price_r := p_reply_prices[place];
    takes_what_is_left := not is_hub and floor_of = 0;
    is_for_hub := is_hub and p_models[place] <> '';
    if price_p is null or price_r is null then
      price_p := null; price_r := null;
    elsif not is_hub then
      price_r := greatest(price_p, price_r);
    end if;
    if run.mission_at = place then
      mission_tokens[place] := run.mission_tokens;
      mission_costs[place] := run.mission_costs;
    end if;
    if run.agent_at = place then
      agent_tokens[place] := run.agent_tokens;
      agent_costs[place] := run.agent_costs;
    end if;
    reason := case when not run.has_mission then 'mission-not-active'
                   when not run.has_agent then 'agent-missing' end;
    if reason is null then
      caps := array[run.mission_token_cap, run.mission_cost_cap,
                    run.agent_token_cap, run.agent_cost_cap,
                    run.account_token_cap, run.account_cost_cap,
                    case when is_for_hub then run.hub_token_cap end,
                    case when is_for_hub then run.hub_cost_cap end];
      sums := array[mission_tokens[run.mission_at], mission_costs[run.mission_at],
                    agent_tokens[run.agent_at], agent_costs[run.agent_at],
                    run.account_tokens + more_tokens, run.account_costs + more_costs,
                    run.hub_tokens + hub_more_tokens, run.hub_costs + hub_more_costs];
      for j in 1 .. 8 loop
        continue when caps[j] is null;
        remaining := caps[j] - sums[j];
        if j % 2 = 1 then
          fits := remaining - prompt;
        elsif price_p is null then
          if not takes_what_is_left then
            reason := 'no-price';
            exit;
          end if;
          fits := 0;
        elsif price_p = 0 and price_r = 0 and caps[j] > 0 then
          continue;
        elsif remaining::numeric * 1000000 < prompt::numeric * price_p then
          fits := -1;
        elsif price_r = 0 then
          fits := room;
        else
          fits := least(div(remaining::numeric * 1000000 - prompt::numeric * price_p, price_r), room);
        end if;
        if takes_what_is_left then
          room := greatest(least(room, fits), 0);
        elsif remaining <= 0 or fits < floor_of then
          reason := 'budget';
          scope := scopes[(j + 1) / 2];
          unit := case j % 2 when 1 then 'tokens' else 'cost' end;
          remaining := greatest(remaining, 0);
          cap := caps[j];
          exit;
        else
          room := least(room, fits);
        end if;
      end loop;
    end if;
    if reason is null then
      has_granted := true;
      usage_id := gen_random_uuid()::text;
      reply := room;
      ids[place] := usage_id;
      tokens[place] := prompt + room;
      costs[place] := mana_ai.cost_of(prompt, room, price_p, price_r);
      mission_tokens[run.mission_at] := mission_tokens[run.mission_at] + tokens[place];
      mission_costs[run.mission_at] := mission_costs[run.mission_at] + costs[place];
      agent_tokens[run.agent_at] := agent_tokens[run.agent_at] + tokens[place];
      agent_costs[run.agent_at] := agent_costs[run.agent_at] + costs[place];
      more_tokens := more_tokens + tokens[place];
      more_costs := more_costs + costs[place];
      if is_for_hub then
        hub_more_tokens := hub_more_tokens + tokens[place];
        hub_more_costs := hub_more_costs + costs[place];
      end if;
    end if;
    return next;
  end loop;

  if not has_granted then
    return;
  end if;
  this_hour := date_trunc('hour', clock_timestamp(), 'UTC');
  if not exists (select from mana_ai.spend s
                  where s.scope = 'account' and s.space_id = '' and s.id = me
                    and s.hour >= this_hour) then
    perform mana_ai.forget_spend(me, is_hub);
  end if;
  insert into mana_ai.token_usage
    (usage_id, account_id, space_id, agent_id, mission_id, occurrence_id, reserved, spent,
     reply_max, reserved_cost, cost, endpoint, model, purpose, prompt_price, completion_price,
     holder, for_hub)
  select t.usage_id, me, t.space_id, t.agent_id, t.mission_id, t.occurrence_id, t.tokens, t.tokens,
         case when is_hub then t.tokens - t.prompt else t.asked end, t.cost, t.cost, t.endpoint, t.model, t.purpose, t.prompt_price,
         t.reply_price, p_holder, is_hub and t.model <> ''
    from unnest(ids, tokens, costs, p_spaces, p_missions, p_agents, p_occurrences, p_prompts,
                p_replies, p_endpoints, p_models, p_purposes, p_prompt_prices, p_reply_prices)
      as t (usage_id, tokens, cost, space_id, mission_id, agent_id, occurrence_id, prompt, asked,
            endpoint, model, purpose, prompt_price, reply_price)
   where t.usage_id is not null;
  perform mana_ai.add_spend(ids, tokens, costs, array_fill(1::bigint, array[count_of]));
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.settle_calls(p_ids text[], p_prompts bigint[], p_replies bigint[], p_open_prompts bigint[], p_open_replies bigint[], p_calls bigint[], p_by_device boolean)
 RETURNS TABLE(usage_id text, tokens bigint, cost bigint)
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  ids text[]; tokens_more bigint[]; costs_more bigint[]; calls_more bigint[];
  confirmed_tokens_of bigint[]; confirmed_costs_of bigint[];
begin
  perform mana_ai.lock_spend('account:' || me);
  -- Nobody else moves these rows meanwhile: they are of this account.
  with told as materialized (
    select distinct on (u.usage_id) u.usage_id, u.spent as old_spent, u.cost as old_cost,
           u.calls as old_calls, p.prompt, p.reply, p.calls,
           coalesce(p.prompt + p.reply, u.spent) as spent,
           coalesce(p.prompt + p.reply - p.open_prompt - p.open_reply, 0) as confirmed_tokens,
           case when p.prompt + p.reply is null then u.cost
                else mana_ai.cost_of(p.prompt, p.reply, u.prompt_price, u.completion_price)
           end as cost,
           case when p.prompt + p.reply is null then u.cost
                else mana_ai.cost_of(p.open_prompt, p.open_reply, u.prompt_price, u.completion_price)
           end as open_cost
      from unnest(p_ids, p_prompts, p_replies, p_open_prompts, p_open_replies, p_calls)
        with ordinality as p (usage_id, prompt, reply, open_prompt, open_reply, calls, place)
      join mana_ai.token_usage u on u.usage_id = p.usage_id
     where u.account_id = me and u.settled_at is null and (u.holder is not null) = p_by_device
     order by u.usage_id, p.place
  ), settled as materialized (
    select t.*, t.cost - least(t.open_cost, t.cost) as confirmed_cost from told t
  ), written as (
    update mana_ai.token_usage u
       set prompt_tokens = s.prompt, completion_tokens = s.reply, spent = s.spent, cost = s.cost,
           calls = s.calls, confirmed_tokens = s.confirmed_tokens,
           confirmed_cost = s.confirmed_cost, settled_at = clock_timestamp()
      from settled s where u.usage_id = s.usage_id
    returning u.usage_id
  )
  select array_agg(s.usage_id), array_agg(s.spent - s.old_spent), array_agg(s.cost - s.old_cost),
         array_agg(s.calls - s.old_calls), array_agg(s.confirmed_tokens),
         array_agg(s.confirmed_cost)
    into ids, tokens_more, costs_more, calls_more, confirmed_tokens_of, confirmed_costs_of
    from settled s join written using (usage_id);
  if ids is null then
    return;
  end if;
  perform mana_ai.add_spend(
    ids, tokens_more, costs_more, calls_more, confirmed_tokens_of, confirmed_costs_of);
  return query select u.usage_id, u.spent, u.cost from mana_ai.token_usage u
                where u.usage_id = any (ids);
end
$function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana_ai.stop_runs(p_space text, p_mission text, p_agent text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
begin
  insert into mana_ai.stops (occurrence_id, space_id)
  select o.occurrence_id, o.space_id from mana_ai.occurrences o
   where o.space_id = p_space and o.state = 'leased'
     and (o.mission_id = p_mission or exists (
       select from mana_ai.mission_snapshots m
        where m.space_id = o.space_id and m.mission_id = o.mission_id and m.agent_id = p_agent))
  on conflict do nothing;
  if found then
    perform pg_catalog.pg_notify('mana_stop', '');
  end if;
end
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.sweep_old(p_account text, p_space text, p_mission text, p_places integer, p_rows integer)
 RETURNS TABLE(account_id text, space_id text, mission_id text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
 SET plan_cache_mode TO 'force_custom_plan'
AS $function$
#variable_conflict use_column
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
  v_before constant timestamptz := v_now - interval '400 days';
  v_accounts text[];
  v_spaces text[];
  v_missions text[];
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  select coalesce(pg_catalog.array_agg(a.account_id order by a.account_id), '{}') into v_accounts
    from (select n.account_id from mana.accounts n where n.account_id > p_account
           order by n.account_id limit p_places) a;
  select coalesce(pg_catalog.array_agg(m.space_id order by m.space_id, m.mission_id), '{}'),
         coalesce(pg_catalog.array_agg(m.mission_id order by m.space_id, m.mission_id), '{}')
    into v_spaces, v_missions
    from (select n.space_id, n.mission_id from mana_ai.mission_snapshots n
           where (n.space_id, n.mission_id) > (p_space, p_mission)
           order by n.space_id, n.mission_id limit p_places) m;

  delete from mana_ai.token_usage u where u.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana_ai.token_usage t
       where t.account_id = w.account_id and t.ts < v_before
       order by t.ts limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana_ai.spend s where s.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana_ai.spend t
       where t.account_id = w.account_id and t.hour < v_before
       order by t.hour limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.security_events e where e.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana.security_events t
       where t.account_id = w.account_id and t.at < v_before
       order by t.at limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.sessions s where s.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana.sessions t
       where t.account_id = w.account_id and coalesce(t.seen_at, t.created_at) < v_before
       limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.invites i where i.invite_hash = any (array(
    select t.invite_hash from mana.invites t
     where t.account_id = any (v_accounts) and t.expires_at < v_before
     limit p_rows for update skip locked));
  delete from mana_ai.occurrences o where o.ctid = any (array(
    select old.place from unnest(v_spaces, v_missions) as w (space_id, mission_id)
     cross join lateral (
      select t.ctid as place from mana_ai.occurrences t
       where t.space_id = w.space_id and t.mission_id = w.mission_id
         and t.scheduled_for < v_before and t.state not in ('queued', 'leased')
         and exists (select from mana_ai.occurrences later
                      where later.space_id = t.space_id and later.mission_id = t.mission_id
                        and later.kind = t.kind and later.scheduled_for > t.scheduled_for
                        and later.state not in ('queued', 'leased'))
       order by t.scheduled_for limit p_rows for update of t skip locked) old
     limit p_rows));
  delete from mana_ai.hub_spend s where s.ctid = any (array(
    select old.ctid from mana_ai.hub_spend old
     where old.hour < v_before order by old.hour limit p_rows for update skip locked));
  delete from mana.resets r where r.expires_at <= v_now;
  delete from mana.letter_places p where p.place = any (array(
    select old.place from mana.letter_places old
     where coalesce(old.codes_since, '-infinity') <= v_now - interval '1 day'
       and coalesce(old.letter_at, '-infinity') <= v_now - interval '1 day'
     limit p_rows for update skip locked));

  return query select
    case when pg_catalog.cardinality(v_accounts) < p_places then ''
         else v_accounts[p_places] end,
    case when pg_catalog.cardinality(v_missions) < p_places then '' else v_spaces[p_places] end,
    case when pg_catalog.cardinality(v_missions) < p_places then '' else v_missions[p_places] end;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.used_by(p_space text, p_occurrence text)
 RETURNS TABLE(tokens bigint, cost bigint, confirmed_tokens bigint, confirmed_cost bigint)
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
  select coalesce(pg_catalog.sum(t.spent), 0)::bigint, coalesce(pg_catalog.sum(t.cost), 0)::bigint,
         coalesce(pg_catalog.sum(t.confirmed_tokens), 0)::bigint,
         coalesce(pg_catalog.sum(t.confirmed_cost), 0)::bigint
    from mana_ai.token_usage t
   where t.space_id = p_space and t.occurrence_id = p_occurrence
$function$;
-- execute: mana_runner

CREATE OR REPLACE FUNCTION mana_ai.watch(p_space text, p_mission text)
 RETURNS void
 LANGUAGE sql
 SET search_path TO ''
AS $function$
  delete from mana_ai.watched w where w.space_id = p_space and w.mission_id = p_mission;
  insert into mana_ai.watched (space_id, table_name, record_id, mission_id)
  select p_space, pg_catalog.split_part(named, ':', 1),
         pg_catalog.substr(named, pg_catalog.strpos(named, ':') + 1), p_mission
    from mana_ai.mission_snapshots m
    join mana_ai.grants g on g.space_id = m.space_id and g.mission_id = m.mission_id
   cross join lateral pg_catalog.json_array_elements_text(g.header::json -> 'recordIds') as named
   where m.space_id = p_space and m.mission_id = p_mission and m.state = 'active'
     and not m.deleted and m.runs_on = 'hub' and m.cadence ->> 'kind' = 'onChange'
     and g.state = 'active'
  on conflict do nothing;
$function$;
-- execute: the owner only

create table mana.accounts (
  account_id text not null,
  login text not null,
  login_key text not null,
  mode text not null,
  role text not null,
  demo boolean not null,
  kdf jsonb not null,
  login_hash text not null,
  master_wrap text not null,
  master_check text not null,
  kek_wrap text,
  signing_key text not null,
  hpke_key text not null,
  sealed_private text not null,
  created_at timestamp with time zone not null,
  revision integer not null default 0,
  challenge text not null default encode((uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'::text),
  kek_id text,
  recovery jsonb,
  recovery_hash bytea,
  recovery_set_at timestamp with time zone,
  formers jsonb not null default '{"masters": [], "identities": []}'::jsonb,
  grants boolean not null,
  constraint accounts_pkey PRIMARY KEY (account_id),
  constraint accounts_check CHECK (((mode = 'standard'::text) = (kek_wrap IS NOT NULL))),
  constraint accounts_login UNIQUE (login_key),
  constraint accounts_mode_check CHECK ((mode = ANY (ARRAY['standard'::text, 'zero-knowledge'::text]))),
  constraint accounts_recovery CHECK ((((recovery IS NULL) = (recovery_hash IS NULL)) AND ((recovery IS NULL) = (recovery_set_at IS NULL)))),
  constraint accounts_revision_check CHECK ((revision >= 0)),
  constraint accounts_role_check CHECK ((role = ANY (ARRAY['administrator'::text, 'member'::text])))
);
alter table mana.accounts enable row level security;
alter table mana.accounts force row level security;
create policy door on mana.accounts as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.accounts as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update(mode), update(kdf), update(login_hash), update(master_wrap), update(master_check), update(kek_wrap), update(signing_key), update(hpke_key), update(sealed_private), update(revision), update(challenge), update(kek_id), update(recovery), update(recovery_hash), update(recovery_set_at), update(formers), update(grants) on mana.accounts to mana_app;
grant select(account_id), select(mode), select(role), select(signing_key), select(hpke_key) on mana.accounts to mana_runner;

create table mana.departures (
  account_id text not null,
  space_id text not null,
  log jsonb not null,
  departed_at timestamp with time zone not null,
  constraint departures_pkey PRIMARY KEY (account_id, space_id),
  constraint departures_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX departures_of_space ON mana.departures USING btree (space_id);
alter table mana.departures enable row level security;
alter table mana.departures force row level security;
create policy door on mana.departures as permissive for select to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy goes on mana.departures as permissive for insert to mana_app with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = departures.space_id) AND (departures.account_id = ANY (s.members))))));
create policy moving on mana.departures as permissive for select to mana_app using ((space_id = mana.moving_space()));
create policy own on mana.departures as permissive for select to mana_app using ((account_id = mana.current_account()));
create policy returns on mana.departures as permissive for delete to mana_app using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = departures.space_id) AND (departures.account_id = ANY (s.members))))));
grant delete, insert, select on mana.departures to mana_app;

create table mana.devices (
  device_id text not null,
  account_id text not null,
  public_key text not null,
  created_at text not null,
  signature text not null,
  registered_at timestamp with time zone not null,
  former_signature text,
  revoked_at text,
  revocation text,
  constraint devices_pkey PRIMARY KEY (device_id),
  constraint devices_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint devices_revoked CHECK (((revoked_at IS NULL) = (revocation IS NULL)))
);
CREATE INDEX devices_of_account ON mana.devices USING btree (account_id);
alter table mana.devices enable row level security;
alter table mana.devices force row level security;
create policy door on mana.devices as permissive for select to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.devices as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
create policy shared on mana.devices as permissive for select to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE (m.account_id = devices.account_id))));
grant insert, select, update(signature), update(former_signature), update(revoked_at), update(revocation) on mana.devices to mana_app;
grant select on mana.devices to mana_runner;

create table mana.factor_challenges (
  challenge text not null,
  account_id text not null,
  factor_id text,
  expires_at timestamp with time zone not null,
  constraint factor_challenges_pkey PRIMARY KEY (challenge),
  constraint factor_challenges_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint factor_challenges_factor_id_fkey FOREIGN KEY (factor_id) REFERENCES mana.second_factors(factor_id) ON DELETE CASCADE
);
CREATE INDEX factor_challenges_by_age ON mana.factor_challenges USING btree (expires_at);
CREATE INDEX factor_challenges_of_account ON mana.factor_challenges USING btree (account_id);
CREATE INDEX factor_challenges_of_factor ON mana.factor_challenges USING btree (factor_id);
alter table mana.factor_challenges enable row level security;
alter table mana.factor_challenges force row level security;
create policy door on mana.factor_challenges as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.factor_challenges as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select on mana.factor_challenges to mana_app;

create table mana.hidden_records (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  seq bigint not null,
  constraint hidden_records_pkey PRIMARY KEY (space_id, table_name, record_id),
  constraint hidden_records_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX hidden_records_of_space ON mana.hidden_records USING btree (space_id, seq);
alter table mana.hidden_records enable row level security;
alter table mana.hidden_records force row level security;
create policy hides on mana.hidden_records as permissive for insert to mana_app with check (((author_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id))) AND (EXISTS ( SELECT
   FROM mana.records r
  WHERE ((r.space_id = hidden_records.space_id) AND (r.table_name = hidden_records.table_name) AND (r.record_id = hidden_records.record_id) AND (r.author_id = mana.current_account()) AND (r.visibility = 'private'::text))))));
create policy member on mana.hidden_records as permissive for select to mana_app, mana_runner using (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id)))));
create policy shows on mana.hidden_records as permissive for delete to mana_app using (((author_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id)))));
grant delete, insert, select on mana.hidden_records to mana_app;
grant select on mana.hidden_records to mana_runner;

create table mana.invitations (
  invitation_id text not null,
  space_id text not null,
  role text not null,
  token_hash text not null,
  created_by text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  account_id text,
  signing_key text,
  hpke_key text,
  mac text,
  joined boolean not null default false,
  withdrawn boolean not null default false,
  constraint invitations_pkey PRIMARY KEY (invitation_id),
  constraint invitations_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint invitations_check CHECK ((((account_id IS NULL) = (mac IS NULL)) AND ((account_id IS NULL) = (signing_key IS NULL)) AND ((account_id IS NULL) = (hpke_key IS NULL)))),
  constraint invitations_check1 CHECK (((NOT joined) OR (account_id IS NOT NULL))),
  constraint invitations_created_by_fkey FOREIGN KEY (created_by) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint invitations_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'member'::text, 'viewer'::text]))),
  constraint invitations_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint invitations_token UNIQUE (token_hash)
);
CREATE INDEX invitations_of_account ON mana.invitations USING btree (account_id);
CREATE INDEX invitations_of_creator ON mana.invitations USING btree (created_by);
CREATE INDEX invitations_of_space ON mana.invitations USING btree (space_id, created_at DESC);
alter table mana.invitations enable row level security;
alter table mana.invitations force row level security;
create policy accepted on mana.invitations as permissive for select to mana_app using ((account_id = mana.current_account()));
create policy accepts on mana.invitations as permissive for update to mana_app using (((token_hash = mana.current_invitation()) AND (NOT withdrawn) AND (NOT joined) AND ((account_id IS NULL) OR (account_id = mana.current_account())))) with check (((token_hash = mana.current_invitation()) AND (NOT withdrawn) AND (NOT joined) AND (account_id = mana.current_account())));
create policy bearer on mana.invitations as permissive for select to mana_app using ((token_hash = mana.current_invitation()));
create policy managers on mana.invitations as permissive for all to mana_app using ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE ((m.space_id = invitations.space_id) AND (m.account_id = mana.current_account()) AND (m.role = ANY (ARRAY['owner'::text, 'admin'::text])))))) with check ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE ((m.space_id = invitations.space_id) AND (m.account_id = mana.current_account()) AND (m.role = ANY (ARRAY['owner'::text, 'admin'::text]))))));
grant delete, insert, select, update(account_id), update(signing_key), update(hpke_key), update(mac), update(joined), update(withdrawn) on mana.invitations to mana_app;

create table mana.invites (
  invite_hash bytea not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint invites_pkey PRIMARY KEY (invite_hash),
  constraint invites_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX invites_of_account ON mana.invites USING btree (account_id);
alter table mana.invites enable row level security;
alter table mana.invites force row level security;
create policy door on mana.invites as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.invites as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert on mana.invites to mana_app;

create table mana.letter_places (
  place bytea not null,
  codes integer not null default 0,
  codes_since timestamp with time zone,
  letter_at timestamp with time zone,
  letter_for text,
  constraint letter_places_pkey PRIMARY KEY (place),
  constraint letter_places_check CHECK (((letter_at IS NULL) = (letter_for IS NULL)))
);
alter table mana.letter_places enable row level security;
alter table mana.letter_places force row level security;
create policy door on mana.letter_places as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));

create table mana.letters (
  account_id text not null,
  address text not null,
  code_hash bytea,
  code_until timestamp with time zone,
  code_tries integer not null default 0,
  codes_sent integer not null default 0,
  codes_since timestamp with time zone,
  confirmed boolean not null default false,
  enabled boolean not null default false,
  waiting boolean not null default false,
  due_at timestamp with time zone,
  sent_at timestamp with time zone,
  attempts integer not null default 0,
  place bytea,
  code text,
  code_due_at timestamp with time zone,
  code_attempts integer not null default 0,
  constraint letters_pkey PRIMARY KEY (account_id),
  constraint letters_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint letters_check CHECK ((waiting = (due_at IS NOT NULL))),
  constraint letters_check1 CHECK ((confirmed OR (NOT enabled))),
  constraint letters_check2 CHECK (((code IS NULL) = (code_due_at IS NULL)))
);
CREATE INDEX letters_codes ON mana.letters USING btree (code_due_at) WHERE (code IS NOT NULL);
CREATE INDEX letters_due ON mana.letters USING btree (due_at) WHERE waiting;
alter table mana.letters enable row level security;
alter table mana.letters force row level security;
create policy door on mana.letters as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.letters as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update on mana.letters to mana_app;
grant select(account_id), select(enabled), select(waiting), update(waiting), update(due_at), select(sent_at) on mana.letters to mana_runner;

create table mana.links (
  link_id text not null,
  account_id text not null,
  login text not null,
  name text not null,
  ticket_hash bytea not null,
  commitment text not null,
  state text not null,
  own_nonce text,
  hpke_key text,
  device_key text,
  device_id text,
  nonce text,
  wrapped text,
  certificate json,
  session_id text,
  revision integer,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint links_pkey PRIMARY KEY (link_id),
  constraint links_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint links_check CHECK (((state = 'approved'::text) = (wrapped IS NOT NULL))),
  constraint links_check1 CHECK (((wrapped IS NULL) = (certificate IS NULL))),
  constraint links_state_check CHECK ((state = ANY (ARRAY['waiting'::text, 'answered'::text, 'revealed'::text, 'approved'::text, 'refused'::text, 'taken'::text])))
);
CREATE INDEX links_by_age ON mana.links USING btree (expires_at);
CREATE INDEX links_of_account ON mana.links USING btree (account_id);
alter table mana.links enable row level security;
alter table mana.links force row level security;
create policy door on mana.links as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.links as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update on mana.links to mana_app;

create table mana.login_attempts (
  login_mac bytea not null,
  attempted_at timestamp with time zone not null
);
CREATE INDEX login_attempts_by_age ON mana.login_attempts USING btree (attempted_at);
CREATE INDEX login_attempts_of_login ON mana.login_attempts USING btree (login_mac, attempted_at);
alter table mana.login_attempts enable row level security;
alter table mana.login_attempts force row level security;
create policy door on mana.login_attempts as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));

create table mana.membership_entries (
  space_id text not null,
  number integer not null,
  entry jsonb not null,
  signature text not null,
  hash text not null,
  constraint membership_entries_pkey PRIMARY KEY (space_id, number),
  constraint membership_entries_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana.membership_entries enable row level security;
alter table mana.membership_entries force row level security;
create policy member on mana.membership_entries as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = membership_entries.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = membership_entries.space_id))));
grant insert, select on mana.membership_entries to mana_app;
grant select on mana.membership_entries to mana_runner;

create table mana.memberships (
  space_id text not null,
  account_id text not null,
  role text not null,
  constraint memberships_pkey PRIMARY KEY (space_id, account_id),
  constraint memberships_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint memberships_role_check CHECK ((role = ANY (ARRAY['owner'::text, 'admin'::text, 'member'::text, 'viewer'::text]))),
  constraint memberships_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX memberships_of_account ON mana.memberships USING btree (account_id);
alter table mana.memberships enable row level security;
alter table mana.memberships force row level security;
create policy door on mana.memberships as permissive for select to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy member on mana.memberships as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = memberships.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = memberships.space_id) AND (memberships.account_id = ANY (s.members))))));
grant delete, insert, select, update(role) on mana.memberships to mana_app;
grant select on mana.memberships to mana_runner;

create table mana.migrations (
  number integer not null,
  name text not null,
  checksum text not null,
  applied_at timestamp with time zone not null default now(),
  constraint migrations_pkey PRIMARY KEY (number)
);

create table mana.records (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  visibility text not null,
  fields json not null,
  proofs json not null,
  seq bigint not null,
  deleted boolean not null,
  constraint records_pkey PRIMARY KEY (space_id, table_name, record_id),
  constraint records_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint records_visibility_check CHECK ((visibility = ANY (ARRAY['space'::text, 'private'::text])))
);
alter table mana.records enable row level security;
alter table mana.records force row level security;
create policy door on mana.records as permissive for select to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy member on mana.records as permissive for all to mana_app, mana_runner using ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = records.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account())))) with check ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = records.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account()))));
grant insert, select, update(visibility), update(fields), update(proofs), update(seq), update(deleted) on mana.records to mana_app;
grant insert, select, update(fields), update(proofs), update(seq), update(deleted) on mana.records to mana_runner;

create table mana.refresh_tokens (
  token_hash bytea not null,
  session_id text not null,
  account_id text not null,
  parent_hash bytea,
  issued_at timestamp with time zone not null,
  used_at timestamp with time zone,
  replaced boolean not null default false,
  constraint refresh_tokens_pkey PRIMARY KEY (token_hash),
  constraint refresh_tokens_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES mana.sessions(session_id) ON DELETE CASCADE
);
CREATE INDEX refresh_tokens_of_account ON mana.refresh_tokens USING btree (account_id);
CREATE INDEX refresh_tokens_of_session ON mana.refresh_tokens USING btree (session_id);
alter table mana.refresh_tokens enable row level security;
alter table mana.refresh_tokens force row level security;
create policy door on mana.refresh_tokens as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.refresh_tokens as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert on mana.refresh_tokens to mana_app;

create table mana.resets (
  token_hash bytea not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint resets_pkey PRIMARY KEY (token_hash),
  constraint resets_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX resets_of_account ON mana.resets USING btree (account_id);
alter table mana.resets enable row level security;
alter table mana.resets force row level security;
create policy door on mana.resets as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.resets as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, select on mana.resets to mana_app;

create table mana.second_factors (
  factor_id text not null,
  account_id text not null,
  kind text not null,
  name text not null,
  state text not null,
  secret text not null,
  credential_id text,
  used bigint not null default 0,
  created_at timestamp with time zone not null,
  used_at timestamp with time zone,
  constraint second_factors_pkey PRIMARY KEY (factor_id),
  constraint second_factors_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint second_factors_kind_check CHECK ((kind = ANY (ARRAY['totp'::text, 'passkey'::text]))),
  constraint second_factors_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'active'::text])))
);
CREATE INDEX second_factors_of_account ON mana.second_factors USING btree (account_id);
CREATE INDEX second_factors_unfinished ON mana.second_factors USING btree (created_at) WHERE (state = 'pending'::text);
CREATE UNIQUE INDEX second_factors_credential ON mana.second_factors USING btree (credential_id) WHERE (credential_id IS NOT NULL);
alter table mana.second_factors enable row level security;
alter table mana.second_factors force row level security;
create policy door on mana.second_factors as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.second_factors as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update on mana.second_factors to mana_app;

create table mana.security_events (
  account_id text not null,
  number bigint not null generated always as identity,
  at timestamp with time zone not null,
  action text not null,
  ok boolean not null,
  session_id text,
  detail text not null default ''::text,
  constraint security_events_pkey PRIMARY KEY (account_id, number),
  constraint security_events_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX security_events_by_time ON mana.security_events USING btree (account_id, at);
alter table mana.security_events enable row level security;
alter table mana.security_events force row level security;
create policy door on mana.security_events as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.security_events as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert, select on mana.security_events to mana_app;

create table mana.sessions (
  session_id text not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  ended_at timestamp with time zone,
  seen_at timestamp with time zone,
  name text not null default ''::text,
  device_id text,
  revoked boolean not null default false,
  constraint sessions_pkey PRIMARY KEY (session_id),
  constraint sessions_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX sessions_of_account ON mana.sessions USING btree (account_id);
CREATE INDEX sessions_of_device ON mana.sessions USING btree (device_id) WHERE (device_id IS NOT NULL);
alter table mana.sessions enable row level security;
alter table mana.sessions force row level security;
create policy door on mana.sessions as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.sessions as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
create policy runner_looks on mana.sessions as permissive for select to mana_runner using ((account_id = mana.current_account()));
CREATE TRIGGER tell_ended AFTER DELETE OR UPDATE OF ended_at, revoked ON mana.sessions FOR EACH ROW EXECUTE FUNCTION mana.tell_ended_session();
grant insert, select, update(ended_at), update(seen_at), update(name), update(device_id), update(revoked) on mana.sessions to mana_app;
grant select(session_id), select(account_id), select(ended_at), select(revoked) on mana.sessions to mana_runner;

create table mana.space_heads (
  space_id text not null,
  seq bigint not null,
  constraint space_heads_pkey PRIMARY KEY (space_id),
  constraint space_heads_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana.space_heads enable row level security;
alter table mana.space_heads force row level security;
create policy door on mana.space_heads as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy member on mana.space_heads as permissive for all to mana_app, mana_runner using (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_heads.space_id))))) with check (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_heads.space_id)))));
grant insert, select, update(seq) on mana.space_heads to mana_app;
grant select, update(seq) on mana.space_heads to mana_runner;

create table mana.space_keys (
  space_id text not null,
  account_id text not null,
  kind text not null,
  version integer not null,
  wrapped text not null,
  member_id text generated always as (
CASE
    WHEN (kind = 's'::text) THEN account_id
    ELSE NULL::text
END) stored,
  constraint space_keys_pkey PRIMARY KEY (space_id, account_id, kind, version),
  constraint space_keys_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint space_keys_kind_check CHECK ((kind = ANY (ARRAY['s'::text, 'p'::text]))),
  constraint space_keys_of_members FOREIGN KEY (space_id, member_id) REFERENCES mana.memberships(space_id, account_id) ON DELETE CASCADE,
  constraint space_keys_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint space_keys_version_check CHECK ((version > 0))
);
CREATE INDEX space_keys_of_account ON mana.space_keys USING btree (account_id);
CREATE INDEX space_keys_of_member ON mana.space_keys USING btree (space_id, member_id);
alter table mana.space_keys enable row level security;
alter table mana.space_keys force row level security;
create policy own on mana.space_keys as permissive for all to mana_app using ((account_id = mana.current_account())) with check (((account_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_keys.space_id)))));
create policy wraps on mana.space_keys as permissive for insert to mana_app with check (((kind = 's'::text) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = space_keys.space_id) AND (space_keys.account_id = ANY (s.members)))))));
grant delete, insert, select, update(wrapped) on mana.space_keys to mana_app;

create table mana.spaces (
  space_id text not null,
  type text not null,
  members text[] not null,
  key_version integer not null,
  created_at timestamp with time zone not null,
  constraint spaces_pkey PRIMARY KEY (space_id)
);
alter table mana.spaces enable row level security;
alter table mana.spaces force row level security;
create policy member on mana.spaces as permissive for all to mana_app, mana_runner using ((mana.current_account() = ANY (members))) with check ((mana.current_account() = ANY (members)));
create policy parting on mana.spaces as permissive for select to mana_app using (((space_id = mana.moving_space()) AND (EXISTS ( SELECT
   FROM mana.departures d
  WHERE ((d.space_id = spaces.space_id) AND (d.account_id = mana.current_account()))))));
create policy parting_write on mana.spaces as permissive for update to mana_app using ((mana.current_account() = ANY (members))) with check (((space_id = mana.moving_space()) AND (EXISTS ( SELECT
   FROM mana.departures d
  WHERE ((d.space_id = spaces.space_id) AND (d.account_id = mana.current_account()))))));
grant delete, insert, select, update(members), update(key_version) on mana.spaces to mana_app;
grant select on mana.spaces to mana_runner;

create table mana.sync_changes (
  space_id text not null,
  seq bigint not null,
  change_id text not null,
  app_id text not null,
  table_name text not null,
  record_id text not null,
  user_id text not null,
  author_id text not null,
  visibility text not null,
  op text not null,
  data json not null,
  field_meta json not null,
  client_id text not null,
  created_at timestamp with time zone not null,
  schema_version integer not null default 1,
  actor json not null,
  origin text not null,
  group_id text,
  guards json,
  signature json,
  seen bigint,
  constraint sync_changes_pkey PRIMARY KEY (space_id, seq),
  constraint sync_changes_once UNIQUE (space_id, change_id, user_id),
  constraint sync_changes_op_check CHECK ((op = ANY (ARRAY['insert'::text, 'update'::text, 'delete'::text, 'reseal'::text, 'flip'::text]))),
  constraint sync_changes_origin_check CHECK ((origin = ANY (ARRAY['user'::text, 'agent'::text, 'system'::text, 'migration'::text]))),
  constraint sync_changes_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint sync_changes_visibility_check CHECK ((visibility = ANY (ARRAY['space'::text, 'private'::text])))
);
alter table mana.sync_changes enable row level security;
alter table mana.sync_changes force row level security;
create policy member on mana.sync_changes as permissive for select to mana_app, mana_runner using ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = sync_changes.space_id)))) AND ((user_id = mana.current_account()) OR (((visibility = 'space'::text) OR (author_id = mana.current_account())) AND (NOT (EXISTS ( SELECT
   FROM mana.hidden_records h
  WHERE ((h.space_id = sync_changes.space_id) AND (h.table_name = sync_changes.table_name) AND (h.record_id = sync_changes.record_id) AND (h.author_id <> mana.current_account())))))))));
create policy writer on mana.sync_changes as permissive for insert to mana_app, mana_runner with check ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = sync_changes.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account())) AND (user_id = mana.current_account())));
grant insert, select on mana.sync_changes to mana_app;
grant insert, select on mana.sync_changes to mana_runner;

create table mana.vault_statements (
  account_id text not null,
  revision integer not null,
  statement json not null,
  signature text not null,
  own_signature text,
  constraint vault_statements_pkey PRIMARY KEY (account_id, revision),
  constraint vault_statements_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint vault_statements_revision_check CHECK ((revision > 0))
);
alter table mana.vault_statements enable row level security;
alter table mana.vault_statements force row level security;
create policy door on mana.vault_statements as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.vault_statements as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert, select on mana.vault_statements to mana_app;

create table mana_ai.account_work (
  account_id text not null,
  next_due timestamp with time zone,
  served_at timestamp with time zone not null default '-infinity'::timestamp with time zone,
  stopped_at timestamp with time zone,
  tokens_per_day_max bigint,
  cost_per_day_max bigint,
  revision bigint not null default 0,
  word text,
  signer text,
  signature text,
  constraint account_work_pkey PRIMARY KEY (account_id),
  constraint account_work_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint account_work_cost_per_day_max_check CHECK ((cost_per_day_max >= 0)),
  constraint account_work_tokens_per_day_max_check CHECK ((tokens_per_day_max >= 0)),
  constraint account_work_word CHECK ((((word IS NULL) = (signer IS NULL)) AND ((word IS NULL) = (signature IS NULL))))
);
CREATE INDEX account_work_due ON mana_ai.account_work USING btree (next_due) WHERE (stopped_at IS NULL);
alter table mana_ai.account_work enable row level security;
alter table mana_ai.account_work force row level security;
create policy door on mana_ai.account_work as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana_ai.account_work as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
create policy runner_turns on mana_ai.account_work as permissive for all to mana_runner using (true) with check (true);
grant insert, select, update on mana_ai.account_work to mana_app;
grant insert, select, update on mana_ai.account_work to mana_runner;

create table mana_ai.agent_snapshots (
  space_id text not null,
  agent_id text not null,
  account_id text not null,
  state text not null,
  max_tokens_per_day bigint,
  max_concurrent_missions integer not null,
  deleted boolean not null,
  max_cost_per_day bigint,
  constraint agent_snapshots_pkey PRIMARY KEY (space_id, agent_id),
  constraint agent_snapshots_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana_ai.agent_snapshots enable row level security;
alter table mana_ai.agent_snapshots force row level security;
create policy door on mana_ai.agent_snapshots as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.agent_snapshots as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = agent_snapshots.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = agent_snapshots.space_id))));
CREATE TRIGGER moved AFTER UPDATE OF state, deleted ON mana_ai.agent_snapshots FOR EACH ROW WHEN ((((old.state IS DISTINCT FROM new.state) OR (old.deleted IS DISTINCT FROM new.deleted)) AND ((new.state <> 'active'::text) OR new.deleted))) EXECUTE FUNCTION mana_ai.agent_moved();
grant delete, insert, select, update on mana_ai.agent_snapshots to mana_app;
grant select on mana_ai.agent_snapshots to mana_runner;

create table mana_ai.audit_heads (
  account_id text not null,
  seq bigint not null,
  hash text not null,
  constraint audit_heads_pkey PRIMARY KEY (account_id),
  constraint audit_heads_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
alter table mana_ai.audit_heads enable row level security;
alter table mana_ai.audit_heads force row level security;
create policy own on mana_ai.audit_heads as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant select on mana_ai.audit_heads to mana_app;
grant insert, select, update(seq), update(hash) on mana_ai.audit_heads to mana_runner;

create table mana_ai.decrypt_audit (
  account_id text not null,
  seq bigint not null,
  mission_id text not null,
  iteration_id text,
  grant_id text,
  table_name text not null,
  record_id text not null,
  status text not null,
  reason text,
  endpoint text,
  runner_key_id text not null,
  ts text not null,
  previous text not null,
  hash text not null,
  constraint decrypt_audit_pkey PRIMARY KEY (account_id, seq),
  constraint decrypt_audit_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint decrypt_audit_seq_check CHECK ((seq > 0)),
  constraint decrypt_audit_status_check CHECK ((status = ANY (ARRAY['ok'::text, 'failed'::text, 'scope-violation'::text, 'revoked'::text])))
);
CREATE INDEX decrypt_audit_mission ON mana_ai.decrypt_audit USING btree (account_id, mission_id, seq DESC);
alter table mana_ai.decrypt_audit enable row level security;
alter table mana_ai.decrypt_audit force row level security;
create policy own on mana_ai.decrypt_audit as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant select on mana_ai.decrypt_audit to mana_app;
grant insert, select on mana_ai.decrypt_audit to mana_runner;

create table mana_ai.grants (
  grant_id text not null,
  account_id text not null,
  space_id text not null,
  mission_id text not null,
  agent_id text not null,
  header text not null,
  suite text not null,
  runner_key_id text not null,
  expires_at timestamp with time zone not null,
  state text not null default 'pending'::text,
  wrapped_key text,
  sealed_keys text,
  signer text,
  signature text,
  hub_signature text,
  created_at timestamp with time zone not null default clock_timestamp(),
  completed_at timestamp with time zone,
  ended_at timestamp with time zone,
  wrapped_key_hash text,
  sealed_keys_hash text,
  revoker text,
  revocation text,
  constraint grants_pkey PRIMARY KEY (grant_id),
  constraint grants_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint grants_check CHECK (((state = 'active'::text) = ((sealed_keys IS NOT NULL) AND (wrapped_key IS NOT NULL)))),
  constraint grants_check1 CHECK (((state = ANY (ARRAY['expired'::text, 'revoked'::text, 'replaced'::text])) = (ended_at IS NOT NULL))),
  constraint grants_revoked CHECK ((((revoker IS NULL) = (revocation IS NULL)) AND ((revocation IS NULL) OR (state = ANY (ARRAY['expired'::text, 'revoked'::text, 'replaced'::text]))))),
  constraint grants_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint grants_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'active'::text, 'expired'::text, 'revoked'::text, 'replaced'::text])))
);
CREATE INDEX grants_account ON mana_ai.grants USING btree (account_id, created_at DESC);
CREATE INDEX grants_ended ON mana_ai.grants USING btree (expires_at) WHERE (state = ANY (ARRAY['revoked'::text, 'replaced'::text]));
CREATE INDEX grants_ending ON mana_ai.grants USING btree (expires_at) WHERE (state = 'active'::text);
CREATE INDEX grants_mission ON mana_ai.grants USING btree (space_id, mission_id, created_at DESC);
CREATE INDEX grants_pending ON mana_ai.grants USING btree (created_at) WHERE (state = 'pending'::text);
CREATE UNIQUE INDEX grants_active ON mana_ai.grants USING btree (space_id, mission_id) WHERE (state = 'active'::text);
alter table mana_ai.grants enable row level security;
alter table mana_ai.grants force row level security;
create policy door on mana_ai.grants as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.grants as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = grants.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = grants.space_id))));
create policy pending_goes on mana_ai.grants as restrictive for delete to mana_app using (((state = 'pending'::text) AND (account_id = mana.current_account())));
CREATE TRIGGER guard_grant BEFORE UPDATE ON mana_ai.grants FOR EACH ROW EXECUTE FUNCTION mana_ai.guard_grant();
CREATE TRIGGER moved AFTER UPDATE OF state ON mana_ai.grants FOR EACH ROW WHEN (((old.state <> new.state) AND (('active'::text = old.state) OR ('active'::text = new.state)))) EXECUTE FUNCTION mana_ai.grant_moved();
grant delete, insert, select, update on mana_ai.grants to mana_app;
grant select, update(state), update(wrapped_key), update(sealed_keys), update(ended_at) on mana_ai.grants to mana_runner;

create table mana_ai.hub_limits (
  one boolean not null default true,
  stopped_at timestamp with time zone,
  runs_max integer not null default 64,
  runs_per_account_max integer not null default 16,
  jitter_ms integer not null default 10000,
  tokens_per_day_max bigint,
  cost_per_day_max bigint,
  account_tokens_per_day_max bigint,
  account_cost_per_day_max bigint,
  constraint hub_limits_pkey PRIMARY KEY (one),
  constraint hub_limits_account_cost_per_day_max_check CHECK ((account_cost_per_day_max >= 0)),
  constraint hub_limits_account_tokens_per_day_max_check CHECK ((account_tokens_per_day_max >= 0)),
  constraint hub_limits_cost_per_day_max_check CHECK ((cost_per_day_max >= 0)),
  constraint hub_limits_jitter_ms_check CHECK (((jitter_ms >= 0) AND (jitter_ms <= 3600000))),
  constraint hub_limits_one_check CHECK (one),
  constraint hub_limits_runs_max_check CHECK (((runs_max >= 1) AND (runs_max <= 10000))),
  constraint hub_limits_runs_per_account_max_check CHECK (((runs_per_account_max >= 1) AND (runs_per_account_max <= 10000))),
  constraint hub_limits_tokens_per_day_max_check CHECK ((tokens_per_day_max >= 0))
);
grant select, update on mana_ai.hub_limits to mana_app;
grant select on mana_ai.hub_limits to mana_runner;

create table mana_ai.hub_spend (
  hour timestamp with time zone not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  part bigint not null generated always as identity,
  constraint hub_spend_pkey PRIMARY KEY (hour, part)
);
grant select on mana_ai.hub_spend to mana_app;
grant delete, insert, select, update on mana_ai.hub_spend to mana_runner;

create table mana_ai.mission_snapshots (
  space_id text not null,
  mission_id text not null,
  account_id text not null,
  state text not null,
  cadence jsonb,
  time_zone text not null,
  agent_id text,
  runs_on text not null,
  anchor_ms bigint,
  deleted boolean not null,
  next_run_at timestamp with time zone,
  hold text,
  if_missed text not null default 'once'::text,
  max_tokens_per_day bigint,
  max_cost_per_day bigint,
  failures integer not null default 0,
  failure text,
  constraint mission_snapshots_pkey PRIMARY KEY (space_id, mission_id),
  constraint mission_snapshots_hold_check CHECK ((hold = ANY (ARRAY['no-grant'::text, 'expired'::text, 'revoked'::text, 'errored'::text]))),
  constraint mission_snapshots_if_missed_check CHECK ((if_missed = ANY (ARRAY['once'::text, 'skip'::text, 'all'::text]))),
  constraint mission_snapshots_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX mission_snapshots_agent ON mana_ai.mission_snapshots USING btree (space_id, agent_id);
alter table mana_ai.mission_snapshots enable row level security;
alter table mana_ai.mission_snapshots force row level security;
create policy door on mana_ai.mission_snapshots as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.mission_snapshots as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = mission_snapshots.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = mission_snapshots.space_id))));
CREATE TRIGGER made AFTER INSERT ON mana_ai.mission_snapshots FOR EACH ROW WHEN (((new.cadence ->> 'kind'::text) = 'onChange'::text)) EXECUTE FUNCTION mana_ai.mission_moved();
CREATE TRIGGER moved AFTER UPDATE OF state, deleted, runs_on, cadence ON mana_ai.mission_snapshots FOR EACH ROW WHEN (((((old.state IS DISTINCT FROM new.state) OR (old.deleted IS DISTINCT FROM new.deleted)) OR (old.runs_on IS DISTINCT FROM new.runs_on)) OR (old.cadence IS DISTINCT FROM new.cadence))) EXECUTE FUNCTION mana_ai.mission_moved();
grant delete, insert, select, update on mana_ai.mission_snapshots to mana_app;
grant select, update(account_id), update(next_run_at), update(hold), update(failures), update(failure) on mana_ai.mission_snapshots to mana_runner;

create table mana_ai.occurrences (
  occurrence_id text not null default (gen_random_uuid())::text,
  space_id text not null,
  mission_id text not null,
  account_id text not null,
  agent_id text,
  scheduled_for timestamp with time zone not null,
  kind text not null,
  state text not null,
  reason text,
  due_at timestamp with time zone not null,
  lease_until timestamp with time zone,
  fence integer not null default 0,
  attempts integer not null default 0,
  worker text,
  admitted boolean not null default false,
  phase text,
  iteration_id text,
  tokens bigint not null default 0,
  started_at timestamp with time zone,
  finished_at timestamp with time zone,
  tries integer not null default 0,
  last_reason text,
  cost bigint not null default 0,
  round integer not null default 0,
  calls integer not null default 0,
  steps integer not null default 0,
  heard bigint not null default 0,
  confirmed_tokens bigint not null default 0,
  confirmed_cost bigint not null default 0,
  constraint occurrences_pkey PRIMARY KEY (occurrence_id),
  constraint occurrences_kind_check CHECK ((kind = ANY (ARRAY['scheduled'::text, 'manual'::text, 'change'::text]))),
  constraint occurrences_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint occurrences_space_id_mission_id_scheduled_for_key UNIQUE (space_id, mission_id, scheduled_for),
  constraint occurrences_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'leased'::text, 'done'::text, 'skipped'::text, 'failed'::text, 'missed'::text])))
);
CREATE INDEX occurrences_leased ON mana_ai.occurrences USING btree (lease_until) WHERE (state = 'leased'::text);
CREATE INDEX occurrences_ledger ON mana_ai.occurrences USING btree (space_id, mission_id, scheduled_for DESC);
CREATE INDEX occurrences_missed ON mana_ai.occurrences USING btree (space_id, mission_id, scheduled_for) WHERE (state = 'missed'::text);
CREATE INDEX occurrences_open ON mana_ai.occurrences USING btree (space_id, mission_id) WHERE (state = ANY (ARRAY['queued'::text, 'leased'::text]));
CREATE INDEX occurrences_queue ON mana_ai.occurrences USING btree (account_id, due_at) WHERE (state = 'queued'::text);
alter table mana_ai.occurrences enable row level security;
alter table mana_ai.occurrences force row level security;
create policy door on mana_ai.occurrences as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.occurrences as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = occurrences.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = occurrences.space_id))));
create policy runner_finds on mana_ai.occurrences as permissive for select to mana_runner using (true);
create policy runner_leases on mana_ai.occurrences as permissive for update to mana_runner using (true) with check (true);
CREATE TRIGGER keep_moved_turn AFTER UPDATE OF state, due_at, account_id ON mana_ai.occurrences FOR EACH ROW WHEN ((new.state = 'queued'::text)) EXECUTE FUNCTION mana_ai.keep_moved_turn();
CREATE TRIGGER keep_turn AFTER INSERT ON mana_ai.occurrences REFERENCING NEW TABLE AS queued FOR EACH STATEMENT EXECUTE FUNCTION mana_ai.keep_turn();
grant delete, insert, select, update(account_id), update(due_at) on mana_ai.occurrences to mana_app;
grant delete, insert, select, update(state), update(reason), update(due_at), update(lease_until), update(fence), update(attempts), update(worker), update(admitted), update(phase), update(iteration_id), update(tokens), update(started_at), update(finished_at), update(tries), update(last_reason), update(cost), update(round), update(calls), update(steps), update(heard), update(confirmed_tokens), update(confirmed_cost) on mana_ai.occurrences to mana_runner;

create table mana_ai.spend (
  scope text not null,
  space_id text not null default ''::text,
  id text not null,
  account_id text not null,
  hour timestamp with time zone not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  confirmed_tokens bigint not null default 0,
  confirmed_cost bigint not null default 0,
  constraint spend_pkey PRIMARY KEY (scope, space_id, id, hour, account_id),
  constraint spend_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint spend_scope_check CHECK ((scope = ANY (ARRAY['mission'::text, 'agent'::text, 'account'::text])))
);
CREATE INDEX spend_of_account ON mana_ai.spend USING btree (account_id, hour);
alter table mana_ai.spend enable row level security;
alter table mana_ai.spend force row level security;
create policy door on mana_ai.spend as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.spend as permissive for all to mana_app, mana_runner using (((account_id = mana.current_account()) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = spend.space_id))))) with check ((account_id = mana.current_account()));
create policy old_goes on mana_ai.spend as restrictive for delete to mana_app, mana_runner using (((account_id = mana.current_account()) AND (hour < (now() - '400 days'::interval))));
grant delete, insert, select, update on mana_ai.spend to mana_app;
grant delete, insert, select, update on mana_ai.spend to mana_runner;

create table mana_ai.stops (
  occurrence_id text not null,
  space_id text not null,
  constraint stops_pkey PRIMARY KEY (occurrence_id),
  constraint stops_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX stops_of_space ON mana_ai.stops USING btree (space_id);
alter table mana_ai.stops enable row level security;
alter table mana_ai.stops force row level security;
create policy door on mana_ai.stops as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.stops as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = stops.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = stops.space_id))));
create policy runner_stops on mana_ai.stops as permissive for all to mana_runner using (true) with check (true);
grant delete, insert, select on mana_ai.stops to mana_app;
grant delete, insert, select on mana_ai.stops to mana_runner;

create table mana_ai.token_usage (
  usage_id text not null default (gen_random_uuid())::text,
  account_id text not null,
  space_id text not null,
  agent_id text not null,
  mission_id text not null,
  occurrence_id text not null,
  reserved bigint not null,
  prompt_tokens bigint,
  completion_tokens bigint,
  spent bigint not null,
  ts timestamp with time zone not null default clock_timestamp(),
  settled_at timestamp with time zone,
  endpoint text not null default ''::text,
  model text not null default ''::text,
  purpose text not null default 'plan'::text,
  reserved_cost bigint not null default 0,
  cost bigint not null default 0,
  prompt_price bigint,
  completion_price bigint,
  reply_max bigint not null default 0,
  holder text,
  for_hub boolean not null default true,
  calls bigint not null default 1,
  confirmed_tokens bigint not null default 0,
  confirmed_cost bigint not null default 0,
  constraint token_usage_pkey PRIMARY KEY (usage_id),
  constraint token_usage_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint token_usage_calls_check CHECK ((calls >= 0)),
  constraint token_usage_purpose_check CHECK ((purpose = ANY (ARRAY['plan'::text, 'sub-agent'::text, 'compaction'::text]))),
  constraint token_usage_reply_max_check CHECK ((reply_max >= 0)),
  constraint token_usage_reserved_check CHECK ((reserved >= 0)),
  constraint token_usage_reserved_cost_check CHECK ((reserved_cost >= 0)),
  constraint token_usage_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX token_usage_account ON mana_ai.token_usage USING btree (account_id, ts DESC);
CREATE INDEX token_usage_occurrence ON mana_ai.token_usage USING btree (space_id, occurrence_id);
CREATE INDEX token_usage_open ON mana_ai.token_usage USING btree (account_id, space_id, mission_id, holder) WHERE ((settled_at IS NULL) AND (holder IS NOT NULL));
alter table mana_ai.token_usage enable row level security;
alter table mana_ai.token_usage force row level security;
create policy door on mana_ai.token_usage as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.token_usage as permissive for select to mana_app, mana_runner using (((account_id = mana.current_account()) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = token_usage.space_id)))));
create policy old_goes on mana_ai.token_usage as permissive for delete to mana_app, mana_runner using (((account_id = mana.current_account()) AND (ts < (now() - '400 days'::interval))));
create policy reserves on mana_ai.token_usage as permissive for insert to mana_app, mana_runner with check (((account_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = token_usage.space_id)))));
create policy settles on mana_ai.token_usage as permissive for update to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update(prompt_tokens), update(completion_tokens), update(spent), update(settled_at), update(cost), update(calls), update(confirmed_tokens), update(confirmed_cost) on mana_ai.token_usage to mana_app;
grant delete, insert, select, update(prompt_tokens), update(completion_tokens), update(spent), update(settled_at), update(reserved_cost), update(cost), update(calls), update(confirmed_tokens), update(confirmed_cost) on mana_ai.token_usage to mana_runner;

create table mana_ai.watched (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  mission_id text not null,
  constraint watched_pkey PRIMARY KEY (space_id, table_name, record_id, mission_id),
  constraint watched_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX watched_mission ON mana_ai.watched USING btree (space_id, mission_id);
alter table mana_ai.watched enable row level security;
alter table mana_ai.watched force row level security;
create policy door on mana_ai.watched as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.watched as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = watched.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = watched.space_id))));
grant select on mana_ai.watched to mana_app;
grant select on mana_ai.watched to mana_runner;
