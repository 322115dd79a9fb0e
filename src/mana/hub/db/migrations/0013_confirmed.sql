-- How much of what was spent somebody said: the rest is the worst case of calls whose model never told.

alter table mana_ai.token_usage
  add column confirmed_tokens bigint not null default 0,
  add column confirmed_cost bigint not null default 0;
comment on column mana_ai.token_usage.confirmed_tokens is
  'of `spent`, what a provider reported; the rest was reserved and may be less';
alter table mana_ai.spend
  add column confirmed_tokens bigint not null default 0,
  add column confirmed_cost bigint not null default 0;
alter table mana_ai.occurrences
  add column confirmed_tokens bigint not null default 0,
  add column confirmed_cost bigint not null default 0;

grant update (confirmed_tokens, confirmed_cost) on mana_ai.token_usage to mana_app, mana_runner;
grant update (confirmed_tokens, confirmed_cost) on mana_ai.occurrences to mana_runner;

drop function mana_ai.settle_calls(text[], bigint[], bigint[], bigint[], boolean);
drop function mana_ai.add_spend(text[], bigint[], bigint[], bigint[]);

-- Adds to the sums of the hours in which these rows were reserved. The account's lock is held. What
-- is reserved is confirmed by nobody.
create function mana_ai.add_spend(
  p_ids text[], p_tokens bigint[], p_costs bigint[], p_calls bigint[],
  p_confirmed_tokens bigint[] default '{}', p_confirmed_costs bigint[] default '{}')
  returns void
  language plpgsql volatile
  set search_path = ''
as $$
declare
  moved record;
begin
  insert into mana_ai.spend as s (scope, space_id, id, account_id, hour, tokens, cost, calls,
                                  confirmed_tokens, confirmed_cost)
  select k.scope, k.space_id, k.id, u.account_id, date_trunc('hour', u.ts, 'UTC'),
         sum(d.tokens), sum(d.cost), sum(d.calls), coalesce(sum(d.confirmed_tokens), 0),
         coalesce(sum(d.confirmed_cost), 0)
    from unnest(p_ids, p_tokens, p_costs, p_calls, p_confirmed_tokens, p_confirmed_costs)
           as d (usage_id, tokens, cost, calls, confirmed_tokens, confirmed_cost)
    join mana_ai.token_usage u on u.usage_id = d.usage_id
   cross join lateral (values ('account', '', u.account_id), ('agent', u.space_id, u.agent_id),
                              ('mission', u.space_id, u.mission_id)) as k (scope, space_id, id)
   group by 1, 2, 3, 4, 5
  on conflict (scope, space_id, id, hour, account_id) do update
    set tokens = s.tokens + excluded.tokens, cost = s.cost + excluded.cost,
        calls = s.calls + excluded.calls,
        confirmed_tokens = s.confirmed_tokens + excluded.confirmed_tokens,
        confirmed_cost = s.confirmed_cost + excluded.confirmed_cost;
  for moved in
    select date_trunc('hour', u.ts, 'UTC') as hour, sum(d.tokens) as tokens, sum(d.cost) as cost,
           sum(d.calls) as calls
      from unnest(p_ids, p_tokens, p_costs, p_calls) as d (usage_id, tokens, cost, calls)
      join mana_ai.token_usage u on u.usage_id = d.usage_id and u.for_hub
     group by 1
  loop
    update mana_ai.hub_spend s
       set tokens = s.tokens + moved.tokens, cost = s.cost + moved.cost,
           calls = s.calls + moved.calls
     where s.hour = moved.hour
       and s.part = (select free.part from mana_ai.hub_spend free where free.hour = moved.hour
                      order by free.part limit 1 for update skip locked);
    if not found then
      insert into mana_ai.hub_spend (hour, tokens, cost, calls)
      values (moved.hour, moved.tokens, moved.cost, moved.calls);
    end if;
  end loop;
end
$$;

-- Replaces reservations by what was used, once; where no numbers are given all that was reserved
-- counts, and nothing of it is confirmed. `p_open_prompts`, `p_open_replies`: what of the numbers is
-- itself a worst case. What is another's, was settled, or is not there, is passed over.
create function mana_ai.settle_calls(
  p_ids text[], p_prompts bigint[], p_replies bigint[], p_open_prompts bigint[],
  p_open_replies bigint[], p_calls bigint[], p_by_device boolean)
  returns table (usage_id text, tokens bigint, cost bigint)
  language plpgsql volatile
  set search_path = ''
as $$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  ids text[]; tokens_more bigint[]; costs_more bigint[]; calls_more bigint[];
  confirmed_tokens_of bigint[]; confirmed_costs_of bigint[];
begin
  perform mana_ai.lock_spend('account:' || me);
  -- Nobody else moves these rows meanwhile: they are of this account.
  with told as materialized (
    select distinct on (u.usage_id) u.usage_id, u.spent as old_spent, u.cost as old_cost,
           u.calls as old_calls, p.prompt, p.reply, p.calls,
           coalesce(p.prompt + p.reply, u.spent) as spent,
           coalesce(p.prompt + p.reply - p.open_prompt - p.open_reply, 0) as confirmed_tokens,
           case when p.prompt + p.reply is null then u.cost
                else mana_ai.cost_of(p.prompt, p.reply, u.prompt_price, u.completion_price)
           end as cost,
           case when p.prompt + p.reply is null then u.cost
                else mana_ai.cost_of(p.open_prompt, p.open_reply, u.prompt_price, u.completion_price)
           end as open_cost
      from unnest(p_ids, p_prompts, p_replies, p_open_prompts, p_open_replies, p_calls)
        with ordinality as p (usage_id, prompt, reply, open_prompt, open_reply, calls, place)
      join mana_ai.token_usage u on u.usage_id = p.usage_id
     where u.account_id = me and u.settled_at is null and (u.holder is not null) = p_by_device
     order by u.usage_id, p.place
  ), settled as materialized (
    select t.*, t.cost - least(t.open_cost, t.cost) as confirmed_cost from told t
  ), written as (
    update mana_ai.token_usage u
       set prompt_tokens = s.prompt, completion_tokens = s.reply, spent = s.spent, cost = s.cost,
           calls = s.calls, confirmed_tokens = s.confirmed_tokens,
           confirmed_cost = s.confirmed_cost, settled_at = clock_timestamp()
      from settled s where u.usage_id = s.usage_id
    returning u.usage_id
  )
  select array_agg(s.usage_id), array_agg(s.spent - s.old_spent), array_agg(s.cost - s.old_cost),
         array_agg(s.calls - s.old_calls), array_agg(s.confirmed_tokens),
         array_agg(s.confirmed_cost)
    into ids, tokens_more, costs_more, calls_more, confirmed_tokens_of, confirmed_costs_of
    from settled s join written using (usage_id);
  if ids is null then
    return;
  end if;
  perform mana_ai.add_spend(
    ids, tokens_more, costs_more, calls_more, confirmed_tokens_of, confirmed_costs_of);
  return query select u.usage_id, u.spent, u.cost from mana_ai.token_usage u
                where u.usage_id = any (ids);
end
$$;

grant execute on function
  mana_ai.add_spend(text[], bigint[], bigint[], bigint[], bigint[], bigint[]),
  mana_ai.settle_calls(text[], bigint[], bigint[], bigint[], bigint[], bigint[], boolean)
  to mana_app, mana_runner;

-- What was told before this was kept. The owner may be no superuser, whom forced row-level security
-- shows nothing.
alter table mana_ai.token_usage no force row level security;
alter table mana_ai.spend no force row level security;
alter table mana_ai.occurrences no force row level security;
update mana_ai.token_usage set confirmed_tokens = spent, confirmed_cost = cost
 where prompt_tokens is not null;
update mana_ai.spend s set confirmed_tokens = told.tokens, confirmed_cost = told.cost
  from (select k.scope, k.space_id, k.id, u.account_id, date_trunc('hour', u.ts, 'UTC') as hour,
               sum(u.confirmed_tokens) as tokens, sum(u.confirmed_cost) as cost
          from mana_ai.token_usage u
         cross join lateral (values ('account', '', u.account_id), ('agent', u.space_id, u.agent_id),
                                    ('mission', u.space_id, u.mission_id)) as k (scope, space_id, id)
         group by 1, 2, 3, 4, 5) told
 where (s.scope, s.space_id, s.id, s.account_id, s.hour)
     = (told.scope, told.space_id, told.id, told.account_id, told.hour);
update mana_ai.occurrences o set confirmed_tokens = told.tokens, confirmed_cost = told.cost
  from (select u.space_id, u.occurrence_id, sum(u.confirmed_tokens) as tokens,
               sum(u.confirmed_cost) as cost
          from mana_ai.token_usage u group by 1, 2) told
 where (o.space_id, o.occurrence_id) = (told.space_id, told.occurrence_id)
   and o.state not in ('queued', 'leased');
alter table mana_ai.token_usage force row level security;
alter table mana_ai.spend force row level security;
alter table mana_ai.occurrences force row level security;
