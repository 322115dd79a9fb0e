-- name: lock
select seq from mana.space_heads where space_id = $1 for update

-- name: survey
select h.seq as head, s.type, s.key_version, m.role,
  s.type in ('personal', 'user') and cardinality(s.members) = 1 as alone,
  (select d.public_key from mana.devices d
    where d.device_id = $2 and d.account_id = mana.current_account()
      and d.revoked_at is null) as device_key,
  (select json_agg(json_build_array(c.change_id, c.seq, c.table_name, c.record_id, c.own)
                   order by c.own)::text
     from unnest($3::text[]) as k (change_id)
    cross join lateral (
      select l.change_id, l.seq, l.table_name, l.record_id,
             l.user_id = mana.current_account() as own
        from mana.sync_changes l
       where l.space_id = $1 and l.change_id = k.change_id
      offset 0) c) as known,
  (select json_agg(r)::text
     from unnest($4::text[], $5::text[]) as k (table_name, record_id)
    cross join lateral (
      select e.table_name, e.record_id, e.author_id, e.visibility, e.fields, e.proofs, e.seq
        from mana.records e
       where e.space_id = $1 and e.table_name = k.table_name and e.record_id = k.record_id
      offset 0) r) as standing
  from mana.spaces s
  join mana.memberships m on m.space_id = s.space_id and m.account_id = mana.current_account()
  join mana.space_heads h on h.space_id = s.space_id
 where s.space_id = $1

-- name: head
select h.seq
  from mana.space_heads h
  join mana.memberships m on m.space_id = h.space_id and m.account_id = mana.current_account()
 where h.space_id = $1

-- name: heads
select h.space_id, h.seq
  from mana.space_heads h
  join mana.memberships m on m.space_id = h.space_id and m.account_id = mana.current_account()

-- name: claim
insert into mana.records (space_id, table_name, record_id, author_id, visibility, fields, proofs,
  seq, deleted)
select $1, k.table_name, k.record_id, mana.current_account(), 'space', '{}', '{}', 0, false
  from unnest($2::text[], $3::text[]) as k (table_name, record_id)
    on conflict do nothing
returning table_name, record_id

-- name: write
with logged as (
  insert into mana.sync_changes (space_id, seq, change_id, app_id, table_name, record_id, user_id,
    author_id, visibility, op, data, field_meta, client_id, created_at, schema_version, actor,
    origin, group_id, guards, signature, seen)
  select $1, $2 - $30::bigint + c.number, c.change_id, c.app_id, c.table_name, c.record_id,
    mana.current_account(), c.author_id, c.visibility, c.op, c.data::json, c.field_meta::json,
    $3, $4, $5, c.actor::json, c.origin, c.group_id, c.guards::json, c.signature::json,
    c.seen::bigint
    from unnest(string_to_array($6, e'\x1f'), string_to_array($7, e'\x1f'),
      string_to_array($8, e'\x1f'), string_to_array($9, e'\x1f'),
      string_to_array($10, e'\x1f'), string_to_array($11, e'\x1f'),
      string_to_array($12, e'\x1f'), string_to_array($13, e'\x1f'),
      string_to_array($14, e'\x1f'), string_to_array($15, e'\x1f'),
      string_to_array($16, e'\x1f'), string_to_array($17, e'\x1f', ''),
      string_to_array($18, e'\x1f', ''), string_to_array($19, e'\x1f', ''),
      string_to_array($20, e'\x1f', ''))
      with ordinality
      as c (change_id, app_id, table_name, record_id, author_id, visibility, op, data,
        field_meta, actor, origin, group_id, guards, signature, seen, number)
), merged as (
  insert into mana.records as r (space_id, table_name, record_id, author_id, visibility, fields,
    proofs, seq, deleted)
  select $1, c.table_name, c.record_id, c.author_id, c.visibility, c.fields::json,
    c.proofs::json, c.seq::bigint, c.deleted::boolean
    from unnest(string_to_array($21, e'\x1f'), string_to_array($22, e'\x1f'),
      string_to_array($23, e'\x1f'), string_to_array($24, e'\x1f'),
      string_to_array($25, e'\x1f'), string_to_array($26, e'\x1f'),
      string_to_array($27, e'\x1f'), string_to_array($28, e'\x1f'))
      as c (table_name, record_id, author_id, visibility, fields, proofs, seq, deleted)
      on conflict (space_id, table_name, record_id) do update
     set fields = excluded.fields, proofs = excluded.proofs, seq = excluded.seq,
         deleted = excluded.deleted
), advanced as (
  update mana.space_heads set seq = $2 where space_id = $1
)
select pg_notify('mana_live', $29),
  case when exists (select from mana_ai.watched w where w.space_id = $1)
    then mana_ai.changed($1, $8, $9, $11, $12, $16, $17) end

-- name: show
delete from mana.hidden_records h
 using unnest($2::text[], $3::text[]) as k (table_name, record_id)
 where h.space_id = $1 and h.table_name = k.table_name and h.record_id = k.record_id

-- name: hide
insert into mana.hidden_records (space_id, table_name, record_id, author_id, seq)
select $1, k.table_name, k.record_id, mana.current_account(), k.seq
  from unnest($2::text[], $3::text[], $4::bigint[]) as k (table_name, record_id, seq)

-- name: flip
update mana.records r set visibility = k.visibility
  from unnest($2::text[], $3::text[], $4::text[]) as k (table_name, record_id, visibility)
 where r.space_id = $1 and r.table_name = k.table_name and r.record_id = k.record_id

-- name: changes_after
select p.seq, p.change_id, p.table_name, p.record_id, p.author_id, p.visibility, p.op,
  case when p.before < $5 then p.data end as data, p.field_meta,
  p.client_id, p.actor, p.origin, p.group_id, p.guards, p.signature, p.seen
  from (
    select c.*, coalesce(sum(pg_column_size(c.data) + pg_column_size(c.field_meta))
      over (order by c.seq rows between unbounded preceding and 1 preceding), 0) as before
      from mana.sync_changes c
     where c.space_id = $1 and c.seq > $2 and c.seq <= $3
       and not exists (select from mana.hidden_records h
                        where h.space_id = c.space_id and h.table_name = c.table_name
                          and h.record_id = c.record_id
                          and h.author_id <> mana.current_account())
     order by c.seq
     limit $4) p
 order by p.seq

-- name: hidden_within
select seq, table_name, record_id
  from mana.hidden_records
 where space_id = $1 and seq > $2 and seq <= $3 and author_id <> mana.current_account()
 order by seq
 limit $4

-- name: state_of
select table_name, record_id, convert_to(concat(
    '{"table":"', table_name, '","id":"', record_id, '","authorId":"', author_id,
    '","visibility":"', visibility, '","seq":', seq, ',"fields":', fields, ',"proofs":', proofs,
    '}'), 'UTF8') as body
  from mana.records
 where space_id = $1 and table_name = $2 and record_id = $3

-- name: state_page
select p.table_name, p.record_id, case when p.before < $5 then convert_to(concat(
    '{"table":"', p.table_name, '","id":"', p.record_id, '","authorId":"', p.author_id,
    '","visibility":"', p.visibility, '","seq":', p.seq, ',"fields":', p.fields, ',"proofs":',
    p.proofs, '}'), 'UTF8') end as body
  from (
    select r.*, coalesce(sum(pg_column_size(r.fields) + pg_column_size(r.proofs))
      over (order by r.table_name, r.record_id
            rows between unbounded preceding and 1 preceding), 0) as before
      from mana.records r
     where r.space_id = $1 and (r.table_name, r.record_id) > ($2, $3)
     order by r.table_name, r.record_id
     limit $4) p
 order by p.table_name, p.record_id
