-- The mission engine: fair turns between accounts, retries and what fails in a row, runs on change,
-- stops, and the money. Nothing here is text that a person wrote.

-- What an operator sets for the whole hub. One row; no person's.
create table mana_ai.hub_limits (
  one boolean primary key default true check (one),
  stopped_at timestamptz,
  runs_max integer not null default 64 check (runs_max between 1 and 10000),
  runs_per_account_max integer not null default 16 check (runs_per_account_max between 1 and 10000),
  jitter_ms integer not null default 10000 check (jitter_ms between 0 and 3600000),
  tokens_per_day_max bigint check (tokens_per_day_max >= 0),
  cost_per_day_max bigint check (cost_per_day_max >= 0),
  account_tokens_per_day_max bigint check (account_tokens_per_day_max >= 0),
  account_cost_per_day_max bigint check (account_cost_per_day_max >= 0)
);
insert into mana_ai.hub_limits default values;
comment on column mana_ai.hub_limits.account_tokens_per_day_max is
  'for every account; a person may set less for their own';

-- Whose turn it is. `next_due` is never later than the account's first queued occurrence.
create table mana_ai.account_work (
  account_id text primary key references mana.accounts on delete cascade,
  next_due timestamptz,
  served_at timestamptz not null default '-infinity',
  stopped_at timestamptz,
  tokens_per_day_max bigint check (tokens_per_day_max >= 0),
  cost_per_day_max bigint check (cost_per_day_max >= 0)
);
create index account_work_due on mana_ai.account_work (next_due) where stopped_at is null;

alter table mana_ai.mission_snapshots
  drop constraint mission_snapshots_hold_check,
  add constraint mission_snapshots_hold_check
    check (hold in ('no-grant', 'expired', 'revoked', 'errored')),
  add column if_missed text not null default 'once' check (if_missed in ('once', 'skip', 'all')),
  add column max_tokens_per_day bigint,
  add column max_cost_per_day bigint,
  add column failures integer not null default 0,
  add column failure text;
comment on column mana_ai.mission_snapshots.failures is
  'occurrences that failed in a row; `failure` is the last reason';
create index mission_snapshots_agent on mana_ai.mission_snapshots (space_id, agent_id);

alter table mana_ai.agent_snapshots add column max_cost_per_day bigint;

alter table mana_ai.occurrences
  drop constraint occurrences_kind_check,
  add constraint occurrences_kind_check check (kind in ('scheduled', 'manual', 'change')),
  add column tries integer not null default 0,
  add column last_reason text,
  add column cost bigint not null default 0,
  add column round integer not null default 0,
  add column calls integer not null default 0,
  add column steps integer not null default 0,
  add column heard bigint not null default 0;
comment on column mana_ai.occurrences.tries is
  'how often it ran to a failure of a class that is tried again; `last_reason` is the class';
create index occurrences_queue on mana_ai.occurrences (account_id, due_at) where state = 'queued';
-- What waits or is worked on, and what was missed, is found without a look at all that ever ran.
create index occurrences_open on mana_ai.occurrences (space_id, mission_id)
  where state in ('queued', 'leased');
create index occurrences_missed on mana_ai.occurrences (space_id, mission_id, scheduled_for)
  where state = 'missed';
drop index mana_ai.occurrences_due;

-- That whoever works on an occurrence is to stop at once. Rows of their own: who sets one must not
-- wait for the run's own transaction, which may wait for them.
create table mana_ai.stops (
  occurrence_id text primary key,
  space_id text not null references mana.spaces on delete cascade
);
create index stops_of_space on mana_ai.stops (space_id);

-- A turn is never later than what is queued. Whoever queues takes the account's row; the lease takes
-- it too, so that neither passes the other.
-- A door, as in 0009: a member's change may be what another member's mission waits for.
create function mana_ai.keep_turn() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
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
$$;
create trigger keep_turn after insert on mana_ai.occurrences
  referencing new table as queued for each statement execute function mana_ai.keep_turn();
create function mana_ai.keep_moved_turn() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select a.account_id, new.due_at from mana.accounts a where a.account_id = new.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  return null;
end
$$;
create trigger keep_moved_turn after update of state, due_at, account_id on mana_ai.occurrences
  for each row when (new.state = 'queued') execute function mana_ai.keep_moved_turn();

-- Leases what is due, under the one lock for all runners (decision 0012): first what a runner left
-- behind, then by account. Each round gives every account whose turn it is the same share of what is
-- free; what one does not need goes to the others in the next round. An account whose row somebody
-- holds is passed over: whoever queues there tells of it when they commit.
create function mana_ai.lease(
  p_worker text, p_free integer, p_life interval, p_leases_max integer)
  returns setof mana_ai.occurrences
  language plpgsql volatile
  set search_path = ''
as $$
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
begin
  perform pg_catalog.pg_advisory_xact_lock(1835101793, 3);
  v_now := pg_catalog.clock_timestamp();
  select * into v_limits from mana_ai.hub_limits;
  if v_limits.stopped_at is not null then
    return;
  end if;
  select least(p_free, v_limits.runs_max - pg_catalog.count(*)) into v_free
    from mana_ai.occurrences o where o.state = 'leased' and o.lease_until >= v_now;
  if v_free <= 0 then
    return;
  end if;

  with behind as materialized (
    select o.occurrence_id, o.account_id, o.lease_until from mana_ai.occurrences o
     where o.state = 'leased' and o.lease_until < v_now and o.attempts < p_leases_max
       and not exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
       and not exists (select from mana_ai.account_work w
                        where w.account_id = o.account_id and w.stopped_at is not null)
     order by o.lease_until limit 1000 for update of o skip locked
  ), placed as (
    select b.occurrence_id, b.lease_until,
           pg_catalog.row_number() over (partition by b.account_id order by b.lease_until) as place,
           (select pg_catalog.count(*) from mana_ai.occurrences r
             where r.state = 'leased' and r.lease_until >= v_now
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
       where r.state = 'leased' and r.lease_until >= v_now group by r.account_id
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
$$;

-- Which records of a space a mission waits for, while a grant to it stands.
create table mana_ai.watched (
  space_id text not null references mana.spaces on delete cascade,
  table_name text not null,
  record_id text not null,
  mission_id text not null,
  primary key (space_id, table_name, record_id, mission_id)
);
create index watched_mission on mana_ai.watched (space_id, mission_id);

-- Brings in line what a mission watches: what its active grant names, while it runs here on change.
create function mana_ai.watch(p_space text, p_mission text) returns void
  language sql volatile
  set search_path = ''
as $$
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
$$;

-- Marks what is worked on of a mission, or of an agent's missions, as to be stopped, and says so.
create function mana_ai.stop_runs(p_space text, p_mission text, p_agent text) returns void
  language plpgsql volatile
  set search_path = ''
as $$
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
$$;

-- Whoever ends a grant, and however; whoever edits a mission or an agent: doors, as `keep_turn`.
create function mana_ai.grant_moved() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.watch(new.space_id, new.mission_id);
  if new.state in ('expired', 'revoked') then
    perform mana_ai.stop_runs(new.space_id, new.mission_id, null);
  end if;
  return null;
end
$$;
create trigger moved after update of state on mana_ai.grants for each row
  when (old.state <> new.state and 'active' in (old.state, new.state))
  execute function mana_ai.grant_moved();

create function mana_ai.mission_moved() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.watch(new.space_id, new.mission_id);
  if new.state <> 'active' or new.deleted or new.runs_on <> 'hub' then
    perform mana_ai.stop_runs(new.space_id, new.mission_id, null);
  end if;
  return null;
end
$$;
create trigger made after insert on mana_ai.mission_snapshots for each row
  when (new.cadence ->> 'kind' = 'onChange') execute function mana_ai.mission_moved();
create trigger moved after update of state, deleted, runs_on, cadence on mana_ai.mission_snapshots
  for each row
  when ((old.state, old.deleted, old.runs_on, old.cadence)
        is distinct from (new.state, new.deleted, new.runs_on, new.cadence))
  execute function mana_ai.mission_moved();

create function mana_ai.agent_moved() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform mana_ai.stop_runs(new.space_id, null, new.agent_id);
  return null;
end
$$;
create trigger moved after update of state, deleted on mana_ai.agent_snapshots for each row
  when ((old.state, old.deleted) is distinct from (new.state, new.deleted)
        and (new.state <> 'active' or new.deleted))
  execute function mana_ai.agent_moved();

-- Queues the missions that wait for a record that a person wrote; the columns of the change log of
-- one push, as `write` of the sync has them. A group in which anything is not a person's is an
-- agent's work that somebody approved, and starts nothing.
create function mana_ai.changed(
  p_space text, p_tables text, p_records text, p_visibilities text, p_ops text, p_origins text,
  p_groups text) returns void
  language plpgsql volatile
  set search_path = ''
as $$
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
$$;

-- For the operator, on the hub's own machine: the plain side of missions and agents of some spaces,
-- as their records and the ledger have it, and back again, while no push comes in between. Doors,
-- as in 0002.
create function mana_ai.hold_spaces(p_after text, p_limit integer) returns text[]
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (
    with held as (
      select h.space_id from mana.space_heads h
       where h.space_id > p_after order by h.space_id limit p_limit for update)
    select pg_catalog.array_agg(h.space_id order by h.space_id) from held h);
end
$$;

create function mana_ai.plain_missions(p_spaces text[])
  returns table (
    space_id text, record_id text, author_id text, fields json, stands boolean, account_id text,
    hold text, failures integer, failure text, waits_for timestamptz, last_for timestamptz,
    lines json)
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan set enable_seqscan = on
as $$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select r.space_id, r.record_id, r.author_id,
           pg_catalog.json_build_object(
             'state', x.state, 'cadence', x.cadence, 'timeZone', x."timeZone",
             'agentId', x."agentId", 'runsOn', x."runsOn", 'ifMissed', x."ifMissed",
             'maxTokensPerDay', x."maxTokensPerDay", 'maxCostPerDay', x."maxCostPerDay",
             'deletedAt', x."deletedAt"),
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
      from unnest(p_spaces) as s (space_id)
     cross join lateral (
       select * from mana.records e
        where e.space_id = s.space_id and e.table_name = 'aiMissions' offset 0) r
     cross join lateral pg_catalog.json_to_record(r.fields)
       as x (state json, cadence json, "timeZone" json, "agentId" json, "runsOn" json,
             "ifMissed" json, "maxTokensPerDay" json, "maxCostPerDay" json, "deletedAt" json)
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
         order by c.completed_at desc limit 1) g on true;
end
$$;

create function mana_ai.plain_agents(p_spaces text[])
  returns table (space_id text, record_id text, author_id text, fields json)
  language plpgsql volatile security definer
  set search_path = ''
as $$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select r.space_id, r.record_id, r.author_id,
           pg_catalog.json_build_object(
             'state', x.state, 'maxTokensPerDay', x."maxTokensPerDay",
             'maxCostPerDay', x."maxCostPerDay",
             'maxConcurrentMissions', x."maxConcurrentMissions", 'deletedAt', x."deletedAt")
      from unnest(p_spaces) as s (space_id)
     cross join lateral (
       select * from mana.records e
        where e.space_id = s.space_id and e.table_name = 'agents' offset 0) r
     cross join lateral pg_catalog.json_to_record(r.fields)
       as x (state json, "maxTokensPerDay" json, "maxCostPerDay" json,
             "maxConcurrentMissions" json, "deletedAt" json);
end
$$;

create function mana_ai.put_plain(p_missions json, p_agents json, p_moments json) returns void
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan set enable_seqscan = on
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.agent_snapshots as a
  select * from pg_catalog.json_populate_recordset(null::mana_ai.agent_snapshots, p_agents)
  on conflict (space_id, agent_id) do update set
    account_id = excluded.account_id, state = excluded.state,
    max_tokens_per_day = excluded.max_tokens_per_day,
    max_cost_per_day = excluded.max_cost_per_day,
    max_concurrent_missions = excluded.max_concurrent_missions, deleted = excluded.deleted;
  insert into mana_ai.mission_snapshots as m
  select * from pg_catalog.json_populate_recordset(null::mana_ai.mission_snapshots, p_missions)
  on conflict (space_id, mission_id) do update set
    state = excluded.state, cadence = excluded.cadence, time_zone = excluded.time_zone,
    agent_id = excluded.agent_id, runs_on = excluded.runs_on, anchor_ms = excluded.anchor_ms,
    deleted = excluded.deleted, if_missed = excluded.if_missed,
    max_tokens_per_day = excluded.max_tokens_per_day,
    max_cost_per_day = excluded.max_cost_per_day, next_run_at = excluded.next_run_at;
  insert into mana_ai.occurrences
    (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
  select k.space_id, k.mission_id, k.account_id, k.agent_id, k.scheduled_for, 'scheduled',
         'queued', k.due_at
    from pg_catalog.json_to_recordset(p_moments)
      as k (space_id text, mission_id text, account_id text, agent_id text,
            scheduled_for timestamptz, due_at timestamptz)
  on conflict (space_id, mission_id, scheduled_for) do nothing;
end
$$;

-- Turns as what is queued says: each at most as late as it was.
create function mana_ai.put_turns() returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
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
$$;

alter table mana_ai.token_usage
  add column endpoint text not null default '',
  add column model text not null default '',
  add column purpose text not null default 'plan'
    check (purpose in ('plan', 'sub-agent', 'compaction')),
  add column reserved_cost bigint not null default 0 check (reserved_cost >= 0),
  add column cost bigint not null default 0,
  add column prompt_price bigint,
  add column completion_price bigint;
create index token_usage_account on mana_ai.token_usage (account_id, ts desc);

-- Sums by the hour, so that a cap costs the same to ask after the tenth call and the millionth. A
-- day is the last 24 whole hours and the one that runs.
create table mana_ai.spend (
  scope text not null check (scope in ('mission', 'agent', 'account')),
  space_id text not null default '',
  id text not null,
  account_id text not null references mana.accounts on delete cascade,
  hour timestamptz not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  primary key (scope, space_id, id, account_id, hour)
);
create table mana_ai.hub_spend (
  hour timestamptz primary key,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0
);

do $$
declare
  name text;
begin
  foreach name in array array['account_work', 'watched', 'stops', 'spend'] loop
    execute format('alter table mana_ai.%I enable row level security', name);
    execute format('alter table mana_ai.%I force row level security', name);
  end loop;
end
$$;
create policy own on mana_ai.account_work to mana_app
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account());
create policy door on mana_ai.account_work to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy runner_turns on mana_ai.account_work to mana_runner using (true) with check (true);
create policy members on mana_ai.watched to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = watched.space_id))
  with check (exists (select from mana.spaces s where s.space_id = watched.space_id));
create policy door on mana_ai.watched to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy members on mana_ai.stops to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = stops.space_id))
  with check (exists (select from mana.spaces s where s.space_id = stops.space_id));
create policy runner_stops on mana_ai.stops to mana_runner using (true) with check (true);
create policy door on mana_ai.stops to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy door on mana_ai.occurrences to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy door on mana.space_heads to current_user
  using (current_setting('app.door', true) = 'open');
create policy door on mana.records for select to current_user
  using (current_setting('app.door', true) = 'open');
create policy door on mana_ai.mission_snapshots to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy door on mana_ai.agent_snapshots to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy members on mana_ai.spend to mana_app, mana_runner
  using (account_id = mana.current_account()
         or exists (select from mana.spaces s where s.space_id = spend.space_id))
  with check (account_id = mana.current_account());

-- The hub's own command for its operator writes the limits; no endpoint does.
grant select, update on mana_ai.hub_limits to mana_app;
grant select on mana_ai.hub_limits to mana_runner;
grant select, insert, delete on mana_ai.stops to mana_app, mana_runner;
grant select, insert, update on mana_ai.account_work to mana_app, mana_runner;
grant select on mana_ai.watched to mana_app, mana_runner;
grant execute on function mana_ai.changed(text, text, text, text, text, text, text)
  to mana_app, mana_runner;
grant execute on function mana_ai.lease(text, integer, interval, integer) to mana_runner;
grant execute on function mana_ai.hold_spaces(text, integer), mana_ai.plain_missions(text[]),
  mana_ai.plain_agents(text[]), mana_ai.put_plain(json, json, json), mana_ai.put_turns()
  to mana_app;
grant update (failures, failure) on mana_ai.mission_snapshots to mana_runner;
grant update (due_at) on mana_ai.occurrences to mana_app;
grant update (tries, last_reason, cost, round, calls, steps, heard)
  on mana_ai.occurrences to mana_runner;
grant select, insert, update on mana_ai.spend to mana_app, mana_runner;
grant select on mana_ai.hub_spend to mana_app;
grant select, insert, update on mana_ai.hub_spend to mana_runner;
grant update (cost, reserved_cost) on mana_ai.token_usage to mana_runner;

select set_config('app.door', 'open', true);
insert into mana_ai.account_work (account_id, next_due)
select o.account_id, min(o.due_at) from mana_ai.occurrences o
  join mana.accounts a on a.account_id = o.account_id
 where o.state = 'queued' group by o.account_id;
