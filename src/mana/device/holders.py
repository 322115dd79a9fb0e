"""Which process of this machine is at work on something, and whether it still lives.

A process that works holds a file of its own; the lock on it goes with the process, however that
ends. So what a crash left behind is told from what another process is at.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from mana.device.locks import FileLock


class Holder:
    """This process as it works for one account; `name` is drawn anew for each."""

    def __init__(self, folder: Path, account_id: str) -> None:
        self.name = secrets.token_hex(8)
        self._prefix = folder / f"{account_id}.at-work"
        self._lock = FileLock(self._path(self.name))

    def hold(self) -> None:
        """Begin to be alive for others; a second time changes nothing."""
        self._lock.acquire()

    def release(self) -> None:
        """End it: nothing goes on in the name of this holder."""
        if self._lock.held:
            self._path(self.name).unlink(missing_ok=True)
            self._lock.release()

    def is_alive(self, name: str) -> bool:
        """Say whether a holder, this one or another, is at work; what a dead one left is removed."""
        if name == self.name:
            return self._lock.held
        path = self._path(name)
        if not path.exists():
            return False
        other = FileLock(path)
        if not other.acquire():
            return True
        path.unlink(missing_ok=True)
        other.release()
        return False

    def _path(self, name: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{name}")
