"""Numbered SQL files, each applied once, all in one transaction.

Processes that start together wait for each other at an advisory lock. A file that was applied
must never change; a database that is newer than this code is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import asyncpg

from mana.domain.errors import Unavailable
from mana.hub.db.errors import DatabaseFailed, translated
from mana.hub.db.urls import database_of, url_to

LOCK_KEY: Final = 0x6D616E61  # "mana"
SEARCH_PATH: Final = "mana, pg_temp"
_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LEDGER: Final = """
create schema if not exists mana;
create table if not exists mana.migrations (
  number integer primary key,
  name text not null,
  checksum text not null,
  applied_at timestamptz not null default now()
);
revoke all on mana.migrations from public;
"""


class MigrationChanged(Unavailable):
    """A migration that this database has applied is not the file that we have."""

    code = "MIGRATION_CHANGED"
    advice = "Use the release that made this database; add a new migration instead of a change."


class MigrationMissing(Unavailable):
    """The database was written by a newer Mana."""

    code = "DATABASE_NEWER"
    advice = "Update Mana to the release that last used this database."


class MigrationOutOfOrder(Unavailable):
    """A new migration is numbered below one that was applied already, or a number is doubled."""

    code = "MIGRATION_OUT_OF_ORDER"
    advice = "Give the migration the next free number."


class MigrationFailed(Unavailable):
    """A migration was refused; none of this start's migrations was kept."""

    code = "MIGRATION_FAILED"
    advice = "The database is as it was before; see the named file."


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What identifies the content; line ends do not count."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()


def read_migrations() -> tuple[Migration, ...]:
    """Return the migrations of this release in order."""
    folder = resources.files("mana.hub.db").joinpath("migrations")
    found = []
    for entry in folder.iterdir():
        match = _FILE.fullmatch(entry.name)
        if match:
            sql = entry.read_text(encoding="utf-8")
            found.append(Migration(int(match.group(1)), match.group(2), sql))
    return tuple(sorted(found, key=lambda migration: migration.number))


async def ensure_database(url: str) -> None:
    """Create the database that the owner's address names, if the server lacks it."""
    name = database_of(url)
    try:
        connection = await translated(asyncpg.connect(url, timeout=10))
    except DatabaseFailed as error:
        if error.sqlstate != "3D000":
            raise
    else:
        await connection.close()
        return
    server = await translated(asyncpg.connect(url_to(url, "postgres"), timeout=10))
    try:
        quoted = name.replace('"', '""')
        await translated(server.execute(f'create database "{quoted}"'))
    except DatabaseFailed as error:
        if error.sqlstate not in {"42P04", "23505"}:  # another process was quicker
            raise
    finally:
        await server.close()


async def migrate(url: str, migrations: Sequence[Migration] | None = None) -> tuple[int, ...]:
    """Bring the database up to date under its owner's address; return the numbers applied."""
    known = read_migrations() if migrations is None else tuple(migrations)
    numbers = [migration.number for migration in known]
    if numbers != sorted(set(numbers)):
        raise MigrationOutOfOrder("two migrations have the same number, or they are not sorted")
    connection = await translated(
        asyncpg.connect(url, timeout=10, server_settings={"search_path": SEARCH_PATH})
    )
    try:
        await translated(connection.execute("begin"))
        # The lock comes before all else, creation of the ledger included.
        await translated(connection.execute("select pg_advisory_xact_lock($1)", LOCK_KEY))
        await translated(connection.execute("set local client_min_messages = warning"))
        await translated(connection.execute(_LEDGER))
        rows = await translated(
            connection.fetch("select number, checksum from mana.migrations order by number")
        )
        pending = _pending(known, {row["number"]: row["checksum"] for row in rows})
        for migration in pending:
            await _apply(connection, migration)
        await translated(connection.execute("commit"))
    finally:
        # Closing ends an open transaction as a rollback does.
        connection.terminate()
    return tuple(migration.number for migration in pending)


def _pending(known: Sequence[Migration], applied: dict[int, str]) -> tuple[Migration, ...]:
    by_number = {migration.number: migration for migration in known}
    for number, checksum in applied.items():
        if number not in by_number:
            raise MigrationMissing(
                f"the database has migration {number:04}, which this release lacks",
                detail={"number": number},
            )
        if by_number[number].checksum != checksum:
            raise MigrationChanged(
                f"migration {number:04} is not the one that was applied", detail={"number": number}
            )
    newest = max(applied, default=0)
    pending = tuple(migration for migration in known if migration.number not in applied)
    for migration in pending:
        if migration.number < newest:
            raise MigrationOutOfOrder(
                f"migration {migration.number:04} comes after {newest:04} was applied",
                detail={"number": migration.number},
            )
    return pending


async def _apply(connection: Any, migration: Migration) -> None:
    failure = await _attempt(connection, migration)
    if failure is not None:
        raise MigrationFailed(
            f"migration {migration.number:04}_{migration.name}: {failure}",
            detail={"number": migration.number},
        )
    await translated(
        connection.execute(
            "insert into mana.migrations (number, name, checksum) values ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )
    )


async def _attempt(connection: Any, migration: Migration) -> str | None:
    """Run one file; return what the database said, without any value of a row."""
    try:
        await connection.execute(migration.sql)
    except asyncpg.PostgresError as error:
        state = str(error.sqlstate)
        if state.startswith("42"):  # about names and syntax, never about rows
            line = ""
            position = getattr(error, "position", None)
            if position:
                line = f" (line {migration.sql[: int(position)].count(chr(10)) + 1})"
            return f"{state} {error.args[0]}{line}"
        return state
    if not connection.is_in_transaction():
        return "it ended the transaction that all migrations share"
    return None
