"""The records of a replica: as the hub holds each, and as the person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from mana.device.replica.memory import Memory
from mana.device.replica.rows import read_row, write_row
from mana.device.replica.shapes import Key
from mana.protocol.messages import ChangeMessage
from mana.protocol.replication import Held, overlay

_Own: TypeAlias = tuple[int, ChangeMessage]
"""The change's place in the outbox, and the change."""


class Records(Memory):
    """The records, within one transaction."""

    def held(self, space: str, table: str, record_id: str) -> Held | None:
        """Return a record as the person sees it."""
        row = self._sql(
            "select coalesce(shown, base) from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None else read_row(table, record_id, row[0])

    def marks(self, space: str, table: str) -> dict[str, int]:
        """Return by record id when each record of a table was last touched."""
        rows = self._sql(
            "select id, touched from records where space = ? and tbl = ?", (space, table)
        )
        return {str(record_id): int(at) for record_id, at in rows}

    def all_held(self, space: str, table: str, ids: Iterable[str] | None = None) -> dict[str, Held]:
        """Return these records of a table, or all, as the person sees them."""
        if ids is None:
            found = self._sql(
                "select id, coalesce(shown, base) from records where space = ? and tbl = ?",
                (space, table),
            )
            return {record_id: read_row(table, record_id, raw) for record_id, raw in found}
        keys = [(table, record_id) for record_id in ids]
        rows = self._rows("coalesce(r.shown, r.base)", "records r", space, keys)
        return {record_id: read_row(table, record_id, raw) for _, record_id, raw in rows}

    def mark(self, space: str, table: str, record_id: str) -> int | None:
        """Return when a record was last touched."""
        row = self._sql(
            "select touched from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None else int(row[0])

    def scan(
        self, space: str, after: Key = ("", ""), *, limit: int = 500
    ) -> list[tuple[str, str, bytes]]:
        """Return table, id and stored bytes of the records after one, as the hub holds them."""
        return self._sql(
            "select tbl, id, base from records"
            " where space = ? and (tbl, id) > (?, ?) and base is not null"
            " order by tbl, id limit ?",
            (space, *after, limit),
        ).fetchall()

    def base(self, space: str, table: str, record_id: str) -> Held | None:
        """Return a record as the hub holds it at the cursor."""
        raw = self.raw_base(space, table, record_id)
        return None if raw is None else read_row(table, record_id, raw)

    def raw_base(self, space: str, table: str, record_id: str) -> bytes | None:
        """Return the stored bytes of a record as the hub holds it."""
        row = self._sql(
            "select base from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None or row[0] is None else bytes(row[0])

    # Within

    def _rows(self, columns: str, source: str, space: str, keys: Sequence[Key]) -> list[Any]:
        """Return table, id and these columns of the rows of these records, in one query."""
        if not keys:
            return []
        return self._sql(
            f"select r.tbl, r.id, {columns} from json_each(?) k cross join {source}"  # noqa: S608
            " on r.space = ? and r.tbl = json_extract(k.value, '$[0]')"
            " and r.id = json_extract(k.value, '$[1]')",
            (json.dumps(list(keys)), space),
        ).fetchall()

    def _set_bases(
        self, space: str, rows: Sequence[tuple[str, str, bytes, bool, bool]], hub_ms: int
    ) -> None:
        """Write records as the hub holds them: table, id, bytes, whether deleted, whether loud.

        One that is not loud looks the same as before, so nobody is told.
        """
        self._many(
            "insert into records (space, tbl, id, base, touched, dead_ms)"
            " values (?, ?, ?, ?, ?, ?) on conflict (space, tbl, id) do update"
            " set base = excluded.base, shown = null,"
            " touched = iif(excluded.touched < 0, touched, excluded.touched),"
            " dead_ms = iif(excluded.dead_ms is null, null, coalesce(dead_ms, excluded.dead_ms))",
            [
                (space, table, record_id, raw, self._mark(table) if loud else -1, dead)
                for table, record_id, raw, deleted, loud in rows
                for dead in (hub_ms if deleted else None,)
            ],
        )
        keys = [(row[0], row[1]) for row in rows]
        self._show(space, self._own(space, keys), keys)

    def _refresh(self, space: str, keys: Iterable[Key]) -> None:
        """Recompute what the person sees: the hub's record, and what waits here over it."""
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return
        own = self._own(space, wanted)
        bare = [key for key in wanted if key not in own]
        self._many(
            "update records set shown = null, touched = ?"
            " where space = ? and tbl = ? and id = ? and base is not null",
            [(self._mark(key[0]), space, *key) for key in bare],
        )
        self._many(
            "delete from records where space = ? and tbl = ? and id = ? and base is null",
            [(space, *key) for key in bare],
        )
        self._show(space, own, wanted)

    def _show(self, space: str, own: Mapping[Key, list[_Own]], keys: Iterable[Key]) -> None:
        """Write what is shown of those of these records over which a change waits."""
        for key in keys:
            if key not in own:
                continue
            shown = self._over(self.base(space, *key), own[key])
            self._sql(
                "insert into records (space, tbl, id, shown, touched) values (?, ?, ?, ?, ?)"
                " on conflict (space, tbl, id) do update"
                " set shown = excluded.shown, touched = excluded.touched",
                (space, *key, None if shown is None else write_row(shown), self._mark(key[0])),
            )

    def _own(self, space: str, keys: Sequence[Key]) -> dict[Key, list[_Own]]:
        """Return by record the changes that lie over it, in their order."""
        if self._sql("select 1 from outbox limit 1").fetchone() is None:
            return {}
        rows = self._sql(
            "select r.tbl, r.id, r.position, r.message from json_each(?) k"
            " cross join outbox r indexed by outbox_record"
            " on r.space = ? and r.tbl = json_extract(k.value, '$[0]')"
            " and r.id = json_extract(k.value, '$[1]') and r.state <> 'refused'"
            " order by r.position",
            (json.dumps(list(keys)), space),
        ).fetchall()
        found: dict[Key, list[_Own]] = {}
        for table, record_id, position, message in rows:
            own = (position, msgspec.json.decode(message, type=ChangeMessage))
            found.setdefault((table, record_id), []).append(own)
        return found

    def _over(self, base: Held | None, own: Sequence[_Own]) -> Held | None:
        return overlay(base, [message for _, message in own], guarded=self._guarded)

    def _gone(self, space: str, keys: Iterable[Key]) -> set[Key]:
        if self._sql("select 1 from gone limit 1").fetchone() is None:
            return set()
        rows = self._rows("1", "gone r", space, list(keys))
        return {(str(table), str(record_id)) for table, record_id, _ in rows}
