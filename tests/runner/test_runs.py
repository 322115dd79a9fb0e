"""A due mission becomes one sealed iteration, and nothing is opened without its audit row."""

from __future__ import annotations

import pytest

from mana.device.audit import Chain, follow
from mana.testing.postgres import Database
from tests.runner.world import world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def test_happy_run(database: Database) -> None:
    """A run that was asked for yields one iteration with staged steps."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            stats = await runner.scheduler.tick()
        assert stats.errors == []
        assert (stats.due_mission_count, stats.plans_written_back) == (1, 1)
        status = await made.status()
        assert [line.state for line in status.occurrences] == ["done"]
        state = await made.ada.state()
        iterations = [one for one in state.records if one.table == "aiIterations"]
        steps = [one for one in state.records if one.table == "aiSteps"]
        assert len(iterations) == 1
        assert steps
        assert {one.fields["status"].value for one in steps} == {"staged"}
        rows = (await made.audit()).rows
        assert {(row.table_name, row.status) for row in rows} == {
            ("aiMissions", "ok"),
            ("agents", "ok"),
            ("notes", "ok"),
        }
        follow(Chain(), rows[::-1], head_seq=rows[0].seq, head_hash=rows[0].hash)


async def test_earlier_runs_are_audited_before_they_are_read(database: Database) -> None:
    """A run that looks at what earlier runs proposed leaves one row for each of those records."""
    async with world(database) as made:
        await made.ready()
        async with made.runner() as runner:
            await made.run_now()
            await runner.scheduler.tick()
            state = await made.ada.state()
            earlier = {
                (one.table, one.id)
                for one in state.records
                if one.table in ("aiIterations", "aiSteps")
            }
            before = (await made.audit()).head_seq
            await made.run_now()
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 1)
        rows = [row for row in (await made.audit()).rows if row.seq > before]
        history = [
            (row.table_name, row.record_id)
            for row in rows
            if row.table_name in ("aiIterations", "aiSteps")
        ]
        assert len(earlier) >= 2
        assert sorted(history) == sorted(earlier)
        assert {row.status for row in rows} == {"ok"}
