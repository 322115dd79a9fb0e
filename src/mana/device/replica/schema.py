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
)
