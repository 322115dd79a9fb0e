-- The log of changes and the merged state. The log is append-only: neither serving role has the
-- right to change or remove a row of it. A space's sequence is drawn under its head row, so a
-- reader that has seen n has seen everything up to n.

create table mana.space_heads (
  space_id text not null references mana.spaces on delete cascade,
  seq bigint not null,
  primary key (space_id)
);

create table mana.sync_changes (
  space_id text not null references mana.spaces on delete cascade,
  seq bigint not null,
  change_id text not null,
  app_id text not null,
  table_name text not null,
  record_id text not null,
  user_id text not null,
  author_id text not null,
  visibility text not null check (visibility in ('space', 'private')),
  op text not null check (op in ('insert', 'update', 'delete')),
  data jsonb not null,
  field_meta jsonb not null,
  client_id text not null,
  created_at timestamptz not null,
  schema_version integer not null default 1,
  actor jsonb not null,
  origin text not null check (origin in ('user', 'agent', 'system', 'migration')),
  group_id text,
  guards jsonb,
  signature jsonb,
  primary key (space_id, seq),
  constraint sync_changes_once unique (space_id, change_id)
);
create index sync_changes_of_record
  on mana.sync_changes (space_id, table_name, record_id, seq);

-- fields: path -> {value, at, actor, origin, changeId}; proofs: change id -> proof.
create table mana.records (
  space_id text not null references mana.spaces on delete cascade,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  visibility text not null check (visibility in ('space', 'private')),
  fields jsonb not null,
  proofs jsonb not null,
  seq bigint not null,
  deleted boolean not null,
  primary key (space_id, table_name, record_id)
);

do $$
declare
  name text;
begin
  foreach name in array array['space_heads', 'sync_changes', 'records'] loop
    execute format('alter table mana.%I enable row level security', name);
    execute format('alter table mana.%I force row level security', name);
  end loop;
end
$$;

create policy member on mana.space_heads to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = space_heads.space_id))
  with check (exists (select from mana.spaces s where s.space_id = space_heads.space_id));
create policy member on mana.sync_changes to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = sync_changes.space_id)
         and (visibility = 'space' or author_id = mana.current_account()))
  with check (exists (select from mana.spaces s where s.space_id = sync_changes.space_id)
              and (visibility = 'space' or author_id = mana.current_account())
              and user_id = mana.current_account());
create policy member on mana.records to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = records.space_id)
         and (visibility = 'space' or author_id = mana.current_account()))
  with check (exists (select from mana.spaces s where s.space_id = records.space_id)
              and (visibility = 'space' or author_id = mana.current_account()));

grant select, insert, update (seq) on mana.space_heads to mana_app;
grant select, update (seq) on mana.space_heads to mana_runner;
grant select, insert on mana.sync_changes to mana_app, mana_runner;
grant select, insert, update (fields, proofs, seq, deleted) on mana.records to mana_app, mana_runner;
