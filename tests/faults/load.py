"""Devices that push and read without end, and what they were promised: the ledger."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import msgspec

from mana.crypto.primitives import b64
from mana.domain.actors import actor_from_wire
from mana.domain.merge import merge_entries
from mana.domain.records import Entry
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.messages import (
    ChangeMessage,
    LoggedChange,
    PullAnswer,
    PushAnswer,
    PushRequest,
    StateAnswer,
)
from mana.testing.accounts import NewAccount, sealed_change
from tests.faults.processes import HubProcess
from tests.runner.world import now_ms

TASKS = next(table for table in TODO.tables if table.name == "tasks")
RECORDS = 12
PAUSE_S = 0.02


@dataclass
class Ledger:
    """What the hubs have acknowledged, and what was sent."""

    sent: list[list[str]] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    resends: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, answer: PushAnswer) -> None:
        """Note an answer; a change that was acknowledged once keeps its place for ever."""
        for result in answer.results:
            assert result.status in ("accepted", "duplicate"), result
            assert result.seq is not None
            assert self.acknowledged.setdefault(result.change_id, result.seq) == result.seq
        self.moved.set()

    async def grown_by(self, count: int) -> None:
        """Return when so many more changes were acknowledged."""
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:
            self.moved.clear()
            await self.moved.wait()


@dataclass
class Client:
    """One device's way to whichever hub is up."""

    account: NewAccount
    token: str
    hubs: Sequence[HubProcess]
    dice: random.Random
    http: httpx.AsyncClient

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        """Ask one hub after the other until one answers; what stands in the way is a fault."""
        content = None if body is None else msgspec.json.encode(body)
        while True:
            hub = self.dice.choice(self.hubs)
            headers = {"authorization": f"Bearer {self.token}"}
            try:
                answer = await self.http.request(
                    method, hub.url + path, content=content, headers=headers
                )
                if answer.status_code == 401:  # a long run outlives its tokens
                    await self._log_in(hub)
                    continue
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
                continue
            if answer.status_code == 503:  # it is up, and its database is not
                await asyncio.sleep(PAUSE_S)
                continue
            assert answer.status_code == 200, (answer.text, hub.failures)
            return answer.content

    async def _log_in(self, hub: HubProcess) -> None:
        body = {"login": self.account.login, "loginKey": b64(self.account.login_key)}
        answer = await self.http.post(f"{hub.url}/api/v1/auth/login", json=body)
        if answer.status_code == 200:
            self.token = answer.json()["accessToken"]

    @property
    def space(self) -> str:
        return self.account.personal.space_id

    async def pull(self, after: int) -> PullAnswer:
        raw = await self.ask("GET", f"/api/v1/spaces/{self.space}/changes?after={after}")
        return msgspec.json.decode(raw, type=PullAnswer)

    async def state(self) -> StateAnswer:
        raw = await self.ask("GET", f"/api/v1/spaces/{self.space}/records")
        return msgspec.json.decode(raw, type=StateAnswer)


async def write(client: Client, device: NewAccount, ledger: Ledger, stop: asyncio.Event) -> None:
    """Push batches, and each again until it is acknowledged, as a device does."""
    while not stop.is_set():
        batch = changes(device, client.dice)
        ledger.sent.append([change.change_id for change in batch])
        request = PushRequest(device_id=device.device_id, changes=batch)
        raw = await client.ask("POST", f"/api/v1/spaces/{client.space}/changes", request)
        answer = msgspec.json.decode(raw, type=PushAnswer)
        ledger.resends += any(one.status == "duplicate" for one in answer.results)
        ledger.take(answer)


def changes(device: NewAccount, dice: random.Random) -> list[ChangeMessage]:
    """Return a batch over a few records that all devices write; at times it is one group."""
    group = str(uuid.UUID(int=dice.getrandbits(128))) if dice.random() < 0.3 else None
    return [
        sealed_change(
            device,
            TASKS,
            f"t{dice.randrange(RECORDS)}",
            {"title": f"title {dice.random()}", "priority": "high"},
            now_ms=now_ms() - dice.randrange(60_000),
            group=group,
            change_id=str(uuid.UUID(int=dice.getrandbits(128))),
        )
        for _ in range(dice.randint(1, 6))
    ]


async def read(client: Client, stop: asyncio.Event) -> list[LoggedChange]:
    """Follow the log from its beginning; every page goes on where the last one ended."""
    seen: list[LoggedChange] = []
    while not stop.is_set():
        answer = await client.pull(len(seen))
        got = [one.seq for one in answer.changes]
        assert got == list(range(len(seen) + 1, len(seen) + len(got) + 1)), "a gap, or a double"
        assert answer.cursor == len(seen) + len(got)
        seen += answer.changes
        if not got:
            await asyncio.sleep(PAUSE_S)
    return seen


def check(ledger: Ledger, log: Sequence[LoggedChange], state: StateAnswer) -> None:
    """Raise unless everything that was acknowledged is there once, whole, and merged."""
    ids = [one.change.change_id for one in log]
    places = {change_id: seq for seq, change_id in enumerate(ids, start=1)}
    assert [one.seq for one in log] == list(range(1, len(log) + 1))
    assert len(places) == len(ids), "a change stands in the log twice"
    lost = {one for one, seq in ledger.acknowledged.items() if places.get(one) != seq}
    assert not lost, f"{len(lost)} acknowledged changes are lost or moved"
    sent = {change_id for batch in ledger.sent for change_id in batch}
    assert set(ids) <= sent
    for batch in ledger.sent:
        there = [places[one] for one in batch if one in places]
        assert there in ([], list(range(there[0], there[0] + len(batch))) if there else []), "torn"
    assert state.head == len(log)
    kept = {
        one.id: {path: entry.value for path, entry in one.fields.items()} for one in state.records
    }
    assert kept == replayed(log)


def replayed(log: Sequence[LoggedChange]) -> dict[str, dict[str, object]]:
    """Return what the log comes to, by the law of merging alone."""
    records: dict[str, dict[str, Entry]] = {}
    for logged in log:
        change = logged.change
        actor = actor_from_wire(change.actor)
        written = {
            path: Entry(one.value, one.at, actor, change.origin, change.change_id)
            for path, one in change.fields.items()
        }
        records[change.id] = merge_entries(records.get(change.id, {}), written)
    return {
        name: {path: entry.value for path, entry in entries.items()}
        for name, entries in records.items()
    }
