-- name: jitter_max
select jitter_ms from mana_ai.hub_limits

-- name: hold_spaces
select mana_ai.hold_spaces($1, $2)

-- name: plain_missions
select * from mana_ai.plain_missions($1, $2, $3)

-- name: plain_agents
select * from mana_ai.plain_agents($1, $2, $3)

-- name: put_missions
select mana_ai.put_missions($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                            $17, $18)

-- name: put_agents
select mana_ai.put_agents($1, $2, $3, $4, $5, $6, $7, $8)

-- name: put_turns
select mana_ai.put_turns()
