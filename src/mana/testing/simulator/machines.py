"""Machines of people: a folder, a clock, and the processes that run on it and die."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mana.device.accounts import Accounts
from mana.device.editing import Editing
from mana.device.opened import Opened
from mana.device.records import RecordBook
from mana.device.resealing import Resealing
from mana.device.settings import DeviceSettings
from mana.device.spaces import Spaces
from mana.models.rules import Rules
from mana.registry.catalogue import Catalogue
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.simulator.ledger import Broken
from mana.testing.simulator.loop import Process
from mana.testing.simulator.network import Network
from mana.testing.simulator.schedule import Clock

START_MS: Final = 1_795_000_000_000


@dataclass(frozen=True)
class Here:
    """What a process has of the opened account."""

    book: RecordBook
    opened: Opened
    spaces: Spaces
    editing: Editing
    resealing: Resealing


@dataclass
class Running:
    """One process of a machine with its opened account."""

    process: Process
    here: asyncio.Task[Here]


@dataclass(frozen=True, slots=True)
class BackUp:
    """A copy of a machine's database, and what had been written when it was made."""

    path: Path
    order: int
    opened: int
    """How often the account had been opened by then."""


@dataclass
class Machine:
    """One machine of one person."""

    name: str
    login: str
    home: Path
    clock: Clock
    time_s: Callable[[], float]
    network: Network
    catalogue: Catalogue
    jumped_ms: int = 0
    offline_until_s: float = 0.0
    running: list[Running] = field(default_factory=list)
    backups: list[BackUp] = field(default_factory=list)
    starts: int = 0
    opened: int = 0
    devices: set[str] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    """Device ids that this machine must not use again, since it was set back."""

    def now_ms(self) -> int:
        """Return what this machine's clock shows."""
        return (
            START_MS
            + self.clock.offset_ms
            + self.jumped_ms
            + int(self.time_s() * 1_000 * self.clock.rate)
        )

    def is_online(self) -> bool:
        """Say whether the machine has a network."""
        return self.time_s() >= self.offline_until_s

    def accounts(self) -> Accounts:
        """Return the way to the accounts of this machine, for a new process."""
        self.home.mkdir(parents=True, exist_ok=True)
        return Accounts(
            DeviceSettings(home=self.home, hub_url="http://hub.test", kdf_floor=CHEAP),
            self.catalogue,
            now_ms=self.now_ms,
            transport=lambda: self.network.transport(self.name, self.is_online),
        )

    @property
    def database(self) -> Path | None:
        """Return the account's database, if there is one."""
        return next(iter(sorted((self.home / "device").glob("*-*.db"))), None)

    def start(self) -> Running:
        """Begin a process, which opens the account."""
        self.starts += 1
        process = Process(f"{self.name}.{self.starts}")
        running = Running(process, process.spawn(self._open()))
        self.running.append(running)
        return running

    async def _open(self) -> Here:
        return self.wired(await self.accounts().sign_in(self.login, PASSWORD))

    async def sign_up(self) -> Here:
        """Make the account, on the hub and here."""
        return self.wired(await self.accounts().sign_up(self.login, PASSWORD))

    def wired(self, book: RecordBook) -> Here:
        """Return the operations of an opened account, wired as the device does it."""
        if book.device_id in self.retired:
            raise Broken("device", f"{self.name} was set back and goes on as {book.device_id}")
        self.opened += 1
        self.devices.add(book.device_id)
        opened = Opened(
            book=book,
            hub=book.hub,
            catalogue=self.catalogue,
            model=Rules(),
            model_local=True,
            now_ms=self.now_ms,
            new_id=book.new_id,
        )
        spaces = Spaces(opened)
        book.inner().syncer.after_spaces = spaces.after_spaces
        return Here(book, opened, spaces, Editing(opened), Resealing(book, new_id=book.new_id))

    def pick(self, number: int) -> Running:
        """Return one of the processes, a new one where none is left."""
        self.running = [one for one in self.running if not one.process.is_dead]
        return self.running[number % len(self.running)] if self.running else self.start()

    def kill(self) -> None:
        """Kill every process at whatever it waits for."""
        for running in self.running:
            running.process.kill()
            here = running.here
            if here.done() and not here.cancelled() and here.exception() is None:
                _drop(here.result().book)
        self.running.clear()

    def back_up(self, folder: Path, order: int) -> None:
        """Copy the database as it is now."""
        database = self.database
        if database is None:
            return
        path = folder / f"{self.name}-{len(self.backups)}.db"
        with contextlib.closing(sqlite3.connect(database)) as here:
            with contextlib.closing(sqlite3.connect(path)) as there:
                here.backup(there)
        self.backups.append(BackUp(path, order, self.opened))

    def set_back(self, backup: BackUp, *, in_place: bool) -> None:
        """Put an older copy of the database in the place of the one that is there.

        `in_place`: into the same file, as some tools do, and not by another file of that name.
        """
        self.kill()
        database = self.database
        if database is None:
            return
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        self.retired |= self.devices
        # A copy of this very opening cannot be told from the original in its own file.
        if in_place and backup.opened < self.opened:
            database.write_bytes(backup.path.read_bytes())
            return
        draft = database.with_suffix(".restored")
        shutil.copyfile(backup.path, draft)
        draft.replace(database)

    def wipe(self) -> None:
        """Lose the machine's disk."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def _drop(book: RecordBook) -> None:
    """Let go of what the operating system takes back from a dead process."""
    with contextlib.suppress(Exception):
        inner = book.inner()
        inner.syncer._leadership.release()
        connection = inner.replica._connection
        if connection is not None:
            connection.close()
