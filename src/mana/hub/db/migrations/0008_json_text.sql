-- The log and the records keep their JSON as the text that the hub wrote. Nothing in SQL looks
-- into it in the serving path, and to parse and build it on the way in and out was most of what
-- a row cost. Rows that were written before are converted; they say the same.

alter table mana.sync_changes
  alter column data type json using data::json,
  alter column field_meta type json using field_meta::json,
  alter column actor type json using actor::json,
  alter column guards type json using guards::json,
  alter column signature type json using signature::json;
alter table mana.records
  alter column fields type json using fields::json,
  alter column proofs type json using proofs::json;

-- How far in the log its writer had read when a change was written; older changes do not say.
alter table mana.sync_changes add column seen bigint;

-- A new type brings its own storage: ciphertext does not shrink (0007).
alter table mana.sync_changes alter column data set storage external;
alter table mana.records alter column fields set storage external;
