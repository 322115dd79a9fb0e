"""The planner's output is the attacker's: nothing but steps within the policy comes out."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from mana.domain.encoding import canonical_json
from mana.domain.errors import ManaError
from mana.domain.ids import step_id
from mana.domain.iterations import STEPS_MAX, binding_hash
from mana.domain.policy import AGGRESSIVE, DECISIONS, EFFECTS, Policy, SpacePolicy, decide
from mana.domain.records import View
from mana.domain.tools import PROPOSE_MEMORY
from mana.planning.loop import ROUNDS_MAX, Plan
from mana.planning.ports import Candidate, ModelRequest
from mana.planning.subagents import ROUNDS, SUB_AGENTS_MAX
from mana.testing.hostile_model import HostileModel
from mana.testing.models import CountedBudget
from tests.planning.given import CATALOGUE, ITERATION, plan, some_views, view

policies = st.builds(
    Policy,
    st.dictionaries(st.sampled_from(EFFECTS), st.sampled_from(DECISIONS)),
    st.dictionaries(
        st.sampled_from([tool.name for tool in CATALOGUE.tools]), st.sampled_from(DECISIONS)
    ),
)


SECRET = "What agent 2 remembers of somebody else."
REQUESTS_MAX = ROUNDS_MAX + SUB_AGENTS_MAX * max(ROUNDS.values())
seeds = st.integers(0, 2**32)
contexts = st.sampled_from((3_000, 5_000, 9_000, 32_768, 200_000))


def views_of_run() -> list[View]:
    """Return what a run may read, and the memory of another agent, which it may not."""
    return [
        *some_views(),
        view("agentMemory", "agent-1", {"agentId": "agent-1", "content": "Likes mornings."}),
        view("agentMemory", "agent-2", {"agentId": "agent-2", "content": SECRET}),
    ]


def attacked(
    model: HostileModel,
    policy: Policy | None = AGGRESSIVE,
    *,
    context: int = 32_768,
    views: list[View] | None = None,
    budget: CountedBudget | None = None,
) -> Plan | None:
    """Return what comes out of a run whose model attacks; None where it ends with an error."""
    candidate = Candidate(model, context_tokens=context)
    held = views_of_run() if views is None else views
    try:
        return asyncio.run(plan(candidate, policy=policy, views=held, budget=budget))
    except ManaError:
        return None


def is_compaction(request: ModelRequest) -> bool:
    """Say whether a request asks for a summary of earlier rounds."""
    return request.messages[0].content.startswith("You shorten the record")


@given(seed=seeds, policy=st.none() | policies, context=contexts)
def test_only_steps_within_policy_come_out(seed: int, policy: Policy | None, context: int) -> None:
    """Whatever a model replies, every step is allowed, bounded and bound, and nothing is applied."""
    views = views_of_run()
    before = canonical_json([[v.table, v.id, dict(v.values)] for v in views])
    model = HostileModel(seed, ids=[v.id for v in views])
    budget = CountedBudget()
    result = attacked(model, policy, context=context, views=views, budget=budget)
    assert canonical_json([[v.table, v.id, dict(v.values)] for v in views]) == before
    folds = sum(map(is_compaction, model.requests))
    assert len(model.requests) - folds <= REQUESTS_MAX
    assert folds <= REQUESTS_MAX // 2 + 1
    assert len(budget.reserved) == len(model.requests)
    assert all(SECRET not in str(request.messages) for request in model.requests)
    if result is None:
        return
    assert len(result.steps) <= STEPS_MAX
    assert len(result.sub_agents) <= SUB_AGENTS_MAX
    assert len(result.compactions) <= folds
    for index, step in enumerate(result.steps):
        tool = CATALOGUE.tool(step.tool)
        wanted = decide(
            tool.name,
            tool.effect,
            agent=policy,
            space=SpacePolicy(),
            tainted=True,
            always_asks=tool.always_asks,
        )
        assert wanted != "deny"
        assert tool.effect != "read"
        assert step.decision == wanted
        assert (step.index, step.id) == (index, step_id(ITERATION, index))
        assert step.binding == binding_hash(step.intent, list(step.preview), dict(step.base))
        assert "rationale" not in step.arguments
        for change in step.changes:
            table = CATALOGUE.table(change.table)
            if tool.name == PROPOSE_MEMORY:
                assert (change.table, change.record_id) == ("agentMemory", "agent-1")
                assert set(change.values) == {"content"}
                assert step.decision == "propose"
            else:
                assert table.agents_may_write
                assert CATALOGUE.module_of(change.table) == tool.module
    destroyed = [
        (step.tool, change.table, change.record_id)
        for step in result.steps
        if CATALOGUE.tool(step.tool).effect in ("destructive", "external")
        for change in step.changes
    ]
    assert len(set(destroyed)) == len(destroyed)
    canonical_json([refusal.to_wire() for refusal in result.refusals])
    assert len(canonical_json(result.usage_to_wire())) <= 512
    result.summary.encode("utf-8")


@given(seed=seeds)
def test_an_agent_without_policy_plans_nothing(seed: int) -> None:
    """A missing agent means deny: no tool is offered, no sub-agent made, and no step comes out."""
    model = HostileModel(seed)
    result = attacked(model, None)
    assert all(request.tools == () for request in model.requests)
    if result is not None:
        assert (result.steps, result.sub_agents) == ((), ())


@given(seed=seeds, context=contexts)
def test_every_call_has_its_answer(seed: int, context: int) -> None:
    """Each request keeps calls and answers in pairs, with ids that are not used twice."""
    model = HostileModel(seed)
    attacked(model, context=context)
    for request in model.requests:
        asked = [call.id for message in request.messages for call in message.calls]
        told = [message.call_id for message in request.messages if message.role == "tool"]
        assert asked == told
        assert len(set(asked)) == len(asked)
        canonical_json([message.content for message in request.messages])


@given(seed=seeds, context=contexts)
def test_no_frame_is_broken(seed: int, context: int) -> None:
    """No summary and no task closes its frame or opens another: they hold the frame's tags only."""
    model = HostileModel(seed)
    attacked(model, context=context)
    for request in model.requests:
        first, *rest = request.messages
        assert first.role == "system"
        for message in rest:
            if message.content.startswith("<compact-summary>"):
                assert message.role == "assistant"
                assert message.content.count("<") == 2
                assert message.content.endswith("\n</compact-summary>")
        if "\n\n# Task\n" in rest[0].content:
            assert "<" not in rest[0].content


def test_a_sub_agent_never_has_more_than_its_kind() -> None:
    """In every request without the agent's own frame there is no `task`, and reading is reading."""
    reads = {tool.name for tool in CATALOGUE.tools if tool.effect == "read"}
    seen = 0
    for seed in range(30):
        model = HostileModel(seed, ids=["n1", "t1"])
        attacked(model, context=200_000)
        for request in model.requests:
            frame = request.messages[0].content
            offered = {str(tool["function"]["name"]) for tool in request.tools}  # type: ignore[index,call-overload]
            if frame.startswith(("You look things up", "You lay out work")):
                seen += 1
                assert offered == reads
            assert ("task" in offered) == frame.startswith("You are an agent in Mana.")
    assert seen > 10


def test_the_attack_is_not_empty() -> None:
    """The hostile model gets through where the policy lets it, so the laws say something."""
    steps = refusals = memories = sub_agents = folds = 0
    for seed in range(60):
        model = HostileModel(seed, ids=["n1", "n2", "t1", "t2", "t3"])
        result = attacked(model, context=9_000)
        if result is not None:
            steps += len(result.steps)
            refusals += len(result.refusals)
            memories += sum(step.tool == PROPOSE_MEMORY for step in result.steps)
            sub_agents += len(result.sub_agents)
            folds += len(result.compactions)
    assert steps > 40
    assert refusals > 200
    assert memories > 3
    assert sub_agents > 10
    assert folds > 0
