"""Connections of one role, handed out to `Tenancy` only.

No RESET is sent when a connection comes back: every use is inside a transaction with SET LOCAL,
and a connection that is still in one is thrown away. A pool refuses to open under a role that
row-level security does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final

import asyncpg
import msgspec

from mana.hub.db.errors import DatabaseUnavailable, RoleUnsafe, translated
from mana.hub.db.listening import Subscription

CONNECT_S_MAX: Final = 10.0
STATEMENT_S_MAX: Final = 30.0
SERVER_SETTINGS: Final = {
    "application_name": "mana",
    "search_path": "mana, pg_temp",
    "timezone": "UTC",
    "jit": "off",
    "idle_in_transaction_session_timeout": "60000",
    # Every statement that serves has an index that fits, in the order that it asks for. A plan
    # must not hang on statistics, which lag behind a table that grows: one that reads and sorts
    # a whole space is cheap by the figures of an hour ago. Row-level security makes planning
    # costlier than most statements, so they are planned once.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
}

LOCK: Final = "lock_space"
"""The prepared statement of every connection that locks a space's head: `execute lock_space('…')`.

It goes along in the message that opens a transaction, which cannot carry a plan of its own; to
plan it anew under row-level security would cost more than to run it.
"""
_PREPARE_LOCK: Final = (
    "prepare lock_space (text) as select seq from mana.space_heads where space_id = $1 for update"
)

_CHECK_ROLE: Final = """
select r.rolsuper or r.rolbypassrls or r.rolcreaterole
       or exists (select from pg_catalog.pg_class c
                   where c.relowner = r.oid and c.relkind in ('r', 'p'))
  from pg_catalog.pg_roles r where r.rolname = current_user
"""


class Role(enum.Enum):
    """The two roles that serve; neither owns a table nor passes row-level security."""

    APP = "mana_app"
    RUNNER = "mana_runner"


class Pool:
    """A pool under one role; `open` before use, or use as an asynchronous context manager."""

    def __init__(self, url: str, *, role: Role = Role.APP, size: int = 10) -> None:
        self.role = role
        self._url = url
        self._size = size
        self._pool: Any = None
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Connect, and refuse a role that could see more than its tenant's rows."""
        if self._pool is not None:
            return
        pool = await translated(
            asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=self._size,
                init=_prepare,
                reset=_check_clean,
                timeout=CONNECT_S_MAX,
                command_timeout=STATEMENT_S_MAX,
                server_settings=SERVER_SETTINGS,
            )
        )
        try:
            unsafe = await translated(pool.fetchval(_CHECK_ROLE))
            if unsafe is not False:
                raise RoleUnsafe(f"the role for {self.role.value} could pass row-level security")
        except BaseException:
            pool.terminate()
            raise
        self._pool = pool

    async def close(self) -> None:
        """Close all connections; what still runs gets a few seconds."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await translated(_close_within(pool))
        except DatabaseUnavailable:
            pool.terminate()

    async def __aenter__(self) -> Pool:
        await self.open()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def listen(self, channel: str, callback: Callable[[str], None]) -> Subscription:
        """Call `callback` with the payload of each notice on a channel, until closed.

        Notices are lost while a connection is down, so the callback is also called with an empty
        payload after each connect: look what is there. The subscription ends with the pool.
        """
        subscription = Subscription(self._url, channel, callback, settings=SERVER_SETTINGS)
        self._subscriptions.append(subscription)
        await subscription.start()
        return subscription

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Lend one connection. For `Tenancy`: it is not yet bound to a tenant."""
        if self._pool is None:
            raise DatabaseUnavailable("08003")
        connection = await translated(self._pool.acquire(timeout=CONNECT_S_MAX))
        try:
            yield connection
        finally:
            if _is_in_transaction(connection):
                drop(connection)
            await translated(self._pool.release(connection))


def drop(connection: Any) -> None:
    """Throw a connection away, so that nobody gets it again."""
    # A connection that the server ended has left the pool already and answers with this error.
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


def _is_in_transaction(connection: Any) -> bool:
    try:
        return bool(not connection.is_closed() and connection.is_in_transaction())
    except asyncpg.InterfaceError:
        return False


async def _close_within(pool: Any) -> None:
    async with asyncio.timeout(5):
        await pool.close()


async def _check_clean(connection: Any) -> None:
    if connection.is_in_transaction():
        raise DatabaseUnavailable("25001")


def _encode_jsonb(value: object) -> bytes:
    return b"\x01" + msgspec.json.encode(value)


def _decode_jsonb(raw: bytes) -> Any:
    return msgspec.json.decode(raw[1:])


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_encode_jsonb, decoder=_decode_jsonb, format="binary"
    )
    await connection.set_type_codec(
        "json",
        schema="pg_catalog",
        encoder=msgspec.json.encode,
        decoder=msgspec.json.decode,
        format="binary",
    )
    await connection.execute(_PREPARE_LOCK)
