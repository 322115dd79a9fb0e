-- name: now
select extract(epoch from clock_timestamp())::float8

-- name: sweep
select account_id, space_id, mission_id from mana_ai.sweep_old($1, $2, $3, $4, $5)
