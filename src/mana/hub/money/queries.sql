-- name: reserve
select * from mana_ai.reserve_calls($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
 order by place

-- name: settle
select * from mana_ai.settle_calls($1, $2, $3, $4, $5, $6, $7)

-- name: caps
select * from mana_ai.caps_of($1, $2, $3, $4) order by place

-- name: agent_today
select coalesce(sum(tokens), 0) as tokens, coalesce(sum(cost), 0) as cost,
       coalesce(sum(confirmed_tokens), 0) as confirmed_tokens,
       coalesce(sum(confirmed_cost), 0) as confirmed_cost
  from mana_ai.spend
 where scope = 'agent' and space_id = $1 and id = $2 and hour >= (select mana_ai.day_begins())

-- name: agents_today
select g.agent_id, sum(s.tokens) as tokens, sum(s.cost) as cost,
       sum(s.confirmed_tokens) as confirmed_tokens, sum(s.confirmed_cost) as confirmed_cost
  from mana.memberships m
  join mana_ai.agent_snapshots g on g.space_id = m.space_id
  join mana_ai.spend s on s.scope = 'agent' and s.space_id = g.space_id and s.id = g.agent_id
                      and s.hour >= (select mana_ai.day_begins())
 where m.account_id = mana.current_account()
 group by g.agent_id

-- name: account_today
select coalesce(sum(tokens), 0) as tokens, coalesce(sum(cost), 0) as cost,
       coalesce(sum(confirmed_tokens), 0) as confirmed_tokens,
       coalesce(sum(confirmed_cost), 0) as confirmed_cost
  from mana_ai.spend
 where scope = 'account' and space_id = '' and id = mana.current_account()
   and hour >= (select mana_ai.day_begins())

-- name: usage
select date_trunc($1, hour, 'UTC') as since, scope, space_id, id,
       sum(tokens) as tokens, sum(cost) as cost, sum(calls) as calls,
       sum(confirmed_tokens) as confirmed_tokens, sum(confirmed_cost) as confirmed_cost
  from mana_ai.spend
 where account_id = mana.current_account()
   and hour >= date_trunc($1, now(), 'UTC') - $2::interval
 group by 1, 2, 3, 4
 order by 1, 2, 3, 4

-- name: role
select role from mana.memberships where space_id = $1 and account_id = mana.current_account()

-- name: holder
select coalesce(device_id, session_id) from mana.sessions
 where session_id = $1 and account_id = mana.current_account()

-- name: open_slices
select count(*) from mana_ai.token_usage
 where account_id = mana.current_account() and space_id = $1 and mission_id = $2 and holder = $3
   and settled_at is null and holder is not null and ts >= (select mana_ai.day_begins())

-- name: slice
select reply_max from mana_ai.token_usage
 where usage_id = $1 and space_id = $2 and mission_id = $3 and holder is not null
   and account_id = mana.current_account()

-- name: lock_day
-- In the order of every reservation, which takes the same locks again.
select mana_ai.lock_spend('account:' || mana.current_account()),
       mana_ai.lock_spend('agent:' || $1 || ':' || $3),
       mana_ai.lock_spend('mission:' || $1 || ':' || $2)

-- name: day
select scope, sum(tokens) as tokens, sum(cost) as cost, sum(confirmed_tokens) as confirmed_tokens,
       sum(confirmed_cost) as confirmed_cost
  from mana_ai.spend
 where space_id = $1 and hour >= (select mana_ai.day_begins())
   and (scope = 'mission' and id = $2 or scope = 'agent' and id = $3)
 group by scope
