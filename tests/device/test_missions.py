"""Missions and agents as the person keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from mana.device.agents import UnknownPreset, policy_words
from mana.device.editing import OwnOperation
from mana.device.errors import Offline
from mana.device.missions import InputNotThere
from mana.device.opened import AgentNotFound, MissionNotFound
from mana.device.runner import NotRunHere
from mana.device.words import reason_words
from mana.domain.cadences import Cadence, cadence_from_wire
from mana.domain.errors import Invalid
from mana.domain.missions import InputRef
from mana.domain.policy import AGGRESSIVE, CAUTIOUS, STANDARD
from mana.testing.postgres import Database
from tests.device.household import Household, household, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def test_agent_is_kept_whole_and_described_in_words(home: Household) -> None:
    """What was written of an agent comes back, with what it may do in words and by tool."""
    ada = await home.person()
    made = await ada.create_agent("Mira", role="helps", memory="likes tea", tokens_per_day_max=9)
    view = await ada.agent(made)
    assert (view.name, view.role, view.memory, view.tokens_per_day_max) == (
        "Mira",
        "helps",
        "likes tea",
        9,
    )
    assert (view.preset, view.decisions["create_task"]) == ("standard", "propose")
    await ada.edit_agent(made, memory="likes coffee", preset="aggressive", state="paused")
    view = await ada.agent(made)
    assert (view.memory, view.preset, view.state) == ("likes coffee", "aggressive", "paused")
    assert view.decisions["create_task"] == "auto"
    with pytest.raises(UnknownPreset):
        await ada.edit_agent(made, preset="reckless")
    with pytest.raises(Invalid):
        await ada.edit_agent(made, name="  ")
    with pytest.raises(Invalid):
        await ada.edit_agent(made, concurrent_max=0)
    await ada.delete_agent(made)
    with pytest.raises(AgentNotFound):
        await ada.agent(made)
    assert await ada.agents() == []


def test_policy_is_told_with_its_floors() -> None:
    """The words say what really happens, floors included, and nothing at all without a policy."""
    assert policy_words(STANDARD) == (
        "may read; asks before it writes; asks before it deletes; asks before it sends anything out"
    )
    assert policy_words(CAUTIOUS).endswith("never deletes; never sends anything out")
    assert policy_words(AGGRESSIVE).startswith("may read; writes by itself; asks before it deletes")
    assert policy_words(None).startswith("may do nothing")


async def test_mission_is_checked_when_it_is_written(home: Household) -> None:
    """Unknown agents, inputs, zones, places and cadences are refused with their codes."""
    ada = await home.person()
    mission, notes, _ = await planned_mission(ada)
    agent = (await ada.agents())[0].agent_id
    with pytest.raises(AgentNotFound):
        await ada.create_mission("A", "B", agent_id="nobody")
    with pytest.raises(InputNotThere):
        await ada.edit_mission(mission, inputs=[InputRef("notes", "notes", "nothing")])
    with pytest.raises(InputNotThere):
        await ada.edit_mission(mission, inputs=[InputRef("todo", "notes", notes[0])])
    with pytest.raises(Invalid):
        await ada.edit_mission(mission, zone="Mars/Olympus")
    with pytest.raises(Invalid):
        await ada.edit_mission(mission, runs_on="elsewhere")
    with pytest.raises(Invalid):
        await ada.create_mission("A", "B", agent_id=agent, cadence=Cadence("cron"))
    with pytest.raises(Invalid):
        await ada.create_mission("  ", "B", agent_id=agent)
    with pytest.raises(OwnOperation):
        await ada.edit("aiMissions", mission, {"title": "Directly"})
    with pytest.raises(MissionNotFound):
        await ada.mission("nothing")


async def test_mission_shows_when_it_runs_next_and_why_it_waits(home: Household) -> None:
    """The next three moments follow from the cadence; without a grant the hub says it waits."""
    ada = await home.person()
    mission, _, _ = await planned_mission(
        ada, cadence=Cadence("interval", every_minutes=30), zone="Europe/Berlin"
    )
    view = await ada.mission(mission)
    assert view.cadence_words == "every 30 minutes"
    assert [b - a for a, b in zip(view.next_ms, view.next_ms[1:], strict=False)] == [1_800_000] * 2
    assert [one.title for one in view.input_titles] == [
        "Offer",
        "Garden",
        "Hand in the tax form",
        "Oil the chain",
    ]
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    view = await ada.mission(mission)
    assert view.runs[0].state == "skipped"
    assert view.runs[0].reason_words.startswith("Nothing is granted")
    assert (view.hold, view.hold_words) == ("no-grant", "Waits for your grant.")
    assert view.on_change is None
    await ada.edit_mission(
        mission,
        runs_on="device",
        cadence=Cadence("onChange", debounce_minutes=5, spacing_minutes=60),
    )
    waits = (await ada.mission(mission)).on_change
    assert waits is not None
    assert waits.changed_ms is not None
    assert (waits.due_ms, waits.rests_until_ms) == (None, None)
    await ada.edit_mission(mission, state="paused")
    assert (await ada.mission(mission)).next_ms == ()


async def test_mission_moves_only_with_the_hub(home: Household) -> None:
    """A mission runs in one place: moving it offline is refused and changes nothing."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.sync_now()
    home.places[0].wire.is_cut = True
    with pytest.raises(Offline):
        await ada.edit_mission(mission, runs_on="device")
    assert not (await ada.mission(mission)).runs_here
    home.places[0].wire.is_cut = False
    await ada.edit_mission(mission, runs_on="device")
    assert (await ada.mission(mission)).runs_here


async def test_own_tool_call_is_applied_at_once(home: Household) -> None:
    """A person's own tool call asks no policy and is applied."""
    ada = await home.person()
    outcome = await ada.use_tool("create_task", {"title": "Mine"})
    assert outcome.changes[0].record_id == (await ada.list("tasks"))[0].id
    (picked,) = await ada.inputs()
    assert picked[1] == "Mine"
    await ada.edit("tasks", picked[0].id, {"dueDate": ""})
    await ada.delete("tasks", picked[0].id)
    assert await ada.list("tasks") == []
    await ada.restore("tasks", picked[0].id)
    assert len(await ada.list("tasks")) == 1


async def test_mission_keeps_its_caps_and_its_policy_for_missed_moments(home: Household) -> None:
    """What a day may cost and what becomes of missed moments is written, shown and cleared."""
    ada = await home.person()
    first, _, _ = await planned_mission(ada)
    view = await ada.mission(first)
    assert (view.if_missed, view.tokens_per_day_max, view.cost_per_day_max) == ("once", None, None)
    made = await ada.create_mission(
        "Nightly",
        "Look",
        agent_id=view.agent_id,
        cadence=cadence_from_wire({"kind": "cron", "expression": "30 6 * * 1-5"}),
        zone="Europe/Berlin",
        if_missed="skip",
        tokens_per_day_max=0,
        cost_per_day_max=2_500_000,
    )
    view = await ada.mission(made)
    assert (view.if_missed, view.tokens_per_day_max, view.cost_per_day_max) == (
        "skip",
        0,
        2_500_000,
    )
    local = [datetime.fromtimestamp(ms / 1_000, tz=ZoneInfo(view.zone)) for ms in view.next_ms]
    assert len(local) == 3
    assert {(one.hour, one.minute) for one in local} == {(6, 30)}
    assert all(one.weekday() < 5 for one in local)
    await ada.edit_mission(made, tokens_per_day_max=None, cost_per_day_max=None, if_missed="all")
    view = await ada.mission(made)
    assert (view.if_missed, view.tokens_per_day_max, view.cost_per_day_max) == ("all", None, None)
    with pytest.raises(Invalid):
        await ada.edit_mission(made, tokens_per_day_max=-1)
    with pytest.raises(Invalid):
        await ada.edit_mission(made, if_missed="never")  # type: ignore[typeddict-item]


async def test_run_is_stopped_and_resumed_where_it_runs(home: Household) -> None:
    """The hub is asked for its missions, and another device's cannot be reached from here."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.sync_now()
    await ada.stop_mission(mission)
    await ada.resume_mission(mission)
    asked = [path for _, path, _ in home.places[0].wire.seen]
    assert any(path.endswith(f"/missions/{mission}/stop") for path in asked)
    assert any(path.endswith(f"/missions/{mission}/resume") for path in asked)
    await ada.edit_mission(mission, runs_on="device")
    await ada.resume_mission(mission)
    phone = await home.second()
    await phone.sync_now()
    with pytest.raises(NotRunHere):
        await phone.stop_mission(mission)
    with pytest.raises(NotRunHere):
        await phone.resume_mission(mission)
    await ada.edit_mission(mission, runs_on="hub")
    home.places[0].wire.is_cut = True
    with pytest.raises(Offline):
        await ada.stop_mission(mission)


def test_reasons_are_told_in_words_with_their_scope_and_currency() -> None:
    """Each class of failure and each cap has a sentence; costs are in the hub's currency."""
    assert reason_words("skipped", "budget:hub:cost:0/5000000", currency="EUR") == (
        "The hub's budget of 5.00 EUR a day is used up."
    )
    assert reason_words("skipped", "budget:account:tokens:1/9000") == (
        "Your budget of 9,000 tokens a day has 1 token left, too little for one call."
    )
    assert reason_words("skipped", "budget:0/0") == (
        "The agent's budget is 0 tokens, so nothing runs under it."
    )
    assert reason_words("missed", "") == "It was due while nothing could run."
