"""Makes what waits anew: under the newest key, for the visibility that its record has, with
another stamp or id.

What is sealed anew keeps its stamp unless the hub refused that, so it never beats an edit.
Normative: docs/protocol/sync.md, 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import msgspec

from mana.crypto.envelope import Binding, parse_envelope
from mana.device.replica import Outbox, OutboxRow
from mana.device.sealing import TARGET_ID, TARGET_TABLE, Sealer
from mana.domain.actors import actor_from_wire
from mana.domain.clock import Stamp, next_stamp, observe, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import NotFound
from mana.domain.records import Entry, Record, Visibility
from mana.domain.tables import Sealing
from mana.protocol.messages import ChangeMessage

_SEALED: Final = "enc:2:"

Differ: TypeAlias = Callable[[str, Record, Record, str], bool]


def seal_anew(
    sealer: Sealer,
    space_id: str,
    change: ChangeMessage,
    before: Record | None,
    *,
    stamp: Stamp | None = None,
    private: bool = False,
) -> ChangeMessage:
    """Return an own change under the newest key, for the visibility that its record has.

    `before`: the record as the change finds it; `private`: a new record that must be so. Without
    `stamp` the change keeps its own, and is returned as it is if nothing about it has passed.
    Raises ManaError if it does not open here.
    """
    table = sealer.catalogue.table(change.table)
    keys = sealer.keys(space_id)
    entries = before.entries if before is not None else {}
    visibility = change.visibility
    if before is not None and change.op != "flip":
        visibility = before.visibility
    if before is None and private:
        visibility = "private"
    plain = {path: write.value for path, write in change.fields.items()}
    place = sealer.place(table, change.id, visibility, entries, plain)
    version = sealer.version(keys, place)
    sealed = [
        str(write.value)
        for path, write in change.fields.items()
        if write.value is not None and table.field_at(path).sealed
    ]
    current = f"{_SEALED}{place.cls}{version}:"
    if (
        stamp is None
        and visibility == change.visibility
        and all(value.startswith(current) for value in sealed)
    ):
        return change
    actor = actor_from_wire(change.actor).to_wire()
    values: dict[str, Json] = {}
    for path, write in change.fields.items():
        value = write.value
        if value is not None and table.field_at(path).sealed:
            was = "private" if parse_envelope(str(value)).cls == "p" else "space"
            old = sealer.place(table, change.id, was, entries, plain)
            binding = Binding(space_id, change.table, change.id, path, write.at, actor)
            value = sealer.open_value(keys, old, binding, str(value))
        values[path] = value
    # All paths of an own change bear one stamp.
    at = stamp or parse_stamp(next(iter(change.fields.values())).at)
    draft = msgspec.structs.replace(change, visibility=visibility)
    return sealer.seal(space_id, draft, place, values, at)


def restamper(sealer: Sealer, now_ms: int) -> Callable[[Outbox, OutboxRow], ChangeMessage]:
    """Return how a change that waits is stamped and sealed anew, later than what it meets.

    It also meets own changes that the hub has taken and the log has not brought yet: they may be
    ahead of the hub's time by as much as the hub allows.
    """

    def anew(tx: Outbox, row: OutboxRow) -> ChangeMessage:
        record = _before(tx, row)
        last = tx.clock(sealer.device.device_id)
        for path in row.message.fields:
            entry = record.entries.get(path) if record is not None else None
            if entry is not None:
                last = observe(last, parse_stamp(entry.at), hub_ms=now_ms)
        stamp = next_stamp(last, now_ms=now_ms)
        private = _is_of_private(sealer, tx, row)
        again = seal_anew(sealer, row.space, row.message, record, stamp=stamp, private=private)
        tx.set_clock(stamp)
        return again

    return anew


def resealer(sealer: Sealer) -> Callable[[Outbox, OutboxRow], ChangeMessage]:
    """Return how a change that waits is sealed anew, under the stamp that it has."""

    def anew(tx: Outbox, row: OutboxRow) -> ChangeMessage:
        try:
            sealer.catalogue.table(row.message.table)
        except NotFound:
            return row.message  # its module is not installed here any more; it goes as it is
        private = _is_of_private(sealer, tx, row)
        return seal_anew(sealer, row.space, row.message, _before(tx, row), private=private)

    return anew


def _before(tx: Outbox, row: OutboxRow) -> Record | None:
    held = tx.before(row)
    return held.record if held is not None else None


def _is_of_private(sealer: Sealer, tx: Outbox, row: OutboxRow) -> bool:
    """Say whether a change is about a record that is private by now, as its journal is."""
    change = row.message
    if sealer.catalogue.table(change.table).sealing is not Sealing.TARGET:
        return False
    if TARGET_TABLE not in change.fields or TARGET_ID not in change.fields:
        return False
    named = change.fields[TARGET_TABLE].value, change.fields[TARGET_ID].value
    target = tx.held(row.space, str(named[0]), str(named[1]))
    return target is not None and target.record.visibility == "private"


def renamer(
    sealer: Sealer, new_id: Callable[[], str]
) -> Callable[[Outbox, OutboxRow], ChangeMessage]:
    """Return how a change goes again whose id another account has used."""

    def anew(tx: Outbox, row: OutboxRow) -> ChangeMessage:
        again = msgspec.structs.replace(row.message, change_id=new_id())
        return sealer.sign(again, row.space) if again.signature is not None else again

    return anew


# What is compared


def open_entry(
    sealer: Sealer, space_id: str, record: Record, path: str, entry: Entry
) -> tuple[bool, Json]:
    """Return whether an entry of a record opens here, and its value.

    It opens under the class that its envelope names, whatever the record's visibility is by now.
    """
    visibility: Visibility = record.visibility
    if isinstance(entry.value, str) and entry.value.startswith(_SEALED):
        visibility = "private" if entry.value.startswith(f"{_SEALED}p") else "space"
    entries = {
        name: one
        for name, one in record.entries.items()
        if not (isinstance(one.value, str) and one.value.startswith(_SEALED))
    }
    one_path = replace(record, visibility=visibility, entries={**entries, path: entry})
    opened = sealer.opened_paths(space_id, one_path)
    return path in opened, opened.get(path)


def differs(sealer: Sealer, space_id: str) -> Differ:
    """Return how the values of two states of a record are compared, opened."""

    def differ(table: str, before: Record, after: Record, path: str) -> bool:
        could, was = open_entry(sealer, space_id, before, path, before.entries[path])
        # What a person wrote and cannot be shown any more is no news to them; what replaced it
        # and cannot be shown yet is.
        _, now = open_entry(sealer, space_id, after, path, after.entries[path])
        return could and was != now

    return differ
