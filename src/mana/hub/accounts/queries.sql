-- name: admit_sign_up
select mana.admit_sign_up($1, $2, $3)

-- name: insert_account
insert into mana.accounts (account_id, login, login_key, mode, role, demo, kdf, login_hash,
  master_wrap, master_check, kek_wrap, signing_key, hpke_key, sealed_private, created_at, grants,
  kek_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $4 = 'standard', $16)

-- name: insert_device
insert into mana.devices (device_id, account_id, public_key, created_at, signature, registered_at)
values ($1, $2, $3, $4, $5, $6)

-- name: insert_space
insert into mana.spaces (space_id, type, members, key_version, created_at)
values ($1, $2, $3, $4, $5)

-- name: insert_membership
insert into mana.memberships (space_id, account_id, role) values ($1, $2, $3)

-- name: insert_entry
insert into mana.membership_entries (space_id, number, entry, signature, hash)
values ($1, $2, $3, $4, $5)

-- name: insert_key
insert into mana.space_keys (space_id, account_id, kind, version, wrapped)
values ($1, $2, $3, $4, $5)

-- name: insert_head
insert into mana.space_heads (space_id, seq) values ($1, 0)

-- name: insert_session
insert into mana.sessions (session_id, account_id, created_at, seen_at, name, device_id)
values ($1, $2, $3, $3, $4, $5)

-- name: set_session_device
update mana.sessions set device_id = $2 where session_id = $1 and device_id is null

-- name: insert_token
insert into mana.refresh_tokens (token_hash, session_id, account_id, issued_at)
values ($1, $2, $3, $4)

-- name: login_facts
select account_id, kdf, login_hash from mana.login_facts($1)

-- name: count_attempt
select mana.count_attempt($1, $2, $3, $4)

-- name: clear_attempts
select mana.clear_attempts($1)

-- name: touch_attempts
select mana.touch_attempts($1)

-- name: recovery_facts
select account_id, recovery_hash from mana.recovery_facts($1)

-- name: open_reset
select mana.open_reset($1, $2, $3, $4)

-- name: reset_account
select mana.reset_account($1, $2, $3)

-- name: use_reset
delete from mana.resets where token_hash = $1 and expires_at > $2

-- name: share_kek
select pg_advisory_xact_lock_shared(1835101793, 2)

-- name: rotate_token
select outcome, account_id, session_id from mana.rotate_token($1, $2, $3, $4, $5)

-- name: end_session
update mana.sessions set ended_at = $2 where session_id = $1 and ended_at is null

-- name: insert_invite
insert into mana.invites (invite_hash, account_id, created_at, expires_at)
values ($1, mana.current_account(), $2, $3)

-- name: account
select * from mana.accounts where account_id = mana.current_account()

-- name: share_account
select * from mana.accounts where account_id = mana.current_account() for share

-- name: lock_account
select * from mana.accounts where account_id = mana.current_account() for no key update

-- name: set_challenge
update mana.accounts set challenge = $1 where account_id = mana.current_account()

-- name: devices
select * from mana.devices where account_id = mana.current_account() order by registered_at, device_id

-- name: device
select * from mana.devices where device_id = $1 and account_id = mana.current_account()

-- name: certified
select d.*, a.signing_key from mana.devices d join mana.accounts a on a.account_id = d.account_id
 where d.device_id = $1 and d.account_id = mana.current_account() and d.revoked_at is null

-- name: shared_spaces
select count(*) from mana.spaces where cardinality(members) > 1

-- name: delete_spaces
delete from mana.spaces where members = array[mana.current_account()]

-- name: hold_login_hash
select login_hash from mana.accounts where account_id = mana.current_account() for update

-- name: delete_account
delete from mana.accounts where account_id = mana.current_account()
