"""Worker processes: forks of a warm parent that never opens anything.

A worker serves one account, in a session of its own, and its memory ends with it. The parent
(`zygote.py`) is made when the runner opens; if it ends, its workers end with it and the next
request makes a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from mana.domain.errors import Unavailable
from mana.hub.runner.dialogue import Channel, SocketChannel, ToRunner
from mana.hub.runner.zygote import CHUNK_BYTES, MESSAGE, Kind

JOIN_S_MAX: Final = 5.0
READY_S_MAX: Final = 60.0
PROGRAM: Final = ("-P", "-m", "mana.hub.runner.zygote")
"""What Python runs as the warm parent; `-P`: nothing is loaded from the current folder."""
ENVIRONMENT: Final = (
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONTZPATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TZ",
)
"""What workers may know of the runner's environment: where libraries, zones and roots are."""


class WorkersUnavailable(Unavailable):
    """No worker can be made on this machine now."""

    code = "WORKERS_UNAVAILABLE"
    advice = "Look at the runner's log and at the limits of processes and memory; it tries again."


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

    async def open(self) -> None:
        """Make ready, so that the first worker is there as quickly as the others."""

    async def start(self) -> Worker:
        """Return a new worker; raise WorkersUnavailable."""

    async def close(self) -> None:
        """End what is left, workers too."""


class ProcessWorker:
    """A worker in a process of its own."""

    def __init__(self, parent: _Parent, child: _Child, channel: SocketChannel) -> None:
        self._parent = parent
        self._child = child
        self.channel = channel

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._child.pid

    def kill(self) -> None:
        """End it at once."""
        self._parent.kill(self._child)

    async def close(self) -> None:
        """End it and free what it held."""
        await self.channel.close()
        if not await _within(JOIN_S_MAX, self._child.ended):
            self.kill()
            await _within(JOIN_S_MAX, self._child.ended)


class ProcessWorkers:
    """Makes worker processes. `program`: what Python runs as their warm parent."""

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self._program = tuple(program)
        self._making = asyncio.Lock()
        self._parent: _Parent | None = None

    @property
    def parent_pid(self) -> int | None:
        """Return the process id of the warm parent, if there is one."""
        return None if self._parent is None or self._parent.is_gone else self._parent.pid

    async def open(self) -> None:
        """Make the warm parent."""
        await self._ready()

    async def start(self) -> ProcessWorker:
        """Return a new worker; raise WorkersUnavailable."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                try:
                    parent = await self._ready()
                    child = await parent.fork(theirs)
                except _ParentLost:
                    # It ended just now, or while nothing was asked of it.
                    parent = await self._ready()
                    child = await parent.fork(theirs)
            return ProcessWorker(parent, child, await SocketChannel.over(ours, ToRunner))
        except BaseException:
            # The worker, if it is there, ends with its pipe.
            ours.close()
            raise

    async def close(self) -> None:
        """End the warm parent, and the workers that are left with it."""
        async with self._making:
            if self._parent is not None:
                await self._parent.close()

    async def _ready(self) -> _Parent:
        async with self._making:
            if self._parent is None or self._parent.is_gone:
                self._parent = await _Parent.made(self._program)
            return self._parent


class _ParentLost(WorkersUnavailable):
    """The warm parent ended before it answered."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A worker as its parent told of it. `ended` is set when nothing of it is left."""

    pid: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Parent:
    """The runner's side of one warm parent: requests go out, answers come in their own time."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self._process = process
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._heard = b""
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._asked: dict[int, asyncio.Future[_Child]] = {}
        self._children: dict[int, _Child] = {}
        self._ticket = 0
        self._gone = asyncio.Event()
        self._loop.add_reader(end, self._hear)

    @classmethod
    async def made(cls, program: Sequence[str]) -> _Parent:
        """Start a warm parent and return it once it can fork; raise WorkersUnavailable."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = _started(program, theirs)
        except OSError:
            ours.close()
            raise WorkersUnavailable("the workers' parent cannot be started") from None
        parent = cls(process, ours)
        try:
            async with asyncio.timeout(READY_S_MAX):
                await parent._ready
        except BaseException as error:
            parent._lose()
            if isinstance(error, TimeoutError):
                raise WorkersUnavailable("the workers' parent does not answer") from None
            raise
        return parent

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Say whether it has ended."""
        return self._gone.is_set()

    async def fork(self, pipe: socket.socket) -> _Child:
        """Return a new worker on this pipe; raise WorkersUnavailable."""
        self._ticket += 1
        ticket = self._ticket
        answer: asyncio.Future[_Child] = self._loop.create_future()
        self._asked[ticket] = answer
        try:
            self._say(Kind.FORK, ticket, [pipe.fileno()])
            return await answer
        finally:
            self._asked.pop(ticket, None)

    def kill(self, child: _Child) -> None:
        """End a worker at once, if it is still there: only its parent knows for certain."""
        if not child.ended.is_set():
            with contextlib.suppress(_ParentLost):
                self._say(Kind.KILL, child.pid)

    async def close(self) -> None:
        """End it with all its workers; return when they are gone."""
        if self.is_gone:
            return
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)
        if not await _within(JOIN_S_MAX, self._gone):
            self._lose()

    def _say(self, kind: Kind, number: int, descriptors: Sequence[int] = ()) -> None:
        try:
            if self.is_gone:
                raise BrokenPipeError
            raw = MESSAGE.pack(kind, number, 0)
            if socket.send_fds(self._end, [raw], descriptors) != len(raw):
                raise BrokenPipeError
        except OSError:
            self._lose()
            raise _ParentLost("the workers' parent is gone") from None

    def _hear(self) -> None:
        """Take what the parent said; its end is one of the things that it can say."""
        try:
            raw = self._end.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self._lose()
            return
        self._heard += raw
        whole = len(self._heard) - len(self._heard) % MESSAGE.size
        said, self._heard = self._heard[:whole], self._heard[whole:]
        for kind, first, second in MESSAGE.iter_unpack(said):
            self._take(kind, first, second)

    def _take(self, kind: int, first: int, second: int) -> None:
        asked = self._asked.pop(first, None) if kind in (Kind.FORKED, Kind.FAILED) else None
        if kind == Kind.READY:
            if not self._ready.done():
                self._ready.set_result(None)
        elif kind == Kind.FORKED:
            child = self._children[second] = _Child(second)
            # Where nobody waits for it any more its pipe is closed, and it ends with that.
            if asked is not None and not asked.done():
                asked.set_result(child)
        elif kind == Kind.FAILED:
            if asked is not None and not asked.done():
                asked.set_exception(WorkersUnavailable(f"no worker: {os.strerror(second)}"))
        elif kind == Kind.ENDED and (ended := self._children.pop(first, None)) is not None:
            ended.ended.set()

    def _lose(self) -> None:
        """Let everybody who waits for this parent know that it is no more."""
        if self.is_gone:
            return
        self._gone.set()
        self._loop.remove_reader(self._end)
        self._end.close()
        # It has ended, or has broken down: its workers die with it in either case.
        self._process.kill()
        self._process.wait()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._asked.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(_ParentLost("the workers' parent ended"))
        for child in self._children.values():
            child.ended.set()
        self._children.clear()


def _started(program: Sequence[str], end: socket.socket) -> subprocess.Popen[bytes]:
    """Start a warm parent on its end of a socket, with nothing else of this process."""
    return subprocess.Popen(
        [sys.executable, *program, str(end.fileno())],
        env=_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(end.fileno(),),
        start_new_session=True,
    )


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event; say whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a warm parent is given: where its code is, and nothing that is secret."""
    kept = {name: environ[name] for name in ENVIRONMENT if name in environ}
    places = [str(Path(place).absolute()) for place in sys.path]
    return {**kept, "PYTHONPATH": os.pathsep.join(places)}
