"""Who asks again and again has a mission of somebody's run no more often for it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from mana.domain.encoding import Json
from mana.hub.grants.service import WAITING_MAX
from mana.protocol.messages import OccurrenceInfo
from mana.testing.postgres import Database, connected
from tests.hub.client import codes
from tests.runner.world import NOTE, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ON_CHANGE: Json = {"kind": "onChange", "debounceMinutes": 10, "spacingMinutes": 60}


async def test_runs_by_hand_wait_in_no_endless_row(database: Database) -> None:
    """Whoever asks for a hundred runs at once gets as many as may wait, and later more."""
    async with world(database) as made:
        await made.ready()
        path = f"/api/v1/spaces/{made.ada.space}/missions/mission-1/run"

        async def asked() -> int:
            return (await made.ada.call("POST", path)).status_code

        answers = [await asked() for _ in range(WAITING_MAX)]
        answers += await asyncio.gather(*(asked() for _ in range(84)))
        assert set(answers) == {202, 429}
        assert answers.count(202) >= WAITING_MAX
        async with connected(database.owner_url) as owner:
            waiting = await owner.fetchval("select count(*) from mana_ai.occurrences")
            assert waiting == WAITING_MAX
            await owner.execute("update mana_ai.occurrences set state = 'done'")
        answer = await made.ada.call("POST", path)
        assert msgspec.json.decode(answer.content, type=OccurrenceInfo).state == "queued"


async def test_a_flood_of_changes_is_one_run(database: Database) -> None:
    """However often a record is written, one run waits, and its time stays within its bound."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission(cadence=ON_CHANGE)
        await made.grant()

        async def write(place: int) -> None:
            changes = [
                made.change(NOTE, "note-1", {"title": f"{place}-{number}"}, op="update")
                for number in range(50)
            ]
            assert set(codes(await made.ada.push(changes))) == {"accepted"}

        for place in range(20):
            await write(place)
        async with connected(database.owner_url) as owner:
            rows = await owner.fetch(
                "select kind, due_at - scheduled_for <= interval '40 min' as bounded"
                " from mana_ai.occurrences where state = 'queued'"
            )
        assert [tuple(row) for row in rows] == [("change", True)]
