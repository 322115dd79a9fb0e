-- The schema after all migrations, read from the catalogue. Not run by anything.
-- Write it anew with: python -m mana.hub.db.dump

create schema mana;
grant usage on schema mana to mana_app;
grant usage on schema mana to mana_runner;
create schema mana_ai;
grant usage on schema mana_ai to mana_app;
grant usage on schema mana_ai to mana_runner;
create sequence mana.security_events_number_seq as bigint;

CREATE OR REPLACE FUNCTION mana.admit_sign_up(p_demo boolean, p_invite bytea, p_invites_only boolean)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.clear_attempts(p_login_mac bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.login_attempts l where l.login_mac = p_login_mac;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.count_attempt(p_login_mac bytea, p_now timestamp with time zone, p_window interval, p_attempts_max integer)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.current_account()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.current_invitation()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.invitation', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.current_space()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.current_space', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.kek_batch(p_kek_id text, p_limit integer)
 RETURNS TABLE(account_id text, kek_wrap text, kek_id text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kek_wrap, a.kek_id from mana.accounts a
     where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id
     order by a.account_id limit p_limit for no key update;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.kek_left(p_kek_id text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (select pg_catalog.count(*) from mana.accounts a
           where a.kek_wrap is not null and a.kek_id is distinct from p_kek_id);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.login_facts(p_login_key text)
 RETURNS TABLE(account_id text, kdf jsonb, login_hash text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.kdf, a.login_hash from mana.accounts a where a.login_key = p_login_key;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.moving_space()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.moving_space', true), '') $function$;
-- execute: mana_app, mana_runner

CREATE OR REPLACE FUNCTION mana.open_reset(p_token_hash bytea, p_login_key text, p_now timestamp with time zone, p_expires timestamp with time zone)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.recovery_facts(p_login_key text)
 RETURNS TABLE(account_id text, recovery_hash bytea)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select a.account_id, a.recovery_hash from mana.accounts a
     where a.login_key = p_login_key and a.recovery_hash is not null;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.reset_account(p_token_hash bytea, p_login_key text, p_now timestamp with time zone)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return (
    select r.account_id from mana.resets r join mana.accounts a on a.account_id = r.account_id
     where r.token_hash = p_token_hash and a.login_key = p_login_key and r.expires_at > p_now);
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.rotate_token(p_old bytea, p_new bytea, p_now timestamp with time zone, p_grace interval, p_life interval)
 RETURNS TABLE(outcome text, account_id text, session_id text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.set_kek_wrap(p_account text, p_wrap text, p_kek_id text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.accounts a set kek_wrap = p_wrap, kek_id = p_kek_id
   where a.account_id = p_account and a.kek_wrap is not null;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.sweep_waiting(p_now timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  delete from mana.links l where l.expires_at <= p_now;
  delete from mana.factor_challenges c where c.expires_at <= p_now;
  delete from mana.second_factors f
   where f.state = 'pending' and f.created_at <= p_now - interval '10 minutes';
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana.tell_ended_session()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana.touch_attempts(p_login_mac bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  update mana.login_attempts l set attempted_at = l.attempted_at where l.login_mac = p_login_mac;
end
$function$;
-- execute: mana_app

CREATE OR REPLACE FUNCTION mana_ai.end_grants()
 RETURNS TABLE(grant_id text, expires_at timestamp with time zone)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
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
$function$;
-- execute: mana_runner

CREATE OR REPLACE FUNCTION mana_ai.guard_grant()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
$function$;
-- execute: the owner only

CREATE OR REPLACE FUNCTION mana_ai.keep_turn()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO ''
AS $function$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  insert into mana_ai.account_work as w (account_id, next_due)
  select q.account_id, pg_catalog.min(q.due_at) from queued q where q.state = 'queued'
   group by q.account_id order by q.account_id
  on conflict (account_id) do update
    set next_due = least(w.next_due, excluded.next_due);
  return null;
end
$function$;
-- execute: the owner only

create table mana.accounts (
  account_id text not null,
  login text not null,
  login_key text not null,
  mode text not null,
  role text not null,
  demo boolean not null,
  kdf jsonb not null,
  login_hash text not null,
  master_wrap text not null,
  master_check text not null,
  kek_wrap text,
  signing_key text not null,
  hpke_key text not null,
  sealed_private text not null,
  created_at timestamp with time zone not null,
  revision integer not null default 0,
  challenge text not null default encode((uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'::text),
  kek_id text,
  recovery jsonb,
  recovery_hash bytea,
  recovery_set_at timestamp with time zone,
  formers jsonb not null default '{"masters": [], "identities": []}'::jsonb,
  grants boolean not null,
  constraint accounts_pkey PRIMARY KEY (account_id),
  constraint accounts_check CHECK (((mode = 'standard'::text) = (kek_wrap IS NOT NULL))),
  constraint accounts_login UNIQUE (login_key),
  constraint accounts_mode_check CHECK ((mode = ANY (ARRAY['standard'::text, 'zero-knowledge'::text]))),
  constraint accounts_recovery CHECK ((((recovery IS NULL) = (recovery_hash IS NULL)) AND ((recovery IS NULL) = (recovery_set_at IS NULL)))),
  constraint accounts_revision_check CHECK ((revision >= 0)),
  constraint accounts_role_check CHECK ((role = ANY (ARRAY['administrator'::text, 'member'::text])))
);
alter table mana.accounts enable row level security;
alter table mana.accounts force row level security;
create policy door on mana.accounts as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.accounts as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update(mode), update(kdf), update(login_hash), update(master_wrap), update(master_check), update(kek_wrap), update(signing_key), update(hpke_key), update(sealed_private), update(revision), update(challenge), update(kek_id), update(recovery), update(recovery_hash), update(recovery_set_at), update(formers), update(grants) on mana.accounts to mana_app;
grant select(account_id), select(mode), select(role), select(signing_key), select(hpke_key) on mana.accounts to mana_runner;

create table mana.departures (
  account_id text not null,
  space_id text not null,
  log jsonb not null,
  departed_at timestamp with time zone not null,
  constraint departures_pkey PRIMARY KEY (account_id, space_id),
  constraint departures_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX departures_of_space ON mana.departures USING btree (space_id);
alter table mana.departures enable row level security;
alter table mana.departures force row level security;
create policy goes on mana.departures as permissive for insert to mana_app with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = departures.space_id) AND (departures.account_id = ANY (s.members))))));
create policy moving on mana.departures as permissive for select to mana_app using ((space_id = mana.moving_space()));
create policy own on mana.departures as permissive for select to mana_app using ((account_id = mana.current_account()));
create policy returns on mana.departures as permissive for delete to mana_app using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = departures.space_id) AND (departures.account_id = ANY (s.members))))));
grant delete, insert, select on mana.departures to mana_app;

create table mana.devices (
  device_id text not null,
  account_id text not null,
  public_key text not null,
  created_at text not null,
  signature text not null,
  registered_at timestamp with time zone not null,
  former_signature text,
  revoked_at text,
  revocation text,
  constraint devices_pkey PRIMARY KEY (device_id),
  constraint devices_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint devices_revoked CHECK (((revoked_at IS NULL) = (revocation IS NULL)))
);
CREATE INDEX devices_of_account ON mana.devices USING btree (account_id);
alter table mana.devices enable row level security;
alter table mana.devices force row level security;
create policy own on mana.devices as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
create policy shared on mana.devices as permissive for select to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE (m.account_id = devices.account_id))));
grant insert, select, update(signature), update(former_signature), update(revoked_at), update(revocation) on mana.devices to mana_app;
grant select on mana.devices to mana_runner;

create table mana.factor_challenges (
  challenge text not null,
  account_id text not null,
  factor_id text,
  expires_at timestamp with time zone not null,
  constraint factor_challenges_pkey PRIMARY KEY (challenge),
  constraint factor_challenges_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint factor_challenges_factor_id_fkey FOREIGN KEY (factor_id) REFERENCES mana.second_factors(factor_id) ON DELETE CASCADE
);
CREATE INDEX factor_challenges_by_age ON mana.factor_challenges USING btree (expires_at);
CREATE INDEX factor_challenges_of_account ON mana.factor_challenges USING btree (account_id);
CREATE INDEX factor_challenges_of_factor ON mana.factor_challenges USING btree (factor_id);
alter table mana.factor_challenges enable row level security;
alter table mana.factor_challenges force row level security;
create policy door on mana.factor_challenges as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.factor_challenges as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select on mana.factor_challenges to mana_app;

create table mana.hidden_records (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  seq bigint not null,
  constraint hidden_records_pkey PRIMARY KEY (space_id, table_name, record_id),
  constraint hidden_records_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX hidden_records_of_space ON mana.hidden_records USING btree (space_id, seq);
alter table mana.hidden_records enable row level security;
alter table mana.hidden_records force row level security;
create policy hides on mana.hidden_records as permissive for insert to mana_app with check (((author_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id))) AND (EXISTS ( SELECT
   FROM mana.records r
  WHERE ((r.space_id = hidden_records.space_id) AND (r.table_name = hidden_records.table_name) AND (r.record_id = hidden_records.record_id) AND (r.author_id = mana.current_account()) AND (r.visibility = 'private'::text))))));
create policy member on mana.hidden_records as permissive for select to mana_app, mana_runner using (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id)))));
create policy shows on mana.hidden_records as permissive for delete to mana_app using (((author_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = hidden_records.space_id)))));
grant delete, insert, select on mana.hidden_records to mana_app;
grant select on mana.hidden_records to mana_runner;

create table mana.invitations (
  invitation_id text not null,
  space_id text not null,
  role text not null,
  token_hash text not null,
  created_by text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  account_id text,
  signing_key text,
  hpke_key text,
  mac text,
  joined boolean not null default false,
  withdrawn boolean not null default false,
  constraint invitations_pkey PRIMARY KEY (invitation_id),
  constraint invitations_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint invitations_check CHECK ((((account_id IS NULL) = (mac IS NULL)) AND ((account_id IS NULL) = (signing_key IS NULL)) AND ((account_id IS NULL) = (hpke_key IS NULL)))),
  constraint invitations_check1 CHECK (((NOT joined) OR (account_id IS NOT NULL))),
  constraint invitations_created_by_fkey FOREIGN KEY (created_by) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint invitations_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'member'::text, 'viewer'::text]))),
  constraint invitations_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint invitations_token UNIQUE (token_hash)
);
CREATE INDEX invitations_of_account ON mana.invitations USING btree (account_id);
CREATE INDEX invitations_of_creator ON mana.invitations USING btree (created_by);
CREATE INDEX invitations_of_space ON mana.invitations USING btree (space_id, created_at DESC);
alter table mana.invitations enable row level security;
alter table mana.invitations force row level security;
create policy accepted on mana.invitations as permissive for select to mana_app using ((account_id = mana.current_account()));
create policy accepts on mana.invitations as permissive for update to mana_app using (((token_hash = mana.current_invitation()) AND (NOT withdrawn) AND (NOT joined) AND ((account_id IS NULL) OR (account_id = mana.current_account())))) with check (((token_hash = mana.current_invitation()) AND (NOT withdrawn) AND (NOT joined) AND (account_id = mana.current_account())));
create policy bearer on mana.invitations as permissive for select to mana_app using ((token_hash = mana.current_invitation()));
create policy managers on mana.invitations as permissive for all to mana_app using ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE ((m.space_id = invitations.space_id) AND (m.account_id = mana.current_account()) AND (m.role = ANY (ARRAY['owner'::text, 'admin'::text])))))) with check ((EXISTS ( SELECT
   FROM mana.memberships m
  WHERE ((m.space_id = invitations.space_id) AND (m.account_id = mana.current_account()) AND (m.role = ANY (ARRAY['owner'::text, 'admin'::text]))))));
grant delete, insert, select, update(account_id), update(signing_key), update(hpke_key), update(mac), update(joined), update(withdrawn) on mana.invitations to mana_app;

create table mana.invites (
  invite_hash bytea not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint invites_pkey PRIMARY KEY (invite_hash),
  constraint invites_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX invites_of_account ON mana.invites USING btree (account_id);
alter table mana.invites enable row level security;
alter table mana.invites force row level security;
create policy door on mana.invites as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.invites as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert on mana.invites to mana_app;

create table mana.links (
  link_id text not null,
  account_id text not null,
  login text not null,
  name text not null,
  ticket_hash bytea not null,
  commitment text not null,
  state text not null,
  own_nonce text,
  hpke_key text,
  device_key text,
  device_id text,
  nonce text,
  wrapped text,
  certificate json,
  session_id text,
  revision integer,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint links_pkey PRIMARY KEY (link_id),
  constraint links_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint links_check CHECK (((state = 'approved'::text) = (wrapped IS NOT NULL))),
  constraint links_check1 CHECK (((wrapped IS NULL) = (certificate IS NULL))),
  constraint links_state_check CHECK ((state = ANY (ARRAY['waiting'::text, 'answered'::text, 'revealed'::text, 'approved'::text, 'refused'::text, 'taken'::text])))
);
CREATE INDEX links_by_age ON mana.links USING btree (expires_at);
CREATE INDEX links_of_account ON mana.links USING btree (account_id);
alter table mana.links enable row level security;
alter table mana.links force row level security;
create policy door on mana.links as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.links as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update on mana.links to mana_app;

create table mana.login_attempts (
  login_mac bytea not null,
  attempted_at timestamp with time zone not null
);
CREATE INDEX login_attempts_by_age ON mana.login_attempts USING btree (attempted_at);
CREATE INDEX login_attempts_of_login ON mana.login_attempts USING btree (login_mac, attempted_at);
alter table mana.login_attempts enable row level security;
alter table mana.login_attempts force row level security;
create policy door on mana.login_attempts as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));

create table mana.membership_entries (
  space_id text not null,
  number integer not null,
  entry jsonb not null,
  signature text not null,
  hash text not null,
  constraint membership_entries_pkey PRIMARY KEY (space_id, number),
  constraint membership_entries_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana.membership_entries enable row level security;
alter table mana.membership_entries force row level security;
create policy member on mana.membership_entries as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = membership_entries.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = membership_entries.space_id))));
grant insert, select on mana.membership_entries to mana_app;
grant select on mana.membership_entries to mana_runner;

create table mana.memberships (
  space_id text not null,
  account_id text not null,
  role text not null,
  constraint memberships_pkey PRIMARY KEY (space_id, account_id),
  constraint memberships_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint memberships_role_check CHECK ((role = ANY (ARRAY['owner'::text, 'admin'::text, 'member'::text, 'viewer'::text]))),
  constraint memberships_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX memberships_of_account ON mana.memberships USING btree (account_id);
alter table mana.memberships enable row level security;
alter table mana.memberships force row level security;
create policy member on mana.memberships as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = memberships.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = memberships.space_id) AND (memberships.account_id = ANY (s.members))))));
grant delete, insert, select, update(role) on mana.memberships to mana_app;
grant select on mana.memberships to mana_runner;

create table mana.migrations (
  number integer not null,
  name text not null,
  checksum text not null,
  applied_at timestamp with time zone not null default now(),
  constraint migrations_pkey PRIMARY KEY (number)
);

create table mana.records (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  visibility text not null,
  fields json not null,
  proofs json not null,
  seq bigint not null,
  deleted boolean not null,
  constraint records_pkey PRIMARY KEY (space_id, table_name, record_id),
  constraint records_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint records_visibility_check CHECK ((visibility = ANY (ARRAY['space'::text, 'private'::text])))
);
alter table mana.records enable row level security;
alter table mana.records force row level security;
create policy member on mana.records as permissive for all to mana_app, mana_runner using ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = records.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account())))) with check ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = records.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account()))));
grant insert, select, update(visibility), update(fields), update(proofs), update(seq), update(deleted) on mana.records to mana_app;
grant insert, select, update(fields), update(proofs), update(seq), update(deleted) on mana.records to mana_runner;

create table mana.refresh_tokens (
  token_hash bytea not null,
  session_id text not null,
  account_id text not null,
  parent_hash bytea,
  issued_at timestamp with time zone not null,
  used_at timestamp with time zone,
  replaced boolean not null default false,
  constraint refresh_tokens_pkey PRIMARY KEY (token_hash),
  constraint refresh_tokens_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES mana.sessions(session_id) ON DELETE CASCADE
);
CREATE INDEX refresh_tokens_of_account ON mana.refresh_tokens USING btree (account_id);
CREATE INDEX refresh_tokens_of_session ON mana.refresh_tokens USING btree (session_id);
alter table mana.refresh_tokens enable row level security;
alter table mana.refresh_tokens force row level security;
create policy door on mana.refresh_tokens as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.refresh_tokens as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert on mana.refresh_tokens to mana_app;

create table mana.resets (
  token_hash bytea not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  constraint resets_pkey PRIMARY KEY (token_hash),
  constraint resets_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX resets_of_account ON mana.resets USING btree (account_id);
alter table mana.resets enable row level security;
alter table mana.resets force row level security;
create policy door on mana.resets as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.resets as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, select on mana.resets to mana_app;

create table mana.second_factors (
  factor_id text not null,
  account_id text not null,
  kind text not null,
  name text not null,
  state text not null,
  secret text not null,
  credential_id text,
  used bigint not null default 0,
  created_at timestamp with time zone not null,
  used_at timestamp with time zone,
  constraint second_factors_pkey PRIMARY KEY (factor_id),
  constraint second_factors_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint second_factors_kind_check CHECK ((kind = ANY (ARRAY['totp'::text, 'passkey'::text]))),
  constraint second_factors_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'active'::text])))
);
CREATE INDEX second_factors_of_account ON mana.second_factors USING btree (account_id);
CREATE INDEX second_factors_unfinished ON mana.second_factors USING btree (created_at) WHERE (state = 'pending'::text);
CREATE UNIQUE INDEX second_factors_credential ON mana.second_factors USING btree (credential_id) WHERE (credential_id IS NOT NULL);
alter table mana.second_factors enable row level security;
alter table mana.second_factors force row level security;
create policy door on mana.second_factors as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.second_factors as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant delete, insert, select, update on mana.second_factors to mana_app;

create table mana.security_events (
  account_id text not null,
  number bigint not null generated always as identity,
  at timestamp with time zone not null,
  action text not null,
  ok boolean not null,
  session_id text,
  detail text not null default ''::text,
  constraint security_events_pkey PRIMARY KEY (account_id, number),
  constraint security_events_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX security_events_by_time ON mana.security_events USING btree (account_id, at);
alter table mana.security_events enable row level security;
alter table mana.security_events force row level security;
create policy door on mana.security_events as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.security_events as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert, select on mana.security_events to mana_app;

create table mana.sessions (
  session_id text not null,
  account_id text not null,
  created_at timestamp with time zone not null,
  ended_at timestamp with time zone,
  seen_at timestamp with time zone,
  name text not null default ''::text,
  device_id text,
  revoked boolean not null default false,
  constraint sessions_pkey PRIMARY KEY (session_id),
  constraint sessions_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
CREATE INDEX sessions_of_account ON mana.sessions USING btree (account_id);
CREATE INDEX sessions_of_device ON mana.sessions USING btree (device_id) WHERE (device_id IS NOT NULL);
alter table mana.sessions enable row level security;
alter table mana.sessions force row level security;
create policy door on mana.sessions as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.sessions as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
CREATE TRIGGER tell_ended AFTER DELETE OR UPDATE OF ended_at, revoked ON mana.sessions FOR EACH ROW EXECUTE FUNCTION mana.tell_ended_session();
grant insert, select, update(ended_at), update(seen_at), update(name), update(device_id), update(revoked) on mana.sessions to mana_app;

create table mana.space_heads (
  space_id text not null,
  seq bigint not null,
  constraint space_heads_pkey PRIMARY KEY (space_id),
  constraint space_heads_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana.space_heads enable row level security;
alter table mana.space_heads force row level security;
create policy member on mana.space_heads as permissive for all to mana_app, mana_runner using (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_heads.space_id))))) with check (((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_heads.space_id)))));
grant insert, select, update(seq) on mana.space_heads to mana_app;
grant select, update(seq) on mana.space_heads to mana_runner;

create table mana.space_keys (
  space_id text not null,
  account_id text not null,
  kind text not null,
  version integer not null,
  wrapped text not null,
  member_id text generated always as (
CASE
    WHEN (kind = 's'::text) THEN account_id
    ELSE NULL::text
END) stored,
  constraint space_keys_pkey PRIMARY KEY (space_id, account_id, kind, version),
  constraint space_keys_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint space_keys_kind_check CHECK ((kind = ANY (ARRAY['s'::text, 'p'::text]))),
  constraint space_keys_of_members FOREIGN KEY (space_id, member_id) REFERENCES mana.memberships(space_id, account_id) ON DELETE CASCADE,
  constraint space_keys_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint space_keys_version_check CHECK ((version > 0))
);
CREATE INDEX space_keys_of_account ON mana.space_keys USING btree (account_id);
CREATE INDEX space_keys_of_member ON mana.space_keys USING btree (space_id, member_id);
alter table mana.space_keys enable row level security;
alter table mana.space_keys force row level security;
create policy own on mana.space_keys as permissive for all to mana_app using ((account_id = mana.current_account())) with check (((account_id = mana.current_account()) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = space_keys.space_id)))));
create policy wraps on mana.space_keys as permissive for insert to mana_app with check (((kind = 's'::text) AND (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE ((s.space_id = space_keys.space_id) AND (space_keys.account_id = ANY (s.members)))))));
grant delete, insert, select, update(wrapped) on mana.space_keys to mana_app;

create table mana.spaces (
  space_id text not null,
  type text not null,
  members text[] not null,
  key_version integer not null,
  created_at timestamp with time zone not null,
  constraint spaces_pkey PRIMARY KEY (space_id)
);
alter table mana.spaces enable row level security;
alter table mana.spaces force row level security;
create policy member on mana.spaces as permissive for all to mana_app, mana_runner using ((mana.current_account() = ANY (members))) with check ((mana.current_account() = ANY (members)));
create policy parting on mana.spaces as permissive for select to mana_app using (((space_id = mana.moving_space()) AND (EXISTS ( SELECT
   FROM mana.departures d
  WHERE ((d.space_id = spaces.space_id) AND (d.account_id = mana.current_account()))))));
create policy parting_write on mana.spaces as permissive for update to mana_app using ((mana.current_account() = ANY (members))) with check (((space_id = mana.moving_space()) AND (EXISTS ( SELECT
   FROM mana.departures d
  WHERE ((d.space_id = spaces.space_id) AND (d.account_id = mana.current_account()))))));
grant delete, insert, select, update(members), update(key_version) on mana.spaces to mana_app;
grant select on mana.spaces to mana_runner;

create table mana.sync_changes (
  space_id text not null,
  seq bigint not null,
  change_id text not null,
  app_id text not null,
  table_name text not null,
  record_id text not null,
  user_id text not null,
  author_id text not null,
  visibility text not null,
  op text not null,
  data json not null,
  field_meta json not null,
  client_id text not null,
  created_at timestamp with time zone not null,
  schema_version integer not null default 1,
  actor json not null,
  origin text not null,
  group_id text,
  guards json,
  signature json,
  seen bigint,
  constraint sync_changes_pkey PRIMARY KEY (space_id, seq),
  constraint sync_changes_once UNIQUE (space_id, change_id, user_id),
  constraint sync_changes_op_check CHECK ((op = ANY (ARRAY['insert'::text, 'update'::text, 'delete'::text, 'reseal'::text, 'flip'::text]))),
  constraint sync_changes_origin_check CHECK ((origin = ANY (ARRAY['user'::text, 'agent'::text, 'system'::text, 'migration'::text]))),
  constraint sync_changes_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint sync_changes_visibility_check CHECK ((visibility = ANY (ARRAY['space'::text, 'private'::text])))
);
alter table mana.sync_changes enable row level security;
alter table mana.sync_changes force row level security;
create policy member on mana.sync_changes as permissive for select to mana_app, mana_runner using ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = sync_changes.space_id)))) AND ((user_id = mana.current_account()) OR (((visibility = 'space'::text) OR (author_id = mana.current_account())) AND (NOT (EXISTS ( SELECT
   FROM mana.hidden_records h
  WHERE ((h.space_id = sync_changes.space_id) AND (h.table_name = sync_changes.table_name) AND (h.record_id = sync_changes.record_id) AND (h.author_id <> mana.current_account())))))))));
create policy writer on mana.sync_changes as permissive for insert to mana_app, mana_runner with check ((((space_id = ( SELECT s.space_id
   FROM mana.spaces s
  WHERE (s.space_id = mana.current_space()))) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = sync_changes.space_id)))) AND ((visibility = 'space'::text) OR (author_id = mana.current_account())) AND (user_id = mana.current_account())));
grant insert, select on mana.sync_changes to mana_app;
grant insert, select on mana.sync_changes to mana_runner;

create table mana.vault_statements (
  account_id text not null,
  revision integer not null,
  statement json not null,
  signature text not null,
  own_signature text,
  constraint vault_statements_pkey PRIMARY KEY (account_id, revision),
  constraint vault_statements_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint vault_statements_revision_check CHECK ((revision > 0))
);
alter table mana.vault_statements enable row level security;
alter table mana.vault_statements force row level security;
create policy door on mana.vault_statements as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana.vault_statements as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant insert, select on mana.vault_statements to mana_app;

create table mana_ai.account_work (
  account_id text not null,
  next_due timestamp with time zone,
  served_at timestamp with time zone not null default '-infinity'::timestamp with time zone,
  stopped_at timestamp with time zone,
  tokens_per_day_max bigint,
  cost_per_day_max bigint,
  constraint account_work_pkey PRIMARY KEY (account_id),
  constraint account_work_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint account_work_cost_per_day_max_check CHECK ((cost_per_day_max >= 0)),
  constraint account_work_tokens_per_day_max_check CHECK ((tokens_per_day_max >= 0))
);
CREATE INDEX account_work_due ON mana_ai.account_work USING btree (next_due) WHERE (stopped_at IS NULL);
alter table mana_ai.account_work enable row level security;
alter table mana_ai.account_work force row level security;
create policy door on mana_ai.account_work as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy own on mana_ai.account_work as permissive for all to mana_app using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
create policy runner_turns on mana_ai.account_work as permissive for all to mana_runner using (true) with check (true);
grant insert, select, update on mana_ai.account_work to mana_app;
grant insert, select, update on mana_ai.account_work to mana_runner;

create table mana_ai.agent_snapshots (
  space_id text not null,
  agent_id text not null,
  account_id text not null,
  state text not null,
  max_tokens_per_day bigint,
  max_concurrent_missions integer not null,
  deleted boolean not null,
  max_cost_per_day bigint,
  constraint agent_snapshots_pkey PRIMARY KEY (space_id, agent_id),
  constraint agent_snapshots_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
alter table mana_ai.agent_snapshots enable row level security;
alter table mana_ai.agent_snapshots force row level security;
create policy members on mana_ai.agent_snapshots as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = agent_snapshots.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = agent_snapshots.space_id))));
grant delete, insert, select, update on mana_ai.agent_snapshots to mana_app;
grant select on mana_ai.agent_snapshots to mana_runner;

create table mana_ai.audit_heads (
  account_id text not null,
  seq bigint not null,
  hash text not null,
  constraint audit_heads_pkey PRIMARY KEY (account_id),
  constraint audit_heads_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE
);
alter table mana_ai.audit_heads enable row level security;
alter table mana_ai.audit_heads force row level security;
create policy own on mana_ai.audit_heads as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant select on mana_ai.audit_heads to mana_app;
grant insert, select, update(seq), update(hash) on mana_ai.audit_heads to mana_runner;

create table mana_ai.decrypt_audit (
  account_id text not null,
  seq bigint not null,
  mission_id text not null,
  iteration_id text,
  grant_id text,
  table_name text not null,
  record_id text not null,
  status text not null,
  reason text,
  endpoint text,
  runner_key_id text not null,
  ts text not null,
  previous text not null,
  hash text not null,
  constraint decrypt_audit_pkey PRIMARY KEY (account_id, seq),
  constraint decrypt_audit_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint decrypt_audit_seq_check CHECK ((seq > 0)),
  constraint decrypt_audit_status_check CHECK ((status = ANY (ARRAY['ok'::text, 'failed'::text, 'scope-violation'::text, 'revoked'::text])))
);
CREATE INDEX decrypt_audit_mission ON mana_ai.decrypt_audit USING btree (account_id, mission_id, seq DESC);
alter table mana_ai.decrypt_audit enable row level security;
alter table mana_ai.decrypt_audit force row level security;
create policy own on mana_ai.decrypt_audit as permissive for all to mana_app, mana_runner using ((account_id = mana.current_account())) with check ((account_id = mana.current_account()));
grant select on mana_ai.decrypt_audit to mana_app;
grant insert, select on mana_ai.decrypt_audit to mana_runner;

create table mana_ai.grants (
  grant_id text not null,
  account_id text not null,
  space_id text not null,
  mission_id text not null,
  agent_id text not null,
  header text not null,
  suite text not null,
  runner_key_id text not null,
  expires_at timestamp with time zone not null,
  state text not null default 'pending'::text,
  wrapped_key text,
  sealed_keys text,
  signer text,
  signature text,
  hub_signature text,
  created_at timestamp with time zone not null default clock_timestamp(),
  completed_at timestamp with time zone,
  ended_at timestamp with time zone,
  wrapped_key_hash text,
  sealed_keys_hash text,
  revoker text,
  revocation text,
  constraint grants_pkey PRIMARY KEY (grant_id),
  constraint grants_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint grants_check CHECK (((state = 'active'::text) = ((sealed_keys IS NOT NULL) AND (wrapped_key IS NOT NULL)))),
  constraint grants_check1 CHECK (((state = ANY (ARRAY['expired'::text, 'revoked'::text, 'replaced'::text])) = (ended_at IS NOT NULL))),
  constraint grants_revoked CHECK ((((revoker IS NULL) = (revocation IS NULL)) AND ((revocation IS NULL) OR (state = ANY (ARRAY['expired'::text, 'revoked'::text, 'replaced'::text]))))),
  constraint grants_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint grants_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'active'::text, 'expired'::text, 'revoked'::text, 'replaced'::text])))
);
CREATE INDEX grants_account ON mana_ai.grants USING btree (account_id, created_at DESC);
CREATE INDEX grants_ended ON mana_ai.grants USING btree (expires_at) WHERE (state = ANY (ARRAY['revoked'::text, 'replaced'::text]));
CREATE INDEX grants_ending ON mana_ai.grants USING btree (expires_at) WHERE (state = 'active'::text);
CREATE INDEX grants_mission ON mana_ai.grants USING btree (space_id, mission_id, created_at DESC);
CREATE INDEX grants_pending ON mana_ai.grants USING btree (created_at) WHERE (state = 'pending'::text);
CREATE UNIQUE INDEX grants_active ON mana_ai.grants USING btree (space_id, mission_id) WHERE (state = 'active'::text);
alter table mana_ai.grants enable row level security;
alter table mana_ai.grants force row level security;
create policy door on mana_ai.grants as permissive for all to postgres using ((current_setting('app.door'::text, true) = 'open'::text)) with check ((current_setting('app.door'::text, true) = 'open'::text));
create policy members on mana_ai.grants as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = grants.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = grants.space_id))));
create policy pending_goes on mana_ai.grants as restrictive for delete to mana_app using (((state = 'pending'::text) AND (account_id = mana.current_account())));
CREATE TRIGGER guard_grant BEFORE UPDATE ON mana_ai.grants FOR EACH ROW EXECUTE FUNCTION mana_ai.guard_grant();
grant delete, insert, select, update on mana_ai.grants to mana_app;
grant select, update(state), update(wrapped_key), update(sealed_keys), update(ended_at) on mana_ai.grants to mana_runner;

create table mana_ai.hub_limits (
  one boolean not null default true,
  stopped_at timestamp with time zone,
  runs_max integer not null default 64,
  runs_per_account_max integer not null default 16,
  jitter_ms integer not null default 10000,
  tokens_per_day_max bigint,
  cost_per_day_max bigint,
  account_tokens_per_day_max bigint,
  account_cost_per_day_max bigint,
  constraint hub_limits_pkey PRIMARY KEY (one),
  constraint hub_limits_account_cost_per_day_max_check CHECK ((account_cost_per_day_max >= 0)),
  constraint hub_limits_account_tokens_per_day_max_check CHECK ((account_tokens_per_day_max >= 0)),
  constraint hub_limits_cost_per_day_max_check CHECK ((cost_per_day_max >= 0)),
  constraint hub_limits_jitter_ms_check CHECK (((jitter_ms >= 0) AND (jitter_ms <= 3600000))),
  constraint hub_limits_one_check CHECK (one),
  constraint hub_limits_runs_max_check CHECK (((runs_max >= 1) AND (runs_max <= 10000))),
  constraint hub_limits_runs_per_account_max_check CHECK (((runs_per_account_max >= 1) AND (runs_per_account_max <= 10000))),
  constraint hub_limits_tokens_per_day_max_check CHECK ((tokens_per_day_max >= 0))
);
grant select on mana_ai.hub_limits to mana_app;
grant select on mana_ai.hub_limits to mana_runner;

create table mana_ai.hub_spend (
  hour timestamp with time zone not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  constraint hub_spend_pkey PRIMARY KEY (hour)
);
grant select on mana_ai.hub_spend to mana_app;
grant insert, select, update on mana_ai.hub_spend to mana_runner;

create table mana_ai.mission_snapshots (
  space_id text not null,
  mission_id text not null,
  account_id text not null,
  state text not null,
  cadence jsonb,
  time_zone text not null,
  agent_id text,
  runs_on text not null,
  anchor_ms bigint,
  deleted boolean not null,
  next_run_at timestamp with time zone,
  hold text,
  if_missed text not null default 'once'::text,
  max_tokens_per_day bigint,
  max_cost_per_day bigint,
  failures integer not null default 0,
  failure text,
  constraint mission_snapshots_pkey PRIMARY KEY (space_id, mission_id),
  constraint mission_snapshots_hold_check CHECK ((hold = ANY (ARRAY['no-grant'::text, 'expired'::text, 'revoked'::text, 'errored'::text]))),
  constraint mission_snapshots_if_missed_check CHECK ((if_missed = ANY (ARRAY['once'::text, 'skip'::text, 'all'::text]))),
  constraint mission_snapshots_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX mission_snapshots_agent ON mana_ai.mission_snapshots USING btree (space_id, agent_id);
alter table mana_ai.mission_snapshots enable row level security;
alter table mana_ai.mission_snapshots force row level security;
create policy members on mana_ai.mission_snapshots as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = mission_snapshots.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = mission_snapshots.space_id))));
grant delete, insert, select, update on mana_ai.mission_snapshots to mana_app;
grant select, update(account_id), update(next_run_at), update(hold), update(failures), update(failure) on mana_ai.mission_snapshots to mana_runner;

create table mana_ai.occurrences (
  occurrence_id text not null default (gen_random_uuid())::text,
  space_id text not null,
  mission_id text not null,
  account_id text not null,
  agent_id text,
  scheduled_for timestamp with time zone not null,
  kind text not null,
  state text not null,
  reason text,
  due_at timestamp with time zone not null,
  lease_until timestamp with time zone,
  fence integer not null default 0,
  attempts integer not null default 0,
  worker text,
  admitted boolean not null default false,
  phase text,
  iteration_id text,
  tokens bigint not null default 0,
  started_at timestamp with time zone,
  finished_at timestamp with time zone,
  tries integer not null default 0,
  last_reason text,
  stop boolean not null default false,
  cost bigint not null default 0,
  round integer not null default 0,
  calls integer not null default 0,
  steps integer not null default 0,
  heard bigint not null default 0,
  constraint occurrences_pkey PRIMARY KEY (occurrence_id),
  constraint occurrences_kind_check CHECK ((kind = ANY (ARRAY['scheduled'::text, 'manual'::text, 'change'::text]))),
  constraint occurrences_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE,
  constraint occurrences_space_id_mission_id_scheduled_for_key UNIQUE (space_id, mission_id, scheduled_for),
  constraint occurrences_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'leased'::text, 'done'::text, 'skipped'::text, 'failed'::text, 'missed'::text])))
);
CREATE INDEX occurrences_leased ON mana_ai.occurrences USING btree (lease_until) WHERE (state = 'leased'::text);
CREATE INDEX occurrences_ledger ON mana_ai.occurrences USING btree (space_id, mission_id, scheduled_for DESC);
CREATE INDEX occurrences_queue ON mana_ai.occurrences USING btree (account_id, due_at) WHERE (state = 'queued'::text);
CREATE INDEX occurrences_working ON mana_ai.occurrences USING btree (account_id) WHERE (state = 'leased'::text);
alter table mana_ai.occurrences enable row level security;
alter table mana_ai.occurrences force row level security;
create policy members on mana_ai.occurrences as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = occurrences.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = occurrences.space_id))));
create policy runner_finds on mana_ai.occurrences as permissive for select to mana_runner using (true);
create policy runner_leases on mana_ai.occurrences as permissive for update to mana_runner using (true) with check (true);
CREATE TRIGGER keep_turn_of_changed AFTER UPDATE ON mana_ai.occurrences REFERENCING NEW TABLE AS queued FOR EACH STATEMENT EXECUTE FUNCTION mana_ai.keep_turn();
CREATE TRIGGER keep_turn_of_new AFTER INSERT ON mana_ai.occurrences REFERENCING NEW TABLE AS queued FOR EACH STATEMENT EXECUTE FUNCTION mana_ai.keep_turn();
grant delete, insert, select, update(account_id), update(due_at), update(stop) on mana_ai.occurrences to mana_app;
grant delete, insert, select, update(state), update(reason), update(due_at), update(lease_until), update(fence), update(attempts), update(worker), update(admitted), update(phase), update(iteration_id), update(tokens), update(started_at), update(finished_at), update(tries), update(last_reason), update(stop), update(cost), update(round), update(calls), update(steps), update(heard) on mana_ai.occurrences to mana_runner;

create table mana_ai.spend (
  scope text not null,
  space_id text not null default ''::text,
  id text not null,
  account_id text not null,
  hour timestamp with time zone not null,
  tokens bigint not null default 0,
  cost bigint not null default 0,
  calls bigint not null default 0,
  constraint spend_pkey PRIMARY KEY (scope, space_id, id, account_id, hour),
  constraint spend_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint spend_scope_check CHECK ((scope = ANY (ARRAY['mission'::text, 'agent'::text, 'account'::text])))
);
alter table mana_ai.spend enable row level security;
alter table mana_ai.spend force row level security;
create policy members on mana_ai.spend as permissive for all to mana_app, mana_runner using (((account_id = mana.current_account()) OR (EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = spend.space_id))))) with check ((account_id = mana.current_account()));
grant insert, select, update on mana_ai.spend to mana_app;
grant insert, select, update on mana_ai.spend to mana_runner;

create table mana_ai.token_usage (
  usage_id text not null default (gen_random_uuid())::text,
  account_id text not null,
  space_id text not null,
  agent_id text not null,
  mission_id text not null,
  occurrence_id text not null,
  reserved bigint not null,
  prompt_tokens bigint,
  completion_tokens bigint,
  spent bigint not null,
  ts timestamp with time zone not null default clock_timestamp(),
  settled_at timestamp with time zone,
  endpoint text not null default ''::text,
  model text not null default ''::text,
  purpose text not null default 'plan'::text,
  reserved_cost bigint not null default 0,
  cost bigint not null default 0,
  prompt_price bigint,
  completion_price bigint,
  constraint token_usage_pkey PRIMARY KEY (usage_id),
  constraint token_usage_account_id_fkey FOREIGN KEY (account_id) REFERENCES mana.accounts(account_id) ON DELETE CASCADE,
  constraint token_usage_purpose_check CHECK ((purpose = ANY (ARRAY['plan'::text, 'sub-agent'::text, 'compaction'::text]))),
  constraint token_usage_reserved_check CHECK ((reserved >= 0)),
  constraint token_usage_reserved_cost_check CHECK ((reserved_cost >= 0)),
  constraint token_usage_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX token_usage_account ON mana_ai.token_usage USING btree (account_id, ts DESC);
CREATE INDEX token_usage_agent ON mana_ai.token_usage USING btree (space_id, agent_id, ts DESC);
alter table mana_ai.token_usage enable row level security;
alter table mana_ai.token_usage force row level security;
create policy members on mana_ai.token_usage as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = token_usage.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = token_usage.space_id))));
grant select on mana_ai.token_usage to mana_app;
grant insert, select, update(prompt_tokens), update(completion_tokens), update(spent), update(settled_at), update(reserved_cost), update(cost) on mana_ai.token_usage to mana_runner;

create table mana_ai.watched (
  space_id text not null,
  table_name text not null,
  record_id text not null,
  mission_id text not null,
  constraint watched_pkey PRIMARY KEY (space_id, table_name, record_id, mission_id),
  constraint watched_space_id_fkey FOREIGN KEY (space_id) REFERENCES mana.spaces(space_id) ON DELETE CASCADE
);
CREATE INDEX watched_mission ON mana_ai.watched USING btree (space_id, mission_id);
alter table mana_ai.watched enable row level security;
alter table mana_ai.watched force row level security;
create policy members on mana_ai.watched as permissive for all to mana_app, mana_runner using ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = watched.space_id)))) with check ((EXISTS ( SELECT
   FROM mana.spaces s
  WHERE (s.space_id = watched.space_id))));
grant delete, insert, select on mana_ai.watched to mana_app;
grant select on mana_ai.watched to mana_runner;
