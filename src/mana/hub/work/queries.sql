-- name: state
select w.stopped_at, w.tokens_per_day_max, w.cost_per_day_max,
       coalesce(w.revision, 0) as revision, w.word, w.signer, w.signature,
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

-- name: notify_due
select pg_notify('mana_due', '')

-- name: held
-- Made where it was not there, so that two changes wait for each other from the first one on.
insert into mana_ai.account_work as w (account_id) values (mana.current_account())
on conflict (account_id) do update set account_id = w.account_id
returning stopped_at, tokens_per_day_max, cost_per_day_max, revision

-- name: put
update mana_ai.account_work w
   set stopped_at = case when $1 then coalesce(w.stopped_at, clock_timestamp()) end,
       tokens_per_day_max = $2, cost_per_day_max = $3, revision = $4
 where w.account_id = mana.current_account()

-- name: put_word
update mana_ai.account_work w set word = $1, signer = $2, signature = $3
 where w.account_id = mana.current_account()
