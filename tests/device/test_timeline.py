"""The timeline: what AI did, what it was refused, and what watchers hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mana.device.notices import Notices
from mana.device.views import Notice
from mana.domain.errors import Invalid
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, planned_mission

pytestmark = pytest.mark.anyio


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


@pytest.mark.postgres
async def test_refused_calls_and_waiting_steps_are_shown(home: Household) -> None:
    """What the model asked for and did not get stands beside what it proposed."""
    planner = ScriptedModel(
        [
            says("", calling("drop_everything", {}), calling("create_task", {"title": "One"})),
            says("One task."),
            says("Nothing to do."),
        ]
    )
    ada = await home.person(model=planner)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    first = await ada.run_now(mission)
    assert first is not None
    await ada.run_now(mission)
    other = await ada.create_mission("Other", "Do", agent_id=(await ada.agents())[0].agent_id)
    newest, oldest = await ada.timeline()
    assert (newest.summary, newest.lines, newest.revertible) == ("Nothing to do.", (), False)
    assert newest.at_ms >= oldest.at_ms
    assert [line.state for line in oldest.lines] == ["proposed", "refused"]
    assert oldest.lines[0].sentence == "Add task “One”"
    assert oldest.lines[1].note == "TOOL_NOT_OFFERED"
    assert oldest.lines[1].sentence.startswith("“Drop everything” did not happen: it asked")
    assert (oldest.agent_name, oldest.source) == ("Mira", "device")
    assert oldest.tokens == first.tokens > 0
    assert await ada.timeline(mission_id=other) == []
    assert len(await ada.timeline(limit=1)) == 1
    with pytest.raises(Invalid):
        await ada.timeline(limit=0)


async def test_slow_subscriber_hears_every_table_once() -> None:
    """Notices that nobody took yet are merged by topic, and none of their tables is lost."""
    notices = Notices()
    stream = notices.subscribe()
    for table in ("notes", "tasks", "notes"):
        notices.say(Notice("records", frozenset({table})))
    notices.say(Notice("sync"))
    assert await anext(stream) == Notice("records", frozenset({"notes", "tasks"}))
    assert await anext(stream) == Notice("sync")
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    notices.close()
    assert await waiting is None
    assert await anext(notices.subscribe(), None) is None
