"""LISTEN on a connection of its own, which comes back by itself.

`NOTIFY` only wakes: what must not be lost is a row, and whoever is woken looks for rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import asyncpg

from mana.domain.errors import Invalid
from mana.hub.db.errors import DatabaseFailed, translated

RETRY_S_MIN: Final = 0.1
RETRY_S_MAX: Final = 5.0
KEEP_ALIVE_S: Final = 30.0
_CHANNEL: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Subscription:
    """One channel, one callback, until `close`."""

    def __init__(
        self,
        url: str,
        channel: str,
        callback: Callable[[str], None],
        *,
        settings: Mapping[str, str],
    ) -> None:
        if not _CHANNEL.fullmatch(channel):
            raise Invalid("a channel is named by lower-case letters, digits and underscores")
        self._url = url
        self._channel = channel
        self._callback = callback
        self._settings = dict(settings)
        self._task: asyncio.Task[None] | None = None
        self._listens = False

    @property
    def is_listening(self) -> bool:
        """Return whether notices arrive; while it is false, some are lost."""
        return self._listens

    async def start(self) -> None:
        """Start, and return when the first connection listens or has failed once."""
        first = asyncio.Event()
        self._task = asyncio.create_task(self._run(first), name=f"listen-{self._channel}")
        await first.wait()

    async def close(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, first: asyncio.Event) -> None:
        pause = RETRY_S_MIN
        while True:
            try:
                await self._listen_once(first)
                pause = RETRY_S_MIN
            except DatabaseFailed:
                pause = min(pause * 2, RETRY_S_MAX)
            finally:
                first.set()
            await asyncio.sleep(pause)

    async def _listen_once(self, first: asyncio.Event) -> None:
        ended = asyncio.Event()
        connection = await translated(
            asyncpg.connect(
                self._url, timeout=10, command_timeout=10, server_settings=self._settings
            )
        )
        try:
            connection.add_termination_listener(lambda _connection: self._lost(ended))
            await translated(connection.add_listener(self._channel, self._received))
            first.set()
            self._listens = True
            self._callback("")
            while not ended.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await ended.wait()
                    return
                # A connection can be dead without a word; only an answer proves the contrary.
                await translated(connection.execute("select 1"))
        finally:
            self._listens = False
            connection.terminate()

    def _lost(self, ended: asyncio.Event) -> None:
        self._listens = False
        ended.set()

    def _received(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._callback(payload)
