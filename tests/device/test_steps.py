"""What a step shows is what it is bound to, and what it rests on must be there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mana.device.inbox import ProposalDenied, ProposalUnverified
from mana.device.records import RecordBook
from mana.planning import dispatch
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
    if first_is == "approved":
        await ada.approve(first.step_id)
    else:
        await ada.reject(first.step_id)
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
