"""The SQLite file: one thread that owns the connection, and transactions that lose nothing.

Several processes may use one file. Each transaction takes the write lock when it begins, so that
what it read is still so when it writes; commits of other processes are seen by `data_version`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from mana.device.errors import Locked, ReplicaBroken, ReplicaTooNew, StorageFull
from mana.device.replica.schema import MIGRATIONS
from mana.device.replica.shapes import HUB_TIME
from mana.device.replica.transaction import Tx
from mana.protocol.replication import Guarded

BUSY_MS: Final = 20_000
_MODE: Final = 0o600
_FULL: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    }
)

_T = TypeVar("_T")


class Replica:
    """One account's database. `guarded` says which paths the hub's order decides.

    `factory` makes the connection; a test gives one that fails at a statement of its choice.
    """

    def __init__(
        self,
        path: Path,
        *,
        guarded: Guarded,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        self.path = path
        self._factory = factory
        self._guarded = guarded
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica")
        self._connection: sqlite3.Connection | None = None
        self._data_version = 0
        self._closed = False

    async def open(self) -> None:
        """Open the file, and bring its tables up to date."""
        try:
            await self._run(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Close the file. Whatever was committed is in it."""
        if self._closed:
            return
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=True)

    async def write(self, work: Callable[[Tx], _T]) -> _T:
        """Run `work` in one transaction: all of it is durable when this returns, or none."""
        return await self._run(lambda: self._transact("begin immediate", work))

    async def read(self, work: Callable[[Tx], _T]) -> _T:
        """Run `work` over one unchanging view of the file."""
        return await self._run(lambda: self._transact("begin deferred", work))

    async def moved(self) -> bool:
        """Say whether another process committed since this was last asked."""
        return await self._run(self._moved)

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise Locked("the replica is closed")
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread cannot be stopped in the middle; its transaction ends by itself.
            with contextlib.suppress(Exception):
                await asyncio.wait([future])
                future.exception()
            raise
        except sqlite3.Error as error:
            # The message of SQLite names tables, never a value.
            name = getattr(error, "sqlite_errorname", "SQLITE_MISUSE")
            raise ReplicaBroken(f"the replica failed: {name}") from error

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.chmod(0o700)
        if not self.path.exists():
            self.path.touch(mode=_MODE)
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            factory=self._factory,
        )
        try:
            connection.execute(f"pragma busy_timeout = {BUSY_MS}")
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma trusted_schema = off")
            self._migrate(connection)
            self._data_version = _data_version(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("begin immediate")
        try:
            found = int(connection.execute("pragma user_version").fetchone()[0])
            if found > len(MIGRATIONS):
                raise ReplicaTooNew("the replica was written by a newer version of Mana")
            for script in MIGRATIONS[found:]:
                for statement in script.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(f"pragma user_version = {len(MIGRATIONS)}")
        except BaseException:
            connection.execute("rollback")
            raise
        connection.execute("commit")

    def _transact(self, begin: str, work: Callable[[Tx], _T]) -> _T:
        connection = self._connection
        if connection is None:
            raise Locked("the replica is closed")
        try:
            return self._attempt(connection, begin, work)
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
        # Nothing of it was written, so it can be done again once there is room.
        self._make_room(connection)
        try:
            return self._attempt(connection, begin, work)
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
            raise StorageFull("the disk takes no more") from error

    def _attempt(self, connection: sqlite3.Connection, begin: str, work: Callable[[Tx], _T]) -> _T:
        connection.execute(begin)
        try:
            tx = Tx(connection, self._guarded)
            result = work(tx)
            tx.finish()
            connection.execute("commit")
        except BaseException:
            # SQLite may have ended the transaction by itself when the disk was full.
            if connection.in_transaction:
                connection.execute("rollback")
            raise
        return result

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Let go of old tombstones, and give the disk back what the log of SQLite took."""
        with contextlib.suppress(sqlite3.Error):
            self._attempt(
                connection, "begin immediate", lambda tx: tx.let_go(int(tx.meta(HUB_TIME) or 0))
            )
        with contextlib.suppress(sqlite3.Error):
            connection.execute("pragma wal_checkpoint(truncate)")

    def _moved(self) -> bool:
        if self._connection is None:
            raise Locked("the replica is closed")
        found = _data_version(self._connection)
        moved, self._data_version = found != self._data_version, found
        return moved


def _is_full(error: sqlite3.Error) -> bool:
    """Say whether a write failed because the disk took no more."""
    return getattr(error, "sqlite_errorcode", 0) in _FULL


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("pragma data_version").fetchone()[0])
