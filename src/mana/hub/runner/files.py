"""Files of the runner: written whole or not at all, by one process at a time, and destroyed.

What is in them must outlive a crash at any moment, and the database.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 4_096


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes of this machine wait for; a crash gives it back."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_secret(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file of mode 0600 at once or not at all. `keep`: the first writer wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            # A hard link fails if the name is taken, which a rename does not.
            try:
                os.link(draft, path)
            except FileExistsError:
                return
        else:
            os.replace(draft, path)  # noqa: PTH105 - draft and path share the folder
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line, without its end, to a file of mode 0600: on the disk on return, or not there.

    What a crash left unfinished at the end is cut off first. The caller holds the lock.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            end = _end_of_lines(file)
            try:
                file.truncate(end)
                file.seek(end)
                raw = line + b"\n"
                if file.write(raw) != len(raw):
                    raise OSError(errno.ENOSPC, "no space left on device")
                os.fdatasync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    finally:
        if is_new:
            sync_folder(path.parent)


def _end_of_lines(file: io.FileIO) -> int:
    """Return where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        found = (file.read(end - start) or b"").rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def overwrite(path: Path) -> None:
    """Put zeros where the file's bytes are, as far as the file system writes in place."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())


def is_overwritten(path: Path) -> bool:
    """Say whether a file holds nothing but zeros: it was to be removed."""
    found = path.read_bytes()
    return bool(found) and not any(found)


def remove(path: Path) -> None:
    """Remove a file, for good."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder be on the disk as they are now."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
