"""A database that a test gave back is lent again only as a new one would be."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from mana.testing.postgres import (
    Cluster,
    Database,
    connected,
    database_text,
    run_apart,
)
from tests.tenancy.rows import HUBS_OWN, insertion, rows_for, tables

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def oid(database: Database) -> int:
    return int(await value(database, "select oid from pg_database where datname = $1"))


async def value(database: Database, query: str) -> Any:
    async with connected(database.owner_url) as owner:
        return await owner.fetchval(query, *([database.name] if "$1" in query else []))


async def fill(owner: asyncpg.Connection) -> None:
    """Write rows to every table that has none when it is new."""
    await owner.execute("set session_replication_role = replica")
    for table, columns in (await tables(owner)).items():
        if table not in HUBS_OWN:
            rows = [(json.dumps(row),) for row in rows_for(table, columns)]
            await owner.executemany(insertion(table, columns), rows)


async def test_nothing_is_left(postgres: Cluster) -> None:
    """Rows in every table, and numbers that were drawn, are gone with the test that made them."""
    first = postgres.create()
    new = await database_text(first.owner_url)
    same = await oid(first)
    async with connected(first.owner_url) as owner:
        await fill(owner)
        numbers = "select count(last_value) from pg_sequences where schemaname like 'mana%'"
        await owner.execute(
            "select nextval(format('%I.%I', schemaname, sequencename)) from pg_sequences"
            " where schemaname like 'mana%'"
        )
        assert await owner.fetchval(numbers) > 0
    postgres.drop(first)
    with postgres.database() as second:
        assert await oid(second) == same
        assert await database_text(second.owner_url) == new
        assert await value(second, numbers) == 0


async def test_whoever_stayed_is_out(postgres: Cluster) -> None:
    """A connection that a test forgot ends with it, and its address leads nowhere."""
    first = postgres.create()
    async with connected(first.owner_url) as forgotten:
        await forgotten.execute("select pg_advisory_lock(1)")
        postgres.drop(first)
        with postgres.database():
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await forgotten.execute("select 1")
            with pytest.raises(asyncpg.InvalidCatalogNameError):
                await asyncpg.connect(first.owner_url)
            forgotten.terminate()


@pytest.mark.parametrize(
    "statement",
    [
        "create table mana.more (id text)",
        "alter table mana.accounts disable row level security",
        "grant select on mana.login_attempts to mana_app",
        "drop policy if exists {policy} on mana.accounts",
        "alter database {database} set work_mem = '1MB'",
        "delete from mana.migrations where number = 1",
        "analyze mana.migrations",
        "insert into mana.login_attempts select '\\x00', now() from generate_series(1, 90000)",
    ],
)
async def test_another_schema_is_not_lent(postgres: Cluster, statement: str) -> None:
    """A database whose schema, settings, statistics or size a test changed is lent to nobody."""
    first = postgres.create()
    before = await oid(first)
    policy = await value(
        first, "select policyname from pg_policies where tablename = 'accounts' limit 1"
    )
    async with connected(first.owner_url) as owner:
        await owner.execute(statement.format(policy=policy, database=f'"{first.name}"'))
    postgres.drop(first)
    with postgres.database() as second:
        assert await oid(second) != before


def test_one_that_is_gone_already(postgres: Cluster) -> None:
    """A test may drop its database itself."""
    first = postgres.create()

    async def drop() -> None:
        async with connected(postgres.instance.url()) as owner:
            await owner.execute(f'drop database "{first.name}" with (force)')

    run_apart(drop)
    postgres.drop(first)
    with postgres.database() as second:
        assert second.name != first.name
