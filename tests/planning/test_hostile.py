"""The planner's output is the attacker's: nothing but steps within the policy comes out."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import strategies as st

from mana.domain.encoding import canonical_json
from mana.domain.errors import ManaError
from mana.domain.ids import step_id
from mana.domain.iterations import STEPS_MAX, binding_hash
from mana.domain.policy import DECISIONS, EFFECTS, Policy, SpacePolicy, decide
from mana.planning.loop import CALLS_PER_ROUND_MAX, ROUNDS_MAX
from mana.testing.models import CountedBudget, HostileModel
from tests.planning.given import CATALOGUE, ITERATION, plan, some_views

policies = st.builds(
    Policy,
    st.dictionaries(st.sampled_from(EFFECTS), st.sampled_from(DECISIONS)),
    st.dictionaries(
        st.sampled_from([tool.name for tool in CATALOGUE.tools]), st.sampled_from(DECISIONS)
    ),
)


@given(seed=st.integers(0, 2**32), policy=st.none() | policies)
def test_only_steps_within_policy_come_out(seed: int, policy: Policy | None) -> None:
    """Whatever a model replies, every step is allowed, bounded and bound, and nothing is applied."""
    views = some_views()
    before = canonical_json([[v.table, v.id, dict(v.values)] for v in views])
    model = HostileModel(seed, ids=[v.id for v in views])
    budget = CountedBudget()
    try:
        result = asyncio.run(plan(model, policy=policy, views=views, budget=budget))
    except ManaError:
        result = None
    assert canonical_json([[v.table, v.id, dict(v.values)] for v in views]) == before
    assert len(model.requests) <= ROUNDS_MAX
    assert len(budget.reserved) == len(model.requests)
    if result is None:
        return
    assert len(result.steps) <= min(STEPS_MAX, ROUNDS_MAX * CALLS_PER_ROUND_MAX)
    for index, step in enumerate(result.steps):
        tool = CATALOGUE.tool(step.tool)
        wanted = decide(tool.name, tool.effect, agent=policy, space=SpacePolicy(), tainted=True)
        assert wanted != "deny"
        assert tool.effect != "read"
        assert step.decision == wanted
        assert (step.index, step.id) == (index, step_id(ITERATION, index))
        assert step.binding == binding_hash(step.intent, list(step.preview), dict(step.base))
        assert "rationale" not in step.arguments
        for change in step.changes:
            table = CATALOGUE.table(change.table)
            assert table.agents_may_write
            assert CATALOGUE.module_of(change.table) == tool.module
    canonical_json([refusal.to_wire() for refusal in result.refusals])
    result.summary.encode("utf-8")


@given(seed=st.integers(0, 2**32))
def test_an_agent_without_policy_plans_nothing(seed: int) -> None:
    """A missing agent means deny: no tool is offered and no step comes out."""
    model = HostileModel(seed)
    try:
        result = asyncio.run(plan(model, policy=None))
    except ManaError:
        return
    assert result.steps == ()
    assert all(request.tools == () for request in model.requests)


@given(seed=st.integers(0, 2**32))
def test_every_call_has_its_answer(seed: int) -> None:
    """Each request keeps calls and answers in pairs, with ids that are not used twice."""
    model = HostileModel(seed)
    with contextlib.suppress(ManaError):
        asyncio.run(plan(model))
    for request in model.requests:
        asked = [call.id for message in request.messages for call in message.calls]
        told = [message.call_id for message in request.messages if message.role == "tool"]
        assert asked == told
        assert len(set(asked)) == len(asked)
        canonical_json([message.content for message in request.messages])


def test_the_attack_is_not_empty() -> None:
    """The hostile model gets steps through where the policy lets it, so the laws say something."""
    steps = refusals = 0
    for seed in range(40):
        with contextlib.suppress(ManaError):
            result = asyncio.run(plan(HostileModel(seed, ids=["n1", "n2", "t1", "t2", "t3"])))
            steps += len(result.steps)
            refusals += len(result.refusals)
    assert steps > 40
    assert refusals > 200
