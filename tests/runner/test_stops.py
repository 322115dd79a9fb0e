"""Stops: of one run, an agent, an account, the hub. Nothing new is leased; what runs is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from mana.domain.encoding import Json
from mana.hub.app import operator
from mana.hub.operating.service import LimitInvalid
from mana.hub.runner import scheduling
from mana.hub.runner.batches import Batch
from mana.hub.runner.ledger import Lease
from mana.hub.runner.store import RunnerStore
from mana.protocol.messages import MissionStatus, Problem, WorkState
from mana.testing.postgres import Database, connected
from mana.testing.work import limits_of, next_word, signed_work
from tests.runner.world import HOUR_MS, World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WORK = "/api/v1/me/ai-work"
RUNNER = "one"


@contextlib.asynccontextmanager
async def at_work(database: Database) -> AsyncIterator[tuple[World, RunnerStore]]:
    """Lend a world in which a granted mission may run, and a runner's store."""
    store = RunnerStore.at(database.runner_url)
    async with world(database) as made:
        await made.ready()
        await store.open()
        try:
            yield made, store
        finally:
            await store.close()


async def leased(made: World, store: RunnerStore) -> Lease:
    await made.run_now()
    [lease] = (await store.lease(RUNNER, 5, lease_s=60)).leases
    return lease


async def work(made: World, **asked: Any) -> WorkState:
    """Return what holds, after a device signed it with these limits changed."""
    answer = await made.ada.call("GET", WORK)
    state = msgspec.json.decode(answer.content, type=WorkState)
    if asked:
        word = next_word(made.ada.account, state, replace(limits_of(state), **asked))
        answer = await made.ada.call("PUT", WORK, signed_work(made.ada.account, word))
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=WorkState)


async def call(made: World, what: str, mission: str = "mission-1") -> MissionStatus:
    path = f"/api/v1/spaces/{made.ada.space}/missions/{mission}/{what}"
    answer = await made.ada.call("POST", path)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=MissionStatus)


async def refused(made: World) -> tuple[int, str]:
    answer = await made.ada.call("POST", f"/api/v1/spaces/{made.ada.space}/missions/mission-1/run")
    return answer.status_code, msgspec.json.decode(answer.content, type=Problem).code


async def assert_told(store: RunnerStore, lease: Lease) -> None:
    """Check that whoever works on a lease finds it stopped, now and when it finishes."""
    assert [one.occurrence_id for one in await store.stopping(RUNNER)] == [lease.occurrence_id]
    assert await store.stopping("another") == []
    async with store.work(lease.account_id) as ledger:
        held = await Batch(ledger.tx, lease.space_id).held([lease], lease.account_id)
        assert held.stopped == {lease.occurrence_id}


async def assert_runs(store: RunnerStore, lease: Lease) -> None:
    assert await store.stopping(RUNNER) == []
    async with store.work(lease.account_id) as ledger:
        held = await Batch(ledger.tx, lease.space_id).held([lease], lease.account_id)
        assert (held.ids, held.stopped) == ({lease.occurrence_id}, set())


async def test_one_run_is_stopped_at_once(database: Database) -> None:
    """Who stops a mission stops the run: its runner is told, and it ends as stopped."""
    async with at_work(database) as (made, store):
        told = asyncio.Event()
        await store.listen_stops(lambda _payload: told.set())
        lease = await leased(made, store)
        await assert_runs(store, lease)
        told.clear()
        await call(made, "stop")
        await told.wait()
        await assert_told(store, lease)
        async with store.work(lease.account_id) as ledger:
            became = await scheduling.ended(ledger, lease, "failed", "stopped")
        assert became.took
        status = await made.status()
        assert [(one.state, one.reason) for one in status.occurrences] == [("failed", "stopped")]
        assert (status.failures, status.hold) == (0, None)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana_ai.stops") == 0


async def test_a_stop_that_comes_too_late_leaves_nothing(database: Database) -> None:
    """A stop and the end of its run pass each other: the run is done, and no mark of it stays."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        async with store.work(lease.account_id) as ending:
            assert (await scheduling.ended(ending, lease, "done")).took
            await work(made, stopped=True)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana_ai.stops") == 1
            assert await store.crashed(5) == []
            assert await owner.fetchval("select count(*) from mana_ai.stops") == 0
        assert [one.state for one in (await made.status()).occurrences] == ["done"]


async def test_what_waits_by_hand_is_stopped_too(database: Database) -> None:
    """A run that the person asked for and that has not begun ends as stopped, and nothing of it runs."""
    async with at_work(database) as (made, store):
        await made.run_now()
        await call(made, "stop")
        [lease] = (await store.lease(RUNNER, 5, lease_s=60)).leases
        assert lease.stop


async def test_the_next_moment_of_a_stopped_run_stays(database: Database) -> None:
    """To stop one run is not to stop the schedule: the next moment comes."""
    async with at_work(database) as (made, store):
        every: Json = {"kind": "interval", "everyMinutes": 60}
        await made.mission("mission-2", cadence=every, stamped_ms=now_ms() - HOUR_MS - 60_000)
        await made.grant("mission-2")
        before = (await made.status("mission-2")).next_run_at
        after = (await call(made, "stop", "mission-2")).next_run_at
        assert before == after
        [lease] = (await store.lease(RUNNER, 5, lease_s=60)).leases
        assert not lease.stop


@pytest.mark.parametrize(
    "edit",
    [
        {"state": "paused"},
        {"state": "archived"},
        {"deletedAt": "2026-11-21T05:23:00.123Z"},
        {"runsOn": "device:00000000-0000-4000-8000-000000000001"},
    ],
)
async def test_a_mission_that_leaves_stops(database: Database, edit: dict[str, Json]) -> None:
    """A mission that is paused, archived, deleted or moved stops while it runs."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        await made.edit_mission(title="another")
        await assert_runs(store, lease)
        await made.edit_mission(**edit)
        await assert_told(store, lease)


@pytest.mark.parametrize(
    "edit", [{"state": "paused"}, {"state": "archived"}, {"deletedAt": "2026-11-21T05:23:00.123Z"}]
)
async def test_an_agent_that_leaves_stops(database: Database, edit: dict[str, Json]) -> None:
    """An agent that is paused, archived or deleted stops everywhere at once."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        await made.agent(maxTokensPerDay=5)
        await assert_runs(store, lease)
        await made.agent(**edit)
        await assert_told(store, lease)


async def test_a_revoked_grant_stops(database: Database) -> None:
    """What runs under a grant stops when it is revoked."""
    async with at_work(database) as (made, store):
        header = await made.grant()
        lease = await leased(made, store)
        await made.revoke(header)
        await assert_told(store, lease)


async def test_an_expired_grant_stops(database: Database) -> None:
    """What runs under a grant stops when the grant's time has come."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        async with connected(database.owner_url) as owner:
            await owner.execute("alter table mana_ai.grants disable trigger guard_grant")
            await owner.execute("update mana_ai.grants set expires_at = now() - interval '1 s'")
            await owner.execute("alter table mana_ai.grants enable trigger guard_grant")
        await assert_runs(store, lease)
        await store.end_grants()
        await assert_told(store, lease)


async def test_an_account_stops(database: Database) -> None:
    """The person stops everything: what runs is told, nothing is leased or asked for until they say."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        assert (await work(made)).stopped_at is None
        first = await work(made, stopped=True)
        assert first.stopped_at is not None
        await assert_told(store, lease)
        assert await refused(made) == (409, "WORK_STOPPED")
        async with store.work(lease.account_id) as ledger:
            assert await ledger.put_back(lease, delay_ms=0, counted=False)
        assert (await store.lease(RUNNER, 5, lease_s=60)).leases == []
        assert (await work(made, stopped=True)).stopped_at == first.stopped_at
        assert (await made.missions()).work == await work(made)
        assert (await work(made, stopped=False)).stopped_at is None
        # What ran when the person stopped everything ends, however soon they went on.
        [again] = (await store.lease(RUNNER, 5, lease_s=60)).leases
        assert again.stop


async def test_an_account_stops_no_other(database: Database) -> None:
    """Who stops their own work stops nobody else's."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        eve = await made.served.sign_up("eve")
        assert (await eve.call("PUT", WORK, {"stopped": True})).status_code == 200
        await assert_runs(store, lease)


async def test_the_hub_stops(database: Database) -> None:
    """The operator stops everything: what runs is told, and nothing is leased or asked for."""
    async with at_work(database) as (made, store):
        told = asyncio.Event()
        await store.listen_stops(lambda _payload: told.set())
        lease = await leased(made, store)
        told.clear()
        async with operator(made.served.hub.settings) as whoever:
            first = await whoever.stop_work(stopped=True)
            assert first.stopped_ms is not None
            assert await whoever.stop_work(stopped=True) == first
            await told.wait()
            await assert_told(store, lease)
            assert await refused(made) == (409, "WORK_STOPPED")
            state = await work(made)
            assert (state.hub_stopped, state.stopped_at) == (True, None)
            async with store.work(lease.account_id) as ledger:
                assert await ledger.put_back(lease, delay_ms=0, counted=False)
            assert (await store.lease(RUNNER, 5, lease_s=60)).leases == []
            assert (await whoever.stop_work(stopped=False)).stopped_ms is None
        assert len((await store.lease(RUNNER, 5, lease_s=60)).leases) == 1


async def test_the_operator_sets_limits(database: Database) -> None:
    """Limits that are named are set, the others stay, and what cannot be is refused as a whole."""
    async with world(database) as made, operator(made.served.hub.settings) as whoever:
        before = await whoever.limits({})
        assert (before.runs_max, before.tokens_per_day_max) == (64, None)
        await whoever.limits({"runs_max": 3, "account_cost_per_day_max": 7})
        for wrong in ({"runs_max": 0}, {"jitter_ms": None}, {"nonsense": 1}, {"stopped_at": 1}):
            with pytest.raises(LimitInvalid):
                await whoever.limits({"runs_per_account_max": 2, **wrong})
        found = await whoever.limits({})
        assert found == replace(before, runs_max=3, account_cost_per_day_max=7)
        assert (await work(made)).hub_cost_per_day_max == 7
        found = await whoever.limits({"account_cost_per_day_max": None})
        assert found.account_cost_per_day_max is None


async def test_stopping_waits_for_no_run(database: Database) -> None:
    """Whoever stops does not wait for the transaction in which the run finishes."""
    async with at_work(database) as (made, store):
        lease = await leased(made, store)
        async with store.work(lease.account_id) as finishing:
            batch = Batch(finishing.tx, lease.space_id)
            held = await batch.held([lease], lease.account_id)
            assert (held.ids, held.stopped) == ({lease.occurrence_id}, set())
            await work(made, stopped=True)
            await made.agent(state="paused")
            held = await batch.held([lease], lease.account_id)
            assert held.stopped == {lease.occurrence_id}


async def test_an_errored_mission_is_resumed(database: Database) -> None:
    """A mission that failed too often runs no more, not even by hand, until its person resumes it."""
    async with at_work(database) as (made, store):
        every: Json = {"kind": "interval", "everyMinutes": 60}
        await made.mission("mission-1", cadence=every, stamped_ms=now_ms() - HOUR_MS // 2)
        for _ in range(5):
            lease = await leased(made, store)
            async with store.work(lease.account_id) as ledger:
                became = await scheduling.ended(ledger, lease, "failed", "guardrail")
        assert became.hold == "errored"
        status = await made.status()
        assert (status.hold, status.failures, status.failure) == ("errored", 5, "guardrail")
        assert status.next_run_at is None
        assert await refused(made) == (409, "MISSION_ERRORED")
        # Neither a new grant nor an edit is the person's word that it may go on.
        await made.grant()
        await made.edit_mission(cadence={"kind": "interval", "everyMinutes": 30})
        assert (await made.status()).hold == "errored"
        assert (await store.lease(RUNNER, 5, lease_s=60)).leases == []
        status = await call(made, "resume")
        assert (status.hold, status.failures, status.failure) == (None, 0, None)
        assert status.next_run_at is not None
        await made.run_now()


async def test_ending_grants_and_working_take_turns(database: Database) -> None:
    """Who revokes a grant and a run that asks for it lock in the same order: neither is cut off."""
    async with at_work(database) as (made, store):
        header = await made.grant()
        lease = await leased(made, store)
        async with store.work(lease.account_id) as running:
            assert await running.mission(lease.space_id, lease.mission_id, lock=True)
            revoking = asyncio.create_task(made.revoke(header))
            await asyncio.wait({revoking}, timeout=0.5)
            batch = Batch(running.tx, lease.space_id)
            grants = await batch.grants_locked([lease.mission_id])
            assert grants[lease.mission_id].state == "active"
            assert not revoking.done()
        await revoking
        await assert_told(store, lease)
