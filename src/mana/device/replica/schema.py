"""The tables of a replica, one migration per version; a released one never changes.

Sealed fields are envelopes here as on the wire. No column holds what a person or a model wrote,
and there is no index over text.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    create table meta (name text primary key, value text not null) strict, without rowid;

    create table spaces (
      space text primary key,
      type text not null,
      cursor integer,  -- null until the whole state was read
      page text,       -- where reading the state goes on
      head integer     -- the cursor from which changes follow the state
    ) strict, without rowid;

    create table records (
      space text not null,
      tbl text not null,
      id text not null,
      base blob,           -- as the hub holds it at the cursor
      shown blob,          -- with the outbox over it; null: the same
      touched integer not null,
      primary key (space, tbl, id)
    ) strict, without rowid;

    create table touched (tbl text primary key, at integer not null) strict, without rowid;

    create table outbox (
      position integer primary key autoincrement,
      space text not null,
      change_id text not null unique,
      tbl text not null,
      id text not null,
      grp text,
      message blob not null,
      state text not null check (state in ('waiting', 'sent', 'acknowledged', 'refused')),
      seq integer,
      code text,
      refused_ms integer
    ) strict;
    create index outbox_record on outbox (space, tbl, id);
    create index outbox_state on outbox (space, state, position);

    create table made (change_id text primary key) strict, without rowid;

    create table aside (
      position integer primary key autoincrement,
      space text not null,
      tbl text not null,
      kind text not null check (kind in ('change', 'record')),
      body blob not null
    ) strict;
    create index aside_table on aside (tbl);
    """,
    """
    alter table spaces add column state text not null default 'active'
      check (state in ('active', 'left'));

    alter table outbox add column tries integer not null default 0;

    -- Since when the record is known here to be deleted on the hub, in ms of the hub's time;
    -- 0: since before this was written down.
    alter table records add column dead_ms integer;
    update records set dead_ms = 0
      where json_extract(cast(base as text), '$.fields.deletedAt.value') is not null;
    create index records_dead on records (dead_ms) where dead_ms is not null;

    -- Old tombstones that were let go of, so that a late edit makes no half record of them.
    create table gone (
      space text not null,
      tbl text not null,
      id text not null,
      wanted integer not null default 0,  -- restored since; the hub is asked for it
      primary key (space, tbl, id)
    ) strict, without rowid;

    create table overwritten (
      number integer primary key autoincrement,
      space text not null,
      tbl text not null,
      id text not null,
      at_ms integer not null,
      body blob not null,  -- both entries of each path, as they travelled
      unique (space, tbl, id)
    ) strict;
    """,
    """
    -- Where the change lies in the log, if it is this device's own and was seen there.
    alter table made add column seq integer;
    """,
    """
    -- 1: the state is read anew, over what is held.
    alter table spaces add column anew integer not null default 0;

    -- 1: held from before, and not met yet in a state that is read anew.
    alter table records add column unmet integer;

    -- What is held here and the hub did not show when its state was read anew.
    create table held_only (
      space text not null,
      tbl text not null,
      id text not null,
      path text not null,
      at text not null,
      primary key (space, tbl, id, path)
    ) strict, without rowid;
    """,
)
