"""What keeps plaintext inside one process: no core dumps, no tracing, no life after the parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4


def forbid_dumps() -> None:
    """Let neither a crash nor another process of this user read this process's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Ask the system to kill this process when the one that made it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_self() -> None:
    """End this process as a power failure would: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
