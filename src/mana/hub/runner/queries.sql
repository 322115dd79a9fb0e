-- name: lock_agent
select pg_advisory_xact_lock(hashtextextended($1, 1835101793))

-- name: role
select role from mana.memberships where space_id = $1 and account_id = $2

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
