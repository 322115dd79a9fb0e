-- The mission engine: fair turns between accounts, retries and what fails in a row, runs on change,
-- stops, and the money. Nothing here is text that a person wrote.

-- What an operator sets for the whole hub. One row; no person's.
create table mana_ai.hub_limits (
  one boolean primary key default true check (one),
  stopped_at timestamptz,
  runs_max integer not null default 64 check (runs_max between 1 and 10000),
  runs_per_account_max integer not null default 16 check (runs_per_account_max between 1 and 10000),
  jitter_ms integer not null default 10000 check (jitter_ms between 0 and 3600000),
  tokens_per_day_max bigint check (tokens_per_day_max >= 0),
  cost_per_day_max bigint check (cost_per_day_max >= 0),
  account_tokens_per_day_max bigint check (account_tokens_per_day_max >= 0),
  account_cost_per_day_max bigint check (account_cost_per_day_max >= 0)
);
insert into mana_ai.hub_limits default values;
comment on column mana_ai.hub_limits.account_tokens_per_day_max is
  'for every account; a person may set less for their own';

-- Whose turn it is. `next_due` is never later than the account's first queued occurrence.
create table mana_ai.account_work (
  account_id text primary key references mana.accounts on delete cascade,
  next_due timestamptz,
  served_at timestamptz not null default '-infinity',
  stopped_at timestamptz,
  tokens_per_day_max bigint check (tokens_per_day_max >= 0),
  cost_per_day_max bigint check (cost_per_day_max >= 0)
);
create index account_work_due on mana_ai.account_work (next_due) where stopped_at is null;

alter table mana_ai.mission_snapshots
  drop constraint mission_snapshots_hold_check,
  add constraint mission_snapshots_hold_check
    check (hold in ('no-grant', 'expired', 'revoked', 'errored')),
  add column if_missed text not null default 'once' check (if_missed in ('once', 'skip', 'all')),
  add column max_tokens_per_day bigint,
  add column max_cost_per_day bigint,
  add column failures integer not null default 0,
  add column failure text;
comment on column mana_ai.mission_snapshots.failures is
  'occurrences that failed in a row; `failure` is the last reason';
create index mission_snapshots_agent on mana_ai.mission_snapshots (space_id, agent_id);

alter table mana_ai.agent_snapshots add column max_cost_per_day bigint;

alter table mana_ai.occurrences
  drop constraint occurrences_kind_check,
  add constraint occurrences_kind_check check (kind in ('scheduled', 'manual', 'change')),
  add column tries integer not null default 0,
  add column last_reason text,
  add column stop boolean not null default false,
  add column cost bigint not null default 0,
  add column round integer not null default 0,
  add column calls integer not null default 0,
  add column steps integer not null default 0,
  add column heard bigint not null default 0;
comment on column mana_ai.occurrences.tries is
  'how often it ran to a failure of a class that is tried again; `last_reason` is the class';
comment on column mana_ai.occurrences.stop is 'whoever works on it is to stop at once';
create index occurrences_queue on mana_ai.occurrences (account_id, due_at) where state = 'queued';
create index occurrences_working on mana_ai.occurrences (account_id) where state = 'leased';
drop index mana_ai.occurrences_due;

-- A turn is never later than what is queued. Whoever queues takes the account's row; the lease takes
-- it too, so that neither passes the other.
-- A door, as in 0009: a member's change may be what another member's mission waits for.
create function mana_ai.keep_turn() returns trigger
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select q.account_id, pg_catalog.min(q.due_at) from queued q where q.state = 'queued'
   group by q.account_id order by q.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  return null;
end
$$;
create trigger keep_turn_of_new after insert on mana_ai.occurrences
  referencing new table as queued for each statement execute function mana_ai.keep_turn();
create trigger keep_turn_of_changed after update on mana_ai.occurrences
  referencing new table as queued for each statement execute function mana_ai.keep_turn();

-- Which records of a space a mission waits for, while a grant to it stands.
create table mana_ai.watched (
  space_id text not null references mana.spaces on delete cascade,
  table_name text not null,
  record_id text not null,
  mission_id text not null,
  primary key (space_id, table_name, record_id, mission_id)
);
create index watched_mission on mana_ai.watched (space_id, mission_id);

alter table mana_ai.token_usage
  add column endpoint text not null default '',
  add column model text not null default '',
  add column purpose text not null default 'plan'
    check (purpose in ('plan', 'sub-agent', 'compaction')),
  add column reserved_cost bigint not null default 0 check (reserved_cost >= 0),
  add column cost bigint not null default 0,
  add column prompt_price bigint,
  add column completion_price bigint;
create index token_usage_account on mana_ai.token_usage (account_id, ts desc);

-- Sums by the hour, so that a cap costs the same to ask after the tenth call and the millionth. A
-- day is the last 24 whole hours and the one that runs.
create table mana_ai.spend (
  scope text not null check (scope in ('mission', 'agent', 'account')),
  space_id text not null default '',
  id text not null,
  account_id text not null references mana.accounts on delete cascade,
  hour timestamptz not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  primary key (scope, space_id, id, account_id, hour)
);
create table mana_ai.hub_spend (
  hour timestamptz primary key,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0
);

do $$
declare
  name text;
begin
  foreach name in array array['account_work', 'watched', 'spend'] loop
    execute format('alter table mana_ai.%I enable row level security', name);
    execute format('alter table mana_ai.%I force row level security', name);
  end loop;
end
$$;
create policy own on mana_ai.account_work to mana_app
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account());
create policy door on mana_ai.account_work to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
create policy runner_turns on mana_ai.account_work to mana_runner using (true) with check (true);
create policy members on mana_ai.watched to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = watched.space_id))
  with check (exists (select from mana.spaces s where s.space_id = watched.space_id));
create policy members on mana_ai.spend to mana_app, mana_runner
  using (account_id = mana.current_account()
         or exists (select from mana.spaces s where s.space_id = spend.space_id))
  with check (account_id = mana.current_account());

grant select on mana_ai.hub_limits to mana_app, mana_runner;
grant select, insert, update on mana_ai.account_work to mana_app, mana_runner;
grant select, insert, delete on mana_ai.watched to mana_app;
grant select on mana_ai.watched to mana_runner;
grant update (failures, failure) on mana_ai.mission_snapshots to mana_runner;
grant update (due_at, stop) on mana_ai.occurrences to mana_app;
grant update (tries, last_reason, stop, cost, round, calls, steps, heard)
  on mana_ai.occurrences to mana_runner;
grant select, insert, update on mana_ai.spend to mana_app, mana_runner;
grant select on mana_ai.hub_spend to mana_app;
grant select, insert, update on mana_ai.hub_spend to mana_runner;
grant update (cost, reserved_cost) on mana_ai.token_usage to mana_runner;

insert into mana_ai.account_work (account_id, next_due)
select account_id, min(due_at) from mana_ai.occurrences where state = 'queued' group by account_id
on conflict do nothing;
