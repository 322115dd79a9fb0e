-- The vault beyond sign-up: its statements, recovery, resets, second factors, links between
-- devices, revoked devices, and what a person can read about all that.

alter table mana.accounts
  add column revision integer not null default 0 check (revision >= 0),
  add column challenge text not null default encode(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 'base64'),
  add column kek_id text,
  add column recovery jsonb,
  add column recovery_hash bytea,
  add column recovery_set_at timestamptz,
  add column formers jsonb not null default '{"masters": [], "identities": []}',
  add column grants boolean,
  add constraint accounts_recovery check ((recovery is null) = (recovery_hash is null)
    and (recovery is null) = (recovery_set_at is null));
-- In standard mode the hub's runner may be granted to; in zero-knowledge mode only if the person
-- has said so.
select set_config('app.door', 'open', true);
update mana.accounts set grants = (mode = 'standard');
alter table mana.accounts alter column grants set not null;

-- The chain of signed statements: nobody changes or removes one.
create table mana.vault_statements (
  account_id text not null references mana.accounts on delete cascade,
  revision integer not null check (revision > 0),
  statement json not null,
  signature text not null,
  own_signature text,
  primary key (account_id, revision)
);

create table mana.security_events (
  account_id text not null references mana.accounts on delete cascade,
  number bigint generated always as identity,
  at timestamptz not null,
  action text not null,
  ok boolean not null,
  session_id text,
  detail text not null default '',
  primary key (account_id, number)
);
create index security_events_by_time on mana.security_events (account_id, at);

-- One-time tokens that the operator makes on the hub's own machine.
create table mana.resets (
  token_hash bytea not null,
  account_id text not null references mana.accounts on delete cascade,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (token_hash)
);
create index resets_of_account on mana.resets (account_id);

alter table mana.sessions
  add column seen_at timestamptz,
  add column name text not null default '',
  add column device_id text,
  add column revoked boolean not null default false;
create index sessions_of_device on mana.sessions (device_id) where device_id is not null;

-- Whoever ends a session, and however: every hub process hears it, and refuses its tokens.
create function mana.tell_ended_session() returns trigger
  language plpgsql
  set search_path = ''
as $$
begin
  if tg_op = 'DELETE' then
    perform pg_catalog.pg_notify('mana_live', 'ended:' || old.session_id);
  elsif new.revoked then
    perform pg_catalog.pg_notify('mana_live', 'revoked:' || new.session_id);
  elsif new.ended_at is not null then
    perform pg_catalog.pg_notify('mana_live', 'ended:' || new.session_id);
  end if;
  return null;
end
$$;
create trigger tell_ended after delete or update of ended_at, revoked on mana.sessions
  for each row execute function mana.tell_ended_session();

alter table mana.devices
  add column former_signature text,
  add column revoked_at text,
  add column revocation text,
  add constraint devices_revoked check ((revoked_at is null) = (revocation is null));

-- `secret`: sealed by the hub (TOTP), or the public key of a passkey. `state`: pending ones count
-- nothing. `used`: the last TOTP step, or the passkey's counter.
create table mana.second_factors (
  factor_id text not null,
  account_id text not null references mana.accounts on delete cascade,
  kind text not null check (kind in ('totp', 'passkey')),
  name text not null,
  state text not null check (state in ('pending', 'active')),
  secret text not null,
  credential_id text,
  used bigint not null default 0,
  created_at timestamptz not null,
  used_at timestamptz,
  primary key (factor_id)
);
create index second_factors_of_account on mana.second_factors (account_id);
create unique index second_factors_credential on mana.second_factors (credential_id)
  where credential_id is not null;
create index second_factors_unfinished on mana.second_factors (created_at)
  where state = 'pending';

-- What a passkey is asked to sign, once. Without `factor_id` it is for a log-in.
create table mana.factor_challenges (
  challenge text not null,
  account_id text not null references mana.accounts on delete cascade,
  factor_id text references mana.second_factors on delete cascade,
  expires_at timestamptz not null,
  primary key (challenge)
);
create index factor_challenges_of_account on mana.factor_challenges (account_id);
create index factor_challenges_of_factor on mana.factor_challenges (factor_id);
create index factor_challenges_by_age on mana.factor_challenges (expires_at);

-- A new device that asks to be unlocked by another. A login that does not exist has no row, and
-- a ticket all the same. Once approved: what is handed over, the session that approved it, and
-- the revision of the vault at that moment.
create table mana.links (
  link_id text not null,
  account_id text not null references mana.accounts on delete cascade,
  login text not null,
  name text not null,
  ticket_hash bytea not null,
  commitment text not null,
  state text not null check (state in ('waiting', 'answered', 'revealed', 'approved', 'refused', 'taken')),
  own_nonce text,
  hpke_key text,
  device_key text,
  device_id text,
  nonce text,
  wrapped text,
  certificate json,
  session_id text,
  revision integer,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  primary key (link_id),
  check ((state = 'approved') = (wrapped is not null)),
  check ((wrapped is null) = (certificate is null))
);
create index links_of_account on mana.links (account_id);
create index links_by_age on mana.links (expires_at);

do $$
declare
  name text;
begin
  foreach name in array array['vault_statements', 'security_events', 'resets', 'second_factors',
    'factor_challenges', 'links']
  loop
    execute format('alter table mana.%I enable row level security', name);
    execute format('alter table mana.%I force row level security', name);
    execute format('create policy own on mana.%I to mana_app'
      ' using (account_id = mana.current_account()) with check (account_id = mana.current_account())',
      name);
    execute format('create policy door on mana.%I to current_user'
      ' using (current_setting(''app.door'', true) = ''open'')'
      ' with check (current_setting(''app.door'', true) = ''open'')', name);
  end loop;
end
$$;

grant select, insert on mana.vault_statements, mana.security_events to mana_app;
grant select, insert, update, delete on mana.second_factors, mana.links to mana_app;
grant select, insert, delete on mana.factor_challenges to mana_app;
grant select, delete on mana.resets to mana_app;
grant update (mode, kdf, login_hash, master_wrap, master_check, kek_wrap, kek_id, signing_key,
  hpke_key, sealed_private, revision, challenge, recovery, recovery_hash, recovery_set_at, formers,
  grants) on mana.accounts to mana_app;
grant update (signature, former_signature, revoked_at, revocation) on mana.devices to mana_app;
grant update (seen_at, name, device_id, revoked) on mana.sessions to mana_app;

-- Who replaces their public keys wraps what they hold anew, and versions that nothing counts on go.
grant update (wrapped), delete on mana.space_keys to mana_app;

-- What a member of a grant's space needs to verify it after its sealed material is erased, and
-- the signed word that it ended.
alter table mana_ai.grants
  add column wrapped_key_hash text,
  add column sealed_keys_hash text,
  add column revoker text,
  add column revocation text;
-- An active grant only ends, so what it is to be known by is written past its guard, this once.
create policy door on mana_ai.grants to current_user
  using (current_setting('app.door', true) = 'open')
  with check (current_setting('app.door', true) = 'open');
alter table mana_ai.grants disable trigger guard_grant;
update mana_ai.grants
   set wrapped_key_hash = encode(sha256(decode(wrapped_key, 'base64')), 'hex'),
       sealed_keys_hash = encode(sha256(convert_to(sealed_keys, 'UTF8')), 'hex')
 where wrapped_key is not null;
alter table mana_ai.grants enable trigger guard_grant;
alter table mana_ai.grants
  add constraint grants_revoked check ((revoker is null) = (revocation is null)
    and (revocation is null or state in ('expired', 'revoked', 'replaced')));
create index grants_ending on mana_ai.grants (expires_at) where state = 'active';
create index grants_ended on mana_ai.grants (expires_at) where state in ('revoked', 'replaced');
create index grants_pending on mana_ai.grants (created_at) where state = 'pending';

-- What has ended stays so, and no signature is replaced: the database itself says so. A grant
-- that has ended can only gain the signed word that it has.
create or replace function mana_ai.guard_grant() returns trigger language plpgsql as $$
begin
  if (new.grant_id, new.account_id, new.space_id, new.mission_id, new.agent_id, new.header,
      new.suite, new.runner_key_id, new.expires_at, new.created_at)
     is distinct from
     (old.grant_id, old.account_id, old.space_id, old.mission_id, old.agent_id, old.header,
      old.suite, old.runner_key_id, old.expires_at, old.created_at) then
    raise exception 'the scope and life of a grant do not change' using errcode = '42501';
  end if;
  if old.state <> 'pending'
     and (new.signer, new.signature, new.hub_signature, new.wrapped_key_hash,
          new.sealed_keys_hash, new.completed_at)
         is distinct from
         (old.signer, old.signature, old.hub_signature, old.wrapped_key_hash,
          old.sealed_keys_hash, old.completed_at) then
    raise exception 'the signatures of a grant do not change' using errcode = '42501';
  end if;
  if old.revocation is not null
     and (new.revoker, new.revocation) is distinct from (old.revoker, old.revocation) then
    raise exception 'the word that a grant ended does not change' using errcode = '42501';
  end if;
  if old.state in ('expired', 'revoked', 'replaced')
     and (new.state, new.ended_at, new.wrapped_key, new.sealed_keys)
         is distinct from (old.state, old.ended_at, old.wrapped_key, old.sealed_keys) then
    raise exception 'an ended grant does not change' using errcode = '42501';
  end if;
  if old.state = 'active' and new.state = 'active' and new is distinct from old
     or old.state = 'active' and new.state = 'pending' then
    raise exception 'an active grant only ends' using errcode = '42501';
  end if;
  return new;
end
$$;

-- Ends what has come to its end in any account, and tells which grants ended before theirs: ids
-- and times, so that the runner remembers them beside the database.
create function mana_ai.end_grants() returns table (grant_id text, expires_at timestamptz)
  language plpgsql volatile security definer
  set search_path = ''
as $$
#variable_conflict use_column
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana_ai.grants g
     set state = 'expired', ended_at = pg_catalog.clock_timestamp(), wrapped_key = null,
         sealed_keys = null
   where g.state = 'active' and g.expires_at <= pg_catalog.clock_timestamp();
  delete from mana_ai.grants g
   where g.state = 'pending'
     and g.created_at < pg_catalog.clock_timestamp() - interval '1 hour';
  return query
    select g.grant_id, g.expires_at from mana_ai.grants g
     where g.state in ('revoked', 'replaced') and g.expires_at > pg_catalog.clock_timestamp();
end
$$;
grant execute on function mana_ai.end_grants() to mana_runner;

-- Doors, as in 0002: before there is a session, and for the operator on the hub's own machine.
create function mana.recovery_facts(p_login_key text)
  returns table (account_id text, recovery_hash bytea)
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.recovery_hash from mana.accounts a
     where a.login_key = p_login_key and a.recovery_hash is not null;
end
$$;

-- What a refused attempt costs where there is no account whose log could tell of it.
create function mana.touch_attempts(p_login_mac bytea) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.login_attempts l set attempted_at = l.attempted_at where l.login_mac = p_login_mac;
end
$$;

-- Keep a one-time token, where the account's mode lets the hub open its master key. Returns the
-- mode, or null for an unknown login. The person reads in the log that a token was made.
create function mana.open_reset(
  p_token_hash bytea, p_login_key text, p_now timestamptz, p_expires timestamptz)
  returns text
  language plpgsql volatile security definer
  set search_path = ''
as $$
declare
  held record;
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.resets r where r.expires_at <= p_now;
  select a.account_id, a.mode into held from mana.accounts a where a.login_key = p_login_key;
  if held.mode = 'standard' then
    insert into mana.resets (token_hash, account_id, created_at, expires_at)
      values (p_token_hash, held.account_id, p_now, p_expires);
    insert into mana.security_events (account_id, at, action, ok, detail)
      values (held.account_id, p_now, 'reset', true, 'token');
  end if;
  return held.mode;
end
$$;

create function mana.reset_account(p_token_hash bytea, p_login_key text, p_now timestamptz)
  returns text
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (
    select r.account_id from mana.resets r join mana.accounts a on a.account_id = r.account_id
     where r.token_hash = p_token_hash and a.login_key = p_login_key and r.expires_at > p_now);
end
$$;

-- Wraps of master keys that do not name this KEK, a batch of them, and the new one of one account.
create function mana.kek_left(p_kek_id text) returns bigint
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (select pg_catalog.count(*) from mana.accounts a
           where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id);
end
$$;

create function mana.kek_batch(p_kek_id text, p_limit integer)
  returns table (account_id text, kek_wrap text, kek_id text)
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kek_wrap, a.kek_id from mana.accounts a
     where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id
     order by a.account_id limit p_limit for no key update;
end
$$;

create function mana.set_kek_wrap(p_account text, p_wrap text, p_kek_id text) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.accounts a set kek_wrap = p_wrap, kek_id = p_kek_id
   where a.account_id = p_account and a.kek_wrap is not null;
end
$$;

-- As before; it notes when the session was seen, writes down a token that was used twice, and
-- tells of a device that was revoked.
create or replace function mana.rotate_token(
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
  if sess.revoked then
    return query select 'revoked', null::text, null::text;
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
      insert into mana.security_events (account_id, at, action, ok, session_id, detail)
        values (held.account_id, p_now, 'session-ended', false, held.session_id, 'reused');
      return query select 'reused', null::text, null::text;
      return;
    end if;
    update mana.refresh_tokens t set replaced = true where t.parent_hash = p_old;
  else
    update mana.refresh_tokens t set used_at = p_now where t.token_hash = p_old;
  end if;
  delete from mana.refresh_tokens t
   where t.session_id = held.session_id and t.issued_at <= p_now - p_life;
  update mana.sessions s set seen_at = p_now where s.session_id = held.session_id;
  insert into mana.refresh_tokens (token_hash, session_id, account_id, parent_hash, issued_at)
    values (p_new, held.session_id, held.account_id, p_old, p_now);
  return query select 'ok', held.account_id, held.session_id;
end
$$;

-- What waited in vain goes: links, challenges, second factors that were never finished.
create function mana.sweep_waiting(p_now timestamptz) returns void
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.links l where l.expires_at <= p_now;
  delete from mana.factor_challenges c where c.expires_at <= p_now;
  delete from mana.second_factors f
   where f.state = 'pending' and f.created_at <= p_now - interval '10 minutes';
end
$$;

grant execute on function
  mana.recovery_facts(text),
  mana.sweep_waiting(timestamptz),
  mana.touch_attempts(bytea),
  mana.open_reset(bytea, text, timestamptz, timestamptz),
  mana.reset_account(bytea, text, timestamptz),
  mana.kek_left(text),
  mana.kek_batch(text, integer),
  mana.set_kek_wrap(text, text, text)
  to mana_app;
