-- name: spaces
select s.space_id, s.type, m.role
  from mana.memberships m join mana.spaces s on s.space_id = m.space_id
 where m.account_id = mana.current_account()
 order by s.created_at, s.space_id

-- name: entries
select space_id, entry, signature from mana.membership_entries
 where space_id = any($1) order by space_id, number

-- name: keys
select space_id, kind, version, wrapped from mana.space_keys
 where space_id = any($1) and account_id = mana.current_account()
 order by space_id, kind, version

-- name: role
select role from mana.memberships where space_id = $1 and account_id = mana.current_account()

-- name: devices
select d.account_id, d.device_id, d.public_key, d.created_at, d.signature
  from mana.devices d
  join mana.memberships m on m.account_id = d.account_id
 where m.space_id = $1
 order by d.registered_at, d.device_id
