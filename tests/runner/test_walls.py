"""What a run leaves behind belongs to its account, in every table and under every role."""

from __future__ import annotations

import pytest

from mana.domain.ids import AccountId
from mana.hub.db import AccessRefused, Role, Tenant
from mana.testing.postgres import Database, connected, opened_tenancy
from tests.runner.world import world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

LEASED = "mana_ai.occurrences"
"""The one table that a runner sees across accounts: ids, times, states."""


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
        assert foreign == ({LEASED} if role is Role.RUNNER else set())
