"""Pages of the log, as a replica takes them in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from mana.device.replica.outbox import Anew
from mana.device.replica.overwritten import Met, Overwriting, Page
from mana.device.replica.rows import Row, decode_row, encode_row, row_after
from mana.device.replica.shapes import Key, OutboxRow, Watch
from mana.protocol.messages import ChangeMessage, HiddenRecord, LoggedChange
from mana.protocol.replication import HubDistrusted, in_log_order


class Pages(Overwriting):
    """Pages of the log, within one transaction."""

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

    def _page(self, space: str, keys: Sequence[Key]) -> Page:
        before: dict[Key, tuple[Row | None, Row | None]] = {}
        for table, record_id, base, shown in self._rows(
            "r.base, r.shown", "records r", space, keys
        ):
            row = None if base is None else decode_row(base)
            before[table, record_id] = (row, row if shown is None else decode_row(shown))
        return Page(before)

    def _apply(self, page: Page, logged: LoggedChange, watch: Watch) -> None:
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
                met.setdefault(path, []).append(Met(write.at, seen))

    def _hide(
        self,
        space: str,
        page: Page,
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

    def _settle_page(self, space: str, page: Page, hub_ms: int) -> None:
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

    def _follow_flips(self, space: str, page: Page, anew: Anew, restamp: Anew, now_ms: int) -> None:
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
