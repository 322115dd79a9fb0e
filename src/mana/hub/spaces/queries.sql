-- name: spaces
select s.space_id, s.type, m.role
  from mana.memberships m join mana.spaces s on s.space_id = m.space_id
 where m.account_id = mana.current_account()
 order by s.created_at, s.space_id

-- name: space
select s.space_id, s.type, m.role
  from mana.memberships m join mana.spaces s on s.space_id = m.space_id
 where m.account_id = mana.current_account() and s.space_id = $1

-- name: entries
select space_id, entry, signature from mana.membership_entries
 where space_id = any($1) order by space_id, number

-- name: keys
select space_id, kind, version, wrapped from mana.space_keys
 where space_id = any($1) and account_id = mana.current_account()
 order by space_id, kind, version

-- name: departed
select d.space_id, d.log from mana.departures d
 where d.account_id = mana.current_account()
 order by d.departed_at, d.space_id

-- name: has_departed
select true from mana.departures where account_id = mana.current_account() and space_id = $1

-- name: role
select role from mana.memberships where space_id = $1 and account_id = mana.current_account()

-- name: devices
select d.account_id, d.device_id, d.public_key, d.created_at, d.signature, d.former_signature,
       d.revoked_at, d.revocation, d.registered_at
  from mana.devices d
  join mana.memberships m on m.account_id = d.account_id
 where m.space_id = $1
union all
select f.account_id, f.device_id, f.public_key, f.created_at, f.signature, f.former_signature,
       f.revoked_at, f.revocation, f.registered_at
  from mana.former_devices($1) f
 order by registered_at, device_id

-- name: identity
select signing_key, hpke_key from mana.accounts where account_id = mana.current_account()

-- name: identity_held
select signing_key, hpke_key from mana.accounts where account_id = mana.current_account()
   for share

-- name: lock
select seq from mana.space_heads where space_id = $1 for update

-- name: newest
select number, entry, hash from mana.membership_entries
 where space_id = $1 order by number desc limit 1

-- name: log_bytes
select sum(octet_length(entry::text)) from mana.membership_entries where space_id = $1

-- name: append
insert into mana.membership_entries (space_id, number, entry, signature, hash)
values ($1, $2, $3, $4, $5)

-- name: depart
insert into mana.departures (account_id, space_id, log, departed_at)
select account_id, $2, $3, $4 from unnest($1::text[]) as account_id

-- name: returned
delete from mana.departures where space_id = $1 and account_id = any($2)

-- name: moving
select set_config('app.moving_space', $1, true)

-- name: move_space
update mana.spaces set members = $2, key_version = $3 where space_id = $1

-- name: remove_members
delete from mana.memberships where space_id = $1 and account_id = any($2)

-- name: add_members
insert into mana.memberships (space_id, account_id, role)
select $1, account_id, role from unnest($2::text[], $3::text[]) as added (account_id, role)

-- name: change_roles
update mana.memberships m set role = changed.role
  from unnest($2::text[], $3::text[]) as changed (account_id, role)
 where m.space_id = $1 and m.account_id = changed.account_id

-- name: add_wraps
insert into mana.space_keys (space_id, account_id, kind, version, wrapped)
select $1, account_id, 's', version, wrapped
  from unnest($2::text[], $3::int[], $4::text[]) as given (account_id, version, wrapped)

-- name: versions_held
select kind, version from mana.space_keys
 where space_id = $1 and account_id = mana.current_account()

-- name: replace_wraps
insert into mana.space_keys (space_id, account_id, kind, version, wrapped)
select $1, mana.current_account(), kind, version, wrapped
  from unnest($2::text[], $3::int[], $4::text[]) as given (kind, version, wrapped)
    on conflict (space_id, account_id, kind, version) do update set wrapped = excluded.wrapped

-- name: newer_since
select min(entry->>'createdAt') from mana.membership_entries
 where space_id = $1 and (entry->>'keyVersion')::int > $2

-- name: key_counts
select exists (
  select from mana.records where space_id = $1 and fields::text ~ $2)

-- name: retire_key
delete from mana.space_keys
 where space_id = $1 and account_id = mana.current_account() and kind = $2 and version = $3

-- name: delete_space
delete from mana.spaces where space_id = $1

-- name: newest_private_key
select coalesce(max(version), 0) from mana.space_keys
 where space_id = $1 and account_id = mana.current_account() and kind = 'p'

-- name: add_private_key
insert into mana.space_keys (space_id, account_id, kind, version, wrapped)
values ($1, mana.current_account(), 'p', $2, $3)

-- name: end_grants
update mana_ai.grants
   set state = 'revoked', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where space_id = $1 and account_id = any($2) and state in ('pending', 'active')
returning mission_id, completed_at is not null as was_active

-- name: missions_of
select mission_id from mana_ai.mission_snapshots where space_id = $1 and account_id = any($2)

-- name: notify
select pg_notify('mana_live', 'member:' || account_id)
  from unnest($1::text[]) as account_id

-- name: acceptances
select invitation_id, account_id, role, signing_key, hpke_key from mana.invitations
 where space_id = $1 and account_id = any($2) and not joined and not withdrawn
 order by created_at
   for update

-- name: joined
update mana.invitations set joined = true where space_id = $1 and invitation_id = any($2)

-- name: end_invitations
update mana.invitations set withdrawn = true
 where space_id = $1 and not joined and not withdrawn
   and (created_by = any($2) or (created_by = any($3) and role = 'admin'))
returning account_id
