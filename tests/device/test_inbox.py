"""Decisions: what was shown is what happens, once, whoever else decides."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest

from mana.crypto.envelope import Binding, RecordKey, seal_field
from mana.crypto.keys import mission_key
from mana.device.desk import Device
from mana.device.errors import ReadOnlyHere
from mana.device.hub_client import HubClient
from mana.device.inbox import (
    EditRefused,
    EditUnseen,
    NotOneRun,
    ProposalDecided,
    ProposalDenied,
    ProposalImpossible,
    ProposalMoved,
    ProposalUnverified,
    RunNotFound,
    UnknownReason,
)
from mana.device.steps import StepDone, decision, named_first
from mana.device.trust import GRANTED, VOUCHED
from mana.device.views import AcceptRate, Cited, Fault, Proposal
from mana.device.writing import Write
from mana.domain.agents import AGENT_MEMORY
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import Stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import DeviceId, RecordId
from mana.domain.iterations import ITERATIONS, JOURNAL, STEPS, binding_hash
from mana.planning.dispatch import intent_of
from mana.protocol.messages import GrantInfo
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database, connected
from tests.device.household import (
    Household,
    household,
    let_in,
    operations,
    planned_mission,
    shared_space,
)

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
    assert run.state == "done"
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


# Edit before approving


async def proposed(
    home: Household, *calls: object, **options: object
) -> tuple[Device, list[Proposal]]:
    """Return a person with the proposals of one run on their device."""
    ada = await home.person(model=model(*calls))
    mission, _, _ = await planned_mission(ada, runs_on="device", **options)
    await ada.run_now(mission)
    return ada, await ada.inbox()


async def test_an_edit_is_executed_instead_of_what_was_proposed(home: Household) -> None:
    """The person's arguments are what happens, as it was shown; what was proposed is kept beside."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "Book a room"}))
    edit = {"title": "Book the big room", "dueDate": "2027-01-15", "description": None}
    shown = await ada.edit_preview(waiting.step_id, edit)
    assert shown.sentence == "Add task “Book the big room”, due 2027-01-15"
    assert (shown.edited, shown.faults, shown.trouble) == (True, (), "")
    assert shown.proposed is not None
    assert shown.proposed.params == {"title": "Book a room"}
    assert len(await ada.list("tasks")) == 2
    assert (await ada.proposal(waiting.step_id)).sentence == waiting.sentence
    done = await ada.approve(waiting.step_id, arguments=edit, feedback="the big one")
    assert (done.state, done.edited, done.params) == (
        "approved",
        True,
        {"title": "Book the big room", "dueDate": "2027-01-15"},
    )
    assert done.diffs[0].title == "Book the big room"
    task = await ada.get("tasks", waiting.diffs[0].record_id)
    assert (task.text("title"), task.text("dueDate")) == ("Book the big room", "2027-01-15")
    assert task.actors["title"].kind == "ai"
    (bucket,) = await ada.timeline()
    (line,) = bucket.lines
    assert (line.sentence, line.edited) == (shown.sentence, True)
    assert line.note == "the big one"
    phone = await home.second()
    await phone.sync_now()
    assert (await phone.proposal(waiting.step_id)).params == done.params
    assert (await phone.revert(f"step:{waiting.step_id}")).conflicts == ()
    assert len(await phone.list("tasks")) == 2
    assert (await ada.sync_now()).refused == 0


async def test_the_timeline_says_that_the_person_changed_it(home: Household) -> None:
    """An edited step is marked, and says so where nothing else is to be said."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    await ada.edit_preview(waiting.step_id, {"title": "Two"})
    await ada.approve(waiting.step_id, arguments={"title": "Two"})
    (line,) = (await ada.timeline())[0].lines
    assert (line.edited, line.note) == (True, "You changed it before you approved it.")


async def test_an_edit_happens_only_as_it_was_shown(home: Household) -> None:
    """Arguments that were not previewed here, or whose preview moved, are shown before they count."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    call = calling("append_to_note", {"noteId": notes[1], "content": "Thyme."})
    object.__setattr__(operations(ada).opened, "model", model(call))
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    edit = {"noteId": notes[1], "content": "Basil."}
    with pytest.raises(EditUnseen):
        await ada.approve(waiting.step_id, arguments=edit)
    await ada.edit("notes", notes[1], {"content": "Less lawn."})
    with pytest.raises(ProposalMoved):
        await ada.approve(waiting.step_id, arguments=edit)
    assert (await ada.get("notes", notes[1])).text("content") == "Less lawn."
    assert (await ada.proposal(waiting.step_id)).state == "staged"
    await ada.approve(waiting.step_id, arguments=edit)
    assert (await ada.get("notes", notes[1])).text("content") == "Less lawn.\n\nBasil."


async def test_arguments_that_change_nothing_are_no_edit(home: Household) -> None:
    """What was proposed, approved through the form, is what was proposed."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    done = await ada.approve(waiting.step_id, arguments={"title": "One", "priority": None})
    assert (done.state, done.edited) == ("approved", False)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        ({}, Fault("title", "Object missing required field `title`")),
        ({"title": ""}, Fault("title", "Expected `str` of length >= 1")),
        ({"title": "x", "dueDate": "soon"}, Fault("dueDate", "Expected `str` of length >= 10")),
        ({"title": "x", "who": "Bo"}, Fault("who", "Object contains unknown field `who`")),
        ({"title": "  "}, Fault("", "create_task needs a title that is not blank")),
    ],
)
async def test_an_edit_that_the_tool_does_not_take_says_where(
    home: Household, edit: dict[str, object], fault: Fault
) -> None:
    """A refused edit names the argument and the reason, and nothing is written."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    shown = await ada.edit_preview(waiting.step_id, edit)  # type: ignore[arg-type]
    assert shown.faults == (fault,)
    assert shown.trouble
    with pytest.raises(EditRefused) as refused:
        await ada.approve(waiting.step_id, arguments=edit)  # type: ignore[arg-type]
    assert (refused.value.detail["path"], refused.value.detail["reason"]) == (
        fault.path,
        fault.reason,
    )
    assert (await ada.proposal(waiting.step_id)).state == "staged"
    assert len(await ada.list("tasks")) == 2


async def test_an_edit_is_within_the_agents_policy(home: Household) -> None:
    """A person edits the call of a tool that the agent may still use, and no other."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    agent = (await ada.agents())[0]
    assert agent.policy is not None
    stricter = type(agent.policy)(agent.policy.by_effect, {"create_task": "deny"})
    await ada.edit_agent(agent.agent_id, policy=stricter)
    shown = await ada.edit_preview(waiting.step_id, {"title": "Two"})
    assert shown.trouble == "The agent's policy denies this now."
    with pytest.raises(ProposalImpossible):
        await ada.approve(waiting.step_id, arguments={"title": "Two"})


@pytest.mark.parametrize("first", ["edited", "approved"])
async def test_of_an_edit_and_an_approval_apart_the_first_stands(
    home: Household, first: str
) -> None:
    """A step that one device edits and another approves as it is happens once, as the first said."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    await phone.edit_preview(waiting.step_id, {"title": "Two"})

    async def decide(device: Device, *, edits: bool) -> None:
        await device.approve(waiting.step_id, arguments={"title": "Two"} if edits else None)

    home.places[0 if first == "edited" else 1].wire.is_cut = True
    late, early = (ada, phone) if first == "edited" else (phone, ada)
    await decide(late, edits=late is phone)
    await decide(early, edits=early is phone)
    for place in home.places:
        place.wire.is_cut = False
    for device in (late, early, late):
        await device.sync_now()
    wanted = "Two" if first == "edited" else "One"
    for device in (ada, phone):
        (task,) = [
            view for view in await device.list("tasks") if view.id == waiting.diffs[0].record_id
        ]
        assert task.text("title") == wanted
        assert (await device.proposal(waiting.step_id)).edited == (first == "edited")
    assert len(await operations(late).opened.book.views(JOURNAL.name)) == 1
    assert (await late.revert(f"step:{waiting.step_id}")).conflicts == ()


async def test_an_edit_that_loses_at_once_is_told(home: Household) -> None:
    """Whoever edits a step that another device decided on meanwhile is told so, and nothing is done."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    await phone.edit_preview(waiting.step_id, {"title": "Two"})
    await ada.approve(waiting.step_id)
    with pytest.raises(ProposalDecided):
        await phone.approve(waiting.step_id, arguments={"title": "Two"})
    titles = {view.text("title") for view in await phone.list("tasks")}
    assert "One" in titles
    assert "Two" not in titles
    assert (await phone.sync_now()).refused == 0


async def test_what_is_written_beside_a_decision_is_no_edit(home: Household) -> None:
    """Only what came with the approval itself says that the person changed it."""
    ada, (waiting,) = await proposed(home, calling("create_task", {"title": "One"}))
    await ada.approve(waiting.step_id)
    of = operations(ada)
    params: dict[str, Json] = {"title": "Two"}
    lie: dict[str, Json] = {
        "params": params,
        "sentence": "Add task “Two”",
        "preview": [],
        "base": {},
        "binding": binding_hash(intent_of("create_task", params), [], {}),
    }
    change = Change(STEPS.name, RecordId(waiting.step_id), ChangeKind.UPDATE, {"edited": lie})
    await of.opened.book.commit([Write(change, of.opened.person)])
    found = await ada.proposal(waiting.step_id)
    assert (found.edited, found.sentence) == (False, "Add task “One”")
    assert not (await ada.timeline())[0].lines[0].edited


async def test_the_form_has_the_tools_parameters_with_their_kinds(home: Household) -> None:
    """What can be edited is what the tool declares, with its bounds and the values that it has."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    calls = (
        calling("create_task", {"title": "One", "priority": "high"}),
        calling("append_to_note", {"noteId": notes[1], "content": "Thyme."}),
    )
    object.__setattr__(operations(ada).opened, "model", model(*calls))
    await ada.run_now(mission)
    task, note = await ada.inbox()
    form = await ada.edit_form(task.step_id)
    assert {one.name: (one.kind, one.value, one.required) for one in form.parameters} == {
        "title": ("text", "One", True),
        "dueDate": ("day", None, False),
        "priority": ("choice", "high", False),
        "description": ("long-text", None, False),
    }
    # What is proposed comes first, then the others as the module lists them.
    assert form.parameters[2].choices == ("high", "low", "medium", "urgent")
    assert form.parameters[0].length_max is not None
    first, _ = (await ada.edit_form(note.step_id)).parameters
    assert (first.kind, first.table, first.title) == ("record", "notes", "Garden")


# Together


async def appended(home: Household, *texts: str) -> tuple[Device, str, list[Proposal]]:
    """Return proposals that each add a text to the same note."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    calls = [calling("append_to_note", {"noteId": notes[1], "content": text}) for text in texts]
    object.__setattr__(operations(ada).opened, "model", model(*calls))
    await ada.run_now(mission)
    return ada, notes[1], await ada.inbox()


async def test_steps_approved_together_see_each_other(home: Household) -> None:
    """A group happens in the order of its run, one on the other, and reverts to what stood before."""
    ada, note, steps = await appended(home, "One.", "Two.", "Three.")
    ids = [one.step_id for one in steps]
    await ada.sync_now()
    done = await ada.approve_all([ids[2], ids[0], ids[1], ids[0]])
    assert [one.step_id for one in done] == ids
    assert {one.state for one in done} == {"approved"}
    content = (await ada.get("notes", note)).text("content")
    assert content == "More herbs.\n\nOne.\n\nTwo.\n\nThree."
    pushed = [b for _, path, b in home.places[0].wire.seen if path.endswith("/changes") and b]
    batch = msgspec.json.decode(pushed[-1])["changes"]
    # Each step: decision, effect and journal.
    assert len({change["group"] for change in batch}) == 1
    assert len(batch) == 9
    assert (await ada.revert(f"iteration:{steps[0].iteration_id}")).conflicts == ()
    assert (await ada.get("notes", note)).text("content") == "More herbs."
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)


async def test_a_step_of_a_group_reverts_to_what_the_one_before_wrote(home: Household) -> None:
    """Each step of a group is journalled with what stood before it, not before the group."""
    ada, note, steps = await appended(home, "One.", "Two.")
    await ada.approve_all([one.step_id for one in steps])
    assert (await ada.revert(f"step:{steps[1].step_id}")).conflicts == ()
    assert (await ada.get("notes", note)).text("content") == "More herbs.\n\nOne."


async def test_a_group_on_a_base_that_moved_is_shown_as_a_whole(home: Household) -> None:
    """Steps whose base moved are approved together only as they were shown together."""
    ada, note, steps = await appended(home, "One.", "Two.")
    ids = [one.step_id for one in steps]
    await ada.edit("notes", note, {"content": "Less lawn."})
    with pytest.raises(ProposalMoved) as moved:
        await ada.approve_all(ids)
    assert moved.value.detail["stepId"] == ids[0]
    first, second = await ada.preview_all(ids)
    assert "One." in str(second.diffs[0].fields[0].before)
    assert (first.moved, second.moved) == (True, True)
    assert (await ada.get("notes", note)).text("content") == "Less lawn."
    await ada.approve_all(ids)
    assert (await ada.get("notes", note)).text("content") == "Less lawn.\n\nOne.\n\nTwo."


async def test_a_group_with_one_fault_changes_nothing(home: Household) -> None:
    """A group of which one step cannot be done names it, and none of the others happens."""
    ada = await home.person(model=ScriptedModel([]))
    mission, _, tasks = await planned_mission(ada, runs_on="device")
    calls = (
        calling("create_task", {"title": "One"}),
        calling("complete_task", {"taskId": tasks[1]}),
        calling("create_task", {"title": "Two"}),
    )
    object.__setattr__(operations(ada).opened, "model", model(*calls))
    await ada.run_now(mission)
    steps = await ada.inbox()
    await ada.delete("tasks", tasks[1])
    before = await ada.list("tasks")
    with pytest.raises(ProposalImpossible) as fault:
        await ada.approve_all([one.step_id for one in steps])
    assert fault.value.detail["stepId"] == steps[1].step_id
    assert await ada.list("tasks") == before
    assert {one.state for one in await ada.inbox()} == {"staged"}
    assert await operations(ada).opened.book.views(JOURNAL.name) == []


async def test_a_group_of_which_one_was_decided_elsewhere_is_refused_whole(
    home: Household,
) -> None:
    """A step that another device decided on first takes the whole group along, and is named."""
    ada, steps = await proposed(
        home, *(calling("create_task", {"title": title}) for title in ("One", "Two", "Three"))
    )
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    ids = [one.step_id for one in steps]
    for decide in (ada.reject, ada.approve):
        await decide(ids[1])
        with pytest.raises(ProposalDecided) as fault:
            await phone.approve_all(ids)
        assert fault.value.detail["stepId"] == ids[1]
        assert (await phone.proposal(ids[0])).state == "staged"
        ids = [ids[-1], ids[0]]
    ids.reverse()
    assert len(await phone.list("tasks")) == 3
    assert (await phone.sync_now()).refused == 0
    with pytest.raises(ProposalDecided) as late:
        await phone.reject_all(ids)
    assert late.value.detail["stepId"] == ids[1]


async def test_a_group_is_of_one_run(home: Household) -> None:
    """Steps of two runs, or none at all, are no group."""
    planner = ScriptedModel(
        [
            says("", calling("create_task", {"title": "One"})),
            says("A."),
            says("", calling("create_task", {"title": "Two"})),
            says("B."),
        ]
    )
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    await ada.run_now(mission)
    ids = [one.step_id for one in await ada.inbox()]
    assert len(ids) == 2
    for chosen in (ids, []):
        with pytest.raises(NotOneRun):
            await ada.approve_all(chosen)
        with pytest.raises(NotOneRun):
            await ada.reject_all(chosen)


async def test_a_group_is_sent_once_the_hub_is_there(home: Household) -> None:
    """A group that was approved off line happens here at once, and for all devices later."""
    ada, steps = await proposed(
        home, calling("create_task", {"title": "One"}), calling("create_task", {"title": "Two"})
    )
    await ada.sync_now()
    home.places[0].wire.is_cut = True
    await ada.approve_all([one.step_id for one in steps])
    assert len(await ada.list("tasks")) == 4
    home.places[0].wire.is_cut = False
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    phone = await home.second()
    await phone.sync_now()
    assert len(await phone.list("tasks")) == 4


# What is said of proposals and runs


async def test_rejections_have_reasons_that_are_counted(home: Household) -> None:
    """Why something was rejected is kept with it, and counted by mission."""
    titles = ("One", "Two", "Three", "Four")
    ada, steps = await proposed(home, *(calling("create_task", {"title": one}) for one in titles))
    ids = [one.step_id for one in steps]
    with pytest.raises(UnknownReason):
        await ada.reject(ids[0], reason_code="because")
    done = await ada.reject_all(ids[:2], reason_code="too-much", reason="one is enough")
    assert [one.reject_reason for one in done] == ["too-much"] * 2
    await ada.reject(ids[2], reason_code="wrong")
    found = await ada.rejections(steps[0].mission_id)
    assert [(one.reason, one.count, one.said) for one in found] == [
        ("too-much", 2, ("one is enough",) * 2),
        ("wrong", 1, ()),
    ]
    assert await ada.rejections("another") == []


async def test_acceptance_is_what_people_decided(home: Household) -> None:
    """The rate of an agent counts decisions, by tool and by week, and its trend two months."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    of = operations(ada)
    day_ms = 24 * 60 * 60 * 1_000

    async def run(*calls: object) -> list[str]:
        object.__setattr__(of.opened, "model", model(*calls))
        await ada.run_now(mission)
        return [one.step_id for one in await ada.inbox()]

    home.clock.ahead_ms = -45 * day_ms
    old = await run(*(calling("create_task", {"title": one}) for one in ("One", "Two")))
    await ada.reject(old[0])
    await ada.approve(old[1])
    home.clock.ahead_ms = -3 * day_ms
    note = {"noteId": notes[0], "content": "More."}
    new = await run(*(calling("create_task", {"title": one}) for one in ("A", "B", "C")))
    for step_id in new[:2]:
        await ada.approve(step_id)
    await ada.edit_preview(new[2], {"title": "D"})
    await ada.approve(new[2], arguments={"title": "D"})
    (last,) = await run(calling("append_to_note", note))
    await ada.reject(last)
    home.clock.ahead_ms = 0
    agent = (await ada.agents())[0].agent_id
    found = await ada.acceptance(agent)
    assert found.total == AcceptRate(4, 1, 2, 0, percent=66, trend=25)
    assert {one.tool: one.rate.percent for one in found.tools} == {
        "append_to_note": 0,
        "create_task": 80,
    }
    assert len(found.weeks) == 12
    assert (found.weeks[-1].approved, found.weeks[-1].rejected) == (3, 1)
    assert (sum(one.approved for one in found.weeks), found.weeks[-7].rejected) == (4, 1)
    nobody = await ada.acceptance("nobody")
    assert (nobody.total.percent, nobody.total.trend, nobody.tools) == (None, None, ())


async def test_what_runs_by_itself_is_no_decision(home: Household) -> None:
    """Steps that policy let happen count for nobody's acceptance."""
    ada, waiting = await proposed(
        home, calling("create_task", {"title": "One"}), preset="aggressive"
    )
    assert waiting == []
    agent = (await ada.agents())[0].agent_id
    assert (await ada.acceptance(agent)).total == AcceptRate(0, 0, 0, 0, None, None)


async def test_a_comment_on_a_run_is_kept_and_its_proposals_stay_good(home: Household) -> None:
    """What is said of a run of the hub is on every device, and takes no run's proof away."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    (bucket,) = await ada.timeline()
    await ada.comment(bucket.iteration_id, " Shorter, please. ")
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    phone = await home.second()
    await phone.sync_now()
    assert (await phone.timeline())[0].feedback == "Shorter, please."
    first, second = (await phone.inbox())[:2]
    assert first.verified, first.trouble
    edit = {**first.params, "title": "Something else"}
    await phone.edit_preview(first.step_id, edit)
    assert (await phone.approve(first.step_id, arguments=edit)).edited
    assert (await phone.proposal(second.step_id)).verified
    await phone.comment(bucket.iteration_id, "")
    await phone.sync_now()
    await ada.sync_now()
    assert (await ada.timeline())[0].feedback == ""
    with pytest.raises(RunNotFound):
        await ada.comment("nothing", "?")
    with pytest.raises(Invalid):
        await ada.comment(bucket.iteration_id, "x" * 2_001)


async def test_a_run_keeps_its_proof_when_who_commented_it_leaves(home: Household) -> None:
    """What a former member said of a run takes nothing of it along."""
    ada = await home.person(model=model(calling("create_task", {"title": "One"})))
    bob = await home.person("bob")
    team = await shared_space(ada)
    await let_in(ada, team, bob)
    space = ada.in_space(team)
    mission, _, _ = await planned_mission(space, runs_on="device")
    await space.run_now(mission)
    await ada.sync_now()
    await bob.sync_now()
    (bucket,) = await bob.in_space(team).timeline()
    await bob.in_space(team).comment(bucket.iteration_id, "Fewer tasks.")
    await bob.sync_now()
    await ada.sync_now()
    await space.remove_member(bob.account_id)
    await ada.sync_now()
    (waiting,) = await space.inbox()
    assert (await space.timeline())[0].feedback == "Fewer tasks."
    assert waiting.verified, waiting.trouble
    assert (await space.approve(waiting.step_id)).state == "approved"


async def test_a_viewer_says_nothing_of_a_run(home: Household) -> None:
    """Feedback that an agent reads is of people who may write in the space."""
    ada = await home.person(model=model(calling("create_task", {"title": "One"})))
    bob = await home.person("bob")
    team = await shared_space(ada)
    await let_in(ada, team, bob, "viewer")
    space = ada.in_space(team)
    mission, _, _ = await planned_mission(space, runs_on="device")
    await space.run_now(mission)
    await ada.sync_now()
    await bob.sync_now()
    (bucket,) = await bob.in_space(team).timeline()
    with pytest.raises(ReadOnlyHere):
        await bob.in_space(team).comment(bucket.iteration_id, "More.")
    view = (
        await operations(ada).opened.book.in_space(team).view(ITERATIONS.name, bucket.iteration_id)
    )
    assert view is not None
    assert view.text("feedback") == ""


# Memory, and what is gone


async def test_a_memory_changes_only_by_the_persons_hand(home: Household) -> None:
    """What an agent wants to remember is a proposal under any policy; approved, the person writes it."""
    ada = await home.person(
        model=model(calling("propose_memory", {"append": "Bo likes mornings.", "reason": "Offer"}))
    )
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    agent = (await ada.agents())[0]
    allowed = type(agent.policy)({"write": "auto"}, {"propose_memory": "auto"})  # type: ignore[misc]
    await ada.edit_agent(agent.agent_id, policy=allowed, memory="Be brief.")
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    assert await operations(ada).runner.run_planned() == []
    assert waiting.diffs[0].table == AGENT_MEMORY.name
    assert waiting.diffs[0].title == "Mira"
    await ada.approve(waiting.step_id)
    of = operations(ada).opened
    view = await of.book.view(AGENT_MEMORY.name, agent.agent_id)
    assert view is not None
    assert view.text("content") == "Be brief.\nBo likes mornings."
    assert view.actors["content"] == of.person
    assert await of.book.is_verified(AGENT_MEMORY.name, agent.agent_id)
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    assert (await ada.revert(f"step:{waiting.step_id}")).conflicts == ()
    assert (await ada.agent(agent.agent_id)).memory == "Be brief."
    assert (await ada.sync_now()).refused == 0


async def test_a_proposal_of_a_mission_that_is_gone_can_be_decided(home: Household) -> None:
    """A deleted mission leaves its proposals to the person, a deleted agent leaves them to reject."""
    ada, (first, second) = await proposed(
        home, calling("create_task", {"title": "One"}), calling("create_task", {"title": "Two"})
    )
    await ada.delete_mission(first.mission_id)
    found = await ada.proposal(first.step_id)
    assert found.mission_title == "Weekly review"
    assert found.note == "Its mission was deleted; you can still decide on it."
    assert (await ada.approve(first.step_id)).state == "approved"
    await ada.delete_agent(second.agent_id)
    found = await ada.proposal(second.step_id)
    assert found.trouble == "Its agent is gone; it can be rejected, not approved."
    assert found.agent_name == "Mira"
    with pytest.raises(ProposalDenied):
        await ada.approve(second.step_id)
    with pytest.raises(ProposalDenied):
        await ada.approve_all([second.step_id])
    assert (await ada.reject(second.step_id)).state == "rejected"
