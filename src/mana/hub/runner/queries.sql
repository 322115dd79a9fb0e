-- name: now
select clock_timestamp()

-- name: mission
select * from mana_ai.mission_snapshots where space_id = $1 and mission_id = $2

-- name: mission_locked
select * from mana_ai.mission_snapshots where space_id = $1 and mission_id = $2 for update

-- name: missions
select * from mana_ai.mission_snapshots where not deleted order by space_id, mission_id

-- name: put_mission
insert into mana_ai.mission_snapshots as m
  (space_id, mission_id, account_id, state, cadence, time_zone, agent_id, runs_on, anchor_ms,
   deleted, next_run_at, hold)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict (space_id, mission_id) do update set
  account_id = excluded.account_id, state = excluded.state, cadence = excluded.cadence,
  time_zone = excluded.time_zone, agent_id = excluded.agent_id, runs_on = excluded.runs_on,
  anchor_ms = excluded.anchor_ms, deleted = excluded.deleted,
  next_run_at = excluded.next_run_at, hold = excluded.hold

-- name: set_schedule
update mana_ai.mission_snapshots set next_run_at = $3, hold = $4, account_id = $5
 where space_id = $1 and mission_id = $2

-- name: agent
select * from mana_ai.agent_snapshots where space_id = $1 and agent_id = $2

-- name: put_agent
insert into mana_ai.agent_snapshots as a
  (space_id, agent_id, account_id, state, max_tokens_per_day, max_concurrent_missions, deleted)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (space_id, agent_id) do update set
  state = excluded.state, max_tokens_per_day = excluded.max_tokens_per_day,
  max_concurrent_missions = excluded.max_concurrent_missions, deleted = excluded.deleted

-- name: lock_agent
select pg_advisory_xact_lock(hashtextextended($1, 1835101793))

-- name: role
select role from mana.memberships where space_id = $1 and account_id = $2

-- name: enqueue
with put as (
  insert into mana_ai.occurrences
    (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
  values ($1, $2, $3, $4, $5, $6, 'queued', $5)
  on conflict (space_id, mission_id, scheduled_for) do nothing
  returning 'new' as state)
select state from put
union all
select state from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and scheduled_for = $5
   and not exists (select from put)

-- name: notify_due
select pg_notify($1, '')

-- name: notify_live
select pg_notify($1, json_build_object('spaceId', $2::text, 'missionId', $3::text)::text)

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
delete from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and state = 'queued' and kind = any ($3::text[])

-- name: runs_as
update mana_ai.occurrences set account_id = $3
 where space_id = $1 and mission_id = $2 and state = 'queued' and account_id <> $3

-- name: last_scheduled
select max(scheduled_for) from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and kind = 'scheduled' and state <> 'queued'

-- name: queued
select min(scheduled_for) from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and kind = 'scheduled' and state in ('queued', 'leased')

-- name: occurrences
select * from mana_ai.occurrences where space_id = $1 and mission_id = $2
 order by scheduled_for desc limit $3

-- name: occurrence_at
select * from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and scheduled_for = $3

-- name: tokens_today
select agent_id, sum(spent) as spent from mana_ai.token_usage
 where ts > clock_timestamp() - interval '24 hours' group by agent_id

-- name: audit_rows
select * from mana_ai.decrypt_audit
 where account_id = mana.current_account()
   and ($1::text is null or mission_id = $1) and ($2::text is null or table_name = $2)
   and ($3::text is null or status = $3) and ($4::text is null or ts >= $4)
   and ($5::text is null or ts < $5) and ($6::bigint is null or seq < $6)
 order by seq desc limit $7

-- name: audit_head
select seq, hash from mana_ai.audit_heads where account_id = $1

-- name: holds
select true from mana_ai.occurrences
 where occurrence_id = $1 and fence = $2 and state = 'leased' for update

-- name: admit
update mana_ai.occurrences o set admitted = true
 where o.occurrence_id = $1 and o.fence = $2 and o.state = 'leased'
   and (select count(*) from mana_ai.occurrences other
         where other.space_id = $3 and other.agent_id = $4 and other.state = 'leased'
           and other.admitted and other.lease_until > clock_timestamp()
           and other.occurrence_id <> $1) < $5
returning true

-- name: put_back
update mana_ai.occurrences
   set state = 'queued', due_at = clock_timestamp() + $3, lease_until = null, worker = null,
       admitted = false, phase = null, attempts = greatest(attempts - $4, 0)
 where occurrence_id = $1 and fence = $2 and state = 'leased'

-- name: end
update mana_ai.occurrences o
   set state = $3, reason = $4, iteration_id = $5, lease_until = null, admitted = false,
       phase = null, finished_at = clock_timestamp(),
       tokens = (select coalesce(sum(u.spent), 0) from mana_ai.token_usage u
                  where u.space_id = o.space_id and u.occurrence_id = o.occurrence_id)
 where o.occurrence_id = $1 and o.fence = $2 and o.state = 'leased'

-- name: lease_at
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at, lease_until,
   fence, attempts, worker, started_at)
values ($1, $2, $3, $4, $5, 'scheduled', 'leased', $5, clock_timestamp() + $7, 1, 1, $6,
        clock_timestamp())
on conflict (space_id, mission_id, scheduled_for) do nothing
returning *

-- name: latest_grant
select *, expires_at <= clock_timestamp() as expired from mana_ai.grants
 where space_id = $1 and mission_id = $2 and completed_at is not null
 order by completed_at desc limit 1

-- name: latest_grant_locked
select *, expires_at <= clock_timestamp() as expired from mana_ai.grants
 where space_id = $1 and mission_id = $2 and completed_at is not null
 order by completed_at desc limit 1 for update

-- name: expire_grant
update mana_ai.grants
   set state = 'expired', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where grant_id = $1 and state = 'active' and expires_at <= clock_timestamp()

-- name: membership_log
select entry, signature from mana.membership_entries where space_id = $1 order by number

-- name: devices
select d.* from mana.devices d
 where d.account_id in (select m.account_id from mana.memberships m where m.space_id = $1)
 order by d.device_id

-- name: records
select r.* from mana.records r
  join unnest($2::text[], $3::text[]) as wanted (table_name, record_id)
    on r.table_name = wanted.table_name and r.record_id = wanted.record_id
 where r.space_id = $1
 order by r.table_name, r.record_id

-- name: history
with newest as (
  select iteration_id from mana_ai.occurrences
   where space_id = $1 and mission_id = $2 and state = 'done' and iteration_id is not null
   order by scheduled_for desc limit $3)
select r.* from mana.records r join newest n on r.record_id = n.iteration_id
 where r.space_id = $1 and r.table_name = 'aiIterations'
union all
select r.* from newest n cross join generate_series(0, 24) as place
  join mana.records r on r.record_id = n.iteration_id || '-' || place
 where r.space_id = $1 and r.table_name = 'aiSteps'

-- name: records_of
select * from mana.records where space_id = $1 and table_name = any ($2::text[])
 order by table_name, record_id

-- name: spent
select coalesce(sum(spent), 0) from mana_ai.token_usage
 where space_id = $1 and agent_id = $2 and ts > clock_timestamp() - interval '24 hours'

-- name: reserve
insert into mana_ai.token_usage
  (account_id, space_id, agent_id, mission_id, occurrence_id, reserved, spent)
values ($1, $2, $3, $4, $5, $6, $6)
returning usage_id

-- name: settle
update mana_ai.token_usage
   set prompt_tokens = $2, completion_tokens = $3, spent = $2::bigint + $3::bigint,
       settled_at = clock_timestamp()
 where usage_id = $1 and settled_at is null

-- name: found_audit
insert into mana_ai.audit_heads (account_id, seq, hash) values ($1, 0, $2)
on conflict (account_id) do nothing

-- name: audit_hash
select hash from mana_ai.decrypt_audit where account_id = $1 and seq = $2

-- name: ended_grants
select grant_id, expires_at from mana_ai.end_grants()

-- name: audit_head_locked
select seq, hash from mana_ai.audit_heads where account_id = $1 for update

-- name: append_audit
insert into mana_ai.decrypt_audit
  (account_id, seq, mission_id, iteration_id, grant_id, table_name, record_id, status, reason,
   endpoint, runner_key_id, ts, previous, hash)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)

-- name: move_audit_head
update mana_ai.audit_heads set seq = $2, hash = $3 where account_id = $1 and seq < $2

-- name: lease
with queued as materialized (
  select occurrence_id, due_at as since from mana_ai.occurrences
   where state = 'queued' and due_at <= clock_timestamp()
   order by due_at limit $2 for update skip locked
), left_behind as materialized (
  select occurrence_id, lease_until as since from mana_ai.occurrences
   where state = 'leased' and lease_until < clock_timestamp() and attempts < $4
   order by lease_until limit $2 for update skip locked
), due as (
  select occurrence_id, since from queued
  union all
  select occurrence_id, since from left_behind
   order by since limit $2
)
update mana_ai.occurrences o
   set state = 'leased', lease_until = clock_timestamp() + $3, fence = o.fence + 1,
       attempts = o.attempts + 1, worker = $1, admitted = false, phase = 'leased',
       started_at = coalesce(o.started_at, clock_timestamp())
  from due
 where o.occurrence_id = due.occurrence_id
returning o.*

-- name: crashed
select * from mana_ai.occurrences
 where state = 'leased' and lease_until < clock_timestamp() and attempts >= $2
 order by lease_until limit $1

-- name: renew
update mana_ai.occurrences set lease_until = clock_timestamp() + $3
 where occurrence_id = $1 and fence = $2 and state = 'leased'

-- name: phase
update mana_ai.occurrences set phase = $3
 where occurrence_id = $1 and fence = $2 and state = 'leased'

-- name: wait
select (extract(epoch from min(at) - clock_timestamp()) * 1000)::bigint from (
  (select due_at as at from mana_ai.occurrences where state = 'queued' order by due_at limit 1)
  union all
  (select lease_until from mana_ai.occurrences where state = 'leased'
    order by lease_until limit 1)) soonest
