"""Records and changes as rows, and back. The wire's own shapes, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mana.domain.actors import actor_from_wire
from mana.domain.ids import RecordId
from mana.domain.records import Entry, Record
from mana.domain.tables import Table
from mana.hub.sync.apply import Accepted, MergedRecord
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    LoggedChange,
    Proof,
    Signature,
    StateField,
    StateRecord,
)


def merged_of(row: Mapping[str, Any]) -> MergedRecord:
    """Return the record of a row of `records`."""
    entries = {
        path: Entry(
            stored["value"],
            stored["at"],
            actor_from_wire(stored["actor"]),
            stored["origin"],
            stored["changeId"],
        )
        for path, stored in row["fields"].items()
    }
    record = Record(
        row["table_name"], RecordId(row["record_id"]), row["author_id"], row["visibility"], entries
    )
    return MergedRecord(record, msgspec.convert(row["proofs"], dict[str, Proof]), row["seq"])


def row_of(merged: MergedRecord) -> dict[str, Any]:
    """Return the row of `records` that keeps a record."""
    record = merged.record
    return {
        "table_name": record.table,
        "record_id": record.id,
        "author_id": record.author_id,
        "visibility": record.visibility,
        "fields": {
            path: {
                "value": entry.value,
                "at": entry.at,
                "actor": entry.actor.to_wire(),
                "origin": entry.origin,
                "changeId": entry.change_id,
            }
            for path, entry in record.entries.items()
        },
        "proofs": merged.proofs,
        "seq": merged.seq,
        "deleted": record.deleted,
    }


def log_row_of(accepted: Accepted, table: Table) -> dict[str, Any]:
    """Return the row of `sync_changes` that keeps a change."""
    change = accepted.change
    return {
        "seq": accepted.seq,
        "change_id": change.change_id,
        "app_id": table.app_id,
        "table_name": change.table,
        "record_id": change.id,
        "author_id": change.author_id,
        "visibility": change.visibility,
        "op": change.op,
        "data": {path: write.value for path, write in change.fields.items()},
        "field_meta": {path: write.at for path, write in change.fields.items()},
        "actor": change.actor,
        "origin": change.origin,
        "group_id": change.group,
        "guards": change.guards or None,
        "signature": change.signature,
    }


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
    )
    return LoggedChange(seq=row["seq"], change=change, device_id=row["client_id"])


def state_of(row: Mapping[str, Any]) -> StateRecord:
    """Return the record of a row of `records`, as the wire shows it."""
    return StateRecord(
        table=row["table_name"],
        id=row["record_id"],
        author_id=row["author_id"],
        visibility=row["visibility"],
        seq=row["seq"],
        fields=msgspec.convert(row["fields"], dict[str, StateField]),
        proofs=msgspec.convert(row["proofs"], dict[str, Proof]),
    )
