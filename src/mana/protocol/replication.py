"""The device's side of sync as pure steps: what to push next, and how to take each answer.

No I/O and no clock: the replica keeps the values, the syncer moves them. An answer that breaks a
rule which an honest hub keeps raises HubDistrusted before any of it is taken, so that a hostile
page leaves the replica as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from heapq import merge
from typing import Final, Literal, TypeAlias, cast

from mana.domain.actors import ORIGINS, Actor, Origin, actor_from_wire
from mana.domain.clock import DRIFT_MS_MAX, Stamp, iso_ms, parse_iso_ms, parse_stamp
from mana.domain.encoding import canonical_json, sha256
from mana.domain.errors import Forbidden, Invalid
from mana.domain.ids import RecordId, require_record_id, require_uuid
from mana.domain.merge import later
from mana.domain.records import VISIBILITIES, Entry, Record, Visibility
from mana.domain.settings import USER_TABLES
from mana.protocol.codec import SEQ_MAX, check_value
from mana.protocol.messages import (
    BATCH_BYTES_MAX,
    BATCH_CHANGES_MAX,
    CHANGE_FIELDS_MAX,
    ChangeMessage,
    HiddenRecord,
    LoggedChange,
    Proof,
    PullAnswer,
    PushAnswer,
    Signature,
    StateAnswer,
    StateField,
    StateRecord,
)

ENVELOPE_BYTES: Final = 4_096
"""What of a batch's bytes is left for everything around its changes."""
PATH_LENGTH_MAX: Final = 130
_STAMP: Final = re.compile(
    r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z-[0-9a-f]{4}"
    r"-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.ASCII,
)

Guarded: TypeAlias = Callable[[str, str], bool]
"""Says of a table's path whether the hub's order decides it. Unknown ones are not guarded."""


class HubDistrusted(Forbidden):
    """The hub's answer breaks a rule that an honest hub keeps; nothing of it was taken."""

    code = "HUB_DISTRUSTED"
    advice = "Do not trust this hub's data; ask whoever runs it."


@dataclass(frozen=True, slots=True)
class Held:
    """A record with what stands behind it.

    `seqs` holds by guarded path the place in the log that its value comes from; `proofs` by
    change id the signatures of the changes that the entries stem from. `seq` is the newest place
    in the log that was seen of the record: its visibility is the one that stands.
    """

    record: Record
    seqs: Mapping[str, int] = field(default_factory=dict)
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    seq: int = 0


# Pushing


@dataclass(frozen=True, slots=True)
class Queued:
    """A change that waits: its place in the outbox, size on the wire, and group."""

    position: int
    size: int
    group: str | None


def units(waiting: Iterable[Queued]) -> list[list[Queued]]:
    """Return what must travel together: each group, each change without one."""
    found: list[list[Queued]] = []
    place_by_group: dict[str, int] = {}
    for one in waiting:
        if one.group is None:
            found.append([one])
        elif one.group in place_by_group:
            found[place_by_group[one.group]].append(one)
        else:
            place_by_group[one.group] = len(found)
            found.append([one])
    return found


def next_batch(waiting: Iterable[Queued], *, units_max: int | None = None) -> list[int]:
    """Return the positions of the next batch: as many whole units as the limits allow."""
    taken: list[int] = []
    size = ENVELOPE_BYTES
    for place, unit in enumerate(units(waiting)):
        grown = size + sum(one.size + 1 for one in unit)
        full = len(taken) + len(unit) > BATCH_CHANGES_MAX or grown > BATCH_BYTES_MAX
        if taken and (full or (units_max is not None and place >= units_max)):
            break
        taken += [one.position for one in unit]
        size = grown
    return sorted(taken)


Fate: TypeAlias = Literal["acknowledged", "parked", "forgotten", "restamp", "reseal", "rename"]
_AGAIN: Final[Mapping[str, Fate]] = {
    "clock-ahead": "restamp",
    "stale-key": "reseal",
    "id-taken": "rename",
}
"""Refusals after which a change is made anew and sent again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a pushed change.

    It stands; is parked; is forgotten, since nothing is lost with it; or is sent again: stamped
    anew, sealed anew, or under another id.
    """

    change_id: str
    fate: Fate
    seq: int = 0
    code: str = ""

    @property
    def again(self) -> bool:
        """Say whether the change is sent again."""
        return self.fate in ("restamp", "reseal", "rename")


def verdicts(sent: Sequence[ChangeMessage], answer: PushAnswer) -> list[Verdict]:
    """Return the verdict on each change of a batch; raise HubDistrusted unless all are answered."""
    if [result.change_id for result in answer.results] != [one.change_id for one in sent]:
        raise HubDistrusted("the hub answered other changes than were pushed")
    time_of(answer.hub_time)
    codes_by_group: dict[str, set[str]] = {}
    for change, result in zip(sent, answer.results, strict=True):
        if result.status == "refused" and change.group is not None:
            codes_by_group.setdefault(change.group, set()).add(result.code or "")
    out: list[Verdict] = []
    for change, result in zip(sent, answer.results, strict=True):
        code = result.code or "refused"
        if result.status in ("accepted", "duplicate"):
            if result.seq is None or not 0 < result.seq <= SEQ_MAX:
                raise HubDistrusted("the hub acknowledged a change without a place in the log")
            out.append(Verdict(change.change_id, "acknowledged", seq=result.seq))
        elif result.status != "refused" or len(code) > 64:
            raise HubDistrusted("the hub's word on a change is not known")
        else:
            codes = codes_by_group.get(change.group or "", {code})
            out.append(Verdict(change.change_id, _fate(code, codes), code=code))
    return out


def _fate(code: str, codes: set[str]) -> Fate:
    """Return what a refusal means, by the codes of the whole group."""
    if code == "reseal-outdated":
        return "forgotten"
    faults = codes - {"group-refused"}
    if not faults or not faults <= _AGAIN.keys():
        return "parked"
    # A member that fell with its group is sent again with it: made anew where a clock was ahead,
    # and looked at for an old key otherwise, which changes nothing where there is none.
    with_group: Fate = "restamp" if "clock-ahead" in faults else "reseal"
    return _AGAIN.get(code, with_group)


# Pulling


def check_pull(answer: PullAnswer, *, after: int, limit: int, space_type: str, now_ms: int) -> None:
    """Raise HubDistrusted unless this page can follow the cursor `after`."""
    bound = iso_ms(max(time_of(answer.hub_time), now_ms) + DRIFT_MS_MAX)
    if len(answer.changes) > limit:
        raise HubDistrusted("the hub sent more changes than were asked for")
    last = after
    for logged in answer.changes:
        if not last < logged.seq <= SEQ_MAX:
            raise HubDistrusted("the hub's log goes backwards")
        last = logged.seq
        _check_change(logged, space_type, bound)
    _check_hidden(answer, after=after, space_type=space_type)
    if not last <= answer.cursor <= SEQ_MAX:
        raise HubDistrusted("the hub's cursor is not that of its page")
    if answer.more and answer.cursor == after:
        raise HubDistrusted("the hub promises more and gives nothing")


def check_state(answer: StateAnswer, *, space_type: str, now_ms: int) -> None:
    """Raise HubDistrusted unless this page of a space's state is well formed."""
    bound = iso_ms(max(time_of(answer.hub_time), now_ms) + DRIFT_MS_MAX)
    if not 0 <= answer.head <= SEQ_MAX:
        raise HubDistrusted("the hub's state has no head")
    if answer.next is not None and not 0 < len(answer.next) <= 1_024:
        raise HubDistrusted("the hub's next page has no name")
    for record in answer.records:
        _check_place(record.table, record.id, record.author_id, record.visibility, space_type)
        if not 0 <= record.seq <= SEQ_MAX:
            raise HubDistrusted("a record has no place in the log")
        before: StateField | None = None
        for path, entry in record.fields.items():
            # Most of a record was written at once, and is looked at once.
            if before is None or entry.at != before.at:
                _check_stamp(entry.at, bound)
            _check_value(path, entry.value)
            _check_class(entry.value, record.visibility)
            if before is None or (entry.actor, entry.origin) != (before.actor, before.origin):
                _check_writer(entry.actor, entry.origin)
            if not 0 < len(entry.change_id) <= 128:
                raise HubDistrusted("a value names no change")
            before = entry
        _check_proofs(record.proofs)


def own_flips(changes: Iterable[LoggedChange], *, account_id: str) -> list[ChangeMessage]:
    """Return the flips of this account's records, whose signatures are to be checked.

    Raises HubDistrusted for what an honest hub shows to nobody: another's private record.
    """
    flips: list[ChangeMessage] = []
    for logged in changes:
        change = logged.change
        if change.author_id == account_id:
            if change.op == "flip":
                flips.append(change)
        elif change.visibility == "private":
            raise HubDistrusted("the hub shows a record that is private to another member")
    return flips


def check_authors(records: Iterable[StateRecord], *, account_id: str) -> None:
    """Raise HubDistrusted for what an honest hub shows to nobody: another's private record."""
    if any(one.visibility == "private" and one.author_id != account_id for one in records):
        raise HubDistrusted("the hub shows a record that is private to another member")


def time_of(moment: str) -> int:
    """Return the hub's time in ms; raise HubDistrusted if it is none."""
    try:
        return parse_iso_ms(moment)
    except Invalid:
        raise HubDistrusted("the hub's time is no moment") from None


def newest_stamp(changes: Iterable[LoggedChange]) -> Stamp | None:
    """Return the newest stamp of a checked page."""
    found = max(
        (write.at for logged in changes for write in logged.change.fields.values()), default=None
    )
    return None if found is None else parse_stamp(found)


def in_log_order(
    changes: Sequence[LoggedChange], hidden: Sequence[HiddenRecord]
) -> Iterable[LoggedChange | HiddenRecord]:
    """Return what a checked page brings and what it takes away, as the log has it."""
    return merge(changes, hidden, key=lambda one: one.seq) if hidden else changes


def apply_change(
    held: Held | None, change: ChangeMessage, *, seq: int | None, guarded: Guarded
) -> Held:
    """Return the record after a change.

    `seq` None: an own change that is not in the log here yet; its guarded fields stand until
    the log says otherwise, and so does its visibility if it is a flip. Nothing but a flip by the
    record's author says anything about visibility: the record may have flipped since.
    """
    record = held.record if held is not None else _empty(change)
    newest = held.seq if held is not None else 0
    is_authors = change.author_id == record.author_id
    if change.op == "flip" and is_authors and (seq is None or seq > newest):
        standing_at = {path: entry.at for path, entry in record.entries.items()}
        if seq is None or covers(change, standing_at, guarded):
            record = replace(record, visibility=cast(Visibility, change.visibility))
    entries = dict(record.entries)
    seqs = dict(held.seqs) if held is not None else {}
    actor = read_actor(change.actor)
    for path, write in change.fields.items():
        entry = Entry(write.value, write.at, actor, cast(Origin, change.origin), change.change_id)
        standing = entries.get(path)
        if guarded(change.table, path):
            if seq is None:
                entries[path] = entry
            elif seq > seqs.get(path, 0):
                entries[path], seqs[path] = entry, seq
        else:
            entries[path] = entry if standing is None else later(standing, entry)
    proofs = dict(held.proofs) if held is not None else {}
    if change.signature is not None and change.op != "flip":
        proofs[change.change_id] = proof_of(change, change.signature)
    return _held(record, entries, seqs, proofs, max(newest, seq or 0))


def covers(change: ChangeMessage, standing: Mapping[str, str], guarded: Guarded) -> bool:
    """Say whether a flip writes all that stands, by path its stamp, anew.

    One that does not is an old one, shown again: a hub must not bring back who saw a record.
    """
    return all(
        path in change.fields and (guarded(change.table, path) or change.fields[path].at > at)
        for path, at in standing.items()
    )


def apply_state(held: Held | None, state: StateRecord, *, guarded: Guarded) -> Held:
    """Return the record after its merged state was read from the hub."""
    if held is None:
        record = Record(
            state.table,
            RecordId(state.id),
            state.author_id,
            cast(Visibility, state.visibility),
            {},
        )
        held = Held(record)
    record = held.record
    if state.seq > held.seq:
        record = replace(record, visibility=cast(Visibility, state.visibility))
    entries, seqs = dict(record.entries), dict(held.seqs)
    for path, found in state.fields.items():
        entry = Entry(
            found.value,
            found.at,
            read_actor(found.actor),
            cast(Origin, found.origin),
            found.change_id,
        )
        standing = entries.get(path)
        if guarded(state.table, path):
            if standing is None or state.seq > seqs.get(path, 0):
                entries[path], seqs[path] = entry, state.seq
        else:
            entries[path] = entry if standing is None else later(standing, entry)
    proofs = {**held.proofs, **state.proofs}
    return _held(record, entries, seqs, proofs, max(held.seq, state.seq))


def overlay(held: Held | None, own: Iterable[ChangeMessage], *, guarded: Guarded) -> Held | None:
    """Return the record as the person sees it: what the hub holds, and what waits here."""
    for change in own:
        held = apply_change(held, change, seq=None, guarded=guarded)
    return held


def read_actor(wire: Mapping[str, str]) -> Actor:
    """Return the actor of a wire form; raise Invalid. Most entries name one of a few."""
    try:
        return _actor(tuple(wire.items()))
    except TypeError:
        raise Invalid("actor members are short strings") from None


@lru_cache(maxsize=512)
def _actor(members: tuple[tuple[str, str], ...]) -> Actor:
    return actor_from_wire(dict(members))


@lru_cache(maxsize=512)
def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def proof_of(change: ChangeMessage, signature: Signature) -> Proof:
    """Return the proof that a signed change leaves behind."""
    return Proof(
        signature=signature,
        actor=dict(change.actor),
        origin=change.origin,
        entries={
            path: [write.at, sha256(canonical_json(write.value)).hex()]
            for path, write in change.fields.items()
        },
        reseal=change.op == "reseal",
    )


def _empty(change: ChangeMessage) -> Record:
    return Record(
        change.table,
        RecordId(change.id),
        change.author_id,
        cast(Visibility, change.visibility),
        {},
    )


def _held(
    record: Record,
    entries: dict[str, Entry],
    seqs: dict[str, int],
    proofs: dict[str, Proof],
    seq: int,
) -> Held:
    """Return the record with the proofs that a path still stems from."""
    if proofs:
        standing = {entry.change_id for entry in entries.values()}
        proofs = {name: proof for name, proof in proofs.items() if name in standing}
    return Held(replace(record, entries=entries), seqs, proofs, seq)


def _check_change(logged: LoggedChange, space_type: str, bound: str) -> None:
    change = logged.change
    _check_place(change.table, change.id, change.author_id, change.visibility, space_type)
    _check_writer(change.actor, change.origin)
    if not 0 < len(change.change_id) <= 128 or not 0 < len(logged.device_id) <= 128:
        raise HubDistrusted("a change has no id or no device")
    if not 0 < len(change.fields) <= CHANGE_FIELDS_MAX:
        raise HubDistrusted("a change writes nothing, or more than a change may")
    checked = None
    for path, write in change.fields.items():
        if write.at != checked:
            _check_stamp(write.at, bound)
            checked = write.at
        _check_value(path, write.value)
        _check_class(write.value, change.visibility)


def _check_hidden(answer: PullAnswer, *, after: int, space_type: str) -> None:
    taken = {logged.seq for logged in answer.changes}
    last = after
    for marker in answer.hidden:
        if not last < marker.seq <= answer.cursor or marker.seq in taken:
            raise HubDistrusted("a record is hidden at no place of this page")
        last = marker.seq
        _check_name(marker.table, marker.id, space_type)


def _check_place(table: str, record: str, author: str, visibility: str, space_type: str) -> None:
    if visibility not in VISIBILITIES:
        raise HubDistrusted("a record has no visibility")
    _check_name(table, record, space_type)
    try:
        require_uuid(author, "author")
    except Invalid:
        raise HubDistrusted("a record's author is malformed") from None


def _check_name(table: str, record: str, space_type: str) -> None:
    if not 0 < len(table) <= 128:
        raise HubDistrusted("a record has no table")
    if (table in USER_TABLES) != (space_type == "user"):
        raise HubDistrusted("a record of another space's tables")
    try:
        require_record_id(record)
    except Invalid:
        raise HubDistrusted("a record's id is malformed") from None


def _check_writer(actor: Mapping[str, str], origin: str) -> None:
    try:
        read_actor(actor)
    except Invalid:
        raise HubDistrusted("a change names no actor") from None
    if origin not in ORIGINS:
        raise HubDistrusted("a change names no origin")


def _check_stamp(at: str, bound: str) -> None:
    # What `parse_stamp` takes, without making numbers of it: a first pull reads millions.
    if _STAMP.fullmatch(at) is None or not _is_day(at[:10]):
        raise HubDistrusted("a stamp is malformed")
    if at[: len(bound)] > bound:
        raise HubDistrusted("a stamp lies further ahead than the hub may take")


def _check_value(path: str, value: object) -> None:
    if not 0 < len(path) <= PATH_LENGTH_MAX:
        raise HubDistrusted("a path has no length that a path can have")
    try:
        check_value(value)  # type: ignore[arg-type]
    except Invalid:
        raise HubDistrusted("a value is malformed") from None


def _check_class(value: object, visibility: str) -> None:
    """Refuse values sealed for others than the record's visibility says."""
    if not isinstance(value, str) or not value.startswith("enc:2:"):
        return
    if value.startswith("enc:2:p") != (visibility == "private"):
        raise HubDistrusted("a value is sealed for others than its record is")


def _check_proofs(proofs: Mapping[str, Proof]) -> None:
    for proof in proofs.values():
        if any(len(entry) != 2 for entry in proof.entries.values()):
            raise HubDistrusted("a proof is malformed")
