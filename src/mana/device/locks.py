"""Locks between processes of one machine: held by a file, and gone with the process."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_WAIT_S: Final = 0.05


class FileLock:
    """An exclusive lock on a file, which only one holder on this machine can have."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Say whether this holder has the lock."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lock if it is free, and say whether it is held now."""
        if self._file is not None:
            return True
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Hold a file's lock, waiting for whoever has it."""
    lock = FileLock(path)
    while not lock.acquire():  # noqa: ASYNC110 - another process can set no event here
        await asyncio.sleep(_WAIT_S)
    try:
        yield
    finally:
        lock.release()
