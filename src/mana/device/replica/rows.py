"""How a record lies in a row: the same names as on the wire, without its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import msgspec

from mana.domain.actors import Actor, Origin
from mana.domain.ids import RecordId
from mana.domain.merge import later
from mana.domain.records import Entry, Record, Visibility
from mana.domain.tables import DELETED_AT
from mana.protocol.messages import LoggedChange, Proof, StateField, StateRecord
from mana.protocol.replication import Guarded, Held, covers, proof_of, read_actor


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
    """Return the record of a row's bytes."""
    return held_of(table, record_id, decode_row(raw))


def decode_row(raw: bytes) -> Row:
    """Return the row of its bytes."""
    return _decoder.decode(raw)


def held_of(table: str, record_id: str, row: Row) -> Held:
    """Return the record of a row."""
    entries: dict[str, Entry] = {}
    actor: Actor | None = None
    wire: dict[str, str] = {}
    for path, found in row.fields.items():
        if actor is None or found.actor != wire:
            # Nearly always the whole record was written by one.
            wire, actor = found.actor, read_actor(found.actor)
        origin = cast(Origin, found.origin)
        entries[path] = Entry(found.value, found.at, actor, origin, found.change_id)
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
    return Row(
        author_id=state.author_id,
        visibility=state.visibility,
        fields=state.fields,
        seqs={path: state.seq for path in state.fields if guarded(state.table, path)},
        proofs=_standing(state.proofs, state.fields),
        seq=state.seq,
    )


def row_after(row: Row | None, logged: LoggedChange, guarded: Guarded) -> Row:
    """Return the row after a logged change.

    The same as `apply_change` makes of it, without going through entries: a long absence brings
    hundreds of thousands of changes, and nearly all are simply later than what stands.
    """
    change, seq = logged.change, logged.seq
    fields = dict(row.fields) if row is not None else {}
    seqs = dict(row.seqs) if row is not None else {}
    for path, write in change.fields.items():
        new = StateField(
            value=write.value,
            at=write.at,
            actor=change.actor,
            origin=change.origin,
            change_id=change.change_id,
        )
        standing = fields.get(path)
        if guarded(change.table, path):
            if seq > seqs.get(path, 0):
                fields[path], seqs[path] = new, seq
        elif standing is None or write.at > standing.at:
            fields[path] = new
        elif write.at == standing.at:
            fields[path] = field_of(later(entry_of(standing), entry_of(new)))
    proofs = dict(row.proofs) if row is not None else {}
    if change.signature is not None and change.op != "flip":
        proofs[change.change_id] = proof_of(change, change.signature)
    newest = row.seq if row is not None else 0
    visibility = change.visibility
    if row is not None and not (
        change.op == "flip"
        and change.author_id == row.author_id
        and seq > newest
        and covers(change, _stamps(row), guarded)
    ):
        visibility = row.visibility
    return Row(
        author_id=row.author_id if row is not None else change.author_id,
        visibility=visibility,
        fields=fields,
        seqs=seqs,
        proofs=_standing(proofs, fields),
        seq=max(newest, seq),
    )


def _stamps(row: Row) -> Mapping[str, str]:
    return {path: found.at for path, found in row.fields.items()}


def _standing(proofs: dict[str, Proof], fields: Mapping[str, StateField]) -> dict[str, Proof]:
    """Return the proofs that a path still stems from."""
    if not proofs:
        return proofs
    named = {found.change_id for found in fields.values()}
    return {name: proof for name, proof in proofs.items() if name in named}


def encode_row(row: Row) -> bytes:
    """Return a row's bytes."""
    return _encoder.encode(row)


def entry_of(found: StateField) -> Entry:
    """Return the entry of a stored field."""
    return Entry(
        found.value,
        found.at,
        read_actor(found.actor),
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


@lru_cache(maxsize=512)
def _wire(actor: Actor) -> Mapping[str, str]:
    return {name: str(member) for name, member in actor.to_wire().items()}
