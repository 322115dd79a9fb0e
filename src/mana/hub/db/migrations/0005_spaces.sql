-- Shared spaces: a membership that changes, invitations, and what is left of a space to who left.
--
-- Who may do what is decided by the membership log before a statement is sent; the policies say
-- which rows a transaction can touch at all. Whoever removes a member may write for them only
-- what their going needs.

create table mana.invitations (
  invitation_id text not null,
  space_id text not null references mana.spaces on delete cascade,
  role text not null check (role in ('admin', 'member', 'viewer')),
  token_hash text not null,
  created_by text not null references mana.accounts on delete cascade,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  account_id text references mana.accounts on delete cascade,
  signing_key text,
  hpke_key text,
  mac text,
  joined boolean not null default false,
  withdrawn boolean not null default false,
  primary key (invitation_id),
  constraint invitations_token unique (token_hash),
  check ((account_id is null) = (mac is null)
         and (account_id is null) = (signing_key is null)
         and (account_id is null) = (hpke_key is null)),
  check (not joined or account_id is not null)
);
create index invitations_of_space on mana.invitations (space_id, created_at desc);
create index invitations_of_creator on mana.invitations (created_by);
create index invitations_of_account on mana.invitations (account_id);
comment on table mana.invitations is 'into a space; those into the hub are in mana.invites';

-- No reference to mana.spaces: a closed space is gone, and this says so to who was in it.
create table mana.departures (
  account_id text not null references mana.accounts on delete cascade,
  space_id text not null,
  log jsonb not null,
  departed_at timestamptz not null,
  primary key (account_id, space_id)
);
create index departures_of_space on mana.departures (space_id);

-- A private key is wrapped to its owner by the owner, and stays while they are away: who joins
-- again reads their own private records again. The space's key goes with the membership.
alter table mana.space_keys
  add column member_id text generated always as (case when kind = 's' then account_id end) stored,
  add constraint space_keys_of_members foreign key (space_id, member_id)
    references mana.memberships (space_id, account_id) on delete cascade;
create index space_keys_of_member on mana.space_keys (space_id, member_id);

do $$
declare
  name text;
begin
  foreach name in array array['invitations', 'departures'] loop
    execute format('alter table mana.%I enable row level security', name);
    execute format('alter table mana.%I force row level security', name);
  end loop;
end
$$;

-- Two things that a transaction may carry beside the tenant: the hash of an invitation's token,
-- from its beginning, and the space whose membership it moves, set once the log allows it.
create function mana.current_invitation() returns text
  language sql stable parallel safe
  as $$ select nullif(pg_catalog.current_setting('app.invitation', true), '') $$;
create function mana.moving_space() returns text
  language sql stable parallel safe
  as $$ select nullif(pg_catalog.current_setting('app.moving_space', true), '') $$;
grant execute on function mana.current_invitation(), mana.moving_space() to mana_app, mana_runner;

-- Who leaves ends as no member, and must see the row that says so until they commit. They have
-- a departure by then, which only a transaction of a member can write.
create policy parting on mana.spaces for select to mana_app
  using (space_id = mana.moving_space()
         and exists (select from mana.departures d
                      where d.space_id = spaces.space_id
                        and d.account_id = mana.current_account()));
create policy parting_write on mana.spaces for update to mana_app
  using (mana.current_account() = any (members))
  with check (space_id = mana.moving_space()
              and exists (select from mana.departures d
                           where d.space_id = spaces.space_id
                             and d.account_id = mana.current_account()));
grant update (members, key_version) on mana.spaces to mana_app;
grant delete, update (role) on mana.memberships to mana_app;

create policy wraps on mana.space_keys for insert to mana_app
  with check (kind = 's'
              and exists (select from mana.spaces s
                           where s.space_id = space_keys.space_id
                             and space_keys.account_id = any (s.members)));

-- Written for who goes while they are still a member, removed once they are one again.
create policy own on mana.departures for select to mana_app
  using (account_id = mana.current_account());
create policy moving on mana.departures for select to mana_app
  using (space_id = mana.moving_space());
create policy goes on mana.departures for insert to mana_app
  with check (exists (select from mana.spaces s
                       where s.space_id = departures.space_id
                         and departures.account_id = any (s.members)));
create policy returns on mana.departures for delete to mana_app
  using (exists (select from mana.spaces s
                  where s.space_id = departures.space_id
                    and departures.account_id = any (s.members)));
grant select, insert, delete on mana.departures to mana_app;

create policy managers on mana.invitations to mana_app
  using (exists (select from mana.memberships m
                  where m.space_id = invitations.space_id
                    and m.account_id = mana.current_account() and m.role in ('owner', 'admin')))
  with check (exists (select from mana.memberships m
                       where m.space_id = invitations.space_id
                         and m.account_id = mana.current_account()
                         and m.role in ('owner', 'admin')));
create policy accepted on mana.invitations for select to mana_app
  using (account_id = mana.current_account());
create policy bearer on mana.invitations for select to mana_app
  using (token_hash = mana.current_invitation());
create policy accepts on mana.invitations for update to mana_app
  using (token_hash = mana.current_invitation() and not withdrawn and not joined
         and (account_id is null or account_id = mana.current_account()))
  with check (token_hash = mana.current_invitation() and not withdrawn and not joined
              and account_id = mana.current_account());
grant select, insert, delete, update (account_id, signing_key, hpke_key, mac, joined, withdrawn)
  on mana.invitations to mana_app;
