"""Due moments: each is worked on once, by whomever; those that passed are noted, not repeated."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.cadences import Cadence, next_due, overdue
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.occurrences import MISSED_KEPT_MAX
from mana.hub.db import Pool, Role, Tenancy
from mana.hub.db.errors import AccessRefused
from mana.hub.runner.rebuilding import Rebuilt, rebuild_all
from mana.hub.tenants import Tenant
from mana.planning.ports import ModelReply, ModelRequest
from mana.testing.models import ScriptedModel, says
from mana.testing.postgres import Database, connected, database_text, opened_tenancy
from tests.runner.world import CANARY, HOUR_MS, World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
database_test = pytest.mark.postgres

CADENCES = st.one_of(
    st.builds(lambda n: Cadence("interval", every_minutes=n), st.integers(1, 3_000)),
    st.builds(
        lambda h, m: Cadence("daily", at_hour=h, at_minute=m),
        st.integers(0, 23),
        st.integers(0, 59),
    ),
    st.builds(
        lambda d, h: Cadence("weekly", day_of_week=d, at_hour=h),
        st.integers(0, 6),
        st.integers(0, 23),
    ),
)
ANCHORS = st.integers(1_700_000_000_000, 1_800_000_000_000)


@given(CADENCES, ANCHORS, st.integers(0, 400 * 24 * HOUR_MS))
def test_overdue_is_what_passed(cadence: Cadence, anchor_ms: int, late_ms: int) -> None:
    """The missed moments and the newest are due moments in order, and nothing later is due."""
    due = next_due(cadence, "Europe/Berlin", anchor_ms=anchor_ms, after_ms=anchor_ms)
    assert due is not None
    now = due + late_ms
    missed, newest = overdue(
        cadence,
        "Europe/Berlin",
        anchor_ms=anchor_ms,
        due_ms=due,
        now_ms=now,
        kept=MISSED_KEPT_MAX,
    )
    moments = [*missed, newest]
    assert len(missed) <= MISSED_KEPT_MAX
    assert moments == sorted(set(moments))
    assert due <= moments[0]
    assert newest <= now
    after = next_due(cadence, "Europe/Berlin", anchor_ms=anchor_ms, after_ms=newest)
    assert after is not None
    assert after > now
    for earlier, later in itertools.pairwise(moments):
        found = next_due(cadence, "Europe/Berlin", anchor_ms=anchor_ms, after_ms=earlier)
        assert found == later
    if len(missed) < MISSED_KEPT_MAX:
        assert moments[0] == due


async def snapshots(database: Database) -> list[Any]:
    async with connected(database.owner_url) as connection:
        missions = await connection.fetch(
            "select m::text as row from mana_ai.mission_snapshots m order by 1"
        )
        agents = await connection.fetch(
            "select a::text as row from mana_ai.agent_snapshots a order by 1"
        )
    return [row["row"] for row in (*missions, *agents)]


async def make_due(made: World, minutes: int = 60, late_ms: int = 30_000) -> int:
    """Make a mission whose first moment passed shortly ago; return that moment."""
    anchor = now_ms() - minutes * 60_000 - late_ms
    await made.mission(cadence={"kind": "interval", "everyMinutes": minutes}, stamped_ms=anchor)
    return anchor + minutes * 60_000


@database_test
@pytest.mark.anyio
async def test_schedule_goes_on(database: Database) -> None:
    """A due mission runs for its own moment, and the next one is queued in the same finish."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        due = await make_due(made)
        await made.grant()
        assert (await made.status()).next_run_at == iso_ms(due)
        async with made.runner() as runner:
            assert (await runner.scheduler.tick()).errors == []
            assert (await runner.scheduler.tick()).due_mission_count == 0
        status = await made.status()
        assert [(line.scheduled_for, line.state) for line in status.occurrences] == [
            (iso_ms(due + HOUR_MS), "queued"),
            (iso_ms(due), "done"),
        ]
        assert status.next_run_at == iso_ms(due + HOUR_MS)


@database_test
@pytest.mark.anyio
async def test_missed_moments(database: Database) -> None:
    """Moments that passed while nothing could run are noted; only the newest is run."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await make_due(made, 60, 3 * HOUR_MS + 30_000)
        await made.grant()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        states = [line.state for line in (await made.status()).occurrences]
        assert states == ["queued", "done", "missed", "missed", "missed"]


@database_test
@pytest.mark.anyio
async def test_hold_until_granted_again(database: Database) -> None:
    """Without a grant the schedule is held; a new grant clears it and the moment runs once."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await make_due(made)
        async with made.runner() as runner:
            await runner.scheduler.tick()
            status = await made.status()
            assert (status.hold, status.next_run_at) == ("no-grant", None)
            assert [line.reason for line in status.occurrences] == ["no-grant"]
            await made.grant()
            status = await made.status()
            assert status.hold is None
            assert status.next_run_at is not None
            await made.run_now()
            await runner.scheduler.tick()
        assert "done" in [line.state for line in (await made.status()).occurrences]


@database_test
@pytest.mark.anyio
@pytest.mark.parametrize(
    "edit",
    [
        {"state": "paused"},
        {"deletedAt": "2026-11-21T05:23:00.123Z"},
        {"runsOn": "device:00000000-0000-4000-8000-000000000001"},
        {"cadence": {"kind": "manual"}},
    ],
)
async def test_cancelled_by_an_edit(database: Database, edit: dict[str, Any]) -> None:
    """A mission that is paused, deleted, moved to a device or made manual is not leased."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await make_due(made)
        await made.grant()
        await made.edit_mission(**edit)
        async with made.runner() as runner:
            assert (await runner.scheduler.tick()).due_mission_count == 0
        async with connected(database.owner_url) as connection:
            assert await connection.fetchval("select count(*) from mana_ai.occurrences") == 0


@database_test
@pytest.mark.anyio
async def test_resumed_counts_from_now(database: Database) -> None:
    """A mission that was paused over its moment does not run it when it is resumed."""
    async with world(database) as made:
        await made.agent()
        await make_due(made)
        await made.edit_mission(state="paused")
        await made.edit_mission(state="active")
        found = (await made.status()).next_run_at
        assert found is not None
        assert parse_iso_ms(found) > now_ms()


@database_test
@pytest.mark.anyio
async def test_rebuilt_snapshots_are_the_projected(database: Database) -> None:
    """Snapshots made anew from the records equal those written by the pushes."""
    async with world(database) as made:
        await made.ready()
        await made.agent("agent-2", maxTokensPerDay=500)
        await made.mission(
            "mission-2",
            cadence={"kind": "daily", "atHour": 6, "atMinute": 30},
            stamped_ms=now_ms() - HOUR_MS,
        )
        await made.edit_mission(state="paused")
        before = await snapshots(database)
        async with connected(database.owner_url) as connection:
            await connection.execute(
                "delete from mana_ai.mission_snapshots; delete from mana_ai.agent_snapshots"
            )
        async with opened_tenancy(database) as tenancy:
            assert await rebuild_all(tenancy) == Rebuilt(missions=2, agents=2)
        assert await snapshots(database) == before


@database_test
@pytest.mark.anyio
async def test_two_runners_share_the_work(database: Database) -> None:
    """Fifty due occurrences and two runners: each is run once."""
    async with world(database) as made:
        await made.agent(maxConcurrentMissions=100)
        await made.note("note-1")
        changes = []
        for number in range(50):
            await made.mission(f"mission-{number}")
            changes.append(number)
            await made.grant(f"mission-{number}")
            await made.run_now(f"mission-{number}")

        began = asyncio.Event(), asyncio.Event()

        class Both(ScriptedModel):
            """One of two models, neither of which says anything before the other is asked too."""

            endpoint = "rules:offline"

            def __init__(self, place: int) -> None:
                super().__init__([])
                self._place = place

            async def complete(self, request: ModelRequest) -> ModelReply:
                began[self._place].set()
                await began[1 - self._place].wait()
                return says("Done.")

        async with (
            made.runner(lambda: Both(0), concurrency=8) as one,
            made.runner(lambda: Both(1), concurrency=8) as two,
        ):
            first, second = await asyncio.gather(one.scheduler.tick(), two.scheduler.tick())
        assert first.errors == second.errors == []
        assert first.plans_written_back + second.plans_written_back == 50
        assert first.plans_written_back
        assert second.plans_written_back
        state = await made.ada.state()
        found = [one.id for one in state.records if one.table == "aiIterations"]
        more = await made.ada.state(state.next) if state.next else None
        if more is not None:
            found += [one.id for one in more.records if one.table == "aiIterations"]
        assert len(found) == len(set(found)) == 50


@database_test
@pytest.mark.anyio
async def test_replaced_runner_is_fenced_off(database: Database) -> None:
    """A runner whose lease was taken over writes nothing when it comes back."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()

        class Late(ScriptedModel):
            endpoint = "rules:offline"

            async def complete(self, request: ModelRequest) -> ModelReply:
                async with connected(database.owner_url) as connection:
                    await connection.execute("update mana_ai.occurrences set fence = fence + 1")
                return says("Done.")

        async with made.runner(Late) as runner:
            await runner.scheduler.tick()
        state = await made.ada.state()
        assert not [one for one in state.records if one.table == "aiIterations"]
        assert (await made.status()).occurrences[0].state == "leased"


@database_test
@pytest.mark.anyio
async def test_given_up_after_three_leases(database: Database) -> None:
    """An occurrence that was leased three times and never ended has failed by crash."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with connected(database.owner_url) as connection:
            await connection.execute(
                "update mana_ai.occurrences set state = 'leased', attempts = 3, fence = 3,"
                " lease_until = now() - interval '1 s'"
            )
        async with made.runner() as runner:
            await runner.scheduler.tick()
        line = (await made.status()).occurrences[0]
        assert (line.state, line.reason) == ("failed", "crash")


@database_test
@pytest.mark.anyio
async def test_drain_gives_back(database: Database) -> None:
    """A runner that ends gives unfinished leases back, so that another can run them at once."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        reached = asyncio.Event()

        class Stuck(ScriptedModel):
            endpoint = "rules:offline"

            async def complete(self, request: ModelRequest) -> ModelReply:
                reached.set()
                await asyncio.Event().wait()
                raise AssertionError("unreachable")

        async with made.runner(Stuck) as runner:
            tick = asyncio.create_task(runner.scheduler.tick())
            await reached.wait()
            await runner.scheduler.drain(seconds=0.1)
            await tick
        assert (await made.status()).occurrences[0].state == "queued"
        async with made.runner() as other:
            assert (await other.scheduler.tick()).plans_written_back == 1


@database_test
@pytest.mark.anyio
async def test_stopping_is_quiet(database: Database) -> None:
    """A runner that is stopped, at whatever moment, ends its passes and complains of nothing."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))
    async with world(database) as made:
        await made.ready()
        for turns in range(0, 60, 6):
            async with made.runner(tick_enabled=True, tick_interval_ms=1_000) as runner:
                runner.scheduler.wake()
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert runner.scheduler.is_draining
    loop.set_exception_handler(None)
    assert complaints == []


@database_test
@pytest.mark.anyio
async def test_notices_wake(database: Database) -> None:
    """A runner that ticks once a day still runs at once what a person asks for."""
    async with world(database) as made:
        await made.ready()
        async with made.runner(tick_enabled=True, tick_interval_ms=86_400_000):
            await made.run_now()
            while (await made.status()).occurrences[0].state != "done":  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@database_test
@pytest.mark.anyio
async def test_database_holds_no_text(database: Database) -> None:
    """After a run, no column of any row holds a text that the person or the model wrote."""
    async with world(database) as made:
        await made.ready()
        await made.memory()
        await made.run_now()

        class Chatty(ScriptedModel):
            endpoint = "rules:offline"

            async def complete(self, request: ModelRequest) -> ModelReply:
                return says(f"All about {CANARY}.")

        async with made.runner(Chatty) as runner:
            assert (await runner.scheduler.tick()).plans_written_back == 1
            figures = runner.metrics.text().decode()
        text = await database_text(database.owner_url)
        assert "mission-1" in text
        assert CANARY not in text
        assert CANARY not in figures


@database_test
@pytest.mark.anyio
@pytest.mark.parametrize("role", [Role.APP, Role.RUNNER])
@pytest.mark.parametrize(
    "statement",
    [
        "update mana_ai.decrypt_audit set status = 'ok'",
        "delete from mana_ai.decrypt_audit",
        "delete from mana_ai.audit_heads",
        "truncate mana_ai.decrypt_audit",
    ],
)
async def test_audit_only_grows(database: Database, role: Role, statement: str) -> None:
    """Neither serving role can change or remove a row of the audit."""
    url = database.app_url if role is Role.APP else database.runner_url
    async with Pool(url, role=role) as pool:
        tenancy = Tenancy(pool)
        with pytest.raises(AccessRefused):
            async with tenancy.transaction(
                Tenant("00000000-0000-4000-8000-000000000000")  # type: ignore[arg-type]
            ) as tx:
                await tx.execute(statement)
