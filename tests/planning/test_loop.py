"""The loop: rounds, repairs, limits and money."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from mana.domain.encoding import Json
from mana.domain.policy import AGGRESSIVE, CAUTIOUS, STANDARD, Policy
from mana.planning.guardrails import INPUT_CHARS_MAX, InputTooLarge
from mana.planning.loop import CALLS_PER_ROUND_MAX, COMPLETION_TOKENS_MAX
from mana.planning.ports import (
    BudgetExceeded,
    Candidate,
    FunctionCall,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Usage,
)
from mana.planning.prompt import (
    INPUT_MAX,
    PastIteration,
    PastStep,
    PlanInput,
    PlannedInput,
    prompt,
)
from mana.testing.models import CountedBudget, ScriptedModel, calling, says
from tests.planning.given import (
    CATALOGUE,
    NOW,
    agent,
    mission,
    plan,
    plan_input,
    some_views,
    view,
    worst_case,
)

pytestmark = pytest.mark.anyio


def answers(request: ModelRequest) -> list[dict[str, Json]]:
    """Return the answers to tool calls that a request holds."""
    return [json.loads(m.content) for m in request.messages if m.role == "tool"]


def offered(request: ModelRequest) -> list[str]:
    """Return the names of the tools of a request."""
    return [str(tool["function"]["name"]) for tool in request.tools]  # type: ignore[index,call-overload]


def creating(*titles: str) -> tuple[FunctionCall, ...]:
    """Return one `create_task` call per title."""
    return tuple(calling("create_task", {"title": title}, id=f"c-{title}") for title in titles)


async def test_a_run_reads_writes_and_ends() -> None:
    """Read, write, summary: three rounds give one step, answered with its status and ids."""
    model = ScriptedModel(
        [says("", calling("list_tasks")), says("", *creating("Call Kim")), says("One task.")]
    )
    result = await plan(model, policy=STANDARD)
    assert (result.summary, result.stop_reason, result.rounds) == ("One task.", "finished", 3)
    assert [(s.tool, s.decision) for s in result.steps] == [("create_task", "propose")]
    assert result.usage == Usage(6_000, 60)
    read, written = answers(model.requests[2])
    assert read["success"] is True
    step = result.steps[0]
    data = {"status": "proposed", "stepId": step.id, "taskId": step.changes[0].record_id}
    assert written["data"] == data


async def test_only_allowed_tools_are_offered() -> None:
    """The request holds exactly the tools that the policy does not deny, and that of sub-agents."""
    model = ScriptedModel()
    await plan(model, policy=CAUTIOUS)
    left_out = ("update_note", "propose_memory")
    wanted = [tool.name for tool in CATALOGUE.tools if tool.name not in left_out]
    assert offered(model.requests[0]) == [*wanted, "task"]


async def test_a_memory_is_offered_where_the_run_has_one() -> None:
    """An agent can propose to change its memory exactly if its memory is among its records."""
    for memory_id, expected in (("agent-1", True), ("agent-2", False)):
        model = ScriptedModel()
        views = [*some_views(), view("agentMemory", memory_id, {"content": "Mornings."})]
        await plan(model, views=views)
        assert ("propose_memory" in offered(model.requests[0])) is expected


async def test_a_tool_that_was_not_offered_is_refused() -> None:
    """A name outside the offer is refused and recorded, also if such a tool exists."""
    model = ScriptedModel([says("", calling("update_note", {"noteId": "n1", "title": "x"}))])
    result = await plan(model, policy=CAUTIOUS)
    assert result.steps == ()
    assert [(r.tool, r.code) for r in result.refusals] == [("update_note", "TOOL_NOT_OFFERED")]


async def test_one_repair_turn() -> None:
    """Bad arguments are explained once; a corrected call leaves no refusal."""
    model = ScriptedModel([says("", calling("create_task", "{bad")), says("", *creating("Call"))])
    result = await plan(model)
    assert len(result.steps) == 1
    assert result.refusals == ()
    assert "Correct the arguments" in str(answers(model.requests[1])[0]["message"])


async def test_a_second_fault_is_a_refusal() -> None:
    """Two faults in a row of one tool are one refusal, and no more repair is asked for."""
    bad = [says("", calling("create_task", {"title": 5 * "x", "x": n})) for n in range(2)]
    model = ScriptedModel(bad)
    result = await plan(model)
    assert [(r.tool, r.round) for r in result.refusals] == [("create_task", 2)]
    assert "do not repeat" in str(answers(model.requests[2])[1]["message"])


async def test_a_fault_that_is_never_repaired_is_a_refusal() -> None:
    """A run that ends on a fault records it."""
    result = await plan(ScriptedModel([says("", calling("create_task", {}))]))
    assert [r.code for r in result.refusals] == ["BAD_REQUEST"]


async def test_duplicates_are_refused() -> None:
    """The same call twice is one step, whatever reason is given with it."""
    first = calling("create_task", {"title": "Call", "rationale": "a"}, id="1")
    second = calling("create_task", {"rationale": "b", "title": "Call"}, id="2")
    result = await plan(ScriptedModel([says("", first, second)]))
    assert len(result.steps) == 1
    assert [r.code for r in result.refusals] == ["DUPLICATE_CALL"]


async def test_a_read_may_be_repeated_after_a_write() -> None:
    """Reading again is refused while nothing changed, and answered with the plan's effects."""
    calls = [
        calling("get_task_stats", id="1"),
        calling("get_task_stats", id="2"),
        *creating("Call"),
        calling("get_task_stats", id="4"),
    ]
    model = ScriptedModel([says("", *calls)])
    await plan(model)
    told = answers(model.requests[1])
    assert [answer["success"] for answer in told] == [True, False, True, True]
    assert told[3]["data"]["open"] == told[0]["data"]["open"] + 1  # type: ignore[index,call-overload,operator]


async def test_calls_beyond_a_round_are_dropped() -> None:
    """At most ten calls of a reply are looked at; the rest is one refusal."""
    model = ScriptedModel([says("", *creating(*(f"Task {n}" for n in range(30))))])
    result = await plan(model)
    assert len(result.steps) == CALLS_PER_ROUND_MAX
    assert [r.code for r in result.refusals] == ["CALLS_PER_ROUND"]


async def test_the_step_limit_ends_the_run() -> None:
    """The step beyond the limit is refused, and the run ends with what it has."""
    model = ScriptedModel([says("", *creating("A", "B", "C")), says("never asked")])
    result = await plan(model, steps_max=2)
    assert (len(result.steps), result.stop_reason) == (2, "plan-step-limit")
    assert len(model.requests) == 1


async def test_rounds_are_limited() -> None:
    """A model that never stops is not asked beyond its rounds."""
    model = ScriptedModel([says("", *creating(f"Task {n}")) for n in range(9)])
    result = await plan(model)
    assert (result.rounds, result.stop_reason, len(result.steps)) == (5, "rounds", 5)


def filled(spare: int) -> PlanInput:
    """Return what a run is told, `spare` characters below the limit of what it may send."""

    def sized(size: int) -> PlanInput:
        each = [INPUT_MAX, INPUT_MAX, size]
        inputs = tuple(
            PlannedInput(f"notes:n{n}", "notes", "Long", "x" * size) for n, size in enumerate(each)
        )
        return plan_input(inputs=inputs)

    empty = sum(len(message.content) for message in prompt(sized(0), rounds_max=5))
    return sized(INPUT_CHARS_MAX - empty - spare)


async def test_inputs_beyond_the_limit_are_never_sent() -> None:
    """One character too many of all that is sent, and no model is called; the limit passes."""
    model = ScriptedModel()
    with pytest.raises(InputTooLarge):
        await plan(model, given=filled(-1))
    assert model.requests == []
    await plan(model, given=filled(0))
    assert len(model.requests) == 1
    assert model.requests[0].completion_tokens_max == COMPLETION_TOKENS_MAX


@pytest.mark.parametrize("part", ["system_prompt", "memory", "concept", "objective", "history"])
async def test_everything_that_is_sent_counts(part: str) -> None:
    """Persona, memory, concept, objective and history use up the limit as inputs do."""
    given, text = filled(3_000), "y" * 4_000
    if part in ("system_prompt", "memory"):
        given = replace(given, agent=agent(**{part: text}))
    elif part == "history":
        steps = tuple(PastStep("create_task", text, "approved") for _ in range(20))
        given = replace(given, history=(PastIteration("i1", NOW, text, steps),))
    else:
        given = replace(given, mission=mission(**{part: text}))
    model = ScriptedModel()
    with pytest.raises(InputTooLarge):
        await plan(model, given=given)
    assert model.requests == []


async def test_reads_count_towards_the_input_limit() -> None:
    """A model cannot read without end: the answer that passes the limit is withheld."""
    model = ScriptedModel([says("", calling("list_tasks"))])
    result = await plan(Candidate(model, context_tokens=200_000), given=filled(50))
    assert [r.code for r in result.refusals] == ["INPUT_SIZE_LIMIT"]


async def test_the_worst_case_is_reserved_before_each_call() -> None:
    """Every call is reserved first and settled after; an unknown usage counts in full."""
    budget = CountedBudget()
    replies = [
        ModelReply("", creating("A"), "calls", Usage(1_500, 5)),
        ModelReply("Done.", (), "stop", None),
    ]
    model = ScriptedModel(replies)
    result = await plan(model, budget=budget)
    reserved = list(budget.reserved.values())
    assert reserved == [worst_case(request) for request in model.requests]
    assert min(reserved) > COMPLETION_TOKENS_MAX
    assert budget.spent == 1_505 + reserved[1]
    assert result.usage == Usage(1_500, 5)


async def test_a_negative_usage_counts_in_full() -> None:
    """A provider cannot hand tokens back."""
    budget = CountedBudget()
    await plan(ScriptedModel([says("Done.", usage=Usage(-9_999, 1))]), budget=budget)
    assert budget.spent == sum(budget.reserved.values())


async def test_an_empty_budget_calls_nobody() -> None:
    """Without tokens for the worst case the model is not called."""
    model = ScriptedModel()
    with pytest.raises(BudgetExceeded):
        await plan(model, budget=CountedBudget(100))
    assert model.requests == []


@pytest.mark.parametrize("ends", ["budget", "model-failed"])
async def test_what_was_planned_is_kept(ends: str) -> None:
    """A run that loses its budget or its model keeps the steps that it has."""
    first = ModelReply("", creating("A"), "calls", None)
    model = ScriptedModel([first, ModelFailed("timeout")])
    budget = CountedBudget(7_000 if ends == "budget" else None)
    result = await plan(model, budget=budget)
    assert (len(result.steps), result.stop_reason) == (1, ends)


async def test_a_failed_call_counts() -> None:
    """A model that fails at once raises its class, and the reservation stays counted."""
    budget = CountedBudget()
    with pytest.raises(ModelFailed) as failed:
        await plan(ScriptedModel([ModelFailed("rate-limit")]), budget=budget)
    assert failed.value.kind == "rate-limit"
    assert budget.spent == sum(budget.reserved.values()) > 0


async def test_who_is_cancelled_leaves_the_reservation() -> None:
    """A run that is cut off while a model answers ends at once, and the call stays counted."""
    begun = asyncio.Event()

    class Slow(ScriptedModel):
        async def complete(self, request: ModelRequest) -> ModelReply:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    budget = CountedBudget()
    task = asyncio.create_task(plan(Slow(), budget=budget))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.settled == {}
    assert budget.spent == sum(budget.reserved.values()) > 0


@pytest.mark.parametrize("finish", ["length", "content-filter"])
async def test_cut_replies_are_flagged(finish: str) -> None:
    """A reply that the provider cut or filtered is named as such."""
    model = ScriptedModel([ModelReply("Half", (), finish, None)])  # type: ignore[arg-type]
    result = await plan(model)
    assert (result.stop_reason, result.flags) == (finish, (finish,))


async def test_reminders_last_for_one_request() -> None:
    """A reminder stands at the end of one request and never in the history."""
    bad = [says("", calling("nothing", {"n": n})) for n in range(3)]
    model = ScriptedModel(bad)
    await plan(model)
    reminded = [[m for m in r.messages if "<reminder>" in m.content] for r in model.requests]
    assert [len(found) for found in reminded] == [0, 0, 1, 1]
    assert all(
        r.messages[-1] is found[0]
        for r, found in zip(model.requests, reminded, strict=True)
        if found
    )


async def test_the_budget_reminder_counts_the_day() -> None:
    """What was used today and in this run is weighed against the agent's cap."""
    model = ScriptedModel([says("", *creating("A"), usage=Usage(5_000, 4_000))])
    given = plan_input(given_agent=agent(tokens_per_day_max=100_000), tokens_today=66_000)
    await plan(model, given=given)
    assert not any("<reminder>" in m.content for m in model.requests[0].messages)
    assert "75%" in model.requests[1].messages[-1].content


async def test_an_external_effect_is_always_proposed() -> None:
    """A mission's context is tainted, so lifting the floor for an external tool changes nothing."""
    model = ScriptedModel([says("", calling("update_note", {"noteId": "n1", "title": "x"}))])
    result = await plan(model, policy=Policy({**AGGRESSIVE.by_effect, "destructive": "auto"}))
    assert [s.decision for s in result.steps] == ["propose"]


async def test_another_space_s_records_are_out_of_reach() -> None:
    """A run sees the records that it was given and no others."""
    views = [view("tasks", "t1", {"title": "Mine"})]
    model = ScriptedModel([says("", calling("list_tasks", {"filter": "all"}))])
    await plan(model, views=views, given=plan_input(inputs=()))
    assert answers(model.requests[1])[0]["data"]["total"] == 1  # type: ignore[index,call-overload]
    assert len(some_views()) > 1
