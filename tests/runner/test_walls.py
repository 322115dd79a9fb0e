"""What a run leaves behind, and the process that it runs in, belong to its account alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mana.domain.ids import AccountId
from mana.hub.db import AccessRefused, Role, Tenant
from mana.hub.runner.dialogue import Job, Message, OpeningKey, Standing
from mana.hub.runner.workers import ProcessWorker, ProcessWorkers
from mana.testing.postgres import Database, connected, opened_tenancy
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ACROSS = {"mana_ai.occurrences", "mana_ai.account_work"}
"""What a runner sees across accounts: ids, times, states, whose turn it is, and caps."""


@pytest.mark.parametrize("role", [Role.APP, Role.RUNNER])
async def test_no_row_of_another_account_is_seen(database: Database, role: Role) -> None:
    """After a whole run of one account, another one finds no trace of it by any query."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        eve = await made.served.sign_up("eve")
        marks = [f"%{made.ada.account.account_id}%", f"%{made.ada.space}%"]
        async with connected(database.owner_url) as owner:
            tables = [
                row["name"]
                for row in await owner.fetch(
                    "select format('%I.%I', schemaname, tablename) as name from pg_tables"
                    " where schemaname in ('mana', 'mana_ai') order by 1"
                )
            ]
        own: set[str] = set()
        foreign: set[str] = set()
        counted = "select count(*) from {} t where to_jsonb(t)::text like any($1)"
        async with opened_tenancy(database, role=role) as tenancy:
            for person, found in ((made.ada, own), (eve, foreign)):
                tenant = Tenant(AccountId(person.account.account_id))
                for table in tables:
                    try:
                        async with tenancy.transaction(tenant) as tx:
                            if await tx.value(counted.format(table), marks):
                                found.add(table)
                    except AccessRefused:
                        continue
        assert {"mana.records", "mana.sync_changes", "mana_ai.decrypt_audit"} <= own
        assert {"mana_ai.audit_heads", "mana_ai.grants", "mana_ai.mission_snapshots"} <= own
        assert foreign == (ACROSS if role is Role.RUNNER else set())


@dataclass
class Told:
    """What one worker process was told."""

    pid: int
    messages: list[Message] = field(default_factory=list)


class Overheard(ProcessWorkers):
    """Real workers; what each is told is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []

    async def start(self) -> ProcessWorker:
        worker = await super().start()
        told = Told(worker.pid)
        tell = worker.channel.tell

        def telling(message: Message) -> None:
            told.messages.append(message)
            tell(message)

        worker.channel.tell = telling  # type: ignore[method-assign]
        self.told.append(told)
        return worker


async def test_no_two_accounts_meet_in_a_process(database: Database) -> None:
    """However much is due at once, a worker is told of one account: its jobs, the logs of its
    spaces, and the keys that its own grants are wrapped for. Several runs of it share the worker."""
    async with world(database) as made:
        others = [
            World(database, made.served, await made.served.sign_up(name), made.home)
            for name in ("bob", "eve")
        ]
        for each in (made, *others):
            await each.agent()
            await each.note("note-1")
            for mission in ("mission-1", "mission-2", "mission-3"):
                await each.mission(mission)
                await each.grant(mission)
                await each.run_now(mission)
        workers = Overheard()
        async with made.runner(workers=workers, concurrency=16) as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 9)
    accounts: list[str] = []
    for told in workers.told:
        jobs = [one for one in told.messages if isinstance(one, Job)]
        spaces = {one.space_id for one in told.messages if isinstance(one, Standing)}
        keys = {one.key_id for one in told.messages if isinstance(one, OpeningKey)}
        (account,) = {job.account_id for job in jobs}
        assert spaces == {job.space_id for job in jobs}
        assert keys == {job.runner_key_id for job in jobs}
        accounts.append(account)
    assert len({told.pid for told in workers.told}) == len(workers.told)
    assert set(accounts) == {each.ada.account.account_id for each in (made, *others)}
    assert len(workers.told) < 9
