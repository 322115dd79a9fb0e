-- A lease ends an hour from now at the latest. One that lies further ahead was given while the
-- database's clock was, and its runner may be gone: as left behind as one that is over, or its run
-- would wait until the clock gets there.
create or replace function mana_ai.lease(
  p_worker text, p_free integer, p_life interval, p_leases_max integer)
  returns setof mana_ai.occurrences
  language plpgsql volatile
  set search_path = ''
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_limits record;
  v_free integer;
  v_leased text[] := '{}';
  v_accounts text[];
  v_shares integer[];
  v_some text[];
  v_served text[];
  v_done text[] := '{}';
  -- No runner leases for longer than an hour. What lies beyond comes from a clock that was ahead.
  v_end timestamptz;
begin
  perform pg_catalog.pg_advisory_xact_lock(1835101793, 3);
  v_now := pg_catalog.clock_timestamp();
  v_end := v_now + interval '1 hour';
  select * into v_limits from mana_ai.hub_limits;
  if v_limits.stopped_at is not null then
    return;
  end if;
  select least(p_free, v_limits.runs_max - pg_catalog.count(*)) into v_free
    from mana_ai.occurrences o where o.state = 'leased' and o.lease_until between v_now and v_end;
  if v_free <= 0 then
    return;
  end if;

  with behind as materialized (
    select o.occurrence_id, o.account_id, o.lease_until from mana_ai.occurrences o
     where o.state = 'leased' and o.lease_until not between v_now and v_end
       and o.attempts < p_leases_max
       and not exists (select from mana_ai.stops s where s.occurrence_id = o.occurrence_id)
       and not exists (select from mana_ai.account_work w
                        where w.account_id = o.account_id and w.stopped_at is not null)
     order by o.lease_until limit 1000 for update of o skip locked
  ), placed as (
    select b.occurrence_id, b.lease_until,
           pg_catalog.row_number() over (partition by b.account_id order by b.lease_until) as place,
           (select pg_catalog.count(*) from mana_ai.occurrences r
             where r.state = 'leased' and r.lease_until between v_now and v_end
               and r.account_id = b.account_id) as running
      from behind b
  ), chosen as (
    select p.occurrence_id from placed p
     where p.place + p.running <= v_limits.runs_per_account_max
     order by p.lease_until limit v_free
  ), taken as (
    update mana_ai.occurrences o
       set lease_until = v_now + p_life, fence = o.fence + 1, attempts = o.attempts + 1,
           worker = p_worker, admitted = false, phase = 'leased'
      from chosen c where o.occurrence_id = c.occurrence_id
    returning o.occurrence_id)
  select coalesce(pg_catalog.array_agg(t.occurrence_id), '{}') into v_leased from taken t;
  v_free := v_free - pg_catalog.cardinality(v_leased);

  while v_free > 0 loop
    -- In a statement of its own: what follows then sees all that was queued before the row was held.
    with running as materialized (
      select r.account_id, pg_catalog.count(*) as number from mana_ai.occurrences r
       where r.state = 'leased' and r.lease_until between v_now and v_end group by r.account_id
    ), turn as materialized (
      select w.account_id, w.served_at,
             (v_limits.runs_per_account_max - coalesce(r.number, 0))::integer as room
        from mana_ai.account_work w left join running r on r.account_id = w.account_id
       where w.stopped_at is null and w.next_due <= v_now
         and coalesce(r.number, 0) < v_limits.runs_per_account_max
         and w.account_id <> all (v_done)
       order by w.served_at, w.account_id limit v_free for update of w skip locked
    ), placed as (
      select t.*, pg_catalog.row_number() over (order by t.served_at, t.account_id) as place,
             pg_catalog.count(*) over () as number
        from turn t)
    select pg_catalog.array_agg(p.account_id order by p.place),
           pg_catalog.array_agg(least(p.room, v_free / p.number)::integer order by p.place)
      into v_accounts, v_shares from placed p;
    exit when v_accounts is null;

    with picked as materialized (
      select q.occurrence_id
        from unnest(v_accounts, v_shares) as t (account_id, share)
       cross join lateral (
         select o.occurrence_id from mana_ai.occurrences o
          where o.account_id = t.account_id and o.state = 'queued' and o.due_at <= v_now
          order by o.due_at limit t.share for update skip locked) q
    ), taken as (
      update mana_ai.occurrences o
         set state = 'leased', lease_until = v_now + p_life, fence = o.fence + 1,
             attempts = o.attempts + 1, worker = p_worker, admitted = false, phase = 'leased',
             started_at = coalesce(o.started_at, v_now)
        from picked p where o.occurrence_id = p.occurrence_id
      returning o.occurrence_id, o.account_id)
    select coalesce(pg_catalog.array_agg(t.occurrence_id), '{}'),
           coalesce(pg_catalog.array_agg(t.account_id), '{}')
      into v_some, v_served from taken t;

    update mana_ai.account_work w
       set served_at = case when w.account_id = any (v_served)
                            then pg_catalog.clock_timestamp() else w.served_at end,
           next_due = (select o.due_at from mana_ai.occurrences o
                        where o.account_id = w.account_id and o.state = 'queued'
                        order by o.due_at limit 1)
     where w.account_id = any (v_accounts);
    -- Who had less than their share has no more that is due.
    select v_done || coalesce(pg_catalog.array_agg(t.account_id), '{}') into v_done
      from unnest(v_accounts, v_shares) as t (account_id, share)
     where t.share > (select pg_catalog.count(*) from unnest(v_served) as s (account_id)
                       where s.account_id = t.account_id);
    v_leased := v_leased || v_some;
    v_free := v_free - pg_catalog.cardinality(v_some);
  end loop;
  return query select o.* from mana_ai.occurrences o where o.occurrence_id = any (v_leased);
end
$$;
