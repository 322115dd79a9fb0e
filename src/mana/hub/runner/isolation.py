"""What keeps plaintext inside one process: no dumps, no tracing, no descriptor, no orphan.

Where the system knows no death signal (only Linux does), a worker ends when its pipe does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from functools import cache
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_STANDARD: Final = 3
"""How many descriptors, from 0 on, every process has: input, output and errors."""
_DESCRIPTORS_MAX: Final = 65_536


def forbid_dumps() -> None:
    """Let neither a crash nor another process of this user read this process's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def forbid_privileges() -> None:
    """Let this process and all that it makes never gain a right by starting a program."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the system to kill this process when the one that made it ends.

    `parent`: its process id, as it was before the fork. If it ended before the system was asked,
    nobody will send that signal any more, and this process ends here.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        kill_self()


def close_descriptors(kept: int) -> None:
    """Close every descriptor but one, and put the null device in the place of the first three."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(_STANDARD):
        os.dup2(null, standard)
    os.closerange(_STANDARD, kept)
    os.closerange(kept + 1, _DESCRIPTORS_MAX)


def kill_self() -> None:
    """End this process as a power failure would: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        _libc().prctl(option, value, 0, 0, 0)


@cache
def _libc() -> Any:
    """Return the C library, found once: a worker asks again just after its fork."""
    return ctypes.CDLL(None, use_errno=True)
