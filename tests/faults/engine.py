"""An installation whose runners work on thousands of runs while everything around them breaks.

Several people with missions, a hub in this process, runners as processes, PostgreSQL as people run
it, a model's endpoint with moods, and a line to the database that is cut. `Faults` breaks things
by a seed; `after.py` says what must be true whatever happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from mana.crypto.runners import RunnerPublicKey
from mana.domain.grants import GrantHeader
from mana.hub.db.urls import url_as
from mana.models.settings import load_models
from mana.protocol.messages import SetWork, WorkState
from mana.testing.endpoints import model_server
from mana.testing.postgres import Database, connected
from mana.testing.work import limits_of, next_word, signed_work
from tests.faults.processes import FULL_S, ROOT, Postgres, installation
from tests.faults.wire import BadLine, MoodyModel, bad_line
from tests.hub.client import Person, Served, served_hub
from tests.runner.world import World, leave_runner_key, now_ms

RULES = "rules:offline"
PEOPLE = ("ada", "bob", "cleo")
STEADY = ("rules-0", "rules-1", "net-0", "fall-0")
"""Missions that nobody touches: each of their occurrences must come to an end."""
RESTLESS = ("paused-0", "stopped-0", "revoked-0", "edited-0")
CLOCKED = "clocked-0"
CAP = 400_000
AGENTS: Mapping[str, tuple[str, int | None]] = {
    "agent-rules": ("rules", None),
    "agent-restless": ("rules", None),
    "agent-net": ("net", None),
    "agent-fall": ("fall", CAP),
}
"""By id the model and the cap of tokens."""
LEASE_S = 2
CLOCK_JUMP_S = 2 * 86_400
MODELS = """
[[models]]
alias = "rules"
url = "rules:offline"

[[models]]
alias = "net"
url = "{url}"
model = "m"
prompt_price = 1
completion_price = 3
timeout_s = 2

[[models]]
alias = "fall"
url = "{url}"
model = "m"
prompt_price = 1
completion_price = 3
timeout_s = 2
fallback = ["rules"]
"""
WATCH = (Path(__file__).parent / "watch.sql").read_text()
QUEUE = """
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
select $1, $2, $3, $4, at, 'manual', 'queued', clock_timestamp() + n * $6::interval / $5
  from (select n, date_trunc('milliseconds', now()) - interval '1 day' + n * interval '7 ms' as at
          from generate_series(1, $5::int) as n) k
"""
HURRY = """
with hurried as (
  update mana_ai.occurrences set due_at = clock_timestamp()
   where state = 'queued' and kind = 'manual' and due_at > clock_timestamp() and ($1 or tries > 0))
select pg_notify('mana_due', '')
"""
OPEN = """
select count(*) from mana_ai.occurrences
 where state = 'leased' or state = 'queued'
   and (kind = 'manual' or tries > 0 or due_at < clock_timestamp() + interval '1 second')
"""
LATE_TURNS = """
select count(*) from mana_ai.occurrences o
  left join mana_ai.account_work w on w.account_id = o.account_id
 where o.state = 'queued' and (w.next_due is null or w.next_due > o.due_at)
"""


@dataclass(frozen=True)
class Scale:
    """How much is done: people, occurrences of each of their missions, runners, seconds of faults."""

    people: int
    occurrences: int
    runners: int
    seconds: float


@dataclass
class RunnerProcess:
    """A runner process that is killed and started again; `said` is what it told of failures."""

    variables: dict[str, str]
    program: tuple[str, ...] = ("-m", "mana.hub.runner")
    process: asyncio.subprocess.Process | None = None
    lives: int = 0
    said: Counter[str] = field(default_factory=Counter)
    family: set[tuple[int, str]] = field(default_factory=set)
    """Every process that was ever seen below it: its id and the moment of its start."""
    memory_kib: list[int] = field(default_factory=list)
    """Its private memory in its present life, from look to look."""

    async def start(self) -> None:
        """Start it and return when it listens; while the database is away it ends at once."""
        async with asyncio.timeout(FULL_S):
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
        async with asyncio.timeout(FULL_S):
            await self._over()
        return self.process.returncode

    async def _over(self) -> None:
        assert self.process is not None
        await self.process.wait()
        await self._drained

    def look(self) -> list[int]:
        """Note what runs below it and its own memory; return the workers."""
        parents = dict(processes())
        below = [pid for pid, (parent, _) in parents.items() if parent == self.pid]
        workers = [pid for pid, (parent, _) in parents.items() if parent in below]
        for pid in (*below, *workers):
            self.family.add((pid, parents[pid][1]))
        with contextlib.suppress(OSError):
            self.memory_kib.append(private_kib(self.pid))
        return workers

    def left(self) -> list[int]:
        """Return which of its processes are still there."""
        now = {(pid, begun) for pid, (_, begun) in processes()}
        return [pid for pid, begun in self.family if (pid, begun) in now]


def processes() -> list[tuple[int, tuple[int, str]]]:
    """Return every process of the machine that has not ended: its parent, and when it began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found.append((int(entry.name), (int(fields[1]), fields[19])))
    return found


def private_kib(pid: int) -> int:
    """Return the resident memory of a process that is in no file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@dataclass
class Party:
    """Everything that takes part."""

    scale: Scale
    dice: random.Random
    server: Postgres
    database: Database
    home: Path
    served: Served
    worlds: dict[str, World]
    runners: list[RunnerProcess]
    line: BadLine
    model: MoodyModel
    url: str
    headers: dict[str, GrantHeader] = field(default_factory=dict)
    keys: dict[str, RunnerPublicKey] = field(default_factory=dict)
    """The runner's, which draws a new one where its clock leaves the age of the last in doubt."""
    done: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault happened."""
    late_turns: int = 0
    queued: dict[tuple[str, str], int] = field(default_factory=dict)

    async def granted(self, who: str, mission: str) -> None:
        """Grant a mission, and keep the header and the key that it names."""
        self.tell_time()
        here = self.worlds[who]
        header = await here.grant(mission, endpoints=sorted((RULES, self.url)))
        self.headers[header.grant_id] = header
        key = await here.runner_key()
        self.keys[key.key_id()] = key

    def tell_time(self) -> None:
        """Let the hub's clock stand where the machine's does."""
        self.served.clock.now_ms = now_ms()

    async def execute(self, query: str, *values: object) -> object:
        """Run a statement as the owner and return the first value."""
        async with connected(self.database.owner_url) as owner:
            return await owner.fetchval(query, *values)

    async def hurry(self, *, everything: bool = False) -> None:
        """Let what waits for another try be due at once; `everything`: also what was never tried."""
        await self.execute(HURRY, everything)


@contextlib.asynccontextmanager
async def party(scale: Scale, seed: int) -> AsyncIterator[Party]:
    """Lend a party in which everything is ready and no runner runs yet; all ends with it."""
    dice = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        server, database, _ = await stack.enter_async_context(installation(hubs=0))
        model = MoodyModel(random.Random(dice.random()))
        endpoint = await stack.enter_async_context(model_server(model))
        home = server.instance.base.parent / "home"
        (home / "models.toml").write_text(MODELS.format(url=endpoint.url))
        served = await stack.enter_async_context(
            served_hub(database, home=home, models=load_models(home, {}, with_keys=False))
        )
        served.clock.now_ms = now_ms()
        worlds = {}
        for name in PEOPLE[: scale.people]:
            person: Person = await served.sign_up(name)
            worlds[name] = World(database, served, person, home)
        leave_runner_key(worlds["ada"].settings())
        folder = home.parent / "line"
        folder.mkdir()
        socket_dir = server.instance.socket_dir
        assert socket_dir is not None
        line = await stack.enter_async_context(
            bad_line(socket_dir, folder, random.Random(dice.random()))
        )
        runners = [_runner(number, database, home, folder) for number in range(scale.runners)]
        made = Party(
            scale, dice, server, database, home, served, worlds, runners, line, model, endpoint.url
        )
        async with connected(database.owner_url) as owner:
            await owner.execute(WATCH)
        for name in worlds:
            await _missions(made, name)
        try:
            yield made
        finally:
            for runner in runners:
                if runner.process is not None and runner.process.returncode is None:
                    runner.signal(signal.SIGCONT)
                    await runner.kill()


def _runner(number: int, database: Database, home: Path, folder: Path) -> RunnerProcess:
    """Return the first on a good line, the second on the bad one, the third with a mad clock."""
    url = url_as(database.owner_url, "mana_runner")
    if number % 3 == 1:
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
    if number % 3 != 2:
        return RunnerProcess(variables)
    variables["PYTHONPATH"] += f":{ROOT}"
    return RunnerProcess(variables, ("-m", "tests.faults.jumping_runner", str(CLOCK_JUMP_S)))


async def _missions(made: Party, who: str) -> None:
    """Make somebody's agents and missions, grant them, and queue what is to be worked on."""
    here = made.worlds[who]
    await here.note("note-1")
    for agent, (model, cap) in AGENTS.items():
        await here.agent(agent, model=model, maxTokensPerDay=cap, maxConcurrentMissions=8)
    for mission in (*STEADY, *RESTLESS, CLOCKED):
        agent = agent_of(mission)
        options: dict[str, Any] = {}
        if mission == CLOCKED:
            options = {"cadence": {"kind": "interval", "everyMinutes": 5}, "ifMissed": "all"}
        await here.mission(
            mission,
            agentId=agent,
            title=f"title of {who}/{mission};",
            stamped_ms=now_ms() - 7_200_000 if mission == CLOCKED else None,
            **options,
        )
        await made.granted(who, mission)
    async with connected(made.database.owner_url) as owner:
        for mission in (*STEADY, *RESTLESS):
            await owner.execute(
                QUEUE,
                *(here.ada.space, mission, here.ada.account.account_id, agent_of(mission)),
                *(made.scale.occurrences, timedelta(seconds=made.scale.seconds)),
            )
            made.queued[here.ada.space, mission] = made.scale.occurrences


def agent_of(mission: str) -> str:
    """Return the agent that a mission has for its own or shares with others of its kind."""
    kind = mission.partition("-")[0]
    if mission in RESTLESS:
        return "agent-restless"
    return f"agent-{kind}" if f"agent-{kind}" in AGENTS else "agent-rules"


Fault = Callable[[], Awaitable[None]]


class Faults:
    """What can go wrong; each does its harm and mends it, so that all can happen again."""

    def __init__(self, made: Party) -> None:
        self._made = made
        self._dice = made.dice
        self.of_machines: Sequence[Fault] = (
            self.kill_runner,
            self.kill_workers,
            self.freeze_runner,
            self.kill_postgres,
            self.end_connections,
            self.cancel_statements,
            self.cut_line,
        )
        self.of_people: Sequence[Fault] = (
            self.pause_agent,
            self.pause_mission,
            self.stop_mission,
            self.revoke,
            self.edit,
            self.stop_account,
            self.stop_hub,
        )

    async def mend(self) -> None:
        """Undo what a fault of people has left where it was cut off itself."""
        made = self._made
        made.tell_time()
        await made.execute("update mana_ai.hub_limits set stopped_at = null returning 1")
        for here in made.worlds.values():
            await self._work(here, stopped=False)
            await here.agent("agent-restless", maxConcurrentMissions=8)
            await here.edit_mission("paused-0", state="active")

    def _runner(self) -> RunnerProcess:
        # The first one lives on, so that its memory can be followed.
        return self._dice.choice(self._made.runners[1:])

    def _world(self) -> World:
        self._made.tell_time()
        return self._dice.choice(list(self._made.worlds.values()))

    async def kill_runner(self) -> None:
        """Kill a runner in the middle of its runs, and start it again."""
        victim = self._runner()
        await victim.kill()
        await victim.start()

    async def kill_workers(self) -> None:
        """Kill some workers of a runner, or what makes them."""
        for pid in self._dice.choice(self._made.runners).look():
            if self._dice.random() < 0.7:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def freeze_runner(self) -> None:
        """Let a runner sleep past its leases, and wake."""
        victim = self._dice.choice(self._made.runners)
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(LEASE_S + 0.7)
        finally:
            victim.signal(signal.SIGCONT)

    async def kill_postgres(self) -> None:
        """Kill the server of the database, and start it again."""
        await self._made.server.kill()
        await self._made.server.start()

    async def end_connections(self) -> None:
        """End connections of runners in the middle of what they do."""
        await self._backends("pg_terminate_backend")

    async def cancel_statements(self) -> None:
        """Let statements of runners fail, for a while."""
        for _ in range(30):
            await self._backends("pg_cancel_backend")
            await asyncio.sleep(0.01)

    async def _backends(self, function: str) -> None:
        await self._made.execute(
            f"select count({function}(pid)) from pg_stat_activity"
            " where usename = 'mana_runner' and state <> 'idle' and random() < 0.5"
        )

    async def cut_line(self) -> None:
        """Let messages of one runner to its database be lost, and answers to it, for a while."""
        self._made.line.every = self._dice.choice((10, 40, 150))
        await asyncio.sleep(1)
        self._made.line.every = None
        await self._made.line.cut()

    async def pause_agent(self) -> None:
        """Pause an agent and wake it."""
        here = self._world()
        await here.agent("agent-restless", state="paused", maxConcurrentMissions=8)
        await asyncio.sleep(0.3)
        await here.agent("agent-restless", maxConcurrentMissions=8)

    async def pause_mission(self) -> None:
        """Pause a mission and go on with it."""
        here = self._world()
        await here.edit_mission("paused-0", state="paused")
        await asyncio.sleep(0.3)
        await here.edit_mission("paused-0", state="active")

    async def edit(self) -> None:
        """Change a mission's caps and title while it runs."""
        here = self._world()
        await here.edit_mission("edited-0", maxTokensPerDay=self._dice.choice((0, 50_000, None)))

    async def stop_mission(self) -> None:
        """Stop what runs and waits of a mission."""
        here = self._world()
        path = f"/api/v1/spaces/{here.ada.space}/missions/stopped-0/stop"
        answer = await here.ada.call("POST", path)
        assert answer.status_code == 200, answer.text

    async def revoke(self) -> None:
        """End a grant, and give another."""
        made = self._made
        here = self._world()
        newest = [
            header
            for header in made.headers.values()
            if header.mission_id == "revoked-0" and header.space_id == here.ada.space
        ][-1]
        await here.revoke(newest)
        await asyncio.sleep(0.2)
        await made.granted(here.ada.account.login, "revoked-0")

    async def stop_account(self) -> None:
        """Stop all work of an account, and let it go on."""
        here = self._world()
        await self._work(here, stopped=True)
        await asyncio.sleep(0.3)
        await self._work(here, stopped=False)

    @staticmethod
    async def _work(here: World, *, stopped: bool) -> None:
        path, asked = "/api/v1/me/ai-work", SetWork(stopped=True)
        while True:
            if not stopped:
                found = await here.ada.call("GET", path)
                state = msgspec.json.decode(found.content, type=WorkState)
                limits = replace(limits_of(state), stopped=False)
                asked = signed_work(here.ada.account, next_word(here.ada.account, state, limits))
            answer = await here.ada.call("PUT", path, asked)
            if answer.status_code != 409:
                break
        assert answer.status_code == 200, answer.text

    async def stop_hub(self) -> None:
        """Stop all work of the hub, and let it go on."""
        await self._made.execute(
            "update mana_ai.hub_limits set stopped_at = clock_timestamp() returning 1"
        )
        await self._made.execute("select pg_notify('mana_stop', '')")
        await asyncio.sleep(0.3)
        await self._made.execute("update mana_ai.hub_limits set stopped_at = null returning 1")
