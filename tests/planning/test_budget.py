"""Money: what is reserved, what is granted smaller, and that nobody can lie a cap away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.money import FREE, Price, amount_words
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.rules import Rules
from mana.planning.asking import prompt_tokens
from mana.planning.budget import (
    COMPLETION_TOKENS_MIN,
    TOKENS_MAX,
    BudgetRefusal,
    Cap,
    budget_reason,
    counted,
    counted_tokens,
    estimated_tokens,
    fitting,
    fitting_all,
    is_sane,
    is_used_up,
    read_budget_reason,
    used_up,
)
from mana.planning.loop import COMPLETION_TOKENS_MAX
from mana.planning.ports import (
    CAP_SCOPES,
    BudgetExceeded,
    CapScope,
    CapUnit,
    ModelCall,
    ModelReply,
    PriceUnknown,
    Usage,
)
from mana.testing.models import CountedBudget, ScriptedModel, calling, says
from tests.planning.given import plan

counts = st.integers(-(10**9), 10**15) | st.integers(0, 5_000)
usages = st.none() | st.builds(Usage, counts, counts)


@given(
    st.integers(0, 50_000),
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 5_000), usages), max_size=12),
)
@pytest.mark.anyio
async def test_no_reply_lifts_the_cap(cap: int, calls: list[tuple[int, int, Usage | None]]) -> None:
    """Whatever providers report, no call starts at the cap, and what is reported is counted."""
    budget = CountedBudget(cap)
    for prompt, wanted, usage in calls:
        before = budget.spent
        try:
            reservation = await budget.reserve(
                prompt, wanted, ModelCall("scripted:test", "scripted")
            )
        except BudgetExceeded as refused:
            assert (refused.left, refused.cap) == (max(cap - before, 0), cap)
            assert before >= cap or cap - before - prompt < min(wanted, COMPLETION_TOKENS_MIN)
            continue
        assert before < cap
        assert budget.spent == before + prompt + reservation.completion_tokens_max <= cap
        assert min(wanted, COMPLETION_TOKENS_MIN) <= reservation.completion_tokens_max <= wanted
        await budget.settle(reservation.id, usage)
        assert budget.spent >= before
        if usage is not None and is_sane(usage.prompt_tokens, usage.completion_tokens):
            assert budget.spent - before == usage.total


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


UNITS: tuple[CapUnit, ...] = ("tokens", "cost")
scopes = st.sampled_from(CAP_SCOPES)
units = st.sampled_from(UNITS)
prices = st.builds(Price, st.integers(0, 10**8), st.integers(0, 10**8))
caps = st.builds(Cap, scopes, units, st.integers(0, 50_000), st.integers(0, 60_000))


def taken(cap: Cap, prompt: int, completion: int, price: Price) -> int:
    """Return what a cap's sum would be after a call."""
    if cap.unit == "tokens":
        return cap.counted + prompt + completion
    return cap.counted + price.cost(prompt, completion)


@given(st.integers(0, 9_000), st.integers(0, 5_000), st.lists(caps, max_size=8), prices)
def test_every_cap_holds_the_whole_call(
    prompt: int, wanted: int, given_caps: list[Cap], price: Price
) -> None:
    """A call is granted as long as all caps hold it, no shorter, and refused by one that does not."""
    floor = min(wanted, COMPLETION_TOKENS_MIN)
    binding = [one for one in given_caps if one.unit == "tokens" or price != FREE or not one.cap]
    fits = [one for one in binding if one.left > 0 and taken(one, prompt, floor, price) <= one.cap]
    try:
        granted = fitting_all(prompt, wanted, given_caps, price)
    except BudgetExceeded as refused:
        first = next(one for one in binding if one not in fits)
        assert (refused.scope, refused.unit, refused.cap) == (first.scope, first.unit, first.cap)
        assert refused.left == max(first.left, 0)
        return
    assert fits == binding
    assert floor <= granted <= wanted
    assert all(taken(one, prompt, granted, price) <= one.cap for one in binding)
    longer = [taken(one, prompt, granted + 1, price) > one.cap for one in binding]
    assert granted == wanted or any(longer)


@pytest.mark.parametrize("scope", CAP_SCOPES)
@pytest.mark.parametrize("unit", UNITS)
def test_exactly_at_the_cap_and_one_above(scope: CapScope, unit: CapUnit) -> None:
    """What fills a cap to the last token or millionth is granted, and one more is refused."""
    price = Price(2_000_000, 2_000_000)
    needs = 356 if unit == "tokens" else 712
    assert fitting_all(100, 256, [Cap(scope, unit, 1_000, 1_000 - needs)], price) == 256
    with pytest.raises(BudgetExceeded) as refused:
        fitting_all(100, 256, [Cap(scope, unit, 1_000, 1_001 - needs)], price)
    found = refused.value
    assert (found.scope, found.unit, found.left) == (scope, unit, needs - 1)
    with pytest.raises(BudgetExceeded):
        fitting_all(100, 256, [Cap(scope, unit, 0, 0)], FREE)


def test_costs_need_a_price() -> None:
    """Under a cap of costs a model without a price is refused; one that is free is not."""
    cap = Cap("mission", "cost", 1_000, 1_000)
    with pytest.raises(PriceUnknown):
        fitting_all(10, 300, [cap], None)
    assert fitting_all(10, 300, [Cap("mission", "tokens", 1_000, 0)], None) == 300
    assert fitting_all(10, 300, [cap], FREE) == 300


@given(prices, st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_reply_for_what_is_left(price: Price, prompt: int, left: int) -> None:
    """The longest reply that a price allows costs at most what is left, and one token more does not."""
    longest = price.completion_tokens(prompt, left)
    if longest < 0:
        assert price.cost(prompt, 0) > left
        return
    assert price.cost(prompt, longest) <= left
    assert not price.completion or price.cost(prompt, longest + 1) > left


@pytest.mark.parametrize(
    ("usage", "is_believed"),
    [
        (Usage(100, 20), True),
        (Usage(99, 20), False),
        (Usage(4_064, 20), True),
        (Usage(4_065, 20), False),
        (Usage(100, 19), False),
        (Usage(100, 4_000), True),
        (Usage(100, 4_001), False),
        (Usage(-1, 20), False),
        (None, False),
    ],
)
def test_what_can_be_true_is_counted(usage: Usage | None, is_believed: bool) -> None:
    """A report counts from a fortieth of the bytes to a token each and 64, or four whole replies."""
    found = counted(usage, sent_bytes=4_000, reply_bytes=800, completion_tokens_max=1_000)
    assert found == (usage if is_believed else None)


@given(usages, st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 5_000))
def test_no_report_eats_a_day(
    usage: Usage | None, sent_bytes: int, reply_bytes: int, completion_max: int
) -> None:
    """Whatever is reported, a call counts at most a few times its reservation, and never nothing."""
    found = counted(
        usage,
        sent_bytes=sent_bytes,
        reply_bytes=reply_bytes,
        completion_tokens_max=completion_max,
    )
    reserved = estimated_tokens(sent_bytes) + completion_max
    spent = counted_tokens(found, reserved)
    assert spent <= 4 * reserved + 64
    if found is not None:
        assert spent * 40 >= sent_bytes + reply_bytes


@given(st.integers(0, 50_000), st.integers(1, 5_000), st.integers(0, 50_000))
def test_who_knows_the_reservation_alone_agrees(
    sent_bytes: int, completion_max: int, prompt: int
) -> None:
    """What a worker refuses to believe for being too much, the runner refuses as well."""
    usage = Usage(prompt, completion_max)
    seen = counted(
        usage, sent_bytes=sent_bytes, reply_bytes=0, completion_tokens_max=completion_max
    )
    again = counted(
        usage,
        sent_bytes=3 * estimated_tokens(sent_bytes),
        reply_bytes=0,
        completion_tokens_max=completion_max,
    )
    if prompt > sent_bytes + 64 + 2:
        assert seen is again is None
    if again is None and seen is not None:
        assert prompt * 40 < sent_bytes + 2


@pytest.mark.parametrize(
    ("cap", "metered", "priced", "reason"),
    [
        (Cap("agent", "tokens", 10, 9), True, True, None),
        (Cap("agent", "tokens", 10, 10), True, True, "budget:agent:tokens:0/10"),
        (Cap("hub", "tokens", 10, 11), True, False, "budget:hub:tokens:0/10"),
        (Cap("mission", "tokens", 10, 10), False, False, None),
        (Cap("account", "cost", 10, 10), True, True, "budget:account:cost:0/10"),
        (Cap("account", "cost", 10, 10), True, False, None),
        (Cap("mission", "cost", 0, 0), False, False, "budget:mission:cost:0/0"),
    ],
)
def test_a_run_does_not_begin_in_vain(
    cap: Cap, metered: bool, priced: bool, reason: str | None
) -> None:
    """A cap that is used up stops a run before it begins, if its models would need it."""
    assert used_up([Cap("mission", "tokens", 5, 0), cap], metered=metered, priced=priced) == reason


@given(st.integers(0, 10**17), st.integers(0, 10**17), scopes, units)
def test_a_reason_keeps_its_numbers(left: int, cap: int, scope: CapScope, unit: CapUnit) -> None:
    """Whose cap it was, what was left and the cap are read from a reason as they were written."""
    reason = budget_reason(left, cap, scope, unit)
    assert read_budget_reason(reason) == BudgetRefusal(left, cap, scope, unit)


def test_old_reasons_are_read() -> None:
    """A ledger of an earlier version, which names no scope, means the agent's tokens."""
    assert read_budget_reason("budget:3/10") == BudgetRefusal(3, 10, "agent", "tokens")


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "budget",
        "budget:",
        "budget:1",
        "budget:-1/2",
        "x:1/2",
        "budget:agent:1/2",
        "budget:friend:tokens:1/2",
        "budget:hub:hours:1/2",
        "budget:hub:cost:1/2\n",
        "budget:\u0661/2",
    ],
)
def test_other_reasons_have_no_numbers(reason: str) -> None:
    """Only the reason of budgets, and in its two forms, has numbers."""
    assert read_budget_reason(reason) is None


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (0, "0.00 USD"),
        (1, "0.000001 USD"),
        (9_999, "0.009999 USD"),
        (10_000, "0.01 USD"),
        (1_239_999, "1.23 USD"),
        (1_234_567_890_000, "1,234,567.89 USD"),
    ],
)
def test_costs_are_readable(cost: int, words: str) -> None:
    """A cost is shown in the currency, and a small one is not shown as nothing."""
    assert amount_words(cost, "USD") == words


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
