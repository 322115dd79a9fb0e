-- name: login
select login from mana.accounts where account_id = mana.current_account()

-- name: insert
insert into mana.second_factors (factor_id, account_id, kind, name, state, secret, created_at)
values ($1, mana.current_account(), $2, $3, 'pending', $4, $5)

-- name: of_account
select * from mana.second_factors
 where account_id = mana.current_account() order by created_at, factor_id

-- name: pending
select * from mana.second_factors
 where factor_id = $1 and account_id = mana.current_account()
   and state = 'pending' and created_at > $2

-- name: activate
update mana.second_factors
   set state = 'active', secret = $2, credential_id = $3, used = $4, used_at = $5
 where factor_id = $1 and account_id = mana.current_account() and state = 'pending'

-- name: use_step
update mana.second_factors set used = $2, used_at = $3
 where factor_id = $1 and account_id = mana.current_account() and state = 'active'
   and used < $2

-- name: use_count
update mana.second_factors set used = $2, used_at = $3
 where factor_id = $1 and account_id = mana.current_account() and state = 'active'
   and (used < $2 or used = 0 and $2 = 0)

-- name: remove
delete from mana.second_factors
 where factor_id = $1 and account_id = mana.current_account() and state = 'active'

-- name: insert_challenge
insert into mana.factor_challenges (challenge, account_id, factor_id, expires_at)
values ($1, mana.current_account(), $2, $3)

-- name: take_challenge
delete from mana.factor_challenges
 where challenge = $1 and account_id = mana.current_account()
   and factor_id is not distinct from $2 and expires_at > $3
