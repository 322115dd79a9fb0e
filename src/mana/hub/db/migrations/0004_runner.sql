-- What the runner needs: the plain side of missions and agents, the register of grants, the
-- ledger of occurrences, the audit, and the use of tokens. No text that a person wrote is here.

create table mana_ai.mission_snapshots (
  space_id text not null references mana.spaces on delete cascade,
  mission_id text not null,
  account_id text not null,
  state text not null,
  cadence jsonb,
  time_zone text not null,
  agent_id text,
  runs_on text not null,
  anchor_ms bigint,
  deleted boolean not null,
  next_run_at timestamptz,
  hold text check (hold in ('no-grant', 'expired', 'revoked')),
  primary key (space_id, mission_id)
);
comment on column mana_ai.mission_snapshots.account_id is
  'under whose grant it runs; before the first grant its author';

create table mana_ai.agent_snapshots (
  space_id text not null references mana.spaces on delete cascade,
  agent_id text not null,
  account_id text not null,
  state text not null,
  max_tokens_per_day bigint,
  max_concurrent_missions integer not null,
  deleted boolean not null,
  primary key (space_id, agent_id)
);

create table mana_ai.grants (
  grant_id text primary key,
  account_id text not null references mana.accounts on delete cascade,
  space_id text not null references mana.spaces on delete cascade,
  mission_id text not null,
  agent_id text not null,
  header text not null,
  suite text not null,
  runner_key_id text not null,
  expires_at timestamptz not null,
  state text not null default 'pending'
    check (state in ('pending', 'active', 'expired', 'revoked', 'replaced')),
  wrapped_key text,
  sealed_keys text,
  signer text,
  signature text,
  hub_signature text,
  created_at timestamptz not null default clock_timestamp(),
  completed_at timestamptz,
  ended_at timestamptz,
  check ((state = 'active') = (sealed_keys is not null and wrapped_key is not null)),
  check ((state in ('expired', 'revoked', 'replaced')) = (ended_at is not null))
);
create unique index grants_active on mana_ai.grants (space_id, mission_id) where state = 'active';
create index grants_mission on mana_ai.grants (space_id, mission_id, created_at desc);
create index grants_account on mana_ai.grants (account_id, created_at desc);

-- Revocation is for ever, and a scope never changes: the database itself says so.
create function mana_ai.guard_grant() returns trigger language plpgsql as $$
begin
  if old.state in ('expired', 'revoked', 'replaced') then
    raise exception 'an ended grant does not change' using errcode = '42501';
  end if;
  if (new.grant_id, new.account_id, new.space_id, new.mission_id, new.agent_id, new.header,
      new.suite, new.runner_key_id, new.expires_at, new.created_at)
     is distinct from
     (old.grant_id, old.account_id, old.space_id, old.mission_id, old.agent_id, old.header,
      old.suite, old.runner_key_id, old.expires_at, old.created_at) then
    raise exception 'the scope and life of a grant do not change' using errcode = '42501';
  end if;
  if old.state = 'active' and new.state = 'active' and new is distinct from old
     or old.state = 'active' and new.state = 'pending' then
    raise exception 'an active grant only ends' using errcode = '42501';
  end if;
  return new;
end
$$;
create trigger guard_grant before update on mana_ai.grants
  for each row execute function mana_ai.guard_grant();

create table mana_ai.occurrences (
  occurrence_id text primary key default gen_random_uuid()::text,
  space_id text not null references mana.spaces on delete cascade,
  mission_id text not null,
  account_id text not null,
  agent_id text,
  scheduled_for timestamptz not null,
  kind text not null check (kind in ('scheduled', 'manual')),
  state text not null
    check (state in ('queued', 'leased', 'done', 'skipped', 'failed', 'missed')),
  reason text,
  due_at timestamptz not null,
  lease_until timestamptz,
  fence integer not null default 0,
  attempts integer not null default 0,
  worker text,
  admitted boolean not null default false,
  phase text,
  iteration_id text,
  tokens bigint not null default 0,
  started_at timestamptz,
  finished_at timestamptz,
  unique (space_id, mission_id, scheduled_for)
);
create index occurrences_due on mana_ai.occurrences (due_at) where state = 'queued';
create index occurrences_leased on mana_ai.occurrences (lease_until) where state = 'leased';
create index occurrences_ledger
  on mana_ai.occurrences (space_id, mission_id, scheduled_for desc);

create table mana_ai.audit_heads (
  account_id text primary key references mana.accounts on delete cascade,
  seq bigint not null,
  hash text not null
);

create table mana_ai.decrypt_audit (
  account_id text not null references mana.accounts on delete cascade,
  seq bigint not null check (seq > 0),
  mission_id text not null,
  iteration_id text,
  grant_id text,
  table_name text not null,
  record_id text not null,
  status text not null check (status in ('ok', 'failed', 'scope-violation', 'revoked')),
  reason text,
  endpoint text,
  runner_key_id text not null,
  ts text not null,
  previous text not null,
  hash text not null,
  primary key (account_id, seq)
);
create index decrypt_audit_mission on mana_ai.decrypt_audit (account_id, mission_id, seq desc);

-- A row without `settled_at` is a reservation, and counts in full.
create table mana_ai.token_usage (
  usage_id text primary key default gen_random_uuid()::text,
  account_id text not null references mana.accounts on delete cascade,
  space_id text not null references mana.spaces on delete cascade,
  agent_id text not null,
  mission_id text not null,
  occurrence_id text not null,
  reserved bigint not null check (reserved >= 0),
  prompt_tokens bigint,
  completion_tokens bigint,
  spent bigint not null,
  ts timestamptz not null default clock_timestamp(),
  settled_at timestamptz
);
create index token_usage_agent on mana_ai.token_usage (space_id, agent_id, ts desc);

do $$
declare
  name text;
begin
  foreach name in array array['mission_snapshots', 'agent_snapshots', 'grants', 'occurrences',
                              'audit_heads', 'decrypt_audit', 'token_usage'] loop
    execute format('alter table mana_ai.%I enable row level security', name);
    execute format('alter table mana_ai.%I force row level security', name);
  end loop;
end
$$;

-- Members see the missions, agents, grants and runs of their spaces; the account alone its audit.
create policy members on mana_ai.mission_snapshots to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = mission_snapshots.space_id))
  with check (exists (select from mana.spaces s where s.space_id = mission_snapshots.space_id));
create policy members on mana_ai.agent_snapshots to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = agent_snapshots.space_id))
  with check (exists (select from mana.spaces s where s.space_id = agent_snapshots.space_id));
create policy members on mana_ai.grants to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = grants.space_id))
  with check (exists (select from mana.spaces s where s.space_id = grants.space_id));
create policy members on mana_ai.occurrences to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = occurrences.space_id))
  with check (exists (select from mana.spaces s where s.space_id = occurrences.space_id));
create policy own on mana_ai.audit_heads to mana_app, mana_runner
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account());
create policy own on mana_ai.decrypt_audit to mana_app, mana_runner
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account());
create policy members on mana_ai.token_usage to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = token_usage.space_id))
  with check (exists (select from mana.spaces s where s.space_id = token_usage.space_id));

-- The one door across accounts: the runner finds and leases what is due. Ids, times and states.
create policy runner_finds on mana_ai.occurrences for select to mana_runner using (true);
create policy runner_leases on mana_ai.occurrences for update to mana_runner
  using (true) with check (true);

grant select, insert, update on mana_ai.mission_snapshots, mana_ai.agent_snapshots to mana_app;
grant delete on mana_ai.mission_snapshots, mana_ai.agent_snapshots to mana_app;
grant select, update (account_id, next_run_at, hold) on mana_ai.mission_snapshots to mana_runner;
grant select on mana_ai.agent_snapshots to mana_runner;

-- What never was a grant may be cleared away; what was one stays in the register.
create policy pending_goes on mana_ai.grants as restrictive for delete to mana_app
  using (state = 'pending' and account_id = mana.current_account());
grant select, insert, update, delete on mana_ai.grants to mana_app;
grant select, update (state, ended_at, wrapped_key, sealed_keys) on mana_ai.grants to mana_runner;

grant select, insert, delete, update (account_id) on mana_ai.occurrences to mana_app;
grant select, insert,
      update (state, reason, due_at, lease_until, fence, attempts, worker, admitted, phase,
              iteration_id, tokens, started_at, finished_at)
  on mana_ai.occurrences to mana_runner;
-- Only the last hundred missed moments of a mission are kept.
grant delete on mana_ai.occurrences to mana_runner;

grant select on mana_ai.audit_heads, mana_ai.decrypt_audit to mana_app;
grant select, insert on mana_ai.decrypt_audit to mana_runner;
grant select, insert, update (seq, hash) on mana_ai.audit_heads to mana_runner;

grant select on mana_ai.token_usage to mana_app;
grant select, insert, update (prompt_tokens, completion_tokens, spent, settled_at)
  on mana_ai.token_usage to mana_runner;
