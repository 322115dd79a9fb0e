"""Runs on this device, and steps that run by themselves: gates, claims, stops and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from mana.device import runner as runner_module
from mana.device.errors import Offline
from mana.device.holders import Holder
from mana.device.journal import decide_change_id
from mana.device.locks import FileLock
from mana.device.operations import runner_lock
from mana.device.records import RecordBook
from mana.device.run_ledger import RunLedger, RunLine
from mana.device.runner import MissionBusy, NotRunHere
from mana.device.writing import Write
from mana.domain.actors import agent_at_work
from mana.domain.cadences import Cadence
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Conflict
from mana.domain.ids import RecordId
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.occurrences import RETRIES_MS
from mana.planning.ports import ModelFailed, ModelReply, ModelRequest
from mana.protocol.errors import MissionErrored
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission
from tests.device.rig import HANGS_S

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
HOUR_MS = 60 * 60 * 1_000


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def later(home: Household, by_ms: int) -> None:
    """Move the clocks of all machines on, the hub's too."""
    home.clock.ahead_ms += by_ms
    home.served.clock.now_ms = home.clock()


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


async def test_timeout_cancels_the_model_and_changes_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes too long is stopped, its model call too, and nothing was written."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    loop = asyncio.get_running_loop()
    even_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: even_s() + runner_module.TIMEOUT_S)
    run = await running
    assert run is not None
    assert (run.state, run.last_reason, run.tries) == ("queued", "timeout", 1)
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
    await ada.stop_mission(mission)
    run = await running
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")
    assert hanging.cancelled
    assert (await ada.mission(mission)).runs[0].reason_words == "It was stopped."
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
    assert (run.state, run.reason) == ("skipped", "budget:agent:tokens:10/10")
    assert run.reason_words == (
        "The agent's budget of 10 tokens a day has 10 tokens left, too little for one call."
    )
    await ada.edit_agent(agent, tokens_per_day_max=0)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "budget:agent:tokens:0/0")
    assert run.reason_words == "The agent's budget is 0 tokens, so nothing runs under it."
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
    await ada.stop_mission(mission)
    await running


async def test_failure_is_tried_again_by_its_class_and_then_given_up(home: Household) -> None:
    """A class that may pass is tried again after its time, the same occurrence; then it failed."""
    planner = ScriptedModel([ModelFailed("provider") for _ in range(9)])
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    home.clock.held_ms = home.clock()
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.last_reason, run.tries) == ("queued", "provider", 1)
    assert run.due_ms is not None
    assert run.last_reason_words == "The model's endpoint could not be reached, or failed."
    waits = RETRIES_MS["provider"]
    assert 0.8 * waits[0] <= run.due_ms - home.clock() <= 1.2 * waits[0]
    of = operations(ada)
    assert await of.runner.run_due() == []
    home.clock.held_ms = None
    for tries, wait_ms in enumerate(waits, start=1):
        home.clock.ahead_ms += round(1.3 * wait_ms)
        (line,) = await of.runner.run_due()
        assert line.scheduled_ms == run.scheduled_ms
        assert line.state == ("queued" if tries < len(waits) else "failed")
    assert (line.reason, line.tries) == ("provider", len(waits))
    home.clock.ahead_ms += HOUR_MS
    assert await of.runner.run_due() == []
    assert len(planner.requests) == 1 + len(waits)
    assert await ada.timeline() == []


async def test_retry_that_succeeds_is_the_same_run(home: Household) -> None:
    """What failed once and then succeeds is one run with one iteration."""
    calls = [calling("create_task", {"title": "One"}, id="One")]
    planner = ScriptedModel([ModelFailed("timeout"), says("", *calls), says("Planned.")])
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    run = await ada.run_now(mission)
    assert run is not None
    home.clock.ahead_ms += 100_000
    (line,) = await operations(ada).runner.run_due()
    assert (line.state, line.scheduled_ms, line.tries) == ("done", run.scheduled_ms, 1)
    assert len((await ada.mission(mission)).runs) == 1
    assert len(await operations(ada).opened.book.views(ITERATIONS.name)) == 1


async def test_retry_never_passes_the_next_due_moment(home: Household) -> None:
    """A retry that would come after the next due moment is none: the occurrence has failed."""
    ada = await home.person(model=ScriptedModel([ModelFailed("rate-limit")]))
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=1)
    )
    of = operations(ada)
    anchor_ms = (await ada.mission(mission)).next_ms[0] - 60_000
    home.clock.held_ms = anchor_ms + 119_000
    (line,) = await of.runner.run_due()
    assert (line.state, line.reason, line.tries) == ("failed", "rate-limit", 0)


async def test_mission_that_fails_five_times_waits_for_its_person(home: Household) -> None:
    """After five failures in a row nothing of a mission runs until it is resumed."""
    planner = ScriptedModel([ModelFailed("auth") for _ in range(5)])
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    of = operations(ada)
    for count in range(1, 6):
        home.clock.ahead_ms += HOUR_MS
        (line,) = await of.runner.run_due()
        assert (line.state, line.reason) == ("failed", "auth")
        assert (await ada.mission(mission)).failures == count
    view = await ada.mission(mission)
    assert (view.hold, view.failure) == ("errored", "auth")
    assert view.hold_words == (
        "Waits: it failed 5 times in a row. The model's endpoint does not take the key. "
        "Resume it when that is mended."
    )
    home.clock.ahead_ms += HOUR_MS
    assert await of.runner.run_due() == []
    with pytest.raises(MissionErrored):
        await ada.run_now(mission)
    await ada.resume_mission(mission)
    assert await of.runner.run_due() == []
    home.clock.ahead_ms += HOUR_MS
    (line,) = await of.runner.run_due()
    assert line.state == "done"
    view = await ada.mission(mission)
    assert (view.hold, view.failures, view.failure) == ("", 0, "")


async def test_missed_moments_follow_the_policy(home: Household) -> None:
    """Under `skip` a late moment does not run, under `all` each does; the ledger names the rest."""
    ada = await home.person(model=creating())
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    of = operations(ada)
    home.clock.ahead_ms += 4 * HOUR_MS + HOUR_MS // 2
    await of.runner.run_due()
    states = [run.state for run in (await ada.mission(mission)).runs]
    assert states == ["done", "missed", "missed", "missed"]
    await ada.edit_mission(mission, if_missed="skip")
    home.clock.ahead_ms += 2 * HOUR_MS
    assert await of.runner.run_due() == []
    assert [run.state for run in (await ada.mission(mission)).runs][:2] == ["missed", "missed"]
    await ada.edit_mission(mission, if_missed="all")
    home.clock.ahead_ms += 2 * HOUR_MS
    first, second = [(await of.runner.run_due())[0] for _ in range(2)]
    assert second.scheduled_ms - first.scheduled_ms == HOUR_MS
    assert await of.runner.run_due() == []


async def test_run_on_change_waits_for_rest_and_heeds_people_alone(home: Household) -> None:
    """A person's change of an input starts a run once it has rested; an agent's effect starts none."""
    ada = await home.person(model=creating("One"))
    mission, notes, _ = await planned_mission(
        ada,
        runs_on="device",
        cadence=Cadence("onChange", debounce_minutes=5, spacing_minutes=60),
    )
    of = operations(ada)
    later(home, HOUR_MS)
    assert await of.runner.run_due() == []
    await ada.edit("notes", notes[0], {"content": "More of it."})
    changed_ms = home.clock()
    assert await of.runner.run_due() == []
    later(home, 4 * 60_000)
    await ada.edit("notes", notes[1], {"content": "And of that."})
    later(home, 2 * 60_000)
    assert await of.runner.run_due() == []
    # The page tells the moment by which the runner goes.
    waits = (await ada.mission(mission)).on_change
    assert waits is not None
    assert waits.due_ms is not None
    assert (waits.changed_ms or 0) + 5 * 60_000 == waits.due_ms > home.clock()
    later(home, 4 * 60_000)
    (line,) = await of.runner.run_due()
    assert (line.kind, line.state) == ("change", "done")
    assert line.scheduled_ms > changed_ms + 3 * 60_000
    waits = (await ada.mission(mission)).on_change
    assert waits is not None
    assert waits.rests_until_ms == line.started_ms + HOUR_MS
    agent = agent_at_work((await ada.agents())[0].agent_id, mission, line.iteration_id or "")
    await of.opened.book.commit(
        [
            Write(
                Change("notes", RecordId(notes[0]), ChangeKind.UPDATE, {"content": "By it."}), agent
            )
        ]
    )
    later(home, 3 * HOUR_MS)
    assert await of.runner.run_due() == []
    await ada.edit("notes", notes[0], {"content": "By me."})
    later(home, 6 * 60_000)
    assert len(await of.runner.run_due()) == 1


async def test_changes_that_never_rest_are_run_on_after_four_times_the_rest(
    home: Household,
) -> None:
    """Somebody who goes on writing does not keep the mission from running, nor lets it run often."""
    ada = await home.person(model=creating())
    _, notes, _ = await planned_mission(
        ada,
        runs_on="device",
        cadence=Cadence("onChange", debounce_minutes=5, spacing_minutes=60),
    )
    of = operations(ada)
    minutes_of_runs = []
    for minute in range(0, 100, 4):
        await ada.edit("notes", notes[0], {"content": f"Line {minute}"})
        if await of.runner.run_due():
            minutes_of_runs.append(minute)
        later(home, 4 * 60_000)
    assert minutes_of_runs == [20, 80]


async def test_missions_of_several_agents_run_at_once(home: Household) -> None:
    """Missions run beside each other, those of one agent as many as it may."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    cadence = Cadence("interval", every_minutes=60)
    await planned_mission(ada, runs_on="device", cadence=cadence)
    agent = (await ada.agents())[0].agent_id
    for name in ("Second", "Third"):
        await ada.create_mission(name, "Do", agent_id=agent, runs_on="device", cadence=cadence)
    await ada.edit_agent(agent, concurrent_max=2)
    home.clock.ahead_ms += HOUR_MS
    of = operations(ada)
    begun = await of.runner.begin_due()
    assert len(begun) == 2
    assert await of.runner.begin_due() == []
    for mission in await ada.missions():
        await ada.stop_mission(mission.mission_id)
    ended = await asyncio.gather(*begun)
    assert [line.reason for line in ended] == ["stopped", "stopped"]


@pytest.mark.parametrize("way", ["agent", "mission", "deleted", "moved"])
async def test_run_ends_when_it_is_not_allowed_any_more(home: Household, way: str) -> None:
    """A run whose agent is paused, or whose mission ends meanwhile, is cut off and writes nothing."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    if way == "agent":
        await ada.edit_agent((await ada.agents())[0].agent_id, state="paused")
    elif way == "mission":
        await ada.edit_mission(mission, state="paused")
    elif way == "moved":
        await ada.edit_mission(mission, runs_on="hub")
    else:
        await ada.delete_mission(mission)
    run = await running
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")
    assert hanging.cancelled
    assert await operations(ada).opened.book.views(ITERATIONS.name) == []


async def test_run_that_was_not_allowed_at_its_end_writes_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the model's last word and the write it is asked once more."""
    monkeypatch.setattr(runner_module, "LOOK_S", 600.0)
    pausing: list[asyncio.Future[None]] = []

    def last_word(request: ModelRequest) -> ModelReply:
        pausing.append(asyncio.ensure_future(ada.edit_mission(mission, state="paused")))
        return says("", calling("create_task", {"title": "One"}))

    ada = await home.person(model=ScriptedModel([last_word]))
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    of = operations(ada)
    monkeypatch.setattr(of.runner, "heard", lambda: None)
    plan = of.runner._runs.plan

    async def planned_slowly(*args: Any, **options: Any) -> Any:
        found = await plan(*args, **options)
        await asyncio.gather(*pausing)
        return found

    of.runner._runs.plan = planned_slowly  # type: ignore[method-assign]
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")
    assert await of.opened.book.views(ITERATIONS.name) == []


async def test_crash_in_the_middle_is_run_again_or_written_down(home: Household) -> None:
    """What a process that died left behind is run at the next start, thrice at most; nothing twice,
    and what its tries used is counted once."""
    ada = await home.person(model=creating("One"))
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    of = operations(ada)
    home.clock.ahead_ms += HOUR_MS
    (moment,) = [(await ada.mission(mission)).next_ms[0] - HOUR_MS]
    died = RunLedger(of.opened, Holder(of.opened.book.settings.folder, ada.account_id))
    agent = (await ada.agents())[0].agent_id
    for left in range(3):
        line = await died.find(mission, moment) or RunLine(
            mission,
            agent,
            moment,
            "scheduled",
            "queued",
            tokens=40,
            cost=4,
            unconfirmed_tokens=30,
            unconfirmed_cost=3,
        )
        assert await died.begin(line, concurrent_max=1) == ""
        assert await of.runner.begin_due() == []
        died.holder.release()
        await of.runner.recover()
        after = await of.ledger.find(mission, moment)
        assert after is not None
        assert after.state == ("queued" if left < 2 else "failed")
        assert (after.tokens, after.cost) == (40, 4)
        assert (after.unconfirmed_tokens, after.unconfirmed_cost) == (30, 3)
    assert after.reason == "crash"
    home.clock.ahead_ms += HOUR_MS
    once = RunLine(mission, agent, moment + HOUR_MS, "scheduled", "queued")
    assert await died.begin(once, concurrent_max=1) == ""
    died.holder.release()
    (again,) = await of.runner.run_due()
    assert (again.state, again.scheduled_ms) == ("done", moment + HOUR_MS)


async def test_crash_after_the_write_is_done_once(home: Household) -> None:
    """A run that was written before its process died is done, and not run again."""
    planner = creating("One")
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    of = operations(ada)
    home.clock.ahead_ms += HOUR_MS
    (line,) = await of.runner.run_due()
    dead = replace(line, state="leased", holder="0" * 16, iteration_id=None)
    await of.opened.book.keep("runs", {"lines": [asdict(dead)], "missions": {}})
    asked = len(planner.requests)
    assert await of.runner.run_due() == []
    found = await of.ledger.find(mission, line.scheduled_ms)
    assert found is not None
    assert (found.state, found.iteration_id) == ("done", line.iteration_id)
    assert len(planner.requests) == asked


async def test_run_that_ends_with_the_process_is_made_up_for(home: Household) -> None:
    """A device that is closed in the middle of a due run has it in the ledger for its next start."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(
        ada, runs_on="device", cadence=Cadence("interval", every_minutes=60)
    )
    of = operations(ada)
    home.clock.ahead_ms += HOUR_MS
    (task,) = await of.runner.begin_due()
    await hanging.asked.wait()
    await of.runner.close()
    line = await task
    assert (line.state, line.leases) == ("queued", 0)
    object.__setattr__(of.opened, "model", creating())
    (again,) = await of.runner.run_due()
    assert (again.state, again.scheduled_ms) == ("done", line.scheduled_ms)
    assert (await ada.mission(mission)).runs[0].state == "done"


async def test_stop_reaches_a_run_of_another_process(home: Household) -> None:
    """The terminal can stop what the page's process runs."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    of = operations(ada)
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    other = RunLedger(of.opened, Holder(of.opened.book.settings.folder, ada.account_id))
    assert (await other.abandoned()) == []
    assert await other.ask_stop(mission)
    run = await running
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")


async def test_ledger_of_an_earlier_version_is_read(home: Household) -> None:
    """Lines that an earlier version kept are shown, and their moments are not run again."""
    ada = await home.person(model=creating())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    of = operations(ada)
    old: list[Json] = [mission, "agent", 1_000, "scheduled", "failed", "model", None, 7, 2_000]
    await of.opened.book.keep("runs", [old, ["broken"], 5])
    (line,) = await of.ledger.lines()
    assert (line.mission_id, line.tokens, line.reason, line.tries) == (mission, 7, "model", 0)
    await ada.run_now(mission)
    assert [one.state for one in await of.ledger.lines()] == ["failed", "done"]


async def test_device_works_by_itself_once_it_is_started(home: Household) -> None:
    """A started device executes planned steps without being asked."""
    ada = await home.person(model=creating("One"))
    mission, _, _ = await planned_mission(
        ada, runs_on="device", preset="aggressive", cadence=Cadence("interval", every_minutes=60)
    )
    home.clock.ahead_ms = HOUR_MS + 1_000
    notices = ada.subscribe()
    await ada.start()
    async with asyncio.timeout(HANGS_S):
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
