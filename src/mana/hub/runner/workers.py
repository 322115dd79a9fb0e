"""Worker processes: made from a warm parent that never opens anything, one for each run.

The fork server has the worker's modules loaded and nothing else; each worker is a fork of it,
serves one occurrence of one account, and ends. Its memory ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Final, Protocol

from mana.hub.runner.dialogue import Channel, SocketChannel, ToRunner
from mana.hub.runner.worker import serve

JOIN_S_MAX: Final = 5.0


class Worker(Protocol):
    """A worker that waits for its job."""

    @property
    def channel(self) -> Channel:
        """Return the runner's end of the pipe."""

    def kill(self) -> None:
        """End it at once."""

    async def close(self) -> None:
        """End it and free what it held."""


class Workers(Protocol):
    """Something that makes workers."""

    async def start(self) -> Worker:
        """Return a new worker."""


class ProcessWorker:
    """A worker in a process of its own."""

    def __init__(self, process: ForkServerProcess, channel: SocketChannel) -> None:
        self._process = process
        self.channel = channel

    @property
    def pid(self) -> int | None:
        """Return the process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it and free what it held."""
        await self.channel.close()
        await asyncio.to_thread(self._process.join, JOIN_S_MAX)
        if self._process.is_alive():
            self.kill()
            await asyncio.to_thread(self._process.join, JOIN_S_MAX)
        self._process.close()


class ProcessWorkers:
    """Makes a process for each run."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mana.hub.runner.worker"])

    async def start(self) -> ProcessWorker:
        """Return a new worker."""
        ours, theirs = socket.socketpair()
        try:
            process = self._context.Process(target=serve, args=(theirs,), daemon=True)
            await asyncio.to_thread(process.start)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ProcessWorker(process, await SocketChannel.over(ours, ToRunner))
