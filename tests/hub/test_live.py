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
from websockets.asyncio.client import connect

from mana.domain.errors import Unavailable
from mana.domain.ids import AccountId, SpaceId
from mana.hub.app import build, serve
from mana.hub.db import Tenancy, Tenant
from mana.hub.http.endpoints import Session
from mana.hub.settings import HubSettings
from mana.hub.sync.live import LiveHub
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.messages import CloseSpace
from mana.testing.accounts import CHEAP, sealed_change
from mana.testing.postgres import Database
from mana.testing.spaces import closing
from tests.hub import test_spaces as spaces
from tests.hub.client import START_MS, Clock, Person, Served, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TASKS = next(table for table in TODO.tables if table.name == "tasks")


def session_of(person: Person, served: Served) -> Session:
    expires_ms = served.clock.now_ms + 15 * 60 * 1_000
    return Session(AccountId(person.account.account_id), person.session_id, expires_ms)


async def take(events: AsyncIterator[bytes]) -> tuple[str, Any]:
    """Return the next event, comments passed over."""
    while True:
        piece = (await anext(events)).decode()
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
            told = [await take(events) for _ in range(3)]
            assert ("spaces", {}) in told
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
    """A hub that is told to stop ends its streams with a goodbye, without waiting for their time."""
    clock = Clock()
    settings = HubSettings(
        home=tmp_path,
        database_url=database.app_url,
        kdf_floor=CHEAP,
        # Without being told, the stream would sleep until its next comment.
        heartbeat_s=1_000.0,
    )
    hub = build(settings, clock=clock)
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(hub, host="127.0.0.1", port=0, ready=ready.set_result, stop=stop)
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await ready}", timeout=None) as http:
        ada = await Served(hub, clock, http).sign_up("ada")
        headers = {"authorization": f"Bearer {ada.tokens.access_token}"}
        async with http.stream("GET", "/api/v1/live", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: hello"
            stop.set()
            rest = [line async for line in lines]
            assert "event: bye" in rest
        await serving


SCRIPT = """
import asyncio, pathlib, sys
from mana.hub.app import build, serve
from mana.hub.settings import HubSettings
from mana.testing.accounts import CHEAP
home, url = pathlib.Path(sys.argv[1]), sys.argv[2]
hub = build(HubSettings(home=home, database_url=url, kdf_floor=CHEAP))
say = lambda port: print("port", port, flush=True)
asyncio.run(serve(hub, host="127.0.0.1", port=0, ready=say))
"""


@contextlib.asynccontextmanager
async def hub_process(
    database: Database, home: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a hub as a process of its own; lend it with its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        str(home),
        database.app_url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", *sys.path])},
    )
    try:
        assert child.stdout is not None
        line = await child.stdout.readline()
        yield child, f"127.0.0.1:{int(line.split()[1])}"
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_sigterm(database: Database, tmp_path: Path) -> None:
    """SIGTERM ends a hub process cleanly, with an open connection too."""
    async with hub_process(database, tmp_path) as (child, address):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            assert (await http.get("/health")).status_code == 200
            child.send_signal(signal.SIGTERM)
            await child.wait()
        assert child.returncode in (0, -signal.SIGTERM)


class Wire:
    """A WebSocket to a hub in this process, at the side of its server."""

    def __init__(self, served: Served, **headers: str) -> None:
        self.path = headers.pop("path", "/api/v1/live/socket")
        self.given = {"host": "hub.test", **headers}
        self.served = served
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self.readable = asyncio.Event()
        self.readable.set()

    async def __aenter__(self) -> Wire:
        scope = {
            "type": "websocket",
            "path": self.path,
            "headers": [(key.encode(), value.encode()) for key, value in self.given.items()],
            "extensions": {"websocket.http.response": {}},
            "state": {},
        }
        self.incoming.put_nowait({"type": "websocket.connect"})
        asgi: Any = self.served.hub.asgi
        self.task = asyncio.create_task(asgi(scope, self.incoming.get, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
        self.readable.set()
        await self.task

    async def _send(self, message: Any) -> None:
        await self.readable.wait()
        self.outgoing.put_nowait(message)

    def say(self, text: str) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def take(self) -> Any:
        """Return what comes next: a message as JSON, a close code, or the status of a refusal."""
        message = await self.outgoing.get()
        match message["type"]:
            case "websocket.send":
                return msgspec.json.decode(message["text"])
            case "websocket.close":
                return message["code"]
            case "websocket.http.response.start":
                return message["status"]
            case other:
                return other

    async def hello(self) -> None:
        assert await self.take() == "websocket.accept"
        assert (await self.take())["type"] == "hello"


def wire_of(person: Person, **headers: str) -> Wire:
    bearer = f"Bearer {person.tokens.access_token}"
    return Wire(person.served, authorization=bearer, **headers)


def introduction(person: Person) -> str:
    return msgspec.json.encode({"type": "auth", "token": person.tokens.access_token}).decode()


async def test_socket_tells(database: Database) -> None:
    """A socket says what the stream says, by either way to name its account, and answers pings."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        async with wire_of(ada) as one, Wire(served) as two:
            two.say(introduction(ada))
            await one.hello()
            await two.hello()
            await push_task(bob)
            await push_task(ada)
            for wire in (one, two):
                assert await wire.take() == {"type": "space", "spaceId": ada.space, "seq": 1}
                wire.say('{"type": "ping"}')
                assert await wire.take() == {"type": "pong"}


async def test_socket_of_nobody(database: Database) -> None:
    """A socket that says nothing of whose it is, or something else, is closed with 1008 in time."""
    async with served_hub(database, socket_auth_s=0.05) as served:
        ada = await served.sign_up("ada")
        token = ada.tokens.access_token
        first: list[Any] = [
            None,
            "",
            "{",
            "[]",
            '"auth"',
            '{"type": "ping"}',
            '{"type": "auth"}',
            '{"type": "auth", "token": "x"}',
            '{"type": "auth", "token": 3}',
            msgspec.json.encode({"type": "auth", "token": token, "more": 1}).decode(),
            msgspec.json.encode({"type": "hello", "token": token}).decode(),
            b"bytes",
        ]
        for said in first:
            async with Wire(served) as wire:
                if isinstance(said, bytes):
                    wire.incoming.put_nowait({"type": "websocket.receive", "bytes": said})
                elif said is not None:
                    wire.say(said)
                assert await wire.take() == "websocket.accept"
                assert await wire.take() == 1008, said
        served.clock.now_ms += 15 * 60 * 1_000
        async with Wire(served) as wire:
            wire.say(introduction(ada))
            assert await wire.take() == "websocket.accept"
            assert await wire.take() == 1008


async def test_socket_refused(database: Database) -> None:
    """A bad token, a page of another host and an unknown path are refused before anything opens."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for status, headers in (
            (401, {"authorization": "Bearer x"}),
            (401, {"authorization": "Basic x"}),
            (403, {"origin": "https://evil.test"}),
            (403, {"origin": "null"}),
            (403, {"origin": "https://hub.test.evil.test"}),
            (403, {"origin": "https://hub.test:8443"}),
            (403, {"origin": "https://[hub.test"}),
            (404, {"path": "/api/v1/live"}),
            (404, {"path": "/api/v1/nothing"}),
        ):
            async with Wire(served, **headers) as wire:
                assert await wire.take() == status, headers
                body = msgspec.json.decode((await wire.outgoing.get())["body"])
                assert (body["status"], bool(body["code"])) == (status, True)
        for own in ("http://hub.test", "https://hub.test:443", "https://HUB.test"):
            async with wire_of(ada, origin=own) as wire:
                await wire.hello()
        answer = await served.call("GET", "/api/v1/live/socket")
        assert (answer.status_code, answer.json()["code"]) == (426, "UPGRADE_NEEDED")


async def test_socket_says_something_else(database: Database) -> None:
    """Whatever a client says after its name, but a ping, ends its socket with 1008."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for said in (
            "x",
            "[]",
            '{"type": "pong"}',
            '{"type": "ping", "token": "x"}',
            introduction(ada),
        ):
            async with wire_of(ada) as wire:
                await wire.hello()
                wire.say(said)
                assert await wire.take() == 1008, said
        async with wire_of(ada) as wire:
            await wire.hello()
            wire.incoming.put_nowait({"type": "websocket.receive", "bytes": b"{}"})
            assert await wire.take() == 1008


async def test_socket_token_ends(database: Database) -> None:
    """When its token expires a socket says goodbye and is closed with 1000."""
    async with served_hub(database, heartbeat_s=0.02) as served:
        ada = await served.sign_up("ada")
        async with wire_of(ada) as wire:
            await wire.hello()
            served.clock.now_ms += 15 * 60 * 1_000
            assert await wire.take() == {"type": "bye", "reason": "expired"}
            assert await wire.take() == 1000


async def test_sockets_are_limited(database: Database) -> None:
    """Sockets of an account, and those of nobody yet, are limited; closed ones count no more."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for _ in range(55):
            async with wire_of(ada) as wire:
                await wire.hello()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(50):
                await (await stack.enter_async_context(wire_of(ada))).hello()
            async with wire_of(ada) as wire:
                assert await wire.take() == "websocket.accept"
                assert await wire.take() == 1013
            answer = await ada.call("GET", "/api/v1/live")
            assert answer.status_code == 503
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(100):
                wire = await stack.enter_async_context(Wire(served))
                assert await wire.take() == "websocket.accept"
            async with Wire(served) as wire:
                assert await wire.take() == 503
        async with Wire(served) as wire:
            assert await wire.take() == "websocket.accept"


async def test_slow_clients_hold_little(database: Database) -> None:
    """A client that does not read is kept one line for a space however often it moves, and is let go
    when it falls too far behind."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        live = served.hub.live
        async with wire_of(ada) as wire:
            await wire.hello()
            wire.readable.clear()
            for seq in range(1, 500):
                live.notice(f"{ada.space}:{seq}")
            (stream,) = live._all()
            assert len(stream.moved) <= 1
            await asyncio.sleep(0)
            for number in range(2_100):
                live.notice(f'{{"spaceId": "{ada.space}", "missionId": "m{number}"}}')
            assert len(stream.moved) + len(stream.missions) <= 2_000
            wire.readable.set()
            seen = [await wire.take()]
            while seen[-1] != 1000:
                seen.append(await wire.take())
            assert seen[-2] == {"type": "bye", "reason": "behind"}


async def test_membership_moves(database: Database) -> None:
    """A stream hears of a space from the moment that its account is in it, and no more once it is out."""
    async with served_hub(database) as one, served_hub(database) as two:
        ada, bob = await one.sign_up("ada"), await one.sign_up("bob")
        async with listening(bob, two) as his, listening(ada, two) as hers:
            space = await spaces.create(ada)
            assert await take(hers) == ("spaces", {})
            await take(hers)
            made, _ = await spaces.invite(ada, space)
            await spaces.accept(bob, made)
            assert await take(hers) == ("spaces", {})
            assert await take(his) == ("spaces", {})
            assert (await spaces.push_task(ada, space, "t1")).status_code == 200
            step = spaces.adding(space, ada.account, bob.account, "member", now_ms=START_MS)
            space = await spaces.take(ada, space, step)
            assert await take(his) == ("spaces", {})
            assert await take(his) == ("space", {"spaceId": space.space_id, "seq": 1})
            assert (await spaces.push_task(ada, space, "t2")).status_code == 200
            assert await take(his) == ("space", {"spaceId": space.space_id, "seq": 2})
            step = spaces.removing(space, ada.account, bob.account, [ada.account], now_ms=START_MS)
            space = await spaces.take(ada, space, step)
            await push_task(ada)
            await spaces.join(ada, await spaces.create(ada), bob)
            heard = [await take(his)]
            while heard[-1][0] != "space":
                heard.append(await take(his))
            assert heard[0] == ("spaces", {})
            assert heard[-1][1]["spaceId"] not in (space.space_id, ada.space)


def session_at(account: str) -> Session:
    return Session(AccountId(account), "s", START_MS + 60_000)


def live_hub(heads: Any) -> LiveHub:
    async def admit(_session: Session) -> None:
        return

    return LiveHub(heads, authenticate=session_at, admit=admit, now_ms=Clock(), heartbeat_s=0.02)


async def test_closing_is_told(database: Database) -> None:
    """Every member's stream hears that a space was closed, and nothing of it any more."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await spaces.join(ada, await spaces.create(ada), bob)
        async with listening(ada, served) as hers, listening(bob, served) as his:
            body = CloseSpace(entry=closing(space, ada.account, now_ms=START_MS))
            answer = await ada.call("DELETE", f"/api/v1/spaces/{space.space_id}", body)
            assert answer.status_code == 204
            for events in (hers, his):
                assert await take(events) == ("spaces", {})


async def test_silent_at_once() -> None:
    """What moved in a space before its member was removed, and was not told yet, is not told after."""
    left, kept = SpaceId("a" * 64), SpaceId("b" * 64)
    known = {left: 1, kept: 1}

    async def heads(_tenant: Tenant) -> dict[SpaceId, int]:
        return dict(known)

    hub = live_hub(heads)
    account = "00000000-0000-4000-8000-000000000001"
    async with contextlib.aclosing(hub.events(session_at(account))) as events:
        assert (await take(events))[0] == "hello"
        for payload in (f"{kept}:2", f"{left}:2", f'{{"spaceId": "{left}", "missionId": "m"}}'):
            hub.notice(payload)
        assert await take(events) == ("space", {"spaceId": kept, "seq": 2})
        del known[left]
        hub.notice(f"member:{account}")
        assert await take(events) == ("spaces", {})
        hub.notice(f"{left}:3")
        assert await anext(events) == b": still here\n\n"


async def test_commits_while_it_begins() -> None:
    """What commits while a stream reads its spaces is told by it, and so is a change of the spaces."""
    asked, go = asyncio.Event(), asyncio.Event()
    mine, new = SpaceId("a" * 64), SpaceId("b" * 64)
    answers = [{mine: 3}, {mine: 4, new: 1}]

    async def heads(_tenant: Tenant) -> dict[SpaceId, int]:
        answer = answers.pop(0)
        asked.set()
        await go.wait()
        return answer

    hub = live_hub(heads)
    account = "00000000-0000-4000-8000-000000000001"
    async with contextlib.aclosing(hub.events(session_at(account))) as events:
        first = asyncio.create_task(take(events))
        await asked.wait()
        hub.notice(f"{mine}:4")
        hub.notice(f"{'c' * 64}:9")
        hub.notice(f"member:{account}")
        go.set()
        assert (await first)[0] == "hello"
        told = [await take(events) for _ in range(3)]
        assert sorted(told, key=str) == sorted(
            [
                ("space", {"spaceId": mine, "seq": 4}),
                ("space", {"spaceId": new, "seq": 1}),
                ("spaces", {}),
            ],
            key=str,
        )


async def test_silent_while_in_doubt() -> None:
    """While the database cannot say which spaces are whose, no space is named; then all is made up."""
    space = SpaceId("a" * 64)
    away = True

    async def heads(_tenant: Tenant) -> dict[SpaceId, int]:
        if away and asked:
            raise Unavailable("away")
        asked.append(1)
        return {space: 7}

    asked: list[int] = []
    hub = live_hub(heads)
    account = "00000000-0000-4000-8000-000000000001"
    async with contextlib.aclosing(hub.events(session_at(account))) as events:
        assert (await take(events))[0] == "hello"
        hub.notice(f"member:{account}")
        hub.notice(f"{space}:7")
        for _ in range(3):
            assert await anext(events) == b": still here\n\n"
        away = False
        assert await take(events) == ("spaces", {})
        assert await take(events) == ("space", {"spaceId": space, "seq": 7})


@pytest.mark.slow
async def test_processes_of_one_hub(database: Database, tmp_path: Path) -> None:
    """A push through one process of a hub is heard on a socket of another; SIGTERM says goodbye there."""
    home = tmp_path / "hub"
    async with contextlib.AsyncExitStack() as stack:
        _, first = await stack.enter_async_context(hub_process(database, home))
        two, second = await stack.enter_async_context(hub_process(database, home))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{first}", timeout=10)
        )
        clock = Clock()
        clock.now_ms = time.time_ns() // 1_000_000
        served = Served(build(HubSettings(home, database.app_url)), clock, http)
        ada = await served.sign_up("ada")
        headers = {"authorization": f"Bearer {ada.tokens.access_token}"}
        url = f"ws://{second}/api/v1/live/socket"
        async with connect(url, additional_headers=headers) as socket:
            assert msgspec.json.decode(await socket.recv())["type"] == "hello"
            change = sealed_change(ada.account, TASKS, "t1", {"title": "x"}, now_ms=clock.now_ms)
            await ada.push([change])
            told = await socket.recv()
            assert msgspec.json.decode(told) == {"type": "space", "spaceId": ada.space, "seq": 1}
            two.send_signal(signal.SIGTERM)
            rest = [msgspec.json.decode(text) async for text in socket]
            assert rest == [{"type": "bye", "reason": "stopped"}]
            assert socket.close_code == 1000
        await two.wait()
