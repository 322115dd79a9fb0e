"""Asking: who is asked next, what is reserved and settled for each try, and what is believed."""

from __future__ import annotations

import pytest

from mana.domain.money import FREE, Price
from mana.planning.asking import prompt_tokens
from mana.planning.ports import (
    FAILURE_KINDS,
    BudgetExceeded,
    Candidate,
    FunctionCall,
    ModelCall,
    ModelFailed,
    ModelReply,
    Moment,
    PriceUnknown,
    Purpose,
    Reservation,
    Usage,
)
from mana.testing.models import CountedBudget, ScriptedModel, calling, says
from tests.planning.given import plan, worst_case

pytestmark = pytest.mark.anyio


def named(name: str, *replies: ModelReply | ModelFailed) -> ScriptedModel:
    """Return a model of this name, behind an endpoint of its own."""
    model = ScriptedModel(replies)
    model.name, model.endpoint = name, f"scripted:{name}"
    return model


class NotedBudget(CountedBudget):
    """A budget that notes what each reservation was for, and knows which models have no price."""

    def __init__(self, *unpriced: str) -> None:
        super().__init__()
        self.calls: list[ModelCall] = []
        self._unpriced = unpriced

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Note the call, then reserve as any budget."""
        self.calls.append(call)
        if call.model in self._unpriced:
            raise PriceUnknown("no price")
        return await super().reserve(prompt_tokens, completion_tokens_max, call)


@pytest.mark.parametrize("kind", FAILURE_KINDS)
async def test_another_endpoint_is_asked_where_it_may_help(kind: str) -> None:
    """A dead, slow, busy or locked endpoint gives way to the next; a refused reply does not."""
    first = named("first", ModelFailed(kind))  # type: ignore[arg-type]
    second = named("second", says("Done."))
    if kind == "refused-reply":
        with pytest.raises(ModelFailed):
            await plan(first, second)
        assert second.requests == []
        return
    result = await plan(first, second)
    assert (result.model, result.endpoint) == ("second", "scripted:second")
    assert [(one.model, one.kind) for one in result.fallbacks] == [("first", kind)]
    assert result.usage_to_wire()["fallbacks"] == [kind]


async def test_each_try_is_a_call_of_its_own() -> None:
    """Every try is reserved at its own model's price; what failed stays counted in full."""
    budget = NotedBudget()
    dear, cheap = Price(9, 9), Price(1, 1)
    first = Candidate(named("first", ModelFailed("timeout")), dear)
    second = Candidate(named("second", says("Done.", usage=Usage(2_000, 10))), cheap)
    result = await plan(first, second, budget=budget)
    assert [(c.model, c.price, c.purpose) for c in budget.calls] == [
        ("first", dear, "plan"),
        ("second", cheap, "plan"),
    ]
    failed, answered = budget.reserved
    assert budget.settled == {failed: budget.reserved[failed], answered: 2_010}
    assert [(s.model, s.price, s.calls, s.usage) for s in result.spent] == [
        ("first", dear, 1, Usage()),
        ("second", cheap, 1, Usage(2_000, 10)),
    ]


async def test_a_try_that_no_model_worked_on_counts_nothing() -> None:
    """Where it is certain that the first choice did no work, only the fall-back's use counts."""
    budget = NotedBudget()
    first = named("first", ModelFailed("provider", unbilled=True))
    result = await plan(first, named("second", says("", usage=Usage(2_000, 10))), budget=budget)
    failed, answered = budget.reserved
    assert budget.settled == {failed: 0, answered: 2_010}
    assert [(one.model, one.calls) for one in result.spent] == [("first", 1), ("second", 1)]


async def test_a_run_stays_with_the_model_that_answered() -> None:
    """A dead endpoint costs one wait: later rounds go to the fall-back at once."""
    first = named("first", ModelFailed("timeout"))
    second = named("second", says("", calling("list_tasks")), says("Done."))
    result = await plan(first, second)
    assert (len(first.requests), len(second.requests)) == (1, 2)
    assert result.stop_reason == "finished"


async def test_nobody_is_left() -> None:
    """When all have failed, the run fails as the last one did; what was planned is kept."""
    with pytest.raises(ModelFailed) as failed:
        await plan(named("a", ModelFailed("timeout")), named("b", ModelFailed("auth")))
    assert failed.value.kind == "auth"
    begun = named("a", says("", calling("create_task", {"title": "A"})), ModelFailed("provider"))
    result = await plan(begun, named("b", ModelFailed("provider")))
    assert (result.stop_reason, len(result.steps)) == ("model-failed", 1)


async def test_a_fall_back_without_a_price_is_passed_over() -> None:
    """Under a cap of costs only models with a price are asked, and the first choice decides."""
    with pytest.raises(PriceUnknown):
        await plan(named("first"), named("second"), budget=NotedBudget("first"))
    models = (named("first", ModelFailed("timeout")), named("second"), named("third"))
    result = await plan(*models, budget=NotedBudget("second"))
    assert (result.model, models[1].requests) == ("third", [])
    models = (named("first", ModelFailed("timeout")), named("second"), named("third"))
    with pytest.raises(ModelFailed) as failed:
        await plan(*models, budget=NotedBudget("second", "third"))
    assert failed.value.kind == "timeout"


async def test_a_fall_back_is_within_the_budget_too() -> None:
    """What the failed try holds is not there for the next one."""
    size = prompt_tokens((await probe()).requests[0])
    first = named("first", ModelFailed("timeout"))
    second = named("second")
    with pytest.raises(BudgetExceeded):
        await plan(first, second, budget=CountedBudget(size + 4_096))
    assert (len(first.requests), second.requests) == (1, [])


async def probe() -> ScriptedModel:
    """Return a model that was asked once."""
    model = ScriptedModel()
    await plan(model)
    return model


@pytest.mark.parametrize(
    ("usage", "believed"),
    [
        (Usage(2_000, 1), True),
        (Usage(1, 1), False),
        (Usage(10**9, 1), False),
        (Usage(2_000, 10**6), False),
        (Usage(-2_000, 1), False),
        (None, False),
    ],
)
async def test_what_cannot_be_true_counts_in_full(usage: Usage | None, believed: bool) -> None:
    """A report is held against the bytes that went each way; what cannot be leaves all counted."""
    budget = CountedBudget()
    model = ScriptedModel([ModelReply("Done.", (), "stop", usage)])
    result = await plan(model, budget=budget)
    counted = usage.total if usage is not None and believed else worst_case(model.requests[0])
    assert budget.spent == counted
    assert result.usage == (usage if believed else Usage())


async def test_a_report_below_the_reply_counts_in_full() -> None:
    """A long reply cannot have cost a token, also where it is all in its calls."""
    for reply in (
        ModelReply("x" * 4_000, (), "stop", Usage(2_000, 2)),
        ModelReply("", (FunctionCall("1", "x", {"a": "y" * 4_000}),), "calls", Usage(2_000, 2)),
    ):
        budget = CountedBudget()
        await plan(ScriptedModel([reply]), budget=budget, rounds_max=1)
        assert budget.spent == sum(budget.reserved.values())


async def test_progress_is_numbers() -> None:
    """Who watches hears the round, the calls, the steps, and how much of a reply has come."""
    seen: list[Moment] = []

    class Watching:
        def phase(self, name: str) -> None:
            """Leave it."""

        def moment(self, moment: Moment) -> None:
            """Keep it."""
            seen.append(moment)

    def tells(request: object) -> ModelReply:
        heard = model.requests[-1].heard
        assert heard is not None
        heard(17)
        calls = [calling("create_task", {"title": t}, id=t) for t in "AB"]
        return says("", *calls) if len(model.requests) == 1 else says("Done.")

    model = ScriptedModel([tells, tells])
    await plan(model, progress=Watching())
    assert seen == [
        Moment("model", 1, 0, 0, 0),
        Moment("model", 1, 0, 0, 17),
        Moment("tools", 1, 1, 1, 0),
        Moment("tools", 1, 2, 2, 0),
        Moment("model", 2, 2, 2, 0),
        Moment("model", 2, 2, 2, 17),
    ]


async def test_the_stored_usage_fits_its_field() -> None:
    """Whatever a run did, what is kept of it fits into the iteration's field."""
    failing = [named(f"m{n}", ModelFailed("rate-limit")) for n in range(30)]
    result = await plan(*failing, named("last", says("Done.", usage=Usage(2_000, 40))))
    wire = result.usage_to_wire()
    assert len(str(wire)) < 512
    assert wire["promptTokens"] == 2_000
    assert wire["completionTokens"] == 40
    assert wire["modelCalls"] == 31


async def test_what_costs_nothing_reserves_nothing() -> None:
    """A model that is not metered is asked without a budget, for every purpose."""
    purposes: tuple[Purpose, ...] = ("plan", "sub-agent", "compaction")
    free = ScriptedModel([says("Done.")])
    free.metered = False
    budget = NotedBudget()
    result = await plan(Candidate(free, FREE), budget=budget)
    assert (budget.calls, result.usage) == ([], Usage())
    assert sum(s.calls for s in result.spent if s.purpose in purposes) == 1
