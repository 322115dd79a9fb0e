"""Missions that run on this device, and steps that policy lets run by themselves.

The same planning code as the hub's runner, under the same gates: agent state, concurrency,
budget. A run reads the mission's inputs and nothing else. It commits once, at its end, so a run
that is stopped or times out has changed nothing.

A planned step is claimed on the hub before it is executed; the policy is asked again, and the
stricter answer wins. All ids are derived, so a crash in between repeats nothing.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from mana.device.errors import Locked
from mana.device.executing import Executing
from mana.device.hub_news import HubNews
from mana.device.inbox import Inbox
from mana.device.opened import Opened, stamp_ms
from mana.device.run_ledger import RunLedger, RunLine
from mana.device.run_ledger import view as run_view
from mana.device.steps import Steps, in_order
from mana.device.views import RunView
from mana.device.writing import Write
from mana.domain.actors import Actor, agent_at_work
from mana.domain.agents import AGENTS, Agent
from mana.domain.cadences import next_due
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid, ManaError
from mana.domain.ids import MissionId, RecordId, derived_id, iteration_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import MISSIONS, Mission, mission_from_view
from mana.domain.policy import SpacePolicy
from mana.domain.records import View
from mana.planning.budget import budget_reason, counted_tokens, fitting, is_used_up
from mana.planning.loop import InputTooLarge, Plan, run
from mana.planning.ports import BudgetExceeded, ModelCall, ModelFailed, Moment, Reservation, Usage
from mana.planning.prompt import PastIteration, PastStep, PlanInput, PlannedInput

TIMEOUT_S: Final = 180.0
TICK_S: Final = 15.0
EXPIRE_S: Final = 60.0
PROPOSAL_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
HISTORY_MAX: Final = 3
REFUSALS_BYTES_MAX: Final = 16_000
_DAYS_BACK_MS: Final = 8 * 24 * 60 * 60 * 1_000
_log: Final = logging.getLogger("mana.device.runner")


class MissionBusy(Conflict):
    """The mission runs here already."""

    code: ClassVar[str] = "MISSION_BUSY"
    advice: ClassVar[str] = "Wait until it has finished, or stop it."


class NotRunHere(Conflict):
    """The mission runs in another place."""

    code: ClassVar[str] = "MISSION_ELSEWHERE"
    advice: ClassVar[str] = "Run it on the device that it belongs to, or move it."


class DeviceBudget:
    """The agent's tokens on this device: what is reserved counts until it is settled."""

    def __init__(self, tokens_max: int | None, used: int, beside: Callable[[], int]) -> None:
        self._tokens_max = tokens_max
        self._used = used
        self._beside = beside
        self._reserved: dict[str, int] = {}
        self._calls = 0
        self.spent = 0

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve the worst case of one call; raise BudgetExceeded."""
        counted = self._used + self._beside() + self.end()
        granted = fitting(
            prompt_tokens, completion_tokens_max, cap=self._tokens_max, counted=counted
        )
        self._calls += 1
        name = str(self._calls)
        self._reserved[name] = prompt_tokens + granted
        return Reservation(name, granted)

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Replace a reservation by what was used; what cannot be true counts it in full."""
        self.spent += counted_tokens(usage, self._reserved.pop(reservation))

    def add(self, tokens: int) -> None:
        """Count what another run of the agent used, which ended meanwhile."""
        self._used += tokens

    def end(self) -> int:
        """Return what the run used; a call that was cut off counts in full."""
        return self.spent + sum(self._reserved.values())


class Runner:
    """What this device does by itself in one space of an account."""

    def __init__(
        self,
        opened: Opened,
        steps: Steps,
        inbox: Inbox,
        ledger: RunLedger,
        news: HubNews,
        *,
        say: Callable[[], None],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._opened = opened
        self._steps = steps
        self._inbox = inbox
        self._ledger = ledger
        self._news = news
        self._say = say
        self._timeout_s = timeout_s
        self._running: dict[str, tuple[str, asyncio.Task[RunLine]]] = {}
        self._stopped: set[str] = set()
        self._budgets: dict[str, builtins.list[DeviceBudget]] = {}
        self._executing = Executing(opened, steps)

    async def work(self, *, expire: bool) -> None:
        """Work once on what is due. A failure of one thing stops nothing else."""
        await self._guarded(self.run_planned)
        await self._guarded(self.run_due)
        if expire:
            await self._guarded(self._inbox.expire)

    async def close(self) -> None:
        """Stop every run and wait until it has stopped."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run_due(self) -> builtins.list[RunLine]:
        """Run missions of this device whose moment has come; the newest missed one runs once."""
        ended: builtins.list[RunLine] = []
        for view in await self._opened.book.views(MISSIONS.name):
            mission = await self._obeyed(view)
            if mission is None or not self._is_placed_here(mission, view):
                continue
            if mission.state != "active" or mission.id in self._running:
                continue
            due_ms = self.due_ms(mission, view)
            if due_ms is None or await self._ledger.find(mission.id, due_ms) is not None:
                continue
            known = iteration_id(MissionId(mission.id), iso_ms(due_ms))
            if await self._opened.book.view(ITERATIONS.name, known) is not None:
                continue
            line = await self._start(mission, due_ms, "scheduled")
            if line is not None:
                ended.append(line)
        return ended

    async def run_now(self, mission_id: str) -> RunView:
        """Run a mission of this device now and return how it ended.

        Raises NotRunHere, MissionBusy, or Conflict where the mission is not active.
        """
        view = await self._opened.mission_view(mission_id)
        mission = await self._obeyed(view)
        if mission is None:
            raise Invalid("the mission cannot be verified or read on this device")
        if not self._is_placed_here(mission, view):
            raise NotRunHere("the mission runs in another place")
        self._opened.book.require_writable(MISSIONS, mission_id)
        if mission.state != "active":
            raise Conflict(f"the mission is {mission.state}")
        if mission_id in self._running:
            raise MissionBusy("the mission runs already")
        now_ms = self._opened.now_ms()
        line = await self._start(mission, now_ms, "manual")
        if line is None:
            line = self._line(mission, now_ms, "manual", "skipped", "concurrency")
            await self._ledger.put(line)
        return run_view(line)

    async def stop(self, mission_id: str) -> None:
        """Stop a run; it has changed nothing, and the ledger says that it was stopped."""
        found = self._running.get(mission_id)
        if found is not None:
            self._stopped.add(mission_id)
            found[1].cancel()
            await asyncio.gather(found[1], return_exceptions=True)

    def due_ms(self, mission: Mission, view: View) -> int | None:
        """Return the newest due moment that has come since the mission was so arranged."""
        now_ms = self._opened.now_ms()
        anchor_ms = stamp_ms(view.stamps.get("cadence"))
        arranged_ms = max(
            stamp_ms(view.stamps.get(path)) for path in ("cadence", "timeZone", "runsOn", "state")
        )
        back_ms = _DAYS_BACK_MS
        if mission.cadence.kind == "interval":
            back_ms = 2 * mission.cadence.every_minutes * 60_000
        after_ms, found = max(arranged_ms, now_ms - back_ms), None
        while True:
            try:
                due_ms = next_due(
                    mission.cadence, mission.zone, anchor_ms=anchor_ms, after_ms=after_ms
                )
            except Invalid:
                return found
            if due_ms is None or due_ms > now_ms:
                return found
            found = after_ms = due_ms

    # One run

    async def _start(self, mission: Mission, scheduled_ms: int, kind: str) -> RunLine | None:
        """Run to the end; return None if the agent is at work on as many missions as it may."""
        agent = await self._agent(mission.agent_id)
        reason = _gate(agent)
        if agent is None or reason:
            return await self._ledger.put(
                self._line(mission, scheduled_ms, kind, "skipped", reason)
            )
        cap = agent.tokens_per_day_max
        used = (await self._news.tokens_today()).get(agent.id, 0)
        at_work = sum(1 for agent_id, _ in self._running.values() if agent_id == agent.id)
        if at_work >= agent.concurrent_max or mission.id in self._running:
            return None
        if cap is not None and is_used_up(cap, used, metered=self._opened.model.metered):
            reason = budget_reason(0, cap)
            return await self._ledger.put(
                self._line(mission, scheduled_ms, kind, "skipped", reason)
            )
        task = asyncio.create_task(self._run(mission, agent, scheduled_ms, kind, used))
        self._running[mission.id] = (agent.id, task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
            if mission.id not in self._stopped:
                raise
            return self._line(mission, scheduled_ms, kind, "failed", "stopped")
        finally:
            self._running.pop(mission.id, None)
            self._stopped.discard(mission.id)
            self._ledger.set_phase(mission.id, None)
            self._say()

    async def _run(
        self, mission: Mission, agent: Agent, scheduled_ms: int, kind: str, used: int
    ) -> RunLine:
        """Plan and commit one run; return its line, which is kept in every case."""
        budgets = self._budgets.setdefault(agent.id, [])
        budget = DeviceBudget(
            agent.tokens_per_day_max,
            used,
            # Another mission of the same agent spends from the same day.
            lambda: sum(one.end() for one in budgets if one is not budget),
        )
        budgets.append(budget)
        state, reason, iteration = "failed", "internal", None
        try:
            async with asyncio.timeout(self._timeout_s):
                plan, read = await self._plan(mission, agent, scheduled_ms, budget, used)
            iteration = await self._commit(mission, agent, scheduled_ms, plan, read)
            state, reason = "done", ""
        except TimeoutError:
            reason = "timeout"
        except asyncio.CancelledError:
            reason = "stopped"
            raise
        except BudgetExceeded as error:
            state, reason = "skipped", budget_reason(error.left, error.cap)
        except InputTooLarge:
            reason = "inputs"
        except ModelFailed as error:
            reason = error.kind
        except ManaError as error:
            _log.warning("run failed: %s", error.code)
        finally:
            line = self._line(mission, scheduled_ms, kind, state, reason, iteration, budget.end())
            try:
                if reason != "stopped" or mission.id in self._stopped:
                    # A run that ends with the process is no run: it is made up for at the next
                    # start.
                    line = await asyncio.shield(self._ledger.put(line))
            finally:
                budgets.remove(budget)
                for other in budgets:
                    other.add(budget.end())
        if iteration is not None:
            await self._guarded(self.run_planned)
        return line

    async def _plan(
        self, mission: Mission, agent: Agent, scheduled_ms: int, budget: DeviceBudget, used: int
    ) -> tuple[Plan, builtins.list[View]]:
        self.phase_of(mission.id)("inputs")
        views = await self._inputs(mission)
        loaded: dict[str, builtins.list[View]] = {}
        for view in views:
            loaded.setdefault(view.table, []).append(view)
        plan_input = PlanInput(
            mission=mission,
            agent=agent,
            inputs=tuple(self._shown(view) for view in views),
            history=await self._history(mission.id),
            now_iso=self._opened.now_iso(),
            zone=mission.zone,
            today=self._opened.today(mission.zone),
            tokens_today=used,
        )
        plan = await run(
            plan_input,
            model=self._opened.model,
            catalogue=self._opened.catalogue,
            policy=agent.policy,
            space_policy=SpacePolicy(),
            records=self._opened.snapshot_of(loaded, mission.zone),
            budget=budget,
            progress=_Phases(self.phase_of(mission.id)),
            iteration_id=iteration_id(MissionId(mission.id), iso_ms(scheduled_ms)),
        )
        return plan, views

    def phase_of(self, mission_id: str) -> Callable[[str], None]:
        """Return what tells the page how far a run is."""

        def tell(name: str) -> None:
            self._ledger.set_phase(mission_id, name)
            self._say()

        return tell

    async def _inputs(self, mission: Mission) -> builtins.list[View]:
        """Return the mission's inputs, and nothing else: the same scope that a grant has."""
        found: builtins.list[View] = []
        for ref in mission.inputs:
            view = await self._opened.find(ref.table, ref.id)
            offered = self._opened.catalogue.input_kind(ref.table)
            if view is None or view.deleted or offered is None:
                continue
            if self._opened.may_be_input(view):
                found.append(view)
        return found

    def _shown(self, view: View) -> PlannedInput:
        kind = self._opened.catalogue.input_kind(view.table)
        return PlannedInput(
            key=f"{view.table}:{view.id}",
            module=self._opened.catalogue.module_of(view.table),
            title="" if kind is None else kind.title(view),
            content="" if kind is None else kind.content(view),
        )

    async def _history(self, mission_id: str) -> tuple[PastIteration, ...]:
        """Return the last runs, oldest first, with what became of their steps."""
        iterations = [
            view
            for view in await self._opened.book.views(ITERATIONS.name)
            if view.text("missionId") == mission_id
        ]
        iterations.sort(key=lambda view: view.text("scheduledFor"))
        steps: dict[str, builtins.list[View]] = {}
        for step in await self._steps.views():
            steps.setdefault(step.text("iterationId"), []).append(step)
        return tuple(
            PastIteration(
                id=view.id,
                started_at=view.text("startedAt") or view.text("scheduledFor"),
                summary=view.text("summary"),
                steps=tuple(_past(step) for step in in_order(steps.get(view.id, ()))),
            )
            for view in iterations[-HISTORY_MAX:]
        )

    async def _commit(
        self,
        mission: Mission,
        agent: Agent,
        scheduled_ms: int,
        plan: Plan,
        read: Sequence[View],
    ) -> str:
        """Write the iteration and its steps as one group; auto steps are this device's already."""
        opened = self._opened
        run_id = iteration_id(MissionId(mission.id), iso_ms(scheduled_ms))
        actor = agent_at_work(agent.id, mission.id, run_id)
        finished = opened.now_iso()
        step_ids: builtins.list[Json] = [step.id for step in plan.steps]
        inputs: builtins.list[Json] = [*sorted(f"{v.table}:{v.id}" for v in read)]
        usage: dict[str, Json] = {
            "promptTokens": plan.usage.prompt_tokens,
            "completionTokens": plan.usage.completion_tokens,
        }
        values: dict[str, Json] = {
            "missionId": mission.id,
            "scheduledFor": iso_ms(scheduled_ms),
            "source": "device",
            "stepIds": step_ids,
            "proof": {"deviceId": opened.device_id},
            "agentName": agent.name[:80],
            "agentAvatar": agent.avatar[:16],
            "missionTitle": mission.title[:200],
            "summary": plan.summary,
            "model": plan.model[:200],
            "endpoint": plan.endpoint[:500],
            "promptVersion": plan.prompt_version,
            "usage": usage,
            "stopReason": plan.stop_reason,
            "inputsRead": inputs,
            "refusals": plan.refusals_within(REFUSALS_BYTES_MAX),
            "startedAt": iso_ms(scheduled_ms),
            "finishedAt": finished,
        }
        writes = [_insert(ITERATIONS.name, run_id, values, {}, actor=actor, place="run")]
        for step in plan.steps:
            auto = step.decision == "auto"
            planned: dict[str, Json] = {
                "missionId": mission.id,
                "iterationId": run_id,
                "index": step.index,
                "status": "executing" if auto else "staged",
                "intent": step.intent,
                "sentence": step.sentence,
                "rationale": step.rationale,
                "preview": builtins.list(step.preview),
                "base": dict(step.base),
                "binding": step.binding,
                "decision": step.decision,
                "expiresAt": iso_ms(opened.now_ms() + PROPOSAL_LIFE_MS),
            }
            guards: dict[str, Json] = {"status": None}
            if auto:
                planned["claimedBy"] = opened.device_id
                guards["claimedBy"] = None
            writes.append(_insert(STEPS.name, step.id, planned, guards, actor=actor, place="run"))
        await opened.book.commit(writes, group=derived_id("group", run_id, "run"))
        return run_id

    async def run_planned(self) -> builtins.list[str]:
        """Claim and execute steps that policy lets run by themselves; return those done."""
        return await self._executing.run_planned()

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

    def _line(
        self,
        mission: Mission,
        scheduled_ms: int,
        kind: str,
        state: str,
        reason: str,
        iteration: str | None = None,
        tokens: int = 0,
    ) -> RunLine:
        return RunLine(
            mission_id=mission.id,
            agent_id=mission.agent_id,
            scheduled_ms=scheduled_ms,
            kind=kind,
            state=state,
            reason=reason,
            iteration_id=iteration,
            tokens=tokens,
            ended_ms=self._opened.now_ms(),
        )

    async def _guarded(self, work: Callable[[], object]) -> None:
        try:
            result = work()
            if asyncio.iscoroutine(result):
                await result
        except Locked:
            raise
        except ManaError as error:
            _log.warning("work of the device failed: %s", error.code)
        except Exception as error:
            # A defect in one thing must not end all the others; what it said may hold text.
            _log.error("work of the device broke down: %s", type(error).__name__)


class _Phases:
    """Progress of a run, told to the page."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def phase(self, name: str) -> None:
        """Say that the run entered a phase."""
        self._tell(name)

    def moment(self, moment: Moment) -> None:
        """Leave it: the page is told of phases."""


def _gate(agent: Agent | None) -> str:
    """Return why an agent may not start; empty if it may."""
    if agent is None:
        return "agent-missing"
    return "" if agent.state == "active" else f"agent-{agent.state}"


def _insert(
    table: str,
    record_id: str,
    values: Mapping[str, Json],
    guards: Mapping[str, Json],
    *,
    actor: Actor,
    place: str,
) -> Write:
    change = Change(table, RecordId(record_id), ChangeKind.CREATE, dict(values), dict(guards))
    return Write(change, actor, change_id=derived_id("change", record_id, place))


def _past(step: View) -> PastStep:
    intent = step.values.get("intent")
    tool = intent.get("toolName") if isinstance(intent, dict) else None
    return PastStep(
        tool=tool if isinstance(tool, str) else "",
        sentence=step.text("sentence"),
        status=step.text("status"),
        feedback=step.text("feedback"),
    )
