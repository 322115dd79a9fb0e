-- What happens to occurrences, readings and reservations, noted by the database itself, whoever
-- does it; and a clock that can be set. Everything noted bears the next of one row of numbers, so
-- that what came first does not hang on any clock.
create schema watch;
grant usage on schema watch to public;

create table watch.clock (ahead interval not null);
insert into watch.clock values ('0');
grant select on watch.clock to public;
alter function pg_catalog.clock_timestamp() rename to true_clock_timestamp;
create function pg_catalog.clock_timestamp() returns timestamptz
  language sql volatile parallel safe
  as $$ select pg_catalog.true_clock_timestamp() + (select c.ahead from watch.clock c) $$;
grant execute on function pg_catalog.clock_timestamp() to public;
alter table mana_ai.token_usage alter column ts set default clock_timestamp();
alter table mana_ai.grants alter column created_at set default clock_timestamp();

create sequence watch.numbers;
create table watch.moves (
  number bigint primary key default nextval('watch.numbers'),
  at timestamptz not null default true_clock_timestamp(),
  occurrence_id text not null,
  space_id text not null,
  mission_id text not null,
  kind text not null,
  old_state text,
  state text,
  old_fence integer,
  fence integer
);
create table watch.readings (
  number bigint primary key default nextval('watch.numbers'),
  iteration_id text,
  table_name text not null,
  status text not null
);
create table watch.calls (
  number bigint primary key default nextval('watch.numbers'),
  usage_id text not null,
  occurrence_id text not null
);
-- Changes of what missions wait for, while they wait.
create table watch.changes (
  number bigint primary key default nextval('watch.numbers'),
  space_id text not null,
  record_id text not null
);
-- What is stopped or has ended: a run, an account, the hub, a grant; since when, by the true clock.
create table watch.ended (
  kind text not null,
  id text not null,
  at timestamptz not null default true_clock_timestamp(),
  primary key (kind, id)
);
create table watch.breaches (what text not null, detail text not null);

-- Longer than a runner sleeps in this storm, and than a message to the database is late.
create function watch.heard(p_kind text, p_id text) returns boolean language sql volatile as $$
  select exists (select from watch.ended e where e.kind = p_kind and e.id = p_id
                    and e.at < pg_catalog.true_clock_timestamp() - interval '6 s')
$$;

create function watch.is_stopped(it mana_ai.occurrences) returns boolean language sql volatile as $$
  select watch.heard('run', it.occurrence_id) or watch.heard('account', it.account_id)
      or watch.heard('hub', '')
$$;

create function watch.moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
declare
  it mana_ai.occurrences := coalesce(new, old);
begin
  if tg_op = 'UPDATE' and new.state = old.state and new.fence = old.fence then
    return null;
  end if;
  insert into watch.moves
    (occurrence_id, space_id, mission_id, kind, old_state, state, old_fence, fence)
  values (it.occurrence_id, it.space_id, it.mission_id, it.kind, old.state, new.state, old.fence,
          new.fence);
  if new.state = 'done' and watch.is_stopped(new) then
    insert into watch.breaches values ('done after a stop', new.occurrence_id);
  end if;
  return null;
end
$$;
create trigger watch after insert or update or delete on mana_ai.occurrences
  for each row execute function watch.moved();

create function watch.changed() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  insert into watch.changes (space_id, record_id)
  select new.space_id, new.record_id
   where exists (select from mana_ai.watched w where w.space_id = new.space_id
                    and w.table_name = new.table_name and w.record_id = new.record_id);
  return null;
end
$$;
create trigger watch after insert on mana.sync_changes
  for each row execute function watch.changed();

create function watch.read() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  insert into watch.readings (iteration_id, table_name, status)
  values (new.iteration_id, new.table_name, new.status);
  if new.status = 'ok' and watch.heard('grant', new.grant_id) then
    insert into watch.breaches values ('read after the end of its grant', new.grant_id);
  end if;
  return null;
end
$$;
create trigger watch after insert on mana_ai.decrypt_audit
  for each row execute function watch.read();

create function watch.reserved() returns trigger language plpgsql security definer
  set search_path = '' as $$
declare
  it mana_ai.occurrences;
  since constant timestamptz := mana_ai.day_begins();
begin
  insert into watch.calls (usage_id, occurrence_id) values (new.usage_id, new.occurrence_id);
  select o.* into it from mana_ai.occurrences o where o.occurrence_id = new.occurrence_id;
  if it.state is distinct from 'leased' then
    insert into watch.breaches values ('reserved for what nobody works on', new.occurrence_id);
  elsif watch.is_stopped(it) then
    insert into watch.breaches values ('reserved after a stop', new.occurrence_id);
  end if;
  insert into watch.breaches
  select 'reserved beyond a cap', s.scope || ' ' || u.tokens || '/' || s.tokens || ' tokens, '
         || u.cost || '/' || s.cost || ' cost'
    from (
      select 'mission' as scope, m.max_tokens_per_day as tokens, m.max_cost_per_day as cost
        from mana_ai.mission_snapshots m
       where m.space_id = new.space_id and m.mission_id = new.mission_id
      union all
      select 'agent', g.max_tokens_per_day, g.max_cost_per_day from mana_ai.agent_snapshots g
       where g.space_id = new.space_id and g.agent_id = new.agent_id
      union all
      select 'account', least(l.account_tokens_per_day_max, w.tokens_per_day_max),
             least(l.account_cost_per_day_max, w.cost_per_day_max)
        from mana_ai.hub_limits l
        left join mana_ai.account_work w on w.account_id = new.account_id
      union all
      select 'hub', l.tokens_per_day_max, l.cost_per_day_max from mana_ai.hub_limits l) s
   cross join lateral (
     select sum(t.spent) as tokens, sum(t.cost) as cost from mana_ai.token_usage t
      where t.ts >= since
        and case s.scope
              when 'mission' then t.space_id = new.space_id and t.mission_id = new.mission_id
              when 'agent' then t.space_id = new.space_id and t.agent_id = new.agent_id
              when 'account' then t.account_id = new.account_id
              else t.for_hub end) u
   where u.tokens > s.tokens or u.cost > s.cost;
  return null;
end
$$;
create trigger watch after insert on mana_ai.token_usage
  for each row execute function watch.reserved();

create function watch.note_end(p_kind text, p_id text, p_has_ended boolean) returns void
  language sql volatile as $$
  delete from watch.ended where not p_has_ended and kind = p_kind and id = p_id;
  insert into watch.ended (kind, id) select p_kind, p_id where p_has_ended on conflict do nothing;
$$;
create function watch.stop_moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  perform watch.note_end('run', coalesce(new.occurrence_id, old.occurrence_id), tg_op = 'INSERT');
  return null;
end
$$;
create trigger watch after insert or delete on mana_ai.stops
  for each row execute function watch.stop_moved();
create function watch.work_moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  perform watch.note_end('account', new.account_id, new.stopped_at is not null);
  return null;
end
$$;
create trigger watch after insert or update of stopped_at on mana_ai.account_work
  for each row execute function watch.work_moved();
create function watch.hub_moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  perform watch.note_end('hub', '', new.stopped_at is not null);
  return null;
end
$$;
create trigger watch after update of stopped_at on mana_ai.hub_limits
  for each row execute function watch.hub_moved();
create function watch.grant_moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
begin
  perform watch.note_end('grant', new.grant_id, new.state in ('revoked', 'expired'));
  return null;
end
$$;
create trigger watch after update of state on mana_ai.grants
  for each row execute function watch.grant_moved();
