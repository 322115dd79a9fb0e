-- Bounds: letters to one address however many accounts name it, and an end for rows that grow old.

-- What went to an address, of whomever: `place` is a keyed hash, so a stolen database names none.
create table mana.letter_places (
  place bytea primary key,
  codes integer not null default 0,
  codes_since timestamptz,
  letter_at timestamptz,
  letter_for text,
  check ((letter_at is null) = (letter_for is null))
);
alter table mana.letter_places enable row level security;
alter table mana.letter_places force row level security;
create policy door on mana.letter_places to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');

-- A code waits here sealed until it was sent: whoever asked is answered before, and in the same way
-- whether one goes out or not.
alter table mana.letters
  add column place bytea,
  add column code text,
  add column code_due_at timestamptz,
  add column code_attempts integer not null default 0,
  add check ((code is null) = (code_due_at is null));
create index letters_codes on mana.letters (code_due_at) where code is not null;

-- Doors, as in 0002. Counts a code to an address; false: so many went there within a day.
create function mana.count_code(p_place bytea, p_codes_max integer) returns boolean
  language plpgsql volatile security definer
  set search_path = ''
as $$
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana.letter_places as p (place, codes, codes_since) values (p_place, 1, v_now)
  on conflict (place) do update
     set codes = case when p.codes_since > v_now - interval '1 day' then p.codes + 1 else 1 end,
         codes_since = case when p.codes_since > v_now - interval '1 day'
                            then p.codes_since else v_now end
   where p.codes < p_codes_max or p.codes_since is null
      or p.codes_since <= v_now - interval '1 day';
  return found;
end
$$;

drop function mana.take_letters(integer);
drop function mana.end_letter(text, boolean);

-- What is taken is taken again later, unless it was said to be sent. One letter an hour goes to an
-- address: it is the same for all accounts, so one that another account had goes for all.
create function mana.take_letters(p_limit integer)
  returns table (account_id text, address text, attempts integer, code text)
  language plpgsql volatile security definer
  set search_path = ''
as $$
#variable_conflict use_column
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
  v_letter record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l set code = null, code_due_at = null
   where l.code is not null and l.code_due_at <= v_now and l.code_until <= v_now;
  return query
    update mana.letters l
       set code_attempts = l.code_attempts + 1,
           code_due_at = v_now + least(pg_catalog.power(2, l.code_attempts), 10) * interval '1 minute'
     where l.account_id in (
       select w.account_id from mana.letters w
        where w.code is not null and w.code_due_at <= v_now
        order by w.code_due_at limit p_limit for update skip locked)
    returning l.account_id, l.address, l.code_attempts, l.code;
  -- In the order of addresses, so that no two hubs wait for each other.
  for v_letter in
    select due.account_id, due.place from (
      select w.account_id, w.place from mana.letters w
       where w.waiting and w.due_at <= v_now
       order by w.due_at limit p_limit for update skip locked) due
     order by due.place, due.account_id
  loop
    if v_letter.place is not null then
      insert into mana.letter_places as p (place, letter_at, letter_for)
      values (v_letter.place, v_now, v_letter.account_id)
      on conflict (place) do update
         set letter_at = excluded.letter_at, letter_for = excluded.letter_for
       where p.letter_at is null or p.letter_for = excluded.letter_for
          or p.letter_at <= v_now - interval '1 hour';
      if not found then
        update mana.letters l
           set due_at = p.letter_at + interval '1 hour'
          from mana.letter_places p
         where l.account_id = v_letter.account_id and p.place = v_letter.place;
        continue;
      end if;
    end if;
    return query
      update mana.letters l
         set attempts = l.attempts + 1,
             due_at = v_now + least(pg_catalog.power(2, l.attempts), 360) * interval '1 minute'
       where l.account_id = v_letter.account_id
      returning l.account_id, l.address, l.attempts, null::text;
  end loop;
end
$$;

-- `p_place`: of the address that it went to, for rows that are older than places.
create function mana.end_letter(p_account text, p_sent boolean, p_place bytea) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l
     set waiting = false, due_at = null, attempts = 0,
         sent_at = case when p_sent then pg_catalog.clock_timestamp() else l.sent_at end,
         place = case when l.address <> '' then coalesce(l.place, p_place) end
   where l.account_id = p_account;
end
$$;

-- Another code may have been asked for meanwhile: that one still waits.
create function mana.end_code(p_account text, p_code text) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.letters l set code = null, code_due_at = null
   where l.account_id = p_account and l.code = p_code;
end
$$;

create or replace function mana.next_letter() returns timestamptz
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return least(
    (select pg_catalog.min(l.due_at) from mana.letters l where l.waiting),
    (select pg_catalog.min(l.code_due_at) from mana.letters l where l.code is not null));
end
$$;

-- Rows that nobody asks for any more, of all accounts, whether they still work or not: a bounded
-- part of each table, by the indexes of so many accounts and missions from a place on. Returns where
-- to go on. The newest occurrence of each kind stays: what is due next is reckoned from it.
create policy door on mana_ai.token_usage to current_user
  using (current_setting('app.door', true) = 'open');
create policy door on mana_ai.spend to current_user
  using (current_setting('app.door', true) = 'open');
create function mana_ai.sweep_old(
  p_account text, p_space text, p_mission text, p_places integer, p_rows integer)
  returns table (account_id text, space_id text, mission_id text)
  language plpgsql volatile security definer
  set search_path = '' set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_now constant timestamptz := pg_catalog.clock_timestamp();
  v_before constant timestamptz := v_now - interval '400 days';
  v_accounts text[];
  v_spaces text[];
  v_missions text[];
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  select coalesce(pg_catalog.array_agg(a.account_id order by a.account_id), '{}') into v_accounts
    from (select n.account_id from mana.accounts n where n.account_id > p_account
           order by n.account_id limit p_places) a;
  select coalesce(pg_catalog.array_agg(m.space_id order by m.space_id, m.mission_id), '{}'),
         coalesce(pg_catalog.array_agg(m.mission_id order by m.space_id, m.mission_id), '{}')
    into v_spaces, v_missions
    from (select n.space_id, n.mission_id from mana_ai.mission_snapshots n
           where (n.space_id, n.mission_id) > (p_space, p_mission)
           order by n.space_id, n.mission_id limit p_places) m;

  delete from mana_ai.token_usage u where u.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana_ai.token_usage t
       where t.account_id = w.account_id and t.ts < v_before
       order by t.ts limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana_ai.spend s where s.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana_ai.spend t
       where t.account_id = w.account_id and t.hour < v_before
       order by t.hour limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.security_events e where e.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana.security_events t
       where t.account_id = w.account_id and t.at < v_before
       order by t.at limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.sessions s where s.ctid = any (array(
    select old.place from unnest(v_accounts) as w (account_id) cross join lateral (
      select t.ctid as place from mana.sessions t
       where t.account_id = w.account_id and coalesce(t.seen_at, t.created_at) < v_before
       limit p_rows for update skip locked) old
     limit p_rows));
  delete from mana.invites i where i.invite_hash = any (array(
    select t.invite_hash from mana.invites t
     where t.account_id = any (v_accounts) and t.expires_at < v_before
     limit p_rows for update skip locked));
  delete from mana_ai.occurrences o where o.ctid = any (array(
    select old.place from unnest(v_spaces, v_missions) as w (space_id, mission_id)
     cross join lateral (
      select t.ctid as place from mana_ai.occurrences t
       where t.space_id = w.space_id and t.mission_id = w.mission_id
         and t.scheduled_for < v_before and t.state not in ('queued', 'leased')
         and exists (select from mana_ai.occurrences later
                      where later.space_id = t.space_id and later.mission_id = t.mission_id
                        and later.kind = t.kind and later.scheduled_for > t.scheduled_for)
       order by t.scheduled_for limit p_rows for update of t skip locked) old
     limit p_rows));
  delete from mana_ai.hub_spend s where s.ctid = any (array(
    select old.ctid from mana_ai.hub_spend old
     where old.hour < v_before order by old.hour limit p_rows for update skip locked));
  delete from mana.resets r where r.expires_at <= v_now;
  delete from mana.letter_places p where p.place = any (array(
    select old.place from mana.letter_places old
     where coalesce(old.codes_since, '-infinity') <= v_now - interval '1 day'
       and coalesce(old.letter_at, '-infinity') <= v_now - interval '1 day'
     limit p_rows for update skip locked));

  return query select
    case when pg_catalog.cardinality(v_accounts) < p_places then ''
         else v_accounts[p_places] end,
    case when pg_catalog.cardinality(v_missions) < p_places then '' else v_spaces[p_places] end,
    case when pg_catalog.cardinality(v_missions) < p_places then '' else v_missions[p_places] end;
end
$$;

revoke all on function mana.count_code(bytea, integer), mana.take_letters(integer),
  mana.end_letter(text, boolean, bytea), mana.end_code(text, text),
  mana_ai.sweep_old(text, text, text, integer, integer) from public;
grant execute on function mana.count_code(bytea, integer), mana.take_letters(integer),
  mana.end_letter(text, boolean, bytea), mana.end_code(text, text),
  mana_ai.sweep_old(text, text, text, integer, integer) to mana_app;
