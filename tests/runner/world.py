"""A person with an agent, a mission and notes; a hub in this process, and runners to work on it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from mana.crypto.envelope import RecordKey
from mana.crypto.grants import seal_grant
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey, RunnerPublicKey
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.encoding import Json
from mana.domain.grants import GrantHeader, header_from_wire
from mana.domain.missions import MISSIONS
from mana.domain.policy import STANDARD
from mana.hub.runner.app import Runner, build
from mana.hub.runner.dialogue import SocketChannel, ToRunner, ToWorker, WorkerLost
from mana.hub.runner.files import write_secret
from mana.hub.runner.keys import PRIVATE_FILE, PUBLIC_FILE
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.tracing import Tracing
from mana.hub.runner.worker import work
from mana.models.rules import Rules
from mana.modules.notes.manifest import MANIFEST as NOTES
from mana.planning.ports import Model
from mana.protocol.messages import (
    AuditAnswer,
    ChangeMessage,
    GrantCompletion,
    GrantHeaderAnswer,
    GrantRequest,
    MissionsAnswer,
    MissionStatus,
    OccurrenceInfo,
    RunnerInfo,
    Signature,
)
from mana.testing.accounts import FoundedSpace, sealed_change
from mana.testing.postgres import Database
from tests.hub.client import Person, Served, codes, served_hub

NOTE = next(table for table in NOTES.tables if table.name == "notes")
CANARY = "zanzibar-canary"
HOUR_MS = 60 * 60 * 1_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class InlineWorker:
    """The worker's code in this process, over a real pipe, with a model of the test's choice."""

    def __init__(self, channel: SocketChannel, task: asyncio.Task[None]) -> None:
        self.channel = channel
        self._task = task

    def kill(self) -> None:
        self._task.cancel()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.channel.close()


class InlineWorkers:
    """Makes workers in this process."""

    def __init__(self, model: Callable[[], Model] = Rules) -> None:
        self.model = model
        self.started = 0

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def start(self) -> InlineWorker:
        self.started += 1
        ours, theirs = socket.socketpair()
        channel = await SocketChannel.over(ours, ToRunner)
        return InlineWorker(channel, asyncio.create_task(self._work(theirs)))

    async def _work(self, end: socket.socket) -> None:
        channel = await SocketChannel.over(end, ToWorker)
        try:
            await work(channel, model=self.model)
        except WorkerLost:
            return
        finally:
            await channel.close()


@dataclass
class World:
    """Everything that a test of the runner touches."""

    database: Database
    served: Served
    ada: Person
    home: Path
    clock: int = field(default_factory=now_ms)
    wrap_for: RunnerPublicKey | None = None
    authors: dict[str, str] = field(default_factory=dict)

    @property
    def space(self) -> FoundedSpace:
        return self.ada.account.personal

    def change(
        self, table: Any, record_id: str, values: dict[str, Json], **options: Any
    ) -> ChangeMessage:
        """Return a change with a stamp later than any before."""
        at = options.pop("now_ms", None)
        if at is None:
            self.clock = at = max(self.clock + 1, now_ms() - 60_000)
        return sealed_change(self.ada.account, table, record_id, values, now_ms=at, **options)

    async def push(self, *changes: ChangeMessage) -> None:
        answer = await self.ada.push(changes)
        assert set(codes(answer)) == {"accepted"}, codes(answer)

    async def agent(self, agent_id: str = "agent-1", **values: Json) -> None:
        given: dict[str, Json] = {
            "name": f"Nora {CANARY}",
            "role": f"helper {CANARY}",
            "policy": STANDARD.to_wire(),
            "state": "active",
            "maxConcurrentMissions": 4,
            **values,
        }
        await self.push(self.change(AGENTS, agent_id, given))

    async def memory(self, agent_id: str = "agent-1") -> None:
        values: dict[str, Json] = {"agentId": agent_id, "content": f"likes tea {CANARY}"}
        await self.push(self.change(AGENT_MEMORY, agent_id, values))

    async def note(self, note_id: str, content: str | None = None) -> None:
        text = content or f"- [ ] call the plumber {CANARY}"
        values: dict[str, Json] = {"title": f"House {CANARY}", "content": text}
        await self.push(self.change(NOTE, note_id, values))

    async def mission(
        self,
        mission_id: str = "mission-1",
        *,
        inputs: Sequence[str] = ("note-1",),
        cadence: Json = None,
        stamped_ms: int | None = None,
        **values: Json,
    ) -> None:
        given: dict[str, Json] = {
            "title": f"Review {CANARY}",
            "objective": f"Find tasks {CANARY}",
            "inputs": [{"module": "notes", "table": "notes", "id": one} for one in inputs],
            "state": "active",
            "cadence": cadence or {"kind": "manual"},
            "timeZone": "Europe/Berlin",
            "agentId": "agent-1",
            "runsOn": "hub",
            **values,
        }
        self.authors[mission_id] = self.ada.account.account_id
        await self.push(self.change(MISSIONS, mission_id, given, now_ms=stamped_ms))

    async def edit_mission(self, mission_id: str = "mission-1", **values: Json) -> None:
        author = self.authors.get(mission_id)
        change = self.change(MISSIONS, mission_id, dict(values), op="update", author_id=author)
        await self.push(change)

    async def header(
        self, mission_id: str = "mission-1", *, inputs: Sequence[str] = ("note-1",), **options: Any
    ) -> GrantHeader:
        """Ask for a header over these notes."""
        request = GrantRequest(
            mission_id=mission_id,
            tables=["notes"],
            record_ids=[f"notes:{one}" for one in inputs],
            endpoints=options.pop("endpoints", ["rules:offline"]),
            **options,
        )
        answer = await self.ada.call("POST", "/api/v1/me/ai-mission-grant", request)
        assert answer.status_code == 201, answer.text
        return header_from_wire(msgspec.json.decode(answer.content, type=GrantHeaderAnswer).header)

    def payload(self, header: GrantHeader) -> dict[str, Json]:
        """Return the keys that a device would seal for a header."""
        key = self.space.space_key

        def granted(name: str) -> dict[str, Json]:
            table, _, record = name.partition(":")
            return {"k": b64(RecordKey.derive(key, table, record).to_bytes()), "e": "s1"}

        support = [
            f"aiMissions:{header.mission_id}",
            f"agents:{header.agent_id}",
            f"agentMemory:{header.agent_id}",
        ]
        return {
            "records": {name: granted(name) for name in header.record_ids},
            "support": {name: granted(name) for name in support},
            "iterationKey": {"k": b64(mission_key(key, header.mission_id)), "e": "m1"},
        }

    async def runner_key(self) -> RunnerPublicKey:
        answer = await self.ada.call("GET", "/api/v1/runner")
        assert answer.status_code == 200, answer.text
        info = msgspec.json.decode(answer.content, type=RunnerInfo)
        return RunnerPublicKey.from_pem(info.public_key)

    async def completion(
        self, header: GrantHeader, payload: dict[str, Json] | None = None
    ) -> GrantCompletion:
        """Return what the device hands over for a header."""
        sealed = seal_grant(
            header.canonical(),
            header.mission_id,
            payload or self.payload(header),
            runner=(self.wrap_for or await self.runner_key()).wrap_key(header.suite),
            device=self.ada.account.device_key,
        )
        return GrantCompletion(
            wrapped_key=b64(sealed.wrapped_key),
            sealed_keys=sealed.sealed_keys,
            signature=Signature(signer=self.ada.account.device_id, value=b64(sealed.signature)),
        )

    async def complete(
        self, header: GrantHeader, payload: dict[str, Json] | None = None
    ) -> GrantHeader:
        # As a device does it: the mission names its grant before that counts.
        await self.edit_mission(header.mission_id, grantId=header.grant_id)
        done = await self.completion(header, payload)
        path = f"/api/v1/me/ai-mission-grant/{header.grant_id}/complete"
        answer = await self.ada.call("POST", path, done)
        assert answer.status_code == 200, answer.text
        return header

    async def grant(self, mission_id: str = "mission-1", **options: Any) -> GrantHeader:
        return await self.complete(await self.header(mission_id, **options))

    async def revoke(self, header: GrantHeader) -> None:
        answer = await self.ada.call("DELETE", f"/api/v1/me/ai-mission-grant/{header.grant_id}")
        assert answer.status_code == 204, answer.text

    async def run_now(self, mission_id: str = "mission-1") -> OccurrenceInfo:
        path = f"/api/v1/spaces/{self.ada.space}/missions/{mission_id}/run"
        answer = await self.ada.call("POST", path)
        assert answer.status_code == 202, answer.text
        return msgspec.json.decode(answer.content, type=OccurrenceInfo)

    async def missions(self) -> MissionsAnswer:
        answer = await self.ada.call("GET", "/api/v1/me/missions")
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=MissionsAnswer)

    async def status(self, mission_id: str = "mission-1") -> MissionStatus:
        found = await self.missions()
        return next(one for one in found.missions if one.mission_id == mission_id)

    async def audit(self, query: str = "") -> AuditAnswer:
        answer = await self.ada.call("GET", f"/api/v1/me/ai-audit{query}")
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=AuditAnswer)

    async def ready(self, **agent: Json) -> GrantHeader:
        """Make the usual agent, note and mission, and grant it."""
        await self.agent(**agent)
        await self.note("note-1")
        await self.mission()
        return await self.grant()

    def settings(self, **options: Any) -> RunnerSettings:
        given: dict[str, Any] = {"tick_enabled": False, "service_key": "service", **options}
        return RunnerSettings(home=self.home, database_url=self.database.runner_url, **given)

    @contextlib.asynccontextmanager
    async def runner(
        self,
        model: Callable[[], Model] = Rules,
        *,
        workers: Any = None,
        tracing: Tracing | None = None,
        **options: Any,
    ) -> AsyncIterator[Runner]:
        """Lend an open runner whose workers share this process."""
        runner = build(
            self.settings(**options), workers=workers or InlineWorkers(model), tracing=tracing
        )
        await runner.open()
        try:
            yield runner
        finally:
            await runner.close()


@contextlib.asynccontextmanager
async def world(database: Database, **hub: Any) -> AsyncIterator[World]:
    """Lend a world; its hub and its runners share one folder of secrets. `hub`: settings of it."""
    with tempfile.TemporaryDirectory(prefix="mana-runner-") as folder:
        home = Path(folder)
        async with served_hub(database, home=home, **hub) as served:
            served.clock.now_ms = now_ms()
            ada = await served.sign_up("ada")
            made = World(database, served, ada, home)
            leave_runner_key(made.settings())
            yield made


def leave_runner_key(settings: RunnerSettings) -> None:
    """Leave a runner's keys where hub and runners look, so that anyone can grant to it.

    The same keys for every test of a process, because to draw an RSA pair takes a while.
    """
    private, public = _runner_pems()
    write_secret(settings.secrets_dir / PRIVATE_FILE, private)
    write_secret(settings.secrets_dir / PUBLIC_FILE, public)


@functools.cache
def _runner_pems() -> tuple[str, str]:
    key = RunnerPrivateKey.generate()
    return key.to_pem(), key.public().to_pem()


__all__ = ["CANARY", "HOUR_MS", "InlineWorkers", "World", "replace", "world"]
