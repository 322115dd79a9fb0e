"""One lane for each account: its runs side by side, the worker that serves them, and their batches.

No worker ever serves two lanes. A run is a task that asks the lane for admission, for its readings
and tokens, and for its end; what runs of a lane ask at the same moment is done together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mana.domain.errors import ManaError, Unavailable
from mana.domain.ids import AccountId, OccurrenceId
from mana.domain.occurrences import LEASES_MAX
from mana.hub.runner import endings
from mana.hub.runner.admission import Admission, Admitted
from mana.hub.runner.auditing import AskedReading, Auditing, is_reading
from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditDone,
    Finished,
    Granted,
    PhaseNote,
    Refused,
    ReserveAsk,
    SettleAsk,
    Setup,
    Stopped,
)
from mana.hub.runner.endings import Outcome
from mana.hub.runner.finishing import Ending, Finishing, are_figures, is_own
from mana.hub.runner.gathering import Gatherer, Turn
from mana.hub.runner.ledger import Lease
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import Prices
from mana.hub.runner.progress import Progress
from mana.hub.runner.queue import End
from mana.hub.runner.session import Port, RunLost, Session
from mana.hub.runner.shared import Setting, TickStats, log
from mana.hub.runner.spending import Reserve, Reserved, Settle, Spending
from mana.hub.runner.store import RunnerStore
from mana.hub.runner.tracing import Span, Tracing
from mana.hub.runner.workers import Workers
from mana.planning.budget import is_sane
from mana.planning.ports import FAILURE_KINDS

CRASH_DELAY_MS: Final = 1_000
SUSPECTS_MAX: Final = 1_024
BATCHES_MAX: Final = 4
"""How many batches of all lanes are in the database at one time."""
_SETUP_S: Final = 1.0
"""How long what workers are told is taken for the newest; a file is read for it."""

SECONDS_MAX: Final = 86_400.0
"""Longer than any run, and so than any of its calls."""


@dataclass(frozen=True, slots=True)
class Crew:
    """What every lane works with. `reach` is told each named place."""

    store: RunnerStore
    workers: Workers
    setting: Setting
    metrics: Metrics
    admission: Admission
    auditing: Auditing
    spending: Spending
    finishing: Finishing
    prices: Prices
    progress: Progress
    tracing: Tracing
    reach: Callable[[str], None]


class Lanes:
    """The lanes of a runner, by account; one that has nothing to do is dropped."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._lanes: dict[AccountId, Lane] = {}
        self._setup: Setup | None = None
        self._setup_s = 0.0
        self.room: Final = asyncio.Semaphore(BATCHES_MAX)
        self.leases: Final[dict[OccurrenceId, Lease]] = {}
        self.ports: Final[dict[OccurrenceId, Port]] = {}
        self.suspects: Final[dict[OccurrenceId, None]] = {}

    async def work(self, lease: Lease, stats: TickStats) -> None:
        """Work on one leased occurrence, whatever becomes of it; raise nothing."""
        lane = self._lanes.get(lease.account_id)
        if lane is None:
            lane = self._lanes[lease.account_id] = Lane(self, self._crew)
        lane.users += 1
        try:
            await lane.work(lease, stats)
        finally:
            lane.users -= 1
            self.drop(lease.account_id)

    def drop(self, account: AccountId) -> None:
        """Drop a lane that nothing is in."""
        lane = self._lanes.get(account)
        if lane is not None and not lane.users and not lane.sessions:
            del self._lanes[account]

    def setup(self) -> Setup:
        """Return what every worker is told first."""
        now_s = time.monotonic()
        if self._setup is None or now_s - self._setup_s >= _SETUP_S:
            self._setup = Setup(
                self._crew.setting.hub_key(),
                self._crew.setting.models,
                traced=self._crew.tracing.is_on,
            )
            self._setup_s = now_s
        return self._setup

    def hold(self, lease: Lease) -> None:
        """Note what is worked on. Whoever slept past its lease may get the same run once more.

        The run of then is lost: it is told to end, and what it still does changes nothing.
        """
        port = self.ports.get(lease.occurrence_id)
        if port is not None:
            port.interrupt("lost")
        self.leases[lease.occurrence_id] = lease

    def let_go(self, lease: Lease) -> None:
        """Forget a lease, unless the same occurrence was leased anew meanwhile."""
        if self.leases.get(lease.occurrence_id) is lease:
            del self.leases[lease.occurrence_id]

    def suspect(self, occurrence: OccurrenceId) -> None:
        """Let an occurrence run alone from now on, until it ends."""
        while len(self.suspects) >= SUSPECTS_MAX:
            del self.suspects[next(iter(self.suspects))]
        self.suspects[occurrence] = None

    def kill(self) -> None:
        """End all workers at once."""
        for lane in self._lanes.values():
            for session in lane.sessions:
                session.kill()

    async def close(self) -> None:
        """End all workers and wait for them."""
        sessions = [session for lane in self._lanes.values() for session in lane.sessions]
        await asyncio.gather(*(session.close() for session in sessions))


class Lane:
    """The runs of one account."""

    def __init__(self, lanes: Lanes, crew: Crew) -> None:
        self._lanes = lanes
        self._crew = crew
        turn = Turn(lanes.room)
        self._admissions = Gatherer[Lease, Admitted | None](crew.admission.admit, turn=turn)
        self._readings = Gatherer[AskedReading, AuditDone | Refused | None](
            crew.auditing.note, turn=turn
        )
        self._tokens = Gatherer[Reserve | Settle, Reserved | Granted | Refused | None](
            crew.spending.spend, turn=turn
        )
        self._ends = Gatherer[Ending, Outcome](crew.finishing.finish, turn=turn)
        self._starting = asyncio.Lock()
        self._session: Session | None = None
        self._spans: Final[dict[Port, Span]] = {}
        self.sessions: Final[set[Session]] = set()
        self.users = 0

    async def work(self, lease: Lease, stats: TickStats) -> None:
        """Work on one leased occurrence; a defect in it never ends anything else."""
        crew, lanes = self._crew, self._lanes
        lanes.hold(lease)
        try:
            crew.reach("after_lease")
            admitted = await self._admissions.ask(lease)
            if admitted is not None:
                lanes.let_go(lease)
                lease = admitted.lease
                lanes.hold(lease)
                with crew.tracing.span("tick.planMission") as span:
                    outcome = await self._run(admitted, stats, span)
                self._count(lease, outcome, stats)
        except RunLost as lost:
            if lost.blame == "at-fault":
                stats.fail(lease, lost.code)
                crew.metrics.mission_errors.inc()
                log.error("run_failed", mission=lease.mission_id, code=lost.code, why=lost.message)
            elif lost.blame == "suspect":
                lanes.suspect(lease.occurrence_id)
            await self._back(lease, counted=lost.blame == "at-fault")
        except ManaError as error:
            stats.fail(lease, error.code)
            crew.metrics.mission_errors.inc()
            log.error("run_failed", mission=lease.mission_id, code=error.code, why=error.message)
            await self._back(lease, counted=not isinstance(error, Unavailable), delayed=True)
        except Exception as error:
            stats.fail(lease, "INTERNAL")
            crew.metrics.mission_errors.inc()
            log.error("run_failed", mission=lease.mission_id, kind=type(error).__name__)
            await self._back(lease, counted=True)
        finally:
            lanes.let_go(lease)

    async def _back(self, lease: Lease, *, counted: bool, delayed: bool = False) -> None:
        """Queue a run that broke down again; after the last counted attempt it has failed."""
        delay_ms = CRASH_DELAY_MS if counted or delayed else 0
        with contextlib.suppress(ManaError):
            async with self._crew.store.work(lease.account_id) as ledger:
                if counted and lease.attempts >= LEASES_MAX:
                    (outcome,) = await endings.end_all(ledger, [End(lease, "failed", "crash")])
                else:
                    await ledger.put_back(lease, delay_ms=delay_ms, counted=counted)
                    return
            endings.count(self._crew.metrics, outcome)

    async def _run(self, admitted: Admitted, stats: TickStats, span: Span) -> Outcome | None:
        """Have a worker work on a run; None: the lease is another's by now."""
        crew, lanes, occurrence = self._crew, self._lanes, admitted.lease.occurrence_id
        began_s = time.monotonic()
        span.note(kind=admitted.lease.kind, attempt=admitted.lease.attempts)
        port = lanes.ports[occurrence] = await self._seat(admitted)
        self._spans[port] = span
        loop = asyncio.get_running_loop()
        limit = loop.call_later(crew.setting.run_s_max, port.interrupt, "timeout")
        try:
            said = await self._talk(port)
            limit.cancel()
            if said is None:
                log.warning("lease_lost", mission=admitted.lease.mission_id)
                return None
            if isinstance(said, Finished):
                stats.plans_produced += 1
                span.note(
                    rounds=said.counts.rounds, tool_calls=sum(said.counts.tool_calls.values())
                )
            outcome = await self._ends.ask(
                Ending(admitted, said, port.provider, tuple(port.settled))
            )
            if outcome.took:
                port.settled.clear()
            span.note(state=outcome.state, reason=outcome.reason)
            return outcome
        finally:
            limit.cancel()
            port.close()
            del self._spans[port]
            if lanes.ports.get(occurrence) is port:
                del lanes.ports[occurrence]
                crew.progress.forget(occurrence)
            crew.metrics.run_seconds.observe(time.monotonic() - began_s)
            await self._settle(port)

    async def _settle(self, port: Port) -> None:
        """Settle the calls of a run that came to no end here and reserved nothing after them."""
        with contextlib.suppress(ManaError):
            for one in port.settled:
                await self._tokens.ask(one)

    async def _seat(self, admitted: Admitted) -> Port:
        """Return a place in the lane's worker, or in one of its own for a suspect."""
        if admitted.lease.occurrence_id in self._lanes.suspects:
            return (await self._start()).enter(admitted)
        async with self._starting:
            session = self._session
            if session is None or not session.is_open or session.setup != self._lanes.setup():
                session = self._session = await self._start()
            return session.enter(admitted)

    async def _start(self) -> Session:
        worker = await self._crew.workers.start()
        session = Session(worker, self._lanes.setup(), noted=self._noted, ended=self._ended)
        self.sessions.add(session)
        return session

    def _ended(self, session: Session) -> None:
        self.sessions.discard(session)
        if self._session is session:
            self._session = None

    def _noted(self, port: Port, note: PhaseNote) -> None:
        if not self._crew.progress.note(port.admitted.lease, note):
            port.blame()
        else:
            if port in self._spans:
                self._spans[port].reached(note.name)
            self._crew.reach(note.name)

    async def _talk(self, port: Port) -> Finished | Stopped | None:
        """Answer a run until it has come to something; None: the lease is another's by now."""
        try:
            while True:
                message = await port.receive()
                match message:
                    case AuditAsk():
                        await self._answer(port, await self._audited(port, message))
                        if message.checked:
                            self._crew.reach("after_audit")
                    case ReserveAsk() | SettleAsk():
                        await self._answer(port, await self._spent(port, message))
                    case Finished() if port.interruption != "lost":
                        if not is_own(port.admitted, message):
                            raise _misbehaved(port, "something that is not its run's")
                        if not are_figures(message.counts):
                            raise _misbehaved(port, "figures that no run has")
                        return message
                    case Stopped():
                        return _stopped(port, message)
                    case _:
                        raise _misbehaved(port, "something else")
        except RunLost:
            if port.interruption is None:
                raise
            # It was told to end and did not, so its worker was ended.
            return _stopped(port, Stopped(port.run, "failed", "internal"))

    async def _audited(self, port: Port, ask: AuditAsk) -> AuditDone | Refused | None:
        if not is_reading(port.admitted, ask):
            raise _misbehaved(port, "a reading in words that are not documented")
        return await self._readings.ask(AskedReading(port.admitted, ask))

    async def _spent(self, port: Port, ask: ReserveAsk | SettleAsk) -> Granted | Refused | None:
        if isinstance(ask, SettleAsk):
            granted = port.granted.pop(ask.reservation, None)
            if granted is None or not 0 <= ask.seconds <= SECONDS_MAX:
                raise _misbehaved(port, "a reservation that is not its run's, or no time")
            released = ask.released and port.may_release()
            port.settled.append(Settle(port.admitted, ask, granted, released))
            return Granted(port.run, ask.reservation)
        call = self._crew.prices.call_of(ask, port.admitted.header.endpoints)
        if call is None or not is_sane(ask.prompt_tokens, ask.completion_tokens_max):
            raise _misbehaved(port, "what cannot be a call of its run")
        port.provider = self._crew.prices.provider_of(call.endpoint)
        settled = tuple(port.settled)
        answer = await self._tokens.ask(Reserve(port.admitted, ask, call, settled))
        if answer is not None:
            port.settled.clear()
        if isinstance(answer, Reserved):
            port.granted[answer.granted.reservation] = answer.granted
            return answer.answer
        return answer

    async def _answer(self, port: Port, answer: AuditDone | Granted | Refused | None) -> None:
        if answer is None:
            port.interrupt("lost")
        elif port.interruption is None:
            await port.answer(answer)

    def _count(self, lease: Lease, outcome: Outcome | None, stats: TickStats) -> None:
        """Note in the pass's figures what a run came to."""
        if outcome is None or not outcome.took:
            return
        self._lanes.suspects.pop(lease.occurrence_id, None)
        if outcome.state == "done":
            stats.plans_written_back += 1
        elif outcome.state == "failed":
            stats.fail(lease, outcome.reason or "internal")
            stats.parse_failures += outcome.reason in FAILURE_KINDS


def _misbehaved(port: Port, said: str) -> RunLost:
    """End a worker that says what none says, and return the error of its run."""
    port.blame()
    return RunLost("at-fault", f"the worker said {said}")


def _stopped(port: Port, said: Stopped) -> Stopped | None:
    """Return how a run ends that was stopped, by itself or from outside."""
    if port.interruption is None:
        return said
    if port.interruption == "lost":
        return None
    return Stopped(port.run, "failed", port.interruption)
