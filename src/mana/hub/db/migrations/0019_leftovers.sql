-- The newest occurrence of each kind that has ended stays, whatever its age: what is queued can be
-- taken back, and what is due next is then reckoned from the one before it. Else as in 0016.
create or replace function mana_ai.sweep_old(
  p_account text, p_space text, p_mission text, p_places integer, p_rows integer)
  returns table (account_id text, space_id text, mission_id text)
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan
as $$
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
$$;
