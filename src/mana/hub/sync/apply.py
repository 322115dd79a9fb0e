"""What a batch does to the records as they stand. Pure: records in, results and records out.

Groups are applied on a copy and kept whole or not at all. Merging is the domain's; guarded
fields are compared and set here, in the hub's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from mana.crypto.authority import facts_of
from mana.domain.encoding import canonical_json
from mana.domain.ids import RecordId
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.merge import merge_entries
from mana.domain.records import Entry, Record, Visibility, key_version
from mana.domain.tables import DELETED_AT, Table
from mana.hub.sync.validate import Place, Refused, Writer, actor_of, refusal_of
from mana.protocol.messages import ChangeMessage, Proof, PushResult

RecordRef: TypeAlias = tuple[str, str]
"""Table and record id."""

_AFTERWARDS: Final[Mapping[str, frozenset[str]]] = {
    ITERATIONS.name: frozenset({DELETED_AT}),
    STEPS.name: frozenset({"status", "claimedBy", "feedback", "decidedAt", "result", DELETED_AT}),
}
"""Tables whose content is immutable once it stands, and the paths that are not part of it."""


@dataclass(frozen=True, slots=True)
class MergedRecord:
    """A record as it stands after a batch, with the proofs that its entries stem from.

    `seq` is that of the last change to it, `touched` the paths that the batch wrote.
    """

    record: Record
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    seq: int = 0
    touched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A change with its place in the log."""

    change: ChangeMessage
    seq: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a push comes to. `results` are in the order of the request."""

    results: tuple[PushResult, ...]
    accepted: tuple[Accepted, ...]
    records: Mapping[RecordRef, MergedRecord]
    head: int


def ref_of(change: ChangeMessage) -> RecordRef:
    """Return which record a change is about."""
    return change.table, change.id


def apply_batch(
    changes: Sequence[ChangeMessage],
    *,
    tables: Mapping[str, Table],
    writer: Writer,
    place: Place,
    head: int,
    known: Mapping[str, int],
    standing: Mapping[RecordRef, MergedRecord],
    taken: frozenset[RecordRef] = frozenset(),
) -> Batch:
    """Return what the changes come to, in order, after `head`.

    `known`: sequence numbers of change ids that are in the log already. `taken`: records that
    exist and are not this account's to see.
    """
    state = _State(tables, writer, place, head, dict(standing), taken)
    outcome: dict[str, PushResult] = {
        change_id: PushResult(change_id=change_id, status="duplicate", seq=seq)
        for change_id, seq in known.items()
    }
    new: dict[str, ChangeMessage] = {}
    twice: set[int] = set()
    for position, change in enumerate(changes):
        if change.change_id in new:
            twice.add(position)
        elif change.change_id not in outcome:
            new[change.change_id] = change
    for unit in _units(new.values()):
        outcome.update(state.take(unit))
    results = []
    for position, change in enumerate(changes):
        result = outcome[change.change_id]
        if position in twice and result.status == "accepted":
            result = PushResult(change_id=change.change_id, status="duplicate", seq=result.seq)
        results.append(result)
    written = {ref: state.records[ref] for ref in state.written}
    return Batch(tuple(results), tuple(state.accepted), written, state.head)


def _units(changes: Iterable[ChangeMessage]) -> list[list[ChangeMessage]]:
    """Return groups as one unit each, at the place of their first member."""
    units: dict[str, list[ChangeMessage]] = {}
    for change in changes:
        key = f"group:{change.group}" if change.group is not None else change.change_id
        units.setdefault(key, []).append(change)
    return list(units.values())


@dataclass(slots=True)
class _State:
    """The records while a batch is applied; local to one call of `apply_batch`."""

    tables: Mapping[str, Table]
    writer: Writer
    place: Place
    head: int
    records: dict[RecordRef, MergedRecord]
    taken: frozenset[RecordRef]
    accepted: list[Accepted] = field(default_factory=list)
    written: dict[RecordRef, None] = field(default_factory=dict)

    def take(self, unit: Sequence[ChangeMessage]) -> dict[str, PushResult]:
        """Apply one change, or one group as a whole."""
        draft: dict[RecordRef, MergedRecord] = {}
        codes: dict[str, str] = {}
        seq = self.head
        for change in unit:
            code = refusal_of(change, self.tables, self.writer, self.place)
            if code is None and not codes:
                try:
                    self._apply(change, draft, seq + 1)
                    seq += 1
                except Refused as refused:
                    code = refused.code
            if code is not None:
                codes[change.change_id] = code
        if codes:
            return {
                change.change_id: PushResult(
                    change_id=change.change_id,
                    status="refused",
                    code=codes.get(change.change_id, "group-refused"),
                )
                for change in unit
            }
        results = {}
        for change in unit:
            self.head += 1
            self.accepted.append(Accepted(change, self.head))
            results[change.change_id] = PushResult(
                change_id=change.change_id, status="accepted", seq=self.head
            )
        self.records.update(draft)
        self.written.update(dict.fromkeys(draft))
        return results

    def _apply(self, change: ChangeMessage, draft: dict[RecordRef, MergedRecord], seq: int) -> None:
        ref = ref_of(change)
        table = self.tables[change.table]
        held = draft.get(ref) or self.records.get(ref)
        if held is None:
            if ref in self.taken or change.author_id != self.writer.account:
                raise Refused("fixed-field")
            visibility: Visibility = "private" if change.visibility == "private" else "space"
            record = Record(table.name, RecordId(change.id), change.author_id, visibility, {})
            held = MergedRecord(record)
        draft[ref] = _merged(held, change, table, self.place.space_id, seq)


def _merged(
    held: MergedRecord, change: ChangeMessage, table: Table, space_id: str, seq: int
) -> MergedRecord:
    record = held.record
    if (record.author_id, record.visibility) != (change.author_id, change.visibility):
        raise Refused("fixed-field")
    actor, standing = actor_of(change), record.entries
    new = {
        path: Entry(write.value, write.at, actor, change.origin, change.change_id)  # type: ignore[arg-type]
        for path, write in change.fields.items()
    }
    _check_fixed(table, standing, new)
    free, set_ = {}, {}
    for path, entry in new.items():
        if not table.field_at(path).guarded:
            free[path] = entry
            continue
        current = standing[path].value if path in standing else None
        if canonical_json(current) != canonical_json(change.guards[path]):
            raise Refused("guard-failed")
        set_[path] = entry
    entries = {**merge_entries(standing, free), **set_}
    proofs = held.proofs
    if table.authority and change.signature is not None:
        stated = facts_of(space_id, change).entries
        proof = Proof(
            signature=change.signature,
            actor=change.actor,
            origin=change.origin,
            entries={path: list(pair) for path, pair in stated.items()},
        )
        used = {entry.change_id for entry in entries.values()}
        proofs = {
            change_id: kept
            for change_id, kept in {**proofs, change.change_id: proof}.items()
            if change_id in used
        }
    return MergedRecord(
        replace(record, entries=entries), proofs, seq, held.touched | frozenset(new)
    )


def _check_fixed(table: Table, standing: Mapping[str, Entry], new: Mapping[str, Entry]) -> None:
    afterwards = _AFTERWARDS.get(table.name)
    for path, entry in new.items():
        before = standing.get(path)
        if before is not None and _is_reseal(before, entry):
            continue
        if standing and afterwards is not None and path not in afterwards:
            raise Refused("immutable")
        if before is None or not table.field_at(path).fixed:
            continue
        if canonical_json(before.value) != canonical_json(entry.value):
            raise Refused("fixed-field")


def _is_reseal(before: Entry, after: Entry) -> bool:
    """Say whether the same write comes again under a newer key."""
    return (before.at, before.actor, before.origin) == (
        after.at,
        after.actor,
        after.origin,
    ) and 0 < key_version(before.value) < key_version(after.value)
