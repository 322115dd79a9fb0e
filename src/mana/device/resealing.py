"""Brings, in the background, what stands under an older version of a key under the newest one.

What is brought under a newer key keeps its stamp, actor and value, so it never beats an edit and
is nobody's news. Where it stops there is nothing to remember: the records themselves say under
which version they are. Normative: docs/protocol/sync.md, 3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.crypto.authority import facts_of
from mana.crypto.envelope import Binding, parse_envelope, seal_field
from mana.crypto.primitives import b64
from mana.crypto.signatures import sign_reseal
from mana.device.records import RecordBook
from mana.device.replica import Tx
from mana.device.replica.rows import read_row
from mana.device.sealing import KeyPlace, Sealer
from mana.device.vault import SpaceKeys, random_id
from mana.domain.errors import Conflict, Forbidden, ManaError, NotFound
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import Entry, Record
from mana.domain.spaces import can_manage, can_write
from mana.domain.tables import Table
from mana.protocol.messages import (
    BATCH_CHANGES_MAX,
    CHANGE_FIELDS_MAX,
    ChangeMessage,
    FieldWrite,
    PushRequest,
    Signature,
)
from mana.protocol.replication import Held, HubDistrusted, verdicts

RECORDS_PER_BATCH: Final = 200
_BATCH_BYTES: Final = 2 * 1024 * 1024
_ENVELOPE: Final = re.compile(rb'"enc:2:([spm])([1-9][0-9]{0,8}):')
_SEALED: Final = "enc:2:"


@dataclass(frozen=True, slots=True)
class Progress:
    """How many records of a space stand under which version of its key, by their oldest value.

    `private` counts by version of this account's private key. `fixed`: records under an older
    version that this account may not seal anew, as what the runner signed; they count in neither.
    """

    version: int
    shared: Mapping[int, int]
    private_version: int
    private: Mapping[int, int]
    fixed: int = 0

    def share(self, version: int) -> float:
        """Return which part of the shared records stands under a version, 0 to 1."""
        whole = sum(self.shared.values())
        return self.shared.get(version, 0) / whole if whole else 0.0


@dataclass(slots=True)
class _Batch:
    changes: list[ChangeMessage] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.changes) == BATCH_CHANGES_MAX or self.size > _BATCH_BYTES

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
        fixed = 0
        after = ("", "")
        while rows := await self._page(space_id, after):
            after = (rows[-1][0], rows[-1][1])
            for table, record_id, raw in rows:
                versions = _versions(raw)
                if versions and not self._may(keys, table, record_id, raw):
                    fixed += _is_outdated(keys, raw)
                    continue
                if not versions:
                    continue
                (private if versions[0][0] == "p" else shared)[min(v for _, v in versions)] += 1
        newest = max(keys.private_keys, default=0)
        return Progress(keys.version, dict(shared), newest, dict(private), fixed)

    async def borne(self, space_id: str) -> set[str]:
        """Return the keys under which records of a space stand here, as `s1` and `p1`."""
        found: set[str] = set()
        after = ("", "")
        while rows := await self._page(space_id, after):
            after = (rows[-1][0], rows[-1][1])
            for _, _, raw in rows:
                # A mission's key is derived from the space's.
                found |= {f"{'p' if cls == 'p' else 's'}{at}" for cls, at in _versions(raw)}
        return found

    async def _space(self, space_id: str) -> int:
        inner = self._inner()
        keys = inner.vault.space(space_id)
        if keys.former or keys.spoiled or keys.role is None or not can_write(keys.role):
            return 0
        done = 0
        after = ("", "")
        while rows := await self._page(space_id, after):
            after = (rows[-1][0], rows[-1][1])
            taken: set[tuple[str, str]] = set()
            for batch in self._batches(inner.sealer, keys, rows):
                taken |= await self._send(space_id, batch)
            done += len(taken)
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
                if batch.is_full:
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

    async def _send(self, space_id: str, changes: list[ChangeMessage]) -> set[tuple[str, str]]:
        """Return the records of which the hub took something."""
        inner = self._inner()
        request = PushRequest(device_id=inner.sealer.device.device_id, changes=changes)
        try:
            found = verdicts(changes, await self._book.hub.push(space_id, request))
        except (Conflict, Forbidden, NotFound) as error:
            if isinstance(error, HubDistrusted):
                raise
            return set()  # the space moved meanwhile; sync finds out how
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
        return done

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
    again = seal_field(
        sealer.record_key(keys, place, version),
        cls=place.cls,
        version=version,
        binding=binding,
        value=sealer.open_value(keys, place, binding, value),
        random=sealer.random,
    )
    return {path: FieldWrite(value=again, at=entry.at)}


def _signed(sealer: Sealer, space_id: str, change: ChangeMessage) -> ChangeMessage:
    value = sign_reseal(sealer.device.key, facts_of(space_id, change))
    signature = Signature(signer=sealer.device.device_id, value=b64(value))
    return msgspec.structs.replace(change, signature=signature)
