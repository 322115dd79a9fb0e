-- name: hold_kek
select pg_advisory_xact_lock(1835101793, 2)

-- name: kek_left
select mana.kek_left($1)

-- name: kek_batch
select account_id, kek_wrap, kek_id from mana.kek_batch($1, $2)

-- name: set_kek_wrap
select mana.set_kek_wrap($1, $2, $3)
