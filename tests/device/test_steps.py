"""What a step shows is what it is bound to, and what it rests on must be there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from mana.device.desk import Device
from mana.device.inbox import (
    ProposalDecided,
    ProposalDenied,
    ProposalExpired,
    ProposalImpossible,
    ProposalMoved,
    ProposalUnverified,
)
from mana.device.records import RecordBook
from mana.device.views import Proposal
from mana.domain.ids import StepId, created_id
from mana.planning import dispatch
from mana.planning.ports import ModelReply, ModelRequest
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def test_a_step_that_is_bound_to_something_else_cannot_be_approved(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose intent, preview and base are not what its binding stands for never happens."""
    planner = ScriptedModel([says("", calling("create_task", {"title": "One"})), says("Done.")])
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "binding_hash", lambda *shown: "0" * 64)
        await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    assert (waiting.verified, waiting.trouble) == (
        False,
        "What it shows is not what it is bound to.",
    )
    with pytest.raises(ProposalUnverified):
        await ada.approve(waiting.step_id)
    assert len(await ada.list("tasks")) == 2


@pytest.mark.parametrize("first_is", ["approved", "rejected"])
async def test_a_step_rests_on_the_one_before_only_if_that_happened(
    home: Household, first_is: str
) -> None:
    """A step that was planned on an earlier one carries nothing of it over if it was rejected."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    calls = [
        calling("append_to_note", {"noteId": notes[1], "content": text})
        for text in ("Thyme.", "Mint.")
    ]
    planner = ScriptedModel([says("", *calls), says("Done.")])
    object.__setattr__(operations(ada).opened, "model", planner)
    await ada.run_now(mission)
    first, second = await ada.inbox()
    assert second.note.startswith("It rests on an earlier step")
    if first_is == "approved":
        await ada.approve(first.step_id)
    else:
        await ada.reject(first.step_id)
        # It was shown with what the first was to write.
        with pytest.raises(ProposalMoved):
            await ada.approve(second.step_id)
    assert (await ada.approve(second.step_id)).state == "approved"
    content = (await ada.get("notes", notes[1])).text("content")
    assert content.startswith("More herbs.")
    assert ("Thyme." in content) == (first_is == "approved")
    assert content.count("Mint.") == 1


async def test_an_agent_that_no_device_signed_does_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent whose record cannot be verified starts no run, and its proposals are denied."""
    planner = ScriptedModel([says("", calling("create_task", {"title": "One"})), says("Done.")])
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    verified = RecordBook.is_verified

    async def all_but_agents(book: RecordBook, table: str, record_id: str) -> bool:
        return table != "agents" and await verified(book, table, record_id)

    monkeypatch.setattr(RecordBook, "is_verified", all_but_agents)
    with pytest.raises(ProposalDenied):
        await ada.approve(waiting.step_id)
    run = await ada.run_now(mission)
    assert run is not None
    assert (run.state, run.reason) == ("skipped", "agent-missing")
    assert len(await ada.list("tasks")) == 2


async def test_a_step_is_shown_anew_where_the_one_before_was_done_otherwise(
    home: Household,
) -> None:
    """What a later step was planned to write goes over nothing that the earlier one kept."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    calls = [
        calling("append_to_note", {"noteId": notes[1], "content": text})
        for text in ("Thyme.", "Mint.")
    ]
    planner = ScriptedModel([says("", *calls), says("Done.")])
    object.__setattr__(operations(ada).opened, "model", planner)
    await ada.run_now(mission)
    first, second = await ada.inbox()
    await ada.edit("notes", notes[1], {"content": "Less lawn."})
    with pytest.raises(ProposalMoved):
        await ada.approve(first.step_id)
    await ada.approve(first.step_id)
    with pytest.raises(ProposalMoved):
        await ada.approve(second.step_id)
    await ada.approve(second.step_id)
    content = (await ada.get("notes", notes[1])).text("content")
    assert content.split() == ["Less", "lawn.", "Thyme.", "Mint."]


def on_the_new_note(request: ModelRequest) -> ModelReply:
    """Write to the note that the first step creates, before it is there."""
    answer = json.loads(request.messages[-1].content)
    note = created_id(StepId(answer["data"]["stepId"]), 0)
    return says(
        "",
        calling("append_to_note", {"noteId": note, "content": "More."}, id="2"),
        calling("add_tag_to_note", {"noteId": note, "tag": "herbs"}, id="3"),
    )


async def chain(device: Device) -> list[Proposal]:
    """Return three proposals: a new note, a text in it, a tag in it."""
    mission, _, _ = await planned_mission(device, runs_on="device")
    planner = ScriptedModel(
        [says("", calling("create_note", {"content": "Herbs.", "title": "List"})), on_the_new_note]
    )
    object.__setattr__(operations(device).opened, "model", planner)
    await device.run_now(mission)
    await device.sync_now()
    return await device.inbox()


async def text_of(device: Device, proposal: Proposal) -> str:
    return (await device.get("notes", proposal.diffs[0].record_id)).text("content")


async def test_steps_rest_on_what_earlier_ones_create(home: Household) -> None:
    """Each step of a chain executes what it showed when it was planned, one after the other."""
    ada = await home.person(model=ScriptedModel([]))
    steps = await chain(ada)
    assert [one.moved for one in steps] == [False] * 3
    with pytest.raises(ProposalImpossible, match="earlier step of the same run"):
        await ada.approve(steps[1].step_id)
    for one in steps:
        assert (await ada.approve(one.step_id)).state == "approved"
    assert await text_of(ada, steps[0]) == "Herbs.\n\nMore.\n\n#herbs"


async def test_a_step_fills_what_the_one_that_creates_left_out(home: Household) -> None:
    """A path that an earlier step's record does not have is as it was planned while it lacks it."""

    def complete(request: ModelRequest) -> ModelReply:
        answer = json.loads(request.messages[-1].content)
        task = created_id(StepId(answer["data"]["stepId"]), 0)
        return says("", calling("complete_task", {"taskId": task}, id="2"))

    made = says("", calling("create_task", {"title": "Water the herbs"}))
    ada = await home.person(model=ScriptedModel([made, complete]))
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    first, second = await ada.inbox()
    await ada.approve(first.step_id)
    await ada.approve(second.step_id)
    task = await ada.get("tasks", first.diffs[0].record_id)
    assert task.values["isCompleted"] is True


async def test_nothing_rests_on_a_record_that_was_never_made(home: Household) -> None:
    """Where the step that was to create a record was rejected, those on it say so."""
    ada = await home.person(model=ScriptedModel([]))
    first, second, _ = await chain(ada)
    await ada.reject(first.step_id)
    assert (await ada.proposal(second.step_id)).trouble.endswith("run, which was rejected.")
    with pytest.raises(ProposalImpossible, match="rejected"):
        await ada.approve(second.step_id)
    assert len(await ada.list("notes")) == 2


async def test_a_chain_that_nobody_decided_on_ends_as_a_whole(home: Household) -> None:
    """Steps of one run expire together, and none of them happens afterwards."""
    ada = await home.person(model=ScriptedModel([]))
    first, second, _ = await chain(ada)
    home.clock.ahead_ms = 15 * 24 * 60 * 60 * 1_000
    with pytest.raises(ProposalExpired):
        await ada.approve(second.step_id)
    await operations(ada).inbox.expire()
    home.clock.ahead_ms = 0
    for one in (first, second):
        with pytest.raises(ProposalDecided):
            await ada.approve(one.step_id)
    assert len(await ada.list("notes")) == 2


async def test_a_later_step_stands_on_one_that_was_edited_elsewhere_in_the_record(
    home: Household,
) -> None:
    """An edit of the earlier step that leaves what the later one builds on leaves that one too."""
    ada = await home.person(model=ScriptedModel([]))
    first, second, third = await chain(ada)
    other_title = {"content": "Herbs.", "title": "Another list"}
    await ada.edit_preview(first.step_id, other_title)
    await ada.approve(first.step_id, arguments=other_title)
    await ada.approve(second.step_id)
    await ada.approve(third.step_id)
    assert await text_of(ada, first) == "Herbs.\n\nMore.\n\n#herbs"


async def test_a_later_step_is_shown_anew_on_one_that_was_edited(home: Household) -> None:
    """An edit of what a later step builds on is in what that one shows, and is not lost by it."""
    ada = await home.person(model=ScriptedModel([]))
    first, second, third = await chain(ada)
    edited = {"content": "Roots.", "title": "List"}
    await ada.edit_preview(first.step_id, edited)
    await ada.approve(first.step_id, arguments=edited)
    with pytest.raises(ProposalMoved):
        await ada.approve(second.step_id)
    await ada.approve(second.step_id)
    shown = await ada.proposal(third.step_id)
    assert shown.moved
    await ada.approve(third.step_id)
    assert await text_of(ada, first) == "Roots.\n\nMore.\n\n#herbs"


async def test_a_chain_is_decided_on_two_devices(home: Household) -> None:
    """What one device approved, the other one builds on without a second look."""
    ada = await home.person(model=ScriptedModel([]))
    first, second, third = await chain(ada)
    phone = await home.second()
    await phone.sync_now()
    await phone.approve(first.step_id)
    await ada.sync_now()
    await ada.approve(second.step_id)
    await phone.sync_now()
    await phone.approve(third.step_id)
    await ada.sync_now()
    assert await text_of(ada, first) == "Herbs.\n\nMore.\n\n#herbs"
    assert (await ada.revert(f"iteration:{first.iteration_id}")).conflicts == ()
    assert len(await ada.list("notes")) == 2
