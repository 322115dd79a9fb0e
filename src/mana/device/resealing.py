"""Seals values anew: what waits under a key or for a visibility that has passed, and, in the
background, what stands under an older version of a key.

What is brought under a newer key keeps its stamp, actor and value, so it never beats an edit and
is nobody's news. Where it stops there is nothing to remember: the records themselves say under
which version they are. Normative: docs/protocol/sync.md, 3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from mana.crypto.authority import facts_of
from mana.crypto.envelope import Binding, open_field, parse_envelope, seal_field
from mana.crypto.primitives import b64
from mana.crypto.signatures import sign_reseal
from mana.device.replica import OutboxRow, Tx
from mana.device.replica.rows import read_row
from mana.device.sealing import KeyPlace, Sealer
from mana.device.vault import SpaceKeys, random_id
from mana.domain.actors import actor_from_wire
from mana.domain.clock import Stamp, next_stamp, observe, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Forbidden, ManaError, NotFound
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import Entry, Record, Visibility
from mana.domain.spaces import can_manage, can_write
from mana.domain.tables import Sealing, Table
from mana.protocol.messages import (
    CHANGE_FIELDS_MAX,
    ChangeMessage,
    FieldWrite,
    PushRequest,
    Signature,
)
from mana.protocol.replication import Held, HubDistrusted, verdicts

if TYPE_CHECKING:
    from mana.device.records import RecordBook

RECORDS_PER_BATCH: Final = 200
_BATCH_BYTES: Final = 2 * 1024 * 1024
_ENVELOPE: Final = re.compile(rb'"enc:2:([spm])([1-9][0-9]{0,8}):')
_SEALED: Final = "enc:2:"
TARGET: Final = ("targetTable", "targetId")
"""The plain fields by which a record names the one that it is about."""

Differ = Callable[[str, Record, Record, str], bool]


# What waits


def seal_anew(
    sealer: Sealer,
    space_id: str,
    change: ChangeMessage,
    before: Record | None,
    *,
    stamp: Stamp | None = None,
    private: bool = False,
) -> ChangeMessage:
    """Return an own change under the newest key, for the visibility that its record has.

    `before`: the record as the change finds it; `private`: a new record that must be so. Without
    `stamp` the change keeps its own, and is returned as it is if nothing about it has passed.
    Raises ManaError if it does not open here.
    """
    table = sealer.catalogue.table(change.table)
    keys = sealer.keys(space_id)
    entries = before.entries if before is not None else {}
    visibility = change.visibility
    if before is not None and change.op != "flip":
        visibility = before.visibility
    if before is None and private:
        visibility = "private"
    plain = {path: write.value for path, write in change.fields.items()}
    place = sealer.place(table, change.id, visibility, entries, plain)
    version = sealer.version(keys, place)
    sealed = [
        str(write.value)
        for path, write in change.fields.items()
        if write.value is not None and table.field_at(path).sealed
    ]
    current = f"{_SEALED}{place.cls}{version}:"
    if (
        stamp is None
        and visibility == change.visibility
        and all(value.startswith(current) for value in sealed)
    ):
        return change
    actor = actor_from_wire(change.actor).to_wire()
    values: dict[str, Json] = {}
    for path, write in change.fields.items():
        value = write.value
        if value is not None and table.field_at(path).sealed:
            envelope = parse_envelope(str(value))
            was = "private" if envelope.cls == "p" else "space"
            old = sealer.place(table, change.id, was, entries, plain)
            binding = Binding(space_id, change.table, change.id, path, write.at, actor)
            key = sealer.record_key(keys, old, envelope.version)
            value = open_field(key, str(value), binding=binding)
        values[path] = value
    # All paths of an own change bear one stamp.
    at = stamp or parse_stamp(next(iter(change.fields.values())).at)
    draft = msgspec.structs.replace(change, visibility=visibility)
    return sealer.seal(space_id, draft, place, values, at)


def restamper(sealer: Sealer, now_ms: int) -> Callable[[Tx, OutboxRow], ChangeMessage]:
    """Return how a change that waits is stamped and sealed anew."""

    def anew(tx: Tx, row: OutboxRow) -> ChangeMessage:
        change = row.message
        base = tx.base(row.space, change.table, change.id)
        last = tx.clock(sealer.device.device_id)
        for path in change.fields:
            entry = base.record.entries.get(path) if base is not None else None
            if entry is not None:
                last = observe(last, parse_stamp(entry.at), hub_ms=now_ms)
        stamp = next_stamp(last, now_ms=now_ms)
        before = tx.before(row)
        record = before.record if before is not None else None
        private = _is_of_private(sealer, tx, row)
        again = seal_anew(sealer, row.space, change, record, stamp=stamp, private=private)
        tx.set_clock(stamp)
        return again

    return anew


def resealer(sealer: Sealer) -> Callable[[Tx, OutboxRow], ChangeMessage]:
    """Return how a change that waits is sealed anew, under the stamp that it has."""

    def anew(tx: Tx, row: OutboxRow) -> ChangeMessage:
        try:
            sealer.catalogue.table(row.message.table)
        except NotFound:
            return row.message  # its module is not installed here any more; it goes as it is
        before = tx.before(row)
        record = before.record if before is not None else None
        private = _is_of_private(sealer, tx, row)
        return seal_anew(sealer, row.space, row.message, record, private=private)

    return anew


def _is_of_private(sealer: Sealer, tx: Tx, row: OutboxRow) -> bool:
    """Say whether a change is about a record that is private by now, as its journal is."""
    change = row.message
    if sealer.catalogue.table(change.table).sealing is not Sealing.TARGET:
        return False
    named = [change.fields[name].value for name in TARGET if name in change.fields]
    if len(named) != len(TARGET):
        return False
    target = tx.held(row.space, str(named[0]), str(named[1]))
    return target is not None and target.record.visibility == "private"


def renamer(sealer: Sealer, new_id: Callable[[], str]) -> Callable[[Tx, OutboxRow], ChangeMessage]:
    """Return how a change goes again whose id another account has used."""

    def anew(tx: Tx, row: OutboxRow) -> ChangeMessage:
        again = msgspec.structs.replace(row.message, change_id=new_id())
        signed = sealer.catalogue.table(again.table).authority
        return sealer.sign(again, row.space) if signed else again

    return anew


# What is compared


def open_entry(
    sealer: Sealer, space_id: str, record: Record, path: str, entry: Entry
) -> tuple[bool, Json]:
    """Return whether an entry of a record opens here, and its value.

    It opens under the class that its envelope names, whatever the record's visibility is by now.
    """
    visibility: Visibility = record.visibility
    if isinstance(entry.value, str) and entry.value.startswith(_SEALED):
        visibility = "private" if entry.value.startswith(f"{_SEALED}p") else "space"
    entries = {
        name: one
        for name, one in record.entries.items()
        if not (isinstance(one.value, str) and one.value.startswith(_SEALED))
    }
    one_path = replace(record, visibility=visibility, entries={**entries, path: entry})
    opened = sealer.opened_paths(space_id, one_path)
    return path in opened, opened.get(path)


def differs(sealer: Sealer, space_id: str) -> Differ:
    """Return how the values of two states of a record are compared, opened."""

    def differ(table: str, before: Record, after: Record, path: str) -> bool:
        could, was = open_entry(sealer, space_id, before, path, before.entries[path])
        # What a person wrote and cannot be shown any more is no news to them; what replaced it
        # and cannot be shown yet is.
        _, now = open_entry(sealer, space_id, after, path, after.entries[path])
        return could and was != now

    return differ


# What stands under an older key


@dataclass(frozen=True, slots=True)
class Progress:
    """How many records of a space stand under which version of its key, oldest value first.

    `private` counts by version of this account's private key. `waiting`: records that could not
    be sealed anew for now. Records that nobody may seal anew (what the runner signed) are not
    counted.
    """

    version: int
    shared: Mapping[int, int]
    private_version: int
    private: Mapping[int, int]

    @property
    def outdated(self) -> int:
        """Return how many records stand under an older version."""
        return sum(n for version, n in self.shared.items() if version < self.version) + sum(
            n for version, n in self.private.items() if version < self.private_version
        )

    def share(self, version: int) -> float:
        """Return which part of the shared records stands under a version, 0 to 1."""
        whole = sum(self.shared.values())
        return self.shared.get(version, 0) / whole if whole else 0.0


@dataclass(slots=True)
class _Batch:
    changes: list[ChangeMessage] = field(default_factory=list)
    size: int = 0

    def add(self, change: ChangeMessage) -> None:
        self.changes.append(change)
        self.size += len(msgspec.json.encode(change))


class Resealing:
    """Brings the records of an account's spaces under the newest keys, a batch at a time."""

    def __init__(self, book: RecordBook, *, new_id: Callable[[], str] = random_id) -> None:
        self._book = book
        self._inner = book.inner
        self._new_id = new_id
        self._refused: dict[tuple[str, str, str], int] = {}

    async def once(self) -> int:
        """Go once through all spaces; return how many records were brought under a newer key.

        What the hub did not take is left for a later time: what was edited meanwhile is sealed
        under the newer key itself.
        """
        done = 0
        for space_id in list(self._inner().vault.spaces):
            done += await self._space(space_id)
        return done

    async def progress(self, space_id: str) -> Progress:
        """Return how far a space is. Reads every record, and opens none."""
        inner = self._inner()
        keys = inner.vault.space(space_id)
        shared: Counter[int] = Counter()
        private: Counter[int] = Counter()
        after = ("", "")
        while rows := await self._page(space_id, after):
            after = (rows[-1][0], rows[-1][1])
            for table, record_id, raw in rows:
                versions = _versions(raw)
                if not versions or not self._may(keys, table, record_id, raw):
                    continue
                (private if versions[0][0] == "p" else shared)[min(v for _, v in versions)] += 1
        return Progress(
            keys.version, dict(shared), max(keys.private_keys, default=0), dict(private)
        )

    async def _space(self, space_id: str) -> int:
        inner = self._inner()
        keys = inner.vault.space(space_id)
        if keys.former or keys.role is None or not can_write(keys.role):
            return 0
        done = 0
        after = ("", "")
        while rows := await self._page(space_id, after):
            after = (rows[-1][0], rows[-1][1])
            for batch in self._batches(inner.sealer, keys, rows):
                done += await self._send(space_id, batch)
        if done:
            # They come back by the log, like everything else.
            inner.syncer.wake()
        return done

    async def _page(self, space_id: str, after: tuple[str, str]) -> list[tuple[str, str, bytes]]:
        return await self._inner().replica.read(
            lambda tx: tx.scan(space_id, after, limit=RECORDS_PER_BATCH)
        )

    def _may(self, keys: SpaceKeys, table: str, record_id: str, raw: bytes) -> bool:
        """Say whether this account may seal a record anew."""
        account_id = self._inner().vault.account_id
        try:
            declared = self._inner().sealer.catalogue.table(table)
        except NotFound:
            return False
        if declared.written_by == "self" and record_id != account_id:
            return False
        if declared.written_by == "managers" and (keys.role is None or not can_manage(keys.role)):
            return False
        # What the runner wrote is signed as it lies; under another key its signature would not
        # hold any more.
        return not (table in (ITERATIONS.name, STEPS.name) and b'"runner:' in raw)

    def _batches(
        self, sealer: Sealer, keys: SpaceKeys, rows: Iterable[tuple[str, str, bytes]]
    ) -> Iterator[list[ChangeMessage]]:
        batch = _Batch()
        for table, record_id, raw in rows:
            place = (keys.space_id, table, record_id)
            if not _is_outdated(keys, raw) or not self._may(keys, table, record_id, raw):
                continue
            if self._refused.get(place) == hash(raw):
                continue  # the hub refused this very state of it
            held = read_row(table, record_id, raw)
            for change in self._changes(sealer, keys, held):
                if batch.changes and batch.size > _BATCH_BYTES:
                    yield batch.changes
                    batch = _Batch()
                batch.add(change)
        if batch.changes:
            yield batch.changes

    def _changes(self, sealer: Sealer, keys: SpaceKeys, held: Held) -> Iterator[ChangeMessage]:
        """Yield the re-seals of a record: one per actor and origin that wrote what is outdated."""
        record = held.record
        table = sealer.catalogue.table(record.table)
        by_writer: dict[tuple[object, str], dict[str, Entry]] = {}
        for path, entry in record.entries.items():
            if _is_sealed(table, path, entry):
                by_writer.setdefault((entry.actor, entry.origin), {})[path] = entry
        for (_, origin), entries in by_writer.items():
            fields: dict[str, FieldWrite] = {}
            for path, entry in entries.items():
                try:
                    fields |= _resealed(sealer, keys, table, record, path, entry)
                except ManaError:
                    continue  # it does not open here; whoever can open it seals it anew
            paths = sorted(fields)
            actor = next(iter(entries.values())).actor
            for start in range(0, len(paths), CHANGE_FIELDS_MAX):
                taken = paths[start : start + CHANGE_FIELDS_MAX]
                change = ChangeMessage(
                    change_id=self._new_id(),
                    table=record.table,
                    id=record.id,
                    op="reseal",
                    fields={path: fields[path] for path in taken},
                    actor={name: str(member) for name, member in actor.to_wire().items()},
                    origin=origin,
                    author_id=record.author_id,
                    visibility=record.visibility,
                )
                yield _signed(sealer, keys.space_id, change) if table.authority else change

    async def _send(self, space_id: str, changes: list[ChangeMessage]) -> int:
        inner = self._inner()
        request = PushRequest(device_id=inner.sealer.device.device_id, changes=changes)
        try:
            found = verdicts(changes, await self._book.hub.push(space_id, request))
        except (Conflict, Forbidden, NotFound) as error:
            if isinstance(error, HubDistrusted):
                raise
            return 0  # the space moved meanwhile; sync finds out how
        done = {
            (change.table, change.id)
            for change, verdict in zip(changes, found, strict=True)
            if verdict.fate == "acknowledged"
        }
        await self._remember(
            space_id,
            {
                (change.table, change.id)
                for change, verdict in zip(changes, found, strict=True)
                if verdict.fate == "parked"
            },
        )
        return len(done)

    async def _remember(self, space_id: str, keys: set[tuple[str, str]]) -> None:
        """Ask the hub no more about a state of a record that it refused for good."""

        def work(tx: Tx) -> None:
            for table, record_id in keys:
                raw = tx.raw_base(space_id, table, record_id)
                if raw is not None:
                    self._refused[space_id, table, record_id] = hash(raw)

        if keys:
            await self._inner().replica.read(work)


def _versions(raw: bytes) -> list[tuple[str, int]]:
    """Return class and version of each envelope of a stored record, without reading it."""
    return [(found[1].decode(), int(found[2])) for found in _ENVELOPE.finditer(raw)]


def _is_outdated(keys: SpaceKeys, raw: bytes) -> bool:
    private = max(keys.private_keys, default=0)
    return any(
        version < (private if cls == "p" else keys.version) for cls, version in _versions(raw)
    )


def _is_sealed(table: Table, path: str, entry: Entry) -> bool:
    declared = table.by_name.get(path.partition("/")[0])
    if declared is None or not declared.sealed or declared.guarded:
        return False
    return isinstance(entry.value, str) and entry.value.startswith(_SEALED)


def _resealed(
    sealer: Sealer, keys: SpaceKeys, table: Table, record: Record, path: str, entry: Entry
) -> dict[str, FieldWrite]:
    """Return an entry's value under the newest key; nothing if it stands under it."""
    value = str(entry.value)
    envelope = parse_envelope(value)
    place: KeyPlace = sealer.place(table, record.id, record.visibility, record.entries, {})
    version = sealer.version(keys, place)
    if envelope.cls != place.cls or envelope.version >= version:
        return {}
    binding = Binding(keys.space_id, record.table, record.id, path, entry.at, entry.actor.to_wire())
    opened = open_field(sealer.record_key(keys, place, envelope.version), value, binding=binding)
    again = seal_field(
        sealer.record_key(keys, place, version),
        cls=place.cls,
        version=version,
        binding=binding,
        value=opened,
        random=sealer.random,
    )
    return {path: FieldWrite(value=again, at=entry.at)}


def _signed(sealer: Sealer, space_id: str, change: ChangeMessage) -> ChangeMessage:
    value = sign_reseal(sealer.device.key, facts_of(space_id, change))
    signature = Signature(signer=sealer.device.device_id, value=b64(value))
    return msgspec.structs.replace(change, signature=signature)
