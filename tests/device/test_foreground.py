"""Runs on this device, and steps that run by themselves: gates, claims, stops and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mana.device.errors import Offline
from mana.device.journal import decide_change_id
from mana.device.locks import FileLock
from mana.device.operations import runner_lock
from mana.device.records import RecordBook
from mana.device.runner import MissionBusy, NotRunHere
from mana.domain.cadences import Cadence
from mana.domain.errors import Conflict
from mana.domain.iterations import ITERATIONS, STEPS
from mana.planning.ports import ModelFailed, ModelReply, ModelRequest
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
HOUR_MS = 60 * 60 * 1_000


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def creating(*titles: str) -> ScriptedModel:
    calls = [calling("create_task", {"title": title}, id=title) for title in titles]
    return ScriptedModel([says("", *calls), says("Planned.")])


class Hanging(ScriptedModel):
    """A model that never answers, and knows whether it was cancelled."""

    cancelled = False

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def complete(self, request: ModelRequest) -> ModelReply:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("unreachable")


async def test_due_mission_runs_once_per_moment(home: Household) -> None:
    """A due moment is worked on once; of several missed ones the newest runs."""
    planner = creating("One")
    ada = await home.person(model=planner)
    of = operations(ada)
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    assert await of.runner.run_due() == []
    home.clock.ahead_ms = 5 * HOUR_MS + 1_000
    (line,) = await of.runner.run_due()
    assert (line.state, line.kind, line.mission_id) == ("done", "scheduled", mission)
    assert await of.runner.run_due() == []
    await of.opened.book.keep("runs", None)
    assert await of.runner.run_due() == []
    assert len(await of.opened.book.views(ITERATIONS.name)) == 1
    home.clock.ahead_ms += HOUR_MS
    assert len(await of.runner.run_due()) == 1


async def test_run_reads_the_inputs_and_nothing_else(home: Household) -> None:
    """A run's tools and prompt see the mission's inputs only."""
    planner = ScriptedModel([says("", calling("list_notes", {})), says("Done.")])
    ada = await home.person(model=planner)
    await ada.create("notes", {"title": "Diary", "content": "a secret of mine"})
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    text = str(planner.requests)
    assert "Send the offer" in text
    assert "a secret of mine" not in text
    assert "Diary" not in text


async def test_auto_steps_run_and_are_journalled(home: Household) -> None:
    """Under a policy that says auto, a step happens by itself, offline too, and is revertible."""
    ada = await home.person(model=creating("One", "Two"))
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    home.places[0].wire.is_cut = True
    await ada.run_now(mission)
    assert await ada.inbox() == []
    assert {"One", "Two"} <= {view.text("title") for view in await ada.list("tasks")}
    (bucket,) = await ada.timeline()
    assert [line.state for line in bucket.lines] == ["done", "done"]
    home.places[0].wire.is_cut = False
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    await ada.revert(f"mission:{mission}")
    assert len(await ada.list("tasks")) == 2


async def test_planned_steps_of_the_hub_are_claimed_by_one_device(home: Household) -> None:
    """A step that the hub's runner left planned is executed by exactly one device."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    before = len(await ada.list("tasks"))
    assert await ada.inbox() == []
    done = await asyncio.gather(
        operations(ada).runner.run_planned(), operations(phone).runner.run_planned()
    )
    assert sum(len(one) for one in done) == len(set(done[0]) | set(done[1])) > 0
    for device in (ada, phone, ada):
        await device.sync_now()
    after = await ada.list("tasks")
    assert len(after) > before
    assert {view.id for view in after} == {view.id for view in await phone.list("tasks")}
    (bucket,) = await phone.timeline()
    assert {line.state for line in bucket.lines} == {"done"}


async def test_crash_after_the_claim_is_made_up_for_once(home: Household) -> None:
    """A device that died after its claim finishes the step later, with the same ids."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    runner = operations(ada).runner
    steps = [
        view for view in await operations(ada).steps.views() if view.text("status") == "planned"
    ]
    for step in steps:
        case = await operations(ada).steps.case_of(step)
        assert await runner._executing._claim(case)
    done = await runner.run_planned()
    assert sorted(done) == sorted(step.id for step in steps)
    assert await runner.run_planned() == []
    book = operations(ada).opened.book
    for step_id in done:
        step = await book.record(STEPS.name, step_id)
        assert step is not None
        assert step.entries["status"].change_id == decide_change_id(step_id, STEPS.name, step_id)


async def test_claim_that_the_hub_has_not_taken_executes_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that waits in the outbox is no claim."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    before = len(await ada.list("tasks"))
    push = RecordBook._push_now

    async def cut(self: RecordBook, change_ids: list[str], spaces: set[str]) -> None:
        raise Offline("cut in the middle")

    monkeypatch.setattr(RecordBook, "_push_now", cut)
    home.places[0].wire.is_cut = True
    assert await operations(ada).runner.run_planned() == []
    assert await operations(ada).runner.run_planned() == []
    assert len(await ada.list("tasks")) == before
    monkeypatch.setattr(RecordBook, "_push_now", push)
    home.places[0].wire.is_cut = False
    assert await operations(ada).runner.run_planned()
    assert len(await ada.list("tasks")) > before


async def test_stricter_policy_turns_planned_steps_into_proposals(home: Household) -> None:
    """A step that was planned as auto asks the person if the policy is stricter by now."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    before = len(await ada.list("tasks"))
    agent = (await ada.agents())[0]
    await ada.edit_agent(agent.agent_id, preset="standard")
    assert await operations(ada).runner.run_planned() == []
    waiting = await ada.inbox()
    assert waiting
    assert len(await ada.list("tasks")) == before
    assert (await ada.approve(waiting[0].step_id)).state == "approved"


async def test_missing_agent_denies_planned_steps(home: Household) -> None:
    """Without its agent, a planned step is skipped: missing is deny."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    before = len(await ada.list("tasks"))
    of = operations(ada)
    agent = (await ada.agents())[0]
    await of.agents.delete(agent.agent_id)
    assert await of.runner.run_planned() == []
    assert len(await ada.list("tasks")) == before
    (bucket,) = await ada.timeline()
    assert {line.state for line in bucket.lines} == {"refused"}


async def test_timeout_cancels_the_model_and_changes_nothing(home: Household) -> None:
    """A run that takes too long is stopped, its model call too, and nothing was written."""
    hanging = Hanging()
    ada = await home.person(model=hanging, run_timeout_s=0.05)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("failed", "timeout")
    assert hanging.cancelled
    assert await ada.timeline() == []
    assert (await ada.agents())[0].tokens_today > 0


async def test_stop_stops_a_run(home: Household) -> None:
    """Stop ends a run at once; a second run of the same mission meanwhile is refused."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    assert (await ada.mission(mission)).phase == "model"
    with pytest.raises(MissionBusy):
        await ada.run_now(mission)
    await ada.stop_run(mission)
    run = await running
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")
    assert hanging.cancelled
    assert (await ada.mission(mission)).runs[0].reason_words == "You stopped it."
    assert (await ada.mission(mission)).phase == ""


async def test_gates_hold_in_the_foreground(home: Household) -> None:
    """A paused agent, a spent budget and a paused mission do not run here either."""
    planner = creating("One")
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, state="paused")
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "agent-paused")
    await ada.edit_agent(agent, state="active", tokens_per_day_max=10)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "budget:10/10")
    assert run.reason_words == (
        "What is left of today's budget, 10 tokens, is too little for one call."
    )
    await ada.edit_agent(agent, tokens_per_day_max=0)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "budget:0/0")
    assert run.reason_words == "The agent's budget is 0 tokens, so it does not run."
    assert planner.requests == []
    await ada.edit_agent(agent, tokens_per_day_max=None)
    await ada.edit_mission(mission, state="paused")
    with pytest.raises(Conflict):
        await ada.run_now(mission)
    phone = await home.second()
    await ada.edit_mission(mission, state="active")
    await ada.sync_now()
    await phone.sync_now()
    with pytest.raises(NotRunHere):
        await phone.run_now(mission)


async def test_agent_works_on_as_many_missions_as_it_may(home: Household) -> None:
    """A second mission of the same agent waits while the first runs, and runs after it."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    other = await ada.create_mission("Other", "Do", agent_id=agent, runs_on="device")
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    run = await ada.run_now(other)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "concurrency")
    await ada.stop_run(mission)
    await running


async def test_model_that_fails_leaves_a_line_and_no_iteration(home: Household) -> None:
    """A failed model ends the run with a reason, and the next due moment is tried again."""
    ada = await home.person(model=ScriptedModel([ModelFailed("timeout")]))
    mission, _, _ = await planned_mission(ada, runs_on="device")
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("failed", "timeout")
    assert run.reason_words == "It took too long and was stopped."
    assert await ada.timeline() == []


async def test_device_works_by_itself_once_it_is_started(home: Household) -> None:
    """A started device executes planned steps without being asked."""
    ada = await home.person(model=creating("One"))
    mission, _, _ = await planned_mission(
        ada, runs_on="device", preset="aggressive", cadence=Cadence("interval", every_minutes=60)
    )
    home.clock.ahead_ms = HOUR_MS + 1_000
    notices = ada.subscribe()
    await ada.start()
    async with asyncio.timeout(20):
        async for _ in notices:
            if any(view.text("title") == "One" for view in await ada.list("tasks")):
                break
    assert (await ada.mission(mission)).runs[0].state == "done"


async def test_one_process_of_a_machine_works_by_itself(home: Household) -> None:
    """While another process holds the runner's lock, this one starts no mission."""
    planner = creating("One")
    ada = await home.person(model=planner)
    of = operations(ada)
    await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60), preset="aggressive"
    )
    home.clock.ahead_ms = HOUR_MS + 1_000
    other = FileLock(runner_lock(of.opened.book.settings.folder, ada.account_id))
    assert other.acquire()
    await ada.start()
    await ada.sync_now()
    assert planner.requests == []
    other.release()
