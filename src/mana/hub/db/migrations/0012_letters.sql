-- Letters that say that something waits, and not what: one row for whoever asked for them. The
-- address is sealed under a key of the hub's file of secrets.
create table mana.letters (
  account_id text primary key references mana.accounts on delete cascade,
  address text not null,
  code_hash bytea,
  code_until timestamptz,
  code_tries integer not null default 0,
  codes_sent integer not null default 0,
  codes_since timestamptz,
  confirmed boolean not null default false,
  enabled boolean not null default false,
  waiting boolean not null default false,
  due_at timestamptz,
  sent_at timestamptz,
  attempts integer not null default 0,
  check (waiting = (due_at is not null)),
  check (confirmed or not enabled)
);
create index letters_due on mana.letters (due_at) where waiting;

alter table mana.letters enable row level security;
alter table mana.letters force row level security;
create policy own on mana.letters to mana_app, mana_runner
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account());
create policy door on mana.letters to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
grant select, insert, update, delete on mana.letters to mana_app;
grant select (account_id, enabled, waiting, sent_at), update (waiting, due_at) on mana.letters
  to mana_runner;

-- Doors, as in 0002: the hub sends for all accounts. What is taken is taken again later, unless it
-- was said to be sent.
create function mana.take_letters(p_limit integer)
  returns table (account_id text, address text, attempts integer)
  language plpgsql volatile security definer
  set search_path = ''
as $$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    update mana.letters l
       set attempts = l.attempts + 1,
           due_at = pg_catalog.clock_timestamp()
                    + least(pg_catalog.power(2, l.attempts), 360) * interval '1 minute'
     where l.account_id in (
       select w.account_id from mana.letters w
        where w.waiting and w.due_at <= pg_catalog.clock_timestamp()
        order by w.due_at limit p_limit for update skip locked)
    returning l.account_id, l.address, l.attempts;
end
$$;

create function mana.end_letter(p_account text, p_sent boolean) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l
     set waiting = false, due_at = null, attempts = 0,
         sent_at = case when p_sent then pg_catalog.clock_timestamp() else l.sent_at end
   where l.account_id = p_account;
end
$$;

create function mana.next_letter() returns timestamptz
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (select pg_catalog.min(l.due_at) from mana.letters l where l.waiting);
end
$$;

revoke all on function mana.take_letters(integer), mana.end_letter(text, boolean),
  mana.next_letter() from public;
grant execute on function mana.take_letters(integer), mana.end_letter(text, boolean),
  mana.next_letter() to mana_app;
