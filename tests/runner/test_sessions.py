"""Which lease, port and set-up are the current ones, and who is blamed when a worker ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mana.hub.runner import lanes as lanes_module
from mana.hub.runner import session as session_module
from mana.hub.runner.dialogue import Granted, Message, Setup, SocketChannel, ToWorker, WorkerLost
from mana.hub.runner.lanes import Lanes
from mana.hub.runner.ledger import Lease
from mana.hub.runner.session import Port, RunLost, Session
from mana.hub.runner.spending import Spending
from mana.models.settings import OFFLINE
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected
from tests.runner.test_lanes import Deaf, Doing, ends, many, stopped, under_way
from tests.runner.world import world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = pytest.mark.anyio


class Pipe:
    """The runner's end of a pipe on which a worker says nothing."""

    def __init__(self) -> None:
        self._broken = asyncio.Event()

    def tell(self, message: Message) -> None:
        return

    async def send(self, message: Message) -> None:
        if self._broken.is_set():
            raise WorkerLost("the other side of the pipe is gone")

    async def receive(self) -> Message:
        await self._broken.wait()
        raise WorkerLost("the other side of the pipe is gone")

    def break_off(self) -> None:
        self._broken.set()


class Silent:
    """A worker that does nothing."""

    def __init__(self) -> None:
        self.channel = Pipe()

    def kill(self) -> None:
        self.channel.break_off()

    async def close(self) -> None:
        return


def session_of(runs: int) -> tuple[Silent, Session, list[Port]]:
    """Return a worker with so many runs in it."""
    worker = Silent()
    session = Session(
        worker,
        Setup("", OFFLINE),
        noted=lambda _port, _note: None,
        ended=lambda _session: None,
    )
    ports = [
        session.enter(
            SimpleNamespace(
                job=SimpleNamespace(run=run),
                key=SimpleNamespace(key_id="key"),
                standing=SimpleNamespace(space_id="space", digest="digest"),
            )
        )
        for run in range(runs)
    ]
    return worker, session, ports


async def blames(ports: list[Port]) -> list[str]:
    """Return how each run hears of the end of its worker."""
    found = []
    for port in ports:
        with pytest.raises(RunLost) as lost:
            await asyncio.wait_for(port.receive(), 10)
        found.append(lost.value.blame)
    return found


@pytest.mark.parametrize(
    ("runs", "end", "expected"),
    [
        (1, lambda worker, _ports: worker.kill(), ["at-fault"]),
        (2, lambda worker, _ports: worker.kill(), ["suspect", "suspect"]),
        (2, lambda _worker, ports: ports[1].blame(), ["innocent", "at-fault"]),
    ],
)
async def test_whom_a_lost_worker_is_blamed_on(
    runs: int, end: Callable[[Silent, list[Port]], None], expected: list[str]
) -> None:
    """A run alone in a worker that ends is at fault, several are suspects, and the one for which it
    was ended is at fault alone."""
    worker, _, ports = session_of(runs)
    end(worker, ports)
    assert await blames(ports) == expected


async def test_the_first_blame_stands() -> None:
    """Who is blamed first stays it, and nobody is blamed for a worker that had ended before."""
    _, _, ports = session_of(2)
    ports[0].blame()
    ports[1].blame()
    assert await blames(ports) == ["at-fault", "innocent"]
    worker, _, ports = session_of(2)
    worker.kill()
    assert await blames(ports) == ["suspect", "suspect"]
    ports[0].blame()
    with pytest.raises(RunLost) as lost:
        await ports[1].answer(Granted(1, "reservation"))
    assert lost.value.blame == "suspect"


def lease(fence: int) -> Lease:
    return Lease("occurrence", "space", "mission", "account", "manual", 0, fence, 1, 0, False)  # type: ignore[arg-type]


def test_a_lease_that_was_given_anew_is_kept() -> None:
    """The end of a run lets its own lease go, and not the one that the same run has by now."""
    lanes = Lanes(SimpleNamespace())  # type: ignore[arg-type]
    first, second = lease(1), lease(2)
    lanes.hold(first)
    lanes.hold(second)
    lanes.let_go(first)
    assert lanes.leases == {"occurrence": second}
    lanes.let_go(second)
    assert lanes.leases == {}


def test_workers_are_told_what_holds_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers are told first is read anew when it is a second old, and not for each of them."""
    now_s, keys = [100.0], iter(["first", "second", "third"])
    monkeypatch.setattr(lanes_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    setting = SimpleNamespace(hub_key=lambda: next(keys), models=OFFLINE)
    crew: Any = SimpleNamespace(setting=setting, tracing=SimpleNamespace(is_on=False))
    lanes = Lanes(crew)
    found = []
    for later_s in (0.0, 0.9, 0.1, 0.9):
        now_s[0] += later_s
        found.append(lanes.setup().hub_key)
    assert found == ["first", "first", "second", "second"]


@pytest.mark.postgres
async def test_a_stop_reaches_a_run_that_was_leased_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the same run is leased again before the one of then has ended, a stop still finds the
    one of now."""
    monkeypatch.setattr(session_module, "GRACE_S", 60.0)
    first, second = asyncio.Event(), asyncio.Event()
    left, cut_off = asyncio.Event(), asyncio.Event()

    async def act(_text: str) -> None:
        is_first = not first.is_set()
        (first if is_first else second).set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if is_first:
                await second.wait()
                left.set()
            else:
                cut_off.set()
            raise

    async with world(database) as made:
        await many(made, 1)
        async with (
            made.runner(lambda: Doing(act), concurrency=8, heartbeat_s=600) as runner,
            under_way(made, runner, first) as tick,
        ):
            async with connected(database.owner_url) as owner:
                await owner.execute("update mana_ai.occurrences set lease_until = now()")
            runner.scheduler.wake()
            await asyncio.wait_for(left.wait(), 20)
            while _users(runner) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await stopped(made)
            await asyncio.wait_for(cut_off.wait(), 20)
            await asyncio.wait_for(tick, 20)
        assert await ends(made) == {"mission-0": ("failed", "stopped")}


def _users(runner: Any) -> int:
    return sum(lane.users for lane in runner.scheduler._lanes._lanes.values())


class Hearing(Deaf):
    """Workers that do not end when they are told to, and note what they hear."""

    def __init__(self, heard: list[Message]) -> None:
        super().__init__(lambda: Metered())
        self._heard = heard

    async def _work(self, end: Any) -> None:
        receive = SocketChannel.receive
        heard = self._heard

        async def noting(channel: SocketChannel) -> Message:
            message = await receive(channel)
            if channel._decoder.type is ToWorker:
                heard.append(message)
            return message

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SocketChannel, "receive", noting)
            await super()._work(end)


class Metered(ScriptedModel):
    """A model whose calls are counted."""

    endpoint = "rules:offline"


@pytest.mark.postgres
async def test_nothing_is_answered_after_a_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped while its reservation is made is not told that it may call."""
    spend = Spending.spend
    heard: list[Message] = []
    async with world(database) as made:
        await many(made, 1)
        async with made.runner(workers=Hearing(heard)) as runner:

            async def stopping(self: Spending, asked: Any) -> Any:
                found = await spend(self, asked)
                for port in runner.scheduler._lanes.ports.values():
                    port.interrupt("stopped")
                return found

            monkeypatch.setattr(Spending, "spend", stopping)
            await asyncio.wait_for(runner.scheduler.tick(), 30)
    assert heard
    assert not [one for one in heard if isinstance(one, Granted)]
