"""A change of who may see a record, as it travels: the whole record, sealed for who sees it then.

Normative: docs/protocol/sync.md, 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from mana.device.errors import FieldsClosed
from mana.device.sealing import Sealer
from mana.domain.actors import origin_of, person
from mana.domain.clock import Stamp
from mana.domain.encoding import Json
from mana.domain.errors import TooLarge
from mana.domain.ids import derived_id
from mana.domain.records import Record, Visibility
from mana.protocol.messages import CHANGE_FIELDS_MAX, ChangeMessage


def flip_change_id(table: str, record_id: str, at: str) -> str:
    """Return the id of the change that gives a record another visibility at a stamp."""
    return derived_id("change", table, record_id, "flip", at)


def flipped(
    sealer: Sealer,
    space_id: str,
    record: Record,
    visibility: Visibility,
    *,
    stamp: Stamp,
    guards: Mapping[str, Json],
    group: str | None,
    seen: int | None,
) -> ChangeMessage:
    """Return the flip of an own record, by its author in person.

    `guards`: by guarded path the value that stands on the hub. Raises FieldsClosed where a value
    does not open here and so cannot be sealed anew, and TooLarge.
    """
    opened = sealer.opened_paths(space_id, record)
    values: dict[str, Json] = {path: opened.get(path) for path in record.entries}
    if any(
        entry.value is not None and path not in opened for path, entry in record.entries.items()
    ):
        raise FieldsClosed("a value of the record does not open on this device")
    if len(values) > CHANGE_FIELDS_MAX:
        raise TooLarge(f"a record of more than {CHANGE_FIELDS_MAX} values keeps its visibility")
    table = sealer.catalogue.table(record.table)
    me = person(record.author_id)
    draft = ChangeMessage(
        change_id=flip_change_id(record.table, record.id, str(stamp)),
        table=record.table,
        id=record.id,
        op="flip",
        fields={},
        actor={name: str(member) for name, member in me.to_wire().items()},
        origin=origin_of(me),
        author_id=record.author_id,
        visibility=visibility,
        group=group,
        guards=dict(guards),
        seen=seen,
    )
    place = sealer.place(table, record.id, visibility, record.entries, {})
    return sealer.seal(space_id, draft, place, values, stamp)
