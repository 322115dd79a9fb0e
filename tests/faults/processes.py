"""Real processes that a test may kill: PostgreSQL as people run it, and hubs on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mana.hub.db import ensure_database, migrate
from mana.hub.postgres import Instance, find_binaries
from mana.testing.postgres import Database

ROOT = Path(__file__).parents[2]


class Postgres:
    """A server with the settings that a person gets: what it has acknowledged is on disk."""

    def __init__(self, folder: Path) -> None:
        self.instance = Instance(find_binaries(os.environ), folder / "postgres")

    async def start(self) -> None:
        await asyncio.to_thread(self.instance.ensure)

    async def kill(self) -> None:
        """End the server at once, as a crash does; its other processes notice and follow."""
        pid = self.instance.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        await asyncio.to_thread(self.instance.stop)

    async def database(self) -> Database:
        """Make the hub's database."""
        made = Database("mana", self.instance.url("mana"))
        await ensure_database(made.owner_url)
        await migrate(made.owner_url)
        return made


@dataclass
class HubProcess:
    """`mana hub` on a database, at one port for all of its lives."""

    database: Database
    home: Path
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    lives: int = field(default=0)
    failures: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and return when it listens; while the database is away it may end at once."""
        while not await self._started():  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # another process has to come up first

    async def _started(self) -> bool:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "src"),
            "MANA_HOME": str(self.home),
            "MANA_HUB_PORT": str(self.port),
            **self.database.environment,
        }
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mana.cli.main", "hub"),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith(b"mana hub: "):
                self.port = int(line.rpartition(b":")[2])
                self.lives += 1
                self._drained = asyncio.create_task(self._drain(self.process.stdout))
                return True
        await self.process.wait()
        return False

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        """Read what it logs, and keep what it says of its own failures."""
        async for line in stream:
            if b"error" in line:
                self.failures.append(line.decode(errors="replace").rstrip())

    async def kill(self) -> None:
        """End it in the middle of whatever it does."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._drained

    async def stop(self) -> None:
        """Let it end by itself."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        await self.process.wait()
        await self._drained


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mana-faults-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # the server may run under another account
        (folder / "home").mkdir(mode=0o700)
        yield folder


@contextlib.asynccontextmanager
async def installation(hubs: int) -> AsyncIterator[tuple[Postgres, Database, list[HubProcess]]]:
    """Lend a server and hubs on it, none of which runs yet but the server; all end with us."""
    with _folder() as folder:
        home = folder / "home"
        server = Postgres(folder)
        await server.start()
        try:
            database = await server.database()
            made = [HubProcess(database, home) for _ in range(hubs)]
            try:
                yield server, database, made
            finally:
                for hub in made:
                    await hub.stop()
        finally:
            await server.stop()
