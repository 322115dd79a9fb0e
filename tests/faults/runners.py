"""Runner processes that are killed, frozen and ended, each on a line and a clock of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mana.hub.db.urls import url_as
from mana.testing.postgres import Database
from tests.faults.processes import ROOT

LEASE_S = 2
PATIENCE_S = 120.0
"""How long a process may take to come up, or to end, on a machine that does much else."""
CLOCK_JUMP_S = 2 * 86_400
IS_ON_BAD_LINE = (False, True, True, False)
HAS_MAD_CLOCK = (False, True, False, True)
"""By the number of a runner: the first is well, the second has both against it, and so on."""


@dataclass
class RunnerProcess:
    """A runner process that is killed and started again; `said` is what it told of failures."""

    variables: dict[str, str]
    program: tuple[str, ...] = ("-m", "mana.hub.runner")
    process: asyncio.subprocess.Process | None = None
    lives: int = 0
    said: Counter[str] = field(default_factory=Counter)
    _drained: asyncio.Task[None] | None = None
    family: set[tuple[int, str]] = field(default_factory=set)
    """Every process that was ever seen below it: its id and the moment of its start."""
    memory_kib: list[int] = field(default_factory=list)
    """Its private memory in its present life, from look to look."""

    async def start(self) -> None:
        """Start it and return when it listens; while the database is away it ends at once."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._started():  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # another process has to come up first

    async def _started(self) -> bool:
        self.memory_kib.clear()
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self.program),
            env={"PATH": os.environ["PATH"], **self.variables},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if b"listens" in line:
                self.lives += 1
                self._drained = asyncio.create_task(self._drain(self.process.stdout))
                return True
        await self.process.wait()
        return False

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace")
            if "_failed" in text and "kind=" in text:  # a defect, and not the world's
                self.said[text.partition("] ")[2].strip()] += 1

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.look()
        self.signal(signal.SIGKILL)
        await self._over()

    async def stop(self) -> int | None:
        """Let it end by itself; return its exit code."""
        if self.process is None or self.process.returncode is not None:
            return None
        self.look()
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await self._over()
        return self.process.returncode

    async def _over(self) -> None:
        assert self.process is not None
        await self.process.wait()
        if self._drained is not None:
            await self._drained

    def look(self, seen: Mapping[int, tuple[int, str]] | None = None) -> list[int]:
        """Note what runs below it and its own memory; return the workers. `seen`: `processes()`."""
        parents = processes() if seen is None else seen
        below = [pid for pid, (parent, _) in parents.items() if parent == self.pid]
        workers = [pid for pid, (parent, _) in parents.items() if parent in below]
        for pid in (*below, *workers):
            self.family.add((pid, parents[pid][1]))
        with contextlib.suppress(OSError):
            self.memory_kib.append(private_kib(self.pid))
        return workers

    def left(self) -> list[int]:
        """Return which of its processes are still there."""
        now = {(pid, begun) for pid, (_, begun) in processes().items()}
        return [pid for pid, begun in self.family if (pid, begun) in now]


def processes() -> dict[int, tuple[int, str]]:
    """Return every process of the machine that has not ended: its parent, and when it began."""
    found: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry.name)] = int(fields[1]), fields[19]
    return found


def private_kib(pid: int) -> int:
    """Return the resident memory of a process that is in no file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def runner_process(number: int, database: Database, home: Path, folder: Path) -> RunnerProcess:
    """Return a runner that does not run yet. `folder`: where the bad line to the server lies."""
    url = url_as(database.owner_url, "mana_runner")
    if IS_ON_BAD_LINE[number]:
        url = url_as(f"postgresql://x@/mana?host={folder}", "mana_runner")
    variables = {
        "PYTHONPATH": str(ROOT / "src"),
        "MANA_HOME": str(home),
        "MANA_RUNNER_DATABASE_URL": url,
        "MANA_RUNNER_PORT": "0",
        "MANA_RUNNER_LEASE_S": str(LEASE_S),
        "MANA_RUNNER_HEARTBEAT_S": "1",
        "MANA_RUNNER_CONCURRENCY": "16",
        "TICK_INTERVAL_MS": "200",
    }
    if not HAS_MAD_CLOCK[number]:
        return RunnerProcess(variables)
    variables["PYTHONPATH"] += f":{ROOT}"
    return RunnerProcess(variables, ("-m", "tests.faults.jumping_runner", str(CLOCK_JUMP_S)))
