-- name: vault
select a.*, s.statement, s.signature, s.own_signature
  from mana.accounts a
  left join mana.vault_statements s on s.account_id = a.account_id and s.revision = a.revision
 where a.account_id = mana.current_account()

-- name: devices
select * from mana.devices where account_id = mana.current_account() and revoked_at is null

-- name: named
select distinct named ->> 'signingKey' as signing_key, named ->> 'hpkeKey' as hpke_key
  from mana.memberships m
  cross join lateral (
    select e.entry from mana.membership_entries e
     where e.space_id = m.space_id order by e.number desc limit 1) newest
  cross join lateral jsonb_array_elements(newest.entry -> 'members') named
 where m.account_id = mana.current_account()
   and named ->> 'accountId' = mana.current_account()

-- name: log
select statement, signature, own_signature from mana.vault_statements
 where account_id = mana.current_account() and revision > $1
 order by revision limit $2

-- name: change
update mana.accounts
   set mode = $1, kdf = $2, login_hash = coalesce($3, login_hash), master_wrap = $4,
       master_check = $5, signing_key = $6, hpke_key = $7, sealed_private = $8, revision = $9,
       challenge = $10, formers = $11, grants = $12,
       kek_wrap = case when $13 then kek_wrap else $14 end,
       kek_id = case when $13 then kek_id else $15 end
 where account_id = mana.current_account()

-- name: set_recovery
update mana.accounts set recovery = $1, recovery_hash = $2, recovery_set_at = $3
 where account_id = mana.current_account()

-- name: add_statement
insert into mana.vault_statements (account_id, revision, statement, signature, own_signature)
values (mana.current_account(), $1, $2, $3, $4)

-- name: certify_device
update mana.devices set former_signature = signature, signature = $2
 where device_id = $1 and account_id = mana.current_account()

-- name: forget_former_certificates
update mana.devices set former_signature = null
 where account_id = mana.current_account() and former_signature is not null

-- name: end_other_sessions
update mana.sessions set ended_at = $2
 where account_id = mana.current_account() and session_id <> $1 and ended_at is null

-- name: drop_resets
delete from mana.resets where account_id = mana.current_account()

-- name: end_grants
update mana_ai.grants
   set state = 'revoked', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where account_id = mana.current_account() and state in ('pending', 'active')
returning space_id, mission_id, completed_at is not null as was_active
