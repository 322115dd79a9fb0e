"""Makes own changes again that a hub has lost, when its state is read anew.

Only what this device wrote itself, under its own stamps and the ids of then, so that a change which
is in the log after all stays one change. Normative: docs/protocol/sync.md, 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mana.device.errors import FieldsClosed
from mana.device.flips import flipped
from mana.device.renewals import seal_anew
from mana.device.replica import Outbox, Resend
from mana.device.sealing import Sealer
from mana.domain.actors import Actor, Origin
from mana.domain.clock import next_stamp, observe, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError, NotFound, TooLarge
from mana.domain.ids import require_uuid
from mana.domain.records import Entry, Record
from mana.domain.spaces import can_write
from mana.domain.tables import Table
from mana.protocol.messages import ChangeMessage, FieldWrite, StateRecord

_Origin = tuple[str, str, Actor, Origin]
"""Stamp, change id, actor and origin of what one change wrote."""


def resender(sealer: Sealer, new_id: Callable[[], str], now_ms: int) -> Resend:
    """Return how own changes of a record are made again, oldest first.

    What does not open here, or may not be written by this account, is left: it stays held only.
    """

    def again(
        tx: Outbox, space_id: str, record: Record, shown: StateRecord | None, left: Sequence[str]
    ) -> list[ChangeMessage]:
        role = sealer.keys(space_id).role
        try:
            table = sealer.catalogue.table(record.table)
        except NotFound:
            return []
        is_own = record.author_id == sealer.vault.account_id
        if role is None or not can_write(role):
            return []
        if shown is None and not is_own:
            return []  # its author hides it by now, or brings it themselves
        if shown is not None and record.visibility != shown.visibility:
            # Who sees it is moved by a flip alone, and that brings all of the record.
            return _flip(sealer, tx, space_id, record, shown, now_ms) if is_own else []
        return _edits(sealer, tx, space_id, table, record, shown, left, new_id)

    return again


def _flip(
    sealer: Sealer, tx: Outbox, space_id: str, record: Record, shown: StateRecord, now_ms: int
) -> list[ChangeMessage]:
    table = sealer.catalogue.table(record.table)
    last = tx.clock(sealer.device.device_id)
    for entry in record.entries.values():
        last = observe(last, parse_stamp(entry.at), hub_ms=now_ms)
    stamp = next_stamp(last, now_ms=now_ms)
    try:
        message = flipped(
            sealer,
            space_id,
            record,
            record.visibility,
            stamp=stamp,
            guards={
                path: _shown(shown, path) for path in record.entries if table.field_at(path).guarded
            },
            group=None,
            seen=None,
        )
    except (FieldsClosed, TooLarge):
        return []
    tx.set_clock(stamp)
    return [message]


def _edits(
    sealer: Sealer,
    tx: Outbox,
    space_id: str,
    table: Table,
    record: Record,
    shown: StateRecord | None,
    left: Sequence[str],
    new_id: Callable[[], str],
) -> list[ChangeMessage]:
    by_change: dict[_Origin, dict[str, Entry]] = {}
    for path in left:
        entry = record.entries[path]
        if entry.at.endswith(sealer.device.device_id):
            origin = (entry.at, entry.change_id, entry.actor, entry.origin)
            by_change.setdefault(origin, {})[path] = entry
    messages: list[ChangeMessage] = []
    used: set[str] = set()
    for (_, change_id, actor, wrote), entries in sorted(
        by_change.items(), key=lambda one: one[0][:2]
    ):
        if tx.states([change_id]):
            continue  # it waits already, or the person is asked about it
        draft = ChangeMessage(
            change_id=change_id if _is_free(change_id, used) else new_id(),
            table=record.table,
            id=record.id,
            op="insert" if shown is None else "update",
            fields={path: FieldWrite(value=e.value, at=e.at) for path, e in entries.items()},
            actor={name: str(member) for name, member in actor.to_wire().items()},
            origin=wrote,
            author_id=record.author_id,
            visibility=record.visibility,
            guards={path: _shown(shown, path) for path in entries if table.field_at(path).guarded},
        )
        used.add(draft.change_id)
        try:
            message = seal_anew(sealer, space_id, draft, record)
        except ManaError:
            continue
        messages.append(sealer.sign(message, space_id) if table.authority else message)
    return messages


def _is_free(change_id: str, used: set[str]) -> bool:
    try:
        require_uuid(change_id, "a change id")
    except Invalid:
        return False
    return change_id not in used


def _shown(shown: StateRecord | None, path: str) -> Json:
    entry = shown.fields.get(path) if shown is not None else None
    return None if entry is None else entry.value
