-- name: now
select clock_timestamp()

-- name: mission
select * from mana_ai.mission_snapshots where space_id = $1 and mission_id = $2

-- name: missions_locked
select m.*, clock_timestamp() as now
  from unnest($1::text[], $2::text[]) as k (space_id, mission_id)
  join mana_ai.mission_snapshots m on m.space_id = k.space_id and m.mission_id = k.mission_id
 order by m.space_id, m.mission_id for update of m

-- name: lock_granted
select from mana_ai.mission_snapshots m
 where (m.space_id, m.mission_id) in (
   select g.space_id, g.mission_id from mana_ai.grants g
    where g.account_id = any (coalesce($1::text[], array[mana.current_account()])) and g.state = 'active'
      and ($2::text is null or g.space_id = $2))
 order by m.space_id, m.mission_id for update of m

-- name: missions
select * from mana_ai.mission_snapshots where not deleted order by space_id, mission_id

-- name: put_mission
insert into mana_ai.mission_snapshots as m
  (space_id, mission_id, account_id, state, cadence, time_zone, agent_id, runs_on, anchor_ms,
   deleted, if_missed, max_tokens_per_day, max_cost_per_day)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
on conflict (space_id, mission_id) do update set
  state = excluded.state, cadence = excluded.cadence, time_zone = excluded.time_zone,
  agent_id = excluded.agent_id, runs_on = excluded.runs_on, anchor_ms = excluded.anchor_ms,
  deleted = excluded.deleted, if_missed = excluded.if_missed,
  max_tokens_per_day = excluded.max_tokens_per_day, max_cost_per_day = excluded.max_cost_per_day

-- name: set_schedules
update mana_ai.mission_snapshots m
   set next_run_at = k.next_run_at, hold = k.hold, account_id = k.account_id,
       failures = k.failures, failure = k.failure
  from unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::integer[],
              $7::text[])
    as k (space_id, mission_id, next_run_at, hold, account_id, failures, failure)
 where m.space_id = k.space_id and m.mission_id = k.mission_id

-- name: agent
select * from mana_ai.agent_snapshots where space_id = $1 and agent_id = $2

-- name: put_agent
insert into mana_ai.agent_snapshots as a
  (space_id, agent_id, account_id, state, max_tokens_per_day, max_cost_per_day,
   max_concurrent_missions, deleted)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (space_id, agent_id) do update set
  state = excluded.state, max_tokens_per_day = excluded.max_tokens_per_day,
  max_cost_per_day = excluded.max_cost_per_day,
  max_concurrent_missions = excluded.max_concurrent_missions, deleted = excluded.deleted

-- name: enqueue
-- $7: the most that a moment may be put off, in milliseconds; $8: which part of it, in millionths.
with k as materialized (
  select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
                       $6::text[], $7::bigint[], $8::bigint[]) with ordinality
    as k (space_id, mission_id, account_id, agent_id, scheduled_for, kind, later, part, place)
), put as (
  insert into mana_ai.occurrences
    (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
  select k.space_id, k.mission_id, k.account_id, k.agent_id, k.scheduled_for, k.kind, 'queued',
         k.scheduled_for
           + least(l.jitter_ms, k.later) * k.part / 1000000 * interval '1 millisecond'
    from k cross join mana_ai.hub_limits l
   order by k.account_id, k.place
  on conflict (space_id, mission_id, scheduled_for) do nothing
  returning due_at
), soonest as materialized (
  select greatest(ceil(extract(epoch from min(due_at) - clock_timestamp()) * 1000), 0)::bigint as ms
    from put having count(*) > 0
), told as materialized (
  select pg_notify('mana_due', s.ms::text) from soonest s
)
select coalesce(o.state, 'new') as state, (select count(*) from told) as told from k
  left join mana_ai.occurrences o on o.space_id = k.space_id and o.mission_id = k.mission_id
   and o.scheduled_for = k.scheduled_for
 order by k.place

-- name: jitter_max
select jitter_ms from mana_ai.hub_limits

-- name: notify_due
select pg_notify('mana_due', '')

-- name: add_missed
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at, finished_at)
select $1, $2, $3, $4, moment, 'scheduled', 'missed', moment, clock_timestamp()
  from unnest($5::timestamptz[]) as moment
on conflict (space_id, mission_id, scheduled_for) do nothing

-- name: trim_missed
delete from mana_ai.occurrences o
 where o.occurrence_id in (
   select m.occurrence_id from mana_ai.occurrences m
    where m.space_id = $1 and m.mission_id = $2 and m.state = 'missed'
    order by m.scheduled_for desc offset $3)

-- name: cancel_queued
with cancelled as (
  delete from mana_ai.occurrences
   where space_id = $1 and mission_id = $2 and state = 'queued' and kind = any ($3::text[])
  returning occurrence_id)
delete from mana_ai.stops s using cancelled c where s.occurrence_id = c.occurrence_id

-- name: runs_as
update mana_ai.occurrences set account_id = $3
 where space_id = $1 and mission_id = $2 and state = 'queued' and account_id <> $3

-- name: last_scheduled
select scheduled_for from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and kind = 'scheduled' and state <> 'queued'
 order by scheduled_for desc limit 1

-- name: occurrences
select * from mana_ai.occurrences where space_id = $1 and mission_id = $2
 order by scheduled_for desc limit $3

-- name: newest_occurrences
select o.* from mana_ai.mission_snapshots m
 cross join lateral (
   select * from mana_ai.occurrences l
    where l.space_id = m.space_id and l.mission_id = m.mission_id
    order by l.scheduled_for desc limit $1) o
 where not m.deleted

-- name: occurrence_at
select * from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and scheduled_for = $3

-- name: stop_mission
-- What runs, and what a person or a retry has put there; a later moment of the schedule stays.
with marked as (
  insert into mana_ai.stops (occurrence_id, space_id)
  select o.occurrence_id, o.space_id from mana_ai.occurrences o
   where o.space_id = $1 and o.mission_id = $2
     and (o.state = 'leased' or o.state = 'queued' and (o.kind = 'manual' or o.tries > 0))
  on conflict do nothing
  returning occurrence_id
), hurried as (
  update mana_ai.occurrences o set due_at = clock_timestamp() from marked m
   where o.occurrence_id = m.occurrence_id and o.state = 'queued'
)
select count(*), pg_notify('mana_stop', ''), pg_notify('mana_due', '') from marked

-- name: put_back
with back as (
  update mana_ai.occurrences o
     set state = 'queued', due_at = clock_timestamp() + $3, lease_until = null, worker = null,
         admitted = false, phase = null, attempts = greatest(attempts - $4, 0), round = 0,
         calls = 0, steps = 0, heard = 0,
         (tokens, cost, confirmed_tokens, confirmed_cost) = (
           select u.* from mana_ai.used_by(o.space_id, o.occurrence_id) u)
   where occurrence_id = $1 and fence = $2 and state = 'leased'
  returning true)
select pg_notify('mana_due', '') from back

-- name: retry
with back as (
  update mana_ai.occurrences o
     set state = 'queued', due_at = k.due_at, lease_until = null, worker = null, admitted = false,
         phase = null, attempts = 0, tries = o.tries + 1, last_reason = k.reason, round = 0,
         calls = 0, steps = 0, heard = 0,
         (tokens, cost, confirmed_tokens, confirmed_cost) = (
           select u.* from mana_ai.used_by(o.space_id, o.occurrence_id) u)
    from unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[])
      as k (occurrence_id, fence, due_at, reason)
   where o.occurrence_id = k.occurrence_id and o.fence = k.fence and o.state = 'leased'
  returning o.occurrence_id, o.space_id, o.mission_id)
select b.occurrence_id, pg_notify('mana_due', ''),
       pg_notify('mana_live',
                 json_build_object('spaceId', b.space_id, 'missionId', b.mission_id)::text)
  from back b

-- name: end
with ended as (
  update mana_ai.occurrences o
     set state = k.state, reason = k.reason, iteration_id = k.iteration_id, lease_until = null,
         admitted = false, phase = null, finished_at = clock_timestamp(), tokens = u.tokens,
         cost = u.cost, confirmed_tokens = u.confirmed_tokens, confirmed_cost = u.confirmed_cost
    from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[])
      as k (occurrence_id, fence, state, reason, iteration_id, space_id)
   cross join lateral mana_ai.used_by(k.space_id, k.occurrence_id) u
   where o.occurrence_id = k.occurrence_id and o.fence = k.fence and o.state = 'leased'
  returning o.occurrence_id, o.space_id, o.mission_id
), cleared as (
  delete from mana_ai.stops s using ended e where s.occurrence_id = e.occurrence_id
)
select e.occurrence_id,
       pg_notify('mana_live',
                 json_build_object('spaceId', e.space_id, 'missionId', e.mission_id)::text)
  from ended e

-- name: lock_occurrences
select from mana_ai.occurrences where occurrence_id = any ($1::text[])
 order by occurrence_id for update

-- name: sum_up
update mana_ai.occurrences o
   set (tokens, cost, confirmed_tokens, confirmed_cost) = (
         select u.* from mana_ai.used_by(o.space_id, o.occurrence_id) u)
 where o.occurrence_id = any ($1::text[])

-- name: lease_at
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at, lease_until,
   fence, attempts, worker, started_at)
values ($1, $2, $3, $4, $5, 'scheduled', 'leased', $5, clock_timestamp() + $7, 1, 1, $6,
        clock_timestamp())
on conflict (space_id, mission_id, scheduled_for) do nothing
returning *, false as stop

-- name: lease
select o.*, exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id) as stop
  from mana_ai.lease($1, $2, $3, $4) o
 order by o.due_at, o.occurrence_id

-- name: crashed
-- A stop can come while its run ends, and neither waits for the other: then it stops nothing.
with late as (
  delete from mana_ai.stops s
   where not exists (select from mana_ai.occurrences o
                      where o.occurrence_id = s.occurrence_id and o.state in ('queued', 'leased')))
select o.*, s.occurrence_id is not null as stop from mana_ai.occurrences o
  left join mana_ai.stops s on s.occurrence_id = o.occurrence_id
 where o.state = 'leased'
   and o.lease_until not between clock_timestamp() and clock_timestamp() + interval '1 hour'
   and (o.attempts >= $2 or s.occurrence_id is not null)
 order by o.lease_until limit $1

-- name: stopping
select o.*, true as stop from mana_ai.occurrences o
 where o.state = 'leased' and o.worker = $1
   and (exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
        or exists (select from mana_ai.hub_limits l where l.stopped_at is not null)
        or exists (select from mana_ai.account_work w
                    where w.account_id = o.account_id and w.stopped_at is not null))
 order by o.occurrence_id

-- name: wait
select case when min(at) is not null
            then greatest(ceil(extract(epoch from min(at) - clock_timestamp()) * 1000), 0)::bigint
       end from (
  (select next_due as at from mana_ai.account_work
    where stopped_at is null and next_due is not null order by next_due limit 1)
  union all
  (select lease_until from mana_ai.occurrences where state = 'leased'
    order by lease_until limit 1)) soonest
 where not exists (select from mana_ai.hub_limits l where l.stopped_at is not null)
