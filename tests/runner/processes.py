"""What the system tells of processes: tests of workers look there, and not at what code says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

READABLE = """
import mana.hub.runner.isolation as isolation

isolation.forbid_dumps = lambda: None
from mana.hub.runner.zygote import main

raise SystemExit(main())
"""
"""The warm parent as it is, but that a test of the same user can look into its family."""
OPEN_PROGRAM = ("-P", "-c", READABLE)


def is_there(pid: int) -> bool:
    """Say whether anything of a process is left, were it a zombie."""
    return Path(f"/proc/{pid}").exists()


def has_ended(pid: int) -> bool:
    """Say whether a process holds nothing any more; whoever is to reap it may not have yet."""
    try:
        return status(pid, "State")[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def gone(*pids: int) -> None:
    """Return when these processes have ended; orphans are reaped by the system, or not at all."""
    while not all(has_ended(pid) for pid in pids):  # noqa: ASYNC110 - of others' children nobody tells
        await asyncio.sleep(0.01)


def born(pid: int) -> tuple[int, str]:
    """Return a process as it is told from a later one of the same id: with when it began."""
    return pid, said_by(pid, "stat").decode().rpartition(")")[2].split()[19]


def end_all(family: Iterable[tuple[int, str]]) -> None:
    """Kill what is left of these processes, stopped ones too, and nothing that came after them."""
    for pid, began in family:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if born(pid) == (pid, began):
                os.kill(pid, signal.SIGKILL)


def status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def descriptors(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process is."""
    folder = Path(f"/proc/{pid}/fd")
    return {int(one.name): str(one.readlink()) for one in folder.iterdir()}


def said_by(pid: int, name: str) -> bytes:
    """Return what the system tells of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def owner(pid: int) -> int:
    """Return whom a process's memory belongs to: its user, or root where it may not be read."""
    return Path(f"/proc/{pid}/mem").stat().st_uid


def private_kib(pid: int) -> int:
    """Return the memory that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
