"""The audit can be asked for what matters, and nothing is opened that it does not hold."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mana.hub.runner import run
from mana.planning.ports import ModelFailed, ModelReply, ModelRequest
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


class Broken(ScriptedModel):
    """A model that fails after everything was opened."""

    endpoint = "rules:offline"

    async def complete(self, request: ModelRequest) -> ModelReply:
        raise ModelFailed("timeout")


async def run_all(made: World, model: Any = None) -> None:
    async with made.runner(*([model] if model else [])) as runner:
        await runner.scheduler.tick()


async def test_filters(database: Database) -> None:
    """Readings are found by mission, table, status and time, and paged by their number."""
    async with world(database) as made:
        await made.agent()
        for note in ("note-1", "note-2"):
            await made.note(note)
        await made.mission()
        await made.mission("mission-2", inputs=("note-2",))
        await made.grant()
        await made.grant("mission-2", inputs=("note-2",))
        await made.edit_mission(
            inputs=[{"module": "notes", "table": "notes", "id": one} for one in ("note-1", "x")]
        )
        for mission in ("mission-1", "mission-2"):
            await made.run_now(mission)
            await run_all(made)
            await asyncio.sleep(0.002)  # so that the readings of the two have other moments
        every = (await made.audit()).rows
        assert len(every) == 7
        later = min(row.ts for row in every if row.mission_id == "mission-2")
        wanted: dict[str, Any] = {
            "missionId=mission-2": lambda row: row.mission_id == "mission-2",
            "table=notes": lambda row: row.table_name == "notes",
            "status=scope-violation": lambda row: row.status == "scope-violation",
            "status=revoked": lambda row: row.status == "revoked",
            f"since={later}": lambda row: row.ts >= later,
            f"until={later}": lambda row: row.ts < later,
            "table=notes&status=ok&missionId=mission-1": lambda row: (
                (row.table_name, row.status, row.mission_id) == ("notes", "ok", "mission-1")
            ),
        }
        for query, holds in wanted.items():
            found = await made.audit(f"?{query}")
            assert found.rows == [row for row in every if holds(row)], query
            assert found.head_seq == every[0].seq
        page = await made.audit("?table=notes&limit=1")
        assert page.more
        rest = await made.audit(f"?table=notes&before={page.rows[0].seq}")
        assert page.rows + rest.rows == (await made.audit("?table=notes")).rows
        for query in ("status=open", "since=yesterday", "until=2026"):
            answer = await made.ada.call("GET", f"/api/v1/me/ai-audit?{query}")
            assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST")


async def test_a_failure_is_noted_whatever_becomes_of_the_run(database: Database) -> None:
    """The row of a record that did not open stays when the run fails afterwards."""
    async with world(database) as made:
        await made.agent()
        for note in ("note-1", "note-2"):
            await made.note(note)
        await made.mission(inputs=("note-1", "note-2"))
        header = await made.header(inputs=("note-1", "note-2"))
        payload: Any = made.payload(header)
        payload["records"]["notes:note-2"]["e"] = "s9"
        await made.complete(header, payload)
        await made.run_now()
        await run_all(made, lambda: Broken([]))
        assert (await made.status()).occurrences[0].last_reason == "timeout"
        (row,) = (await made.audit("?status=failed")).rows
        assert (row.table_name, row.record_id, row.reason) == ("notes", "note-2", "key-rotated")


async def test_nothing_is_opened_that_cannot_be_noted(
    database: Database, opened: list[str]
) -> None:
    """Where the row of a reading cannot be written, the reading does not happen."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with connected(database.owner_url) as owner:
            await owner.execute("revoke insert on mana_ai.decrypt_audit from mana_runner")
        async with made.runner() as runner:
            stats = await runner.scheduler.tick()
        assert stats.errors
        assert stats.plans_written_back == 0
        assert (await made.audit()).rows == []
    assert opened == []


@pytest.mark.parametrize("at", [1, 2])
async def test_a_revocation_beats_the_next_read(
    database: Database, opened: list[str], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A grant that is revoked in the middle of a run is read no further: neither the inputs nor the
    history after the mission."""
    async with world(database) as made:
        header = await made.ready()
        await made.run_now()
        await run_all(made)
        opened.clear()
        await made.run_now()
        audited = 0
        ask = run.Run._audit

        async def asking(self: Any, *args: Any, **options: Any) -> None:
            nonlocal audited
            audited += 1
            if audited == at:
                await made.revoke(header)
            await ask(self, *args, **options)

        monkeypatch.setattr(run.Run, "_audit", asking)
        await run_all(made)
        line = (await made.status()).occurrences[0]
        assert (line.state, line.reason) == ("skipped", "revoked")
        tables = {name.partition(":")[0] for name in opened}
        assert tables == [set(), {"aiMissions", "agents"}][at - 1]
        assert {row.status for row in (await made.audit()).rows} <= {"ok", "revoked"}
