"""Live notices: to members only, across processes, and over when token or hub ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mana.domain.ids import AccountId
from mana.hub.app import build, serve
from mana.hub.db import Tenancy, Tenant
from mana.hub.http.endpoints import Session
from mana.hub.settings import HubSettings
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.testing.accounts import CHEAP, sealed_change
from mana.testing.postgres import Database
from tests.hub.client import START_MS, Clock, Person, Served, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TASKS = next(table for table in TODO.tables if table.name == "tasks")


def session_of(person: Person, served: Served) -> Session:
    return Session(AccountId(person.account.account_id), "s", served.clock.now_ms + 15 * 60 * 1_000)


async def take(events: AsyncIterator[bytes]) -> tuple[str, Any]:
    """Return the next event, comments passed over."""
    while True:
        piece = (await asyncio.wait_for(anext(events), 10)).decode()
        if piece.startswith("event: "):
            name, _, data = piece.partition("\n")
            return name.removeprefix("event: "), msgspec.json.decode(data[6:].strip())


@contextlib.asynccontextmanager
async def listening(person: Person, served: Served) -> AsyncIterator[AsyncIterator[bytes]]:
    async with contextlib.aclosing(served.hub.live.events(session_of(person, served))) as events:
        assert (await take(events))[0] == "hello"
        yield events


async def push_task(person: Person, number: int = 1) -> None:
    change = sealed_change(person.account, TASKS, f"t{number}", {"title": "x"}, now_ms=START_MS)
    await person.push([change])


async def test_members_hear(database: Database) -> None:
    """A commit is told to the space's member with its seq, and to nobody else."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        async with listening(ada, served) as hers, listening(bob, served) as his:
            await push_task(ada)
            assert await take(hers) == ("space", {"spaceId": ada.space, "seq": 1})
            await push_task(bob)
            assert await take(his) == ("space", {"spaceId": bob.space, "seq": 1})


async def test_other_processes_hear(database: Database) -> None:
    """A commit through one hub process is told by another."""
    async with served_hub(database) as one, served_hub(database) as two:
        ada = await one.sign_up("ada")
        async with listening(ada, two) as events:
            await push_task(ada)
            assert await take(events) == ("space", {"spaceId": ada.space, "seq": 1})


async def test_missions_are_told(database: Database, tenancy: Tenancy) -> None:
    """A move of a mission's ledger is told to the members of its space."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        async with listening(ada, served) as events:
            async with tenancy.transaction(Tenant(AccountId(ada.account.account_id))) as tx:
                for space, mission in ((bob.space, "his"), (ada.space, "hers")):
                    payload = msgspec.json.encode({"spaceId": space, "missionId": mission})
                    await tx.value("select pg_notify('mana_live', $1)", payload.decode())
                await tx.value("select pg_notify('mana_live', '{not json')")
            assert await take(events) == ("mission", {"missionId": "hers"})


async def test_lost_notices_are_made_up(database: Database) -> None:
    """When notices may have been lost, every stream is told where its spaces stand."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        await push_task(ada)
        async with listening(ada, served) as events:
            served.hub.live.notice("")
            told = [await take(events), await take(events)]
            assert ("space", {"spaceId": ada.space, "seq": 1}) in told
            assert ("space", {"spaceId": ada.account.user.space_id, "seq": 0}) in told


async def test_token_ends(database: Database) -> None:
    """A stream says goodbye and ends when its token expires."""
    async with served_hub(database, heartbeat_s=0.02) as served:
        ada = await served.sign_up("ada")
        async with listening(ada, served) as events:
            served.clock.now_ms += 15 * 60 * 1_000
            assert await take(events) == ("bye", {"reason": "expired"})
            with pytest.raises(StopAsyncIteration):
                await anext(events)


async def test_streams_are_limited(database: Database) -> None:
    """One account cannot hold any number of streams open, and closed ones count no more."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for _ in range(60):
            async with listening(ada, served):
                pass
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(50):
                await stack.enter_async_context(listening(ada, served))
            events = served.hub.live.events(session_of(ada, served))
            with pytest.raises(Exception, match="too many"):
                await anext(events)


async def test_stop_with_open_streams(database: Database, tmp_path: Path) -> None:
    """A hub that is told to stop ends its streams with a goodbye and is gone in 3 seconds."""
    clock = Clock()
    settings = HubSettings(home=tmp_path, database_url=database.app_url, kdf_floor=CHEAP)
    hub = build(settings, clock=clock)
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(hub, host="127.0.0.1", port=0, ready=ready.set_result, stop=stop)
    )
    port = await asyncio.wait_for(ready, 10)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        ada = await Served(hub, clock, http).sign_up("ada")
        headers = {"authorization": f"Bearer {ada.tokens.access_token}"}
        async with http.stream("GET", "/api/v1/live", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: hello"
            started = time.monotonic()
            stop.set()
            rest = [line async for line in lines]
            assert "event: bye" in rest
        await asyncio.wait_for(serving, 3)
        assert time.monotonic() - started < 3


SCRIPT = """
import asyncio, pathlib, sys
from mana.hub.app import build, serve
from mana.hub.settings import HubSettings
home, url = pathlib.Path(sys.argv[1]), sys.argv[2]
hub = build(HubSettings(home=home, database_url=url))
say = lambda port: print("port", port, flush=True)
asyncio.run(serve(hub, host="127.0.0.1", port=0, ready=say))
"""


async def test_sigterm(database: Database, tmp_path: Path) -> None:
    """SIGTERM ends a hub process cleanly, with an open connection too."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        str(tmp_path),
        database.app_url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", *sys.path])},
    )
    assert child.stdout is not None
    line = await asyncio.wait_for(child.stdout.readline(), 30)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{int(line.split()[1])}") as http:
        assert (await http.get("/health")).status_code == 200
        child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.communicate(), 5)
    assert child.returncode in (0, -signal.SIGTERM)
