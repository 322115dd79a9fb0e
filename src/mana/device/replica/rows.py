"""How a record lies in a row: the same names as on the wire, without its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import msgspec

from mana.domain.actors import Actor, Origin, actor_from_wire
from mana.domain.ids import RecordId
from mana.domain.records import Entry, Record, Visibility
from mana.domain.tables import DELETED_AT
from mana.protocol.messages import Proof, StateField, StateRecord
from mana.protocol.replication import Guarded, Held


class Row(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A record as it lies in a row."""

    author_id: str
    visibility: str
    fields: dict[str, StateField]
    seqs: dict[str, int] = msgspec.field(default_factory=dict)
    proofs: dict[str, Proof] = msgspec.field(default_factory=dict)
    seq: int = 0

    @property
    def deleted(self) -> bool:
        """Say whether the tombstone is set."""
        tombstone = self.fields.get(DELETED_AT)
        return tombstone is not None and tombstone.value is not None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Row)


def read_row(table: str, record_id: str, raw: bytes) -> Held:
    """Return the record of a row."""
    row = _decoder.decode(raw)
    entries = {path: entry_of(found) for path, found in row.fields.items()}
    record = Record(
        table, RecordId(record_id), row.author_id, cast(Visibility, row.visibility), entries
    )
    return Held(record, row.seqs, row.proofs, row.seq)


def write_row(held: Held) -> bytes:
    """Return a record as it is written into a row."""
    record = held.record
    return _encoder.encode(
        Row(
            author_id=record.author_id,
            visibility=record.visibility,
            fields={path: field_of(entry) for path, entry in record.entries.items()},
            seqs=dict(held.seqs),
            proofs=dict(held.proofs),
            seq=held.seq,
        )
    )


def row_of_state(state: StateRecord, guarded: Guarded) -> Row:
    """Return the row of a record of which nothing was here before.

    The same as `apply_state` to nothing makes, without going through entries.
    """
    proofs = state.proofs
    if proofs:
        standing = {found.change_id for found in state.fields.values()}
        proofs = {name: proof for name, proof in proofs.items() if name in standing}
    return Row(
        author_id=state.author_id,
        visibility=state.visibility,
        fields=state.fields,
        seqs={path: state.seq for path in state.fields if guarded(state.table, path)},
        proofs=proofs,
        seq=state.seq,
    )


def encode_row(row: Row) -> bytes:
    """Return a row's bytes."""
    return _encoder.encode(row)


def entry_of(found: StateField) -> Entry:
    """Return the entry of a stored field."""
    actor = found.actor
    return Entry(
        found.value,
        found.at,
        _actor(tuple(actor.items())),
        cast(Origin, found.origin),
        found.change_id,
    )


def field_of(entry: Entry) -> StateField:
    """Return an entry as it is stored."""
    return StateField(
        value=entry.value,
        at=entry.at,
        actor=dict(_wire(entry.actor)),
        origin=entry.origin,
        change_id=entry.change_id,
    )


# Nearly every entry names one of a few actors, and reading one costs more than the rest of it.
@lru_cache(maxsize=512)
def _actor(wire: tuple[tuple[str, str], ...]) -> Actor:
    return actor_from_wire(dict(wire))


@lru_cache(maxsize=512)
def _wire(actor: Actor) -> Mapping[str, str]:
    return {name: str(member) for name, member in actor.to_wire().items()}
