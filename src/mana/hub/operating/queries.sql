-- name: hold_kek
select pg_advisory_xact_lock(1835101793, 2)

-- name: kek_left
select mana.kek_left($1)

-- name: kek_batch
select account_id, kek_wrap, kek_id from mana.kek_batch($1, $2)

-- name: set_kek_wrap
select mana.set_kek_wrap($1, $2, $3)

-- name: limits
select * from mana_ai.hub_limits

-- name: hold_turns
-- Nothing is leased while work is stopped, so that what runs and what is stopped is the same.
select pg_advisory_xact_lock(1835101793, 3)

-- name: set_stopped
with changed as (
  update mana_ai.hub_limits
     set stopped_at = case when $1::boolean then coalesce(stopped_at, clock_timestamp()) end
  returning *)
select c.*, pg_notify('mana_stop', ''), pg_notify('mana_due', '') from changed c

-- name: set_limits
-- $1: the named limits; null removes a cap.
with changed as (
  update mana_ai.hub_limits l
     set runs_max = k.runs_max, runs_per_account_max = k.runs_per_account_max,
         jitter_ms = k.jitter_ms, tokens_per_day_max = k.tokens_per_day_max,
         cost_per_day_max = k.cost_per_day_max,
         account_tokens_per_day_max = k.account_tokens_per_day_max,
         account_cost_per_day_max = k.account_cost_per_day_max
    from mana_ai.hub_limits o
   cross join lateral jsonb_populate_record(o, $1::jsonb) k
  returning l.*)
select c.*, pg_notify('mana_due', '') from changed c
