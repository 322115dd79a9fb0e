"""Every table of the hub, from the catalogue: nobody touches what is another's.

A new table fails here until `rows.py` says who may see it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from mana.testing.postgres import (
    Cluster,
    Database,
    connected,
    run_apart,
    security_definer_functions,
    tables_without_forced_rls,
    unsafe_roles,
)
from tests.db.test_migrations import DEFINERS
from tests.tenancy.rows import (
    HUBS_OWN,
    PEOPLE,
    RULES,
    SHARED,
    Column,
    May,
    Rule,
    insertion,
    rows_for,
    seed,
    tables,
)

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

REFUSED = asyncpg.InsufficientPrivilegeError
NAMED = ("", SHARED, PEOPLE["ada"][-1] * 64)
"""Spaces that a transaction names: none, the shared one, Ada's own."""


@dataclass(frozen=True)
class Seeded:
    """A database in which everybody has a row everywhere."""

    database: Database
    tables: dict[str, list[Column]]


@pytest.fixture(scope="module")
def seeded(postgres: Cluster) -> Any:
    with postgres.database() as database:

        async def fill() -> dict[str, list[Column]]:
            async with connected(database.owner_url) as owner:
                found = await tables(owner)
                await seed(owner, found)
                return found

        yield Seeded(database, run_apart(fill))


@contextlib.asynccontextmanager
async def tenant(connection: asyncpg.Connection, who: str, space: str = "") -> AsyncIterator[None]:
    """Be in a transaction of one account, and take everything back at its end.

    `space` is the one that the transaction says it works in, which must gain it nothing.
    """
    await connection.execute(
        f"begin; set local app.current_user_id = '{who}'; set local app.current_space = '{space}'"
    )
    try:
        yield
    finally:
        await connection.execute("rollback")


@contextlib.asynccontextmanager
async def taken_back(connection: asyncpg.Connection) -> AsyncIterator[None]:
    await connection.execute("savepoint part")
    try:
        yield
    finally:
        await connection.execute("rollback to savepoint part; release savepoint part")


def name_of(columns: list[Column], row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from the others of its table."""
    names = [one.name for one in columns if one.key] or [columns[0].name]
    return tuple(row[name] for name in names)


async def names(
    connection: asyncpg.Connection, table: str, columns: list[Column], statement: str
) -> set[tuple[Any, ...]]:
    """Return the names of the rows that a statement returns."""
    rows = await connection.fetch(statement.format(table=table, row=f"to_jsonb({table}.*)"))
    return {name_of(columns, json.loads(row["row"])) for row in rows}


def expected(table: str, columns: list[Column], may: May, who: str) -> set[tuple[Any, ...]]:
    return {name_of(columns, row) for row in rows_for(table, columns) if may(row, who)}


async def test_every_table_is_declared(seeded: Seeded) -> None:
    """No table stands in the database that nobody has said who may see."""
    assert set(seeded.tables) == set(RULES) | set(HUBS_OWN)


async def test_every_table_has_rows_of_everybody(seeded: Seeded) -> None:
    """The walk proves something for each table: rows that are seen by some and not by others."""
    for table, rule in RULES.items():
        columns = seeded.tables[table]
        rows = rows_for(table, columns)
        assert len(rows) >= len(PEOPLE), table
        for who in PEOPLE.values():
            assert not all(rule.reads(row, who) for row in rows), table


async def test_row_security_is_forced(seeded: Seeded) -> None:
    """Row-level security holds on every table with a person's row, for its owner too."""
    async with connected(seeded.database.owner_url) as owner:
        assert set(await tables_without_forced_rls(owner)) == set(HUBS_OWN)


async def test_serving_roles_are_weak(seeded: Seeded) -> None:
    """Neither serving role owns, creates, bypasses, becomes another role or runs as its owner."""
    async with connected(seeded.database.owner_url) as owner:
        assert await unsafe_roles(owner) == []
        memberships = await owner.fetchval(
            "select count(*) from pg_auth_members m join pg_roles r on r.oid in (m.member, m.roleid)"
            " where r.rolname in ('mana_app', 'mana_runner')"
        )
        assert memberships == 0
        functions = [name.partition("(")[0] for name in await security_definer_functions(owner)]
        assert functions == DEFINERS
        # A view reads with its owner's rights, past row-level security.
        views = await owner.fetchval(
            "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind in ('v', 'm') and n.nspname in ('mana', 'mana_ai', 'public')"
        )
        assert views == 0
        for role in ("mana_app", "mana_runner"):
            for schema in ("mana", "mana_ai", "public"):
                may = await owner.fetchval(
                    "select has_schema_privilege($1, $2, 'create')", role, schema
                )
                assert may is False, (role, schema)
    for url in (seeded.database.app_url, seeded.database.runner_url):
        async with connected(url) as serving:
            for statement in (
                "set role postgres",
                "set session authorization postgres",
                "set session_replication_role = replica",
                "set local row_security = off; select from mana.accounts",
                "alter table mana.accounts no force row level security",
            ):
                async with tenant(serving, PEOPLE["ada"]):
                    with pytest.raises((asyncpg.PostgresError, asyncpg.InternalClientError)):
                        await serving.execute(statement)


async def test_the_hubs_own_tables(database: Database) -> None:
    """What holds no person's row is open to the serving roles as far as is declared, no further."""
    async with connected(database.owner_url) as owner:
        for table, roles in HUBS_OWN.items():
            for role, may in roles.items():
                rights = {
                    right
                    for right in ("select", "insert", "update", "delete", "truncate")
                    if await owner.fetchval(
                        "select has_any_column_privilege($1, $2, $3)"
                        if right in ("select", "insert", "update")
                        else "select has_table_privilege($1, $2, $3)",
                        role,
                        table,
                        right,
                    )
                }
                assert rights == may, (table, role)


@pytest.mark.parametrize("space", NAMED, ids=["none", "shared", "personal"])
@pytest.mark.parametrize("person", PEOPLE)
async def test_sees_exactly_what_is_theirs(seeded: Seeded, person: str, space: str) -> None:
    """Under each serving role an account sees every row that it may, and no other."""
    who = PEOPLE[person]
    for url in (seeded.database.app_url, seeded.database.runner_url):
        async with connected(url) as serving, tenant(serving, who, space):
            for table, rule in RULES.items():
                columns = seeded.tables[table]
                is_runner = url == seeded.database.runner_url
                may = (rule.runner or rule.reads) if is_runner else rule.reads
                seen = await names(serving, table, columns, "select {row} as row from {table}")
                assert seen == expected(table, columns, may, who), (table, is_runner)


async def test_nobody_sees_nothing(seeded: Seeded) -> None:
    """A transaction without an account, or with an unknown one, sees no row of any table."""
    unknown = "00000000-0000-4000-8000-ffffffffffff"
    for who in ("", unknown):
        async with connected(seeded.database.app_url) as serving, tenant(serving, who, SHARED):
            for table in RULES:
                assert await serving.fetch(f"select from {table}") == [], table


@pytest.mark.parametrize("space", NAMED, ids=["none", "shared", "personal"])
@pytest.mark.parametrize("person", PEOPLE)
async def test_removes_only_what_is_theirs(seeded: Seeded, person: str, space: str) -> None:
    """A statement that removes everything removes what the account may, and nothing else."""
    who = PEOPLE[person]
    async with connected(seeded.database.app_url) as serving, tenant(serving, who, space):
        for table, rule in RULES.items():
            columns = seeded.tables[table]
            async with taken_back(serving):
                gone = await names(
                    serving, table, columns, "delete from {table} returning {row} as row"
                )
            assert gone == expected(table, columns, rule.deletes or rule.reads, who), table


@pytest.mark.parametrize("space", NAMED, ids=["none", "shared", "personal"])
@pytest.mark.parametrize("person", PEOPLE)
async def test_changes_only_what_is_theirs(seeded: Seeded, person: str, space: str) -> None:
    """Of the rows that an account sees, it can change those that it may, and no other."""
    who = PEOPLE[person]
    async with connected(seeded.database.app_url) as serving, tenant(serving, who, space):
        for table, rule in RULES.items():
            columns = seeded.tables[table]
            may = rule.updates or rule.reads
            seen = await serving.fetch(
                f"select ctid::text as place, to_jsonb({table}.*) as row from {table}"
            )
            changed = set()
            for one in seen:
                async with taken_back(serving):
                    with contextlib.suppress(REFUSED):
                        first = columns[0].name
                        tag = await serving.execute(
                            f"update {table} set {first} = {first} where ctid = $1::text::tid",
                            one["place"],
                        )
                        if tag == "UPDATE 1":
                            changed.add(name_of(columns, json.loads(one["row"])))
            assert changed == expected(table, columns, may, who), table


@pytest.mark.parametrize("space", NAMED, ids=["none", "shared", "personal"])
@pytest.mark.parametrize("person", PEOPLE)
async def test_adds_nothing_for_others(seeded: Seeded, person: str, space: str) -> None:
    """A row that stands in another's name or space is refused before anything else is looked at."""
    who = PEOPLE[person]
    async with connected(seeded.database.app_url) as serving, tenant(serving, who, space):
        for table, rule in RULES.items():
            columns = seeded.tables[table]
            may = rule.inserts or rule.reads
            for row in rows_for(table, columns):
                refused = False
                async with taken_back(serving):
                    try:
                        await serving.execute(insertion(table, columns), json.dumps(row))
                    except REFUSED:
                        refused = True
                    except asyncpg.UniqueViolationError:
                        pass  # it stands already: row-level security let it through
                assert refused == (not may(row, who)), (table, row)


async def test_a_hole_would_be_seen(database: Database) -> None:
    """The walk finds a table without a declaration, an open policy and a missing one."""
    async with connected(database.owner_url) as owner:
        await owner.execute(
            "create table mana.forgotten (space_id text primary key);"
            "create policy hole on mana.sessions for select to mana_app using (true);"
            "drop policy own on mana.invites"
        )
        found = await tables(owner)
        assert set(found) - set(RULES) - set(HUBS_OWN) == {"mana.forgotten"}
        assert "mana.forgotten" in await tables_without_forced_rls(owner)
        await seed(owner, found)
    who = PEOPLE["out"]
    async with connected(database.app_url) as serving, tenant(serving, who):
        for table in ("mana.sessions", "mana.invites"):
            columns = found[table]
            rule: Rule = RULES[table]
            seen = await names(serving, table, columns, "select {row} as row from {table}")
            assert seen != expected(table, columns, rule.reads, who)
