"""What a batch does to the records as they stand. Pure: records in, results and records out.

Groups are applied on a copy and kept whole or not at all. Merging is the domain's; guarded
fields are compared and set here, in the hub's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, cast

from mana.crypto.authority import facts_of
from mana.crypto.envelope import parse_envelope
from mana.domain.actors import Origin
from mana.domain.encoding import canonical_json
from mana.domain.ids import RecordId
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.merge import merge_entries
from mana.domain.records import Entry, Record, Visibility, key_version
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_AUDIT
from mana.domain.tables import DELETED_AT, Table
from mana.hub.sync.validate import FLIP, RESEAL, Place, Refused, Writer, actor_of, check, refusal_of
from mana.protocol.messages import ChangeMessage, Proof, PushResult

RecordRef: TypeAlias = tuple[str, str]
"""Table and record id."""

_AFTERWARDS: Final[Mapping[str, frozenset[str]]] = {
    ITERATIONS.name: frozenset({"feedback", DELETED_AT}),
    STEPS.name: frozenset(
        {
            "status",
            "claimedBy",
            "feedback",
            "rejectReason",
            "edited",
            "decidedAt",
            "result",
            DELETED_AT,
        }
    ),
    SPACE_POLICY_AUDIT.name: frozenset(),
}
"""Tables whose content is immutable once it stands, and the paths that are not part of it."""
_OUTDATED: Final[Mapping[str, str]] = {RESEAL: "reseal-outdated", FLIP: "flip-outdated"}


@dataclass(frozen=True, slots=True)
class MergedRecord:
    """A record as it stands after a batch, with the proofs that its entries stem from.

    `seq` is that of the last change to it, `flipped` that of the batch's last change of its
    visibility; 0 if there was none.
    """

    record: Record
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    seq: int = 0
    flipped: int = 0


@dataclass(frozen=True, slots=True)
class Logged:
    """Where a change id stands in the log already. `own`: this account's change has it."""

    seq: int
    ref: RecordRef
    own: bool


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
    known: Mapping[str, Logged],
    standing: Mapping[RecordRef, MergedRecord],
    taken: frozenset[RecordRef] = frozenset(),
) -> Batch:
    """Return what the changes come to, in order, after `head`.

    `known`: change ids that are in the log already, as far as this account sees it. `taken`:
    records that exist and are not this account's to see.
    """
    state = _State(tables, writer, place, head, dict(known), dict(standing), taken)
    outcome: dict[int, PushResult] = {}
    for unit in _units(changes):
        if len(unit) == 1:
            outcome[unit[0]] = state.take_one(changes[unit[0]])
            continue
        results = state.take([changes[position] for position in unit])
        outcome.update(zip(unit, results, strict=True))
    written = {ref: state.records[ref] for ref in state.written}
    ordered = tuple(outcome[position] for position in range(len(changes)))
    return Batch(ordered, tuple(state.accepted), written, state.head)


def _units(changes: Sequence[ChangeMessage]) -> list[list[int]]:
    """Return the positions of groups as one unit each, at the place of their first member."""
    units: list[list[int]] = []
    groups: dict[str, list[int]] = {}
    for position, change in enumerate(changes):
        if change.group is not None and change.group in groups:
            groups[change.group].append(position)
            continue
        units.append([position])
        if change.group is not None:
            groups[change.group] = units[-1]
    return units


@dataclass(slots=True)
class _State:
    """The records while a batch is applied; local to one call of `apply_batch`."""

    tables: Mapping[str, Table]
    writer: Writer
    place: Place
    head: int
    known: dict[str, Logged]
    records: dict[RecordRef, MergedRecord]
    taken: frozenset[RecordRef]
    accepted: list[Accepted] = field(default_factory=list)
    written: dict[RecordRef, None] = field(default_factory=dict)

    def take_one(self, change: ChangeMessage) -> PushResult:
        """Apply a change that stands alone; the same as `take` of it, and most of a push."""
        change_id, ref = change.change_id, ref_of(change)
        logged = self.known.get(change_id)
        if logged is not None and logged.own and logged.ref == ref:
            return PushResult(change_id=change_id, status="duplicate", seq=logged.seq)
        seq = self.head + 1
        try:
            check(change, self.tables, self.writer, self.place)
            self._check_audited(change, (change,))
            merged = self._apply(change, self.records.get(ref), seq)
            if logged is not None:
                raise Refused("id-taken")
        except Refused as refused:
            return PushResult(change_id=change_id, status="refused", code=refused.code)
        self.head = seq
        self.accepted.append(Accepted(change, seq))
        self.known[change_id] = Logged(seq, ref, own=True)
        self.records[ref] = merged
        self.written[ref] = None
        return PushResult(change_id=change_id, status="accepted", seq=seq)

    def take(self, unit: Sequence[ChangeMessage]) -> list[PushResult]:
        """Apply one change, or one group as a whole; return the results in its order."""
        draft: dict[RecordRef, MergedRecord] = {}
        mine: dict[str, Logged] = {}
        accepted: list[Accepted] = []
        codes: dict[int, str] = {}
        used: dict[int, str] = {}
        decided = False
        for position, change in enumerate(unit):
            logged = mine.get(change.change_id) or self.known.get(change.change_id)
            if logged is not None and logged.own and logged.ref == ref_of(change):
                decided = decided or (bool(change.guards) and change.change_id not in mine)
                continue
            seq = self.head + len(accepted) + 1
            code = refusal_of(change, self.tables, self.writer, self.place)
            if code is None and not codes:
                try:
                    self._check_audited(change, unit)
                    ref = ref_of(change)
                    standing = draft.get(ref) or self.records.get(ref)
                    draft[ref] = self._apply(change, standing, seq)
                except Refused as refused:
                    code = refused.code
            if code is not None:
                codes[position] = code
            elif logged is not None:
                used[position] = "id-taken"
            accepted.append(Accepted(change, seq))
            mine[change.change_id] = Logged(seq, ref_of(change), own=True)
        # An id that is used up is the last thing to say: a decision that somebody else made
        # first bears the same derived ids, and is refused for what it is. A group whose own
        # decision is in the log was decided by another device of the account, and what that
        # one did not do is not done on the strength of its decision.
        codes = codes or used
        if codes or (decided and accepted):
            return [
                self._refused(position, change, codes, mine) for position, change in enumerate(unit)
            ]
        self.head += len(accepted)
        self.accepted += accepted
        self.known.update(mine)
        self.records.update(draft)
        self.written.update(dict.fromkeys(draft))
        fresh = {one.seq for one in accepted}
        return [self._stands(change, fresh) for change in unit]

    def _check_audited(self, change: ChangeMessage, unit: Sequence[ChangeMessage]) -> None:
        """Refuse a change of a space's policy that brings no new record of itself in its group."""
        if change.table == SPACE_POLICY.name and not any(
            other.table == SPACE_POLICY_AUDIT.name and other.change_id not in self.known
            for other in unit
        ):
            raise Refused("audit-missing")

    def _refused(
        self,
        position: int,
        change: ChangeMessage,
        codes: Mapping[int, str],
        mine: Mapping[str, Logged],
    ) -> PushResult:
        if change.change_id not in mine:
            return self._stands(change, set())
        code = codes.get(position, "group-refused")
        return PushResult(change_id=change.change_id, status="refused", code=code)

    def _stands(self, change: ChangeMessage, fresh: set[int]) -> PushResult:
        """Say where a change is in the log; `fresh` places are told once as accepted."""
        seq = self.known[change.change_id].seq
        status = "accepted" if seq in fresh else "duplicate"
        fresh.discard(seq)
        return PushResult(change_id=change.change_id, status=status, seq=seq)

    def _apply(
        self, change: ChangeMessage, standing: MergedRecord | None, seq: int
    ) -> MergedRecord:
        """Return the record after a change; refuse what the record as it stands does not allow."""
        table, held = self.tables[change.table], standing
        if held is None:
            # The same answer whether the record is hidden or was never there.
            if change.op in _OUTDATED:
                raise Refused(_OUTDATED[change.op])
            if ref_of(change) in self.taken or change.author_id != self.writer.account:
                raise Refused("fixed-field")
            visibility: Visibility = "private" if change.visibility == "private" else "space"
            record = Record(table.name, RecordId(change.id), change.author_id, visibility, {})
            held = MergedRecord(record)
        if held.record.author_id != change.author_id:
            raise Refused("fixed-field")
        if change.op == RESEAL:
            merged = _resealed(held, change)
        elif change.op == FLIP:
            merged = _merged(_flipped(held, change, table, seq), change, table)
        elif held.record.visibility == change.visibility:
            merged = _merged(held, change, table)
        else:
            # Sealed for others than those who see it now; only its author may know that.
            mine = held.record.author_id == self.writer.account
            raise Refused("stale-key" if mine else "fixed-field")
        proofs = _proofs(held, merged, change, table, self.place.space_id)
        return MergedRecord(merged.record, proofs, seq, merged.flipped)


def _written(change: ChangeMessage) -> dict[str, Entry]:
    actor, origin = actor_of(change), cast(Origin, change.origin)
    return {
        path: Entry(write.value, write.at, actor, origin, change.change_id)
        for path, write in change.fields.items()
    }


def _merged(held: MergedRecord, change: ChangeMessage, table: Table) -> MergedRecord:
    standing, new = held.record.entries, _written(change)
    _check_fixed(table, standing, new)
    if not standing and not change.guards:
        return _with(held, new)
    free, set_ = new, {}
    # `validate.py` has seen to it that exactly the guarded paths of a change have a guard.
    for path, value in change.guards.items():
        current = standing[path].value if path in standing else None
        if canonical_json(current) != canonical_json(value):
            raise Refused("guard-failed")
        set_[path] = new[path]
    if set_:
        free = {path: entry for path, entry in new.items() if path not in set_}
    entries = {**merge_entries(standing, free), **set_} if standing or set_ else free
    return _with(held, entries)


def _with(held: MergedRecord, entries: Mapping[str, Entry]) -> MergedRecord:
    """Return the record with other entries. By hand, because `replace` is most of a merge."""
    old = held.record
    record = Record(old.table, old.id, old.author_id, old.visibility, entries)
    return MergedRecord(record, held.proofs, held.seq, held.flipped)


def _flipped(held: MergedRecord, change: ChangeMessage, table: Table, seq: int) -> MergedRecord:
    """Return the record under the change's visibility, before its values are merged.

    The change wins on every path that stands, so that it alone is the record: nothing stays
    sealed for those who saw it before, and nothing is missing for those who see it now.
    """
    record = held.record
    visibility: Visibility = "private" if change.visibility == "private" else "space"
    if record.visibility == visibility:
        raise Refused(_OUTDATED[FLIP])
    for path, entry in record.entries.items():
        write = change.fields.get(path)
        if write is None or (write.at <= entry.at and not table.field_at(path).guarded):
            raise Refused(_OUTDATED[FLIP])
    return replace(held, record=replace(record, visibility=visibility), flipped=seq)


def _resealed(held: MergedRecord, change: ChangeMessage) -> MergedRecord:
    """Return the record with standing values under a newer key, and nothing else of it moved."""
    standing, new = held.record.entries, _written(change)
    if held.record.visibility != change.visibility:
        raise Refused(_OUTDATED[RESEAL])
    for path, entry in new.items():
        before = standing.get(path)
        if before is None or not _is_reseal(before, entry):
            raise Refused(_OUTDATED[RESEAL])
        old, sealed = parse_envelope(str(before.value)), parse_envelope(str(entry.value))
        # What the hub can tell of the value is its class and padded length: they stay.
        if old.cls != sealed.cls or len(old.ciphertext) != len(sealed.ciphertext):
            raise Refused("bad-envelope")
    return _with(held, {**standing, **new})


def _proofs(
    held: MergedRecord, merged: MergedRecord, change: ChangeMessage, table: Table, space_id: str
) -> Mapping[str, Proof]:
    """Return the proofs that a path of the record still stems from."""
    if not table.authority or change.signature is None:
        return held.proofs
    stated = facts_of(space_id, change).entries
    proof = Proof(
        signature=change.signature,
        actor=change.actor,
        origin=change.origin,
        entries={path: list(pair) for path, pair in stated.items()},
        reseal=change.op == RESEAL,
    )
    used = {entry.change_id for entry in merged.record.entries.values()}
    return {
        change_id: kept
        for change_id, kept in {**held.proofs, change.change_id: proof}.items()
        if change_id in used
    }


def _check_fixed(table: Table, standing: Mapping[str, Entry], new: Mapping[str, Entry]) -> None:
    if not standing:
        return
    afterwards = _AFTERWARDS.get(table.name)
    for path, entry in new.items():
        before = standing.get(path)
        if afterwards is not None and path not in afterwards:
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
