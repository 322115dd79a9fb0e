"""A runner that is killed anywhere: one iteration for each occurrence, and no reading unnoted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mana.device.audit import Chain, follow
from mana.domain.occurrences import FAIL_POINTS
from mana.hub.runner.app import DRAIN_S, END_S
from mana.hub.runner.workers import ProcessWorker, ProcessWorkers
from mana.testing.postgres import Database, connected
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

MANY = 6
OTHERS = 3
SOURCES = Path(__file__).parents[2] / "src"


@contextlib.asynccontextmanager
async def running(made: World, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Lend a real runner process that listens; whatever happens, it ends with the test."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCES),
        "MANA_HOME": str(made.home),
        "MANA_RUNNER_DATABASE_URL": made.database.runner_url,
        "MANA_RUNNER_PORT": "0",
        "TICK_INTERVAL_MS": "200",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mana.hub.runner",
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        await listening(process)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def listening(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if b"listens" in line:
            return
    raise AssertionError("the runner did not start")


async def end(process: asyncio.subprocess.Process) -> int:
    """Stop a runner gently and return its exit code."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode is not None
    return process.returncode


@pytest.mark.parametrize("point", FAIL_POINTS)
async def test_killed_anywhere(database: Database, point: str) -> None:
    """Killed at any named place with many runs of an account in one worker, while three others work
    on the same: each run ends as exactly one iteration, and the audit is one whole chain."""
    async with world(database) as made:
        await made.agent(maxConcurrentMissions=100)
        await made.note("note-1")
        names = [f"mission-{place}" for place in range(MANY)]
        for name in names:
            await made.mission(name)
            await made.grant(name)
        async with (
            running(made, MANA_FAIL_POINT=point) as first,
            contextlib.AsyncExitStack() as more,
        ):
            for name in names:
                await made.run_now(name)
            await first.communicate()
            assert first.returncode == -signal.SIGKILL
            # So that nobody waits for it, and no lease of the others ends because the machine is slow.
            async with connected(database.owner_url) as owner:
                await owner.execute(
                    "update mana_ai.occurrences set lease_until = now() where state = 'leased'"
                )
            others = [await more.enter_async_context(running(made)) for _ in range(OTHERS)]
            while await states_of(made) != {"done": MANY}:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            for other in others:
                assert await end(other) == 0
        async with connected(database.owner_url) as owner:
            logged = await owner.fetch(
                "select record_id, count(*) as number from mana.sync_changes"
                " where table_name = 'aiIterations' group by record_id"
            )
        assert [row["number"] for row in logged] == [1] * MANY
        rows = (await made.audit("?limit=1000")).rows
        follow(Chain(), rows[::-1], head_seq=rows[0].seq, head_hash=rows[0].hash)
        assert {row.table_name for row in rows} == {"aiMissions", "agents", "notes"}


async def test_a_killed_worker(database: Database) -> None:
    """A worker process that is killed takes its runs with it, and each of them is done all the
    same, once; none of them is held to be at fault for more than that."""
    async with world(database) as made:
        await made.agent(maxConcurrentMissions=100)
        await made.note("note-1")
        for place in range(MANY):
            await made.mission(f"mission-{place}")
            await made.grant(f"mission-{place}")
        killed: list[int] = []

        class Killing(ProcessWorkers):
            async def start(self) -> ProcessWorker:
                worker = await super().start()
                if not killed:
                    killed.append(worker.pid)
                    asyncio.get_running_loop().call_later(0.05, worker.kill)
                return worker

        for place in range(MANY):
            await made.run_now(f"mission-{place}")
        async with made.runner(workers=Killing(), concurrency=16) as runner:
            while await states_of(made) != {"done": MANY}:
                await runner.scheduler.tick()
                await asyncio.sleep(0.2)
        state = await made.ada.state()
        assert len([one for one in state.records if one.table == "aiIterations"]) == MANY


async def states_of(made: World) -> dict[str, int]:
    """Return how many missions' newest runs are in each state."""
    found = (await made.missions()).missions
    return dict(Counter(one.occurrences[0].state for one in found if one.occurrences))


async def test_gentle_end(database: Database) -> None:
    """On SIGTERM a runner ends with success, and gives what it does ten seconds at most."""
    assert DRAIN_S + END_S < 10
    async with world(database) as made, running(made) as process:
        assert await end(process) == 0
