"""When a runner looks for what is due: at its moment, when it is told, and not without a reason."""

from __future__ import annotations

import asyncio

import pytest

from mana.hub.db import DatabaseUnavailable
from mana.hub.runner.scheduler import Alarm
from mana.hub.runner.store import EndedGrants, RunnerStore
from mana.testing.postgres import Database, connected
from tests.runner.test_lanes import Stuck, doing, many, stopped, under_way
from tests.runner.world import world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


@pytest.mark.parametrize("seconds", [(0.0, 3_600.0), (3_600.0, 0.0)])
async def test_an_alarm_sounds_at_the_soonest_moment(seconds: tuple[float, float]) -> None:
    """In whatever order moments are given, the soonest counts."""
    event = asyncio.Event()
    alarm = Alarm(event)
    for one in seconds:
        alarm.within(one)
    await asyncio.wait_for(event.wait(), 10)


async def test_an_alarm_forgets_what_is_over() -> None:
    """What is cleared sounds no more; a later moment given after it does."""
    event = asyncio.Event()
    alarm = Alarm(event)
    alarm.within(0.0)
    alarm.clear()
    # Timers sound in their order: by the end of this one the first would have.
    await asyncio.sleep(0.1)
    assert not event.is_set()
    alarm.within(0.0)
    await asyncio.wait_for(event.wait(), 10)


async def done(database: Database) -> int:
    """Return how many runs are done."""
    async with connected(database.owner_url) as owner:
        return int(
            await owner.fetchval("select count(*) from mana_ai.occurrences where state = 'done'")
        )


@pytest.mark.postgres
async def test_what_comes_due_wakes_a_runner(database: Database) -> None:
    """A runner that ticks once a day runs at its moment what nobody told it of."""
    async with world(database) as made:
        await many(made, 1)
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "update mana_ai.occurrences set due_at = now() + interval '1 second'"
            )
        async with (
            made.runner(doing(), tick_enabled=True, tick_interval_ms=DAY_MS, heartbeat_s=600),
            asyncio.timeout(30),
        ):
            while await done(database) < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.postgres
async def test_nothing_is_looked_for_without_a_reason(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that end, and what they queue for tomorrow, make nobody look for what is due now, where
    all that was due is under way."""
    looks: list[int] = []
    lease = RunnerStore.lease

    async def counting(self: RunnerStore, worker: str, limit: int, *, lease_s: int) -> object:
        looks.append(limit)
        return await lease(self, worker, limit, lease_s=lease_s)

    stuck = Stuck("mission-0")
    async with world(database) as made:
        names = await many(made, 4)
        for name in names:
            await made.edit_mission(name, cadence={"kind": "interval", "everyMinutes": 600})
        monkeypatch.setattr(RunnerStore, "lease", counting)
        async with (
            made.runner(doing(stuck.act), concurrency=8, heartbeat_s=600) as runner,
            under_way(made, runner, stuck.reached) as tick,
            asyncio.timeout(30),
        ):
            while await done(database) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            before = len(looks)
            await stopped(made)
            await tick
        # All was taken at once; to find nothing more, at the end, takes another look.
        assert before <= 2


def failing_looks(monkeypatch: pytest.MonkeyPatch, failures: int) -> asyncio.Event:
    """Have so many of the next looks at what is due fail; return what is set after the last."""
    lease, left, over = RunnerStore.lease, [failures], asyncio.Event()

    async def failing(self: RunnerStore, worker: str, limit: int, *, lease_s: int) -> object:
        if left[0]:
            left[0] -= 1
            if not left[0]:
                over.set()
            raise DatabaseUnavailable("08006")
        return await lease(self, worker, limit, lease_s=lease_s)

    monkeypatch.setattr(RunnerStore, "lease", failing)
    return over


@pytest.mark.postgres
async def test_a_look_that_fails_cuts_off_no_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away for a moment runs go on, and it is looked again by itself."""
    stuck = Stuck("mission-0")
    async with world(database) as made:
        await many(made, 2)
        async with (
            made.runner(doing(stuck.act), concurrency=8, heartbeat_s=600) as runner,
            under_way(made, runner, stuck.reached) as tick,
            asyncio.timeout(30),
        ):
            over = failing_looks(monkeypatch, 2)
            runner.scheduler.wake()
            await over.wait()
            assert not tick.done()
            await made.run_now("mission-1")
            while await done(database) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await stopped(made)
            await tick
        async with connected(database.owner_url) as owner:
            rows = await owner.fetch("select state, reason, attempts from mana_ai.occurrences")
        assert sorted(tuple(row) for row in rows) == [
            ("done", None, 1),
            ("done", None, 1),
            ("failed", "stopped", 1),
        ]


@pytest.mark.postgres
async def test_a_pass_by_hand_that_fails_forgets_no_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a pass while the database is away takes nothing from the runner's own."""
    lease, looked = RunnerStore.lease, asyncio.Event()

    async def looking(self: RunnerStore, worker: str, limit: int, *, lease_s: int) -> object:
        found = await lease(self, worker, limit, lease_s=lease_s)
        looked.set()
        return found

    monkeypatch.setattr(RunnerStore, "lease", looking)
    async with world(database) as made:
        await many(made, 1)
        async with connected(database.owner_url) as owner:
            await owner.execute("update mana_ai.occurrences set due_at = now() + interval '1 hour'")
        async with (
            made.runner(doing(), tick_enabled=True, tick_interval_ms=DAY_MS, heartbeat_s=600) as it,
            asyncio.timeout(30),
        ):
            await looked.wait()
            while (await it.scheduler.tick()).errors:  # noqa: ASYNC110 - its own pass ends
                await asyncio.sleep(0.01)
            failing_looks(monkeypatch, 1)
            async with connected(database.owner_url) as owner:
                await owner.execute("update mana_ai.occurrences set due_at = now()")
            with pytest.raises(DatabaseUnavailable):
                await it.scheduler.tick()
            while await done(database) < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.postgres
async def test_a_full_runner_ends_what_ends_by_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the runs take that fill it, a runner looks beside them for grants that ended."""
    stuck, looked = Stuck("mission-0"), asyncio.Event()
    ended = RunnerStore.end_grants

    async def looking(self: RunnerStore) -> EndedGrants:
        found = await ended(self)
        looked.set()
        return found

    async with world(database) as made:
        await many(made, 1)
        async with (
            made.runner(doing(stuck.act), concurrency=1, heartbeat_s=1) as runner,
            under_way(made, runner, stuck.reached) as tick,
            asyncio.timeout(30),
        ):
            monkeypatch.setattr(RunnerStore, "end_grants", looking)
            await looked.wait()
            await stopped(made)
            await tick
