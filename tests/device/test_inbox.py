"""Decisions: what was shown is what happens, once, whoever else decides."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest

from mana.crypto.envelope import Binding, RecordKey, seal_field
from mana.crypto.keys import mission_key
from mana.device.hub_client import HubClient
from mana.device.inbox import (
    ProposalDecided,
    ProposalDenied,
    ProposalImpossible,
    ProposalMoved,
    ProposalUnverified,
)
from mana.device.steps import StepDone, decision, named_first
from mana.device.trust import GRANTED, VOUCHED
from mana.device.views import Cited
from mana.domain.clock import Stamp
from mana.domain.errors import Invalid
from mana.domain.ids import DeviceId, RecordId
from mana.domain.iterations import JOURNAL, STEPS
from mana.protocol.messages import GrantInfo
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database, connected
from tests.device.household import Household, household, operations, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def model(*calls: object) -> ScriptedModel:
    return ScriptedModel([says("", *calls), says("Planned.")])  # type: ignore[arg-type]


async def test_approval_executes_the_preview_under_the_agents_name(home: Household) -> None:
    """An approved step writes exactly what it showed, as the agent, with a journal record."""
    planner = model(calling("create_task", {"title": "Book the room", "rationale": "Offer"}))
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.tokens) == ("done", 240)
    (waiting,) = await ada.inbox()
    assert waiting.sentence == "Add task “Book the room”"
    assert waiting.diffs[0].op == "insert"
    assert waiting.diffs[0].title == "Book the room"
    assert {one.title for one in waiting.cited} >= {"Offer", "Garden"}
    await ada.approve(waiting.step_id, feedback="good")
    task = await ada.get("tasks", waiting.diffs[0].record_id)
    assert task.text("title") == "Book the room"
    assert task.actors["title"].kind == "ai"
    assert task.actors["title"].iteration_id == waiting.iteration_id
    assert len(await operations(ada).opened.book.views(JOURNAL.name)) == 1
    assert await ada.inbox() == []
    (decided,) = await ada.inbox(decided=True)
    assert (decided.state, decided.feedback) == ("approved", "good")
    with pytest.raises(ProposalDecided):
        await ada.approve(waiting.step_id)
    with pytest.raises(ProposalDecided):
        await ada.reject(waiting.step_id)
    assert len(await ada.list("tasks")) == 3


async def test_moved_proposal_is_shown_again_before_it_runs(home: Household) -> None:
    """A proposal whose base has moved never executes before its new preview was shown."""
    ada = await home.person(model=ScriptedModel([]))
    of = operations(ada)
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    call = calling("append_to_note", {"noteId": notes[1], "content": "Thyme too."})
    object.__setattr__(of.opened, "model", model(call))
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    assert not waiting.moved
    await ada.edit("notes", notes[1], {"content": "Less lawn."})
    of.inbox._seen = {}
    with pytest.raises(ProposalMoved):
        await ada.approve(waiting.step_id)
    assert (await ada.get("notes", notes[1])).text("content") == "Less lawn."
    again = await ada.proposal(waiting.step_id)
    assert again.moved
    assert "Less lawn." in str(again.diffs[0].fields[0].before)
    await ada.edit("notes", notes[1], {"content": "No lawn."})
    with pytest.raises(ProposalMoved):
        await ada.approve(waiting.step_id)
    assert (await ada.approve(waiting.step_id)).state == "approved"
    assert (await ada.get("notes", notes[1])).text("content").startswith("No lawn.")


async def test_gone_target_cannot_be_approved(home: Household) -> None:
    """A proposal on a record that was deleted says so and cannot be approved."""
    ada = await home.person(model=ScriptedModel([]))
    mission, _, tasks = await planned_mission(ada, runs_on="device")
    of = operations(ada)
    call = calling("complete_task", {"taskId": tasks[1]})
    object.__setattr__(of.opened, "model", model(call))
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    await ada.delete("tasks", tasks[1])
    assert (await ada.proposal(waiting.step_id)).trouble == "What it would change is gone."
    with pytest.raises(ProposalImpossible):
        await ada.approve(waiting.step_id)
    assert (await ada.reject(waiting.step_id)).state == "rejected"


async def test_policy_is_asked_again_at_approval(home: Household) -> None:
    """A tool that is denied by now, or an agent that is gone, cannot be approved."""
    planner = model(
        calling("create_task", {"title": "One"}), calling("create_task", {"title": "Two"})
    )
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    first, second = await ada.inbox()
    agent = (await ada.agents())[0]
    assert agent.policy is not None
    stricter = type(agent.policy)(agent.policy.by_effect, {"create_task": "deny"})
    await ada.edit_agent(agent.agent_id, policy=stricter)
    with pytest.raises(ProposalDenied):
        await ada.approve(first.step_id)
    await ada.edit_agent(agent.agent_id, preset="standard")
    assert (await ada.approve(first.step_id)).state == "approved"
    assert (await ada.proposal(second.step_id)).state == "staged"


async def test_first_device_wins_and_the_other_sees_it(home: Household) -> None:
    """Of two devices that decide apart, the hub's first stands, and the other shows it."""
    planner = model(calling("create_task", {"title": "One"}))
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    (waiting,) = await phone.inbox()
    assert waiting.verified, waiting.trouble
    home.places[1].wire.is_cut = True
    assert (await phone.reject(waiting.step_id, reason="no")).state == "rejected"
    await ada.approve(waiting.step_id)
    home.places[1].wire.is_cut = False
    await phone.sync_now()
    await phone.sync_now()
    await ada.sync_now()
    seen = await phone.proposal(waiting.step_id)
    assert (seen.state, seen.trouble) == ("approved", "Decided on another device.")
    assert len(await phone.list("tasks")) == len(await ada.list("tasks")) == 3
    with pytest.raises(ProposalDecided):
        await phone.approve(waiting.step_id)


async def test_same_approval_from_two_devices_happens_once(home: Household) -> None:
    """Two devices that approve apart end with one effect and the same records."""
    planner = model(calling("create_task", {"title": "One"}))
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    (waiting,) = await phone.inbox()
    home.places[1].wire.is_cut = True
    await phone.approve(waiting.step_id)
    await ada.approve(waiting.step_id)
    home.places[1].wire.is_cut = False
    for device in (phone, ada, phone):
        await device.sync_now()
    ours, theirs = await ada.list("tasks"), await phone.list("tasks")
    assert len(ours) == len(theirs) == 3
    one = next(view for view in ours if view.text("title") == "One")
    other = next(view for view in theirs if view.text("title") == "One")
    assert (one.values, one.stamps) == (other.values, other.stamps)
    preview = await phone.revert(f"step:{waiting.step_id}")
    assert preview.conflicts == ()
    assert len(await phone.list("tasks")) == 2


async def test_proposals_of_a_runner_that_was_not_granted_cannot_be_approved(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is obeyed only if a device of its grantor granted to the runner that signed it."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    of = operations(ada)
    await of.records.write_settings({"auditHead": None, "runnerKeys": []})
    for name in (GRANTED, VOUCHED):
        await of.opened.book.keep(name, None)
    of.trust._verified.clear()
    of.trust._memory.vouched = None
    listed = HubClient.grants

    async def unsigned(self: HubClient) -> list[GrantInfo]:
        return [msgspec.structs.replace(one, signature=None) for one in await listed(self)]

    monkeypatch.setattr(HubClient, "grants", unsigned)
    of.news.moved()
    waiting = await ada.inbox()
    assert waiting
    assert not any(one.verified for one in waiting)
    with pytest.raises(ProposalUnverified):
        await ada.approve(waiting[0].step_id)
    assert waiting[0].trouble == "It was written by a runner that you did not grant to."


async def test_device_keeps_which_runners_were_granted_to(home: Household) -> None:
    """Settings that another device wrote without the runners take no run's proof away."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    of = operations(ada)
    runners = await of.trust.granted_to()
    await of.records.write_settings({"auditHead": {"seq": 0}, "runnerKeys": []})
    waiting = await ada.inbox()
    assert waiting
    assert all(one.verified for one in waiting)
    assert "earlier grants" not in " ".join((await ada.consent(mission)).lines)
    assert (await ada.data_access()).chain_ok
    settings = await of.records.get("userSettings", "settings-global")
    assert settings.values["runnerKeys"] == runners != []


async def test_verified_run_is_looked_at_again_when_a_step_moves(home: Household) -> None:
    """A step that an operator with the keys rewrites after it was shown is not obeyed."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    shown = await ada.inbox()
    assert all(one.verified for one in shown)
    of = operations(ada)
    held = await of.opened.book._held(STEPS.name, shown[0].step_id)
    assert held is not None
    entry = held.record.entries["sentence"]
    sealer = of.opened.book._sealer()
    secret = mission_key(sealer.keys(of.opened.space).space_keys[1], mission)
    at = str(Stamp(home.clock(), 0, DeviceId(entry.at[-36:])))
    binding = Binding(
        of.opened.book.personal_space,
        STEPS.name,
        RecordId(shown[0].step_id),
        "sentence",
        at,
        entry.actor.to_wire(),
    )
    key = RecordKey.derive(secret, STEPS.name, shown[0].step_id)
    lie = seal_field(key, cls="m", version=1, binding=binding, value="Change nothing at all")
    async with connected(home.database.owner_url) as owner:
        await owner.execute(
            "insert into mana.sync_changes select space_id, seq + 1000, $2, app_id, table_name,"
            " record_id, user_id, author_id, visibility, 'update',"
            " json_build_object('sentence', $3::text), json_build_object('sentence', $4::text),"
            " client_id, created_at, schema_version, actor, origin, null, null, signature"
            " from mana.sync_changes where table_name = 'aiSteps' and record_id = $1",
            *(shown[0].step_id, str(uuid.uuid4()), lie, at),
        )
        await owner.execute("update mana.space_heads set seq = seq + 1000")
    await ada.sync_now()
    (again,) = [one for one in await ada.inbox() if one.step_id == shown[0].step_id]
    assert again.sentence == "Change nothing at all"
    assert not again.verified
    with pytest.raises(ProposalUnverified):
        await ada.approve(again.step_id)


async def test_feedback_is_bounded_and_reaches_the_next_run(home: Household) -> None:
    """What the person answered stands in the next run's prompt; a novel is refused."""
    planner = ScriptedModel(
        [says("", calling("create_task", {"title": "One"})), says("A."), says("B.")]
    )
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    with pytest.raises(Invalid):
        await ada.reject(waiting.step_id, reason="x" * 2_001)
    await ada.reject(waiting.step_id, reason="too early for that")
    await ada.run_now(mission)
    assert "too early for that" in planner.requests[-1].messages[1].content


async def test_expired_proposals_close(home: Household) -> None:
    """A proposal whose time has passed leaves the inbox and is closed for every device."""
    planner = model(calling("create_task", {"title": "One"}))
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    assert (await ada.status()).to_decide == 1
    home.clock.ahead_ms = 15 * 24 * 60 * 60 * 1_000
    assert await ada.inbox() == []
    assert (await ada.proposal(waiting.step_id)).state == "expired"
    await operations(ada).inbox.expire()
    step = await operations(ada).opened.book.view(STEPS.name, waiting.step_id)
    assert step is not None
    assert step.text("status") == "expired"


async def test_executed_step_is_not_executed_again_whatever_its_status(home: Household) -> None:
    """A step whose journal is here never runs again, even if its status were put back."""
    planner = model(calling("create_task", {"title": "One"}))
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    await ada.approve(waiting.step_id)
    steps = operations(ada).steps
    case = await steps.case(waiting.step_id)
    records = await steps.snapshot(case)
    shown = await steps.shown(case, records)
    change = decision(case.id, "approved", guards={"status": "staged"}, extra={})
    with pytest.raises(StepDone):
        await steps.effects(
            case, shown, change, consent="approved", records=records, decision_id="again"
        )


def test_named_inputs_come_first() -> None:
    """The inputs that a reason quotes by title stand before the others, which keep their order."""
    cited = [Cited("notes", str(n), title) for n, title in enumerate(("Garden", "", "The  offer"))]
    order = [one.record_id for one in named_first(cited, "“The offer” names it; Garden does not.")]
    assert order == ["2", "0", "1"]
    assert named_first(cited, "“”") == tuple(cited)
