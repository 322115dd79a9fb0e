"""Many runs of an account in one worker: each ends once, by itself, and a stop stops it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest

from mana.device.audit import Chain, follow
from mana.hub.db import DatabaseUnavailable, Transaction
from mana.hub.runner import session
from mana.hub.runner.dialogue import Cancel, SocketChannel, ToWorker, WorkerLost
from mana.hub.runner.ledger import Lease
from mana.hub.runner.worker import work
from mana.planning.ports import ModelReply, ModelRequest
from mana.testing.models import ScriptedModel, says
from mana.testing.postgres import Database, connected
from tests.runner.world import InlineWorkers, World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


class Doing(ScriptedModel):
    """A model that does what a test says with each request."""

    endpoint = "rules:offline"

    def __init__(self, act: Callable[[str], Any]) -> None:
        super().__init__()
        self._act = act

    async def complete(self, request: ModelRequest) -> ModelReply:
        text = " ".join(message.content for message in request.messages)
        done = self._act(text)
        if asyncio.iscoroutine(done):
            await done
        return says("Done.")


def doing(act: Callable[[str], Any] = lambda _text: None) -> Callable[[], Doing]:
    return lambda: Doing(act)


async def many(made: World, number: int, **values: Any) -> list[str]:
    """Make so many missions of one agent, granted and asked for."""
    await made.agent(maxConcurrentMissions=100, **values)
    await made.note("note-1")
    names = [f"mission-{place}" for place in range(number)]
    for name in names:
        await made.mission(name, title=f"title of {name};")
        await made.grant(name)
        await made.run_now(name)
    return names


async def ends(made: World) -> dict[str, tuple[str, str]]:
    """Return state and reason of the newest run of each mission."""
    return {
        one.mission_id: (one.occurrences[0].state, one.occurrences[0].reason or "")
        for one in (await made.missions()).missions
        if one.occurrences
    }


async def each_once(made: World, missions: int) -> None:
    """Check that each mission has one iteration, and that the audit is a whole chain."""
    state = await made.ada.state()
    found = Counter(one.id for one in state.records if one.table == "aiIterations")
    assert len(found) == missions
    async with connected(made.database.owner_url) as owner:
        logged = await owner.fetchval(
            "select count(*) from mana.sync_changes where table_name = 'aiIterations'"
            " and space_id = $1",
            made.ada.space,
        )
    assert logged == missions
    rows = (await made.audit("?limit=1000")).rows
    follow(Chain(), rows[::-1], head_seq=rows[0].seq, head_hash=rows[0].hash)


async def test_one_worker_serves_an_account(database: Database) -> None:
    """Runs of one account share a worker and their transactions; another account has its own."""
    async with world(database) as made:
        await many(made, 8)
        bob = World(database, made.served, await made.served.sign_up("bob"), made.home)
        await bob.ready()
        await bob.run_now()
        workers = InlineWorkers(doing())
        async with made.runner(workers=workers, concurrency=16) as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 9)
        assert workers.started == 2
        await each_once(made, 8)


async def test_a_broken_run_ends_alone(database: Database) -> None:
    """A run that breaks in the middle of others leaves them as they are."""

    def act(text: str) -> None:
        if "title of mission-1;" in text:
            raise RuntimeError(text)

    async with world(database) as made:
        names = await many(made, 4)
        async with made.runner(doing(act), concurrency=8) as runner:
            await runner.scheduler.tick()
        found = await ends(made)
        assert found.pop("mission-1") == ("failed", "internal")
        assert set(found) == set(names) - {"mission-1"}
        assert set(found.values()) == {("done", "")}


@asynccontextmanager
async def under_way(made: World, runner: Any, reached: asyncio.Event) -> Any:
    """Lend a pass in which the model was reached."""
    tick = asyncio.create_task(runner.scheduler.tick())
    try:
        await reached.wait()
        yield tick
        await tick
    finally:
        tick.cancel()
        await asyncio.gather(tick, return_exceptions=True)


class Stuck:
    """What a model does that answers some missions and never the others."""

    def __init__(self, *missions: str) -> None:
        self._missions = missions
        self.reached = asyncio.Event()
        self.cut_off = asyncio.Event()

    async def act(self, text: str) -> None:
        if any(f"title of {name};" in text for name in self._missions):
            self.reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cut_off.set()


async def test_a_stop_stops_within_a_second(database: Database) -> None:
    """Who stops a mission cuts off its call of the model at once, and not only when the runner looks
    again; the runs beside it go on."""
    stuck = Stuck("mission-0")
    async with world(database) as made:
        await many(made, 3)
        async with made.runner(doing(stuck.act), concurrency=8, heartbeat_s=600) as runner:
            async with under_way(made, runner, stuck.reached) as tick:
                path = f"/api/v1/spaces/{made.ada.space}/missions/mission-0/stop"
                answer = await made.ada.call("POST", path)
                assert answer.status_code == 200, answer.text
                await stuck.cut_off.wait()
                await tick
        found = await ends(made)
        assert found == {
            "mission-0": ("failed", "stopped"),
            "mission-1": ("done", ""),
            "mission-2": ("done", ""),
        }


async def no_notice(_worker: str) -> list[Lease]:
    """Tell a runner of no stop."""
    return []


@pytest.mark.parametrize(
    ("edit", "reason"),
    [({"state": "paused"}, "mission-not-active"), ({"agentId": "agent-2"}, "scope-mismatch")],
)
async def test_what_changed_meanwhile_counts(
    database: Database, edit: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction that finishes a run asks again: what is not allowed any more is not written,
    also where no notice came."""
    async with world(database) as made:
        await many(made, 1)
        await made.agent("agent-2")

        async def act(_text: str) -> None:
            await made.edit_mission("mission-0", **edit)

        async with made.runner(doing(act)) as runner:
            monkeypatch.setattr(runner.store, "stopping", no_notice)
            await runner.scheduler.tick()
        assert await ends(made) == {"mission-0": ("skipped", reason)}
        state = await made.ada.state()
        assert not [one for one in state.records if one.table == "aiIterations"]


async def stopped(made: World) -> None:
    path = f"/api/v1/spaces/{made.ada.space}/missions/mission-0/stop"
    assert (await made.ada.call("POST", path)).status_code == 200


async def revoked(made: World) -> None:
    async with connected(made.database.owner_url) as owner:
        (grant,) = await owner.fetch("select grant_id from mana_ai.grants where state = 'active'")
    answer = await made.ada.call("DELETE", f"/api/v1/me/ai-mission-grant/{grant[0]}")
    assert answer.status_code == 204, answer.text


async def granted_anew(made: World) -> None:
    await made.grant("mission-0")


async def agent_paused(made: World) -> None:
    await made.agent(state="paused")


@pytest.mark.parametrize(
    ("meanwhile", "end"),
    [
        (stopped, ("failed", "stopped")),
        (revoked, ("skipped", "revoked")),
        (granted_anew, ("skipped", "revoked")),
        (agent_paused, ("skipped", "agent-paused")),
    ],
)
async def test_what_was_ended_meanwhile_writes_nothing(
    database: Database,
    meanwhile: Callable[[World], Any],
    end: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was stopped, or lost its grant or agent, while its model thought ends so and leaves
    nothing, also where no notice came."""
    async with world(database) as made:
        await many(made, 1)

        async def act(_text: str) -> None:
            await meanwhile(made)

        async with made.runner(doing(act)) as runner:
            monkeypatch.setattr(runner.store, "stopping", no_notice)
            await runner.scheduler.tick()
        assert await ends(made) == {"mission-0": end}
        state = await made.ada.state()
        assert not [one for one in state.records if one.table == "aiIterations"]


async def test_the_same_run_once_more_in_one_runner(database: Database) -> None:
    """A runner that slept past a lease and gets the same run again ends the run of before, and the
    one of now is done."""
    stuck = Stuck("mission-0")

    async def act(text: str) -> None:
        if not stuck.reached.is_set():
            await stuck.act(text)

    async with world(database) as made:
        await many(made, 1)
        async with (
            made.runner(doing(act), concurrency=8, heartbeat_s=600) as runner,
            under_way(made, runner, stuck.reached) as tick,
        ):
            async with connected(database.owner_url) as owner:
                await owner.execute("update mana_ai.occurrences set lease_until = now()")
            runner.scheduler.wake()
            await stuck.cut_off.wait()
            stats = await tick
        assert (stats.errors, stats.plans_written_back) == ([], 1)
        assert await ends(made) == {"mission-0": ("done", "")}
        await each_once(made, 1)


async def test_what_comes_due_beside_a_run_is_run(database: Database) -> None:
    """What becomes due by the clock alone, while another run is under way, does not wait for it."""
    stuck, other = Stuck("mission-0"), asyncio.Event()

    async def act(text: str) -> None:
        if "title of mission-1;" in text:
            other.set()
        await stuck.act(text)

    async with world(database) as made:
        await many(made, 2)
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "update mana_ai.occurrences set due_at = now() + interval '1 second'"
                " where mission_id = 'mission-1'"
            )
        async with (
            made.runner(doing(act), concurrency=8, heartbeat_s=600) as runner,
            under_way(made, runner, stuck.reached) as tick,
        ):
            await other.wait()
            await stopped(made)
            await tick
        assert (await ends(made))["mission-1"] == ("done", "")


class Deaf(InlineWorkers):
    """Workers that do not end a run when they are told to."""

    async def _work(self, end: Any) -> None:
        channel = await SocketChannel.over(end, ToWorker)
        receive = channel.receive

        async def hearing() -> Any:
            while isinstance(message := await receive(), Cancel):
                pass
            return message

        channel.receive = hearing  # type: ignore[method-assign]
        with suppress(WorkerLost):
            try:
                await work(channel, model=self.model)
            finally:
                await channel.close()


@pytest.mark.parametrize("workers", [InlineWorkers, Deaf])
async def test_time_is_up_for_one_run(
    database: Database, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    """A run that takes too long fails by itself. A worker that does not let go of it is
    ended."""
    slow = Stuck("mission-0")
    loop = asyncio.get_running_loop()
    later = loop.call_later
    limits: list[asyncio.TimerHandle] = []

    def noted(delay: float, *what: Any, **options: Any) -> asyncio.TimerHandle:
        handle = later(delay, *what, **options)
        if delay == 77:
            limits.append(handle)
        return handle

    async with world(database) as made:
        await many(made, 2)
        monkeypatch.setattr(loop, "call_later", noted)
        slowly = workers(doing(slow.act))
        async with (
            made.runner(workers=slowly, concurrency=8, heartbeat_s=600, run_s_max=77) as runner,
            under_way(made, runner, slow.reached) as tick,
        ):
            # However slow the machine is, the other is done when the time is up.
            while (await ends(made))["mission-1"] != ("done", ""):  # noqa: ASYNC110 - in the database
                await asyncio.sleep(0.01)
            for limit in limits:
                if not limit.cancelled():
                    limit._run()
            await tick
            line = (await made.status("mission-0")).occurrences[0]
            assert (line.state, line.last_reason, line.tries) == ("queued", "timeout", 1)
        assert (await ends(made))["mission-1"] == ("done", "")


WHERE: ContextVar[asyncio.Task[None]] = ContextVar("WHERE")


class Fragile(InlineWorkers):
    """Workers that end all at once where a run of theirs has the word of a poison."""

    def __init__(self, poison: str) -> None:
        super().__init__(doing(self._crash))
        self._poison = poison
        self._together = asyncio.Barrier(4)
        self._over = asyncio.Event()

    async def _work(self, end: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        WHERE.set(task)
        await super()._work(end)

    async def _crash(self, text: str) -> None:
        is_first = not self._over.is_set()
        if is_first:
            # All are in the worker when it ends, and none of them has ended by then.
            await self._together.wait()
        if self._poison in text:
            self._over.set()
            WHERE.get().cancel()
        if is_first or self._poison in text:
            await asyncio.Event().wait()


async def test_a_run_that_kills_its_worker(database: Database) -> None:
    """Of runs that lose their worker each runs alone next. Only the one at fault is counted, and
    fails at last; the others are done."""
    async with world(database) as made:
        await many(made, 4)
        workers = Fragile("title of mission-2;")
        async with made.runner(workers=workers, concurrency=8) as runner:
            while "queued" in {state for state, _ in (await ends(made)).values()}:
                await runner.scheduler.tick()
                await asyncio.sleep(0.2)
        found = await ends(made)
        assert found.pop("mission-2") == ("failed", "crash")
        assert set(found.values()) == {("done", "")}
        await each_once(made, 3)
        async with connected(database.owner_url) as owner:
            counted = await owner.fetch(
                "select attempts from mana_ai.occurrences where state = 'done'"
            )
        assert [row["attempts"] for row in counted] == [1, 1, 1]


@pytest.mark.parametrize(("limit", "most", "started"), [("RUNS_MAX", 2, 3), ("AGE_S_MAX", 0.0, 5)])
async def test_a_worker_retires(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: str, most: float, started: int
) -> None:
    """After so many runs, or so long, a worker takes no more, and another one goes on."""
    monkeypatch.setattr(session, limit, most)
    async with world(database) as made:
        await many(made, 5)
        workers = InlineWorkers(doing())
        async with made.runner(workers=workers, concurrency=8) as runner:
            assert (await runner.scheduler.tick()).plans_written_back == 5
        assert workers.started == started
        await each_once(made, 5)


async def test_a_database_that_fails_now_and_then(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one in twenty statements fails, each run ends once all the same, and is written once."""
    chance = random.Random(7)
    run = Transaction._run

    async def failing(self: Transaction, method: str, *args: Any) -> Any:
        if chance.random() < 0.05:
            raise DatabaseUnavailable("08006")
        return await run(self, method, *args)

    async with world(database) as made:
        await many(made, 6)
        async with made.runner(doing(), concurrency=4) as runner:
            monkeypatch.setattr(Transaction, "_run", failing)
            while True:
                with suppress(DatabaseUnavailable):
                    await runner.scheduler.tick()
                monkeypatch.setattr(Transaction, "_run", run)
                if set((await ends(made)).values()) == {("done", "")}:
                    break
                async with connected(database.owner_url) as owner:
                    # What is left of a run that the database cut off is over, and no fault of its own.
                    await owner.execute(
                        "update mana_ai.occurrences set due_at = now(), lease_until = now(),"
                        " attempts = 0 where state in ('queued', 'leased')"
                    )
                monkeypatch.setattr(Transaction, "_run", failing)
        await each_once(made, 6)
