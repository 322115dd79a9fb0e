"""Whoever lost a lease, was stopped, or lost what it was allowed, is told so by the database alone.

No notice helps here: what each transaction asks again is all that stands between a runner that
slept and what it must not do any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import msgspec
import pytest

from mana.hub.db import DatabaseUnavailable
from mana.hub.runner import audit, batches, endings
from mana.hub.runner.admission import Admission
from mana.hub.runner.auditing import Auditing
from mana.hub.runner.batches import Progressed, note_progress, renew
from mana.hub.runner.endings import Outcome
from mana.hub.runner.finishing import Finishing, is_own
from mana.hub.runner.queue import End, Retry
from mana.hub.runner.rows import to_ms
from mana.hub.runner.spending import Spending
from mana.planning.ports import ModelReply, ModelRequest
from mana.testing.models import ScriptedModel, says
from mana.testing.postgres import Database, connected
from tests.runner.queued import account_id, queued
from tests.runner.test_membership import shared
from tests.runner.world import HOUR_MS, InlineWorkers, World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

LOST = Outcome("leased", took=False)
STAGES: dict[str, tuple[type[Any], str, Any]] = {
    "admit": (Admission, "admit", None),
    "note": (Auditing, "note", None),
    "spend": (Spending, "spend", None),
    "finish": (Finishing, "finish", LOST),
}
"""Where a run asks the database: the class, its method, and how it says that a lease is lost."""


class Brief(ScriptedModel):
    """A model that is counted, and has nothing to say."""

    endpoint = "rules:offline"

    async def complete(self, request: ModelRequest) -> ModelReply:
        return says("Done.")


class Kept:
    """What runs of one pass asked at one stage, to be answered later, by mission."""

    def __init__(self, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        kind, name, lost = STAGES[stage]
        self._answer: Callable[..., Any] = getattr(kind, name)
        self._by: Any = None
        self.asked: dict[str, Any] = {}

        async def keeping(by: Any, asked: Sequence[Any]) -> list[Any]:
            self._by = by
            for one in asked:
                lease = one.admitted.lease if hasattr(one, "admitted") else one
                self.asked[lease.mission_id] = one
            return [lost for _ in asked]

        monkeypatch.setattr(kind, name, keeping)

    async def answers(self, *missions: str) -> list[Any]:
        """Return what the runner answers now, all in one batch."""
        found: list[Any] = list(await self._answer(self._by, [self.asked[one] for one in missions]))
        return found


async def missions(made: World, number: int) -> list[str]:
    """Make so many missions of one agent, granted and asked for."""
    await made.agent(maxConcurrentMissions=100)
    await made.note("note-1")
    names = [f"mission-{place}" for place in range(number)]
    for name in names:
        await made.mission(name)
        await made.grant(name)
        await made.run_now(name)
    return names


async def as_owner(made: World, *statements: str) -> None:
    async with connected(made.database.owner_url) as owner:
        for statement in statements:
            await owner.execute(statement)


async def rows(made: World, query: str) -> list[tuple[Any, ...]]:
    async with connected(made.database.owner_url) as owner:
        return [tuple(row) for row in await owner.fetch(query)]


def said(answer: Any) -> str:
    """Return an answer in a word."""
    if isinstance(answer, Outcome):
        return f"{answer.state}({answer.reason or ''})" if answer.took else "lost"
    return "lost" if answer is None else str(getattr(answer, "reason", "yes"))


MEANWHILE = (
    # Another runner works on it, somebody stopped it, and it came to an end.
    "update mana_ai.occurrences set fence = fence + 1 where mission_id = 'mission-1'",
    """insert into mana_ai.stops select occurrence_id, space_id from mana_ai.occurrences
        where mission_id = 'mission-2'""",
    """update mana_ai.occurrences set state = 'failed', reason = 'crash', lease_until = null,
        finished_at = now() where mission_id = 'mission-3'""",
)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("admit", ["yes", "lost", "lost", "lost"]),
        ("note", ["yes", "lost", "stopped", "lost"]),
        ("spend", ["yes", "lost", "stopped", "lost"]),
        ("finish", ["done()", "lost", "failed(stopped)", "lost"]),
    ],
)
async def test_each_of_a_batch_is_judged_by_itself(
    database: Database, monkeypatch: pytest.MonkeyPatch, stage: str, expected: list[str]
) -> None:
    """Of runs that ask at the same moment only those go on that are still ours and not stopped; the
    others leave no reading, no reservation and no record."""
    async with world(database) as made:
        names = await missions(made, 4)
        async with made.runner(Brief, concurrency=8) as runner:
            kept = Kept(stage, monkeypatch)
            await runner.scheduler.tick()
            before = len(await rows(made, "select from mana_ai.decrypt_audit"))
            await as_owner(made, *MEANWHILE)
            assert [said(one) for one in await kept.answers(*names)] == expected
        ends = await rows(made, "select state, reason from mana_ai.occurrences order by mission_id")
        gone_on = ("done", None) if stage == "finish" else ("leased", None)
        stopped = ("failed", "stopped") if stage in ("admit", "finish") else ("leased", None)
        assert ends == [gone_on, ("leased", None), stopped, ("failed", "crash")]
        noted = "select distinct mission_id, status from mana_ai.decrypt_audit order by 1"
        if stage == "note":
            assert await rows(made, noted) == [("mission-0", "ok"), ("mission-2", "failed")]
        else:
            assert len(await rows(made, "select from mana_ai.decrypt_audit")) == before
        reserved = "select distinct mission_id from mana_ai.token_usage order by 1"
        if stage == "spend":
            assert await rows(made, reserved) == [("mission-0",)]
        written = "select from mana.records where table_name = 'aiIterations'"
        assert len(await rows(made, written)) == (stage == "finish")


ROLE = "update mana.memberships set role = '{}'"
WORK = "update mana_ai.account_work set stopped_at = {}"
HUB = "update mana_ai.hub_limits set stopped_at = {}"
LIFE = "update mana_ai.grants set expires_at = expires_at {} interval '1 year'"
AGENT = "update mana_ai.grants set agent_id = '{}'"
HARMS: Sequence[tuple[str, str, str, dict[str, str]]] = (
    (WORK, "now()", "null", {"note": "stopped", "finish": "failed(stopped)"}),
    (HUB, "now()", "null", {"note": "stopped", "finish": "failed(stopped)"}),
    (ROLE, "viewer", "owner", {"note": "not-a-member", "finish": "skipped(not-a-member)"}),
    (LIFE, "-", "+", {"note": "expired", "finish": "skipped(expired)"}),
    # A row of the register that tells otherwise than the header that was signed.
    (AGENT, "agent-2", "agent-1", {"note": "scope-mismatch"}),
)


@pytest.mark.parametrize("stage", ["note", "finish"])
async def test_what_is_allowed_is_asked_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Before a reading, and before a run is written, everything that allowed it must still stand;
    what changed in between is the reason that people see."""
    harms = [harm for harm in HARMS if stage in harm[3]]
    async with world(database) as made:
        names = await missions(made, len(harms))
        async with made.runner(Brief, concurrency=8) as runner:
            kept = Kept(stage, monkeypatch)
            await runner.scheduler.tick()
            guard = "alter table mana_ai.grants {} trigger user"
            await as_owner(made, guard.format("disable"))
            for name, (query, harm, mended, expected) in zip(names, harms, strict=True):
                await as_owner(made, query.format(harm))
                assert [said(one) for one in await kept.answers(name)] == [expected[stage]], query
                await as_owner(made, query.format(mended))
        assert await rows(made, "select from mana_ai.decrypt_audit where status = 'ok'") == [] or (
            stage == "finish"
        )
        written = "select from mana.records where table_name in ('aiIterations', 'aiSteps')"
        assert await rows(made, written) == []


async def test_a_reading_is_noted_under_its_lease_and_grant(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a reading is noted nobody takes over its run, and nobody ends its grant."""
    held: list[str] = []
    append = audit.append

    async def holding(*args: Any, **facts: Any) -> Any:
        async with connected(database.owner_url) as owner:
            for table in ("grants", "occurrences"):
                try:
                    await owner.execute(f"select from mana_ai.{table} for update nowait")
                except asyncpg.LockNotAvailableError:
                    held.append(table)
        return await append(*args, **facts)

    monkeypatch.setattr(audit, "append", holding)
    async with world(database) as made:
        await missions(made, 1)
        async with made.runner(Brief) as runner:
            assert (await runner.scheduler.tick()).errors == []
    assert set(held) == {"grants", "occurrences"}


async def test_what_the_database_failed_to_take_is_handed_over_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database is away for a moment, neither is a model asked twice nor an attempt lost."""
    asked = 0

    class Counted(Brief):
        async def complete(self, request: ModelRequest) -> ModelReply:
            nonlocal asked
            asked += 1
            return await super().complete(request)

    for module, name in ((audit, "append"), (endings, "end_all")):
        monkeypatch.setattr(module, name, away_once(getattr(module, name)))
    async with world(database) as made:
        await missions(made, 1)
        async with made.runner(Counted) as runner:
            assert (await runner.scheduler.tick()).errors == []
        assert await rows(made, "select state, attempts from mana_ai.occurrences") == [("done", 1)]
    assert asked == 1


def away_once(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return work for which the database is away at first."""
    waiting = [DatabaseUnavailable("08006")]

    async def working(*args: Any, **facts: Any) -> Any:
        # A pass without a run has nothing to end.
        if waiting and (facts or len(args) > 2 or args[1]):
            raise waiting.pop()
        return await work(*args, **facts)

    return working


async def test_a_database_that_is_away_counts_no_attempt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the database is away when a run is to begin, the run is not given up for it."""
    async with world(database) as made:
        await missions(made, 1)
        with monkeypatch.context() as later:

            async def away(_by: Any, _leases: Any) -> Any:
                raise DatabaseUnavailable("08006")

            later.setattr(Admission, "admit", away)
            async with made.runner(Brief) as runner:
                for _ in range(4):
                    await runner.scheduler.tick()
                    await as_owner(made, "update mana_ai.occurrences set due_at = now()")
        async with made.runner(Brief) as runner:
            assert (await runner.scheduler.tick()).errors == []
        assert await rows(made, "select state, attempts from mana_ai.occurrences") == [("done", 1)]


async def test_the_first_iteration_counts(database: Database) -> None:
    """An occurrence whose iteration is in the log already is done, and the iteration stays."""
    async with world(database) as made:
        await missions(made, 1)
        written = "select change_id from mana.sync_changes where table_name = 'aiIterations'"
        async with made.runner(Brief) as runner:
            await runner.scheduler.tick()
            first = await rows(made, written)
            await as_owner(
                made,
                "update mana_ai.occurrences set state = 'queued', finished_at = null,"
                " iteration_id = null, due_at = now()",
            )
            assert (await runner.scheduler.tick()).errors == []
        assert await rows(made, "select state, fence from mana_ai.occurrences") == [("done", 2)]
        assert len(first) == 1
        assert await rows(made, written) == first


async def test_a_clock_that_was_set_back_costs_no_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database's clock is set back while a run goes on, its stamps lie ahead and nothing
    of it is written; the occurrence has not failed, and is done when it is leased anew."""
    async with world(database) as made:
        await missions(made, 1)
        with monkeypatch.context() as later:
            async with made.runner(Brief) as runner:
                kept = Kept("finish", later)
                await runner.scheduler.tick()
                later.setattr(batches, "to_ms", lambda moment: to_ms(moment) - HOUR_MS)
                assert [said(one) for one in await kept.answers("mission-0")] == ["lost"]
        written = "select from mana.sync_changes where table_name in ('aiIterations', 'aiSteps')"
        assert await rows(made, written) == []
        await as_owner(made, "update mana_ai.occurrences set lease_until = now()")
        async with made.runner(Brief) as runner:
            assert (await runner.scheduler.tick()).errors == []
        assert await rows(made, "select state, fence from mana_ai.occurrences") == [("done", 2)]


async def test_a_run_writes_under_its_own_names_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker hands back is a run's own only if each id and name in it is."""
    async with world(database) as made:
        await missions(made, 1)
        async with made.runner() as runner:
            kept = Kept("finish", monkeypatch)
            await runner.scheduler.tick()
        ending = kept.asked["mission-0"]
    said, changed = ending.said, msgspec.structs.replace
    assert len(said.changes) > 1
    assert is_own(ending.admitted, said)
    iteration, step, *rest = said.changes
    lies: list[Any] = [
        changed(said, iteration_id="another"),
        changed(said, changes=[]),
        changed(said, changes=[step, iteration, *rest]),
        changed(said, changes=[iteration, iteration, *rest]),
    ]
    for one in (
        changed(step, table="tasks"),
        changed(step, id="another"),
        changed(step, change_id="another"),
        changed(step, group="another"),
        changed(step, author_id="another"),
        *(
            changed(step, actor={**step.actor, name: "another"})
            for name in ("principalId", "missionId", "iterationId")
        ),
    ):
        lies.append(changed(said, changes=[iteration, one, *rest]))
    assert [lie for lie in lies if is_own(ending.admitted, lie)] == []


async def test_nobody_runs_under_anothers_grant(database: Database) -> None:
    """A run in the name of one member is not given what another one granted, nor a worker."""
    async with world(database) as made:
        here = await shared(made)
        assert here.bob is not None
        await here.ready()
        await here.run_now()
        await as_owner(
            made, f"update mana_ai.occurrences set account_id = '{here.bob.account.account_id}'"
        )
        workers = InlineWorkers(Brief)
        async with here.runner(workers=workers) as runner:
            await runner.scheduler.tick()
        ends = await rows(made, "select state, reason from mana_ai.occurrences")
        assert ends == [("skipped", "scope-mismatch")]
        assert workers.started == 0


async def test_who_waits_for_its_agent_has_lost_no_attempt(database: Database) -> None:
    """A run for which its agent has no room may wait for as long as it takes, and is done then."""
    async with world(database) as made:
        await missions(made, 2)
        await made.agent(maxConcurrentMissions=1)
        await as_owner(
            made,
            "update mana_ai.occurrences set state = 'leased', admitted = true, fence = 1,"
            " worker = 'another', lease_until = now() + interval '1 hour'"
            " where mission_id = 'mission-0'",
        )
        async with made.runner(Brief) as runner:
            for _ in range(5):
                await as_owner(
                    made,
                    "update mana_ai.occurrences set due_at = now() where state = 'queued'",
                )
                await runner.scheduler.tick()
            waits = "select state, attempts from mana_ai.occurrences where mission_id = 'mission-1'"
            assert await rows(made, waits) == [("queued", 0)]
            await as_owner(
                made,
                "update mana_ai.occurrences set lease_until = now() - interval '1 s', attempts = 3"
                " where mission_id = 'mission-0'",
                "update mana_ai.occurrences set due_at = now() where state = 'queued'",
            )
            await runner.scheduler.tick()
        assert await rows(made, waits) == [("done", 1)]


async def test_a_lost_lease_moves_nothing(database: Database) -> None:
    """Whoever was replaced, or comes back after the end, renews no lease, tells of no progress,
    queues nothing again and ends nothing."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1)
        account = account_id(1)
        (lost,) = await made.lease(1)
        line = "select state, phase, round, fence, attempts, lease_until from mana_ai.occurrences"

        async def comes_back(lease: Any) -> None:
            before = tuple(await made.owner.fetchrow(line))
            async with made.store.across() as tx:
                assert await renew(tx, [lease], lease_s=3_600) == frozenset()
                await note_progress(tx, [Progressed(lease, "model", 4, 4, 4, 4)])
            async with made.store.work(account) as ledger:
                assert not await ledger.put_back(lease, delay_ms=0, counted=True)
                assert not await ledger.retry_all([Retry(lease, now_ms(), "provider")])
                assert not await ledger.end_all([End(lease, "failed", "crash")])
            assert tuple(await made.owner.fetchrow(line)) == before

        past = "update mana_ai.occurrences set lease_until = now() - interval '1 s'"
        await made.owner.execute(past)
        (second,) = await made.lease(1, "two")
        assert second.fence == lost.fence + 1
        await comes_back(lost)
        await made.owner.execute(past)
        (third,) = await made.lease(1, "two")
        # The last time that it may run it is nobody's to give up, for as long as it runs.
        assert await made.store.crashed(1) == []
        await comes_back(second)
        async with made.store.work(account) as ledger:
            assert await ledger.end_all([End(third, "done")]) == {third.occurrence_id}
        await comes_back(third)
        await comes_back(replace(third, fence=third.fence + 1))


async def test_a_lease_of_a_clock_that_was_ahead_keeps_nobody_out(database: Database) -> None:
    """What was leased while the database's clock was ahead, by a runner that is gone, is worked on
    once the clock is right, and given up after the last time, like any other."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.queue(1, 2)
        await made.limit(runs_max=1)
        ahead = "update mana_ai.occurrences set lease_until = now() + interval '{}'"
        fences = []
        for _ in range(3):
            (lease,) = await made.lease(1)
            fences.append((lease.occurrence_id, lease.fence))
            await made.owner.execute(ahead.format("59 min") + " where state = 'leased'")
            assert await made.lease(1) == []
            await made.owner.execute(ahead.format("3 h") + " where state = 'leased'")
        assert fences == [(fences[0][0], number) for number in (1, 2, 3)]
        (left,) = await made.store.crashed(2)
        assert left.occurrence_id == fences[0][0]
