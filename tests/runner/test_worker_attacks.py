"""A worker that was taken over, in what it says beside its records: words and numbers are ours."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable

import msgspec
import pytest
from prometheus_client import generate_latest

from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditEntry,
    Counts,
    Finished,
    Granted,
    Job,
    Message,
    PhaseNote,
    ReserveAsk,
    SettleAsk,
    SocketChannel,
    Stopped,
    ToWorker,
    WorkerLost,
)
from mana.hub.runner.session import RELEASES_MAX
from mana.hub.runner.worker import work
from mana.models.rules import Rules
from mana.planning.ports import Model
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, database_text
from tests.runner.world import CANARY, InlineWorkers, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

Lie = Callable[[Message], Message]
ENDPOINT = "rules:offline"


class Metered(ScriptedModel):
    """A model whose calls are counted."""

    endpoint = ENDPOINT


class Liar(InlineWorkers):
    """Workers whose every message goes through a lie."""

    def __init__(self, lie: Lie, model: Callable[[], Model] = Metered) -> None:
        super().__init__(model)
        self._lie = lie

    async def _work(self, end: socket.socket) -> None:
        channel = await SocketChannel.over(end, ToWorker)
        tell = channel.tell

        def lying(message: Message) -> None:
            tell(self._lie(message))

        channel.tell = lying  # type: ignore[method-assign]
        try:
            with contextlib.suppress(WorkerLost):
                await work(channel, model=self.model)
        finally:
            await channel.close()


def counted(**figures: object) -> Lie:
    def lie(message: Message) -> Message:
        if isinstance(message, Finished):
            return msgspec.structs.replace(message, counts=Counts(**figures))  # type: ignore[arg-type]
        return message

    return lie


def read(number: int = 1, endpoint: str | None = None, **said: object) -> Lie:
    def lie(message: Message) -> Message:
        if isinstance(message, AuditAsk):
            entries = [msgspec.structs.replace(one, **said) for one in message.entries]
            return msgspec.structs.replace(
                message,
                entries=entries * number,
                endpoints=[*message.endpoints, *([endpoint] if endpoint else ())],
            )
        return message

    return lie


def settled(seconds: float) -> Lie:
    def lie(message: Message) -> Message:
        if isinstance(message, SettleAsk):
            return msgspec.structs.replace(message, seconds=seconds)
        return message

    return lie


def borrowed(message: Message) -> Message:
    """Settle what is another run's."""
    if isinstance(message, SettleAsk):
        return msgspec.structs.replace(message, reservation="00000000-0000-4000-8000-000000000000")
    return message


def elsewhere(message: Message) -> Message:
    """Call what no grant names."""
    if isinstance(message, ReserveAsk):
        return msgspec.structs.replace(message, endpoint="https://evil.example.org")
    return message


def endless(message: Message) -> Message:
    """Reserve less than nothing."""
    if isinstance(message, ReserveAsk):
        return msgspec.structs.replace(message, prompt_tokens=-(2**40))
    return message


LIES: dict[str, Lie] = {
    "a tool that is none": counted(tool_calls={f"{CANARY}:auto": 1}),
    "a decision that is none": counted(tool_calls={f"create_note:{CANARY}": 1}),
    "a table that is none": counted(opened={CANARY: 1}),
    "less than no calls": counted(tool_calls={"create_note:auto": -1}),
    "less than no rounds": counted(rounds=-(2**62)),
    "more than anybody opens": counted(opened={"notes": 2**62}),
    "a reminder that is none": counted(reminders={f"{CANARY}:note": 1}),
    "a severity that is none": counted(reminders={f"retry:{CANARY}": 1}),
    "less than no reminders": counted(reminders={"retry:warning": -1}),
    "less than no messages": counted(folded=[-1]),
    "a flood of summaries": counted(folded=[1] * 1_000),
    "no number of seconds": settled(math.nan),
    "endless seconds": settled(math.inf),
    "less than no seconds": settled(-1.0),
    "another's reservation": borrowed,
    "another endpoint": elsewhere,
    "less than no tokens": endless,
    "a table in the audit": read(table_name=CANARY),
    "a text in the audit": read(record_id=f"{CANARY} said so"),
    "no character of a text": read(record_id="a\0b"),
    "a state of the audit": read(status=CANARY),
    "an endpoint in the audit": read(endpoint=f"https://{CANARY}.example.org"),
    "an endpoint twice in the audit": read(endpoint=ENDPOINT),
    "a flood of the audit": read(number=2_000),
}


async def test_no_word_or_number_of_a_worker_is_believed(database: Database) -> None:
    """What no worker says ends that worker: nothing of it is kept, counted, or shown in figures."""
    believed = []
    async with world(database) as made:
        await made.ready()
        for place, (name, lie) in enumerate(LIES.items()):
            mission = f"mission-lie-{place}"
            await made.mission(mission)
            await made.grant(mission)
            await made.run_now(mission)
            async with made.runner(workers=Liar(lie)) as runner:
                stats = await runner.scheduler.tick()
                figures = generate_latest(runner.metrics.registry).decode()
            is_lost = f"mission={mission}: RUN_LOST" in stats.errors
            if not is_lost or CANARY in figures or "NaN" in figures:
                believed.append((name, stats.errors))
            await made.edit_mission(mission, state="paused")
        assert believed == []
        state = await made.ada.state()
        assert not [one for one in state.records if one.table.startswith("aiIter")]
        assert CANARY not in await database_text(database.owner_url)
        assert len((await made.audit("?limit=1000")).rows) < 200


async def test_an_honest_worker_passes(database: Database) -> None:
    """The same worker, when it says what all say, does its run."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(workers=Liar(lambda message: message)) as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 1)


class Releasing(InlineWorkers):
    """Workers that say of call after call that no model worked on it."""

    async def _work(self, end: socket.socket) -> None:
        channel = await SocketChannel.over(end, ToWorker)
        try:
            job = await channel.receive()
            while not isinstance(job, Job):
                job = await channel.receive()
            for _ in range(RELEASES_MAX + 2):
                await channel.send(
                    ReserveAsk(job.run, 1_000, 100, ENDPOINT, "", "plan", None, None)
                )
                granted = await channel.receive()
                assert isinstance(granted, Granted)
                reservation = granted.reservation
                await channel.send(SettleAsk(job.run, reservation, None, None, 0.1, released=True))
                await channel.receive()
            await channel.send(Stopped(job.run, "failed", "provider"))
            await channel.receive()
        except WorkerLost:
            pass
        finally:
            await channel.close()


async def test_a_worker_does_not_get_calls_for_nothing_for_ever(database: Database) -> None:
    """That no model worked on a call is believed so often in a run; from then on each counts."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(workers=Releasing()) as runner:
            await runner.scheduler.tick()
        line = (await made.status()).occurrences[0]
        assert (line.last_reason, line.tokens, line.unconfirmed_tokens) == (
            "provider",
            2_200,
            2_200,
        )
        assert (await made.missions()).tokens_today == {"agent-1": 2_200}


def test_entries_of_the_audit_are_plain() -> None:
    """What the lies above change is what an entry has."""
    assert set(AuditEntry.__struct_fields__) == {"table_name", "record_id", "status", "reason"}


@pytest.mark.parametrize(
    "lie",
    [
        "table",
        "step",
        "reason",
        "phase",
        "author_id",
        "change_id",
        "group",
        "principalId",
        "missionId",
        "iterationId",
    ],
)
async def test_what_a_worker_writes_is_not_believed(database: Database, lie: str) -> None:
    """A worker that was taken over writes no record but its own, and no word but ours."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(workers=Liar(lambda message: lied(message, lie), Rules)) as runner:
            await runner.scheduler.tick()
        state = await made.ada.state()
        assert not [one for one in state.records if one.table.startswith("aiIter")]
        assert CANARY not in await database_text(database.owner_url)


def lied(message: Message, lie: str) -> Message:
    """Return the message as an attacker would have it."""
    if isinstance(message, AuditAsk) and lie == "reason":
        entries = [msgspec.structs.replace(one, reason=CANARY) for one in message.entries]
        return msgspec.structs.replace(message, entries=entries)
    if isinstance(message, Finished) and lie == "phase":
        return PhaseNote(message.run, CANARY)
    if isinstance(message, Finished):
        first, *rest = message.changes
        if lie == "table":
            first = msgspec.structs.replace(first, table="aiSteps")
        if lie == "step":
            rest = [msgspec.structs.replace(one, id="other-1") for one in rest]
        if lie in ("author_id", "change_id", "group"):
            other = "00000000-0000-4000-8000-000000000000"
            first = msgspec.structs.replace(first, **{lie: other})
        if lie in first.actor:
            first = msgspec.structs.replace(first, actor={**first.actor, lie: "other"})
        return msgspec.structs.replace(message, changes=[first, *rest])
    return message
