"""Records and changes as rows, and back. The wire's own shapes, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from mana.domain.actors import Actor, Origin, actor_from_wire
from mana.domain.ids import RecordId
from mana.domain.records import Entry, Record, Visibility
from mana.domain.tables import Table
from mana.hub.sync.apply import Accepted, MergedRecord
from mana.protocol.codec import encode
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    Json,
    LoggedChange,
    Proof,
    Signature,
)

LOG_COLUMNS: Final = (
    "change_id",
    "app_id",
    "table_name",
    "record_id",
    "author_id",
    "visibility",
    "op",
    "data",
    "field_meta",
    "actor",
    "origin",
    "group_id",
    "guards",
    "signature",
    "seen",
)
RECORD_COLUMNS: Final = (
    "table_name",
    "record_id",
    "author_id",
    "visibility",
    "fields",
    "proofs",
    "seq",
    "deleted",
)
BETWEEN: Final = "\x1f"
"""Stands between the values of a column. No id has it, and JSON writes it as an escape."""


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One path of a stored record. The actor stays in its wire form, which repeats."""

    value: Json
    at: str
    actor: msgspec.Raw
    origin: Origin
    change_id: str


class StoredRecord(msgspec.Struct, frozen=True):
    """A row of `records`, by the names of its columns."""

    table_name: str
    record_id: str
    author_id: str
    visibility: Visibility
    fields: dict[str, _Entry]
    proofs: dict[str, Proof]
    seq: int
    deleted: bool = False


def merged_of(row: StoredRecord) -> MergedRecord:
    """Return the record of a row of `records`."""
    entries = {
        path: Entry(
            stored.value,
            stored.at,
            _actor_of(bytes(stored.actor)),
            stored.origin,
            stored.change_id,
        )
        for path, stored in row.fields.items()
    }
    record = Record(row.table_name, RecordId(row.record_id), row.author_id, row.visibility, entries)
    return MergedRecord(record, row.proofs, row.seq)


def row_of(merged: MergedRecord) -> tuple[str, ...]:
    """Return the row of `records` that keeps a record, in the order of RECORD_COLUMNS, as text."""
    record = merged.record
    fields = {
        path: _Entry(entry.value, entry.at, _wire_of(entry.actor), entry.origin, entry.change_id)
        for path, entry in record.entries.items()
    }
    return (
        record.table,
        record.id,
        record.author_id,
        record.visibility,
        encode(fields).decode(),
        encode(merged.proofs).decode() if merged.proofs else "{}",
        str(merged.seq),
        "true" if record.deleted else "false",
    )


# Nearly all entries that a hub sees at a time are by the same few actors.
@lru_cache(maxsize=1_024)
def _actor_of(wire: bytes) -> Actor:
    return actor_from_wire(msgspec.json.decode(wire))


@lru_cache(maxsize=1_024)
def _wire_of(actor: Actor) -> msgspec.Raw:
    return msgspec.Raw(encode(actor.to_wire()))


def log_row_of(accepted: Accepted, table: Table) -> tuple[str, ...]:
    """Return the row of `sync_changes` that keeps a change, in the order of LOG_COLUMNS, as text.

    What is empty is null; places in the log go up by one from row to row, and are not in it.
    """
    change = accepted.change
    fields = change.fields
    return (
        change.change_id,
        table.app_id,
        change.table,
        change.id,
        change.author_id,
        change.visibility,
        change.op,
        encode({path: write.value for path, write in fields.items()}).decode(),
        encode({path: write.at for path, write in fields.items()}).decode(),
        _text_of(tuple(change.actor.items())),
        change.origin,
        change.group or "",
        encode(change.guards).decode() if change.guards else "",
        "" if change.signature is None else encode(change.signature).decode(),
        "" if change.seen is None else str(change.seen),
    )


@lru_cache(maxsize=1_024)
def _text_of(actor: tuple[tuple[str, str], ...]) -> str:
    return encode(dict(actor)).decode()


def logged_of(row: Mapping[str, Any]) -> LoggedChange:
    """Return the change of a row of `sync_changes`."""
    signature = row["signature"]
    change = ChangeMessage(
        change_id=row["change_id"],
        table=row["table_name"],
        id=row["record_id"],
        op=row["op"],
        fields={
            path: FieldWrite(value=value, at=row["field_meta"][path])
            for path, value in row["data"].items()
        },
        actor=row["actor"],
        origin=row["origin"],
        author_id=row["author_id"],
        visibility=row["visibility"],
        group=row["group_id"],
        guards=row["guards"] or {},
        signature=None if signature is None else msgspec.convert(signature, Signature),
        seen=row["seen"],
    )
    return LoggedChange(seq=row["seq"], change=change, device_id=row["client_id"])


def state_answer(
    records: Sequence[bytes], *, head: int, hub_time: str, following: str | None = None
) -> bytes:
    """Return a `StateAnswer` in its wire form, of records in theirs.

    PostgreSQL put each together from the text that it keeps, because a new device asks for
    everything at once. What stands between quotes there and here has letters, digits and a few
    signs only, or was never taken.
    """
    end = "" if following is None else f',"next":"{following}"'
    tail = f'],"head":{head},"hubTime":"{hub_time}"{end}}}'.encode()
    # A page is copied once: it is large, and fresh memory costs more than what is written to it.
    pieces = [b","] * (2 * len(records))
    pieces[1::2] = records
    pieces[:1] = [b'{"records":[']
    pieces.append(tail)
    return b"".join(pieces)


def columns_of(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as one text for each column.

    A text for each value would be looked at many times on its way into an array of PostgreSQL.
    """
    return [BETWEEN.join(column) for column in zip(*rows, strict=True)]
