"""A due mission becomes one sealed iteration, and nothing is opened without its audit row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mana.device.audit import Chain, follow
from mana.domain.ids import AccountId
from mana.domain.records import View
from mana.hub.runner import audit, run
from mana.hub.runner.audit import AuditRows, Reading
from mana.planning.ports import ModelFailed, ModelReply, ModelRequest
from mana.protocol.messages import StateRecord
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected
from tests.runner.world import InlineWorker, InlineWorkers, world

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


async def test_nothing_is_opened_before_it_is_audited(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of a reading is committed before the record is opened: inputs, support, history."""
    noted: set[tuple[str, str]] = set()
    opened: list[tuple[str, str]] = []
    early: list[tuple[str, str]] = []
    append, open_record = audit.append, run.open_record

    async def noting(
        rows: AuditRows, account: AccountId, readings: Sequence[Reading], **facts: Any
    ) -> Any:
        heads = await append(rows, account, readings, **facts)
        entries = [entry for reading in readings for entry in reading.entries]
        noted.update((entry.table_name, entry.record_id) for entry in entries)
        return heads

    def opening(space_id: str, record: StateRecord, *rest: Any, **options: Any) -> View:
        named = (record.table, record.id)
        opened.append(named)
        if named not in noted:
            early.append(named)
        return open_record(space_id, record, *rest, **options)

    # The worker hears of an audit only when it is committed, so the order of calls is the proof.
    monkeypatch.setattr(audit, "append", noting)
    monkeypatch.setattr(run, "open_record", opening)
    async with world(database) as made:
        await made.ready()
        async with made.runner() as runner:
            for _ in range(2):
                noted.clear()
                await made.run_now()
                assert (await runner.scheduler.tick()).errors == []
    assert {table for table, _ in opened} == {
        "aiMissions",
        "agents",
        "notes",
        "aiIterations",
        "aiSteps",
    }
    assert early == []


async def test_a_replaced_runner_opens_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner whose lease was taken over before its first reading notes none and opens none."""
    opened: list[str] = []
    open_record = run.open_record

    def opening(space_id: str, record: StateRecord, *rest: Any, **options: Any) -> View:
        opened.append(record.table)
        return open_record(space_id, record, *rest, **options)

    monkeypatch.setattr(run, "open_record", opening)
    async with world(database) as made:

        class Overtaken(InlineWorkers):
            async def start(self) -> InlineWorker:
                async with connected(database.owner_url) as owner:
                    await owner.execute("update mana_ai.occurrences set fence = fence + 1")
                return await super().start()

        await made.ready()
        await made.run_now()
        async with made.runner(workers=Overtaken()) as runner:
            await runner.scheduler.tick()
        assert (await made.audit()).rows == []
    assert opened == []


async def test_a_header_that_was_swapped_after_the_lease_opens_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading is refused, and noted so, unless the register's header is still the verified one."""
    opened: list[str] = []
    open_record = run.open_record

    def opening(space_id: str, record: StateRecord, *rest: Any, **options: Any) -> View:
        opened.append(record.table)
        return open_record(space_id, record, *rest, **options)

    monkeypatch.setattr(run, "open_record", opening)
    async with world(database) as made:

        class Swapping(InlineWorkers):
            async def start(self) -> InlineWorker:
                async with connected(database.owner_url) as owner:
                    await owner.execute("alter table mana_ai.grants disable trigger guard_grant")
                    await owner.execute(
                        "update mana_ai.grants set header = replace(header, 'note-1', 'note-2')"
                    )
                return await super().start()

        await made.ready()
        await made.run_now()
        async with made.runner(workers=Swapping()) as runner:
            await runner.scheduler.tick()
        rows = (await made.audit()).rows
        assert rows
        assert {(row.status, row.reason) for row in rows} == {("failed", "scope-mismatch")}
        assert (await made.status()).occurrences[0].reason == "scope-mismatch"
    assert opened == []


async def test_a_call_that_was_cut_off_counts_in_full(database: Database) -> None:
    """Tokens that were reserved for a call and never settled are spent: money cannot run away."""

    class Silent(ScriptedModel):
        endpoint = "rules:offline"

        async def complete(self, request: ModelRequest) -> ModelReply:
            raise ModelFailed("timeout")

    async with world(database) as made:
        await made.ready(maxTokensPerDay=1_000_000)
        await made.run_now()
        async with made.runner(lambda: Silent([])) as runner:
            await runner.scheduler.tick()
        assert (await made.status()).occurrences[0].last_reason == "timeout"
        assert (await made.missions()).tokens_today["agent-1"] > 0
