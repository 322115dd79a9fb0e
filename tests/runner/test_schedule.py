"""Ends, retries, missed moments and what follows them, in the ledger; snapshots made anew."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mana.domain.cadences import Cadence, next_due
from mana.domain.clock import Stamp
from mana.domain.encoding import Json
from mana.domain.ids import AccountId, MissionId, SpaceId
from mana.domain.missed import MISSED_RUN_MAX, passed
from mana.domain.missions import IfMissed
from mana.domain.occurrences import FAILURES_MAX, MISSED_KEPT_MAX, RETRIES_MS
from mana.hub.runner import scheduling
from mana.hub.runner.ledger import Lease, MissionSnapshot
from mana.hub.runner.projection import MergedFacts, project
from mana.hub.runner.queue import JITTER_MS_MAX, End, Moment, due_ms_of
from mana.hub.runner.rebuilding import Rebuilt, rebuild_all
from mana.hub.runner.store import Ledger
from mana.hub.tenants import Tenant
from mana.testing.postgres import Database, opened_tenancy, run_apart
from tests.runner.queued import Queued, account_id, queued, space_id

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.postgres]
waits = pytest.mark.anyio

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
ACCOUNT = AccountId(account_id(1))
SPACE = SpaceId(space_id(1))
HOURLY = Cadence("interval", every_minutes=60)
MANUAL = Cadence("manual")


@dataclass
class Scheduled:
    """An account whose missions are written as a push writes them."""

    made: Queued

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        """Lend the account's ledger as the runner has it."""
        async with self.made.store.work(ACCOUNT) as ledger:
            yield ledger

    async def push(
        self, name: str = "m", *, cadence: Cadence = HOURLY, anchor_ms: int, **fields: Json
    ) -> None:
        """Let a mission stand as it would after a push with this stamp."""
        values: dict[str, Json] = {"cadence": cadence.to_wire(), "agentId": "a", **fields}
        at = str(Stamp(anchor_ms, 0, account_id(9)))
        record = MergedFacts(
            "aiMissions", name, ACCOUNT, {path: Entry(one, at) for path, one in values.items()}
        )
        async with (
            opened_tenancy(self.made.database) as app,
            app.transaction(Tenant(ACCOUNT)) as tx,
        ):
            await project(tx, SPACE, [record])

    async def mission(self, name: str = "m") -> MissionSnapshot:
        async with self.ledger() as ledger:
            found = await ledger.mission(SPACE, MissionId(name))
        assert found is not None
        return found

    async def lines(self, name: str = "m") -> list[tuple[str, str | None]]:
        async with self.ledger() as ledger:
            found = await ledger.occurrences(SPACE, MissionId(name), 200)
        return [(one.state, one.reason) for one in found]

    async def lease(self) -> Lease:
        [lease] = await self.made.lease(5)
        return lease

    async def end(self, lease: Lease, state: str, reason: str | None = None) -> scheduling.Ended:
        async with self.ledger() as ledger:
            return await scheduling.ended(ledger, lease, state, reason)

    async def due(self, lease: Lease) -> scheduling.Due:
        async with self.ledger() as ledger:
            mission = await ledger.mission(SPACE, lease.mission_id, lock=True)
            assert mission is not None
            return await scheduling.due(
                ledger, lease, mission, now_ms=now_ms(), worker="one", lease_s=60
            )

    async def hurry(self) -> None:
        """Let what waits for another try be due."""
        await self.made.owner.execute(
            "update mana_ai.occurrences set due_at = now() where state = 'queued' and tries > 0"
        )


@dataclass(frozen=True)
class Entry:
    value: Json
    at: str


@contextlib.asynccontextmanager
async def scheduled(database: Database) -> AsyncIterator[Scheduled]:
    async with queued(database) as made:
        await made.accounts([1])
        await made.limit(jitter_ms=0)
        yield Scheduled(made)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def is_after(at_ms: int | None, before_ms: int, wait_ms: int, spread_ms: int) -> bool:
    """Say whether it is so long, give or take, after some moment between that one and now."""
    assert at_ms is not None
    return before_ms + wait_ms - spread_ms <= at_ms <= now_ms() + wait_ms + spread_ms


@waits
async def test_a_failure_that_may_pass_is_tried_again(database: Database) -> None:
    """The same occurrence is tried again, later each time, and then it has failed."""
    async with scheduled(database) as made:
        anchor = now_ms() - HOUR_MS - MINUTE_MS
        await made.push(anchor_ms=anchor)
        ids = set()
        for number, wait in enumerate(RETRIES_MS["provider"]):
            lease = await made.lease()
            ids.add(lease.occurrence_id)
            assert (lease.tries, lease.attempts) == (number, 1)
            before_ms = now_ms()
            became = await made.end(lease, "failed", "provider")
            assert became.took
            assert is_after(became.retry_ms, before_ms, wait, wait // 5)
            assert await made.made.lease(5) == []
            await made.hurry()
        lease = await made.lease()
        became = await made.end(lease, "failed", "provider")
        assert (became.took, became.retry_ms) == (True, None)
        assert ids == {lease.occurrence_id}
        assert await made.lines() == [("queued", None), ("failed", "provider")]
        mission = await made.mission()
        assert (mission.failures, mission.failure) == (1, "provider")
        assert mission.next_run_ms == anchor + 2 * HOUR_MS


@waits
@pytest.mark.parametrize("reason", ["auth", "guardrail", "inputs", "no-model", "crash", "internal"])
async def test_a_failure_that_stays_is_final(database: Database, reason: str) -> None:
    """What would fail again in the same way waits for its next moment."""
    async with scheduled(database) as made:
        await made.push(anchor_ms=now_ms() - HOUR_MS - MINUTE_MS)
        became = await made.end(await made.lease(), "failed", reason)
        assert (became.took, became.retry_ms) == (True, None)
        assert (await made.mission()).failures == 1


@waits
@pytest.mark.parametrize(
    ("asked_ms", "wait_ms"),
    [(30_000, 60_000), (1_800_000, 1_800_000), (2**62, HOUR_MS), (-(2**62), 60_000)],
)
async def test_an_endpoint_that_asks_to_be_left_alone_is_heeded(
    database: Database, asked_ms: int, wait_ms: int
) -> None:
    """A retry comes no sooner than an endpoint asked, up to an hour, nor than its class says."""
    async with scheduled(database) as made:
        await made.push(anchor_ms=now_ms(), cadence=MANUAL)
        async with made.ledger() as ledger:
            await ledger.enqueue(await made.mission(), await ledger.now_ms(), "manual")
        end = End(await made.lease(), "failed", "rate-limit", wait_ms=asked_ms)
        before_ms = now_ms()
        async with made.ledger() as ledger:
            (became,) = await scheduling.ended_all(ledger, [end])
        assert is_after(became.retry_ms, before_ms, wait_ms, 60_000 // 5)


@waits
async def test_no_retry_passes_the_next_moment(database: Database) -> None:
    """A retry that would come after the next due moment is left to that moment."""
    async with scheduled(database) as made:
        anchor = now_ms() - HOUR_MS + 10_000 - HOUR_MS
        await made.push(anchor_ms=anchor)
        became = await made.end(await made.lease(), "failed", "rate-limit")
        assert (became.took, became.retry_ms) == (True, None)
        assert (await made.mission()).next_run_ms == anchor + 2 * HOUR_MS


@waits
@pytest.mark.parametrize("edit", [{"state": "paused"}, {"runsOn": "device:x"}, {"deletedAt": "x"}])
async def test_no_retry_of_what_was_paused(database: Database, edit: dict[str, Json]) -> None:
    """A mission that was paused, moved or deleted while it ran is not tried again."""
    async with scheduled(database) as made:
        anchor = now_ms() - HOUR_MS - MINUTE_MS
        await made.push(anchor_ms=anchor)
        lease = await made.lease()
        await made.push(anchor_ms=anchor, **edit)
        became = await made.end(lease, "failed", "provider")
        assert (became.took, became.retry_ms) == (True, None)
        assert await made.lines() == [("failed", "provider")]
        assert (await made.mission()).next_run_ms is None


@waits
async def test_a_new_rhythm_counts_while_it_runs(database: Database) -> None:
    """A mission whose cadence is edited while it runs goes on by the new one alone."""
    async with scheduled(database) as made:
        await made.push(anchor_ms=now_ms() - HOUR_MS - MINUTE_MS)
        lease = await made.lease()
        anchor = now_ms()
        await made.push(anchor_ms=anchor, cadence=Cadence("interval", every_minutes=10))
        assert (await made.end(lease, "done")).took
        assert await made.lines() == [("queued", None), ("done", None)]
        assert (await made.mission()).next_run_ms == anchor + 10 * MINUTE_MS


@waits
async def test_only_the_current_lease_ends(database: Database) -> None:
    """A runner whose lease is another's by now changes neither ledger nor failures."""
    async with scheduled(database) as made:
        await made.push(anchor_ms=now_ms() - HOUR_MS - MINUTE_MS)
        lease = await made.lease()
        for state, reason in (("failed", "crash"), ("failed", "provider"), ("done", None)):
            became = await made.end(replace(lease, fence=lease.fence - 1), state, reason)
            assert not became.took
        mission = await made.mission()
        assert (mission.failures, await made.lines()) == (0, [("leased", None)])


@waits
async def test_failures_in_a_row_hold_the_mission(database: Database) -> None:
    """Too many in a row hold it; a success in between sets them to nothing, a skip does not."""
    async with scheduled(database) as made:
        await made.push(cadence=MANUAL, anchor_ms=now_ms())
        for state, reason, expected in [
            ("failed", "auth", 1),
            ("skipped", "budget", 1),
            ("failed", "stopped", 1),
            ("failed", "crash", 2),
            ("done", None, 0),
            *[("failed", "inputs", number) for number in range(1, FAILURES_MAX + 1)],
        ]:
            async with made.ledger() as ledger:
                await ledger.enqueue(await made.mission(), await ledger.now_ms(), "manual")
            await made.end(await made.lease(), state, reason)
            mission = await made.mission()
            assert mission.failures == expected
        assert (mission.hold, mission.failure) == ("errored", "inputs")


@waits
async def test_many_ends_at_once_are_as_one_by_one(database: Database) -> None:
    """A batch of ends, some of one mission, leaves what the same ends leave one after the other."""
    async with scheduled(database) as made:
        anchor = now_ms() - HOUR_MS - MINUTE_MS
        names = [f"m-{number}" for number in range(6)]
        for name in names:
            await made.push(name, anchor_ms=anchor)
        async with made.ledger() as ledger:
            for name in names[:2]:
                mission = await made.mission(name)
                await ledger.enqueue(mission, await ledger.now_ms(), "manual")
        leases = await made.made.lease(20)
        assert len(leases) == 8
        outcomes = [
            ("done", None),
            ("failed", "auth"),
            ("failed", "timeout"),
            ("skipped", "revoked"),
        ]
        ends = [End(one, *outcomes[place % 4]) for place, one in enumerate(leases)]
        ends[-1] = replace(ends[-1], lease=replace(leases[-1], fence=99))
        async with made.ledger() as ledger:
            found = await scheduling.ended_all(ledger, ends)
        assert [one.took for one in found] == [True] * 7 + [False]
        for end, became in zip(ends[:7], found, strict=False):
            lines = await made.lines(end.lease.mission_id)
            mission = await made.mission(end.lease.mission_id)
            if end.reason == "timeout":
                assert became.retry_ms is not None
            else:
                assert (end.state, end.reason) in lines
            if end.reason == "revoked":
                assert (mission.hold, mission.next_run_ms) == ("revoked", None)
            elif mission.hold is None and end.reason != "timeout":
                assert mission.next_run_ms is not None
                assert ("queued", None) in lines


@given(
    st.sampled_from(["once", "skip", "all"]),
    st.integers(1, 300),
    st.integers(0, 400),
    st.integers(0, 59_000),
)
def test_what_becomes_of_passed_moments(
    if_missed: IfMissed, every: int, count: int, late_ms: int
) -> None:
    """Each moment that passed runs, or is missed, or is older than what is kept; none is both."""
    cadence, due_ms = Cadence("interval", every_minutes=every), 1_700_000_000_000
    step = every * MINUTE_MS
    newest = due_ms + count * step
    late_ms = late_ms * step // MINUTE_MS
    found = passed(
        cadence, "UTC", if_missed, anchor_ms=due_ms, due_ms=due_ms, now_ms=newest + late_ms
    )
    assert found.newest == newest
    assert len(found.missed) <= MISSED_KEPT_MAX
    assert list(found.missed) == sorted(found.missed)
    if if_missed == "once":
        assert found.runs == newest
    elif if_missed == "skip":
        assert (found.runs is None) == (late_ms > min(600_000, step // 2))
        assert found.runs in (None, newest)
    else:
        assert found.runs == max(due_ms, newest - (MISSED_RUN_MAX - 1) * step)
    assert all(moment < (found.runs or newest + 1) for moment in found.missed)
    assert len(found.missed) == min(
        count + 1 if found.runs is None else (found.runs - due_ms) // step,
        MISSED_KEPT_MAX + (0 if if_missed != "all" else 1 - MISSED_RUN_MAX),
    )


@waits
async def test_each_missed_moment_runs_once_oldest_first(database: Database) -> None:
    """Under `all` the newest 24 run one after the other; what is older is noted as missed."""
    async with scheduled(database) as made:
        every = 2
        anchor = now_ms() - 30 * every * MINUTE_MS - MINUTE_MS
        await made.push(
            anchor_ms=anchor, cadence=Cadence("interval", every_minutes=every), ifMissed="all"
        )
        moments = []
        while leases := await made.made.lease(5):
            [lease] = leases
            found = await made.due(lease)
            assert found.lease is not None
            moments.append(found.lease.scheduled_ms)
            await made.end(found.lease, "done")
        assert moments == [anchor + n * every * MINUTE_MS for n in range(7, 31)]
        states = [state for state, _ in await made.lines()]
        assert states == ["queued"] + ["done"] * MISSED_RUN_MAX + ["missed"] * 6


@waits
async def test_a_late_moment_is_skipped(database: Database) -> None:
    """Under `skip` a moment that is too late does not run; the next one is queued."""
    async with scheduled(database) as made:
        anchor = now_ms() - 3 * HOUR_MS - 11 * MINUTE_MS
        await made.push(anchor_ms=anchor, ifMissed="skip")
        found = await made.due(await made.lease())
        assert (found.lease, found.missed) == (None, 3)
        assert [state for state, _ in await made.lines()] == ["queued", *["missed"] * 3]
        assert (await made.mission()).next_run_ms == anchor + 4 * HOUR_MS


@waits
async def test_a_moment_in_time_is_not_skipped(database: Database) -> None:
    """Under `skip` a moment that is only a little late runs."""
    async with scheduled(database) as made:
        anchor = now_ms() - 3 * HOUR_MS - 8 * MINUTE_MS
        await made.push(anchor_ms=anchor, ifMissed="skip")
        found = await made.due(await made.lease())
        assert found.lease is not None
        assert found.lease.scheduled_ms == anchor + 3 * HOUR_MS


@given(
    st.integers(1, 10_000),
    st.integers(0, 3_600_000),
    st.integers(1_700_000_000_000, 1_800_000_000_000),
)
def test_jitter_is_fixed_and_small(every: int, jitter_ms: int, due_ms: int) -> None:
    """A moment is put off by a part that is always the same, and never by much of its interval."""
    mission = MissionSnapshot(
        SPACE,
        MissionId("m"),
        ACCOUNT,
        "active",
        cadence=Cadence("interval", every_minutes=every),
        anchor_ms=due_ms - every * MINUTE_MS,
    )
    found = due_ms_of(Moment(mission, due_ms), jitter_ms)
    assert found == due_ms_of(Moment(mission, due_ms), jitter_ms)
    assert due_ms <= found <= due_ms + min(jitter_ms, every * MINUTE_MS // 20)
    assert due_ms_of(Moment(mission, due_ms, "manual"), jitter_ms) == due_ms


@given(
    st.integers(0, JITTER_MS_MAX),
    st.integers(1_700_000_000_000, 1_900_000_000_000),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
    st.sampled_from([Cadence("daily", at_hour=2), Cadence("weekly", at_hour=7)]),
)
@example(JITTER_MS_MAX, 1_774_659_600_000, "Europe/Berlin", Cadence("daily", at_hour=3))
def test_jitter_of_days_is_small(jitter_ms: int, after_ms: int, zone: str, daily: Cadence) -> None:
    """A day of 23 hours is put off by no more than its twentieth either."""
    due_ms = next_due(daily, zone, anchor_ms=0, after_ms=after_ms)
    assert due_ms is not None
    following = next_due(daily, zone, anchor_ms=0, after_ms=due_ms)
    assert following is not None
    mission = MissionSnapshot(SPACE, MissionId("m"), ACCOUNT, "active", daily, zone)
    found = due_ms_of(Moment(mission, due_ms), jitter_ms)
    assert due_ms <= found <= due_ms + min(jitter_ms, (following - due_ms) // 20)


@waits
async def test_missions_of_one_minute_are_spread(database: Database) -> None:
    """Missions that are due at the same moment do not all begin at once."""
    async with scheduled(database) as made:
        await made.made.limit(jitter_ms=60_000)
        for number in range(40):
            await made.push(f"m-{number}", anchor_ms=now_ms() - MINUTE_MS)
        rows = await made.made.owner.fetch(
            "select extract(epoch from due_at - scheduled_for) as late from mana_ai.occurrences"
        )
        late = sorted(float(row["late"]) for row in rows)
        assert late[0] < 20
        assert 40 < late[-1] <= 60


CADENCES = st.sampled_from(
    [
        MANUAL,
        HOURLY,
        Cadence("daily", at_hour=6, at_minute=30),
        Cadence("cron", expression="*/20 * * * *"),
        Cadence("onChange", debounce_minutes=5, spacing_minutes=60),
    ]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 2),
        CADENCES,
        st.sampled_from(["active", "active", "active", "paused", "done", "nonsense"]),
        st.sampled_from(["hub", "hub", "device:x"]),
        st.sampled_from([None, None, "2026-11-21T05:23:00.123Z"]),
        st.sampled_from(["once", "skip", "all", None]),
        st.one_of(st.none(), st.integers(0, 5_000)),
        st.sampled_from(["UTC", "Europe/Berlin", "Mars/Olympus"]),
    ),
    min_size=1,
    max_size=8,
)


def test_rebuilt_snapshots_are_the_pushed(database: Database) -> None:
    """Whatever was pushed, snapshots made anew are those that the pushes made, and so are turns."""

    @settings(max_examples=12)
    @given(EDITS, st.booleans())
    def holds(edits: list[Any], lost: bool) -> None:
        run_apart(lambda: rebuilt(database, edits, lost=lost))

    holds()


async def rebuilt(database: Database, edits: list[Any], *, lost: bool) -> None:
    async with queued(database) as made:
        await made.owner.execute("delete from mana.spaces; delete from mana.accounts")
        await made.accounts([1, 2])
        await made.owner.execute(
            "insert into mana.space_heads (space_id, seq) values ($1, 1), ($2, 1)",
            SPACE,
            space_id(2),
        )
        one = Scheduled(made)
        anchor = now_ms() - 5 * HOUR_MS
        merged: dict[str, dict[str, Entry]] = {}
        for place, edit in enumerate(edits):
            number, cadence, state, runs_on, deleted, if_missed, cap, zone = edit
            values: dict[str, Json] = {
                "cadence": cadence.to_wire(),
                "agentId": "a",
                "state": state,
                "runsOn": runs_on,
                "deletedAt": deleted,
                "ifMissed": if_missed,
                "maxTokensPerDay": cap,
                "maxCostPerDay": cap,
                "timeZone": zone,
            }
            name = f"m-{number}"
            at = str(Stamp(anchor + place * MINUTE_MS, 0, account_id(9)))
            merged[name] = {path: Entry(value, at) for path, value in values.items()}
            record = MergedFacts("aiMissions", name, ACCOUNT, merged[name])
            async with opened_tenancy(database) as app, app.transaction(Tenant(ACCOUNT)) as tx:
                await project(tx, SPACE, [record])
            if place % 3 == 2:
                for lease in await made.lease(2):
                    await one.end(lease, "failed", "auth")
        agents = {"a": {"state": Entry("active", at), "maxTokensPerDay": Entry(5, at)}}
        async with opened_tenancy(database) as app, app.transaction(Tenant(ACCOUNT)) as tx:
            await project(tx, SPACE, [MergedFacts("agents", "a", ACCOUNT, agents["a"])])
        for table, records in (("aiMissions", merged), ("agents", agents)):
            for name, entries in records.items():
                await made.owner.execute(
                    "insert into mana.records (space_id, table_name, record_id, author_id,"
                    " visibility, fields, proofs, seq, deleted)"
                    " values ($1, $2, $3, $4, 'space', $5, '{}', 1, false)",
                    SPACE,
                    table,
                    name,
                    ACCOUNT,
                    as_json(entries),
                )
        before = await snapshots(made)
        if lost:
            await made.owner.execute(
                "delete from mana_ai.mission_snapshots; delete from mana_ai.agent_snapshots;"
                "delete from mana_ai.account_work"
            )
        else:
            await made.owner.execute(
                "update mana_ai.mission_snapshots set state = 'archived', cadence = null,"
                " next_run_at = null, anchor_ms = null, if_missed = 'once'"
            )
        async with opened_tenancy(database) as app:
            assert await rebuild_all(app) == Rebuilt(missions=len(merged), agents=1)
        assert await snapshots(made) == before
        assert await made.late_turns() == []


def as_json(entries: dict[str, Entry]) -> str:
    return json.dumps({path: {"value": one.value, "at": one.at} for path, one in entries.items()})


async def snapshots(made: Queued) -> list[str]:
    rows = await made.owner.fetch(
        "select m::text as row from mana_ai.mission_snapshots m union all"
        " select a::text from mana_ai.agent_snapshots a union all"
        " select (o.mission_id, o.scheduled_for, o.state, o.kind)::text"
        " from mana_ai.occurrences o order by 1"
    )
    return [row["row"] for row in rows]


@waits
async def test_ten_times_the_snapshots_cost_ten_times_as_much(database: Database) -> None:
    """What it costs to make snapshots anew grows with their number alone."""
    async with scheduled(database) as made:
        owner = made.made.owner
        await owner.execute("insert into mana.space_heads (space_id, seq) values ($1, 1)", SPACE)
        at = str(Stamp(now_ms() - HOUR_MS, 0, account_id(9)))
        fields = {
            "title": Entry("x" * 2_000, at),
            "cadence": Entry(HOURLY.to_wire(), at),
            "agentId": Entry("a", at),
            "timeZone": Entry("Europe/Berlin", at),
        }
        seconds = []
        async with opened_tenancy(database) as app:
            for first, last in ((1, 400), (401, 4_000)):
                await owner.execute(
                    "insert into mana.records (space_id, table_name, record_id, author_id,"
                    " visibility, fields, proofs, seq, deleted)"
                    " select $1, 'aiMissions', 'm-' || n, $2, 'space', $3, '{}', n, false"
                    " from generate_series($4::int, $5::int) n",
                    SPACE,
                    ACCOUNT,
                    as_json(fields),
                    first,
                    last,
                )
                assert (await rebuild_all(app)).missions == last
                began = time.perf_counter()
                assert (await rebuild_all(app)).missions == last
                seconds.append(time.perf_counter() - began)
        assert await owner.fetchval("select count(*) from mana_ai.occurrences") == 4_000
        assert seconds[1] < 30 * seconds[0] + 1
