"""What a transaction of the replica can do, and how records are written into a row."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from mana.domain.actors import Origin, actor_from_wire
from mana.domain.clock import Stamp, parse_stamp
from mana.domain.errors import ManaError
from mana.domain.ids import DeviceId, RecordId
from mana.domain.records import Entry, Record, Visibility
from mana.protocol.messages import ChangeMessage, LoggedChange, Proof, StateField, StateRecord
from mana.protocol.replication import (
    Guarded,
    Held,
    Queued,
    Verdict,
    apply_change,
    apply_state,
    next_batch,
    overlay,
)

_CLOCK: Final = "clock"


class _Row(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A record as it lies in a row."""

    author_id: str
    visibility: str
    fields: dict[str, StateField]
    seqs: dict[str, int] = msgspec.field(default_factory=dict)
    proofs: dict[str, Proof] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Space:
    """How far a space was read. `cursor` None: the state is still being read."""

    space: str
    type: str
    cursor: int | None
    page: str | None
    head: int | None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A change of this device that is not yet in the log here."""

    position: int
    space: str
    message: ChangeMessage
    state: str
    code: str
    refused_ms: int


class Tx:
    """One transaction of the replica."""

    def __init__(self, connection: sqlite3.Connection, guarded: Guarded) -> None:
        self._sql = connection.execute
        self._guarded = guarded
        self._at: int | None = None

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
        rows = self._sql("select space, type, cursor, page, head from spaces order by space")
        return [Space(*row) for row in rows]

    def add_space(self, space: str, space_type: str) -> None:
        """Begin to keep a space."""
        self._sql(
            "insert into spaces (space, type) values (?, ?) on conflict do nothing",
            (space, space_type),
        )

    def space(self, space: str) -> Space | None:
        """Return one space."""
        row = self._sql(
            "select space, type, cursor, page, head from spaces where space = ?", (space,)
        ).fetchone()
        return None if row is None else Space(*row)

    def restart_state(self, space: str) -> None:
        """Read the state of a space from its beginning."""
        self._sql("update spaces set page = null, head = null where space = ?", (space,))

    # Records

    def held(self, space: str, table: str, record_id: str) -> Held | None:
        """Return a record as the person sees it."""
        row = self._sql(
            "select coalesce(shown, base) from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None else _read(table, record_id, row[0])

    def marks(self, space: str, table: str) -> dict[str, int]:
        """Return by record id when each record of a table was last touched."""
        rows = self._sql(
            "select id, touched from records where space = ? and tbl = ?", (space, table)
        )
        return {str(record_id): int(at) for record_id, at in rows}

    def all_held(self, space: str, table: str, ids: Iterable[str]) -> dict[str, Held]:
        """Return these records of a table as the person sees them."""
        found: dict[str, Held] = {}
        for record_id in ids:
            held = self.held(space, table, record_id)
            if held is not None:
                found[record_id] = held
        return found

    def mark(self, space: str, table: str, record_id: str) -> int | None:
        """Return when a record was last touched."""
        row = self._sql(
            "select touched from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None else int(row[0])

    def touched_after(self, at: int) -> tuple[frozenset[str], int]:
        """Return the tables touched after a mark, and the newest mark."""
        rows = self._sql("select tbl, at from touched where at > ?", (at,)).fetchall()
        return frozenset(str(table) for table, _ in rows), max((row[1] for row in rows), default=at)

    # Outbox

    def was_made(self, change_id: str) -> bool:
        """Say whether a change of this id was made here, or was seen in the log.

        One that the hub refused was not made: whoever makes it again means it.
        """
        row = self._sql(
            "select 1 from made where change_id = ? and not exists"
            " (select 1 from outbox o where o.change_id = made.change_id and o.state = 'refused')",
            (change_id,),
        ).fetchone()
        return row is not None

    def add(self, space: str, message: ChangeMessage) -> None:
        """Put a new change into the outbox and over its record."""
        self.drop(self._outbox("change_id = ? and state = 'refused'", (message.change_id,)))
        self._sql("insert into made (change_id) values (?)", (message.change_id,))
        self._sql(
            "insert into outbox (space, change_id, tbl, id, grp, message, state)"
            " values (?, ?, ?, ?, ?, ?, 'waiting')",
            (
                space,
                message.change_id,
                message.table,
                message.id,
                message.group,
                msgspec.json.encode(message),
            ),
        )
        self._refresh(space, message.table, message.id)

    def batch(self, space: str, *, units_max: int | None = None) -> list[OutboxRow]:
        """Return the batch to push: the one that was sent before, else the next, marked sent."""
        sent = self._outbox("space = ? and state = 'sent'", (space,))
        if sent:
            return sent
        rows = self._sql(
            "select position, length(message), grp from outbox"
            " where space = ? and state = 'waiting' order by position limit 2000",
            (space,),
        )
        positions = next_batch((Queued(*row) for row in rows), units_max=units_max)
        for position in positions:
            self._sql("update outbox set state = 'sent' where position = ?", (position,))
        return self._outbox("space = ? and state = 'sent'", (space,))

    def unsend(self, space: str) -> None:
        """Let a batch that the hub took nothing of wait again, to be cut anew."""
        self._sql(
            "update outbox set state = 'waiting' where space = ? and state = 'sent'", (space,)
        )

    def settle(
        self,
        space: str,
        found: Sequence[Verdict],
        *,
        now_ms: int,
        restamp: Callable[[Tx, OutboxRow], ChangeMessage],
    ) -> None:
        """Take the hub's verdicts on a batch; what waits is stamped anew where one asks for it."""
        cursor = (self.space(space) or Space(space, "", None, None, None)).cursor or 0
        for verdict in found:
            rows = self._outbox("space = ? and change_id = ?", (space, verdict.change_id))
            for row in rows:
                if verdict.fate == "acknowledged" and verdict.seq <= cursor:
                    self._sql("delete from outbox where position = ?", (row.position,))
                elif verdict.fate == "acknowledged":
                    self._sql(
                        "update outbox set state = 'acknowledged', seq = ? where position = ?",
                        (verdict.seq, row.position),
                    )
                elif verdict.fate == "parked":
                    self.park([row], verdict.code, now_ms=now_ms)
                else:
                    self._sql(
                        "update outbox set state = 'waiting' where position = ?", (row.position,)
                    )
                self._refresh(space, row.message.table, row.message.id)
        if any(verdict.fate == "restamp" for verdict in found):
            self.restamp(self._outbox("state = 'waiting'", ()), restamp, now_ms=now_ms)

    def restamp(
        self,
        rows: Iterable[OutboxRow],
        anew: Callable[[Tx, OutboxRow], ChangeMessage],
        *,
        now_ms: int,
    ) -> None:
        """Stamp changes that wait anew, in their order; park what cannot be sealed here."""
        for row in rows:
            try:
                message = anew(self, row)
            except ManaError:
                self.park([row], "clock-ahead", now_ms=now_ms)
                continue
            self.replace(row, message)

    def park(self, rows: Iterable[OutboxRow], code: str, *, now_ms: int) -> None:
        """Put refused changes aside, where they are shown and block nothing."""
        for row in rows:
            self._sql(
                "update outbox set state = 'refused', code = ?, refused_ms = ? where position = ?",
                (code, now_ms, row.position),
            )
            self._refresh(row.space, row.message.table, row.message.id)

    def replace(self, row: OutboxRow, message: ChangeMessage) -> None:
        """Replace a change that waits by the same one, stamped or sealed anew."""
        self._sql(
            "update outbox set message = ?, state = 'waiting', code = null where position = ?",
            (msgspec.json.encode(message), row.position),
        )
        self._refresh(row.space, message.table, message.id)

    def unacknowledged(self) -> list[OutboxRow]:
        """Return the changes that the hub has not answered yet."""
        return self._outbox("state in ('waiting', 'sent')", ())

    def refused(self) -> list[OutboxRow]:
        """Return the parked changes, oldest first."""
        return self._outbox("state = 'refused'", ())

    def refused_with(self, change_id: str) -> list[OutboxRow]:
        """Return a parked change with its group; none if it is not parked."""
        rows = self._outbox("change_id = ? and state = 'refused'", (change_id,))
        if not rows or rows[0].message.group is None:
            return rows
        return self._outbox("grp = ? and state = 'refused'", (rows[0].message.group,))

    def drop(self, rows: Iterable[OutboxRow]) -> None:
        """Forget parked changes. Their ids may be used again."""
        for row in rows:
            self._sql("delete from outbox where position = ?", (row.position,))
            self._sql("delete from made where change_id = ?", (row.message.change_id,))
            self._refresh(row.space, row.message.table, row.message.id)

    def states(self, change_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return state and code of those of these changes that are in the outbox."""
        found: dict[str, tuple[str, str]] = {}
        for change_id in change_ids:
            row = self._sql(
                "select state, coalesce(code, '') from outbox where change_id = ?", (change_id,)
            ).fetchone()
            if row is not None:
                found[change_id] = (str(row[0]), str(row[1]))
        return found

    def counts(self) -> tuple[int, int]:
        """Return how many changes wait, and how many were refused."""
        row = self._sql(
            "select coalesce(sum(state in ('waiting', 'sent')), 0),"
            " coalesce(sum(state = 'refused'), 0) from outbox"
        ).fetchone()
        return int(row[0]), int(row[1])

    # Pulling

    def take_changes(
        self,
        space: str,
        changes: Sequence[LoggedChange],
        cursor: int,
        *,
        known: Callable[[str], bool],
    ) -> None:
        """Apply a checked page and move the cursor, together."""
        bases: dict[tuple[str, str], Held | None] = {}
        for logged in changes:
            change = logged.change
            self._sql(
                "insert into made (change_id) values (?) on conflict do nothing",
                (change.change_id,),
            )
            self._sql("delete from outbox where change_id = ?", (change.change_id,))
            if not known(change.table):
                self._set_aside(space, change.table, "change", logged)
                continue
            key = (change.table, change.id)
            base = bases[key] if key in bases else self.base(space, *key)
            bases[key] = apply_change(base, change, seq=logged.seq, guarded=self._guarded)
        self._sql("update spaces set cursor = ? where space = ?", (cursor, space))
        over = self._forget_acknowledged(space, cursor)
        self._set_bases(space, bases)
        for table, record_id in over:
            if (table, record_id) not in bases:
                self._refresh(space, table, record_id)

    def take_state(
        self,
        space: str,
        records: Sequence[StateRecord],
        *,
        head: int,
        page: str | None,
        known: Callable[[str], bool],
    ) -> None:
        """Apply a checked page of the state; after the last one the cursor is the first head."""
        bases: dict[tuple[str, str], Held | None] = {}
        for record in records:
            if not known(record.table):
                self._set_aside(space, record.table, "record", record)
                continue
            key = (record.table, record.id)
            base = bases[key] if key in bases else self.base(space, *key)
            bases[key] = apply_state(base, record, guarded=self._guarded)
        self._set_bases(space, bases)
        if page is None:
            self._sql(
                "update spaces set cursor = ?, page = null, head = null where space = ?",
                (head, space),
            )
            for table, record_id in self._forget_acknowledged(space, head):
                self._refresh(space, table, record_id)
        else:
            self._sql("update spaces set page = ?, head = ? where space = ?", (page, head, space))

    def take_aside(self, known: Callable[[str], bool]) -> None:
        """Apply what was set aside for tables that are known by now, in the order it came."""
        names = [str(row[0]) for row in self._sql("select distinct tbl from aside").fetchall()]
        for table in filter(known, names):
            rows = self._sql(
                "select space, kind, body from aside where tbl = ? order by position", (table,)
            ).fetchall()
            for space, kind, body in rows:
                if kind == "record":
                    state = msgspec.json.decode(body, type=StateRecord)
                    base = self.base(space, table, state.id)
                    after = apply_state(base, state, guarded=self._guarded)
                else:
                    logged = msgspec.json.decode(body, type=LoggedChange)
                    base = self.base(space, table, logged.change.id)
                    after = apply_change(base, logged.change, seq=logged.seq, guarded=self._guarded)
                self._set_bases(space, {(table, after.record.id): after})
            self._sql("delete from aside where tbl = ?", (table,))

    # Within

    def _outbox(self, where: str, values: tuple[str, ...]) -> list[OutboxRow]:
        rows = self._sql(
            "select position, space, message, state, coalesce(code, ''), coalesce(refused_ms, 0)"  # noqa: S608
            f" from outbox where {where} order by position",
            values,
        ).fetchall()
        return [
            OutboxRow(
                position,
                space,
                msgspec.json.decode(message, type=ChangeMessage),
                state,
                code,
                refused_ms,
            )
            for position, space, message, state, code, refused_ms in rows
        ]

    def base(self, space: str, table: str, record_id: str) -> Held | None:
        """Return a record as the hub holds it at the cursor."""
        row = self._sql(
            "select base from records where space = ? and tbl = ? and id = ?",
            (space, table, record_id),
        ).fetchone()
        return None if row is None or row[0] is None else _read(table, record_id, row[0])

    def _set_bases(self, space: str, bases: dict[tuple[str, str], Held | None]) -> None:
        for (table, record_id), held in bases.items():
            if held is None:
                continue
            self._sql(
                "insert into records (space, tbl, id, base, touched) values (?, ?, ?, ?, 0)"
                " on conflict (space, tbl, id) do update set base = excluded.base",
                (space, table, record_id, _written(held)),
            )
            self._refresh(space, table, record_id)

    def _refresh(self, space: str, table: str, record_id: str) -> None:
        """Recompute what the person sees: the hub's record, and what waits here over it."""
        own = [
            row.message
            for row in self._outbox(
                "space = ? and tbl = ? and id = ? and state <> 'refused'",
                (space, table, record_id),
            )
        ]
        at = self._mark(table)
        base = self.base(space, table, record_id)
        shown = overlay(base, own, guarded=self._guarded) if own else None
        if base is None and shown is None:
            self._sql(
                "delete from records where space = ? and tbl = ? and id = ?",
                (space, table, record_id),
            )
            return
        self._sql(
            "insert into records (space, tbl, id, shown, touched) values (?, ?, ?, ?, ?)"
            " on conflict (space, tbl, id) do update"
            " set shown = excluded.shown, touched = excluded.touched",
            (space, table, record_id, None if shown is None else _written(shown), at),
        )

    def _mark(self, table: str) -> int:
        """Mark a table as touched by this transaction."""
        if self._at is None:
            row = self._sql("select coalesce(max(at), 0) from touched").fetchone()
            self._at = int(row[0])
        # A transaction may touch one record twice, and each must be seen.
        self._at += 1
        self._sql(
            "insert into touched (tbl, at) values (?, ?)"
            " on conflict (tbl) do update set at = excluded.at",
            (table, self._at),
        )
        return self._at

    def _forget_acknowledged(self, space: str, cursor: int) -> list[tuple[str, str]]:
        """Drop own changes that the records hold by now; return which records they lay over."""
        found = self._sql(
            "delete from outbox where space = ? and state = 'acknowledged' and seq <= ?"
            " returning tbl, id",
            (space, cursor),
        ).fetchall()
        return [(str(table), str(record_id)) for table, record_id in found]

    def _set_aside(
        self, space: str, table: str, kind: str, body: LoggedChange | StateRecord
    ) -> None:
        self._sql(
            "insert into aside (space, tbl, kind, body) values (?, ?, ?, ?)",
            (space, table, kind, msgspec.json.encode(body)),
        )


def _read(table: str, record_id: str, raw: bytes) -> Held:
    row = msgspec.json.decode(raw, type=_Row)
    entries = {
        path: Entry(
            found.value,
            found.at,
            actor_from_wire(found.actor),
            cast(Origin, found.origin),
            found.change_id,
        )
        for path, found in row.fields.items()
    }
    record = Record(
        table, RecordId(record_id), row.author_id, cast(Visibility, row.visibility), entries
    )
    return Held(record, row.seqs, row.proofs)


def _written(held: Held) -> bytes:
    fields = {
        path: StateField(
            value=entry.value,
            at=entry.at,
            actor={name: str(member) for name, member in entry.actor.to_wire().items()},
            origin=entry.origin,
            change_id=entry.change_id,
        )
        for path, entry in held.record.entries.items()
    }
    row = _Row(
        author_id=held.record.author_id,
        visibility=held.record.visibility,
        fields=fields,
        seqs=dict(held.seqs),
        proofs=dict(held.proofs),
    )
    return msgspec.json.encode(row)
