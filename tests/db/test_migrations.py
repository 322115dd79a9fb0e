"""Numbered files, each applied once; the schema in the repository is the real one."""

from __future__ import annotations

import asyncio

import pytest

from mana.hub.db import Migration, ensure_database, migrate, read_migrations
from mana.hub.db.dump import SCHEMA_FILE, migrated_schema
from mana.hub.db.migrating import (
    MigrationChanged,
    MigrationFailed,
    MigrationMissing,
    MigrationOutOfOrder,
)
from mana.hub.db.urls import url_to
from mana.testing.postgres import (
    Cluster,
    Database,
    connected,
    open_policies,
    security_definer_functions,
    tables_without_forced_rls,
    unsafe_roles,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

# The two doors besides the tenant transaction. Nothing else may join these lists
# without a decision of its own.
LEASE_POLICIES = [
    "mana_ai.account_work runner_turns",
    "mana_ai.occurrences runner_finds",
    "mana_ai.occurrences runner_leases",
    "mana_ai.stops runner_stops",
]
# Rows of the hub alone: no person's id or figure is in them, so there is nothing to guard.
HUB_TABLES = ["mana.migrations", "mana_ai.hub_limits", "mana_ai.hub_spend"]
# Triggers: whoever queues keeps the account's turn, and what ends or is edited is stopped and
# watched no more, also where it is another member's (decision 0012). Nobody can call them.
TRIGGER_FUNCTIONS = [
    "mana_ai.agent_moved",
    "mana_ai.grant_moved",
    "mana_ai.keep_moved_turn",
    "mana_ai.keep_turn",
    "mana_ai.mission_moved",
]
# Ends grants whose time has come, and names those that ended: ids and times (decision 0011).
ENDING_FUNCTIONS = ["mana_ai.end_grants"]
LOGIN_FUNCTIONS = [
    "mana.admit_sign_up",
    "mana.clear_attempts",
    "mana.count_attempt",
    "mana.kek_batch",
    "mana.kek_left",
    "mana.login_facts",
    "mana.open_reset",
    "mana.recovery_facts",
    "mana.reset_account",
    "mana.rotate_token",
    "mana.set_kek_wrap",
    "mana.sweep_waiting",
    "mana.touch_attempts",
]
# The letters of all accounts, which the hub sends.
LETTER_FUNCTIONS = [
    "mana.count_code",
    "mana.end_code",
    "mana.end_letter",
    "mana.next_letter",
    "mana.take_letters",
]
# Rows of all accounts that nobody asks for any more.
SWEEPING_FUNCTIONS = ["mana_ai.sweep_old"]
# Certificates of who has left a space, for those who stay.
PARTING_FUNCTIONS = ["mana.former_devices"]
# For the operator: snapshots of all accounts, made anew from the plain side of the records.
REBUILDING_FUNCTIONS = [
    "mana_ai.hold_spaces",
    "mana_ai.plain_agents",
    "mana_ai.plain_missions",
    "mana_ai.put_agents",
    "mana_ai.put_missions",
    "mana_ai.put_turns",
]
DEFINERS = sorted(
    [
        *ENDING_FUNCTIONS,
        *LETTER_FUNCTIONS,
        *LOGIN_FUNCTIONS,
        *PARTING_FUNCTIONS,
        *REBUILDING_FUNCTIONS,
        *SWEEPING_FUNCTIONS,
        *TRIGGER_FUNCTIONS,
    ]
)

ONE = Migration(1, "one", "create table mana.one (x int);")
TWO = Migration(2, "two", "create table mana.two (x int); create table mana.three (x int);")


async def test_schema_file_is_true(empty_database: Database) -> None:
    """`schema.sql` is what the migrations make; after a change: python -m mana.hub.db.dump."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == await migrated_schema(
        empty_database.owner_url
    )


async def test_numbers_are_gapless() -> None:
    """The files are numbered from 1 without a gap, so that order is never in doubt."""
    numbers = [migration.number for migration in read_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_each_once(empty_database: Database) -> None:
    """A second run applies nothing, and a later release applies only what is new."""
    url = empty_database.owner_url
    assert await migrate(url, [ONE]) == (1,)
    assert await migrate(url, [ONE]) == ()
    assert await migrate(url, [ONE, TWO]) == (2,)


async def test_racing_starts(empty_database: Database) -> None:
    """Of processes that start together, one migrates and the others find it done."""
    results = await asyncio.gather(*(migrate(empty_database.owner_url) for _ in range(5)))
    applied = [numbers for numbers in results if numbers]
    assert applied == [tuple(migration.number for migration in read_migrations())]


async def test_all_or_nothing(empty_database: Database) -> None:
    """A file that fails takes the whole run back and is named, without any row's values."""
    url = empty_database.owner_url
    broken = Migration(2, "broken", "select 'zanzibar'::int;")
    with pytest.raises(MigrationFailed, match="0002_broken") as caught:
        await migrate(url, [ONE, broken])
    assert "zanzibar" not in str(caught.value)
    with pytest.raises(MigrationFailed, match=r"line 2"):
        await migrate(url, [ONE, Migration(2, "typo", "select 1;\nselect nothing;")])
    async with connected(url) as owner:
        assert await owner.fetchval("select to_regclass('mana.one')") is None


async def test_no_own_transaction(empty_database: Database) -> None:
    """A file that commits by itself is refused."""
    with pytest.raises(MigrationFailed):
        await migrate(empty_database.owner_url, [Migration(1, "early", "commit;")])


async def test_changed_file(empty_database: Database) -> None:
    """An applied file that was changed since is an error; other line ends are not."""
    url = empty_database.owner_url
    await migrate(url, [Migration(1, "one", "create table mana.one\n(x int);")])
    assert await migrate(url, [Migration(1, "one", "create table mana.one\r\n(x int);")]) == ()
    with pytest.raises(MigrationChanged):
        await migrate(url, [Migration(1, "one", "create table mana.one (x bigint);")])


async def test_newer_database(empty_database: Database) -> None:
    """A database that a newer release wrote is left alone."""
    url = empty_database.owner_url
    await migrate(url, [ONE, TWO])
    with pytest.raises(MigrationMissing):
        await migrate(url, [ONE])


async def test_out_of_order(empty_database: Database) -> None:
    """A number below the newest applied one is refused, and so is a doubled one."""
    url = empty_database.owner_url
    await migrate(url, [TWO])
    with pytest.raises(MigrationOutOfOrder):
        await migrate(url, [ONE, TWO])
    with pytest.raises(MigrationOutOfOrder):
        await migrate(url, [ONE, ONE])


async def test_database_is_made(postgres: Cluster) -> None:
    """The owner's database is created if it lacks, once, although several ask."""
    url = url_to(postgres.instance.url(), "mana made")
    await asyncio.gather(*(ensure_database(url) for _ in range(3)))
    await ensure_database(url)
    async with connected(url) as owner:
        assert await owner.fetchval("select current_database()::text") == "mana made"
    postgres.drop(Database("mana made", url))


async def test_every_table_is_guarded(database: Database) -> None:
    """Row-level security is enabled and forced on every table but the hub's own."""
    async with connected(database.owner_url) as owner:
        assert await tables_without_forced_rls(owner) == HUB_TABLES


async def test_no_policy_lets_all_through(database: Database) -> None:
    """Every policy has a condition and names its roles, but the runner's lease on occurrences."""
    async with connected(database.owner_url) as owner:
        assert await open_policies(owner) == LEASE_POLICIES
        query = "select distinct unnest(roles)::text from pg_policies where policyname ~ '^runner_'"
        assert [row[0] for row in await owner.fetch(query)] == ["mana_runner"]


async def test_doors_of_log_in(database: Database) -> None:
    """Only named functions run with their owner's rights; the serving roles call few of them."""
    async with connected(database.owner_url) as owner:
        names = [name.partition("(")[0] for name in await security_definer_functions(owner)]
    assert names == DEFINERS
    files = {m.name for m in read_migrations() if "security definer" in m.sql.lower()}
    assert files == {
        "accounts",
        "vault",
        "engine",
        "letters",
        "bounds",
        "snapshots",
        "former_devices",
        "leftovers",
    }


async def test_doors_keep_their_search_path(database: Database) -> None:
    """A function with its owner's rights fixes its search path, and is not everybody's."""
    async with connected(database.owner_url) as owner:
        assert (
            await owner.fetch(
                "select proname from pg_proc where prosecdef and (proacl is null"
                " or not exists (select from unnest(proconfig) c where c ~ '^search_path=')"
                " or exists (select from aclexplode(proacl) where grantee = 0))"
            )
            == []
        )


async def test_roles_have_no_way_around(database: Database) -> None:
    """Neither serving role is a superuser, owns a table, or is a member of another role."""
    async with connected(database.owner_url) as owner:
        assert await unsafe_roles(owner) == []


async def test_public_may_do_nothing(empty_database: Database) -> None:
    """A role without grants cannot connect, and a new function is nobody's by default."""
    await migrate(empty_database.owner_url)
    async with connected(empty_database.owner_url) as owner:
        await owner.execute("create function mana.quiet() returns int language sql as 'select 1'")
        query = "select has_function_privilege('mana_app', 'mana.quiet()', 'execute')"
        assert await owner.fetchval(query) is False
        query = "select count(*) from aclexplode((select datacl from pg_database where datname ="
        assert await owner.fetchval(f"{query} current_database())) where grantee = 0") == 0


async def test_walker_sees_gaps(database: Database) -> None:
    """The walk through the catalogue finds a table that is only enabled, not forced."""
    async with connected(database.owner_url) as owner:
        await owner.execute(
            "create table mana.half (x int); alter table mana.half enable row level security;"
            " create policy all_in on mana.half using (true)"
        )
        assert "mana.half" in await tables_without_forced_rls(owner)
        assert await open_policies(owner) == ["mana.half all_in", *LEASE_POLICIES]
