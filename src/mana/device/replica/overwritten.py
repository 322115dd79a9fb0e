"""What newer edits of others overwrote of this person's, kept for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.device.replica.rows import Row, entry_of, field_of, held_of
from mana.device.replica.shapes import Key, Overwritten, Watch
from mana.device.replica.state import State
from mana.protocol.messages import StateField
from mana.protocol.replication import Held

OVERWRITTEN_MAX: Final = 200
OVERWRITTEN_MS: Final = 30 * 24 * 3_600 * 1_000


class _Overwritten(msgspec.Struct, frozen=True, rename="camel"):
    was: dict[str, StateField]
    now: dict[str, StateField]


@dataclass(frozen=True, slots=True)
class Met:
    """What another device wrote at a path: its stamp, and how far its writer had read; -1 unknown."""

    at: str
    seen: int


@dataclass(slots=True)
class Page:
    """The records that a page touches, as they were and as they become."""

    before: dict[Key, tuple[Row | None, Row | None]]
    after: dict[Key, Row | None] = field(default_factory=dict)
    private: set[Key] = field(default_factory=set)
    hidden: set[Key] = field(default_factory=set)
    loud: set[Key] = field(default_factory=set)
    written: dict[Key, dict[str, list[Met]]] = field(default_factory=dict)

    def standing(self, key: Key) -> Row | None:
        """Return what the hub holds at this place of the page."""
        return self.after[key] if key in self.after else self.before.get(key, (None, None))[0]


class Overwriting(State):
    """What was overwritten, within one transaction."""

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

    def _raise_conflicts(self, space: str, page: Page, watch: Watch) -> bool:
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

    def _is_blind(self, mine: StateField, met: Iterable[Met]) -> bool:
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
