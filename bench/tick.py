"""What the mission engine costs, beside what PostgreSQL does of it, in one run.

`python -m bench tick [--quick] [--only=due,slow,few,runners,nothing,zero]`. Real hub and runner
processes, a real PostgreSQL; `synchronous_commit` is off here, as in the figures of the system
that is compared with. Aims are those of docs/scaling.md.

due      missions that are all due at once, each with agent, grant, five notes, audit and sealed
         write-back; the model answers at once
slow     the same with a model that takes 100 ms for each call, two calls for each run
few      what a run costs with that model where one, 16 and 64 are under way
runners  two and four runners on one database, beside one
nothing  a pass with nothing due, over 10,000 and 100,000 missions and a log of a million rows
zero     the snapshots of 10,000 missions, each changed ten times, made from nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import world
from bench.missions import crews, fill_missions, runner_key
from bench.sync import _copy_rows
from bench.world import Client, Hub, postgres_cpu_s, running_hub
from mana.hub.db.urls import url_as
from mana.hub.runner.rebuilding import rebuild_all
from mana.testing.postgres import Cluster, Database, connected, opened_tenancy, run_apart

PARTS: Final = ("due", "slow", "few", "runners", "nothing", "zero")
RULES: Final = "rules:offline"
SERVICE_KEY: Final = "bench"
_HERE: Final = Path(__file__).resolve().parent.parent
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    due: tuple[int, ...]
    accounts: int
    slow: int
    few: tuple[tuple[int, int], ...]
    """How many under way, and of how many missions."""
    rounds: int
    nothing: tuple[int, ...]
    log_rows: int
    zero: int


FULL: Final = Scale(
    (100, 1_000),
    10,
    1_000,
    ((1, 40), (16, 320), (64, 640)),
    3,
    (10_000, 100_000),
    1_000_000,
    10_000,
)
QUICK: Final = Scale(
    (50, 200), 4, 200, ((1, 10), (16, 80), (64, 160)), 2, (1_000, 10_000), 50_000, 2_000
)


def main(options: Sequence[str] = ()) -> None:
    """Measure and print tables."""
    scale = QUICK if "--quick" in options else FULL
    chosen = [option.removeprefix("--only=") for option in options if option.startswith("--only=")]
    parts = chosen[0].split(",") if chosen else PARTS
    run: dict[str, Callable[[Cluster, Scale], None]] = {
        "due": _due,
        "slow": _slow,
        "few": _few,
        "runners": _runners,
        "nothing": _nothing,
        "zero": _zero,
    }
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with world.durable_cluster(
        synchronous_commit="off", shared_preload_libraries="pg_stat_statements"
    ) as cluster:
        for part in parts:
            run[part](cluster, scale)


# A runner, and what it takes


@dataclass
class RunnerProcess:
    """A runner process."""

    process: subprocess.Popen[bytes]
    port: int

    def tick(self) -> float:
        """Ask for one pass and return its seconds."""
        client = Client(self.port)
        request = client.prepared("POST", "/internal/tick")
        request = request.replace(b"content-type:", b"x-service-key: bench\r\ncontent-type:", 1)
        began = time.perf_counter()
        status, answer = client.send(request)
        seconds = time.perf_counter() - began
        client.close()
        assert status == 200, answer[:300]
        return seconds


@contextlib.contextmanager
def running_runner(
    database: Database, home: str, *, ticks: bool, **variables: str
) -> Iterator[RunnerProcess]:
    """Lend a runner process on a database."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mana.hub.runner"],
        cwd=_HERE,
        env={
            **os.environ,
            "MANA_HOME": home,
            "MANA_RUNNER_DATABASE_URL": url_as(database.owner_url, "mana_runner"),
            "MANA_RUNNER_PORT": "0",
            "MANA_SERVICE_KEY": SERVICE_KEY,
            "MANA_RUNNER_CONCURRENCY": "160",
            "TICK_ENABLED": "true" if ticks else "false",
            **variables,
        },
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield RunnerProcess(process, int(process.stdout.readline().split()[-1]))
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@contextlib.contextmanager
def _model(delay_ms: int) -> Iterator[str]:
    """Lend a model endpoint and return its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.model", str(delay_ms)],
        cwd=_HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


class Watch:
    """Follows memory and CPU of a process and all that it starts."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._cpu: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self.peak_mib = 0.0

    def __enter__(self) -> Watch:
        self._look()
        self._first = dict(self._cpu)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def cpu_s(self) -> float:
        """Return the CPU seconds since the start; of what came and went between two looks, little."""
        return sum(spent - self._first.get(pid, 0.0) for pid, spent in self._cpu.items())

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int(world._stat(int(entry.name))[1])
        family = set(self._pids)
        for _ in range(4):
            family |= {pid for pid, parent in parents.items() if parent in family}
        mib = 0.0
        for pid in family:
            with contextlib.suppress(OSError):
                self._cpu[pid] = world._cpu_s(pid)
                mib += _proportional_mib(pid)
        self.peak_mib = max(self.peak_mib, mib)


def _proportional_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1_024
    return 0.0


# What waits


@contextlib.contextmanager
def _served(
    cluster: Cluster, missions: int, accounts: int, **variables: str
) -> Iterator[tuple[Hub, Database, str]]:
    """Lend a hub with so many missions that wait for tomorrow."""
    with cluster.database() as database, tempfile.TemporaryDirectory(prefix="mana-bench-") as home:
        with running_runner(database, home, ticks=False, **variables):
            pass  # it leaves its keys
        with running_hub(cluster, database, home, **variables) as hub:
            client = Client(hub.port, "")
            first = world.sign_up(hub)
            key = runner_key(first.client())
            client.close()
            url = variables.get("MANA_LLM_URL")
            crews(hub, accounts, missions, endpoint=url or RULES, runner_key=key)
            run_apart(partial(_prepare, database))
            yield hub, database, home


async def _prepare(database: Database) -> None:
    async with connected(database.owner_url) as owner:
        await owner.execute("create extension if not exists pg_stat_statements")
        await owner.execute(
            "update mana_ai.hub_limits set runs_max = 1000, runs_per_account_max = 64"
        )
        await owner.execute("vacuum analyze")
        await owner.execute("checkpoint")


async def _make_due(database: Database, limit: int | None) -> int:
    async with connected(database.owner_url) as owner:
        await owner.execute("select pg_stat_statements_reset()")
        tag = await owner.execute(
            "update mana_ai.occurrences set due_at = clock_timestamp() where occurrence_id in ("
            "select occurrence_id from mana_ai.occurrences where state = 'queued' limit $1)",
            limit,
        )
        await owner.execute("select pg_notify('mana_due', '')")
        return int(tag.split()[-1])


async def _wait_done(database: Database, want: int) -> tuple[float, int]:
    """Wait until so many more are done; return when the last ended, and how many failed."""
    began = time.perf_counter()
    async with connected(database.owner_url) as owner:
        while True:
            row = await owner.fetchrow(
                "select count(*) filter (where state = 'done') as done,"
                " count(*) filter (where state in ('failed', 'skipped')) as other"
                " from mana_ai.occurrences"
            )
            if row["done"] + row["other"] >= want:
                return time.perf_counter(), int(row["other"])
            # To ask costs the database something too: what takes long is asked for less often.
            await asyncio.sleep(max(0.01, (time.perf_counter() - began) / 50))


async def _statements(database: Database) -> tuple[int, int]:
    """Return statements and commits since the last round was begun."""
    async with connected(database.owner_url) as owner:
        row = await owner.fetchrow(
            "select sum(calls)::bigint as calls,"
            " sum(calls) filter (where query ilike 'commit%')::bigint as commits"
            " from pg_stat_statements s join pg_roles r on r.oid = s.userid"
            " where r.rolname = 'mana_runner'"
        )
        return int(row["calls"] or 0), int(row["commits"] or 0)


@dataclass(frozen=True)
class Taken:
    """What one round took."""

    missions: int
    seconds: float
    failed: int
    statements: int
    commits: int
    runner_cpu_s: float
    database_cpu_s: float
    peak_mib: float

    def row(self, name: str, aim: str) -> list[str]:
        cpu = self.runner_cpu_s + self.database_cpu_s
        return [
            name, f"{self.seconds:.2f}", f"{self.missions / self.seconds:,.0f}",
            f"{self.seconds / self.missions * 1e3:.2f}", f"{self.statements / self.missions:.1f}",
            f"{self.commits / self.missions:.2f}", f"{cpu / self.missions * 1e3:.2f}",
            f"{self.database_cpu_s / cpu:.0%}", f"{self.peak_mib:.0f}", str(self.failed), aim,
        ]  # fmt: skip


HEADS: Final = (
    "", "s", "missions/s", "ms each", "statements", "commits", "CPU ms", "database's",
    "peak MiB", "not done", "aim",
)  # fmt: skip


def _round(
    cluster: Cluster,
    database: Database,
    runners: Sequence[RunnerProcess],
    before: int,
    limit: int | None = None,
) -> Taken:
    postmaster = cluster.instance.pid
    assert postmaster is not None
    spent = postgres_cpu_s(postmaster)
    with Watch([runner.process.pid for runner in runners]) as watch:
        began = time.perf_counter()
        missions = run_apart(partial(_make_due, database, limit))
        ended, failed = run_apart(partial(_wait_done, database, before + missions))
    statements, commits = run_apart(partial(_statements, database))
    return Taken(
        missions, ended - began, failed, statements, commits, watch.cpu_s,
        postgres_cpu_s(postmaster) - spent, watch.peak_mib,
    )  # fmt: skip


def _rounds(
    cluster: Cluster, database: Database, home: str, rounds: int, runners: int, **variables: str
) -> list[Taken]:
    taken: list[Taken] = []
    before = run_apart(partial(_ended, database))
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(running_runner(database, home, ticks=True, **variables))
            for _ in range(runners)
        ]
        for _ in range(rounds + 1):
            one = _round(cluster, database, processes, before)
            before += one.missions
            taken.append(one)
    return sorted(taken[1:], key=lambda one: one.seconds)


async def _ended(database: Database) -> int:
    async with connected(database.owner_url) as owner:
        return int(
            await owner.fetchval(
                "select count(*) from mana_ai.occurrences"
                " where state in ('done', 'failed', 'skipped')"
            )
        )


# Parts


def _due(cluster: Cluster, scale: Scale) -> None:
    rows = []
    for missions in scale.due:
        with _served(cluster, missions, scale.accounts) as (_, database, home):
            taken = _rounds(cluster, database, home, scale.rounds, 1)
        median = taken[len(taken) // 2]
        each = median.seconds / median.missions
        rows.append(median.row(f"{missions:,} due", _met("<= 5 ms each", each <= 0.005)))
        peaks = [one.peak_mib for one in taken]
        print(f"  memory over the rounds: {min(peaks):.0f} to {max(peaks):.0f} MiB")
    world.table("due: one runner, offline rules", HEADS, rows)


def _slow(cluster: Cluster, scale: Scale) -> None:
    rows = []
    for delay_ms in (0, 100):
        with _model(delay_ms) as url:
            chosen = {"MANA_LLM_URL": url, "MANA_LLM_MODEL": "bench"}
            with _served(cluster, scale.slow, scale.accounts, **chosen) as (_, database, home):
                taken = _rounds(cluster, database, home, 1, 1, **chosen)
        aim = _met("<= 15 s for 1,000", taken[0].seconds / taken[0].missions <= 0.015)
        rows.append(taken[0].row(f"{delay_ms} ms a call, two calls", aim if delay_ms else ""))
    world.table("slow: one runner, a model over HTTP", HEADS, rows)


def _few(cluster: Cluster, scale: Scale) -> None:
    rows = []
    missions = max(number for _, number in scale.few)
    with _model(100) as url:
        chosen = {"MANA_LLM_URL": url, "MANA_LLM_MODEL": "bench"}
        with _served(cluster, missions, scale.accounts, **chosen) as (_, database, home):
            before = 0
            for under_way, number in scale.few:
                at_once = {**chosen, "MANA_RUNNER_CONCURRENCY": str(under_way)}
                with running_runner(database, home, ticks=True, **at_once) as runner:
                    # Connections and plans are made in a round of their own.
                    for limit in (max(number // 4, 1), number):
                        one = _round(cluster, database, [runner], before, limit)
                        before += one.missions
                cpu = (one.runner_cpu_s + one.database_cpu_s) / one.missions
                fits = one.statements / one.missions <= 25 and cpu <= 0.025
                aim = _met("<= 25 statements and 25 ms of CPU", fits) if under_way > 1 else ""
                rows.append(one.row(f"{under_way} under way", aim))
    world.table("few: one runner, 100 ms a call, two calls", HEADS, rows)


def _runners(cluster: Cluster, scale: Scale) -> None:
    for delay_ms in (0, 100):
        rows = []
        with _model(delay_ms) as url:
            chosen = {"MANA_LLM_URL": url, "MANA_LLM_MODEL": "bench"}
            if delay_ms:
                # As many at once as one of them is given, so that a second one has room.
                chosen["MANA_RUNNER_CONCURRENCY"] = "16"
            with _served(cluster, scale.slow, scale.accounts, **chosen) as (_, database, home):
                first = 0.0
                for runners in (1, 2, 4):
                    one = _rounds(cluster, database, home, 1, runners, **chosen)[0]
                    first = first or one.seconds
                    aim = f"{first / one.seconds:.2f} times one"
                    rows.append(one.row(f"{runners} runners", aim))
        world.table(f"runners: {delay_ms} ms a call", HEADS, rows)


def _nothing(cluster: Cluster, scale: Scale) -> None:
    rows = []
    base = 0.0
    with cluster.database() as database, tempfile.TemporaryDirectory(prefix="mana-bench-") as home:
        with running_runner(database, home, ticks=False):
            pass
        with running_hub(cluster, database, home) as hub:
            person = world.sign_up(hub)
            client = person.client()
            client.send(
                client.prepared("POST", person.changes_path, person.body(person.changes(400)))
            )
            with running_runner(database, home, ticks=False) as runner:
                for missions, log_rows in [
                    (0, 0),
                    *((missions, 0) for missions in scale.nothing),
                    (scale.nothing[-1], scale.log_rows),
                ]:
                    run_apart(partial(_fill, database, missions, log_rows, person.space))
                    for _ in range(5):
                        runner.tick()
                    median = statistics.median(runner.tick() for _ in range(60))
                    base = base or median
                    met = (
                        _met("<= 5 ms", median <= 0.005)
                        + ", "
                        + _met("<= 1.2", median / base <= 1.2)
                    )
                    rows.append([
                        f"{missions:,} missions, {log_rows:,} rows of log", f"{median * 1e3:.2f}",
                        f"{median / base:.2f}", met,
                    ])  # fmt: skip
    world.table("nothing: a pass with nothing due", ("", "ms", "ratio", "aim"), rows)


async def _fill(database: Database, missions: int, log_rows: int, space: str) -> None:
    """Bring missions that wait, of accounts of fifty each, and rows of the log to these numbers."""
    async with connected(database.owner_url) as owner:
        have = await owner.fetchval("select count(*) from mana_ai.occurrences")
        need = max(0, missions - have)
        await owner.execute("set session_replication_role = replica")
        accounts = -(-need // 50)
        ids = [
            row["id"]
            for row in await owner.fetch(
                "select gen_random_uuid()::text as id from generate_series(1, $1)", accounts
            )
        ]
        sample = await owner.fetchrow("select * from mana.accounts limit 1")
        columns = [c for c in sample.keys() if c not in ("account_id", "login", "login_key")]  # noqa: SIM118 - a row gives its values
        await owner.execute(
            f"insert into mana.accounts (account_id, login, login_key, {', '.join(columns)})"
            f" select id, id, id, {', '.join('s.' + c for c in columns)} from unnest($1::text[]) id,"
            " (select * from mana.accounts limit 1) s",
            ids,
        )
        await owner.execute(
            "insert into mana.spaces (space_id, type, members, key_version, created_at)"
            " select md5(id) || md5(id || '+'), 'personal', array[id], 1, now()"
            " from unnest($1::text[]) id",
            ids,
        )
        for table, columns_, values in (
            ("mission_snapshots",
             ("space_id, mission_id, account_id, state, cadence, time_zone, agent_id, runs_on,"
             " anchor_ms, deleted, next_run_at"),
             ("md5(id) || md5(id || '+'), 'mission-' || n, id, 'active',"
             " '{\"kind\": \"interval\", \"everyMinutes\": 600}'::jsonb, 'UTC', 'agent', 'hub', 0,"
             " false, now() + interval '1 hour' + n * interval '1 second'")),
            ("occurrences",
             "space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at",
             ("md5(id) || md5(id || '+'), 'mission-' || n, id, 'agent',"
             " now() + interval '1 hour' + n * interval '1 second', 'scheduled', 'queued',"
             " now() + interval '1 hour' + n * interval '1 second'")),
        ):  # fmt: skip
            await owner.execute(
                f"insert into mana_ai.{table} ({columns_}) select {values}"
                " from unnest($1::text[]) id, generate_series(1, 50) n",
                ids,
            )
        await owner.execute(
            "insert into mana_ai.account_work (account_id, next_due)"
            " select account_id, min(due_at) from mana_ai.occurrences where state = 'queued'"
            " group by 1 on conflict do nothing"
        )
        rows = max(0, log_rows - await owner.fetchval("select count(*) from mana.sync_changes"))
        if rows:
            await _copy_rows(owner, "sync_changes", space, space, rows, True)
        await owner.execute("set session_replication_role = origin")
        await owner.execute("vacuum analyze")
        await owner.execute("checkpoint")


def _zero(cluster: Cluster, scale: Scale) -> None:
    """Make all snapshots anew, of missions with ten changes each; beside it what is read of them."""
    with cluster.database() as database, running_hub(cluster, database) as hub:
        person = world.sign_up(hub)
        fill_missions(person, 200, changes=10)
        run_apart(partial(_copy_missions, database, person.space, scale.zero))
        taken = [run_apart(partial(_rebuilt, database)) for _ in range(3)]
    seconds = statistics.median(one[0] for one in taken)
    read = statistics.median(one[1] for one in taken)
    world.table(
        "zero: all snapshots from the records",
        ("missions", "s", "reading alone s", "ratio", "aim"),
        [[f"{taken[0][2]:,}", f"{seconds:.2f}", f"{read:.2f}", f"{seconds / read:.1f}",
          _met("<= 1 s for 10,000", seconds / scale.zero <= 1e-4)]],
    )  # fmt: skip


async def _copy_missions(database: Database, space: str, total: int) -> None:
    async with connected(database.owner_url) as owner:
        await owner.execute("set session_replication_role = replica")
        await _copy_rows(owner, "records", space, space, total - 200, True)
        await _copy_rows(owner, "sync_changes", space, space, 10 * (total - 200), True)
        await owner.execute("set session_replication_role = origin")
        await owner.execute("vacuum analyze")
        await owner.execute("checkpoint")


async def _rebuilt(database: Database) -> tuple[float, float, int]:
    """Return the seconds of the snapshots from nothing, of reading the records, and how many."""
    async with connected(database.owner_url) as owner:
        await owner.execute(
            "truncate mana_ai.mission_snapshots, mana_ai.agent_snapshots, mana_ai.occurrences"
        )
        began = time.perf_counter()
        await owner.fetch(
            "select record_id, fields from mana.records where table_name = $1", "aiMissions"
        )
        read = time.perf_counter() - began
    async with opened_tenancy(database) as tenancy:
        began = time.perf_counter()
        rebuilt = await rebuild_all(tenancy)
        return time.perf_counter() - began, read, rebuilt.missions


def _met(aim: str, is_met: bool) -> str:
    return f"{aim}: {'met' if is_met else 'MISSED'}"
