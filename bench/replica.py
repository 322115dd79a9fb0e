"""What sync costs the device: merging, taking in a big space, opening a list.

Everything goes the way it goes on a device: `Syncer` and `Replica` from the bytes of the hub's
answers on, `RecordBook.views` for a list, a list that no memory helps. Beside each stands the
limit: raw inserts of the same rows into SQLite, and AES-GCM alone over the same ciphertexts with
keys that are expanded. Rates are by the CPU time of this process, so that a busy machine does not
tell; the time by the clock stands beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench import world
from mana.crypto.envelope import Binding, parse_envelope
from mana.crypto.passwords import KdfFloor, PasswordKeys
from mana.device.hub_client import HubClient
from mana.device.records import RecordBook
from mana.device.replica import Replica
from mana.device.replica.schema import MIGRATIONS
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.vault import NewAccount, derive, new_account, new_kdf, open_vault
from mana.domain.actors import person
from mana.domain.clock import Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import DeviceId, SpaceId
from mana.domain.merge import merge_entries
from mana.domain.records import Entry
from mana.domain.tables import defaults
from mana.protocol.codec import decode
from mana.protocol.messages import (
    ChangeMessage,
    DeviceCertificate,
    LoggedChange,
    PullAnswer,
    SpaceInfo,
    SpacesAnswer,
    StateAnswer,
    StateField,
    StateRecord,
)
from mana.registry.catalogue import load_catalogue

ROUNDS: Final = 5
LISTS: Final = (1_000, 10_000)
PAGE: Final = 1_000
CATALOGUE: Final = load_catalogue()
NOTES: Final = CATALOGUE.table("notes")
CHEAP: Final = KdfFloor(t=1, m_kib=8, p=1)
OTHER: Final = DeviceId(str(uuid.UUID(int=2)))
NOW_MS: Final = 1_795_000_000_000
TEXT: Final = "what somebody wrote down on an ordinary day, in a note of ordinary length. " * 5


def main(records: int) -> None:
    """Measure and print one table."""
    rows = [_merged(records), *asyncio.run(_device(records))]
    world.table("the device", ("", "ms CPU", "per s", "ms", "beside it"), rows)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one run took, in seconds of CPU and by the clock."""

    cpu: float
    wall: float


@contextlib.contextmanager
def _taking(into: list[Taken]) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    into.append(Taken(time.process_time() - cpu, time.perf_counter() - wall))


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(
        statistics.median(one.cpu for one in taken), statistics.median(one.wall for one in taken)
    )


def _row(name: str, taken: Taken, count: int, beside: str = "") -> list[str]:
    return [
        name,
        f"{taken.cpu * 1e3:,.1f}",
        f"{count / taken.cpu:,.0f}",
        f"{taken.wall * 1e3:,.1f}",
        beside,
    ]


def _merged(count: int) -> list[str]:
    """Merge an edit of one field into a record of five, many times."""
    actor = person(str(uuid.UUID(int=1)))
    older, newer = (str(Stamp(NOW_MS + plus, 0, OTHER)) for plus in (0, 1))
    standing = {f"f{n}": Entry("x", older, actor, "user", "c1") for n in range(5)}
    edit = {"f1": Entry("y", newer, actor, "user", "c2")}
    taken: list[Taken] = []
    for _ in range(ROUNDS):
        with _taking(taken):
            for _ in range(count):
                merge_entries(standing, edit)
    return _row("merge of one edit into a record of five fields", _median(taken), count)


class _Hub(HubClient):
    """Answers with bytes that were made before, as the wire would bring them."""

    def __init__(self, spaces: list[SpaceInfo], space: str) -> None:
        super().__init__("http://hub.invalid")
        self._spaces = spaces
        self._space = space
        self.states: list[bytes] = []
        self.pulls: dict[int, bytes] = {}

    async def register_device(self, certificate: DeviceCertificate) -> None:
        """Know this device already."""

    async def spaces(self) -> SpacesAnswer:
        """Return the account's spaces."""
        return SpacesAnswer(spaces=self._spaces)

    async def space_devices(self, space_id: str) -> list[DeviceCertificate]:
        """Return no other device."""
        return []

    async def state(self, space_id: str, page: str | None = None) -> StateAnswer:
        """Return a page of the state."""
        if space_id != self._space or not self.states:
            return StateAnswer(records=[], head=0, hub_time=iso_ms(NOW_MS))
        return decode(self.states[int(page or 0)], StateAnswer)

    async def pull(self, space_id: str, after: int, limit: int) -> PullAnswer:
        """Return the changes after a cursor."""
        if space_id != self._space or after not in self.pulls:
            return PullAnswer(changes=[], cursor=after, hub_time=iso_ms(NOW_MS))
        return decode(self.pulls[after], PullAnswer)


@dataclass(frozen=True, slots=True)
class _World:
    """An account with its keys, and what its hub would answer."""

    account: NewAccount
    keys: PasswordKeys
    infos: list[SpaceInfo]
    space: SpaceId

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[RecordBook, _Hub]]:
        """Lend the book of a device that knows nothing yet, not even the key of a record."""
        vault = open_vault(self.account.wire, self.keys)
        vault.take_spaces(SpacesAnswer(spaces=self.infos))
        hub = _Hub(self.infos, self.space)
        paths = {
            (table.name, one.name)
            for table in CATALOGUE.tables
            for one in table.fields
            if one.guarded
        }
        with tempfile.TemporaryDirectory(prefix="mana-bench-") as folder:
            replica = Replica(
                Path(folder) / "replica.db", guarded=lambda table, path: (table, path) in paths
            )
            await replica.open()
            book = RecordBook(
                settings=DeviceSettings(home=Path(folder)),
                catalogue=CATALOGUE,
                vault=vault,
                sealer=Sealer(vault, CATALOGUE, self.account.device),
                replica=replica,
                hub=hub,
                demo=False,
                now_ms=lambda: NOW_MS,
            )
            await book.load()
            try:
                yield book, hub
            finally:
                await book.lock()

    def change(
        self, number: int, op: str, values: Mapping[str, Json], wall_ms: int
    ) -> LoggedChange:
        """Return a change that another device of the account made of a note."""
        vault = self.account.vault
        sealer = Sealer(vault, CATALOGUE, self.account.device)
        me = person(vault.account_id)
        draft = ChangeMessage(
            change_id=str(uuid.uuid4()),
            table=NOTES.name,
            id=str(uuid.UUID(int=number)),
            op=op,
            fields={},
            actor={name: str(member) for name, member in me.to_wire().items()},
            origin="user",
            author_id=vault.account_id,
        )
        place = sealer.place(NOTES, draft.id, "space", {}, {})
        stamp = Stamp(wall_ms, 0, OTHER)
        message = sealer.seal(self.space, draft, place, values, stamp)
        return LoggedChange(seq=number, change=message, device_id=OTHER)


def _world() -> _World:
    kdf = new_kdf(CHEAP)
    keys = derive("a password", "ada", kdf, floor=CHEAP)
    account = new_account("ada", keys, kdf, mode="private", demo=False, invite=None, now_ms=NOW_MS)
    spaces = account.vault.spaces.values()
    wraps = {new.first.signature: new.wraps for new in account.request.spaces}
    infos = [
        SpaceInfo(one.space_id, one.type, "owner", list(one.log), wraps[one.log[0].signature])
        for one in spaces
    ]
    return _World(account, keys, infos, account.vault.space_of_type("personal").space_id)


async def _device(count: int) -> list[list[str]]:
    at = _world()
    values = {**defaults(NOTES), "title": "a title of this length", "content": TEXT}
    changes = [at.change(number, "insert", values, NOW_MS) for number in range(1, count + 1)]
    edits = [
        at.change(number, "update", {"title": "another title"}, NOW_MS + 1)
        for number in range(1, count // 5 + 1)
    ]
    # What the measurement itself holds is nothing that a device would look through.
    gc.collect()
    gc.freeze()
    rows: list[list[str]] = []
    async with at.opened() as (book, hub):
        hub.states = _states(changes)
        taken = await _synced(book, count)
        beside = _beside(book, taken)
        rows.append(
            _row(f"{count:,} records of the state: answers to records", taken, count, beside)
        )
    async with at.opened() as (book, hub):
        await book.sync_now()
        hub.pulls = _pulls(changes, after=0)
        taken = await _synced(book, count)
        beside = _beside(book, taken)
        rows.append(
            _row(f"{count:,} new records of the log: answers to records", taken, count, beside)
        )
        hub.pulls = _pulls(edits, after=count)
        taken = await _synced(book, count)
        rows.append(_row(f"{len(edits):,} edits of records that stand", taken, len(edits)))
    for size in LISTS:
        rows += await _lists(at, changes[:size])
    return rows


async def _synced(book: RecordBook, count: int) -> Taken:
    taken: list[Taken] = []
    with _taking(taken):
        await book.sync_now()
    space = book.personal_space
    held = await book.inner().replica.read(lambda tx: len(tx.marks(space, NOTES.name)))
    if held != count:
        raise RuntimeError("not every record arrived")
    return taken[0]


async def _lists(at: _World, changes: Sequence[LoggedChange]) -> list[list[str]]:
    """Open a table of so many records for the first time, and again."""
    cold: list[Taken] = []
    warm: list[Taken] = []
    for _ in range(ROUNDS):
        async with at.opened() as (book, hub):
            hub.states = _states(changes)
            await book.sync_now()
            with _taking(cold):
                found = await book.views(NOTES.name)
            if len(found) != len(changes) or any(one.sealed_fields for one in found):
                raise RuntimeError("not every record opened")
            with _taking(warm):
                await book.views(NOTES.name)
    first, again, limit = _median(cold), _median(warm), _aes_alone(at, changes)
    size = len(changes)
    fields = len(changes[0].change.fields)
    beside = f"AES-GCM alone {limit.cpu * 1e3:,.1f} ms, {first.cpu / limit.cpu:.1f} times that"
    return [
        _row(f"list of {size:,} of {fields} sealed fields, the first time", first, size, beside),
        _row(f"list of {size:,}, again", again, size),
    ]


def _aes_alone(at: _World, changes: Sequence[LoggedChange]) -> Taken:
    """Open every field of these with nothing but the cipher."""
    vault = at.account.vault
    ready = []
    for change in (logged.change for logged in changes):
        key = vault.record_key(at.space, "s", 1, change.table, change.id)
        for path, write in change.fields.items():
            envelope = parse_envelope(str(write.value))
            place = Binding(at.space, change.table, change.id, path, write.at, change.actor)
            ready.append((key.aead, envelope.iv, envelope.ciphertext, place.associated_data()))
    taken: list[Taken] = []
    for _ in range(ROUNDS):
        with _taking(taken):
            for aead, iv, ciphertext, data in ready:
                aead.open(iv, ciphertext, data)
    return _median(taken)


def _beside(book: RecordBook, taken: Taken) -> str:
    """Insert the rows of this replica into another file, a page at a time, and compare."""
    path = book.inner().replica.path
    with contextlib.closing(sqlite3.connect(path)) as source:
        rows = source.execute("select space, tbl, id, base, touched from records").fetchall()
    with contextlib.closing(sqlite3.connect(path.with_name("raw.db"))) as raw:
        raw.execute("pragma journal_mode = wal")
        raw.execute("pragma synchronous = full")
        for statement in (part for script in MIGRATIONS for part in script.split(";\n")):
            raw.execute(statement)
        limit: list[Taken] = []
        with _taking(limit):
            for start in range(0, len(rows), PAGE):
                with raw:
                    raw.executemany(
                        "insert into records (space, tbl, id, base, touched)"
                        " values (?, ?, ?, ?, ?)",
                        rows[start : start + PAGE],
                    )
    return f"raw inserts {limit[0].cpu * 1e3:,.0f} ms, {taken.cpu / limit[0].cpu:.1f} times that"


def _states(changes: Sequence[LoggedChange]) -> list[bytes]:
    """Return the pages of the state that these new records make."""
    starts = range(0, len(changes), PAGE)
    return [
        msgspec.json.encode(
            StateAnswer(
                records=[_state(logged) for logged in changes[start : start + PAGE]],
                head=len(changes),
                hub_time=iso_ms(NOW_MS),
                next=None if start == starts[-1] else str(place + 1),
            )
        )
        for place, start in enumerate(starts)
    ]


def _state(logged: LoggedChange) -> StateRecord:
    change = logged.change
    fields = {
        path: StateField(write.value, write.at, change.actor, change.origin, change.change_id)
        for path, write in change.fields.items()
    }
    return StateRecord(
        change.table, change.id, change.author_id, change.visibility, logged.seq, fields
    )


def _pulls(changes: Sequence[LoggedChange], *, after: int) -> dict[int, bytes]:
    """Return the pages of the log that these changes make, by the cursor before them."""
    numbered = [
        msgspec.structs.replace(logged, seq=after + place)
        for place, logged in enumerate(changes, 1)
    ]
    starts = range(0, len(numbered), PAGE)
    pages = [numbered[start : start + PAGE] for start in starts]
    return {
        after + start: msgspec.json.encode(
            PullAnswer(
                changes=page,
                cursor=page[-1].seq,
                hub_time=iso_ms(NOW_MS),
                more=page is not pages[-1],
            )
        )
        for start, page in zip(starts, pages, strict=True)
    }
