"""What a transaction of the replica can do."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from mana.device.errors import SpaceLeft
from mana.device.replica.rows import (
    Row,
    decode_row,
    encode_row,
    entry_of,
    field_of,
    held_of,
    read_row,
    row_after,
    row_of_state,
    write_row,
)
from mana.domain.clock import Stamp, parse_stamp
from mana.domain.errors import ManaError
from mana.domain.ids import DeviceId
from mana.domain.records import Entry, Record
from mana.domain.tables import DELETED_AT
from mana.protocol.messages import (
    ChangeMessage,
    HiddenRecord,
    LoggedChange,
    StateField,
    StateRecord,
)
from mana.protocol.replication import (
    Guarded,
    Held,
    HubDistrusted,
    Queued,
    Verdict,
    apply_state,
    in_log_order,
    next_batch,
    overlay,
)

TRIES_MAX: Final = 5
"""How often a change is made anew and sent again before it is parked."""
TOMBSTONE_MS: Final = 30 * 24 * 3_600 * 1_000
OVERWRITTEN_MAX: Final = 200
OVERWRITTEN_MS: Final = 30 * 24 * 3_600 * 1_000
HUB_TIME: Final = "hubMs"
"""The hub's newest time that was seen, in ms."""
_CLOCK: Final = "clock"
_LEFT: Final = "left"

Key: TypeAlias = tuple[str, str]
"""Table and record id."""
Anew: TypeAlias = "Callable[[Tx, OutboxRow], ChangeMessage]"
"""Makes a change that waits anew; the same one if there is nothing to do."""
Resend: TypeAlias = (
    "Callable[[Tx, str, Record, StateRecord | None, Sequence[str]], list[ChangeMessage]]"
)
"""Makes own changes again that the hub lacks, of: a space, the record as it stands here, the same
as the hub shows it, and the paths that are newer here."""


@dataclass(frozen=True, slots=True)
class Space:
    """How far a space was read. `cursor` None: the state is still being read.

    `state` is `active`, or `left`: no longer synced, and still readable.
    """

    space: str
    type: str
    cursor: int | None
    page: str | None
    head: int | None
    state: str = "active"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A change of this device that is not yet in the log here."""

    position: int
    space: str
    message: ChangeMessage
    state: str
    code: str
    refused_ms: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """What of a page of changes concerns the person at this device.

    `differ` says of table, the record before and after, and a path, whether the opened values
    differ.
    """

    account_id: str
    device_id: str
    hub_ms: int
    differ: Callable[[str, Record, Record, str], bool]


@dataclass(frozen=True, slots=True)
class Overwritten:
    """Edits of this person on this device that something newer overwrote, by path."""

    number: int
    space: str
    table: str
    record_id: str
    at_ms: int
    was: Mapping[str, Entry]
    now: Mapping[str, Entry]


class _Overwritten(msgspec.Struct, frozen=True, rename="camel"):
    was: dict[str, StateField]
    now: dict[str, StateField]


@dataclass(frozen=True, slots=True)
class _Met:
    """What another device wrote at a path: its stamp, and how far its writer had read; -1 unknown."""

    at: str
    seen: int


@dataclass(slots=True)
class _Page:
    """The records that a page touches, as they were and as they become."""

    before: dict[Key, tuple[Row | None, Row | None]]
    after: dict[Key, Row | None] = field(default_factory=dict)
    private: set[Key] = field(default_factory=set)
    hidden: set[Key] = field(default_factory=set)
    loud: set[Key] = field(default_factory=set)
    written: dict[Key, dict[str, list[_Met]]] = field(default_factory=dict)

    def standing(self, key: Key) -> Row | None:
        """Return what the hub holds at this place of the page."""
        return self.after[key] if key in self.after else self.before.get(key, (None, None))[0]


class Tx:
    """One transaction of the replica."""

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

    def leave_space(self, space: str, *, now_ms: int) -> None:
        """Sync a space no more; what waits for it is parked, what is here stays readable."""
        self._sql("update spaces set state = 'left' where space = ?", (space,))
        waiting = self._outbox("space = ? and state in ('waiting', 'sent')", (space,))
        self.park(waiting, "not-a-member", now_ms=now_ms)

    def forget_space(self, space: str) -> None:
        """Remove everything of a space from this device."""
        tables = self._sql("select distinct tbl from records where space = ?", (space,)).fetchall()
        for name in (
            "records",
            "outbox",
            "aside",
            "gone",
            "overwritten",
            "held_only",
            "spaces",
        ):
            self._sql(f"delete from {name} where space = ?", (space,))  # noqa: S608
        for (table,) in tables:
            self._mark(str(table))

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

    def _is_anew(self, space: str) -> bool:
        row = self._sql("select anew from spaces where space = ?", (space,)).fetchone()
        return row is not None and bool(row[0])

    # Records

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

    def touched(self, table: str) -> int:
        """Return when a table was last touched; a later touch has a greater number."""
        row = self._sql("select at from touched where tbl = ?", (table,)).fetchone()
        return 0 if row is None else int(row[0])

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
        self.require_kept(space)
        self.drop(self._outbox("change_id = ? and state = 'refused'", (message.change_id,)))
        self._sql("insert into made (change_id) values (?)", (message.change_id,))
        self._queue(space, message)
        self._refresh(space, [(message.table, message.id)])

    def _queue(self, space: str, message: ChangeMessage) -> None:
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
        self._many(
            "update outbox set state = 'sent' where position = ?",
            [(position,) for position in positions],
        )
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
        restamp: Anew,
        rename: Anew,
        account_id: str,
    ) -> None:
        """Take the hub's verdicts on a batch; what waits is stamped anew where one asks for it.

        What the hub says is in the log already, and is not, goes again; `account_id` is whose
        records the hub hides from nobody here.

        What is to be sealed anew waits for `reseal`, because the keys come first.
        """
        cursor = (self.space(space) or Space(space, "", None, None, None)).cursor or 0
        moved: list[Key] = []
        for verdict in found:
            for row in self._outbox("space = ? and change_id = ?", (space, verdict.change_id)):
                if verdict.fate == "acknowledged" and verdict.seq > cursor:
                    # It lies over its record until the log brings it, so nothing moves here.
                    self._sql(
                        "update outbox set state = 'acknowledged', seq = ? where position = ?",
                        (verdict.seq, row.position),
                    )
                    continue
                if verdict.fate == "acknowledged":
                    if self._is_logged(row, verdict.seq, account_id):
                        self._sql("delete from outbox where position = ?", (row.position,))
                    else:
                        self._unconfirmed(row, rename, now_ms)
                elif verdict.fate == "forgotten":
                    self.drop([row])
                elif verdict.fate == "parked" or row.tries >= TRIES_MAX:
                    self.park([row], verdict.code, now_ms=now_ms)
                else:
                    self._again(row, rename if verdict.fate == "rename" else None)
                moved.append((row.message.table, row.message.id))
        self._refresh(space, moved)
        if any(verdict.fate == "restamp" for verdict in found):
            self.restamp(self._outbox("state = 'waiting'", ()), restamp, now_ms=now_ms)

    def _again(self, row: OutboxRow, rename: Anew | None) -> None:
        """Let a refused change wait again; under another id if it needs one."""
        message = row.message if rename is None else rename(self, row)
        self._sql(
            "update outbox set state = 'waiting', tries = tries + 1, change_id = ?, message = ?"
            " where position = ?",
            (message.change_id, msgspec.json.encode(message), row.position),
        )
        self._made([message.change_id])

    def restamp(self, rows: Iterable[OutboxRow], anew: Anew, *, now_ms: int) -> None:
        """Stamp changes that wait anew, in their order; park what cannot be sealed here."""
        self._remake(rows, anew, "clock-ahead", now_ms)

    def reseal(self, space: str, anew: Anew, *, now_ms: int) -> None:
        """Seal what waits for a space anew where it needs it; park what cannot be sealed here."""
        rows = self._outbox("space = ? and state = 'waiting'", (space,))
        self._remake(rows, anew, "stale-key", now_ms)

    def _remake(self, rows: Iterable[OutboxRow], anew: Anew, code: str, now_ms: int) -> None:
        parked: set[int] = set()
        for row in rows:
            if row.position in parked:
                continue
            try:
                message = anew(self, row)
            except ManaError:
                self.park([row], code, now_ms=now_ms)
                mates = self._waiting_mates(row)
                self.park(mates, "group-refused", now_ms=now_ms)
                parked |= {mate.position for mate in mates}
                continue
            if message is not row.message or row.state != "waiting":
                self.replace(row, message)

    def _waiting_mates(self, row: OutboxRow) -> list[OutboxRow]:
        if row.message.group is None:
            return []
        return self._outbox("grp = ? and state = 'waiting'", (row.message.group,))

    def before(self, row: OutboxRow) -> Held | None:
        """Return the record as a change that waits finds it: the hub's, and own earlier ones."""
        key = (row.message.table, row.message.id)
        own = self._own(row.space, [key]).get(key, [])
        return self._over(self.base(row.space, *key), [o for o in own if o[0] < row.position])

    def park(self, rows: Iterable[OutboxRow], code: str, *, now_ms: int) -> None:
        """Put refused changes aside, where they are shown and block nothing."""
        for row in rows:
            self._sql(
                "update outbox set state = 'refused', code = ?, refused_ms = ?, tries = 0"
                " where position = ?",
                (code, now_ms, row.position),
            )
            self._refresh(row.space, [(row.message.table, row.message.id)])

    def replace(self, row: OutboxRow, message: ChangeMessage) -> None:
        """Replace a change by the same one, stamped or sealed anew; it waits from then on.

        Raises SpaceLeft where it would wait for ever.
        """
        self.require_kept(row.space)
        self._sql(
            "update outbox set message = ?, state = 'waiting', code = null where position = ?",
            (msgspec.json.encode(message), row.position),
        )
        self._refresh(row.space, [(message.table, message.id)])

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
            self._refresh(row.space, [(row.message.table, row.message.id)])

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
        hidden: Sequence[HiddenRecord] = (),
        watch: Watch,
        anew: Anew,
        restamp: Anew,
    ) -> bool:
        """Apply a checked page and move the cursor, together.

        `anew` seals what waits over a record that flipped; `restamp` also stamps it. Says whether
        an edit of the person was overwritten that they should know of.
        """
        keys = {(one.change.table, one.change.id) for one in changes}
        private = self._made_private(space, sorted(keys))
        self._logged(changes, watch.device_id)
        # Of another device of this account the hub says so itself when this one is sent; of
        # another account a change with the id of one that waits here proves nothing.
        self._many(
            "delete from outbox where change_id = ?",
            [
                (logged.change.change_id,)
                for logged in changes
                if logged.device_id == watch.device_id
            ],
        )
        self._sql("update spaces set cursor = ? where space = ?", (cursor, space))
        keys |= {(one.table, one.id) for one in hidden}
        page = self._page(space, sorted(key for key in keys if known(key[0])))
        page.private = private
        gone = self._gone(space, keys)
        over: list[Key] = []
        for one in in_log_order(changes, hidden):
            if isinstance(one, HiddenRecord):
                self._hide(space, page, one, known=known, watch=watch)
            elif not known(one.change.table):
                self._set_aside(space, one.change.table, "change", one)
            elif (one.change.table, one.change.id) in gone:
                self._late(space, one.change)
                over.append((one.change.table, one.change.id))
            else:
                self._apply(page, one, watch)
        self._settle_page(space, page, watch.hub_ms)
        self._met(
            space,
            (
                (one.change.table, one.change.id, path, write.at)
                for one in changes
                for path, write in one.change.fields.items()
            ),
        )
        self._refresh(space, [key for key in over if key not in page.after])
        self._refresh(space, self._confirm(space, cursor, watch.account_id, watch.hub_ms))
        self._follow_flips(space, page, anew, restamp, watch.hub_ms)
        return self._raise_conflicts(space, page, watch)

    def _page(self, space: str, keys: Sequence[Key]) -> _Page:
        before: dict[Key, tuple[Row | None, Row | None]] = {}
        for table, record_id, base, shown in self._rows(
            "r.base, r.shown", "records r", space, keys
        ):
            row = None if base is None else decode_row(base)
            before[table, record_id] = (row, row if shown is None else decode_row(shown))
        return _Page(before)

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

    def _apply(self, page: _Page, logged: LoggedChange, watch: Watch) -> None:
        change = logged.change
        key = (change.table, change.id)
        standing = page.standing(key)
        after = row_after(standing, logged, self._guarded)
        if standing is None and key in page.private:
            after = msgspec.structs.replace(after, visibility="private")
        page.after[key] = after
        if standing is None or change.op != "reseal" or not _same_stamps(standing, after):
            page.loud.add(key)
        if key not in page.before or logged.device_id == watch.device_id:
            return
        if change.op != "reseal":
            met = page.written.setdefault(key, {})
            seen = _seen(logged)
            for path, write in change.fields.items():
                met.setdefault(path, []).append(_Met(write.at, seen))

    def _hide(
        self,
        space: str,
        page: _Page,
        marker: HiddenRecord,
        *,
        known: Callable[[str], bool],
        watch: Watch,
    ) -> None:
        """Drop a record that its author keeps to themselves from now on."""
        key = (marker.table, marker.id)
        if not known(marker.table):
            self._drop_aside(space, *key)
            return
        standing = page.standing(key)
        if standing is not None and standing.author_id == watch.account_id:
            raise HubDistrusted("the hub hides a record from its own author")
        page.after[key] = None
        page.hidden.add(key)
        page.loud.add(key)
        page.written.pop(key, None)

    def _settle_page(self, space: str, page: _Page, hub_ms: int) -> None:
        """Write what a page made of its records."""
        away = [key for key in page.hidden if page.after[key] is None]
        for key in away:
            self._sql(
                "update records set base = null, dead_ms = null"
                " where space = ? and tbl = ? and id = ?",
                (space, *key),
            )
            where = "space = ? and tbl = ? and id = ?"
            for name in ("overwritten", "held_only"):
                self._sql(f"delete from {name} where {where}", (space, *key))  # noqa: S608
            self.park(
                self._outbox(f"{where} and state = 'waiting'", (space, *key)),
                "hidden",
                now_ms=hub_ms,
            )
        self._refresh(space, away)
        rows = [
            (*key, encode_row(row), row.deleted, key in page.loud)
            for key, row in page.after.items()
            if row is not None
        ]
        self._set_bases(space, rows, hub_ms)

    def _follow_flips(
        self, space: str, page: _Page, anew: Anew, restamp: Anew, now_ms: int
    ) -> None:
        """Seal what waits over a record for the visibility that it has by now.

        A flip writes every value again under its own stamp. It must not beat an edit with the
        very value that the edit replaced, so such an edit is stamped anew, and with it what was
        written to the record after it: the last word stays the last.
        """
        for key, row in page.after.items():
            before = page.before.get(key, (None, None))[0]
            if row is not None and before is not None and before.visibility != row.visibility:
                waiting = self._outbox(
                    "space = ? and tbl = ? and id = ? and state = 'waiting'", (space, *key)
                )
                beaten = _from_the_first_beaten(waiting, before, row)
                self._remake(beaten, restamp, "stale-key", now_ms)
                # Its journal goes with it: what stood in a private record is private too.
                mates = [mate for one in waiting for mate in self._waiting_mates(one)]
                done = {one.position for one in beaten}
                rows = {one.position: one for one in (*waiting, *mates)}
                left = [rows[place] for place in sorted(rows.keys() - done)]
                self._remake(left, anew, "stale-key", now_ms)

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

    def take_record(self, space: str, key: Key, record: StateRecord | None, *, hub_ms: int) -> None:
        """Take the whole of a record that was asked for; None: there is none to see."""
        self._sql(
            "update gone set wanted = 0 where space = ? and tbl = ? and id = ?", (space, *key)
        )
        if record is not None:
            self._take_records(space, [record], hub_ms)

    def _gone(self, space: str, keys: Iterable[Key]) -> set[Key]:
        if self._sql("select 1 from gone limit 1").fetchone() is None:
            return set()
        rows = self._rows("1", "gone r", space, list(keys))
        return {(str(table), str(record_id)) for table, record_id, _ in rows}

    def _late(self, space: str, change: ChangeMessage) -> None:
        """Take a late change of a record that was let go of: only a restore counts."""
        tombstone = change.fields.get(DELETED_AT)
        if tombstone is not None and tombstone.value is None:
            self._sql(
                "update gone set wanted = 1 where space = ? and tbl = ? and id = ?",
                (space, change.table, change.id),
            )

    # What was overwritten

    def overwritten(self) -> list[Overwritten]:
        """Return what newer edits of others overwrote of this person's, newest first."""
        rows = self._sql(
            "select number, space, tbl, id, at_ms, body from overwritten"
            " order by at_ms desc, number desc"
        ).fetchall()
        found: list[Overwritten] = []
        for number, space, table, record_id, at_ms, body in rows:
            kept = msgspec.json.decode(body, type=_Overwritten)
            found.append(
                Overwritten(
                    number,
                    space,
                    table,
                    record_id,
                    at_ms,
                    {path: entry_of(one) for path, one in kept.was.items()},
                    {path: entry_of(one) for path, one in kept.now.items()},
                )
            )
        return found

    def drop_overwritten(self, number: int) -> bool:
        """Forget what was overwritten in one record; say whether it was known."""
        return self._sql("delete from overwritten where number = ?", (number,)).rowcount > 0

    def _raise_conflicts(self, space: str, page: _Page, watch: Watch) -> bool:
        raised = False
        for key, paths in page.written.items():
            seen = page.before.get(key, (None, None))[1]
            if seen is None or page.after.get(key) is None:
                continue
            mine = [
                path
                for path, met in paths.items()
                if _is_own(seen.fields.get(path), watch) and self._is_blind(seen.fields[path], met)
            ]
            if not mine:
                continue
            after = self.held(space, *key)
            if after is None:
                continue
            was, now = _lost(held_of(*key, seen), after, mine, watch)
            if was:
                self._keep_overwritten(space, key, was, now, watch.hub_ms)
                raised = True
        if raised:
            self._sql("delete from overwritten where at_ms < ?", (watch.hub_ms - OVERWRITTEN_MS,))
            self._sql(
                "delete from overwritten where number not in (select number from overwritten"
                " order by at_ms desc, number desc limit ?)",
                (OVERWRITTEN_MAX,),
            )
        return raised

    def _is_blind(self, mine: StateField, met: Iterable[_Met]) -> bool:
        """Say whether one of these replaced an own value that its writer had not seen.

        Whoever had read the log beyond the own edit knew what they replaced.
        """
        row = self._sql("select seq from made where change_id = ?", (mine.change_id,)).fetchone()
        place = None if row is None else row[0]
        return any(one.at > mine.at and (place is None or one.seen < place) for one in met)

    def _keep_overwritten(
        self,
        space: str,
        key: Key,
        was: dict[str, StateField],
        now: dict[str, StateField],
        at_ms: int,
    ) -> None:
        row = self._sql(
            "select body from overwritten where space = ? and tbl = ? and id = ?", (space, *key)
        ).fetchone()
        if row is not None:
            kept = msgspec.json.decode(row[0], type=_Overwritten)
            was, now = {**was, **kept.was}, {**kept.now, **now}
        self._sql(
            "insert into overwritten (space, tbl, id, at_ms, body) values (?, ?, ?, ?, ?)"
            " on conflict (space, tbl, id) do update"
            " set at_ms = excluded.at_ms, body = excluded.body",
            (space, *key, at_ms, msgspec.json.encode(_Overwritten(was, now))),
        )

    # Within

    def _outbox(self, where: str, values: tuple[str | int, ...]) -> list[OutboxRow]:
        rows = self._sql(
            "select position, space, message, state, coalesce(code, ''), coalesce(refused_ms, 0),"  # noqa: S608
            f" tries from outbox where {where} order by position",
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
                tries,
            )
            for position, space, message, state, code, refused_ms, tries in rows
        ]

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

    def _made(self, change_ids: Iterable[str]) -> None:
        self._many(
            "insert into made (change_id) values (?) on conflict do nothing",
            [(change_id,) for change_id in change_ids],
        )

    def _logged(self, changes: Iterable[LoggedChange], device_id: str) -> None:
        """Note which changes are in the log, and where if they are this device's own."""
        self._many(
            "insert into made (change_id, seq) values (?, ?) on conflict do update"
            " set seq = excluded.seq where excluded.seq is not null",
            [
                (
                    logged.change.change_id,
                    logged.seq if logged.device_id == device_id else None,
                )
                for logged in changes
            ],
        )

    def _mark(self, table: str) -> int:
        """Mark a table as touched by this transaction."""
        if self._at is None:
            row = self._sql("select coalesce(max(at), 0) from touched").fetchone()
            self._at = int(row[0])
        # A transaction may touch one record twice, and each must be seen.
        self._at += 1
        self._touched[table] = self._at
        return self._at

    def _confirm(self, space: str, cursor: int, account_id: str, now_ms: int) -> list[Key]:
        """Drop own changes that the records hold by now; return which records they lay over.

        One that the hub took and does not show is sent again: it must not be lost by its word.
        """
        moved: list[Key] = []
        found = self._sql(
            "select position, seq from outbox where space = ? and state = 'acknowledged'"
            " and seq <= ?",
            (space, cursor),
        ).fetchall()
        for position, seq in found:
            (row,) = self._outbox("position = ?", (position,))
            if self._is_logged(row, seq, account_id):
                self._sql("delete from outbox where position = ?", (position,))
            elif row.message.author_id == account_id:
                self._unconfirmed(row, None, now_ms)
            else:
                continue  # perhaps its author hides the record, and a later page says so
            moved.append((row.message.table, row.message.id))
        return moved

    def _unconfirmed(self, row: OutboxRow, rename: Anew | None, now_ms: int) -> None:
        if row.tries >= TRIES_MAX:
            self.park([row], "unconfirmed", now_ms=now_ms)
        else:
            self._again(row, rename)

    def _is_logged(self, row: OutboxRow, seq: int, account_id: str) -> bool:
        """Say whether the record holds a change that the hub says is in the log at `seq`.

        True also where this device cannot tell: of another account's record, which may be hidden
        by now, of one that it let go of, and of a table that it does not know.
        """
        change = row.message
        key = (change.table, change.id)
        base = self.base(row.space, *key)
        if base is None:
            return (
                change.author_id != account_id
                or bool(self._gone(row.space, [key]))
                or self._sql(
                    "select 1 from aside where space = ? and tbl = ? limit 1",
                    (row.space, change.table),
                ).fetchone()
                is not None
            )
        entries = base.record.entries
        if any(
            path in entries and entries[path].change_id == change.change_id
            for path in change.fields
        ):
            return True
        return all(
            path in entries
            and (
                base.seqs.get(path, 0) >= seq
                if self._guarded(change.table, path)
                else entries[path].at >= write.at
            )
            for path, write in change.fields.items()
        )

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


_Own: TypeAlias = tuple[int, ChangeMessage]
"""The change's place in the outbox, and the change."""


def _is_newer(entry: StateField, shown: StateRecord, path: str) -> bool:
    """Say whether a held entry is newer than what the hub shows at its path, if anything."""
    return path not in shown.fields or entry.at > shown.fields[path].at


def _same_stamps(before: Row, after: Row) -> bool:
    """Say whether a person sees the same record in both."""
    mine, theirs = before.fields, after.fields
    return mine.keys() == theirs.keys() and all(
        entry.at == theirs[path].at for path, entry in mine.items()
    )


def _from_the_first_beaten(
    waiting: Sequence[OutboxRow], before: Row, after: Row
) -> list[OutboxRow]:
    """Return the edits that wait, from the first one on that a flip would beat."""
    edits = [one for one in waiting if one.message.op != "flip"]
    for index, one in enumerate(edits):
        if _is_beaten_by_flip(one.message, before, after):
            return edits[index:]
    return []


def _is_beaten_by_flip(change: ChangeMessage, before: Row, after: Row) -> bool:
    """Say whether an edit was newer than all it met, and is not newer than the flip."""
    met = [(write.at, path) for path, write in change.fields.items()]
    was_newer = all(path not in before.fields or at > before.fields[path].at for at, path in met)
    return was_newer and any(
        path in after.fields and at <= after.fields[path].at for at, path in met
    )


def _seen(logged: LoggedChange) -> int:
    """Return how far the writer of a change had read; -1 if it does not say, or cannot be so."""
    seen = logged.change.seen
    return -1 if seen is None or seen >= logged.seq else seen


def _is_own(entry: StateField | None, watch: Watch) -> bool:
    """Say whether the person wrote this entry at this device."""
    return (
        entry is not None
        and entry.value is not None
        and entry.origin == "user"
        and entry.at.endswith(watch.device_id)
    )


def _lost(
    seen: Held, after: Held, paths: Iterable[str], watch: Watch
) -> tuple[dict[str, StateField], dict[str, StateField]]:
    """Return by path what the person wrote here and what stands instead, where they differ."""
    was: dict[str, StateField] = {}
    now: dict[str, StateField] = {}
    for path in sorted(paths):
        mine, theirs = seen.record.entries[path], after.record.entries.get(path)
        if theirs is None or theirs.value is None:
            continue
        if theirs.at <= mine.at or theirs.at.endswith(watch.device_id):
            continue
        if watch.differ(seen.record.table, seen.record, after.record, path):
            was[path], now[path] = field_of(mine), field_of(theirs)
    return was, now
