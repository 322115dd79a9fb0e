"""The outbox of a replica: what was written here and is not in the log yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from mana.device.replica.records import Records
from mana.device.replica.shapes import Key, OutboxRow, Space
from mana.domain.errors import ManaError
from mana.protocol.messages import ChangeMessage
from mana.protocol.replication import Held, Queued, Verdict, next_batch

TRIES_MAX: Final = 5
"""How often a change is made anew and sent again before it is parked."""

Anew: TypeAlias = "Callable[[Outbox, OutboxRow], ChangeMessage]"
"""Makes a change that waits anew; the same one if there is nothing to do."""


class Outbox(Records):
    """The outbox, within one transaction."""

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

    def restamp(self, rows: Iterable[OutboxRow], anew: Anew, *, now_ms: int) -> None:
        """Stamp changes that wait anew, in their order; park what cannot be sealed here."""
        self._remake(rows, anew, "clock-ahead", now_ms)

    def reseal(self, space: str, anew: Anew, *, now_ms: int) -> None:
        """Seal what waits for a space anew where it needs it; park what cannot be sealed here."""
        rows = self._outbox("space = ? and state = 'waiting'", (space,))
        self._remake(rows, anew, "stale-key", now_ms)

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

    def drop(self, rows: Iterable[OutboxRow]) -> None:
        """Forget parked changes. Their ids may be used again."""
        for row in rows:
            self._sql("delete from outbox where position = ?", (row.position,))
            self._sql("delete from made where change_id = ?", (row.message.change_id,))
            self._refresh(row.space, [(row.message.table, row.message.id)])

    def leave_space(self, space: str, *, now_ms: int) -> None:
        """Sync a space no more; what waits for it is parked, what is here stays readable."""
        self._sql("update spaces set state = 'left' where space = ?", (space,))
        waiting = self._outbox("space = ? and state in ('waiting', 'sent')", (space,))
        self.park(waiting, "not-a-member", now_ms=now_ms)

    # What waits and what was refused

    def unacknowledged(self) -> list[OutboxRow]:
        """Return the changes that the hub has not answered yet."""
        return self._outbox("state in ('waiting', 'sent')", ())

    def waits(self, space: str, table: str, record_id: str) -> bool:
        """Say whether a change of a record has not been answered by the hub yet."""
        return bool(
            self._sql(
                "select 1 from outbox where space = ? and tbl = ? and id = ?"
                " and state in ('waiting', 'sent') limit 1",
                (space, table, record_id),
            ).fetchone()
        )

    def untaken(self, space: str, table: str, record_id: str) -> list[OutboxRow]:
        """Return the changes of a record that the hub has not taken: they wait, or are parked."""
        return self._outbox(
            "space = ? and tbl = ? and id = ? and state != 'acknowledged'",
            (space, table, record_id),
        )

    def refused(self) -> list[OutboxRow]:
        """Return the parked changes, oldest first."""
        return self._outbox("state = 'refused'", ())

    def refused_with(self, change_id: str) -> list[OutboxRow]:
        """Return a parked change with its group; none if it is not parked."""
        rows = self._outbox("change_id = ? and state = 'refused'", (change_id,))
        if not rows or rows[0].message.group is None:
            return rows
        return self._outbox("grp = ? and state = 'refused'", (rows[0].message.group,))

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

    # Within

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

    def _again(self, row: OutboxRow, rename: Anew | None) -> None:
        """Let a refused change wait again; under another id if it needs one."""
        message = row.message if rename is None else rename(self, row)
        self._sql(
            "update outbox set state = 'waiting', tries = tries + 1, change_id = ?, message = ?"
            " where position = ?",
            (message.change_id, msgspec.json.encode(message), row.position),
        )
        self._made([message.change_id])

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

    def _made(self, change_ids: Iterable[str]) -> None:
        self._many(
            "insert into made (change_id) values (?) on conflict do nothing",
            [(change_id,) for change_id in change_ids],
        )

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
