-- Money: one place that reserves and one that settles, for any number of calls at once, and sums by
-- the hour that are always those of the ledger's rows.

-- The hour before the account: a day of one scope lies in one piece.
alter table mana_ai.spend
  drop constraint spend_pkey,
  add primary key (scope, space_id, id, hour, account_id),
  set (fillfactor = 70);
create index spend_of_account on mana_ai.spend (account_id, hour);
-- In parts, so that nobody waits to add to the hub's sum: whoever finds none free adds one.
alter table mana_ai.hub_spend
  drop constraint hub_spend_pkey,
  add column part bigint generated always as identity,
  add primary key (hour, part),
  set (fillfactor = 70);

alter table mana_ai.token_usage
  add column reply_max bigint not null default 0 check (reply_max >= 0),
  add column holder text,
  add column for_hub boolean not null default true,
  add column calls bigint not null default 1 check (calls >= 0);
comment on column mana_ai.token_usage.reply_max is
  'of `reserved`: the longest reply that was granted; for a device what it asked for, granted or not';
comment on column mana_ai.token_usage.holder is
  'a device that spends by itself; null: the runner';
comment on column mana_ai.token_usage.for_hub is
  'counts for the hub: not what a device spends, nor a model of the person''s own, at their price';
-- Its sums answer what was asked by agent; what a run used is asked when it ends.
drop index mana_ai.token_usage_agent;
create index token_usage_occurrence on mana_ai.token_usage (space_id, occurrence_id);
create index token_usage_open on mana_ai.token_usage (account_id, space_id, mission_id, holder)
  where settled_at is null and holder is not null;

-- Members see what is spent in their spaces; everybody writes their own alone, and removes only
-- what is older than anybody asks for.
drop policy members on mana_ai.token_usage;
create policy members on mana_ai.token_usage for select to mana_app, mana_runner
  using (account_id = mana.current_account()
         or exists (select from mana.spaces s where s.space_id = token_usage.space_id));
create policy reserves on mana_ai.token_usage for insert to mana_app, mana_runner
  with check (account_id = mana.current_account()
              and exists (select from mana.spaces s where s.space_id = token_usage.space_id));
create policy settles on mana_ai.token_usage for update to mana_app, mana_runner
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy old_goes on mana_ai.token_usage for delete to mana_app, mana_runner
  using (account_id = mana.current_account() and ts < now() - interval '400 days');
create policy old_goes on mana_ai.spend as restrictive for delete to mana_app, mana_runner
  using (account_id = mana.current_account() and hour < now() - interval '400 days');

grant insert, delete, update (prompt_tokens, completion_tokens, spent, cost, calls, settled_at)
  on mana_ai.token_usage to mana_app;
grant delete, update (calls) on mana_ai.token_usage to mana_runner;
grant delete on mana_ai.spend to mana_app, mana_runner;
grant delete on mana_ai.hub_spend to mana_runner;

-- These three are put in line where they are called, so they have no search path of their own.

-- The first hour of the day that counts. Moments ahead of the clock count too: one that was set
-- back lets nothing be spent twice.
create function mana_ai.day_begins() returns timestamptz
  language sql volatile parallel safe
  as $$ select pg_catalog.date_trunc('hour', pg_catalog.clock_timestamp(), 'UTC') - interval '24 hours' $$;

-- What so many tokens cost, in millionths, rounded up; without a price nothing is known.
create function mana_ai.cost_of(prompt bigint, reply bigint, prompt_price bigint, reply_price bigint)
  returns bigint
  language sql immutable parallel safe
  as $$
  select least(
    coalesce(
      pg_catalog.ceil((prompt::numeric * prompt_price + reply::numeric * reply_price) / 1000000), 0),
    1000000000000)::bigint
$$;

-- Whoever moves the sums of an account holds this until the end of the transaction. What is
-- locked further comes in a fixed order: agents, missions, and last the hub, for which all wait.
create function mana_ai.lock_spend(key text) returns void
  language sql volatile
  as $$
  select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(key, 1835101796))
$$;

-- Adds to the sums of the hours in which these rows were reserved. The account's lock is held.
create function mana_ai.add_spend(p_ids text[], p_tokens bigint[], p_costs bigint[], p_calls bigint[])
  returns void
  language plpgsql volatile
  set search_path = ''
as $$
declare
  moved record;
begin
  insert into mana_ai.spend as s (scope, space_id, id, account_id, hour, tokens, cost, calls)
  select k.scope, k.space_id, k.id, u.account_id, date_trunc('hour', u.ts, 'UTC'),
         sum(d.tokens), sum(d.cost), sum(d.calls)
    from unnest(p_ids, p_tokens, p_costs, p_calls) as d (usage_id, tokens, cost, calls)
    join mana_ai.token_usage u on u.usage_id = d.usage_id
   cross join lateral (values ('account', '', u.account_id), ('agent', u.space_id, u.agent_id),
                              ('mission', u.space_id, u.mission_id)) as k (scope, space_id, id)
   group by 1, 2, 3, 4, 5
  on conflict (scope, space_id, id, hour, account_id) do update
    set tokens = s.tokens + excluded.tokens, cost = s.cost + excluded.cost,
        calls = s.calls + excluded.calls;
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
$$;

-- Removes what is older than 400 days, a bounded part of it.
create function mana_ai.forget_spend(p_account text, p_is_hub boolean) returns void
  language plpgsql volatile
  set search_path = ''
as $$
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
$$;

-- The caps of a day and what counts against them, for each run in its order. A sum stands with the
-- first run under its mission or agent (`mission_at`, `agent_at`), and only where there is a cap.
create function mana_ai.caps_of(
  p_spaces text[], p_missions text[], p_agents text[], p_is_hub boolean)
  returns table (place integer, has_mission boolean, has_agent boolean,
                 mission_at integer, mission_token_cap bigint, mission_cost_cap bigint,
                 mission_tokens bigint, mission_costs bigint,
                 agent_at integer, agent_token_cap bigint, agent_cost_cap bigint,
                 agent_tokens bigint, agent_costs bigint,
                 account_token_cap bigint, account_cost_cap bigint,
                 account_tokens bigint, account_costs bigint,
                 hub_token_cap bigint, hub_cost_cap bigint, hub_tokens bigint, hub_costs bigint)
  language plpgsql volatile
  set search_path = ''
as $$
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
  select a.place::integer, m.mission_id is not null, g.agent_id is not null,
         a.mission_at::integer, m.max_tokens_per_day, m.max_cost_per_day,
         of_mission.tokens, of_mission.cost,
         a.agent_at::integer, g.max_tokens_per_day, g.max_cost_per_day,
         of_agent.tokens, of_agent.cost,
         account_token_cap, account_cost_cap,
         coalesce(account_tokens, 0), coalesce(account_costs, 0),
         hub_token_cap, hub_cost_cap, coalesce(hub_tokens, 0), coalesce(hub_costs, 0)
    from (select u.*, min(u.place) over (partition by u.space_id, u.mission_id) as mission_at,
                 min(u.place) over (partition by u.space_id, u.agent_id) as agent_at
            from unnest(p_spaces, p_missions, p_agents) with ordinality
              as u (space_id, mission_id, agent_id, place)) a
    left join mana_ai.mission_snapshots m
      on m.space_id = a.space_id and m.mission_id = a.mission_id and not m.deleted
    left join mana_ai.agent_snapshots g
      on g.space_id = a.space_id and g.agent_id = a.agent_id and not g.deleted
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'mission' and s.space_id = a.space_id and s.id = a.mission_id
        and s.hour >= since and a.place = a.mission_at
        and (m.max_tokens_per_day is not null or m.max_cost_per_day is not null)) of_mission
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'agent' and s.space_id = a.space_id and s.id = a.agent_id
        and s.hour >= since and a.place = a.agent_at
        and (g.max_tokens_per_day is not null or g.max_cost_per_day is not null)) of_agent
   order by a.place;
end
$$;

-- Reserves for each call in its order, in full, for a shorter reply, or not at all: then `reason`
-- says why, and for a budget `scope`, `unit`, `remaining` and `cap` whose. `p_floors`: below this a
-- reply is of no use. `p_holder`: these are slices for a device, which it splits as it likes, so
-- the dearer price counts; one with a floor of 0 takes whatever is left, even nothing. A model
-- without a name is the person's own, who says what it costs: it is not the hub's to pay.
create function mana_ai.reserve_calls(
  p_spaces text[], p_missions text[], p_agents text[], p_occurrences text[],
  p_prompts bigint[], p_replies bigint[], p_floors bigint[],
  p_endpoints text[], p_models text[], p_purposes text[],
  p_prompt_prices bigint[], p_reply_prices bigint[], p_holder text)
  returns table (place integer, usage_id text, reply bigint, reason text, scope text, unit text,
                 remaining bigint, cap bigint)
  language plpgsql volatile
  set search_path = ''
as $$
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
$$;

-- Replaces reservations by what was used, once; where no numbers are given all that was reserved
-- counts. What is another's, was settled, or is not there, is passed over.
create function mana_ai.settle_calls(
  p_ids text[], p_prompts bigint[], p_replies bigint[], p_calls bigint[], p_by_device boolean)
  returns table (usage_id text, tokens bigint, cost bigint)
  language plpgsql volatile
  set search_path = ''
as $$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  ids text[]; tokens_more bigint[]; costs_more bigint[]; calls_more bigint[];
begin
  perform mana_ai.lock_spend('account:' || me);
  -- Nobody else moves these rows meanwhile: they are of this account.
  with settled as materialized (
    select distinct on (u.usage_id) u.usage_id, u.spent as old_spent, u.cost as old_cost,
           u.calls as old_calls, p.prompt, p.reply, p.calls,
           coalesce(p.prompt + p.reply, u.spent) as spent,
           case when p.prompt + p.reply is null then u.cost
                else mana_ai.cost_of(p.prompt, p.reply, u.prompt_price, u.completion_price)
           end as cost
      from unnest(p_ids, p_prompts, p_replies, p_calls) with ordinality
        as p (usage_id, prompt, reply, calls, place)
      join mana_ai.token_usage u on u.usage_id = p.usage_id
     where u.account_id = me and u.settled_at is null and (u.holder is not null) = p_by_device
     order by u.usage_id, p.place
  ), written as (
    update mana_ai.token_usage u
       set prompt_tokens = s.prompt, completion_tokens = s.reply, spent = s.spent, cost = s.cost,
           calls = s.calls, settled_at = clock_timestamp()
      from settled s where u.usage_id = s.usage_id
    returning u.usage_id
  )
  select array_agg(s.usage_id), array_agg(s.spent - s.old_spent), array_agg(s.cost - s.old_cost),
         array_agg(s.calls - s.old_calls)
    into ids, tokens_more, costs_more, calls_more
    from settled s join written using (usage_id);
  if ids is null then
    return;
  end if;
  perform mana_ai.add_spend(ids, tokens_more, costs_more, calls_more);
  return query select u.usage_id, u.spent, u.cost from mana_ai.token_usage u
                where u.usage_id = any (ids);
end
$$;

grant execute on function
  mana_ai.day_begins(), mana_ai.cost_of(bigint, bigint, bigint, bigint), mana_ai.lock_spend(text),
  mana_ai.add_spend(text[], bigint[], bigint[], bigint[]),
  mana_ai.forget_spend(text, boolean), mana_ai.caps_of(text[], text[], text[], boolean),
  mana_ai.reserve_calls(text[], text[], text[], text[], bigint[], bigint[], bigint[], text[],
                        text[], text[], bigint[], bigint[], text),
  mana_ai.settle_calls(text[], bigint[], bigint[], bigint[], boolean)
  to mana_app, mana_runner;

-- What was used before there were sums. The owner may be no superuser, whom forced row-level
-- security shows nothing.
alter table mana_ai.token_usage no force row level security;
alter table mana_ai.spend no force row level security;
insert into mana_ai.spend (scope, space_id, id, account_id, hour, tokens, calls)
select k.scope, k.space_id, k.id, u.account_id, date_trunc('hour', u.ts, 'UTC'), sum(u.spent), count(*)
  from mana_ai.token_usage u
 cross join lateral (values ('account', '', u.account_id), ('agent', u.space_id, u.agent_id),
                            ('mission', u.space_id, u.mission_id)) as k (scope, space_id, id)
 where u.ts >= now() - interval '400 days'
 group by 1, 2, 3, 4, 5;
insert into mana_ai.hub_spend (hour, tokens, calls)
select date_trunc('hour', u.ts, 'UTC'), sum(u.spent), count(*) from mana_ai.token_usage u
 where u.ts >= now() - interval '400 days' group by 1;
alter table mana_ai.token_usage force row level security;
alter table mana_ai.spend force row level security;
