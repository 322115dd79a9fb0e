"""Money: what is reserved, what is granted smaller, and that nobody can lie a cap away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.device.runner import DeviceBudget
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.rules import Rules
from mana.planning.budget import (
    COMPLETION_TOKENS_MIN,
    TOKENS_MAX,
    budget_reason,
    counted_tokens,
    fitting,
    is_sane,
    is_used_up,
    read_budget_reason,
)
from mana.planning.loop import COMPLETION_TOKENS_MAX, prompt_tokens
from mana.planning.ports import BudgetExceeded, ModelCall, ModelReply, Usage
from mana.testing.models import CountedBudget, ScriptedModel, calling, says
from tests.planning.given import plan

counts = st.integers(-(10**9), 10**15) | st.integers(0, 5_000)
usages = st.none() | st.builds(Usage, counts, counts)


def on_device(cap: int) -> DeviceBudget:
    """Return the budget of a run on a device, beside which nothing else runs."""
    return DeviceBudget(cap, 0, lambda: 0)


def spent(budget: CountedBudget | DeviceBudget) -> int:
    """Return what counts as spent."""
    return budget.spent if isinstance(budget, CountedBudget) else budget.end()


@pytest.mark.parametrize("make", [CountedBudget, on_device])
@given(
    st.integers(0, 50_000),
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 5_000), usages), max_size=12),
)
@pytest.mark.anyio
async def test_no_reply_lifts_the_cap(
    make: Callable[[int], CountedBudget | DeviceBudget],
    cap: int,
    calls: list[tuple[int, int, Usage | None]],
) -> None:
    """Whatever providers report, no call starts at the cap, and what is reported is counted."""
    budget = make(cap)
    for prompt, wanted, usage in calls:
        before = spent(budget)
        try:
            reservation = await budget.reserve(
                prompt, wanted, ModelCall("scripted:test", "scripted")
            )
        except BudgetExceeded as refused:
            assert (refused.left, refused.cap) == (max(cap - before, 0), cap)
            assert before >= cap or cap - before - prompt < min(wanted, COMPLETION_TOKENS_MIN)
            continue
        assert before < cap
        assert spent(budget) == before + prompt + reservation.completion_tokens_max <= cap
        assert min(wanted, COMPLETION_TOKENS_MIN) <= reservation.completion_tokens_max <= wanted
        await budget.settle(reservation.id, usage)
        assert spent(budget) >= before
        if usage is not None and is_sane(usage.prompt_tokens, usage.completion_tokens):
            assert spent(budget) - before == usage.total


@given(usages, st.integers(0, 10_000))
def test_what_cannot_be_true_counts_in_full(usage: Usage | None, reserved: int) -> None:
    """A usage that is missing, negative or beyond all measure leaves the reservation."""
    sane = usage is not None and all(
        0 <= part <= TOKENS_MAX for part in (usage.prompt_tokens, usage.completion_tokens)
    )
    assert counted_tokens(usage, reserved) == (usage.total if usage and sane else reserved)


def test_a_smaller_reply_is_granted_down_to_the_floor() -> None:
    """Where less is left the reply may be shorter, but not so short that it is of no use."""
    assert fitting(1_000, 4_096, cap=None, counted=10**9) == 4_096
    assert fitting(1_000, 4_096, cap=9_000, counted=0) == 4_096
    assert fitting(1_000, 4_096, cap=2_000, counted=0) == 1_000
    assert fitting(1_000, 4_096, cap=2_000, counted=744) == 256
    assert fitting(1_000, 100, cap=1_100, counted=0) == 100
    with pytest.raises(BudgetExceeded):
        fitting(1_000, 4_096, cap=2_000, counted=745)


@pytest.mark.parametrize(
    ("cap", "counted", "metered", "used_up"),
    [
        (None, 10**9, True, False),
        (0, 0, True, True),
        (0, 0, False, True),
        (10, 10, True, True),
        (10, 10, False, False),
        (10, 9, True, False),
    ],
)
def test_a_cap_of_nothing_stops_every_model(
    cap: int | None, counted: int, metered: bool, used_up: bool
) -> None:
    """A cap of 0 stops an agent; a reached one stops only what costs tokens."""
    assert is_used_up(cap, counted, metered=metered) is used_up


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_a_reason_keeps_its_numbers(left: int, cap: int) -> None:
    """What was left and the cap are read from a reason as they were written into it."""
    assert read_budget_reason(budget_reason(left, cap)) == (left, cap)


@pytest.mark.parametrize("reason", ["", "budget", "budget:", "budget:1", "budget:-1/2", "x:1/2"])
def test_other_reasons_have_no_numbers(reason: str) -> None:
    """Only the reason of budgets, and in its one form, has numbers."""
    assert read_budget_reason(reason) is None


@pytest.mark.anyio
async def test_the_loop_sends_what_was_granted() -> None:
    """A cap below the usual worst case still runs; the request asks for no more than is left."""
    asked = ScriptedModel([says("Done.", usage=Usage(900, 100))])
    await plan(asked)
    prompt = prompt_tokens(asked.requests[0])
    budget = CountedBudget(prompt + 700)
    model = ScriptedModel([says("Done.", usage=Usage(900, 100))])
    await plan(model, budget=budget)
    assert COMPLETION_TOKENS_MAX > 700
    assert model.requests[0].completion_tokens_max == 700
    assert list(budget.reserved.values()) == [prompt + 700]
    with pytest.raises(BudgetExceeded) as refused:
        await plan(ScriptedModel(), budget=CountedBudget(prompt + COMPLETION_TOKENS_MIN - 1))
    assert refused.value.left == prompt + COMPLETION_TOKENS_MIN - 1


@pytest.mark.anyio
async def test_what_is_not_metered_reserves_nothing() -> None:
    """The offline rules cost nothing: no reservation, no use, whatever the cap."""
    budget = CountedBudget(1)
    result = await plan(Rules(), budget=budget)
    assert (budget.reserved, result.usage, result.stop_reason) == ({}, Usage(), "finished")
    free = ScriptedModel([ModelReply("", (calling("list_tasks"),), "calls", Usage(9, 9))])
    free.metered = False
    assert (await plan(free, budget=budget)).usage == Usage()
    assert OpenAiCompatible("http://127.0.0.1:9", model="m").metered
