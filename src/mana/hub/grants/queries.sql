-- name: now
select clock_timestamp()

-- name: facts
-- The account's row is held: a header is made before grants are switched off, or not at all.
select s.space_id, s.type, m.role, a.grants
  from mana.spaces s
  join mana.memberships m on m.space_id = s.space_id and m.account_id = mana.current_account()
  join mana.accounts a on a.account_id = mana.current_account()
 where case when $1::text is null then s.type = 'personal' else s.space_id = $1 end
 limit 1
   for share of a

-- name: standing
select r.table_name, r.record_id,
       r.fields -> 'deletedAt' -> 'value' as deleted_at, r.fields -> 'agentId' -> 'value' as agent_id
  from mana.records r
  join unnest($2::text[], $3::text[]) as wanted (table_name, record_id)
    on r.table_name = wanted.table_name and r.record_id = wanted.record_id
 where r.space_id = $1

-- name: add
insert into mana_ai.grants
  (grant_id, account_id, space_id, mission_id, agent_id, header, suite, runner_key_id, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: sweep_pending
delete from mana_ai.grants
 where account_id = mana.current_account() and state = 'pending'
   and created_at < clock_timestamp() - interval '1 hour'

-- name: mission_locked
select from mana_ai.mission_snapshots m
  join mana_ai.grants g on g.space_id = m.space_id and g.mission_id = m.mission_id
 where g.grant_id = $1 for update of m

-- name: one_locked
select *, expires_at <= clock_timestamp() as expired from mana_ai.grants
 where grant_id = $1 for update

-- name: replace_active
update mana_ai.grants
   set state = 'replaced', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where space_id = $1 and mission_id = $2 and state = 'active' and grant_id <> $3

-- name: activate
update mana_ai.grants
   set state = 'active', completed_at = clock_timestamp(), wrapped_key = $2, sealed_keys = $3,
       signer = $4, signature = $5, hub_signature = $6, wrapped_key_hash = $7,
       sealed_keys_hash = $8
 where grant_id = $1 and state = 'pending'

-- name: expire_seen
update mana_ai.grants
   set state = 'expired', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where state = 'active' and expires_at <= clock_timestamp()

-- name: revoke
update mana_ai.grants
   set state = 'revoked', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where grant_id = $1 and state in ('pending', 'active')

-- name: add_revocation
update mana_ai.grants set revoker = $2, revocation = $3
 where grant_id = $1 and revocation is null

-- name: active_grant
select grant_id from mana_ai.grants
 where space_id = $1 and mission_id = $2 and state = 'active' for update

-- name: waiting_by_hand
select count(*) from mana_ai.occurrences
 where space_id = $1 and mission_id = $2 and state = 'queued' and kind = 'manual'

-- name: visible
select *, expires_at <= clock_timestamp() as expired from mana_ai.grants
 where completed_at is not null order by created_at desc, grant_id limit $1

-- name: role
select role from mana.memberships where space_id = $1 and account_id = mana.current_account()
