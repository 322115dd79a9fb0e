"""One run of a mission on this device: what it reads, what the model plans, and what is written.

The same planning code as the hub's runner. A run reads the mission's inputs and nothing else. It
is written once, at its end, as one group, so a run that is stopped or fails has changed nothing.
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from mana.device.opened import Opened
from mana.device.steps import Steps
from mana.device.writing import Write
from mana.domain.actors import Actor, agent_at_work
from mana.domain.agents import AGENT_MEMORY, Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import MissionId, RecordId, derived_id, iteration_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import Mission
from mana.domain.policy import SpacePolicy
from mana.domain.records import View
from mana.planning.loop import Plan, run
from mana.planning.past import past_from_views
from mana.planning.ports import Budget, Candidate, Progress
from mana.planning.prompt import PastIteration, PlanInput, PlannedInput

PROPOSAL_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
REFUSALS_BYTES_MAX: Final = 16_000


class Runs:
    """Plans and writes the runs of one space."""

    def __init__(
        self, opened: Opened, steps: Steps, space_policy: Callable[[], Awaitable[SpacePolicy]]
    ) -> None:
        self._opened = opened
        self._steps = steps
        self._space_policy = space_policy

    async def plan(
        self,
        mission: Mission,
        agent: Agent,
        scheduled_ms: int,
        *,
        models: Sequence[Candidate],
        budget: Budget,
        progress: Progress,
        tokens_today: int,
    ) -> tuple[Plan, builtins.list[View]]:
        """Return the plan of a run and the inputs that it read; raise as `planning.loop.run`."""
        views = await self._inputs(mission)
        loaded: dict[str, builtins.list[View]] = {}
        for view in views:
            loaded.setdefault(view.table, []).append(view)
        memory = await self._opened.book.view(AGENT_MEMORY.name, agent.id)
        loaded[AGENT_MEMORY.name] = [memory] if memory is not None else []
        plan_input = PlanInput(
            mission=mission,
            agent=agent,
            inputs=tuple(self._shown(view) for view in views),
            history=await self._history(mission.id),
            now_iso=self._opened.now_iso(),
            zone=mission.zone,
            today=self._opened.today(mission.zone),
            tokens_today=tokens_today,
        )
        plan = await run(
            plan_input,
            models=models,
            catalogue=self._opened.catalogue,
            policy=agent.policy,
            space_policy=await self._space_policy(),
            records=self._opened.snapshot_of(loaded, mission.zone),
            budget=budget,
            progress=progress,
            iteration_id=iteration_id(MissionId(mission.id), iso_ms(scheduled_ms)),
            clock_ms=self._opened.now_ms,
        )
        return plan, views

    async def find(self, mission_id: str, scheduled_ms: int) -> str | None:
        """Return the iteration of a due moment, if it was worked on."""
        known = iteration_id(MissionId(mission_id), iso_ms(scheduled_ms))
        return known if await self._opened.book.view(ITERATIONS.name, known) is not None else None

    async def commit(
        self,
        mission: Mission,
        agent: Agent,
        scheduled_ms: int,
        plan: Plan,
        read: Sequence[View],
        *,
        started_ms: int,
    ) -> str:
        """Write the iteration and its steps as one group; auto steps are this device's already."""
        opened = self._opened
        run_id = iteration_id(MissionId(mission.id), iso_ms(scheduled_ms))
        actor = agent_at_work(agent.id, mission.id, run_id)
        finished = opened.now_iso()
        step_ids: builtins.list[Json] = [step.id for step in plan.steps]
        inputs: builtins.list[Json] = [*sorted(f"{v.table}:{v.id}" for v in read)]
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
            "usage": plan.usage_to_wire(),
            "stopReason": plan.stop_reason,
            "inputsRead": inputs,
            "refusals": plan.refusals_within(REFUSALS_BYTES_MAX),
            "startedAt": iso_ms(started_ms),
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
        """Return the mission's runs, oldest first, with what became of their steps."""
        iterations = [
            view
            for view in await self._opened.book.views(ITERATIONS.name)
            if view.text("missionId") == mission_id
        ]
        return past_from_views(iterations, await self._steps.views())


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
