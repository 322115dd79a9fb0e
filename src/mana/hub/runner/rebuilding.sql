-- name: jitter_max
select jitter_ms from mana_ai.hub_limits

-- name: hold_spaces
select mana_ai.hold_spaces($1, $2)

-- name: plain_missions
select * from mana_ai.plain_missions($1)

-- name: plain_agents
select * from mana_ai.plain_agents($1)

-- name: put_plain
select mana_ai.put_plain($1, $2, $3)

-- name: put_turns
select mana_ai.put_turns()
