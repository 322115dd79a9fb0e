"""Devices of one person against a real hub in this process, with clocks that the test sets."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from mana.device.accounts import Accounts
from mana.device.records import RecordBook
from mana.device.settings import DeviceSettings
from mana.device.writing import Write
from mana.domain.actors import person
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.ids import RecordId
from mana.registry.catalogue import Catalogue, load_catalogue
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Database
from tests.hub.client import START_MS, Served, served_hub

CATALOGUE = load_catalogue()
HANGS_S = 120.0
"""After how long what surely comes is taken not to come; it measures no speed."""


class DeviceClock:
    """A device's clock, set by the test; each look is a millisecond later."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        self.now_ms += 1
        return self.now_ms


Handler = Callable[[httpx.Request, httpx.AsyncBaseTransport], Any]


class Wire(httpx.AsyncBaseTransport):
    """The way to the hub, which a test can cut or spy on."""

    def __init__(self, under: httpx.AsyncBaseTransport) -> None:
        self.under = under
        self.is_cut = False
        self.on_request: Handler | None = None
        self.seen: list[tuple[str, str, bytes]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_cut:
            raise httpx.ConnectError("cut", request=request)
        body = await request.aread()
        self.seen.append((request.method, request.url.path, body))
        if self.on_request is not None:
            answer = await self.on_request(request, self.under)
            if answer is not None:
                return answer
        return await self.under.handle_async_request(request)


@dataclass
class Machine:
    """One machine with its accounts, clock and wire."""

    home: Path
    wire: Wire
    clock: DeviceClock
    accounts: Accounts
    books: list[RecordBook] = field(default_factory=list)

    async def sign_up(self, login: str = "ada", **options: Any) -> RecordBook:
        return self._kept(await self.accounts.sign_up(login, PASSWORD, **options))

    async def sign_in(self, login: str = "ada", password: str = PASSWORD) -> RecordBook:
        return self._kept(await self.accounts.sign_in(login, password))

    def _kept(self, book: RecordBook) -> RecordBook:
        self.books.append(book)
        return book

    def files(self) -> bytes:
        """Return every byte that lies in this machine's folder."""
        return b"".join(path.read_bytes() for path in self.home.rglob("*") if path.is_file())


@dataclass
class Rig:
    """A hub, and machines around it."""

    served: Served
    folder: Path
    catalogue: Catalogue = CATALOGUE
    machines: list[Machine] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def machine(
        self,
        home: Path | None = None,
        *,
        catalogue: Catalogue | None = None,
        clock: DeviceClock | None = None,
        **settings: Any,
    ) -> Machine:
        place = home or self.folder / f"machine-{next(self.numbers)}"
        place.mkdir(parents=True, exist_ok=True)
        wire = Wire(httpx.ASGITransport(app=self.served.hub.asgi))
        ticking = clock or DeviceClock()
        settings = {"kdf_floor": CHEAP, "hub_url": "http://hub.test", **settings}
        accounts = Accounts(
            DeviceSettings(home=place, **settings),
            catalogue or self.catalogue,
            now_ms=ticking,
            transport=lambda: wire,
        )
        made = Machine(place, wire, ticking, accounts)
        self.machines.append(made)
        return made


@contextlib.asynccontextmanager
async def rig_on(database: Database, folder: Path) -> AsyncIterator[Rig]:
    """Lend a hub and machines; whatever is unlocked at the end is locked."""
    async with served_hub(database) as served:
        rig = Rig(served, folder)
        try:
            yield rig
        finally:
            for machine in rig.machines:
                for book in machine.books:
                    await book.lock()


def write(
    book: RecordBook,
    table: str,
    record_id: str,
    values: dict[str, Json],
    *,
    kind: ChangeKind = ChangeKind.UPDATE,
    guards: dict[str, Json] | None = None,
    **options: Any,
) -> Write:
    """Return a person's write."""
    change = Change(table, RecordId(record_id), kind, values, guards or {})
    return Write(change, person(book.account_id), **options)


async def note(book: RecordBook, record_id: str, **values: Json) -> list[str]:
    """Write a note."""
    return await book.commit([write(book, "notes", record_id, dict(values))])


async def titles(book: RecordBook) -> dict[str, str]:
    """Return the titles of the live notes."""
    return {view.id: view.text("title") for view in await book.views("notes")}
