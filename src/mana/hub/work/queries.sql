-- name: state
select w.stopped_at, w.tokens_per_day_max, w.cost_per_day_max,
       l.stopped_at is not null as hub_stopped,
       l.account_tokens_per_day_max, l.account_cost_per_day_max
  from mana_ai.hub_limits l
  left join mana_ai.account_work w on w.account_id = mana.current_account()

-- name: hold_turns
-- Nothing is leased while work is stopped, so that what runs and what is stopped is the same.
select pg_advisory_xact_lock(1835101793, 3)

-- name: stop_runs
with marked as (
  insert into mana_ai.stops (occurrence_id, space_id)
  select o.occurrence_id, o.space_id from mana_ai.occurrences o
   where o.state = 'leased' and o.account_id = mana.current_account()
  on conflict do nothing
)
select pg_notify('mana_stop', '')

-- name: set_stopped
insert into mana_ai.account_work as w (account_id, stopped_at)
values (mana.current_account(), case when $1 then clock_timestamp() end)
on conflict (account_id) do update
  set stopped_at = case when $1 then coalesce(w.stopped_at, excluded.stopped_at) end

-- name: notify_due
select pg_notify('mana_due', '')

-- name: set_caps
-- -1 removes a cap, null leaves it as it is.
insert into mana_ai.account_work as w (account_id, tokens_per_day_max, cost_per_day_max)
values (mana.current_account(), nullif($1::bigint, -1), nullif($2::bigint, -1))
on conflict (account_id) do update
  set tokens_per_day_max = case when $1 is null then w.tokens_per_day_max
                                else excluded.tokens_per_day_max end,
      cost_per_day_max = case when $2 is null then w.cost_per_day_max
                              else excluded.cost_per_day_max end
