"""What a hub has acknowledged is there once, whatever is killed, and readers never see a gap.

Each round waits for a number of acknowledged changes that the seed draws, kills one process with
SIGKILL and starts it again. `FAULT_ROUNDS` and `FAULT_SEED` in the environment make longer runs:

    FAULT_ROUNDS=200 FAULT_SEED=7 .venv/bin/python -m pytest tests/faults -n 0 --timeout 3600
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest

from mana.testing.accounts import NewAccount, new_device
from tests.faults.load import Client, Ledger, check, read, write
from tests.faults.processes import HubProcess, Postgres, installation
from tests.hub.client import served_hub
from tests.runner.world import now_ms

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.slow]

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
WRITERS = 4
READERS = 2


async def household(database: object, home: object) -> tuple[list[NewAccount], str]:
    """Sign somebody up and register a device for each writer; return them and a token."""
    async with served_hub(database, home=home) as served:  # type: ignore[arg-type]
        served.clock.now_ms = now_ms()
        person = await served.sign_up("ada")
        devices = [person.account]
        for _ in range(WRITERS - 1):
            device_id, key, certificate = new_device(person.account.identity, now_ms=now_ms())
            answer = await person.call("POST", "/api/v1/me/devices", certificate)
            assert answer.status_code == 201, answer.text
            devices.append(replace(person.account, device_id=device_id, device_key=key))
        return devices, person.tokens.access_token


async def killing(
    dice: random.Random, ledger: Ledger, server: Postgres, hubs: Sequence[HubProcess]
) -> None:
    """Kill one process after the other, never before the load has gone on."""
    victims: list[Postgres | HubProcess] = [server, *hubs]
    for number in range(ROUNDS):
        await ledger.grown_by(dice.randint(10, 60))
        # Everyone has a turn; which moment within a request it is, is the machine's dice.
        victim = victims[number % len(victims)]
        await asyncio.sleep(dice.random() * 0.02)
        await victim.kill()
        await victim.start()
    await ledger.grown_by(20)


@pytest.mark.timeout(120 + 15 * ROUNDS)
async def test_what_was_acknowledged_stays() -> None:
    """With two hubs on one PostgreSQL, each of the three killed under load, no change is lost,
    doubled or torn, and no reader sees a gap."""
    dice = random.Random(SEED)
    async with installation(hubs=2) as (server, database, hubs):
        devices, token = await household(database, hubs[0].home)
        await asyncio.gather(*(hub.start() for hub in hubs))
        async with httpx.AsyncClient(timeout=10) as http:
            clients = [
                Client(devices[0], token, hubs, random.Random(dice.random()), http)
                for _ in range(WRITERS + READERS)
            ]
            ledger, stop, enough = Ledger(), asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                writers = [
                    tasks.create_task(write(client, device, ledger, stop))
                    for client, device in zip(clients, devices, strict=False)
                ]
                readers = [tasks.create_task(read(client, enough)) for client in clients[WRITERS:]]
                await killing(dice, ledger, server, hubs)
                stop.set()
                await asyncio.gather(*writers)
                enough.set()
                seen = await asyncio.gather(*readers)
            reader = clients[-1]
            log = []
            while (page := await reader.pull(len(log))).changes:
                log += page.changes
            check(ledger, log, await reader.state())
            for part in seen:
                assert part == log[: len(part)], "a reader saw what is not in the log"
            assert set(ledger.acknowledged) == {one for batch in ledger.sent for one in batch}
        assert all(hub.lives > 1 for hub in hubs)
