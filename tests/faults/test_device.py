"""A device that is killed while it writes and syncs: what it had kept reaches everybody, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from mana.device.accounts import Accounts
from mana.device.settings import DeviceSettings
from mana.protocol.messages import PULL_LIMIT_MAX, PullAnswer
from mana.registry.catalogue import load_catalogue
from mana.testing.accounts import CHEAP, PASSWORD
from tests.device.rig import titles
from tests.faults.device_process import COUNTER, accounts_of
from tests.faults.processes import ROOT, HubProcess, installation
from tests.hub.client import served_hub
from tests.runner.world import now_ms

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.slow]

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
SEED = int(os.environ.get("FAULT_SEED", "1"))


@dataclass
class DeviceProcess:
    """One device folder, and the process that works on it; `kept` is what it said it had."""

    home: Path
    account_id: str
    hub: HubProcess
    kept: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    process: Any = None
    reading: Any = None

    async def start(self, mode: str = "write") -> None:
        module = (sys.executable, "-m", "tests.faults.device_process")
        self.process = await asyncio.create_subprocess_exec(
            *(*module, str(self.home), self.hub.url, self.account_id, mode),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            stdout=asyncio.subprocess.PIPE,
        )
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for raw in self.process.stdout:
            word, _, rest = raw.decode().rstrip("\n").partition(" ")
            record_id, _, title = rest.partition(" ")
            if word == "kept" and raw.endswith(b"\n"):
                self.kept[record_id] = title
                self.lines += 1
            self.moved.set()
        await self.process.wait()

    async def grown_by(self, count: int) -> None:
        wanted = self.lines + count
        while self.lines < wanted:
            assert self.process.returncode is None, "the device ended by itself"
            self.moved.clear()
            await self.moved.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self.reading

    async def drained(self) -> None:
        await self.start("drain")
        await self.reading
        assert self.process.returncode == 0


@contextlib.asynccontextmanager
async def device() -> AsyncIterator[DeviceProcess]:
    """Lend a device of somebody who has signed up, and a hub; neither runs yet."""
    with tempfile.TemporaryDirectory(prefix="mana-device-") as name:
        home = Path(name)
        async with installation(hubs=1) as (_server, database, (hub,)):
            async with served_hub(database, home=hub.home) as served:
                served.clock.now_ms = now_ms()
                accounts = Accounts(
                    DeviceSettings(home=home, hub_url="http://hub.test", kdf_floor=CHEAP),
                    load_catalogue(),
                    transport=lambda: httpx.ASGITransport(app=served.hub.asgi),
                )
                book = await accounts.sign_up("ada", PASSWORD)
                account_id = book.account_id
                await book.lock()
            made = DeviceProcess(home, account_id, hub)
            try:
                yield made
            finally:
                if made.process is not None and made.process.returncode is None:
                    await made.kill()


@pytest.mark.timeout(120 + 15 * ROUNDS)
async def test_what_a_device_kept_is_not_lost(tmp_path: Path) -> None:
    """Each write that a device had kept before it was killed stands on the hub exactly once and
    at another device as it was written, whenever the device and the hub died."""
    dice = random.Random(SEED)
    async with device() as made:
        await made.hub.start()
        for number in range(ROUNDS):
            await made.start()
            await made.grown_by(dice.randint(4, 40))
            if number % 2:  # the hub dies first, and the device goes on without it
                await made.hub.kill()
                await made.grown_by(dice.randint(4, 20))
            await asyncio.sleep(dice.random() * 0.02)
            await made.kill()
            if number % 2:
                await made.hub.start()
        await made.drained()
        other = await accounts_of(tmp_path, made.hub.url).sign_in("ada", PASSWORD)
        try:
            status = await other.sync_now()
            assert (status.waiting, status.refused) == (0, 0)
            found = await titles(other)
            log = await logged(other.hub, other.space)
        finally:
            await other.lock()
    # A write may be kept without having been told: the last one before each kill.
    last = int(made.kept.pop(COUNTER))
    assert last <= int(found.pop(COUNTER)) <= last + 1
    assert {name: found.get(name) for name in made.kept} == made.kept
    assert len(found) - len(made.kept) <= ROUNDS
    doubled = [one for one, count in Counter(log).items() if count > 1]
    assert doubled == []


async def logged(hub: Any, space: str) -> list[str]:
    """Return the ids of all changes of a space's log."""
    found: list[str] = []
    after = 0
    while True:
        answer: PullAnswer = await hub.pull(space, after, PULL_LIMIT_MAX)
        found += [one.change.change_id for one in answer.changes]
        after = answer.cursor
        if not answer.more:
            return found
