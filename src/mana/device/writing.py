"""Makes of what is planned the changes that travel: checked, stamped, sealed and signed.

What the hub would refuse for certain is refused here, before it stands in the outbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from mana.device.elements import expand
from mana.device.errors import ChangeRefused, NotYourRecord, VisibilityFixed
from mana.device.flips import flipped
from mana.device.replica import Tx
from mana.device.sealing import TARGET_ID, TARGET_TABLE, Sealer
from mana.device.vault import SpaceKeys
from mana.domain.actors import Actor, Origin, origin_of
from mana.domain.changes import Change
from mana.domain.clock import DRIFT_MS_MAX, Stamp, next_stamp, observe, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, NotFound, TooLarge
from mana.domain.ids import DeviceId, SpaceId, require_record_id
from mana.domain.records import Visibility
from mana.domain.tables import Sealing, Table
from mana.protocol.codec import check_value
from mana.protocol.messages import CHANGE_BYTES_MAX, CHANGE_FIELDS_MAX, ChangeMessage
from mana.protocol.replication import Held
from mana.registry.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Write:
    """A planned change with who makes it. `change_id` is given where it is derived."""

    change: Change
    actor: Actor
    visibility: Visibility = "space"
    change_id: str | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """A planned change of who may see a record: by its author, in person.

    Its change id follows from its stamp (`flip_change_id`), by which it is known later.
    """

    table: str
    record_id: str
    visibility: Visibility


class Book(Protocol):
    """The record book for which a change is made."""

    @property
    def catalogue(self) -> Catalogue:
        """The tables that are installed."""

    @property
    def account_id(self) -> str:
        """The account that writes."""

    @property
    def device_id(self) -> str:
        """The device that stamps."""

    def require_writable(self, table: Table, record_id: str) -> SpaceKeys:
        """Return the keys of the space that takes this record; raise for what may not be."""


def message_of(
    book: Book, sealer: Sealer, tx: Tx, write: Write, change_id: str, group: str | None, now_ms: int
) -> tuple[SpaceId, ChangeMessage]:
    """Return one planned change as it travels, and keep the clock's new time."""
    change = write.change
    table = book.catalogue.table(change.table)
    require_record_id(change.record_id)
    keys = book.require_writable(table, change.record_id)
    kept = tx.require_kept(keys.space_id)
    held = tx.held(keys.space_id, table.name, change.record_id)
    entries = held.record.entries if held is not None else {}
    visibility = held.record.visibility if held is not None else write.visibility
    if held is None and _is_of_private(tx, keys, table, change):
        visibility = "private"
    if visibility == "private" and not table.flips:
        raise VisibilityFixed(f"records of {table.name} are never private")
    place = sealer.place(table, change.record_id, visibility, entries, change.values)
    key = sealer.record_key(keys, place, sealer.version(keys, place))
    current = (
        sealer.opened_paths(keys.space_id, held.record)
        if held is not None and _writes_whole(table, change)
        else {}
    )
    values = expand(table, key, book.device_id, current, change.values)
    _check(table, values, change, held)
    stamp = _stamp(book, tx, [entries[path].at for path in values if path in entries], now_ms)
    draft = ChangeMessage(
        change_id=change_id,
        table=table.name,
        id=change.record_id,
        op=change.kind.value,
        fields={},
        actor={name: str(member) for name, member in write.actor.to_wire().items()},
        origin=write.origin or origin_of(write.actor),
        author_id=held.record.author_id if held is not None else book.account_id,
        visibility=visibility,
        group=group,
        guards=dict(change.guards),
        seen=kept.cursor,
    )
    message = sealer.seal(keys.space_id, draft, place, values, stamp)
    return keys.space_id, _sized(message)


def flip_of(
    book: Book, sealer: Sealer, tx: Tx, flip: Flip, group: str | None, now_ms: int
) -> tuple[SpaceId, ChangeMessage]:
    """Return a change of visibility as it travels: the whole record, sealed for who may see it.

    Raises NotYourRecord, VisibilityFixed, or FieldsClosed where a value does not open here
    and so cannot be sealed anew.
    """
    table = book.catalogue.table(flip.table)
    keys = book.require_writable(table, flip.record_id)
    kept = tx.require_kept(keys.space_id)
    held = tx.held(keys.space_id, table.name, flip.record_id)
    if held is None:
        raise NotFound("there is no such record here")
    record = held.record
    if record.author_id != book.account_id:
        raise NotYourRecord("another member made this record")
    if not table.flips or (flip.visibility == "private" and not keys.shared):
        raise VisibilityFixed("who sees this record is not changed")
    stamp = _stamp(book, tx, [entry.at for entry in record.entries.values()], now_ms)
    guards = {
        path: entry.value for path, entry in record.entries.items() if table.field_at(path).guarded
    }
    message = flipped(
        sealer,
        keys.space_id,
        record,
        flip.visibility,
        stamp=stamp,
        guards=guards,
        group=group,
        seen=kept.cursor,
    )
    return keys.space_id, _sized(message)


def _is_of_private(tx: Tx, keys: SpaceKeys, table: Table, change: Change) -> bool:
    """Say whether a new record tells of a private one, and so must be private itbook.

    A journal record holds what stood in its target: others must not read it there.
    """
    if table.sealing is not Sealing.TARGET:
        return False
    named = change.values.get(TARGET_TABLE), change.values.get(TARGET_ID)
    target = tx.held(keys.space_id, str(named[0]), str(named[1]))
    return target is not None and target.record.visibility == "private"


def _stamp(book: Book, tx: Tx, standing: Sequence[str], now_ms: int) -> Stamp:
    """Return the next stamp, later than these, and keep it as the clock's new time."""
    last = tx.clock(DeviceId(book.device_id))
    for at in standing:
        # Later than what the person saw, unless that bears a stamp of a broken clock.
        last = observe(last, parse_stamp(at), hub_ms=now_ms + DRIFT_MS_MAX)
    stamp = next_stamp(last, now_ms=now_ms)
    tx.set_clock(stamp)
    return stamp


def _sized(message: ChangeMessage) -> ChangeMessage:
    if len(msgspec.json.encode(message)) > CHANGE_BYTES_MAX:
        raise TooLarge("the change is larger than the hub takes in one piece")
    return message


def _writes_whole(table: Table, change: Change) -> bool:
    """Say whether a change gives the whole value of a collection."""
    return any(
        name in table.by_name and table.by_name[name].shape.value != "value"
        for name in change.values
    )


def _check(table: Table, values: Mapping[str, Json], change: Change, held: Held | None) -> None:
    """Raise for what the hub would refuse for certain, before it stands in the outbox."""
    if not 0 < len(values) <= CHANGE_FIELDS_MAX:
        raise Invalid(f"a change writes 1 to {CHANGE_FIELDS_MAX} values")
    entries = held.record.entries if held is not None else {}
    for path, value in values.items():
        table.check(path, value)
        check_value(value)
        declared = table.field_at(path)
        standing = entries[path].value if path in entries else None
        if declared.guarded:
            if path not in change.guards:
                raise Invalid(f"{path} changes only under a guard")
            if change.guards[path] != standing:
                raise ChangeRefused(
                    "another value stands by now", detail={"reason": "guard-failed", "path": path}
                )
        if declared.fixed and standing is not None and standing != value:
            raise Invalid(f"{path} never changes")
