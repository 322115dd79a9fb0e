"""A small world in memory: notes, tasks, an agent and a mission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from mana.domain.actors import agent_at_work, person
from mana.domain.agents import Agent
from mana.domain.cadences import MANUAL
from mana.domain.encoding import Json
from mana.domain.ids import IterationId, RecordId
from mana.domain.missions import Mission
from mana.domain.policy import AGGRESSIVE, STANDARD, Policy, SpacePolicy
from mana.domain.records import Snapshot, View
from mana.domain.tables import Table
from mana.planning.asking import prompt_tokens
from mana.planning.dispatch import Caller
from mana.planning.loop import Plan, run
from mana.planning.ports import Budget, Candidate, Model, ModelRequest, Progress
from mana.planning.prompt import PastIteration, PlanInput, PlannedInput
from mana.registry.catalogue import Catalogue, build_catalogue
from mana.testing.models import CountedBudget, Silent

CATALOGUE: Catalogue = build_catalogue()
TODAY = "2026-11-21"
NOW = "2026-11-21T08:30:00.000Z"
ITERATION = IterationId("7d0b7ab0-51a7-8f0e-8a86-6f0d2a3f5c11")
STAMP = "2026-11-20T10:00:00.000Z-0000-11111111-1111-4111-8111-111111111111"


def view(table: str, record_id: str, values: Mapping[str, Json], **more: object) -> View:
    """Return an opened record whose fields were all written at one time."""
    return View(table, RecordId(record_id), values, dict.fromkeys(values, STAMP), **more)  # type: ignore[arg-type]


def some_views() -> list[View]:
    """Return two notes and three tasks."""
    return [
        view("notes", "n1", {"title": "Dentist", "content": "Call the dentist by Friday."}),
        view("notes", "n2", {"title": "Trip", "content": "Ideas for spring."}),
        view("tasks", "t1", {"title": "Pay rent", "dueDate": "2026-11-01", "isCompleted": False}),
        view("tasks", "t2", {"title": "Water plants", "isCompleted": False}),
        view("tasks", "t3", {"title": "Old thing", "isCompleted": True}),
    ]


def records(views: Sequence[View] | None = None) -> Snapshot:
    """Return read access to views in memory, with ids that are counted."""
    held = some_views() if views is None else list(views)
    numbers = count()

    def load(table: Table) -> list[View]:
        return [found for found in held if found.table == table.name]

    return Snapshot(load, lambda: RecordId(f"new-{next(numbers)}"), TODAY, NOW)


def caller(policy: Policy | None = STANDARD) -> Caller:
    """Return an agent at work."""
    return Caller(agent_at_work("agent-1", "mission-1", ITERATION), policy)


PERSON = Caller(person("account-1"))


def agent(policy: Policy | None = STANDARD, **more: object) -> Agent:
    """Return an agent."""
    held: dict[str, object] = {
        "id": "agent-1",
        "name": "Mira",
        "avatar": "",
        "role": "Planner",
        "system_prompt": "Be brief.",
        "memory": "The person likes mornings.",
        "policy": policy,
        "state": "active",
        "tokens_per_day_max": None,
        "concurrent_max": 1,
    }
    return Agent(**{**held, **more})  # type: ignore[arg-type]


def mission(**more: object) -> Mission:
    """Return a mission."""
    held: dict[str, object] = {
        "id": "mission-1",
        "title": "Weekly review",
        "objective": "Find action items in my notes.",
        "concept": "",
        "inputs": (),
        "cadence": MANUAL,
        "zone": "Europe/Berlin",
        "agent_id": "agent-1",
        "state": "active",
        "runs_on": "hub",
        "grant_id": None,
    }
    return Mission(**{**held, **more})  # type: ignore[arg-type]


def planned_inputs(views: Sequence[View] | None = None) -> tuple[PlannedInput, ...]:
    """Return views as the prompt shows them."""
    found = []
    for held in some_views() if views is None else views:
        kind = CATALOGUE.inputs[held.table]
        key = f"{held.table}:{held.id}"
        module = CATALOGUE.module_of(held.table)
        found.append(PlannedInput(key, module, kind.title(held), kind.content(held)))
    return tuple(found)


def worst_case(request: ModelRequest) -> int:
    """Return the tokens that a call may cost at most."""
    return prompt_tokens(request) + request.completion_tokens_max


def plan_input(
    *,
    inputs: tuple[PlannedInput, ...] | None = None,
    history: tuple[PastIteration, ...] = (),
    given_mission: Mission | None = None,
    given_agent: Agent | None = None,
    tokens_today: int = 0,
) -> PlanInput:
    """Return what a run is told."""
    return PlanInput(
        given_mission or mission(),
        given_agent or agent(),
        planned_inputs() if inputs is None else inputs,
        history,
        NOW,
        "Europe/Berlin",
        TODAY,
        tokens_today,
    )


async def plan(
    model: Model | Candidate,
    *others: Model | Candidate,
    policy: Policy | None = AGGRESSIVE,
    views: Sequence[View] | None = None,
    given: PlanInput | None = None,
    budget: Budget | None = None,
    catalogue: Catalogue = CATALOGUE,
    progress: Progress | None = None,
    **more: object,
) -> Plan:
    """Run the loop once over the small world; `others` are fall-backs."""
    return await run(
        given or plan_input(),
        models=[one if isinstance(one, Candidate) else Candidate(one) for one in (model, *others)],
        catalogue=catalogue,
        policy=policy,
        space_policy=SpacePolicy(),
        records=records(views),
        budget=budget or CountedBudget(),
        progress=progress or Silent(),
        iteration_id=ITERATION,
        **more,  # type: ignore[arg-type]
    )
