"""What the operating system says about a process id that we read from a file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def is_zombie(pid: int) -> bool:
    """Answer whether the process has ended, but its parent has not noticed."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return status.read_text().rpartition(")")[2].split()[0] == "Z"
        except (OSError, IndexError):
            return False
    return _ps(pid, "stat=").startswith("Z")


def is_server_of(pid: int, data: Path) -> bool:
    """Answer whether the process is alive and is a PostgreSQL server on this data folder.

    A bare process id proves nothing: it may have been given to another program since.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if Path("/proc/self/cmdline").exists():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
    else:
        words = _ps(pid, "args=").split()
    return os.fspath(data) in words and any(Path(word).name == "postgres" for word in words[:1])


def _ps(pid: int, form: str) -> str:
    try:
        return subprocess.run(
            ["ps", "-o", form, "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return ""
