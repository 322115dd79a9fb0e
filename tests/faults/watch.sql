-- What happens to occurrences and reservations, noted by the database itself, whoever does it.
create schema watch;
create table watch.moves (
  number bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  occurrence_id text not null,
  space_id text not null,
  mission_id text not null,
  old_state text,
  state text,
  old_fence integer,
  fence integer
);
create table watch.breaches (what text not null, detail text not null);

create function watch.moved() returns trigger language plpgsql security definer
  set search_path = '' as $$
declare
  it mana_ai.occurrences := coalesce(new, old);
begin
  if tg_op = 'UPDATE' and new.state = old.state and new.fence = old.fence then
    return null;
  end if;
  insert into watch.moves
    (occurrence_id, space_id, mission_id, old_state, state, old_fence, fence)
  values (it.occurrence_id, it.space_id, it.mission_id, old.state, new.state, old.fence, new.fence);
  return null;
end
$$;
create trigger watch after insert or update or delete on mana_ai.occurrences
  for each row execute function watch.moved();

create function watch.reserved() returns trigger language plpgsql security definer
  set search_path = '' as $$
declare
  cap bigint;
  used bigint;
begin
  if not exists (select from mana_ai.occurrences o
                  where o.occurrence_id = new.occurrence_id and o.state = 'leased') then
    insert into watch.breaches values ('reserved for what nobody works on', new.occurrence_id);
  end if;
  select a.max_tokens_per_day into cap from mana_ai.agent_snapshots a
   where a.space_id = new.space_id and a.agent_id = new.agent_id;
  select sum(t.spent) into used from mana_ai.token_usage t
   where t.space_id = new.space_id and t.agent_id = new.agent_id;
  if used > cap then
    insert into watch.breaches values ('reserved beyond the cap', used || '/' || cap);
  end if;
  return null;
end
$$;
create trigger watch after insert on mana_ai.token_usage
  for each row execute function watch.reserved();
