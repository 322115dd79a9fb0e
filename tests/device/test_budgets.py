"""Money on a device: reserved before a call, sliced for off line, settled, and never forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mana.device.budgets import (
    SLICE_LIFE_MS,
    SLICE_TOKENS,
    Budgets,
    HubNeeded,
    Purse,
)
from mana.device.desk import Device
from mana.device.holders import Holder
from mana.device.views import RunView
from mana.device.words import NEEDS_HUB
from mana.domain.cadences import Cadence
from mana.domain.money import Price
from mana.planning.budget import COMPLETION_TOKENS_MIN
from mana.planning.ports import (
    BudgetExceeded,
    ModelCall,
    ModelFailed,
    ModelReply,
    ModelRequest,
    PriceUnknown,
    Usage,
)
from mana.protocol.messages import SetWork
from mana.testing.models import ScriptedModel, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission
from tests.device.test_foreground import HOUR_MS, Hanging, later

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
CALL = ModelCall("scripted:test", "scripted")


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def purse_of(device: Device, mission_id: str) -> Purse:
    opened = operations(device).opened
    mission = await opened.mission(mission_id)
    return Purse(opened.space, mission, await opened.agent(mission.agent_id))


async def hub_tokens(device: Device, agent_id: str) -> int:
    """Return what the hub counts for an agent."""
    return (await operations(device).opened.hub.missions()).tokens_today.get(agent_id, 0)


async def test_call_is_reserved_before_it_is_made_and_settled_after_it(home: Household) -> None:
    """While the model answers, disk and hub count the worst case; then what was used."""
    seen: list[tuple[int, int]] = []

    class Looking(ScriptedModel):
        async def complete(self, request: ModelRequest) -> ModelReply:
            (held,) = await operations(ada).budgets.all()
            assert held.reservation
            seen.append((held.counted, await hub_tokens(ada, agent)))
            return await super().complete(request)

    ada = await home.person(model=Looking([says("Nothing to do.", usage=Usage(3_000, 40))]))
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, tokens_per_day_max=100_000)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.tokens) == ("done", 3_040)
    ((worst, counted),) = seen
    assert worst == counted > 3_040
    assert await operations(ada).budgets.all() == []
    assert await hub_tokens(ada, agent) == 3_040
    assert (await ada.agent(agent)).tokens_today == 3_040


@pytest.mark.parametrize("scope", ["mission", "agent", "account"])
async def test_each_cap_holds_on_a_device(home: Household, scope: str) -> None:
    """A cap of the mission, its agent or the account refuses the call, and is named in words."""
    planner = ScriptedModel()
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    if scope == "mission":
        await ada.edit_mission(mission, tokens_per_day_max=500)
    elif scope == "agent":
        await ada.edit_agent((await ada.agents())[0].agent_id, tokens_per_day_max=500)
    else:
        assert (await ada.set_caps(tokens_per_day_max=500)).tokens_per_day_max == 500
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", f"budget:{scope}:tokens:500/500")
    whose = {"mission": "The mission's", "agent": "The agent's", "account": "Your"}[scope]
    assert run.reason_words == (
        f"{whose} budget of 500 tokens a day has 500 tokens left, too little for one call."
    )
    assert planner.requests == []
    waits = (await ada.mission(mission)).cap_wait
    assert waits is not None
    assert (waits.scope, waits.unit, waits.cap) == (scope, "tokens", 500)
    if scope == "account":
        assert (await ada.set_caps(tokens_per_day_max=None)).tokens_per_day_max is None
        done = await ada.run_now(mission)
        assert done is not None
        assert done.state == "done"
        assert (await ada.mission(mission)).cap_wait is None


@pytest.mark.parametrize("scope", ["mission", "agent"])
async def test_a_cap_set_a_moment_ago_holds(home: Household, scope: str) -> None:
    """A cap that has not been sent yet is sent before a call is reserved, which it refuses."""
    planner = ScriptedModel()
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    await operations(ada).opened.book._syncer().close()
    if scope == "mission":
        await ada.edit_mission(mission, tokens_per_day_max=500)
    else:
        await ada.edit_agent((await ada.agents())[0].agent_id, tokens_per_day_max=500)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", f"budget:{scope}:tokens:500/500")
    assert planner.requests == []


async def test_a_cap_that_the_hub_cannot_be_told_is_not_passed_by(home: Household) -> None:
    """Where the hub does not take a new cap, nothing is reserved under the old one."""
    planner = ScriptedModel()
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    await operations(ada).opened.book._syncer().close()
    await ada.edit_agent((await ada.agents())[0].agent_id, tokens_per_day_max=500)

    async def deaf(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method == "POST" and request.url.path.endswith("/changes"):
            raise httpx.ConnectError("cut", request=request)
        return None

    home.places[0].wire.on_request = deaf
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", NEEDS_HUB)
    assert planner.requests == []


@pytest.mark.parametrize("scope", ["mission", "agent", "account"])
async def test_without_the_hub_nothing_is_spent_under_a_cap(home: Household, scope: str) -> None:
    """Off line, under a cap and without a slice, no model is called, and the reason says so."""
    planner = ScriptedModel()
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    if scope == "mission":
        await ada.edit_mission(mission, cost_per_day_max=5_000_000)
    elif scope == "agent":
        await ada.edit_agent((await ada.agents())[0].agent_id, tokens_per_day_max=90_000)
    else:
        await ada.set_caps(tokens_per_day_max=90_000)
    await ada.sync_now()
    home.places[0].wire.is_cut = True
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", NEEDS_HUB)
    assert "hub cannot be reached" in run.reason_words
    home.clock.ahead_ms += HOUR_MS
    (line,) = await operations(ada).runner.run_due()
    assert (line.state, line.last_reason, line.tries) == ("queued", NEEDS_HUB, 0)
    assert planner.requests == []
    home.places[0].wire.is_cut = False
    home.clock.ahead_ms += 90_000
    (again,) = await operations(ada).runner.run_due()
    assert (again.state, again.scheduled_ms) == ("done", line.scheduled_ms)


async def test_without_caps_a_device_spends_off_line_and_reports(home: Household) -> None:
    """Off line and without caps a run is made, counted here, and told to the hub later, once."""
    ada = await home.person(model=ScriptedModel([says("Done.", usage=Usage(2_500, 10))]))
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.sync_now()
    home.places[0].wire.is_cut = True
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.tokens) == ("done", 2_510)
    of = operations(ada)
    assert (await ada.agent(agent)).tokens_today == 2_510
    usage = await ada.usage(7)
    assert not usage.hub_answered
    assert {(day.scope, day.name, day.tokens) for day in usage.days} == {
        ("account", "", 2_510),
        ("agent", "Mira", 2_510),
        ("mission", "Weekly review", 2_510),
    }
    await of.budgets.report()
    assert len(await of.budgets.unreported()) == 1
    home.places[0].wire.is_cut = False
    home.clock.ahead_ms += 40_000
    await of.budgets.report()
    assert await of.budgets.all() == []
    assert await hub_tokens(ada, agent) == 2_510
    usage = await ada.usage(7)
    assert usage.hub_answered
    assert {(day.scope, day.tokens, day.model_calls) for day in usage.days} == {
        ("account", 2_510, 1),
        ("agent", 2_510, 1),
        ("mission", 2_510, 1),
    }


async def test_a_dead_endpoint_uses_up_no_cap_of_a_device(home: Household) -> None:
    """What no model worked on counts nothing, here and at the hub; what began counts in full, and the
    line says between two tries what it came to and in the end the sum.
    """
    planner = ScriptedModel(
        [
            ModelFailed("provider", unbilled=True),
            ModelFailed("provider"),
            says("Done.", usage=Usage(2_500, 10)),
        ]
    )
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, tokens_per_day_max=100_000)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.tries, run.tokens) == ("queued", 1, 0)
    assert await hub_tokens(ada, agent) == 0

    async def try_again() -> RunView:
        home.clock.ahead_ms += 400_000
        await operations(ada).runner.run_due()
        (line,) = (await ada.mission(mission)).runs
        assert await hub_tokens(ada, agent) == line.tokens
        (day,) = [one for one in (await ada.usage(7)).days if one.scope == "mission"]
        of_agent, of_all = await ada.agent(agent), await ada.work_state()
        for used in (
            (day.tokens, day.unconfirmed_tokens),
            (of_agent.tokens_today, of_agent.unconfirmed_tokens_today),
            (of_all.tokens_today, of_all.unconfirmed_tokens_today),
        ):
            assert used == (line.tokens, line.unconfirmed_tokens)
        return line

    waits = await try_again()
    worst = waits.unconfirmed_tokens
    assert (waits.state, waits.tries, waits.tokens) == ("queued", 2, worst)
    assert worst > COMPLETION_TOKENS_MIN
    done = await try_again()
    assert (done.state, done.tokens, done.unconfirmed_tokens) == ("done", worst + 2_510, worst)


async def test_slice_is_held_for_what_is_due_and_spent_off_line(home: Household) -> None:
    """Under a cap a device holds a slice for a mission that is due soon, and spends no more than it."""
    ada = await home.person(
        model=ScriptedModel([says("Done.", usage=Usage(2_000, 100)) for _ in range(9)])
    )
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, tokens_per_day_max=80_000)
    await ada.sync_now()
    of = operations(ada)
    await of.runner.keep_slices()
    await of.runner.keep_slices()
    (held,) = await of.budgets.all()
    assert (held.slice, held.tokens) == (True, SLICE_TOKENS)
    assert await hub_tokens(ada, agent) == SLICE_TOKENS
    home.places[0].wire.is_cut = True
    states = []
    for _ in range(9):
        run = await ada.run_now(mission)
        assert run is not None
        states.append(run.state)
    assert states.count("done") >= 2
    assert states[-1] == "skipped"
    (held,) = await of.budgets.all()
    assert held.counted <= held.tokens
    home.places[0].wire.is_cut = False
    later(home, SLICE_LIFE_MS + 60_000)
    await of.budgets.report()
    assert await of.budgets.all() == []
    assert await hub_tokens(ada, agent) == held.counted == 2_100 * states.count("done")


async def test_no_slice_is_held_where_none_is_needed(home: Household) -> None:
    """Without a cap, or for a mission that waits for its person, nothing is held back."""
    ada = await home.person(model=ScriptedModel())
    await planned_mission(ada, runs_on="device", cadence=Cadence("interval", every_minutes=60))
    of = operations(ada)
    await of.runner.keep_slices()
    assert await of.budgets.all() == []
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, tokens_per_day_max=4_000)
    await of.runner.keep_slices()
    assert await of.budgets.all() == []
    await ada.edit_agent(agent, tokens_per_day_max=400_000)
    await ada.edit_mission((await ada.missions())[0].mission_id, cadence=Cadence("manual"))
    await of.runner.keep_slices()
    assert await of.budgets.all() == []


async def test_what_a_crash_cut_off_counts_in_full(home: Household) -> None:
    """A call that a process left open counts its worst case, here and at the hub."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.sync_now()
    of = operations(ada)
    purse = await purse_of(ada, mission)
    holder = Holder(of.opened.book.settings.folder, ada.account_id)
    died = Budgets(of.opened, holder)
    await died.reserve(purse, 1_000, 500, CALL)
    home.places[0].wire.is_cut = True
    await died.reserve(purse, 2_000, 500, CALL)
    home.places[0].wire.is_cut = False
    await of.budgets.recover()
    assert [held.over for held in await of.budgets.all()] == [False, False]
    holder.release()
    await of.budgets.recover()
    assert [held.over for held in await of.budgets.all()] == [True, True]
    await of.budgets.report()
    assert await of.budgets.all() == []
    assert await hub_tokens(ada, agent) == 1_500 + 2_500


async def test_stopped_run_counts_the_call_that_was_cut_off(home: Household) -> None:
    """A call that was stopped is paid for: its worst case is in the ledger."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    await ada.stop_mission(mission)
    run = await running
    assert run is not None
    assert (run.reason, run.tokens > 1_000) == ("stopped", True)
    of = operations(ada)
    await of.budgets.report()
    assert await of.budgets.all() == []
    assert await hub_tokens(ada, (await ada.agents())[0].agent_id) == run.tokens


async def test_two_processes_spend_a_slice_once(home: Household) -> None:
    """Page and terminal of one device together spend no more off line than is reserved."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    await ada.edit_agent((await ada.agents())[0].agent_id, tokens_per_day_max=400_000)
    await ada.sync_now()
    of = operations(ada)
    await of.runner.keep_slices()
    purse = await purse_of(ada, mission)
    folder = of.opened.book.settings.folder
    both = [Budgets(of.opened, Holder(folder, ada.account_id)) for _ in range(2)]
    home.places[0].wire.is_cut = True
    asked = [one.reserve(purse, 1_000, 2_000, CALL) for one in both * 5]
    got = await asyncio.gather(*asked, return_exceptions=True)
    granted = [
        1_000 + one.completion_tokens_max for one in got if not isinstance(one, BaseException)
    ]
    assert len(granted) >= 5
    assert sum(granted) <= SLICE_TOKENS
    assert {type(one) for one in got if isinstance(one, BaseException)} == {HubNeeded}
    home.places[0].wire.is_cut = False


@pytest.mark.parametrize("is_cut", [False, True])
async def test_model_without_a_price_is_not_called_under_a_cap_of_costs(
    home: Household, is_cut: bool
) -> None:
    """Whether or not the hub can be asked: what nobody gave a price no cap of costs can hold."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.edit_mission(mission, cost_per_day_max=1_000_000)
    await ada.sync_now()
    home.places[0].wire.is_cut = is_cut
    budget = operations(ada).budgets.of_run(await purse_of(ada, mission))
    with pytest.raises(PriceUnknown):
        await budget.reserve(1_000, 500, ModelCall("x", "y", None))
    home.places[0].wire.is_cut = False
    await operations(ada).budgets.work()
    later(home, 60_000)
    dear = ModelCall("x", "y", Price(400_000_000, 400_000_000))
    granted = await budget.reserve(1_000, 2_000, dear)
    assert granted.completion_tokens_max == 1_500
    await budget.settle(granted.id, Usage(1_000, 300))
    assert (budget.tokens, budget.cost) == (1_300, 520_000)
    with pytest.raises(BudgetExceeded) as refused:
        await budget.reserve(1_000, 2_000, dear)
    assert (refused.value.scope, refused.value.unit, refused.value.left) == (
        "mission",
        "cost",
        480_000,
    )


async def test_the_hub_is_told_numbers_and_no_names(home: Household) -> None:
    """Where a device's model is, and what it is called, never leaves it with a reservation."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    sent = [body for _, path, body in home.places[0].wire.seen if "/reservations" in path]
    assert len(sent) >= 2
    assert not any(b"scripted" in body for body in sent)


async def test_account_caps_are_remembered_for_off_line(home: Household) -> None:
    """What the hub said of the account's caps holds on a device that starts without it."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    of = operations(ada)
    await of.work.tell()
    await of.opened.hub.set_work(SetWork(tokens_per_day_max=7_000))
    await of.work.tell()
    home.places[0].wire.is_cut = True
    fresh = Budgets(of.opened, Holder(of.opened.book.settings.folder, ada.account_id))
    with pytest.raises(HubNeeded):
        await fresh.reserve(await purse_of(ada, mission), 100, 100, CALL)
    home.places[0].wire.is_cut = False


async def test_what_the_hub_never_takes_is_dropped_after_its_day(home: Household) -> None:
    """A report of a mission that is gone waits for a day, and then no longer."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    of = operations(ada)
    home.places[0].wire.is_cut = True
    budget = of.budgets.of_run(await purse_of(ada, mission))
    got = await budget.reserve(500, 500, CALL)
    await budget.settle(got.id, Usage(400, 20))
    home.places[0].wire.is_cut = False

    async def gone(request: Any, under: Any) -> Any:
        if "/reservations" in request.url.path:
            request.url = request.url.copy_with(path="/api/v1/nowhere")
        return None

    home.places[0].wire.on_request = gone
    later(home, 60_000)
    await of.budgets.report()
    assert len(await of.budgets.all()) == 1
    later(home, 26 * HOUR_MS)
    await of.budgets.report()
    assert await of.budgets.all() == []
