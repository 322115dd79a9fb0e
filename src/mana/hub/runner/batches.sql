-- name: held
select o.occurrence_id, clock_timestamp() as now,
  (select m.role from mana.memberships m where m.space_id = $3 and m.account_id = $4) as role,
  exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
    or exists (select from mana_ai.hub_limits l where l.stopped_at is not null)
    or exists (select from mana_ai.account_work w
                where w.account_id = $4 and w.stopped_at is not null) as stopped
  from unnest($1::text[], $2::bigint[]) as k (occurrence_id, fence)
  join mana_ai.occurrences o on o.occurrence_id = k.occurrence_id and o.fence = k.fence
 where o.state = 'leased'
 order by o.occurrence_id for update of o

-- name: facts
-- After the missions were locked, in a statement of its own: so it sees what had ended before.
select o.occurrence_id, clock_timestamp() as now,
  (select m.role from mana.memberships m where m.space_id = $3 and m.account_id = $4) as role,
  exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
    or exists (select from mana_ai.hub_limits l where l.stopped_at is not null)
    or exists (select from mana_ai.account_work w
                where w.account_id = $4 and w.stopped_at is not null) as stopped,
  (select a from mana_ai.agent_snapshots a
    where a.space_id = $3 and a.agent_id = (
      select m.agent_id from mana_ai.mission_snapshots m
       where m.space_id = $3 and m.mission_id = o.mission_id)) as agent,
  (select g from mana_ai.grants g
    where g.space_id = $3 and g.mission_id = o.mission_id and g.completed_at is not null
    order by g.completed_at desc limit 1) as granted
  from unnest($1::text[], $2::bigint[]) as k (occurrence_id, fence)
  join mana_ai.occurrences o on o.occurrence_id = k.occurrence_id and o.fence = k.fence
 where o.state = 'leased'
 order by o.occurrence_id for update of o

-- name: grants_locked
select g.grant_id, g.account_id, g.space_id, g.mission_id, g.agent_id, g.header, g.suite,
  g.runner_key_id, g.state, g.expires_at, g.created_at, g.ended_at,
  g.expires_at <= clock_timestamp() as expired,
  left(g.wrapped_key, 0) as wrapped_key, left(g.sealed_keys, 0) as sealed_keys,
  null as signer, null as signature, null as hub_signature, null as wrapped_key_hash,
  null as sealed_keys_hash, null as revoker, null as revocation
  from unnest($2::text[]) as k (mission_id)
 cross join lateral (
   select * from mana_ai.grants
    where space_id = $1 and mission_id = k.mission_id and completed_at is not null
    order by completed_at desc limit 1 for update) g

-- name: put_back
update mana_ai.occurrences o
   set state = 'queued', due_at = clock_timestamp() + $3, lease_until = null, worker = null,
       admitted = false, phase = null, round = 0, calls = 0, steps = 0, heard = 0,
       attempts = greatest(o.attempts - $4, 0)
  from unnest($1::text[], $2::bigint[]) as k (occurrence_id, fence)
 where o.occurrence_id = k.occurrence_id and o.fence = k.fence and o.state = 'leased'

-- name: lock_agents
-- Whoever admits runs of these agents next waits, and counts what is admitted here.
select pg_advisory_xact_lock(hashtextextended(k.agent, 1835101793))
  from unnest($1::text[]) as k (agent)

-- name: admit
-- In a statement of its own after the agents were locked, so that it sees what others admitted.
with asked as (
  select * from unnest($2::text[], $3::text[], $4::integer[]) with ordinality
    as a (occurrence_id, agent_id, most, place)
), working as (
  select o.agent_id, count(*) as number from mana_ai.occurrences o
   where o.space_id = $1 and o.state = 'leased' and o.admitted
     and o.lease_until > clock_timestamp() and o.agent_id = any ($3::text[])
     and o.occurrence_id <> all ($2::text[])
   group by o.agent_id
), chosen as (
  select a.occurrence_id, a.place from (
    select a.*, coalesce(w.number, 0)
        + row_number() over (partition by a.agent_id order by a.place) as rank
      from asked a left join working w on w.agent_id = a.agent_id) a
   where a.rank <= a.most
), taken as (
  update mana_ai.occurrences o set admitted = true
    from chosen c where o.occurrence_id = c.occurrence_id
  returning o.occurrence_id, c.place
), earlier as (
  select r.place, o.iteration_id
    from unnest($8::integer[], $9::text[]) as r (place, mission_id)
   cross join lateral (
     select iteration_id from mana_ai.occurrences
      where space_id = $1 and mission_id = r.mission_id and state = 'done'
        and iteration_id is not null
      order by scheduled_for desc limit $10) o
), found as materialized (
  select k.place, false as past, e.*
    from unnest($5::integer[], $6::text[], $7::text[]) as k (place, table_name, record_id)
   cross join lateral (
     select * from mana.records
      where space_id = $1 and table_name = k.table_name and record_id = k.record_id offset 0) e
  union all
  select n.place, true, e.* from earlier n cross join lateral (
    select * from mana.records
     where space_id = $1 and table_name = 'aiIterations' and record_id = n.iteration_id offset 0) e
  union all
  select n.place, true, e.* from earlier n cross join lateral (
    select * from mana.records
     where space_id = $1 and table_name = 'aiSteps' and record_id = any (array(
       select n.iteration_id || '-' || place from generate_series(0, 24) as place)) offset 0) e
)
select t.occurrence_id,
  convert_to('[' || coalesce(string_agg(concat(
    '{"table":"', f.table_name, '","id":"', f.record_id, '","authorId":"', f.author_id,
    '","visibility":"', f.visibility, '","seq":', f.seq, ',"fields":', f.fields, ',"proofs":',
    f.proofs, '}'), ',' order by f.table_name, f.record_id) filter (where not f.past), '') || ']',
    'UTF8') as records,
  convert_to('[' || coalesce(string_agg(concat(
    '{"table":"', f.table_name, '","id":"', f.record_id, '","authorId":"', f.author_id,
    '","visibility":"', f.visibility, '","fields":', f.fields, '}'), ',')
    filter (where f.past), '') || ']', 'UTF8') as earlier,
  max(case when f.table_name = 'aiMissions' then f.fields #>> '{grantId,at}' end) as named_at
  from taken t left join found f on f.place = t.place group by t.occurrence_id

-- name: audit_head
insert into mana_ai.audit_heads as h (account_id, seq, hash) values ($1, 0, $2)
on conflict (account_id) do update set seq = h.seq
returning h.seq, h.hash

-- name: audit_hash
select hash from mana_ai.decrypt_audit where account_id = $1 and seq = $2

-- name: append_audit
with moved as (
  update mana_ai.audit_heads set seq = $15, hash = $16
   where account_id = $1 and seq = $17 and hash = $18
  returning seq
)
insert into mana_ai.decrypt_audit
  (account_id, ts, seq, mission_id, iteration_id, grant_id, table_name, record_id, status, reason,
   endpoint, runner_key_id, previous, hash)
select $1, $2, r.* from moved, unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
  $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[]) as r

-- name: standing
select
  (select coalesce(json_agg(json_build_object('entry', e.entry, 'signature', e.signature)
                            order by e.number), '[]')::text
     from mana.membership_entries e where e.space_id = $1) as log,
  (select coalesce(json_agg(d order by d.device_id), '[]')::text
     from mana.devices d
    where d.account_id in (select m.account_id from mana.memberships m
                            where m.space_id = $1)) as devices,
  (select concat(
     '{"table":"', p.table_name, '","id":"', p.record_id, '","authorId":"', p.author_id,
     '","visibility":"', p.visibility, '","seq":', p.seq, ',"fields":', p.fields, ',"proofs":',
     p.proofs, '}')
     from mana.records p
    where p.space_id = $1 and p.table_name = $2 and p.record_id = $3) as policy,
  w.stopped_at, w.tokens_per_day_max, w.cost_per_day_max, w.word, w.signer, w.signature
  from (select mana.current_account() as account_id) me
  left join mana_ai.account_work w on w.account_id = me.account_id

-- name: ask_word
-- A device that finds the revision moved, and no limit, signs what holds anew.
update mana_ai.account_work set revision = $1
 where account_id = mana.current_account() and revision < $1

-- name: renew
with held as materialized (
  select o.occurrence_id from unnest($1::text[], $2::bigint[]) as k (occurrence_id, fence)
    join mana_ai.occurrences o on o.occurrence_id = k.occurrence_id and o.fence = k.fence
   where o.state = 'leased'
   order by o.occurrence_id for update of o
)
update mana_ai.occurrences o set lease_until = clock_timestamp() + $3
  from held h where o.occurrence_id = h.occurrence_id
returning o.occurrence_id

-- name: progress
with free as (
  select o.occurrence_id, k.phase, k.round, k.calls, k.steps, k.heard
    from unnest($1::text[], $2::bigint[], $3::text[], $4::integer[], $5::integer[], $6::integer[],
      $7::bigint[]) as k (occurrence_id, fence, phase, round, calls, steps, heard)
    join mana_ai.occurrences o on o.occurrence_id = k.occurrence_id and o.fence = k.fence
   where o.state = 'leased'
     for update of o skip locked
), noted as (
  update mana_ai.occurrences o
     set phase = f.phase, round = f.round, calls = f.calls, steps = f.steps, heard = f.heard
    from free f where o.occurrence_id = f.occurrence_id
  returning o.space_id, o.mission_id
)
select pg_notify($8, json_build_object('spaceId', n.space_id, 'missionId', n.mission_id)::text)
  from noted n
