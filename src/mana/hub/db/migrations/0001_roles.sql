-- Who may do what: two roles that serve, two schemas, and whose transaction this is.
-- Roles belong to the whole server, so another database may have made them already.

do $$
declare
  name text;
begin
  foreach name in array array['mana_app', 'mana_runner'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = name) then
      begin
        execute format(
          'create role %I login nosuperuser nocreatedb nocreaterole noreplication nobypassrls',
          name);
      exception when duplicate_object or unique_violation then
        null; -- another database was quicker
      end;
    end if;
    if exists (select from pg_catalog.pg_roles
                where rolname = name
                  and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb
                       or rolreplication)) then
      raise exception 'role % could pass row-level security', name;
    end if;
  end loop;
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to mana_app, mana_runner', current_database());
end
$$;

revoke create on schema public from public;

create schema if not exists mana;
create schema if not exists mana_ai;
revoke all on schema mana, mana_ai from public;
grant usage on schema mana, mana_ai to mana_app, mana_runner;

-- A new function would be everybody's otherwise; each one is granted by name.
alter default privileges revoke execute on functions from public;

-- The account whose transaction this is, or null outside one. Not given a search path of its
-- own, so that PostgreSQL can put it in line in the policies that call it for every row.
create function mana.current_account() returns text
  language sql stable parallel safe
  as $$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '') $$;

grant execute on function mana.current_account() to mana_app, mana_runner;
