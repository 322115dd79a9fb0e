-- What a person signed of the money: the newest word on an account's work beside what holds, and the
-- caps that the header of a grant names.

-- `revision` counts what moved, signed or not; the word has the revision that it was taken with.
alter table mana_ai.account_work
  add column revision bigint not null default 0,
  add column word text,
  add column signer text,
  add column signature text,
  add constraint account_work_word
    check ((word is null) = (signer is null) and (word is null) = (signature is null));
comment on column mana_ai.account_work.word is
  'what a device of the account signed last; what holds here is never looser';

-- The caps of a day and what counts against them, for each run in its order. A sum stands with the
-- first run under its mission or agent (`mission_at`, `agent_at`), and only where there is a cap.
-- As in 0011, but that on the hub the caps in the header of the mission's grant count as well.
create or replace function mana_ai.caps_of(
  p_spaces text[], p_missions text[], p_agents text[], p_is_hub boolean)
  returns table (place integer, has_mission boolean, has_agent boolean,
                 mission_at integer, mission_token_cap bigint, mission_cost_cap bigint,
                 mission_tokens bigint, mission_costs bigint,
                 agent_at integer, agent_token_cap bigint, agent_cost_cap bigint,
                 agent_tokens bigint, agent_costs bigint,
                 account_token_cap bigint, account_cost_cap bigint,
                 account_tokens bigint, account_costs bigint,
                 hub_token_cap bigint, hub_cost_cap bigint, hub_tokens bigint, hub_costs bigint)
  language plpgsql volatile
  set search_path = ''
as $$
#variable_conflict use_column
declare
  me constant text := mana.current_account();
  since constant timestamptz := mana_ai.day_begins();
  account_token_cap bigint; account_cost_cap bigint; account_tokens bigint; account_costs bigint;
  hub_token_cap bigint; hub_cost_cap bigint; hub_tokens bigint; hub_costs bigint;
begin
  select case when p_is_hub then l.tokens_per_day_max end,
         case when p_is_hub then l.cost_per_day_max end,
         least(l.account_tokens_per_day_max, w.tokens_per_day_max),
         least(l.account_cost_per_day_max, w.cost_per_day_max)
    into hub_token_cap, hub_cost_cap, account_token_cap, account_cost_cap
    from mana_ai.hub_limits l left join mana_ai.account_work w on w.account_id = me
   where l.one;
  if account_token_cap is not null or account_cost_cap is not null then
    select sum(s.tokens), sum(s.cost) into account_tokens, account_costs
      from mana_ai.spend s
     where s.scope = 'account' and s.space_id = '' and s.id = me and s.hour >= since;
  end if;
  if hub_token_cap is not null or hub_cost_cap is not null then
    select sum(s.tokens), sum(s.cost) into hub_tokens, hub_costs
      from mana_ai.hub_spend s where s.hour >= since;
  end if;
  return query
  select b.place::integer, b.has_mission, b.has_agent,
         b.mission_at::integer, b.mission_token_cap, b.mission_cost_cap,
         of_mission.tokens, of_mission.cost,
         b.agent_at::integer, b.agent_token_cap, b.agent_cost_cap,
         of_agent.tokens, of_agent.cost,
         account_token_cap, account_cost_cap,
         coalesce(account_tokens, 0), coalesce(account_costs, 0),
         hub_token_cap, hub_cost_cap, coalesce(hub_tokens, 0), coalesce(hub_costs, 0)
    from (
      select a.place, a.space_id, a.mission_id, a.agent_id,
             m.mission_id is not null as has_mission, g.agent_id is not null as has_agent,
             min(a.place) over of_mission as mission_at, min(a.place) over of_agent as agent_at,
             c.mission_token_cap, c.mission_cost_cap, c.agent_token_cap, c.agent_cost_cap,
             -- Grants of one agent's missions may differ in what they say of the agent.
             bool_or(coalesce(c.agent_token_cap, c.agent_cost_cap) is not null)
               over of_agent as is_agent_capped
        from unnest(p_spaces, p_missions, p_agents) with ordinality
          as a (space_id, mission_id, agent_id, place)
        left join mana_ai.mission_snapshots m
          on m.space_id = a.space_id and m.mission_id = a.mission_id and not m.deleted
        left join mana_ai.agent_snapshots g
          on g.space_id = a.space_id and g.agent_id = a.agent_id and not g.deleted
        left join mana_ai.grants r
          on p_is_hub and r.space_id = a.space_id and r.mission_id = a.mission_id
         and r.state = 'active'
       -- Canonical headers have their caps near the beginning; others are not read as JSON.
       cross join lateral (
         select case when strpos(left(r.header, 400), '"caps":{') > 0
                     then r.header::json -> 'caps' end as caps) signed
       cross join lateral (
         select least(m.max_tokens_per_day, (signed.caps ->> 'missionTokens')::bigint)
                  as mission_token_cap,
                least(m.max_cost_per_day, (signed.caps ->> 'missionCost')::bigint)
                  as mission_cost_cap,
                least(g.max_tokens_per_day, (signed.caps ->> 'agentTokens')::bigint)
                  as agent_token_cap,
                least(g.max_cost_per_day, (signed.caps ->> 'agentCost')::bigint)
                  as agent_cost_cap) c
      window of_mission as (partition by a.space_id, a.mission_id),
             of_agent as (partition by a.space_id, a.agent_id)) b
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'mission' and s.space_id = b.space_id and s.id = b.mission_id
        and s.hour >= since and b.place = b.mission_at
        and coalesce(b.mission_token_cap, b.mission_cost_cap) is not null) of_mission
   cross join lateral (
     select coalesce(sum(s.tokens), 0)::bigint as tokens, coalesce(sum(s.cost), 0)::bigint as cost
       from mana_ai.spend s
      where s.scope = 'agent' and s.space_id = b.space_id and s.id = b.agent_id
        and s.hour >= since and b.place = b.agent_at and b.is_agent_capped) of_agent
   order by b.place;
end
$$;
