-- Sync under load: what is looked at once for a statement, and rows that stay in one piece.
--
-- The policies say what they said: a row is seen if its space is seen. A transaction that works
-- in one space may name it, and then that space is looked up once for each statement and not
-- once for each row. A transaction gains nothing by naming another: that is looked up too.

create function mana.current_space() returns text
  language sql stable parallel safe
  as $$ select nullif(pg_catalog.current_setting('app.current_space', true), '') $$;
grant execute on function mana.current_space() to mana_app, mana_runner;

alter policy member on mana.space_heads
  using (space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
         or exists (select from mana.spaces s where s.space_id = space_heads.space_id))
  with check (
    space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
    or exists (select from mana.spaces s where s.space_id = space_heads.space_id));

alter policy member on mana.records
  using ((space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
          or exists (select from mana.spaces s where s.space_id = records.space_id))
         and (visibility = 'space' or author_id = mana.current_account()))
  with check (
    (space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
     or exists (select from mana.spaces s where s.space_id = records.space_id))
    and (visibility = 'space' or author_id = mana.current_account()));

alter policy member on mana.sync_changes
  using ((space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
          or exists (select from mana.spaces s where s.space_id = sync_changes.space_id))
         and (user_id = mana.current_account()
              or ((visibility = 'space' or author_id = mana.current_account())
                  and not exists (select from mana.hidden_records h
                                   where h.space_id = sync_changes.space_id
                                     and h.table_name = sync_changes.table_name
                                     and h.record_id = sync_changes.record_id
                                     and h.author_id <> mana.current_account()))));
alter policy writer on mana.sync_changes
  with check (
    (space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
     or exists (select from mana.spaces s where s.space_id = sync_changes.space_id))
    and (visibility = 'space' or author_id = mana.current_account())
    and user_id = mana.current_account());

alter policy member on mana.hidden_records
  using (space_id = (select s.space_id from mana.spaces s where s.space_id = mana.current_space())
         or exists (select from mana.spaces s where s.space_id = hidden_records.space_id));

-- Nothing asks for the changes of one record.
drop index mana.sync_changes_of_record;

-- Ciphertext does not shrink, and a row of a few kilobytes is read faster in one piece. Rows that
-- were written before stay as they are until they are written again.
alter table mana.sync_changes set (toast_tuple_target = 8160);
alter table mana.sync_changes alter column data set storage external;
alter table mana.records set (toast_tuple_target = 8160, fillfactor = 90);
alter table mana.records alter column fields set storage external;
-- One row is written again with every batch of its space.
alter table mana.space_heads set (fillfactor = 50);

-- The devices of those who share a space with us: found by their memberships, of which we see
-- those in our spaces, and not by a look at every space that there is.
alter policy shared on mana.devices
  using (exists (select from mana.memberships m where m.account_id = devices.account_id));
