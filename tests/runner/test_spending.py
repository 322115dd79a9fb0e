"""What a call came to goes along with what its run commits next, and is lost by no way to end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from mana.hub.runner.dialogue import (
    Granted,
    Job,
    ReserveAsk,
    SettleAsk,
    SocketChannel,
    ToWorker,
    WorkerLost,
)
from mana.hub.runner.store import RunnerStore
from mana.planning.ports import ModelReply, ModelRequest, Usage
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database, connected
from tests.runner.world import InlineWorkers, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ENDPOINT = "rules:offline"
USAGE = Usage(500, 50)
TASK = {"title": "Call the plumber", "rationale": "It drips."}


class Metered(ScriptedModel):
    """A model whose calls are counted, and which is called twice."""

    endpoint = ENDPOINT


def planning() -> Metered:
    call = calling("create_task", TASK)
    return Metered([says("", call, usage=USAGE), says("Done.", usage=USAGE)])


async def test_a_run_of_two_calls_is_six_transactions(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside admission, two readings and the end a run has one transaction for each call: what a
    call came to is settled with the next one, and the last with the end."""
    opened: list[str] = []
    work = RunnerStore.work

    def counting(self: RunnerStore, account: str, **options: Any) -> Any:
        opened.append(account)
        return work(self, account, **options)

    monkeypatch.setattr(RunnerStore, "work", counting)
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(planning) as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 1)
        assert len(opened) == 6
        line = (await made.status()).occurrences[0]
        assert (line.tokens, line.unconfirmed_tokens) == (2 * USAGE.total, 0)
        assert (await made.missions()).tokens_today == {"agent-1": 2 * USAGE.total}


TAKEN_AND_ENDED = """
update mana_ai.occurrences o
   set state = 'done', fence = o.fence + 1, lease_until = null, finished_at = clock_timestamp(),
       (tokens, cost, confirmed_tokens, confirmed_cost) = (
         select u.* from mana_ai.used_by(o.space_id, o.occurrence_id) u)
"""


class Slow(Metered):
    """A model in whose last call another runner takes the run over and ends it."""

    def __init__(self, database: Database, replies: int) -> None:
        call = calling("create_task", TASK)
        super().__init__([says("", call, usage=USAGE), says("Done.", usage=USAGE)][-replies:])
        self._database, self._left = database, replies

    async def complete(self, request: ModelRequest) -> ModelReply:
        self._left -= 1
        if self._left == 0:
            async with connected(self._database.owner_url) as owner:
                await owner.execute(TAKEN_AND_ENDED)
        return await super().complete(request)


@pytest.mark.parametrize("calls", [1, 2])
async def test_a_late_call_is_in_the_sum_of_a_run_that_another_ended(
    database: Database, calls: int
) -> None:
    """Whoever comes back after its lease was another's settles its call, and the ended run's line
    says what the ledger says."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(lambda: Slow(database, calls)) as runner:
            stats = await runner.scheduler.tick()
        assert stats.plans_written_back == 0
        line = (await made.status()).occurrences[0]
        assert (line.state, line.tokens, line.unconfirmed_tokens) == (
            "done",
            calls * USAGE.total,
            0,
        )


class Breaking(InlineWorkers):
    """Workers that end after they told what a call came to."""

    async def _work(self, end: socket.socket) -> None:
        channel = await SocketChannel.over(end, ToWorker)
        with contextlib.suppress(WorkerLost):
            job = await channel.receive()
            while not isinstance(job, Job):
                job = await channel.receive()
            await channel.send(ReserveAsk(job.run, 1_000, 100, ENDPOINT, "", "plan", None, None))
            granted = await channel.receive()
            assert isinstance(granted, Granted)
            told = SettleAsk(
                job.run, granted.reservation, USAGE.prompt_tokens, USAGE.completion_tokens, 0.1
            )
            await channel.send(told)
            await channel.receive()
        await channel.close()


async def test_a_call_of_a_run_that_broke_is_settled(database: Database) -> None:
    """A run whose worker ends after a call counts what the call took, not what was reserved."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(workers=Breaking()) as runner, asyncio.timeout(30):
            await runner.scheduler.tick()
        line = (await made.status()).occurrences[0]
        assert (line.state, line.tokens, line.unconfirmed_tokens) == ("queued", USAGE.total, 0)
