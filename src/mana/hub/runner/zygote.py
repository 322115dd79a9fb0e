"""The warm parent of the workers: all is loaded, nothing is opened, and no key is here.

It is a program of its own, started with an environment of its own, so that a worker has nothing
of what the runner's environment holds: no address of a database, no key. It has one thread, and
forks a worker for each request on a socket, which brings the worker's end of its pipe along.
When the runner's end of the socket is gone it ends, and the system ends its workers with it.

    python -m mana.hub.runner.zygote <descriptor of the socket>
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
from enum import IntEnum
from typing import Final

from mana.hub.runner.isolation import (
    close_descriptors,
    die_with_parent,
    forbid_dumps,
    forbid_privileges,
)
from mana.hub.runner.warm import warm_up
from mana.hub.runner.worker import serve

MESSAGE: Final = struct.Struct("!BQQ")
"""Kind and two numbers, in both directions."""
CHUNK_BYTES: Final = 4_096


class Kind(IntEnum):
    """What a message is; the numbers that follow it in brackets."""

    READY = 1  # from the parent: it waits for requests
    FORK = 2  # to it, with a descriptor: make a worker on this pipe (ticket)
    FORKED = 3  # from it: there is one (ticket, process id)
    FAILED = 4  # from it: the system gave none (ticket, error number)
    KILL = 5  # to it: end a worker at once (process id)
    ENDED = 6  # from it: a worker has ended and nothing of it is left (process id)


class Parent:
    """The loop of the warm parent. It alone knows which process ids are still its workers'."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._workers: set[int] = set()
        self._woken, self._wakes = socket.socketpair()

    def run(self) -> None:
        """Answer requests until the other end is closed."""
        for one in (self._woken, self._wakes):
            one.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        for one in (self._woken, self._end):
            poll.register(one, select.POLLIN)
        self._say(Kind.READY)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._woken.fileno() in ready:
                self._woken.recv(CHUNK_BYTES)
                self._reap()
            if self._end.fileno() in ready and not self._answer():
                self._end_all()
                return

    def _answer(self) -> bool:
        """Do what one message asks; False when there is nobody who asks any more."""
        raw, descriptors, _, _ = socket.recv_fds(self._end, MESSAGE.size, 1)
        if len(raw) != MESSAGE.size:
            return False
        kind, number, _ = MESSAGE.unpack(raw)
        if kind == Kind.FORK and descriptors:
            self._fork(number, descriptors[0])
        elif kind == Kind.KILL and number in self._workers:
            # Not reaped yet, so the number cannot be another process's by now.
            os.kill(number, signal.SIGKILL)
        for one in descriptors:
            os.close(one)
        return True

    def _fork(self, ticket: int, pipe: int) -> None:
        parent = os.getpid()
        try:
            worker = os.fork()
        except OSError as error:
            self._say(Kind.FAILED, ticket, error.errno or 0)
            return
        if worker == 0:
            _be_worker(pipe, parent)
        self._workers.add(worker)
        self._say(Kind.FORKED, ticket, worker)

    def _reap(self, how: int = os.WNOHANG) -> None:
        """Take leave of each worker that has ended, so that none stays as a zombie."""
        while self._workers:
            worker, _ = os.waitpid(-1, how)
            if worker == 0:
                return
            self._workers.discard(worker)
            self._say(Kind.ENDED, worker)

    def _end_all(self) -> None:
        """End every worker and wait until nothing of them is left."""
        for worker in self._workers:
            os.kill(worker, signal.SIGKILL)
        self._reap(how=0)

    def _say(self, kind: Kind, first: int = 0, second: int = 0) -> None:
        try:
            self._end.sendall(MESSAGE.pack(kind, first, second))
        except OSError:
            # The runner is gone; the next look at the socket says so.
            return


def _be_worker(pipe: int, parent: int) -> None:
    """Be a worker on this pipe until it ends; never returns."""
    try:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        close_descriptors(pipe)
        gc.enable()
        serve(socket.socket(fileno=pipe))
    finally:
        # Nothing of the parent's is to be flushed or run at the end, whatever went wrong.
        os._exit(0)


def main() -> int:
    """Be the warm parent on the socket that the first argument names."""
    end = socket.socket(fileno=int(sys.argv[1]))
    os.umask(0o077)
    forbid_dumps()
    forbid_privileges()
    warm_up()
    if threading.active_count() != 1:
        print("an installed module starts threads: workers cannot be forked", file=sys.stderr)  # noqa: T201 - for a person
        return 1
    os.chdir("/")
    # What is shared with the workers stays shared: no collector of theirs writes to it.
    gc.disable()
    gc.collect()
    gc.freeze()
    Parent(end).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
