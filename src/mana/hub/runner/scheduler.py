"""Passes of the runner: lease what is due, hand it to the lanes, keep the leases, and drain.

One pass takes everything that is due; slow runs do not hold back others, and a second pass is not
started beside it. Every transaction that writes checks the lease's fence first, so a runner that
was thought dead changes nothing when it comes back. Nothing here depends on this machine's clock:
moments are the database's, and what is waited for is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

import structlog

from mana.domain.clock import iso_ms
from mana.domain.errors import ManaError
from mana.hub.runner import endings
from mana.hub.runner.admission import Admission
from mana.hub.runner.auditing import Auditing
from mana.hub.runner.batches import renew
from mana.hub.runner.finishing import Finishing
from mana.hub.runner.lanes import Crew, Lanes
from mana.hub.runner.ledger import Lease
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import Prices
from mana.hub.runner.progress import Progress
from mana.hub.runner.queue import End
from mana.hub.runner.shared import Append, Setting, TickStats
from mana.hub.runner.spending import Spending
from mana.hub.runner.store import EndedGrants, RunnerStore
from mana.hub.runner.tracing import Tracing
from mana.hub.runner.workers import Workers

_log: Final = structlog.get_logger("mana.runner")
SWEEP_S: Final = 1.0
"""How often a pass looks at what ended by time: grants, and leases that nobody renewed."""
BURIED_MAX: Final = 20
HELD_S: Final = 0.25
"""How soon what is due and waits for a limit is looked at again, where no run here is under way."""
HELD_S_BESIDE: Final = 1.0
"""The same beside runs: each that ends makes room, and is looked after at once."""
SOON_S: Final = 0.05
"""No look comes sooner after another, so that what cannot run now is no busy loop."""
AGAIN_S: Final = 1.0
"""How soon a pass comes after one that broke down."""
AHEAD_S_MAX: Final = 86_400.0


class Alarm:
    """Sets an event at the soonest of the moments that it was given."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> None:
        """Set the event in so many seconds, if nothing does so sooner."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + min(max(seconds, SOON_S), AHEAD_S_MAX)
        if self._timer is None or at_s < self._timer.when():
            self.clear()
            self._timer = loop.call_at(at_s, self._sound)

    def clear(self) -> None:
        """Forget the moments that were given."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sound(self) -> None:
        self._timer = None
        self._event.set()


class Scheduler:
    """Passes over what is due. `wake` makes a running pass look again."""

    def __init__(
        self,
        store: RunnerStore,
        workers: Workers,
        append: Append,
        metrics: Metrics,
        setting: Setting,
        tracing: Tracing,
    ) -> None:
        self._store = store
        self._tracing = tracing
        self._metrics = metrics
        self._setting = setting
        self._progress = Progress(store)
        prices = Prices(setting.models)
        self._lanes = Lanes(
            Crew(
                store=store,
                workers=workers,
                setting=setting,
                metrics=metrics,
                admission=Admission(store, setting, metrics, prices),
                auditing=Auditing(store, setting, metrics),
                spending=Spending(store, metrics),
                finishing=Finishing(store, append, setting, metrics, self._reach),
                prices=prices,
                progress=self._progress,
                tracing=tracing,
                reach=self._reach,
            )
        )
        self._awake = asyncio.Event()
        self._alarm = Alarm(self._awake)
        self._has_more = False
        self._stops = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_running = False
        self._is_draining = False
        self._swept_s = -SWEEP_S

    @property
    def awake(self) -> asyncio.Event:
        """Return what is set when something may be due."""
        return self._awake

    @property
    def is_draining(self) -> bool:
        """Say whether nothing new is taken any more."""
        return self._is_draining

    def wake(self, payload: str = "") -> None:
        """Say that something may be due; `payload`: in how many milliseconds, if not yet."""
        if payload.isascii() and payload.isdecimal() and payload.strip("0"):
            self._alarm.within(float(payload) / 1_000)
        else:
            self._awake.set()

    def broke_down(self) -> None:
        """Have the pass after one that failed come in a moment, and not at once."""
        self._awake.clear()
        self._alarm.within(AGAIN_S)

    def stop_soon(self, _payload: str = "") -> None:
        """Say that somebody may have stopped what runs."""
        self._stops.set()

    async def tick(self) -> TickStats:
        """Work on all that is due, until nothing is; one pass at a time."""
        ended = await self._store.end_grants()
        stats = TickStats(iso_ms(ended.now_ms))
        if self._is_running or self._is_draining:
            stats.errors.append("overlap-skipped")
            return stats
        self._is_running = True
        self._idle.clear()
        self._metrics.ticks.inc()
        began = time.monotonic()
        try:
            # To draw a key takes a moment, and is done twice a month.
            await asyncio.to_thread(self._setting.keys.turn)
            with self._tracing.span("tick") as span:
                await self._look(ended, stats)
                await self._pass(stats)
                span.note(missions=stats.due_mission_count)
        finally:
            self._is_running = False
            self._idle.set()
            self._metrics.tick_seconds.observe(time.monotonic() - began)
        return stats

    async def drain(self, *, seconds: float) -> None:
        """Take nothing new; let runs end within a time, then give their leases back."""
        self._is_draining = True
        self.wake()
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        for lease in list(self._lanes.leases.values()):
            with contextlib.suppress(ManaError):
                async with self._store.work(lease.account_id) as ledger:
                    await ledger.put_back(lease, delay_ms=0, counted=False)
        await self._lanes.close()

    async def _pass(self, stats: TickStats) -> None:
        running: set[asyncio.Task[None]] = set()
        beside = [
            asyncio.create_task(work)
            for work in (self._beat(), self._progress.write(), self._hear())
        ]
        try:
            while True:
                is_told = self._awake.is_set()
                self._awake.clear()
                if is_told or self._has_more or not running:
                    for lease in await self._found(running, stats):
                        stats.due_mission_count += 1
                        running.add(asyncio.create_task(self._lanes.work(lease, stats)))
                if not running:
                    return
                running -= await self._something(running)
        finally:
            await _ended([*running, *beside])

    async def _found(self, running: set[asyncio.Task[None]], stats: TickStats) -> list[Lease]:
        """Return what is taken now; a look that fails is made again, and costs no run its life."""
        try:
            return await self._leased(len(running), stats)
        except Exception as error:
            # What was told, and the moment that was set, went with this look.
            self._alarm.within(AGAIN_S)
            if not running:
                raise
            why = error.code if isinstance(error, ManaError) else type(error).__name__
            _log.warning("look_failed", why=why)
            return []

    async def _leased(self, running: int, stats: TickStats) -> list[Lease]:
        """Return what is taken now beside so many runs, after what ended by time was looked at.

        Where all that is due was taken, nothing is asked again before a notice, the moment at which
        something else is due, or the next heartbeat; else as soon as there is room.
        """
        free = self._setting.concurrency - running
        self._has_more = True
        if self._is_draining:
            return []
        if time.monotonic() - self._swept_s >= SWEEP_S:
            await self._look(await self._store.end_grants(), stats)
        if free <= 0:
            return []
        # What is queued from here on tells of itself.
        self._alarm.clear()
        taken = await self._store.lease(self._setting.name, free, lease_s=self._setting.lease_s)
        found, wait_ms = taken.leases, taken.wait_ms
        self._has_more = wait_ms == 0
        if wait_ms:
            self._alarm.within(wait_ms / 1_000)
        elif self._has_more and len(found) < free:
            # It waits for a limit, which what other runners work on may fill.
            self._alarm.within(HELD_S_BESIDE if running or found else HELD_S)
        return found

    async def _look(self, ended: EndedGrants, stats: TickStats) -> None:
        """Take in what ended by time: grants, and leases that nobody renewed."""
        self._swept_s = time.monotonic()
        await self._setting.memory.saw_end(ended.ends_ms)
        await self._bury(stats)

    async def _something(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Wait until a run has ended or something may be due; return what ended."""
        waker = asyncio.create_task(self._awake.wait())
        try:
            done, _ = await asyncio.wait({*running, waker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waker.cancel()
        return {task for task in done if task is not waker}  # type: ignore[misc]

    async def _bury(self, stats: TickStats) -> None:
        """Give up what was leased as often as allowed and never ended."""
        for lease in await self._store.crashed(BURIED_MAX):
            reason = "stopped" if lease.stop else "crash"
            async with self._store.work(lease.account_id) as ledger:
                (outcome,) = await endings.end_all(ledger, [End(lease, "failed", reason)])
            endings.count(self._metrics, outcome)
            if outcome.took:
                stats.fail(lease, reason)

    async def _beat(self) -> None:
        """Renew what is held, all at once; a run whose lease is another's by now ends."""
        while True:
            await asyncio.sleep(self._setting.heartbeat_s)
            leases = list(self._lanes.leases.values())
            if leases:
                with contextlib.suppress(ManaError):
                    async with self._store.across() as tx:
                        held = await renew(tx, leases, lease_s=self._setting.lease_s)
                    for lease in leases:
                        port = self._lanes.ports.get(lease.occurrence_id)
                        if lease.occurrence_id not in held and port is not None:
                            port.interrupt("lost")
                # However long runs take, what ends by time beside them is looked at.
                self.wake()

    async def _hear(self) -> None:
        """End what somebody stopped, whenever a notice says that somebody did."""
        while True:
            await self._stops.wait()
            self._stops.clear()
            with contextlib.suppress(ManaError):
                for lease in await self._store.stopping(self._setting.name):
                    port = self._lanes.ports.get(lease.occurrence_id)
                    if port is not None:
                        port.interrupt("stopped")

    def _reach(self, point: str) -> None:
        """End this process and its workers where a test wants it."""
        if self._setting.fail_point == point:
            self._lanes.kill()
            self._setting.fail()


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
