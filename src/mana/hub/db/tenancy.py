"""The only way to SQL: a transaction that carries whose data it may touch.

`begin` and the tenant travel in one message, and PostgreSQL forgets the tenant at the end of the
transaction, so no query can run under the tenant of an earlier one. There are two further doors,
and a test knows them by name: `door` for the log-in functions, `lease` for the runner's look at
occurrences across accounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from mana.domain.errors import Invalid
from mana.domain.ids import SpaceId, require_space_id, require_uuid
from mana.hub.db.errors import (
    CommitLost,
    DatabaseFailed,
    RoleUnsafe,
    SerializationFailed,
    translated,
)
from mana.hub.db.pool import LOCK, Pool, Role, drop
from mana.hub.tenants import Tenant

_T = TypeVar("_T")

Row: TypeAlias = Mapping[str, Any]

RETRIES_MAX: Final = 5
_ROLLBACK_S_MAX: Final = 5.0
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class Isolation(enum.Enum):
    """How much a transaction may see of others that commit meanwhile."""

    READ_COMMITTED = "begin"
    ONE_MOMENT = "begin isolation level repeatable read read only"
    """For reading several tables as they were at one moment."""
    SERIALIZABLE = "begin isolation level serializable"


class Transaction:
    """An open transaction. Statements use `$1`, `$2`, …; there is no other way to pass values."""

    __slots__ = ("_connection", "locked")

    def __init__(self, connection: Any, locked: SpaceId | None = None) -> None:
        self._connection = connection
        self.locked: Final = locked
        """The space whose head was locked when the transaction was opened."""

    async def all(self, sql: str, *args: object) -> list[Row]:
        """Return every row."""
        rows: list[Row] = await self._run("fetch", sql, *args)
        return rows

    async def one(self, sql: str, *args: object) -> Row | None:
        """Return the first row, or None."""
        row: Row | None = await self._run("fetchrow", sql, *args)
        return row

    async def value(self, sql: str, *args: object) -> Any:
        """Return the first column of the first row, or None."""
        return await self._run("fetchval", sql, *args)

    async def execute(self, sql: str, *args: object) -> int:
        """Run a statement and return how many rows it touched."""
        tag: str = await self._run("execute", sql, *args)
        last = tag.rpartition(" ")[2]
        return int(last) if last.isdigit() else 0

    async def _run(self, method: str, *args: Any) -> Any:
        return await translated(_called(self._connection, method, *args))

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo only what follows if it fails; the transaction itself lives on."""
        await self._run("execute", "savepoint inner_part")
        try:
            yield
        except BaseException:
            await self._run(
                "execute", "rollback to savepoint inner_part; release savepoint inner_part"
            )
            raise
        await self._run("execute", "release savepoint inner_part")


class Tenancy:
    """Opens transactions on the connections of one role."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @contextlib.asynccontextmanager
    async def transaction(
        self,
        tenant: Tenant,
        *,
        isolation: Isolation = Isolation.READ_COMMITTED,
        space: SpaceId | None = None,
        locked: bool = False,
        invitation: str | None = None,
    ) -> AsyncIterator[Transaction]:
        """Open a transaction that sees one account's rows; commit, or roll back on any error.

        `space`: the one that it works in, if it is one. Row-level security then looks it up once
        for each statement, not for each row; that shows no row that was not shown without it.
        `locked`: the head of that space is locked from the start, if the account sees it. Every
        statement then reads what whoever held it before has committed.
        `invitation`: the hash of an invitation's token (64 hex digits). The one invitation that
        it fits is seen too, by somebody who is no member of its space yet.
        """
        account = require_uuid(tenant.account, "account id")
        begin = f"{isolation.value}; set local app.current_user_id = '{account}'"
        if space is not None:
            begin += f"; set local app.current_space = '{require_space_id(space)}'"
        if invitation is not None:
            if not _HASH.fullmatch(invitation):
                raise Invalid("the hash of a token is 64 hex digits")
            begin += f"; set local app.invitation = '{invitation}'"
        if locked:
            if space is None or isolation is not Isolation.READ_COMMITTED:
                raise Invalid("what is locked is a space, and later statements read what is new")
            begin += f"; execute {LOCK}('{require_space_id(space)}')"
        async with self._opened(begin, space if locked else None) as transaction:
            yield transaction

    @contextlib.asynccontextmanager
    async def door(self) -> AsyncIterator[Transaction]:
        """Open a transaction without an account, for the SECURITY DEFINER functions of log-in.

        Row-level security shows it no person's row.
        """
        async with self._opened("begin; set local app.current_user_id = ''") as transaction:
            yield transaction

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Transaction]:
        """Open a transaction of the runner that leases occurrences across accounts."""
        if self._pool.role is not Role.RUNNER:
            raise RoleUnsafe("only the runner's pool leases occurrences")
        async with self._opened("begin; set local app.current_user_id = ''") as transaction:
            yield transaction

    @contextlib.asynccontextmanager
    async def _opened(
        self, begin: str, locked: SpaceId | None = None
    ) -> AsyncIterator[Transaction]:
        async with self._pool.connection() as connection:
            try:
                await translated(_called(connection, "execute", begin))
            except BaseException:
                # What was cut off here may begin on the server all the same, after the pool looked.
                drop(connection)
                raise
            try:
                yield Transaction(connection, locked)
            except BaseException:
                await _roll_back(connection)
                raise
            tag = await translated(_called(connection, "execute", "commit"), lost=CommitLost)
            if tag != "COMMIT":
                # PostgreSQL answers the commit of a failed transaction with a quiet rollback.
                raise DatabaseFailed("25P02")


async def _called(connection: Any, method: str, *args: Any) -> Any:
    # A lost connection answers before there is anything to await; here that is one failure too.
    return await getattr(connection, method)(*args)


async def _roll_back(connection: Any) -> None:
    """Roll back, or throw the connection away: it must never return with a tenant in force."""
    try:
        async with asyncio.timeout(_ROLLBACK_S_MAX):
            await connection.execute("rollback")
    except BaseException as error:
        drop(connection)
        if not isinstance(error, Exception):
            raise


async def retried(work: Callable[[], Awaitable[_T]], *, attempts: int = RETRIES_MAX) -> _T:
    """Run a whole transaction again while another one came first.

    `work` must open its transaction itself and have no effect outside it.
    """
    for attempt in range(1, attempts):
        try:
            return await work()
        except SerializationFailed:
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
    return await work()
