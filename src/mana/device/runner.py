"""Missions that run on this device, under the same rules as on the hub.

Due by their clock or by changes of their inputs, several at once, tried again by the class of their
failure, held after five failures in a row. A run stands in the ledger before it begins and is looked
after while it goes on: once the mission, its agent or the person's word does not allow it any more,
the call of the model is cut off and nothing is written. Normative: docs/protocol/engine.md, 1 and 2.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, TypeVar

from mana.device.budgets import Budgets, HubNeeded, Purse, RunBudget
from mana.device.caps import caps_here
from mana.device.due import arranged_ms, change_due_ms, changed_ms, due_moments, next_ms
from mana.device.errors import Locked
from mana.device.executing import Executing
from mana.device.hub_news import HubNews
from mana.device.inbox import Inbox
from mana.device.models import candidates
from mana.device.opened import Opened
from mana.device.run_ledger import Begun, MissionMarks, RunLedger, RunLine
from mana.device.run_ledger import view as run_view
from mana.device.runs import Runs
from mana.device.views import RunView
from mana.device.words import NEEDS_HUB
from mana.device.work import Work
from mana.domain.agents import AGENTS, Agent
from mana.domain.encoding import length_prefixed, sha256
from mana.domain.errors import Conflict, Invalid, ManaError, NotFound
from mana.domain.missions import MISSIONS, Mission, mission_from_view
from mana.domain.money import FREE
from mana.domain.occurrences import LEASES_MAX, RETRIES_MS
from mana.domain.records import View
from mana.models.choose import ModelUnknown
from mana.planning.budget import budget_reason
from mana.planning.guardrails import GuardrailBlocked, InputTooLarge
from mana.planning.loop import Plan
from mana.planning.ports import (
    BudgetExceeded,
    Candidate,
    ModelFailed,
    Moment,
    PriceUnknown,
)
from mana.protocol.errors import MissionErrored

TIMEOUT_S: Final = 180.0
TICK_S: Final = 15.0
EXPIRE_S: Final = 60.0
LOOK_S: Final = 1.0
"""How often a run asks whether it may go on, beside each time that something moved."""
HUB_RETRY_MS: Final = 60_000
_T = TypeVar("_T")
_log: Final = logging.getLogger("mana.device.runner")


class MissionBusy(Conflict):
    """The mission runs here already."""

    code: ClassVar[str] = "MISSION_BUSY"
    advice: ClassVar[str] = "Wait until it has finished, or stop it."


class NotRunHere(Conflict):
    """The mission runs in another place."""

    code: ClassVar[str] = "MISSION_ELSEWHERE"
    advice: ClassVar[str] = "Run it on the device that it belongs to, or move it."


@dataclass(frozen=True, slots=True)
class _Start:
    """A run that may begin: its mission as it is now, its agent, the models and what pays them."""

    mission: Mission
    view: View
    agent: Agent
    models: tuple[Candidate, ...]
    purse: Purse
    line: RunLine


@dataclass(frozen=True, slots=True)
class _End:
    """How a run came to its end. `wait_ms`: how long an endpoint asked to be left alone."""

    state: str
    reason: str = ""
    iteration_id: str | None = None
    wait_ms: int = 0


class Runner:
    """What this device does by itself in one space of an account."""

    def __init__(
        self,
        opened: Opened,
        runs: Runs,
        executing: Executing,
        inbox: Inbox,
        ledger: RunLedger,
        budgets: Budgets,
        news: HubNews,
        work: Work,
        *,
        say: Callable[[], None],
        wake: Callable[[], None],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._opened = opened
        self._runs = runs
        self._executing = executing
        self._inbox = inbox
        self._ledger = ledger
        self._budgets = budgets
        self._news = news
        self._work = work
        self._say = say
        self._wake = wake
        self._timeout_s = timeout_s
        self._running: dict[str, asyncio.Task[RunLine]] = {}
        self._stopped: set[asyncio.Task[RunLine]] = set()
        self._look = asyncio.Event()
        self._beginning = asyncio.Lock()

    async def work(self, *, expire: bool) -> None:
        """Work once on what is due. A failure of one thing stops nothing else.

        Runs go on after this returns; each wakes the device when it has ended.
        """
        if await self._work.stopped_ms() is None:
            await self._guarded(self.run_planned)
            await self._guarded(self.begin_due)
        if expire:
            await self._guarded(self._inbox.expire)

    async def close(self) -> None:
        """Stop every run and wait until it has stopped; what was due is run later."""
        tasks = builtins.list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def heard(self) -> None:
        """Let each run ask at once whether it may go on, because something has moved."""
        looked, self._look = self._look, asyncio.Event()
        looked.set()

    async def run_due(self) -> builtins.list[RunLine]:
        """Run what has come due of the missions of this device, and return how each ended."""
        return builtins.list(await asyncio.gather(*await self.begin_due()))

    async def begin_due(self) -> builtins.list[asyncio.Task[RunLine]]:
        """Begin what has come due, as many missions at once as their agents may."""
        async with self._beginning:
            await self._work.require_going()
            await self.recover()
            lines = [line for line in await self._ledger.lines() if line.state == "queued"]
            queued = {line.mission_id: line for line in lines}
            marks = await self._ledger.all_marks()
            begun: builtins.list[asyncio.Task[RunLine]] = []
            for view in await self._opened.book.views(MISSIONS.name, include_deleted=True):
                waiting = queued.get(view.id)
                mission = None if view.deleted else await self._obeyed(view)
                if mission is None or not self._is_placed_here(mission, view):
                    await self._end_queued(waiting, "mission-not-active")
                    continue
                if mission.state != "active":
                    await self._end_queued(waiting, "mission-not-active")
                    continue
                known = marks.get(mission.id, MissionMarks())
                if known.is_errored or mission.id in self._running:
                    continue
                line = await self._next(mission, view, waiting, known)
                if line is not None:
                    task = await self._launch(mission, view, line)
                    begun += [task] if isinstance(task, asyncio.Task) else []
            return begun

    async def run_now(self, mission_id: str) -> RunView:
        """Run a mission of this device now and return how it ended.

        Raises NotRunHere, MissionBusy, MissionErrored, WorkStopped, or Conflict where the mission
        is not active.
        """
        await self._work.require_going()
        view = await self._opened.mission_view(mission_id)
        mission = await self._obeyed(view)
        if mission is None:
            raise Invalid("the mission cannot be verified or read on this device")
        if not self._is_placed_here(mission, view):
            raise NotRunHere("the mission runs in another place")
        self._opened.book.require_writable(MISSIONS, mission_id)
        if mission.state != "active":
            raise Conflict(f"the mission is {mission.state}")
        if (await self._ledger.marks(mission_id)).is_errored:
            raise MissionErrored("the mission failed too often in a row")
        line = self._line(mission, self._opened.now_ms(), "manual")
        begun = await self._launch(mission, view, line)
        if begun == "busy":
            raise MissionBusy("the mission runs already")
        if isinstance(begun, asyncio.Task):
            # Whoever asked may go away; the run goes on.
            ended = await asyncio.shield(begun)
        elif isinstance(begun, RunLine):
            ended = begun
        else:
            ended = await self._refused(line, "concurrency")
        return run_view(ended, currency=await self._news.currency())

    async def stop(self, mission_id: str) -> None:
        """Stop a run, also one of another process of this device; it has changed nothing."""
        await self._ledger.ask_stop(mission_id)
        task = self._running.get(mission_id)
        if task is not None:
            self._stopped.add(task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def resume(self, mission_id: str) -> None:
        """Let a mission run again that failed too often in a row."""
        await self._ledger.resume(mission_id)
        self._wake()

    async def recover(self) -> None:
        """Deal with what a crash left behind: it is run again, or written down."""
        for line in await self._ledger.abandoned():
            found = await self._runs.find(line.mission_id, line.scheduled_ms)
            ended = replace(line.unspent, leases=line.leases + 1)
            if found is not None:
                ended = replace(ended, state="done", reason="", iteration_id=found)
            elif line.stop:
                ended = replace(ended, state="failed", reason="stopped")
            elif line.kind == "manual" or ended.leases >= LEASES_MAX:
                ended = replace(ended, state="failed", reason="crash")
            else:
                ended = replace(ended, state="queued", due_ms=self._opened.now_ms())
            await self._ledger.end(replace(ended, ended_ms=self._opened.now_ms()))

    async def run_planned(self) -> builtins.list[str]:
        """Claim and execute steps that policy lets run by themselves; return those done."""
        await self._work.require_going()
        return await self._executing.run_planned()

    async def keep_slices(self) -> None:
        """Hold tokens for what is due soon, so that it can run without the hub."""
        for view in await self._opened.book.views(MISSIONS.name):
            mission = await self._obeyed(view)
            if mission is None or mission.state != "active":
                continue
            agent = await self._agent(mission.agent_id)
            if agent is None or not self._is_placed_here(mission, view):
                continue
            with contextlib.suppress(ModelUnknown):
                first = (await candidates(self._opened, agent))[0]
                if first.model.metered:
                    now_ms = self._opened.now_ms()
                    on_change = mission.cadence.kind == "onChange"
                    due_ms = now_ms if on_change else next_ms(mission, view, now_ms)
                    purse = await self._purse(mission, agent)
                    await self._budgets.keep_slice(purse, first.price, due_ms=due_ms)

    async def _purse(self, mission: Mission, agent: Agent) -> Purse:
        """Return what a run here is paid from, within what this device's person agreed to."""
        agreed = await caps_here(self._opened, mission, agent)
        return Purse(self._opened.space, mission, agent, agreed)

    # What is due

    async def _next(
        self, mission: Mission, view: View, waiting: RunLine | None, marks: MissionMarks
    ) -> RunLine | None:
        """Return the run that is due now, if one is; write down what was missed."""
        now_ms = self._opened.now_ms()
        if waiting is not None:
            following = next_ms(mission, view, waiting.scheduled_ms)
            if waiting.kind != "scheduled" or following is None or following > now_ms:
                return waiting if waiting.due_ms <= now_ms else None
            await self._end_queued(waiting, waiting.last_reason or "superseded")
        if mission.cadence.kind == "onChange":
            return await self._next_change(mission, view, marks)
        came = due_moments(mission, view, after_ms=marks.after_ms, now_ms=now_ms)
        if came is None:
            return None
        await self._ledger.missed(
            replace(self._line(mission, at_ms, "scheduled"), state="missed", ended_ms=now_ms)
            for at_ms in came.missed
        )
        if came.runs is None or await self._is_over(mission, came.runs):
            return None
        return self._line(mission, came.runs, "scheduled")

    async def _next_change(
        self, mission: Mission, view: View, marks: MissionMarks
    ) -> RunLine | None:
        """Return the run that changes of inputs by people made due."""
        since_ms = max(marks.after_ms, arranged_ms(view))
        changes = [
            at_ms
            for at_ms in changed_ms(await self._opened.stored(mission.inputs))
            if at_ms > since_ms
        ]
        if not changes:
            return None
        if not marks.first_ms:
            await self._ledger.note_change(mission.id, changes[0])
        lines = await self._ledger.lines()
        of_kind = [one for one in lines if one.mission_id == mission.id and one.kind == "change"]
        due_ms = change_due_ms(
            mission.cadence,
            first_ms=marks.first_ms or changes[0],
            newest_ms=changes[-1],
            last_run_ms=max((one.started_ms for one in of_kind if one.started_ms), default=None),
        )
        if due_ms > self._opened.now_ms() or await self._is_over(mission, changes[-1]):
            return None
        return self._line(mission, changes[-1], "change")

    async def _is_over(self, mission: Mission, scheduled_ms: int) -> bool:
        """Say whether a moment was worked on; if so, the ledger knows from now on."""
        if await self._runs.find(mission.id, scheduled_ms) is not None:
            await self._ledger.passed(mission.id, scheduled_ms)
            return True
        return await self._ledger.find(mission.id, scheduled_ms) is not None

    async def _end_queued(self, line: RunLine | None, reason: str) -> None:
        """End a run that waited for another try, or for the hub."""
        if line is not None:
            state = "failed" if reason in RETRIES_MS else "skipped"
            over = replace(line.unspent, state=state, reason=reason, due_ms=0)
            await self._ledger.end(replace(over, ended_ms=self._opened.now_ms()))

    # One run

    async def _launch(
        self, mission: Mission, view: View, line: RunLine
    ) -> asyncio.Task[RunLine] | RunLine | Begun:
        """Begin a run; return its line where a gate refuses it, or why it is not its turn."""
        agent = await self._agent(mission.agent_id)
        reason = _gate(agent)
        if agent is None or reason:
            return await self._refused(line, reason)
        line = replace(line, agent_id=agent.id)
        try:
            models = tuple(await candidates(self._opened, agent))
        except ModelUnknown:
            return await self._settled(mission, view, line.unspent, _End("failed", "no-model"))
        purse = await self._purse(mission, agent)
        refusal = await self._budgets.refusal(
            purse,
            metered=any(one.model.metered for one in models),
            priced=any(one.price != FREE for one in models),
        )
        if refusal is not None:
            return await self._refused(line, refusal)
        begun = await self._ledger.begin(line, concurrent_max=agent.concurrent_max)
        if begun:
            return begun
        started = replace(line, started_ms=self._opened.now_ms())
        start = _Start(mission, view, agent, models, purse, started)
        task = self._running[mission.id] = asyncio.create_task(self._run(start))
        task.add_done_callback(lambda ended: self._over(mission.id, ended))
        return task

    def _over(self, mission_id: str, task: asyncio.Task[RunLine]) -> None:
        if self._running.get(mission_id) is task:
            del self._running[mission_id]
        self._stopped.discard(task)
        self._say()
        self._wake()

    async def _run(self, start: _Start) -> RunLine:
        """Plan and write one run; return its line, which is kept in every case."""
        budget = self._budgets.of_run(start.purse)
        own = self._running[start.mission.id]
        watching = asyncio.create_task(self._watch(start, own))
        try:
            end = await self._attempt(start, budget)
        except asyncio.CancelledError:
            # A run that ends with the process is made up for at the next start.
            is_stopped = own in self._stopped or start.line.kind == "manual"
            end = _End("failed", "stopped") if is_stopped else _End("queued")
        finally:
            watching.cancel()
        line = await _to_the_end(self._finish(start, budget, end))
        if end.state == "done":
            await self._guarded(self.run_planned)
        return line

    async def _finish(self, start: _Start, budget: RunBudget, end: _End) -> RunLine:
        await budget.end()
        spent = replace(
            start.line,
            tokens=budget.tokens,
            cost=budget.cost,
            unconfirmed_tokens=budget.unconfirmed_tokens,
            unconfirmed_cost=budget.unconfirmed_cost,
        )
        return await self._settled(start.mission, start.view, spent, end)

    async def _attempt(self, start: _Start, budget: RunBudget) -> _End:
        """Return how a run came to its end; raise CancelledError where it was cut off."""
        try:
            async with asyncio.timeout(self._timeout_s):
                plan, read = await self._runs.plan(
                    start.mission,
                    start.agent,
                    start.line.scheduled_ms,
                    models=start.models,
                    budget=budget,
                    progress=_Heard(lambda moment: self._moved(start.line, moment)),
                    tokens_today=(await self._used_today(start.agent)),
                )
            if not await self._may_go_on(start):
                return _End("failed", "stopped")
            return _End("done", iteration_id=await self._write(start, plan, read))
        except TimeoutError:
            return _End("failed", "timeout")
        except HubNeeded:
            return _End("skipped", NEEDS_HUB)
        except BudgetExceeded as error:
            return _End("skipped", budget_reason(error.left, error.cap, error.scope, error.unit))
        except PriceUnknown:
            return _End("skipped", "no-price")
        except InputTooLarge:
            return _End("failed", "inputs")
        except GuardrailBlocked:
            return _End("failed", "guardrail")
        except ModelFailed as error:
            return _End("failed", error.kind, wait_ms=error.retry_after_ms or 0)
        except ManaError as error:
            _log.warning("run failed: %s", error.code)
        except Exception as error:
            # What it said may hold text of a person.
            _log.error("run broke down: %s", type(error).__name__)
        return _End("failed", "internal")

    async def _write(self, start: _Start, plan: Plan, read: Sequence[View]) -> str:
        """Write a run; once that has begun it is not cut off, so the ledger says what is."""
        return await _to_the_end(
            self._runs.commit(
                start.mission,
                start.agent,
                start.line.scheduled_ms,
                plan,
                read,
                started_ms=start.line.started_ms,
            )
        )

    async def _settled(self, mission: Mission, view: View, line: RunLine, end: _End) -> RunLine:
        """Enter how a run ended, or that it is tried again."""
        now_ms = self._opened.now_ms()
        ended = replace(
            line, state=end.state, reason=end.reason, iteration_id=end.iteration_id, ended_ms=now_ms
        )
        waits = RETRIES_MS.get(end.reason, ()) if end.state == "failed" else ()
        wait_ms: int | None = None
        if line.tries < len(waits):
            wait_ms = max(_about(waits[line.tries], line), end.wait_ms)
            ended = replace(ended, tries=line.tries + 1)
        elif end.reason == NEEDS_HUB and line.kind != "manual":
            wait_ms = HUB_RETRY_MS
        elif end.state == "queued":
            wait_ms = 0
        if wait_ms is not None:
            following = next_ms(mission, view, now_ms)
            if following is None or now_ms + wait_ms < following:
                ended = replace(
                    ended,
                    state="queued",
                    reason="",
                    last_reason=end.reason or line.last_reason,
                    due_ms=now_ms + wait_ms,
                )
            else:
                ended = replace(ended, tries=line.tries)
        return await self._ledger.end(ended)

    async def _refused(self, line: RunLine, reason: str) -> RunLine:
        over = replace(line, state="skipped", reason=reason, ended_ms=self._opened.now_ms())
        return await self._ledger.end(over.unspent)

    async def _watch(self, start: _Start, task: asyncio.Task[RunLine]) -> None:
        """Cut a run off once it may not go on."""
        try:
            while await self._may_go_on(start):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._look.wait()
        except Locked:
            return  # Whoever locks the account ends its runs.
        self._stopped.add(task)
        task.cancel()

    async def _may_go_on(self, start: _Start) -> bool:
        """Say whether mission, agent and the person's word still allow a run."""
        if await self._work.stopped_ms() is not None:
            return False
        line = await self._ledger.find(start.mission.id, start.line.scheduled_ms)
        if line is None or line.stop:
            return False
        try:
            view = await self._opened.mission_view(start.mission.id)
        except NotFound:
            return False
        mission = await self._obeyed(view)
        if mission is None or mission.state != "active" or mission.agent_id != start.agent.id:
            return False
        return self._is_placed_here(mission, view) and not _gate(await self._agent(start.agent.id))

    def _moved(self, line: RunLine, moment: Moment) -> None:
        before = self._ledger.moment(line.mission_id)
        self._ledger.set_moment(line, moment)
        if before is None or before.phase != moment.phase:
            self._say()

    async def _used_today(self, agent: Agent) -> int:
        used = (await self._news.used_today()).get(agent.id)
        return used.tokens if used is not None else 0

    # What is obeyed

    async def _obeyed(self, view: View) -> Mission | None:
        """Return the mission if devices signed all of it and it can be read."""
        try:
            mission = mission_from_view(view)
        except Invalid:
            return None
        return mission if await self._opened.book.is_verified(MISSIONS.name, view.id) else None

    def _is_placed_here(self, mission: Mission, view: View) -> bool:
        """Say whether this device's own person placed the mission on it.

        Another member of a shared space may write where a mission runs, but not spend the model
        and the time of somebody else's device.
        """
        placed_by = view.actors.get("runsOn")
        return (
            mission.runs_on == self._opened.place
            and placed_by is not None
            and placed_by.principal_id == self._opened.account_id
        )

    async def _agent(self, agent_id: str) -> Agent | None:
        agent = await self._opened.agent_or_none(agent_id)
        if agent is None or not await self._opened.book.is_verified(AGENTS.name, agent_id):
            return None
        return agent

    def _line(self, mission: Mission, scheduled_ms: int, kind: str) -> RunLine:
        return RunLine(mission.id, mission.agent_id, scheduled_ms, kind, "queued")

    async def _guarded(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Locked:
            raise
        except ManaError as error:
            _log.warning("work of the device failed: %s", error.code)
        except Exception as error:
            # A defect in one thing must not end all the others; what it said may hold text.
            _log.error("work of the device broke down: %s", type(error).__name__)


class _Heard:
    """Progress of a run, told to the page."""

    def __init__(self, tell: Callable[[Moment], None]) -> None:
        self._tell = tell
        self._last = Moment("inputs")

    def phase(self, name: str) -> None:
        """Say that the run entered a phase."""
        self.moment(replace(self._last, phase=name))

    def moment(self, moment: Moment) -> None:
        """Say how far the run is."""
        self._last = moment
        self._tell(moment)


async def _to_the_end(work: Coroutine[object, object, _T]) -> _T:
    """Return what some work comes to, which is not cut off once it has begun."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task


def _gate(agent: Agent | None) -> str:
    """Return why an agent may not start; empty if it may."""
    if agent is None:
        return "agent-missing"
    return "" if agent.state == "active" else f"agent-{agent.state}"


def _about(wait_ms: int, line: RunLine) -> int:
    """Return a time that is a fifth shorter or longer, by mission, moment and try alone."""
    name = length_prefixed("retry", line.mission_id, str(line.scheduled_ms), str(line.tries))
    part = int.from_bytes(sha256(name)[:4], "big") / 0xFFFF_FFFF
    return round(wait_ms * (0.8 + 0.4 * part))
