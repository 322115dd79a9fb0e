-- The schema after all migrations, read from the catalogue. Not run by anything.
-- Write it anew with: python -m mana.hub.db.dump

create schema mana;
grant usage on schema mana to mana_app;
grant usage on schema mana to mana_runner;
create schema mana_ai;
grant usage on schema mana_ai to mana_app;
grant usage on schema mana_ai to mana_runner;

CREATE OR REPLACE FUNCTION mana.current_account()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '') $function$;
-- execute: mana_app, mana_runner

create table mana.migrations (
  number integer not null,
  name text not null,
  checksum text not null,
  applied_at timestamp with time zone not null default now(),
  constraint migrations_pkey PRIMARY KEY (number)
);
