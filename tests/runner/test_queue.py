"""Whose turn it is: fair between accounts, within the limits, and nobody's turn is forgotten."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mana.domain.ids import AccountId
from mana.hub.db import Role
from mana.hub.runner.ledger import Lease
from mana.hub.runner.queue import Retry
from mana.hub.runner.store import Ledger
from mana.testing.postgres import Database, connected, opened_tenancy, run_apart
from tests.runner.queued import Queued, account_id, by_account, queued, space_id

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.postgres]
waits = pytest.mark.anyio
Step: TypeAlias = tuple[str, int, int]
_USED: Final = """
insert into mana_ai.token_usage
  (account_id, space_id, agent_id, mission_id, occurrence_id, reserved, spent, cost,
   confirmed_tokens, confirmed_cost)
select $1, $2, 'agent', 'm-1', $3, 400, spent, spent / 10, confirmed, confirmed / 10
  from (values (400, 0), (200, 200)) as v (spent, confirmed)
"""


def opened(made: Queued, account: AccountId) -> AbstractAsyncContextManager[Ledger]:
    return made.store.work(account)


@waits
async def test_a_long_queue_keeps_nobody_out(database: Database) -> None:
    """A thousand occurrences of one account do not keep the one of another waiting."""
    async with queued(database) as made:
        await made.accounts([1, 2])
        await made.queue(1, 1_000, late_s=3_600)
        await made.queue(2, 1)
        assert by_account(await made.lease(4)) == {1: 3, 2: 1}


@waits
async def test_free_places_are_shared(database: Database) -> None:
    """Each account gets the same share of what is free; what one does not need, others get."""
    async with queued(database) as made:
        await made.accounts(range(5))
        for number, count in enumerate((100, 100, 1, 100, 0)):
            await made.queue(number, count)
        assert by_account(await made.lease(13)) == {0: 4, 1: 4, 2: 1, 3: 4}


@waits
async def test_accounts_take_turns(database: Database) -> None:
    """With one free place the account comes next that was served longest ago."""
    async with queued(database) as made:
        await made.accounts([1, 2, 3])
        for number in (1, 2, 3):
            await made.queue(number, 5, late_s=number * 100)
        order = [next(iter(by_account(await made.lease(1)))) for _ in range(6)]
        assert sorted(order[:3]) == [1, 2, 3]
        assert order[3:] == order[:3]


@waits
async def test_the_oldest_comes_first(database: Database) -> None:
    """Of one account the occurrence that waits longest is leased first, and none before its time."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1, 1, mission="new", late_s=1)
        await made.queue(1, 1, mission="old", late_s=60)
        await made.queue(1, 1, mission="later", late_s=-60)
        first = await made.lease(1)
        second = await made.lease(5)
        assert [one.mission_id for one in [*first, *second]] == ["old-1", "new-1"]
        wait = await made.wait_ms()
        assert wait is not None
        assert 30_000 < wait <= 60_000


@waits
async def test_limits_hold_for_all_runners(database: Database) -> None:
    """However many runners lease at once, hub and account run no more than they may."""
    async with queued(database) as made:
        await made.accounts(range(4))
        for number in range(4):
            await made.queue(number, 50)
        await made.limit(runs_max=10, runs_per_account_max=3)
        found = await asyncio.gather(*(made.lease(8, f"runner-{n}") for n in range(4)))
        leases = [one for some in found for one in some]
        counts = by_account(leases)
        assert len(leases) == 10
        assert max(counts.values()) <= 3
        assert len({one.occurrence_id for one in leases}) == 10
        assert await made.lease(8) == []
        assert await made.wait_ms() == 0
        async with opened(made, leases[0].account_id) as ledger:
            assert await ledger.end(leases[0], "done")
        assert len(await made.lease(8)) == 1


@waits
async def test_what_is_stopped_is_not_leased(database: Database) -> None:
    """Of a stopped account, and of a stopped hub, nothing is leased; all of it waits."""
    async with queued(database) as made:
        await made.accounts([1, 2])
        await made.queue(1, 2)
        await made.queue(2, 2)
        await made.owner.execute(
            "update mana_ai.account_work set stopped_at = now() where account_id = $1",
            account_id(1),
        )
        assert by_account(await made.lease(1)) == {2: 1}
        await made.owner.execute("update mana_ai.hub_limits set stopped_at = now()")
        assert await made.lease(5) == []
        assert await made.wait_ms() is None
        await made.owner.execute(
            "update mana_ai.hub_limits set stopped_at = null;"
            "update mana_ai.account_work set stopped_at = null"
        )
        assert by_account(await made.lease(5)) == {1: 2, 2: 1}


@waits
async def test_what_was_left_behind_comes_first(database: Database) -> None:
    """What a runner left behind is leased before what is new, under another fence, and in limits."""
    async with queued(database) as made:
        await made.accounts([1, 2])
        await made.queue(1, 4)
        left = await made.lease(3, "gone")
        await made.owner.execute(
            "update mana_ai.occurrences set lease_until = now() - interval '1 s'"
            " where state = 'leased'"
        )
        await made.queue(2, 1, late_s=3_600)
        await made.limit(runs_per_account_max=2)
        found = await made.lease(2, "other")
        assert {one.occurrence_id for one in found} <= {one.occurrence_id for one in left}
        assert {(one.fence, one.attempts) for one in found} == {(2, 2)}
        assert by_account(await made.lease(5, "other")) == {2: 1}


@waits
async def test_what_was_left_and_stopped_is_buried(database: Database) -> None:
    """What a runner left behind and a person stopped is not leased again; it is there to be ended."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1, 1)
        [lease] = await made.lease(1)
        await made.owner.execute(
            "update mana_ai.occurrences set lease_until = now() - interval '1 s'"
        )
        assert await made.store.crashed(5) == []
        await made.owner.execute(
            "insert into mana_ai.stops values ($1, $2)", lease.occurrence_id, space_id(1)
        )
        assert await made.lease(5) == []
        [found] = await made.store.crashed(5)
        assert (found.occurrence_id, found.stop) == (lease.occurrence_id, True)
        async with opened(made, found.account_id) as ledger:
            assert await ledger.end(found, "failed", reason="stopped")
        assert await made.owner.fetchval("select count(*) from mana_ai.stops") == 0


@waits
async def test_a_turn_that_came_too_soon_is_corrected(database: Database) -> None:
    """A turn whose occurrence was cancelled is set to what is queued, and not asked for again."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1, 1, mission="gone")
        await made.queue(1, 1, mission="later", late_s=-600)
        await made.owner.execute("delete from mana_ai.occurrences where mission_id = 'gone-1'")
        assert await made.lease(5) == []
        wait = await made.wait_ms()
        assert wait is not None
        assert wait > 500_000


@waits
async def test_a_line_bears_what_its_tries_used(database: Database) -> None:
    """Whether it came back from a worker that ended, waits for another try, or is over: the line of
    an occurrence says what it has used so far, and what of that somebody confirmed.
    """
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1, 3)
        back, again, over = await made.lease(3)
        for lease in (back, again, over):
            await made.owner.execute(_USED, lease.account_id, lease.space_id, lease.occurrence_id)
        async with opened(made, account_id(1)) as ledger:
            await ledger.put_back(back, delay_ms=0, counted=False)
            await ledger.retry_all([Retry(again, await ledger.now_ms(), "provider")])
            await ledger.end(over, "failed", reason="auth")
        rows = await made.owner.fetch(
            "select tokens, cost, confirmed_tokens, confirmed_cost from mana_ai.occurrences"
        )
        assert [tuple(row) for row in rows] == [(600, 60, 200, 20)] * 3


@waits
async def test_an_unknown_account_keeps_nobody(database: Database) -> None:
    """What is queued for an account that is gone disturbs nobody who queues, and is not leased."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.owner.execute("delete from mana.accounts where account_id = $1", account_id(1))
        await made.queue(1, 1)
        assert await made.lease(5) == []


@waits
async def test_a_lease_costs_the_same_behind_a_long_queue(database: Database) -> None:
    """What a lease reads does not grow with queues, with accounts that wait, or with the ledger."""
    async with queued(database) as made:
        await made.accounts(range(300))
        await made.queue(0, 1)
        before = await touched(made)
        await made.queue(0, 5_000, mission="long", late_s=100)
        for number in range(1, 300):
            await made.queue(number, 1, late_s=-3_600)
        await made.owner.execute(
            "insert into mana_ai.occurrences"
            " (space_id, mission_id, account_id, scheduled_for, kind, state, due_at)"
            " select $1, 'm-0', $2, now() - n * interval '1 min', 'scheduled', 'done', now()"
            " from generate_series(1, 20000) n",
            space_id(0),
            account_id(0),
        )
        await made.owner.execute("vacuum analyze mana_ai.occurrences")
        await made.owner.execute("vacuum analyze mana_ai.account_work")
        after = await touched(made)
        assert after <= before + 60, (before, after)


async def touched(made: Queued) -> int:
    """Return how many rows a lease of one reads."""
    async with opened_tenancy(made.database, role=Role.RUNNER) as tenancy, tenancy.lease() as tx:
        assert len(await tx.all("select * from mana_ai.lease('one', 1, '60 s', 3)")) == 1
        return int(
            await tx.value(
                "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))"
                " from pg_stat_xact_all_tables where schemaname = 'mana_ai'"
            )
        )


NAMES = st.integers(0, 3)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["queue", "queue", "cancel", "lease", "back", "end", "move"]),
        NAMES,
        st.integers(-5, 5),
    ),
    min_size=5,
    max_size=40,
)
"""Each step: what is done, of which account, and how many seconds ago something is due."""


def test_a_turn_is_never_later_than_what_is_queued(database: Database) -> None:
    """Whatever several connections do at once, no account's turn is later than its first queued."""

    @settings(max_examples=20)
    @given(st.lists(STEPS, min_size=2, max_size=4))
    def holds(plans: list[list[Step]]) -> None:
        late, left = run_apart(lambda: played(database, plans))
        assert late == []
        assert left == 0

    holds()


async def played(database: Database, plans: list[list[Step]]) -> tuple[list[str], int]:
    """Play the plans at once; return whose turn is late, and how much of what is due is left."""
    async with queued(database) as made:
        await made.owner.execute("delete from mana.spaces; delete from mana.accounts")
        await made.accounts(range(4))
        await made.limit(runs_max=10_000, runs_per_account_max=10_000)
        late: list[str] = []
        leases = await asyncio.gather(
            *(play(made, place, plan, late) for place, plan in enumerate(plans))
        )
        late += await made.late_turns()
        for lease in (one for some in leases for one in some):
            async with opened(made, lease.account_id) as ledger:
                await ledger.end(lease, "done")
        looked_at = None
        while looked_at is None or await made.lease(1_000):
            # What comes due after the last look is not left by it.
            looked_at = await made.owner.fetchval("select clock_timestamp()")
        left = await made.owner.fetchval(
            "select count(*) from mana_ai.occurrences where state = 'queued' and due_at <= $1",
            looked_at,
        )
        return late, left


async def play(made: Queued, place: int, plan: list[Step], late: list[str]) -> list[Lease]:
    """Play one plan on a connection of its own; return the leases that it keeps."""
    held: list[Lease] = []
    async with connected(made.database.owner_url) as own:
        other = Queued(own, made.database, made.store)
        for number, (step, who, seconds) in enumerate(plan):
            name = f"{place}-{number}"
            if step == "queue":
                await other.queue(who, 2, mission=name, late_s=seconds)
            elif step == "cancel":
                await own.execute(
                    "delete from mana_ai.occurrences where occurrence_id = (select occurrence_id"
                    " from mana_ai.occurrences where account_id = $1 and state = 'queued'"
                    " order by due_at limit 1 for update skip locked)",
                    account_id(who),
                )
            elif step == "move":
                await own.execute(
                    "update mana_ai.occurrences set due_at = now() - $2 * interval '1 s'"
                    " where occurrence_id = (select occurrence_id from mana_ai.occurrences"
                    " where account_id = $1 and state = 'queued' limit 1 for update skip locked)",
                    account_id(who),
                    seconds,
                )
            elif step == "lease":
                held += await other.lease(who + 1, name)
            elif held:
                lease = held.pop()
                async with opened(made, lease.account_id) as ledger:
                    if step == "back":
                        await ledger.put_back(lease, delay_ms=0, counted=False)
                    elif step == "end":
                        await ledger.end(lease, "done")
            late += await other.late_turns()
    return held
