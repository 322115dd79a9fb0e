"""What a person typed and a runner read is in no file, log, figure or process that remains."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from mana.device.desk import Device
from mana.domain.missions import InputRef
from mana.hub.runner.keys import PRIVATE_FILE
from mana.hub.runner.workers import ProcessWorker, ProcessWorkers
from mana.planning.ports import ModelReply, ModelRequest
from mana.protocol.messages import AuditRow
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected, database_text
from tests.device.household import Household, household, operations
from tests.runner.processes import OPEN_PROGRAM, gone
from tests.runner.world import CANARY, World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

READABLE = f"""
import mana.hub.runner.app as app
from mana.hub.runner.__main__ import main
from mana.hub.runner.workers import ProcessWorkers

app.forbid_dumps = lambda: None
app.ProcessWorkers = lambda: ProcessWorkers({OPEN_PROGRAM!r})
raise SystemExit(main())
"""
"""The runner as it is, but that its memory can be read: it forbids that to everybody of its user."""
SOURCES = Path(__file__).parents[2] / "src"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


@dataclass
class Canaries:
    """Random strings, each typed into one place."""

    words: dict[str, str] = field(default_factory=dict)

    def __call__(self, place: str) -> str:
        return self.words.setdefault(place, f"canary{secrets.token_hex(12)}")

    def in_bytes(self, raw: bytes | mmap.mmap) -> set[str]:
        """Return the places whose text is in these bytes, as UTF-8 or as wide characters."""
        found = set()
        for place, word in self.words.items():
            forms = (word.encode(), word.encode("utf-16-le"), word.encode("utf-32-le"))
            if any(raw.find(form) >= 0 for form in forms):
                found.add(place)
        return found


class Remaining:
    """A real runner, in processes of its own; what it says is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = b""
        self.port = 0
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said += line
            if found := re.search(rb"listens on port (\d+)", line):
                self.port = int(found[1])

    async def listening(self) -> None:
        while not self.port:  # noqa: ASYNC110 - another process can set no event here
            await asyncio.sleep(0.05)

    async def tick(self) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            answer = await http.post(
                "/internal/tick", headers={"x-service-key": "service"}, timeout=60
            )
        assert answer.json()["errors"] == []

    async def figures(self) -> bytes:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            return (await http.get("/metrics")).content

    def family(self) -> list[int]:
        """Return the process ids of the runner and all that it made and that still live."""
        found = [self.process.pid]
        for pid in found:
            # A worker may end while it is looked at.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    async def at_rest(self) -> list[int]:
        """Return runner and warm parent, once no worker is left."""
        while len(found := self.family()) > 2:  # noqa: ASYNC110 - of others' children nobody tells
            await asyncio.sleep(0.05)
        assert len(found) == 2
        return found

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def runner_apart(home: Household) -> AsyncIterator[Remaining]:
    """Lend the household's runner as a process that ticks when it is told."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCES),
        "MANA_HOME": str(home.folder),
        "MANA_RUNNER_DATABASE_URL": home.database.runner_url,
        "MANA_RUNNER_PORT": "0",
        "MANA_SERVICE_KEY": "service",
        "TICK_ENABLED": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        READABLE,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    runner = Remaining(process)
    try:
        await runner.listening()
        yield runner
    finally:
        await runner.end()


def files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            yield path


def found_in_files(folder: Path, canaries: Canaries) -> dict[str, set[str]]:
    """Return by file the canaries that its bytes hold."""
    found = {}
    for path in files(folder):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            if places := canaries.in_bytes(raw):
                found[str(path.relative_to(folder))] = places
    return found


def memory(pid: int) -> Iterable[bytes]:
    """Return the readable memory of a process, region by region."""
    regions = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        if "r" in rights and "[v" not in line:
            low, _, high = span.partition("-")
            regions.append((int(low, 16), int(high, 16)))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        for low, high in regions:
            with contextlib.suppress(OSError):
                file.seek(low)
                yield file.read(high - low)


async def typed(home: Household, canaries: Canaries) -> tuple[Device, str, list[bytes]]:
    """Type canaries into every place that a mission reads; return it, and the granted keys."""
    ada = await home.person()
    text = f"- [ ] {canaries('note')} by 2027-01-15\n- [ ] Call back"
    note = await ada.create("notes", {"title": canaries("note title"), "content": text})
    task = await ada.create("tasks", {"title": canaries("task")})
    agent = await ada.create_agent(
        canaries("agent"), role=canaries("role"), memory=canaries("memory")
    )
    inputs = [InputRef("notes", "notes", note), InputRef("todo", "tasks", task)]
    mission = await ada.create_mission(
        canaries("mission"),
        canaries("objective"),
        concept=canaries("concept"),
        agent_id=agent,
        inputs=inputs,
    )
    await ada.grant(mission)
    book = operations(ada).opened.book
    keys = [(await book.record_secret(*name))[0] for name in (("notes", note), ("tasks", task))]
    return ada, mission, [*keys, (await book.mission_secret(mission))[0]]


async def run(ada: Device, mission: str, runner: Remaining) -> None:
    await ada.run_now(mission)
    await runner.tick()
    await ada.sync_now()
    assert (await ada.mission(mission)).runs[0].state == "done"


@linux_only
@pytest.mark.slow
async def test_nothing_remains_of_what_was_typed(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """After runs that read every kind of text, it is in no file of the database (tables, log of
    changes, messages), of hub, runner or device, in no figure, in no log and in no process that
    remains; nor are the keys that opened it."""
    canaries = Canaries()
    async with household(database) as home, runner_apart(home) as runner:
        ada, mission, keys = await typed(home, canaries)
        await run(ada, mission, runner)
        first, *_ = await ada.inbox()
        await ada.reject(first.step_id, reason=canaries("feedback"))
        await ada.sync_now()
        await run(ada, mission, runner)
        assert len({row.table_name for row in (await readings(ada))}) == 7

        own, *others = await runner.at_rest()
        private = (home.runner_settings().secrets_dir / PRIVATE_FILE).read_text().split()
        secret = max(private, key=len).encode()
        for pid in (own, *others):
            seen = False
            for raw in memory(pid):
                seen = seen or b"mana" in raw
                assert canaries.in_bytes(raw) == set()
                assert not any(key in raw for key in keys)
                assert pid == own or secret not in raw
            assert seen
        assert canaries.in_bytes(await runner.figures()) == set()
        assert canaries.in_bytes(runner.said) == set()
        said = capfd.readouterr()
        assert canaries.in_bytes((said.out + said.err).encode()) == set()

        async with connected(database.owner_url) as owner:
            await owner.execute("checkpoint")
            folder = Path(await owner.fetchval("show data_directory"))
        assert found_in_files(folder, canaries) == {}
        assert found_in_files(home.folder, canaries) == {}
        ids = Canaries({"account": ada.account_id})
        assert found_in_files(folder / "base", ids), "the search finds what is there"
        assert found_in_files(folder / "pg_wal", ids), "the search finds what is there"


async def readings(ada: Device) -> list[AuditRow]:
    return (await operations(ada).opened.hub.audit()).rows


@linux_only
async def test_a_worker_serves_one_account_and_ends(database: Database) -> None:
    """Each account has a process of its own, which is gone when the runner is closed."""
    pids: list[int] = []

    class Noting(ProcessWorkers):
        async def start(self) -> ProcessWorker:
            worker = await super().start()
            pids.append(worker.pid)
            return worker

    async with world(database) as made:
        bob = World(database, made.served, await made.served.sign_up("bob"), made.home)
        for each in (made, bob):
            await each.ready()
            await each.run_now()
        async with made.runner(workers=Noting()) as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 2)
    assert len(set(pids)) == 2
    await gone(*pids)


async def test_exceptions_carry_no_text(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """A defect that quotes what was opened ends as a word: not in the log, the ledger, a figure."""

    class Quoting(ScriptedModel):
        endpoint = "rules:offline"

        async def complete(self, request: ModelRequest) -> ModelReply:
            text = " ".join(message.content for message in request.messages)
            assert CANARY in text
            raise RuntimeError(text)

    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(lambda: Quoting([])) as runner:
            stats = await runner.scheduler.tick()
            figures = runner.metrics.text().decode()
        line = (await made.status()).occurrences[0]
        assert (line.state, line.reason) == ("failed", "internal")
        assert stats.errors
        said = capfd.readouterr()
        for text in (
            *stats.errors,
            figures,
            said.out,
            said.err,
            await database_text(database.owner_url),
        ):
            assert CANARY not in text
