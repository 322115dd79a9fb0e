-- name: open_invitations
select count(*) from mana.invitations
 where space_id = $1 and account_id is null and not withdrawn and expires_at > $2

-- name: forget_invitations
delete from mana.invitations where invitation_id in (
  select i.invitation_id from mana.invitations i
   where i.space_id = $1 and (i.withdrawn or i.joined or (i.account_id is null
                                                          and i.expires_at <= $2))
   order by i.created_at desc offset $3)

-- name: add_invitation
insert into mana.invitations
  (invitation_id, space_id, role, token_hash, created_by, created_at, expires_at)
values ($1, $2, $3, $4, mana.current_account(), $5, $6)

-- name: invitation
select * from mana.invitations where space_id = $1 and invitation_id = $2

-- name: invitations
select * from mana.invitations where space_id = $1
 order by created_at desc, invitation_id limit $2

-- name: accepted_invitations
select * from mana.invitations where account_id = mana.current_account()
 order by created_at desc, invitation_id limit $1

-- name: withdraw
update mana.invitations set withdrawn = true
 where space_id = $1 and invitation_id = $2 and not joined

-- name: borne_invitation
select * from mana.invitations
 where invitation_id = $1 and space_id = $2 and token_hash = mana.current_invitation()

-- name: accept
update mana.invitations i
   set account_id = a.account_id, signing_key = a.signing_key, hpke_key = a.hpke_key, mac = $2
  from mana.accounts a
 where i.invitation_id = $1 and not i.withdrawn and not i.joined
   and (i.account_id is null or i.account_id = a.account_id)
   and a.account_id = mana.current_account()

-- name: type
select type from mana.spaces where space_id = $1

-- name: is_member
select true from mana.spaces where space_id = $1

-- name: notify
select pg_notify('mana_live', 'member:' || account_id)
  from unnest($1::text[]) as account_id
