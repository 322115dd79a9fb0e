-- Snapshots from the records in pages, as many rows a statement as fit: a record comes whole, so
-- that nobody takes its JSON apart twice, and what is written goes in as columns. What stands as it
-- should is not written again.
drop function mana_ai.plain_missions(text[]);
drop function mana_ai.plain_agents(text[]);
drop function mana_ai.put_plain(json, json, json);

-- A page of the missions of some spaces, after one of the first of them.
create function mana_ai.plain_missions(p_spaces text[], p_after text, p_limit integer)
  returns table (
    space_id text, record_id text, author_id text, fields text, stands boolean, account_id text,
    hold text, failures integer, failure text, waits_for timestamptz, last_for timestamptz,
    lines json)
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan set enable_seqscan = on
as $$
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
$$;

create function mana_ai.plain_agents(p_spaces text[], p_after text, p_limit integer)
  returns table (space_id text, record_id text, author_id text, fields text)
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan
as $$
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
$$;

create function mana_ai.put_agents(
    p_spaces text[], p_ids text[], p_accounts text[], p_states text[], p_tokens bigint[],
    p_costs bigint[], p_concurrent integer[], p_deleted boolean[])
  returns void
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan
as $$
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
$$;

-- Missions, and the moments that they lack: `p_due` is null where none does.
create function mana_ai.put_missions(
    p_spaces text[], p_ids text[], p_accounts text[], p_states text[], p_cadences text[],
    p_zones text[], p_agents text[], p_places text[], p_anchors bigint[], p_deleted boolean[],
    p_next timestamptz[], p_holds text[], p_missed text[], p_tokens bigint[], p_costs bigint[],
    p_failures integer[], p_failed text[], p_due timestamptz[])
  returns void
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan set enable_seqscan = on
as $$
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
$$;

grant execute on function mana_ai.plain_missions(text[], text, integer),
  mana_ai.plain_agents(text[], text, integer),
  mana_ai.put_agents(text[], text[], text[], text[], bigint[], bigint[], integer[], boolean[]),
  mana_ai.put_missions(text[], text[], text[], text[], text[], text[], text[], text[], bigint[],
    boolean[], timestamptz[], text[], text[], bigint[], bigint[], integer[], text[], timestamptz[])
  to mana_app;
