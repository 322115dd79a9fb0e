-- A record's author may hide it from the other members and show it again.
--
-- hidden_records has a row while a record that others could see is private: they are told which
-- one it is, and no change of it reaches them, earlier ones of the log included. What a member
-- wrote themselves stays theirs to look up, so that a resend is known; pulls leave it out too.
-- A change id is its account's: nobody can use up an id that another one's device derives.

create table mana.hidden_records (
  space_id text not null references mana.spaces on delete cascade,
  table_name text not null,
  record_id text not null,
  author_id text not null,
  seq bigint not null,
  primary key (space_id, table_name, record_id)
);
create index hidden_records_of_space on mana.hidden_records (space_id, seq);

alter table mana.hidden_records enable row level security;
alter table mana.hidden_records force row level security;

create policy member on mana.hidden_records for select to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = hidden_records.space_id));
create policy hides on mana.hidden_records for insert to mana_app
  with check (author_id = mana.current_account()
              and exists (select from mana.spaces s where s.space_id = hidden_records.space_id)
              and exists (select from mana.records r
                           where r.space_id = hidden_records.space_id
                             and r.table_name = hidden_records.table_name
                             and r.record_id = hidden_records.record_id
                             and r.author_id = mana.current_account()
                             and r.visibility = 'private'));
create policy shows on mana.hidden_records for delete to mana_app
  using (author_id = mana.current_account()
         and exists (select from mana.spaces s where s.space_id = hidden_records.space_id));

grant select, insert, delete on mana.hidden_records to mana_app;
grant select on mana.hidden_records to mana_runner;

drop policy member on mana.sync_changes;
create policy member on mana.sync_changes for select to mana_app, mana_runner
  using (exists (select from mana.spaces s where s.space_id = sync_changes.space_id)
         and (user_id = mana.current_account()
              or ((visibility = 'space' or author_id = mana.current_account())
                  and not exists (select from mana.hidden_records h
                                   where h.space_id = sync_changes.space_id
                                     and h.table_name = sync_changes.table_name
                                     and h.record_id = sync_changes.record_id
                                     and h.author_id <> mana.current_account()))));
create policy writer on mana.sync_changes for insert to mana_app, mana_runner
  with check (exists (select from mana.spaces s where s.space_id = sync_changes.space_id)
              and (visibility = 'space' or author_id = mana.current_account())
              and user_id = mana.current_account());

alter table mana.sync_changes
  drop constraint sync_changes_op_check,
  add constraint sync_changes_op_check
    check (op in ('insert', 'update', 'delete', 'reseal', 'flip')),
  drop constraint sync_changes_once,
  add constraint sync_changes_once unique (space_id, change_id, user_id);

grant update (visibility) on mana.records to mana_app;
