"""The state of a space as a replica takes it in: first, anew, and what was set aside or let go of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from mana.device.replica.outbox import Outbox
from mana.device.replica.rows import (
    decode_row,
    encode_row,
    read_row,
    row_after,
    row_of_state,
    write_row,
)
from mana.device.replica.shapes import HUB_TIME, Key
from mana.domain.records import Record
from mana.domain.tables import DELETED_AT
from mana.protocol.messages import ChangeMessage, LoggedChange, StateField, StateRecord
from mana.protocol.replication import Held, apply_state

TOMBSTONE_MS: Final = 30 * 24 * 3_600 * 1_000

Resend: TypeAlias = (
    "Callable[[Outbox, str, Record, StateRecord | None, Sequence[str]], list[ChangeMessage]]"
)
"""Makes own changes again that the hub lacks, of: a space, the record as it stands here, the same
as the hub shows it, and the paths that are newer here."""


class State(Outbox):
    """The state of spaces, within one transaction."""

    def restart_state(self, space: str) -> None:
        """Read the state of a space from its beginning."""
        self._sql("update spaces set page = null, head = null where space = ?", (space,))
        if self._is_anew(space):
            self._sql("update records set unmet = 1 where space = ? and base is not null", (space,))
            return
        # What was read is read again: it may have flipped since, and a state is not signed.
        dropped = self._sql(
            "delete from records where space = ? and shown is null returning tbl", (space,)
        ).fetchall()
        for table in {str(row[0]) for row in dropped}:
            self._mark(table)
        self._sql("update records set base = null where space = ?", (space,))

    def take_state(
        self,
        space: str,
        records: Sequence[StateRecord],
        *,
        head: int,
        page: str | None,
        known: Callable[[str], bool],
        resend: Resend,
        hub_ms: int,
        account_id: str,
    ) -> None:
        """Apply a checked page of the state; after the last one the cursor is the first head.

        Where the state is read anew, `resend` makes own changes again that the hub lacks.
        """
        for record in records:
            if not known(record.table):
                self._set_aside(space, record.table, "record", record)
        mine = [one for one in records if known(one.table)]
        lacking = self._lacking(space, mine) if self._is_anew(space) else []
        self._take_records(space, mine, hub_ms)
        for key, shown, left in lacking:
            self._keep_held(space, key, shown, left, resend)
        if page is None:
            for key, left in self._unmet(space):
                self._keep_held(space, key, None, left, resend)
            self._sql(
                "update spaces set cursor = ?, page = null, head = null, anew = 0 where space = ?",
                (head, space),
            )
            self._refresh(space, self._confirm(space, head, account_id, hub_ms))
        else:
            self._sql("update spaces set page = ?, head = ? where space = ?", (page, head, space))

    def take_record(self, space: str, key: Key, record: StateRecord | None, *, hub_ms: int) -> None:
        """Take the whole of a record that was asked for; None: there is none to see."""
        self._sql(
            "update gone set wanted = 0 where space = ? and tbl = ? and id = ?", (space, *key)
        )
        if record is not None:
            self._take_records(space, [record], hub_ms)

    def _take_records(self, space: str, records: Sequence[StateRecord], hub_ms: int) -> None:
        self._met(
            space,
            (
                (record.table, record.id, path, entry.at)
                for record in records
                for path, entry in record.fields.items()
            ),
        )
        keys = [(record.table, record.id) for record in records]
        standing = {
            (table, record_id): read_row(table, record_id, base)
            for table, record_id, base in self._rows("r.base", "records r", space, keys)
            if base is not None
        }
        gone = self._gone(space, keys)
        private = self._made_private(space, keys)
        rows: dict[Key, tuple[str, str, bytes, bool, bool]] = {}
        for record in records:
            key = (record.table, record.id)
            before = standing.get(key)
            fresh = row_of_state(record, self._guarded)
            if key in gone:
                if fresh.deleted:
                    continue
                self._sql("delete from gone where space = ? and tbl = ? and id = ?", (space, *key))
            if before is not None and before.record.visibility == "private":
                # Only a flip in the log, which is signed, shows it to others.
                record = msgspec.structs.replace(record, visibility="private")
            elif before is None and key in private:
                fresh = msgspec.structs.replace(fresh, visibility="private")
            if before is None:
                rows[key] = (*key, encode_row(fresh), fresh.deleted, True)
            else:
                after = apply_state(before, self._in_order(before, record), guarded=self._guarded)
                standing[key] = after
                rows[key] = (*key, write_row(after), after.record.deleted, True)
        self._set_bases(space, list(rows.values()), hub_ms)

    def _in_order(self, held: Held, record: StateRecord) -> StateRecord:
        """Return a state without guarded values that were decided before those held here.

        Where places in the log say nothing any more, stamps do: who decides stamps later than
        what stood.
        """
        if held.seq:
            return record
        fields = {
            path: entry
            for path, entry in record.fields.items()
            if not self._guarded(record.table, path)
            or path not in held.record.entries
            or entry.at >= held.record.entries[path].at
        }
        return msgspec.structs.replace(record, fields=fields)

    # Anew, over what is held

    def read_anew(self, space: str) -> None:
        """Begin to read the state of a space from its beginning, over what is held.

        Nothing that is held goes. Places in the log mean nothing from here on: the hub's log may
        be another one by now. What it took and the log has not brought is sent again.
        """
        self.require_kept(space)
        self._sql(
            "update spaces set cursor = null, page = null, head = null, anew = 1 where space = ?",
            (space,),
        )
        self._sql(
            "update outbox set state = 'waiting', seq = null"
            " where space = ? and state = 'acknowledged'",
            (space,),
        )
        rows = self._sql(
            "select tbl, id, base from records where space = ? and base is not null", (space,)
        ).fetchall()
        self._many(
            "update records set base = ?, unmet = 1 where space = ? and tbl = ? and id = ?",
            [
                (
                    encode_row(msgspec.structs.replace(decode_row(base), seqs={}, seq=0)),
                    space,
                    table,
                    record_id,
                )
                for table, record_id, base in rows
            ],
        )

    def held_only(self, space: str) -> list[Key]:
        """Return the records of which this device holds what the hub did not show."""
        rows = self._sql(
            "select distinct tbl, id from held_only where space = ? order by tbl, id", (space,)
        )
        return [(str(table), str(record_id)) for table, record_id in rows]

    def _lacking(
        self, space: str, records: Sequence[StateRecord]
    ) -> list[tuple[Key, StateRecord, list[str]]]:
        """Return what of held records is newer than the hub shows it; they count as met."""
        keys = [(record.table, record.id) for record in records]
        held = {
            (table, record_id): decode_row(base)
            for table, record_id, base, unmet in self._rows(
                "r.base, r.unmet", "records r", space, keys
            )
            if unmet is not None and base is not None
        }
        self._many(
            "update records set unmet = null where space = ? and tbl = ? and id = ?",
            [(space, *key) for key in held],
        )
        found: list[tuple[Key, StateRecord, list[str]]] = []
        for key, record in zip(keys, records, strict=True):
            row = held.get(key)
            if row is None:
                continue
            left = [path for path, entry in row.fields.items() if _is_newer(entry, record, path)]
            if left or row.visibility != record.visibility:
                found.append((key, record, left))
        return found

    def _unmet(self, space: str) -> list[tuple[Key, list[str]]]:
        """Return the held records that no page of the state showed, with their paths."""
        rows = self._sql(
            "select tbl, id, base from records"
            " where space = ? and unmet is not null and base is not null",
            (space,),
        ).fetchall()
        self._sql("update records set unmet = null where space = ? and unmet is not null", (space,))
        return [
            ((str(table), str(record_id)), list(decode_row(base).fields))
            for table, record_id, base in rows
        ]

    def _keep_held(
        self,
        space: str,
        key: Key,
        shown: StateRecord | None,
        left: Sequence[str],
        resend: Resend,
    ) -> None:
        """Note what is held here only, and send what of it is this device's own again."""
        held = self.base(space, *key)
        if held is None:
            return
        entries = held.record.entries
        self._many(
            "insert into held_only (space, tbl, id, path, at) values (?, ?, ?, ?, ?)"
            " on conflict (space, tbl, id, path) do update set at = excluded.at",
            [(space, *key, path, entries[path].at) for path in left],
        )
        for message in resend(self, space, held.record, shown, left):
            self._made([message.change_id])
            self._queue(space, message)
        self._refresh(space, [key])

    def _met(self, space: str, shown: Iterable[tuple[str, str, str, str]]) -> None:
        """Note what the hub shows by now: table, id, path, and the stamp there."""
        if self._sql("select 1 from held_only where space = ? limit 1", (space,)).fetchone():
            self._many(
                "delete from held_only"
                " where space = ? and tbl = ? and id = ? and path = ? and at <= ?",
                [(space, *one) for one in shown],
            )

    # Set aside

    def take_aside(self, known: Callable[[str], bool]) -> None:
        """Apply what was set aside for tables that are known by now, in the order it came."""
        hub_ms = int(self.meta(HUB_TIME) or 0)
        names = [str(row[0]) for row in self._sql("select distinct tbl from aside").fetchall()]
        for table in filter(known, names):
            rows = self._sql(
                "select space, kind, body from aside where tbl = ? order by position", (table,)
            ).fetchall()
            for space, kind, body in rows:
                if kind == "record":
                    state = msgspec.json.decode(body, type=StateRecord)
                    self._take_records(space, [state], hub_ms)
                    continue
                logged = msgspec.json.decode(body, type=LoggedChange)
                key = (table, logged.change.id)
                if key in self._gone(space, [key]):
                    self._late(space, logged.change)
                    continue
                base = self.raw_base(space, *key)
                after = row_after(decode_row(base) if base else None, logged, self._guarded)
                self._set_bases(space, [(*key, encode_row(after), after.deleted, True)], hub_ms)
            self._sql("delete from aside where tbl = ?", (table,))

    def _set_aside(
        self, space: str, table: str, kind: str, body: LoggedChange | StateRecord
    ) -> None:
        self._sql(
            "insert into aside (space, tbl, kind, body) values (?, ?, ?, ?)",
            (space, table, kind, msgspec.json.encode(body)),
        )

    def _drop_aside(self, space: str, table: str, record_id: str) -> None:
        rows = self._sql(
            "select position, kind, body from aside where space = ? and tbl = ?", (space, table)
        ).fetchall()
        for position, kind, body in rows:
            found = (
                msgspec.json.decode(body, type=StateRecord).id
                if kind == "record"
                else msgspec.json.decode(body, type=LoggedChange).change.id
            )
            if found == record_id:
                self._sql("delete from aside where position = ?", (position,))

    # Old tombstones

    def let_go(self, hub_ms: int) -> int:
        """Let go of records that were deleted on the hub long ago; return how many.

        Those that a change here touches stay. The hub keeps its tombstones, so an edit of a
        device that was away for long changes nothing.
        """
        self._sql("update records set dead_ms = ? where dead_ms = 0", (hub_ms,))
        rows = self._sql(
            "delete from records where dead_ms is not null and dead_ms < ? and not exists"
            " (select 1 from outbox o where o.space = records.space and o.tbl = records.tbl"
            " and o.id = records.id) returning space, tbl, id",
            (hub_ms - TOMBSTONE_MS,),
        ).fetchall()
        self._many(
            "insert into gone (space, tbl, id) values (?, ?, ?) on conflict do nothing", rows
        )
        for name in ("overwritten", "held_only"):
            self._many(f"delete from {name} where space = ? and tbl = ? and id = ?", rows)  # noqa: S608
        for table in {str(row[1]) for row in rows}:
            self._mark(table)
        return len(rows)

    def wanted(self, space: str) -> list[Key]:
        """Return the records of a space that were restored after they were let go of here."""
        rows = self._sql(
            "select tbl, id from gone where space = ? and wanted = 1", (space,)
        ).fetchall()
        return [(str(table), str(record_id)) for table, record_id in rows]

    def _late(self, space: str, change: ChangeMessage) -> None:
        """Take a late change of a record that was let go of: only a restore counts."""
        tombstone = change.fields.get(DELETED_AT)
        if tombstone is not None and tombstone.value is None:
            self._sql(
                "update gone set wanted = 1 where space = ? and tbl = ? and id = ?",
                (space, change.table, change.id),
            )

    def _made_private(self, space: str, keys: Sequence[Key]) -> set[Key]:
        """Return which of these records were made here, private, and are not in the log yet.

        The hub's word that they are everybody's is not taken: what waits would be sealed so.
        """
        return {
            key
            for key, own in self._own(space, keys).items()
            if own[0][1].visibility == "private"
            and own[0][1].op != "flip"
            and self.raw_base(space, *key) is None
        }


def _is_newer(entry: StateField, shown: StateRecord, path: str) -> bool:
    """Say whether a held entry is newer than what the hub shows at its path, if anything."""
    return path not in shown.fields or entry.at > shown.fields[path].at
