"""What a replica remembers of itself: facts, its clock, its spaces, and what was touched when."""

from __future__ import annotations

import sqlite3
from typing import Final

from mana.device.errors import SpaceLeft
from mana.device.replica.shapes import Space
from mana.domain.clock import Stamp, parse_stamp
from mana.domain.ids import DeviceId
from mana.protocol.replication import Guarded

_CLOCK: Final = "clock"
_LEFT: Final = "left"


class Memory:
    """Facts, spaces and marks, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, guarded: Guarded) -> None:
        self._sql = connection.execute
        self._many = connection.executemany
        self._guarded = guarded
        self._at: int | None = None
        self._touched: dict[str, int] = {}

    def finish(self) -> None:
        """Write what is written once per transaction. Called before it is committed."""
        self._many(
            "insert into touched (tbl, at) values (?, ?)"
            " on conflict (tbl) do update set at = excluded.at",
            list(self._touched.items()),
        )
        self._touched.clear()

    # Facts

    def meta(self, name: str) -> str | None:
        """Return a fact about this replica."""
        row = self._sql("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str | None) -> None:
        """Set or forget a fact about this replica."""
        if value is None:
            self._sql("delete from meta where name = ?", (name,))
            return
        self._sql(
            "insert into meta (name, value) values (?, ?)"
            " on conflict (name) do update set value = excluded.value",
            (name, value),
        )

    def metas(self) -> dict[str, str]:
        """Return all facts about this replica by name."""
        return dict(self._sql("select name, value from meta").fetchall())

    def clock(self, device: DeviceId) -> Stamp:
        """Return the last stamp of this device."""
        found = self.meta(_CLOCK)
        if found is None:
            return Stamp(0, 0, device)
        last = parse_stamp(found)
        return Stamp(last.wall_ms, last.counter, device)

    def set_clock(self, stamp: Stamp) -> None:
        """Keep the last stamp of this device."""
        self.set_meta(_CLOCK, str(stamp))

    # Spaces

    def spaces(self) -> list[Space]:
        """Return the spaces that are kept here."""
        rows = self._sql("select space, type, cursor, page, head, state from spaces order by space")
        return [Space(*row) for row in rows]

    def add_space(self, space: str, space_type: str) -> None:
        """Begin to keep a space, or to sync one again that was left."""
        self._sql(
            "insert into spaces (space, type) values (?, ?)"
            " on conflict (space) do update set state = 'active'",
            (space, space_type),
        )

    def space(self, space: str) -> Space | None:
        """Return one space."""
        row = self._sql(
            "select space, type, cursor, page, head, state from spaces where space = ?", (space,)
        ).fetchone()
        return None if row is None else Space(*row)

    def require_kept(self, space: str) -> Space:
        """Return a space that is synced here.

        Raises SpaceLeft if another process of this machine has learned that the account is out.
        """
        kept = self.space(space)
        # Without a row, it was removed from this device.
        if kept is None or kept.state == _LEFT:
            raise SpaceLeft("the account is no longer in this space")
        return kept

    def _is_anew(self, space: str) -> bool:
        row = self._sql("select anew from spaces where space = ?", (space,)).fetchone()
        return row is not None and bool(row[0])

    # What was touched

    def touched(self, table: str) -> int:
        """Return when a table was last touched; a later touch has a greater number."""
        row = self._sql("select at from touched where tbl = ?", (table,)).fetchone()
        return 0 if row is None else int(row[0])

    def touched_after(self, at: int) -> tuple[frozenset[str], int]:
        """Return the tables touched after a mark, and the newest mark."""
        rows = self._sql("select tbl, at from touched where at > ?", (at,)).fetchall()
        return frozenset(str(table) for table, _ in rows), max((row[1] for row in rows), default=at)

    def _mark(self, table: str) -> int:
        """Mark a table as touched by this transaction."""
        if self._at is None:
            row = self._sql("select coalesce(max(at), 0) from touched").fetchone()
            self._at = int(row[0])
        # A transaction may touch one record twice, and each must be seen.
        self._at += 1
        self._touched[table] = self._at
        return self._at
