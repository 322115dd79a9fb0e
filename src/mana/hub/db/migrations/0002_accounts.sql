-- Accounts, sessions, devices and spaces, and the doors of log-in.
--
-- What names a space is visible to whoever is in spaces.members; everything of a space follows
-- from that one policy. Deleting an account removes its rows by the references.

create table mana.accounts (
  account_id text not null,
  login text not null,
  login_key text not null,
  mode text not null check (mode in ('standard', 'zero-knowledge')),
  role text not null check (role in ('administrator', 'member')),
  demo boolean not null,
  kdf jsonb not null,
  login_hash text not null,
  master_wrap text not null,
  master_check text not null,
  kek_wrap text,
  signing_key text not null,
  hpke_key text not null,
  sealed_private text not null,
  created_at timestamptz not null,
  primary key (account_id),
  constraint accounts_login unique (login_key),
  check ((mode = 'standard') = (kek_wrap is not null))
);

create table mana.invites (
  invite_hash bytea not null,
  account_id text not null references mana.accounts on delete cascade,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (invite_hash)
);
create index invites_of_account on mana.invites (account_id);

-- Counted before the login key is checked, so that parallel guesses cannot pass together. The
-- name that was typed is kept as a keyed hash only: people type passwords there by mistake.
create table mana.login_attempts (
  login_mac bytea not null,
  attempted_at timestamptz not null
);
create index login_attempts_of_login on mana.login_attempts (login_mac, attempted_at);
create index login_attempts_by_age on mana.login_attempts (attempted_at);

create table mana.sessions (
  session_id text not null,
  account_id text not null references mana.accounts on delete cascade,
  created_at timestamptz not null,
  ended_at timestamptz,
  primary key (session_id)
);
create index sessions_of_account on mana.sessions (account_id);

create table mana.refresh_tokens (
  token_hash bytea not null,
  session_id text not null references mana.sessions on delete cascade,
  account_id text not null references mana.accounts on delete cascade,
  parent_hash bytea,
  issued_at timestamptz not null,
  used_at timestamptz,
  replaced boolean not null default false,
  primary key (token_hash)
);
create index refresh_tokens_of_session on mana.refresh_tokens (session_id);
create index refresh_tokens_of_account on mana.refresh_tokens (account_id);

create table mana.devices (
  device_id text not null,
  account_id text not null references mana.accounts on delete cascade,
  public_key text not null,
  created_at text not null,
  signature text not null,
  registered_at timestamptz not null,
  primary key (device_id)
);
create index devices_of_account on mana.devices (account_id);

create table mana.spaces (
  space_id text not null,
  type text not null,
  members text[] not null,
  key_version integer not null,
  created_at timestamptz not null,
  primary key (space_id)
);

create table mana.memberships (
  space_id text not null references mana.spaces on delete cascade,
  account_id text not null references mana.accounts on delete cascade,
  role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
  primary key (space_id, account_id)
);
create index memberships_of_account on mana.memberships (account_id);

create table mana.membership_entries (
  space_id text not null references mana.spaces on delete cascade,
  number integer not null,
  entry jsonb not null,
  signature text not null,
  hash text not null,
  primary key (space_id, number)
);

create table mana.space_keys (
  space_id text not null references mana.spaces on delete cascade,
  account_id text not null references mana.accounts on delete cascade,
  kind text not null check (kind in ('s', 'p')),
  version integer not null check (version > 0),
  wrapped text not null,
  primary key (space_id, account_id, kind, version)
);
create index space_keys_of_account on mana.space_keys (account_id);

do $$
declare
  name text;
begin
  foreach name in array array['accounts', 'invites', 'login_attempts', 'sessions',
    'refresh_tokens', 'devices', 'spaces', 'memberships', 'membership_entries', 'space_keys']
  loop
    execute format('alter table mana.%I enable row level security', name);
    execute format('alter table mana.%I force row level security', name);
  end loop;
end
$$;

create policy own on mana.accounts to mana_app, mana_runner
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy own on mana.invites to mana_app
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy own on mana.sessions to mana_app
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy own on mana.refresh_tokens to mana_app
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy member on mana.spaces to mana_app, mana_runner
  using (mana.current_account() = any (members))
  with check (mana.current_account() = any (members));
create policy own on mana.devices to mana_app, mana_runner
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
create policy shared on mana.devices for select to mana_app, mana_runner
  using (exists (select from mana.spaces s where devices.account_id = any (s.members)));
create policy member on mana.memberships to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = memberships.space_id))
  with check (exists (select from mana.spaces s where s.space_id = memberships.space_id
                         and memberships.account_id = any (s.members)));
create policy member on mana.membership_entries to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = membership_entries.space_id))
  with check (exists (select from mana.spaces s where s.space_id = membership_entries.space_id));
create policy own on mana.space_keys to mana_app
  using (account_id = mana.current_account())
  with check (account_id = mana.current_account()
              and exists (select from mana.spaces s where s.space_id = space_keys.space_id));

grant select, insert, delete on mana.accounts to mana_app;
grant select (account_id, mode, role, signing_key, hpke_key) on mana.accounts to mana_runner;
grant insert on mana.invites to mana_app;
grant select, insert, update (ended_at) on mana.sessions to mana_app;
grant insert on mana.refresh_tokens to mana_app;
grant select, insert on mana.devices to mana_app;
grant select on mana.devices to mana_runner;
grant select, insert, delete on mana.spaces to mana_app;
grant select on mana.spaces to mana_runner;
grant select, insert on mana.memberships, mana.membership_entries to mana_app;
grant select on mana.memberships, mana.membership_entries to mana_runner;
grant select, insert on mana.space_keys to mana_app;

-- The doors: the only functions that run with their owner's rights. Where the owner is no
-- superuser, forced row-level security holds for it too, and these policies let it through
-- in a transaction in which such a function has opened the door. Nobody else gains by the
-- setting: the policies are the owner's alone.
do $$
declare
  name text;
begin
  foreach name in array array['accounts', 'invites', 'login_attempts', 'sessions',
    'refresh_tokens']
  loop
    execute format(
      'create policy door on mana.%I to current_user'
      ' using (current_setting(''app.door'', true) = ''open'')'
      ' with check (current_setting(''app.door'', true) = ''open'')', name);
  end loop;
end
$$;

-- The role of a new account: the first that is no demo administers. Concurrent sign-ups wait
-- here for each other until they commit. An invitation is used up with the sign-up.
create function mana.admit_sign_up(p_demo boolean, p_invite bytea, p_invites_only boolean)
  returns text
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform pg_catalog.pg_advisory_xact_lock(1835101793, 1);
  if not p_demo and not exists (select from mana.accounts a where not a.demo) then
    return 'administrator';
  end if;
  if p_invites_only then
    delete from mana.invites i
     where i.invite_hash = p_invite and i.expires_at > pg_catalog.now();
    if not found then
      return null;
    end if;
  end if;
  return 'member';
end
$$;

create function mana.login_facts(p_login_key text)
  returns table (account_id text, kdf jsonb, login_hash text)
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kdf, a.login_hash from mana.accounts a where a.login_key = p_login_key;
end
$$;

-- Count an attempt before it is judged. Null: it may be judged. Else: when the next one may.
create function mana.count_attempt(
  p_login_mac bytea, p_now timestamptz, p_window interval, p_attempts_max integer)
  returns timestamptz
  language plpgsql volatile security definer
  set search_path = ''
as $$
declare
  counted bigint;
  oldest timestamptz;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  perform pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended(pg_catalog.encode(p_login_mac, 'hex'), 1835101793));
  delete from mana.login_attempts l where l.ctid in (
    select d.ctid from mana.login_attempts d
     where d.attempted_at <= p_now - p_window limit 100 for update skip locked);
  select pg_catalog.count(*), pg_catalog.min(l.attempted_at) into counted, oldest
    from mana.login_attempts l
   where l.login_mac = p_login_mac and l.attempted_at > p_now - p_window;
  if counted >= p_attempts_max then
    return oldest + p_window;
  end if;
  insert into mana.login_attempts (login_mac, attempted_at) values (p_login_mac, p_now);
  return null;
end
$$;

create function mana.clear_attempts(p_login_mac bytea) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.login_attempts l where l.login_mac = p_login_mac;
end
$$;

-- Exchange a refresh token. Outcome: ok, unknown, ended (before), reused (ended now).
-- A token that was used less than p_grace ago counts once more if the token that came of it was
-- never used: the answer was lost. That token is void from then on.
create function mana.rotate_token(
  p_old bytea, p_new bytea, p_now timestamptz, p_grace interval, p_life interval)
  returns table (outcome text, account_id text, session_id text)
  language plpgsql volatile security definer
  set search_path = ''
as $$
#variable_conflict use_column
declare
  held record;
  sess record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  select * into held from mana.refresh_tokens t where t.token_hash = p_old;
  if not found then
    return query select 'unknown', null::text, null::text;
    return;
  end if;
  select * into sess from mana.sessions s where s.session_id = held.session_id for update;
  -- Read again: another exchange may have come first while this one waited for the session.
  select * into held from mana.refresh_tokens t where t.token_hash = p_old;
  if held.token_hash is null or sess.session_id is null then
    return query select 'unknown', null::text, null::text;
    return;
  end if;
  if sess.ended_at is not null or held.issued_at <= p_now - p_life then
    return query select 'ended', null::text, null::text;
    return;
  end if;
  if held.replaced or held.used_at is not null then
    if held.replaced or held.used_at <= p_now - p_grace or exists (
      select from mana.refresh_tokens t where t.parent_hash = p_old and t.used_at is not null)
    then
      update mana.sessions s set ended_at = p_now where s.session_id = held.session_id;
      return query select 'reused', null::text, null::text;
      return;
    end if;
    update mana.refresh_tokens t set replaced = true where t.parent_hash = p_old;
  else
    update mana.refresh_tokens t set used_at = p_now where t.token_hash = p_old;
  end if;
  delete from mana.refresh_tokens t
   where t.session_id = held.session_id and t.issued_at <= p_now - p_life;
  insert into mana.refresh_tokens (token_hash, session_id, account_id, parent_hash, issued_at)
    values (p_new, held.session_id, held.account_id, p_old, p_now);
  return query select 'ok', held.account_id, held.session_id;
end
$$;

grant execute on function
  mana.admit_sign_up(boolean, bytea, boolean),
  mana.login_facts(text),
  mana.count_attempt(bytea, timestamptz, interval, integer),
  mana.clear_attempts(bytea),
  mana.rotate_token(bytea, bytea, timestamptz, interval, interval)
  to mana_app;
