"""A throw-away PostgreSQL: the real server, the real roles, a fresh database for each test.

One server for a test process, migrated once into a template; each database is a copy of it. A copy
costs far more than most tests, so one that was given back is emptied and lent again under another
name, unless its schema is no longer the template's. The server ends with the process that started
it, even if that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from mana.hub.db import Pool, Role, Tenancy, migrate
from mana.hub.db.catalogue import SCHEMAS
from mana.hub.db.urls import url_as
from mana.hub.postgres import Instance, find_binaries

__all__ = [
    "Cluster",
    "Database",
    "Role",
    "Tenancy",
    "connected",
    "database_text",
    "open_policies",
    "opened_tenancy",
    "run_apart",
    "security_definer_functions",
    "tables_without_forced_rls",
    "throw_away_cluster",
    "unsafe_roles",
]

_T = TypeVar("_T")

TEMPLATE: Final = "mana_template"
# What is lost in a crash of the machine is no loss here.
FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# Rows that were removed stay in the files. From here on a copy is cheaper.
REUSED_BYTES_MAX: Final = 2 * 1024 * 1024
END_MS_MAX: Final = 5_000

_END_OTHERS: Final = (
    "select pg_terminate_backend(pid, $2) from pg_stat_activity"
    " where datname = $1 and pid <> pg_backend_pid()"
)
# Whoever changes the schema or the statistics leaves new rows in one of these, or fewer.
_CATALOGUES: Final = (
    *("pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_default_acl", "pg_extension"),
    *("pg_event_trigger", "pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite"),
    *("pg_statistic", "pg_trigger", "pg_type"),
)
_SETTINGS: Final = """
select concat_ws(' ', datallowconn, datconnlimit, datacl::text,
                 (select string_agg(s::text, ' ') from pg_db_role_setting s
                   where s.setdatabase = d.oid))
  from pg_database d where datname = current_database()
"""
_FILLED: Final = """
select format('%I.%I', n.nspname, c.relname) as name, pg_relation_size(c.oid) as bytes
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and n.nspname = any($1) and pg_relation_size(c.oid) > 0
 order by 1
"""
_REWIND: Final = """
select setval(format('%I.%I', schemaname, sequencename), start_value, false)
  from pg_sequences where last_value is not null
"""

_UNFORCED: Final = """
select n.nspname || '.' || c.relname as name
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and not (c.relrowsecurity and c.relforcerowsecurity)
   and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_(toast|temp)'
 order by 1
"""
_DEFINERS: Final = """
select format('%s.%s(%s)', n.nspname, p.proname,
              pg_get_function_identity_arguments(p.oid)) as name
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where p.prosecdef and n.nspname not in ('pg_catalog', 'information_schema')
 order by 1
"""
_OPEN_POLICIES: Final = """
select format('%s.%s %s', schemaname, tablename, policyname) as name
  from pg_policies
 where roles @> array['public'::name]
    or coalesce(qual, '') = 'true' or coalesce(with_check, '') = 'true'
 order by 1
"""
_BYPASSING: Final = """
select rolname::text as name from pg_roles
 where rolname in ('mana_app', 'mana_runner')
   and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication
        or exists (select from pg_class c where c.relowner = pg_roles.oid)
        or exists (select from pg_auth_members m where m.member = pg_roles.oid))
 order by 1
"""


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a test, by the address of each role that uses it."""

    name: str
    owner_url: str

    @property
    def app_url(self) -> str:
        """The address for the hub."""
        return url_as(self.owner_url, Role.APP.value)

    @property
    def runner_url(self) -> str:
        """The address for the runner."""
        return url_as(self.owner_url, Role.RUNNER.value)

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which a hub or runner process uses this database."""
        return {
            "MANA_DATABASE_URL": self.owner_url,
            "MANA_APP_DATABASE_URL": self.app_url,
            "MANA_RUNNER_DATABASE_URL": self.runner_url,
        }


class Cluster:
    """A running server that makes databases quickly.

    `reuses`: what is dropped is lent again where it can be made as good as new.
    """

    def __init__(self, instance: Instance, *, reuses: bool = False) -> None:
        self.instance = instance
        self._reuses = reuses
        self._numbers = itertools.count(1)
        self._has_template = False
        # By name: what a database was when it was new.
        self._lent: dict[str, _State] = {}
        self._clean: dict[str, _State] = {}

    def create(self, *, migrated: bool = True) -> Database:
        """Make a database: a copy of the migrated one, or an empty one."""
        if migrated and self._clean:
            name, state = self._clean.popitem()
        else:
            name, state = self._next_name(), None
            run_apart(lambda: self._made(name, migrated))
            if migrated and self._reuses:
                state = run_apart(lambda: _state_of(self.instance.url(name)))
        if state is not None:
            self._lent[name] = state
        return Database(name, self.instance.url(name))

    def drop(self, database: Database) -> None:
        """Remove a database and end what is still connected to it."""
        state = self._lent.pop(database.name, None)
        run_apart(lambda: self._dropped(database.name, state))

    @contextlib.contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[Database]:
        """Lend a database and remove it afterwards."""
        made = self.create(migrated=migrated)
        try:
            yield made
        finally:
            self.drop(made)

    def _next_name(self) -> str:
        return f"t{os.getpid()}_{next(self._numbers)}"

    async def _made(self, name: str, migrated: bool) -> None:
        async with connected(self.instance.url()) as connection:
            if migrated and not self._has_template:
                await connection.execute(f'create database "{TEMPLATE}"')
                await migrate(self.instance.url(TEMPLATE))
                self._has_template = True
            source = TEMPLATE if migrated else "template1"
            await connection.execute(f'create database "{name}" template "{source}"')

    async def _dropped(self, name: str, state: _State | None) -> None:
        async with connected(self.instance.url()) as connection:
            if state is not None and await self._is_kept(connection, name, state):
                return
            await connection.execute(f'drop database if exists "{name}" with (force)')

    async def _is_kept(self, connection: Any, name: str, state: _State) -> bool:
        """Answer whether a database is as good as new again, under a name that is new too.

        By its old name a process that a test forgot could still write to it.
        """
        await connection.execute(_END_OTHERS, name, END_MS_MAX)
        clean = self._next_name()
        try:
            await connection.execute(f'alter database "{name}" rename to "{clean}"')
        except asyncpg.PostgresError:
            return False  # somebody connects again and again, or the test has dropped it
        if not await _is_emptied(self.instance.url(clean), state):
            await connection.execute(f'drop database "{clean}" with (force)')
            return True
        self._clean[clean] = state
        return True


@dataclass(frozen=True, slots=True)
class _State:
    """What a new database is, beyond its empty tables."""

    schema: str
    rows: Mapping[str, Sequence[str]]
    """By table the rows that migrations leave, as texts."""


async def _state_of(url: str) -> _State:
    async with connected(url) as connection:
        names = [row["name"] for row in await connection.fetch(_FILLED, list(SCHEMAS))]
        return _State(
            await _schema_mark(connection), {name: await _rows(connection, name) for name in names}
        )


async def _schema_mark(connection: Any) -> str:
    """Return a text that differs after any change of the schema, its statistics or settings."""
    marks = ", ".join(
        f"(select concat_ws(':', count(*), max(xmin::text::bigint)) from {name})"  # noqa: S608
        for name in _CATALOGUES
    )
    return str(await connection.fetchval(f"select concat_ws(' ', {marks}, ({_SETTINGS}))"))


async def _rows(connection: Any, table: str) -> list[str]:
    rows = await connection.fetch(f"select t::text as row from {table} t order by 1")  # noqa: S608
    return [row["row"] for row in rows]


async def _is_emptied(url: str, state: _State) -> bool:
    """Remove every row that a new database has not; answer whether it is now like a new one."""
    async with connected(url) as connection:
        if await _schema_mark(connection) != state.schema:
            return False
        filled = await connection.fetch(_FILLED, list(SCHEMAS))
        if sum(row["bytes"] for row in filled) > REUSED_BYTES_MAX:
            return False
        for table, rows in state.rows.items():
            if await _rows(connection, table) != rows:
                return False
        emptied = [row["name"] for row in filled if row["name"] not in state.rows]
        # As a replica no trigger fires, foreign keys included.
        deletes = "".join(f"delete from {name};" for name in emptied)  # noqa: S608
        await connection.execute(f"set session_replication_role = replica; {deletes}")
        await connection.execute(_REWIND)
        await connection.execute("select pg_stat_reset()")
        return True


@contextlib.contextmanager
def throw_away_cluster() -> Iterator[Cluster]:
    """Start a server in a temporary folder; stop and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mana-test-"))
    folder.chmod(0o711)  # the server may run under another account; its own folders are closed
    instance = Instance(find_binaries(os.environ), folder / "postgres", settings=FAST)
    try:
        instance.ensure()
        with _ended_with_us(instance, folder):
            try:
                yield Cluster(instance, reuses=True)
            finally:
                instance.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ended_with_us(instance: Instance, folder: Path) -> Iterator[None]:
    """Let a shell wait for the end of this process and stop the server then.

    It notices by the pipe that only this process holds, so that SIGKILL is covered too.
    """
    script = (
        'read -r _; kill -INT "$1"; n=0;'
        ' while kill -0 "$1" && [ "$n" -lt 100 ]; do sleep 0.1; n=$((n + 1)); done;'
        ' rm -rf -- "$2" "$3"'
    )
    pid, socket_dir = str(instance.pid), str(instance.socket_dir)
    guard = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", pid, os.fspath(folder), socket_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        if guard.stdin is not None:
            guard.stdin.close()


def run_apart(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine in an event loop of its own, whether or not one runs here."""
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Lend a bare connection, for a test that looks behind the stores."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def opened_tenancy(
    database: Database, *, role: Role = Role.APP, size: int = 4
) -> AsyncIterator[Tenancy]:
    """Lend the tenancy of one role."""
    url = database.app_url if role is Role.APP else database.runner_url
    async with Pool(url, role=role, size=size) as pool:
        yield Tenancy(pool)


async def tables_without_forced_rls(connection: Any) -> list[str]:
    """Return the tables whose rows row-level security does not guard, the owner included."""
    return await _names(connection, _UNFORCED)


async def security_definer_functions(connection: Any) -> list[str]:
    """Return the functions that run with their owner's rights, with their argument types."""
    return await _names(connection, _DEFINERS)


async def open_policies(connection: Any) -> list[str]:
    """Return the policies that let everything through, or apply to every role."""
    return await _names(connection, _OPEN_POLICIES)


async def unsafe_roles(connection: Any) -> list[str]:
    """Return which of the two serving roles could pass row-level security."""
    return await _names(connection, _BYPASSING)


async def database_text(url: str) -> str:
    """Return every value of every row of a database as text, for a search for leaks."""
    out: list[str] = []
    async with connected(url) as connection:
        tables = await connection.fetch(
            "select format('%I.%I', n.nspname, c.relname) as name from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r'"
            " and n.nspname not in ('pg_catalog', 'information_schema')"
        )
        for table in tables:
            rows = await connection.fetch(f"select t::text as row from {table['name']} t")  # noqa: S608
            out += [row["row"] for row in rows]
    return "\n".join(out)


async def _names(connection: Any, query: str) -> list[str]:
    return [row["name"] for row in await connection.fetch(query)]
