-- name: count_attempt
select mana.count_attempt($1, $2, $3, $4)

-- name: clear_attempts
select mana.clear_attempts($1)

-- name: sweep
select mana.sweep_waiting($1)

-- name: begin
insert into mana.links (link_id, account_id, login, name, ticket_hash, commitment, state,
  created_at, expires_at)
select $1, a.account_id, $2, $3, $4, $5, 'waiting', $6, $7
  from mana.accounts a
 where a.account_id = mana.current_account()
   and (select count(*) from mana.links l
         where l.account_id = mana.current_account()
           and l.state in ('waiting', 'answered', 'revealed') and l.expires_at > $6) < $8
on conflict (link_id) do nothing

-- name: of_ticket
select * from mana.links
 where link_id = $1 and ticket_hash = $2 and account_id = mana.current_account()

-- name: lock_of_ticket
select * from mana.links
 where link_id = $1 and ticket_hash = $2 and account_id = mana.current_account()
   and state = 'approved' and expires_at > $3
   for update

-- name: reveal
update mana.links
   set state = 'revealed', hpke_key = $4, device_key = $5, device_id = $6, nonce = $7
 where link_id = $1 and ticket_hash = $2 and account_id = mana.current_account()
   and expires_at > $3
   and (state = 'answered' or state = 'revealed'
     and (hpke_key, device_key, device_id, nonce) = ($4, $5, $6, $7))

-- name: waiting
select * from mana.links
 where account_id = mana.current_account()
   and state in ('waiting', 'answered', 'revealed') and expires_at > $1
 order by created_at, link_id

-- name: answer
update mana.links set state = 'answered', own_nonce = $3
 where link_id = $1 and account_id = mana.current_account() and expires_at > $2
   and (state = 'waiting' or state = 'answered' and own_nonce = $3)

-- name: lock_revealed
select * from mana.links
 where link_id = $1 and account_id = mana.current_account()
   and state = 'revealed' and expires_at > $2
   for update

-- name: approve
update mana.links
   set state = 'approved', wrapped = $2, certificate = $3, session_id = $4, revision = $5
 where link_id = $1 and account_id = mana.current_account()

-- name: refuse
update mana.links set state = 'refused', wrapped = null, certificate = null
 where link_id = $1 and account_id = mana.current_account() and expires_at > $2
   and state in ('waiting', 'answered', 'revealed', 'approved')

-- name: end
update mana.links set state = $2, wrapped = null, certificate = null
 where link_id = $1 and account_id = mana.current_account()

-- name: session_stands
select exists (select from mana.sessions
                where session_id = $1 and account_id = mana.current_account()
                  and ended_at is null)
