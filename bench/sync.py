"""How fast sync is, beside what PostgreSQL itself does with the same rows in the same run.

`python -m bench sync [--quick] [--only=push,state,…]`. A real hub process, real HTTP, a real
PostgreSQL with all its guarantees; hub and raw side take turns, and medians are compared. Aims
are those of docs/scaling.md. CPU is that of the hub (or of the raw client) and of PostgreSQL.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import asyncpg
import msgspec

from bench import raw, world
from bench.world import Client, Hub, Person, sign_up
from mana.hub.db.pool import SERVER_SETTINGS
from mana.hub.db.urls import url_as
from mana.protocol.messages import PullAnswer, PushAnswer, StateAnswer
from mana.testing.postgres import Cluster, Database, connected, run_apart

PARTS: Final = ("push", "state", "history", "event", "loss", "device")
CLIENTS: Final = 8
_NEXT: Final = re.compile(rb'"next":"([^"]+)"}$')


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    push_changes: dict[int, int]
    history: tuple[int, ...]
    state_records: int
    events: int
    loss_changes: int
    device_records: int


FULL: Final = Scale(
    rounds=5,
    push_changes={1: 800, 50: 4_000, 500: 16_000},
    history=(1_000, 100_000, 1_000_000),
    state_records=10_000,
    events=300,
    loss_changes=8_000,
    device_records=100_000,
)
QUICK: Final = Scale(
    rounds=3,
    push_changes={1: 320, 50: 2_000, 500: 8_000},
    history=(1_000, 10_000, 100_000),
    state_records=10_000,
    events=100,
    loss_changes=2_000,
    device_records=10_000,
)


def main(options: Sequence[str] = ()) -> None:
    """Measure and print tables."""
    scale = QUICK if "--quick" in options else FULL
    chosen = [option.removeprefix("--only=") for option in options if option.startswith("--only=")]
    parts = chosen[0].split(",") if chosen else PARTS
    run: dict[str, Callable[[Cluster, Scale], None]] = {
        "push": _push_both,
        "state": _state,
        "history": _history,
        "event": _event,
        "loss": _loss,
    }
    of_hub = [run[part] for part in parts if part in run]
    if of_hub:
        with world.durable_cluster() as cluster:
            for measure in of_hub:
                measure(cluster, scale)
    if "device" in parts:
        from bench import replica

        replica.main(scale.device_records)


# Pushes


@dataclass
class Measured:
    """One side's pushes over all rounds."""

    per_s: list[float]
    seconds: list[float]
    changes: int = 0
    front_cpu_s: float = 0.0
    database_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return statistics.median(self.per_s)

    @property
    def per_core(self) -> float:
        """Changes per CPU second."""
        return self.changes / (self.front_cpu_s + self.database_cpu_s)

    def quantile(self, part: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1_000


def _push_both(cluster: Cluster, scale: Scale) -> None:
    _push(cluster, scale, True)
    _push(cluster, scale, False)


def _push(cluster: Cluster, scale: Scale, synchronous: bool) -> None:
    rows = []
    with _served(cluster, synchronous=synchronous) as (hub, database):
        for clients, shared in ((1, False), (CLIENTS, False), (CLIENTS, True)):
            for size, changes in scale.push_changes.items():
                count = max(1, changes // size // clients)
                ours, limit = Measured([], []), Measured([], [])
                people = [sign_up(hub) for _ in range(1 if shared else clients)]
                others = [sign_up(hub) for _ in range(1 if shared else clients)]
                _push_round(hub, people, clients, 1, size, Measured([], []))
                for _ in range(scale.rounds):
                    _push_round(hub, people, clients, count, size, ours)
                    _raw_round(hub, database, others, clients, count, size, limit)
                rows.append(_push_row(clients, shared, size, ours, limit, synchronous))
    world.table(
        f"push, synchronous_commit {'on' if synchronous else 'off'}",
        ("clients x batch", "changes/s", "p50 ms", "p99 ms", "raw/s", "ratio", "us/change hub",
         "us/change pg", "us/change raw", "ratio per core", "aim"),
        rows,
    )  # fmt: skip


def _push_row(
    clients: int, shared: bool, size: int, ours: Measured, limit: Measured, aims: bool
) -> list[str]:
    ratio, per_core = ours.rate / limit.rate, ours.per_core / limit.per_core
    aim = ""
    if aims and size == 500:
        aim = _met("ratio >= 0.5", ratio >= 0.5)
        if clients > 1 and not shared:
            aim += ", " + _met(">= 10 000/s", ours.rate >= 10_000)
    elif aims and size == 1:
        aim = _met("per core >= 0.6", per_core >= 0.6)
    return [
        f"{clients}{' on one space' if shared else ''} x {size}",
        f"{ours.rate:,.0f}",
        f"{ours.quantile(0.5):.1f}",
        f"{ours.quantile(0.99):.1f}",
        f"{limit.rate:,.0f}",
        f"{ratio:.2f}",
        f"{ours.front_cpu_s / ours.changes * 1e6:.0f}",
        f"{ours.database_cpu_s / ours.changes * 1e6:.0f}",
        f"{1e6 / limit.per_core:.0f}",
        f"{per_core:.2f}",
        aim,
    ]


def _push_round(
    hub: Hub, people: Sequence[Person], clients: int, count: int, size: int, into: Measured
) -> None:
    jobs = []
    for number in range(clients):
        person = people[number % len(people)]
        client = person.client()
        requests = [
            client.prepared("POST", person.changes_path, body)
            for body in person.bodies(count, size)
        ]
        jobs.append((client, requests))
    answers: list[bytes] = []

    def work(client: Client, requests: Sequence[bytes]) -> None:
        for request in requests:
            began = time.perf_counter()
            status, answer = client.send(request)
            into.seconds.append(time.perf_counter() - began)
            if status != 200:
                raise RuntimeError(f"push: {status} {answer[:300]!r}")
            answers.append(answer)

    before, began = hub.cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(work, *job) for job in jobs]:
            done.result()
    seconds, after = time.perf_counter() - began, hub.cpu_s()
    results = [
        r for answer in answers for r in msgspec.json.decode(answer, type=PushAnswer).results
    ]
    assert len(results) == count * clients * size
    assert all(result.status == "accepted" for result in results)
    into.per_s.append(len(results) / seconds)
    into.changes += len(results)
    into.front_cpu_s += after[0] - before[0]
    into.database_cpu_s += after[1] - before[1]
    for client, _ in jobs:
        client.close()


def _raw_round(
    hub: Hub,
    database: Database,
    people: Sequence[Person],
    clients: int,
    count: int,
    size: int,
    into: Measured,
) -> None:
    work = []
    for number in range(clients):
        person = people[number % len(people)]
        work.append([raw.Rows(person, person.changes(size)) for _ in range(count)])
    url = url_as(database.owner_url, "mana_app")
    before, cpu, began = hub.cpu_s(), time.process_time(), time.perf_counter()
    into.seconds += asyncio.run(raw.run(url, work))
    seconds, after = time.perf_counter() - began, hub.cpu_s()
    into.per_s.append(count * clients * size / seconds)
    into.changes += count * clients * size
    into.front_cpu_s += time.process_time() - cpu
    into.database_cpu_s += after[1] - before[1]


# A new device


def _state(cluster: Cluster, scale: Scale) -> None:
    with _served(cluster) as (hub, database):
        person = sign_up(hub)
        _fill(person, scale.state_records)
        run_apart(lambda: _settled(database))
        client = person.client()
        path = f"/api/v1/spaces/{person.space}/records"
        ours, deltas, copies, memory = [], [], [], [hub.resident_mib()]
        size = 0
        for _ in range(scale.rounds):
            began, query = time.perf_counter(), ""
            pages: list[bytes] = []
            while True:
                status, answer = client.send(client.prepared("GET", path + query))
                assert status == 200, answer[:300]
                pages.append(answer)
                # Where the next page begins stands at the end: what comes after is the device's.
                tail = _NEXT.search(answer, len(answer) - 400)
                if tail is None:
                    break
                query = f"?page={tail[1].decode()}"
            ours.append(time.perf_counter() - began)
            size = sum(map(len, pages))
            decoded = [msgspec.json.decode(one, type=StateAnswer) for one in pages]
            assert sum(len(one.records) for one in decoded) == len(person.made)
            memory.append(hub.resident_mib())
            began, after = time.perf_counter(), 0
            while True:
                status, answer = client.send(
                    client.prepared("GET", f"{person.changes_path}?after={after}")
                )
                pulled = msgspec.json.decode(answer, type=PullAnswer)
                after = pulled.cursor
                if not pulled.more:
                    break
            deltas.append(time.perf_counter() - began)
            copies.append(run_apart(lambda: _copied(database, person)))
        count = len(person.made)
        rate, limit = count / statistics.median(ours), count / statistics.median(copies)
        flat = max(memory[2:]) - memory[1] < 32
        world.table(
            f"a new device: {count:,} records, {size / 2**20:.1f} MiB",
            ("", "ms", "records/s", "ratio to COPY", "hub MiB before, after", "aim"),
            [
                ["state", f"{statistics.median(ours) * 1e3:.0f}", f"{rate:,.0f}",
                 f"{rate / limit:.2f}", f"{memory[0]:.0f}, {memory[-1]:.0f}",
                 _met(">= 100 000/s", rate >= 100_000) + ", " + _met("flat", flat)],
                ["log, page by page, decoded", f"{statistics.median(deltas) * 1e3:.0f}",
                 f"{count / statistics.median(deltas):,.0f}", "", "", ""],
                ["SELECT … COPY TO", f"{statistics.median(copies) * 1e3:.0f}", f"{limit:,.0f}",
                 "1.00", "", ""],
            ],
        )  # fmt: skip


async def _settled(database: Database) -> None:
    """Let the server's housekeeping be over, as it is some minutes after the writes."""
    async with connected(database.owner_url) as owner:
        await owner.execute("vacuum analyze mana.records")
        await owner.execute("vacuum analyze mana.sync_changes")


async def _copied(database: Database, person: Person) -> float:
    url = url_as(database.owner_url, "mana_app")
    connection = await asyncpg.connect(url, server_settings=SERVER_SETTINGS)
    taken = 0

    async def sink(data: bytes) -> None:
        nonlocal taken
        taken += len(data)

    try:
        async with connection.transaction():
            account = person.account.account_id
            await connection.execute(
                f"set local app.current_user_id = '{account}';"
                f" set local app.current_space = '{person.space}'"
            )
            began = time.perf_counter()
            await connection.copy_from_query(
                "select table_name, record_id, author_id, visibility, seq, fields, proofs"
                " from mana.records where space_id = $1 order by table_name, record_id",
                person.space,
                output=sink,
            )
            return time.perf_counter() - began
    finally:
        await connection.close()


# History


def _history(cluster: Cluster, scale: Scale) -> None:
    _history_of(cluster, scale, in_order=True)
    _history_of(cluster, scale, in_order=False)


def _history_of(cluster: Cluster, scale: Scale, *, in_order: bool) -> None:
    """Measure with ids as devices make them for a person, or with ids without order."""
    names = ("push", "empty", "pull")
    taken: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        sides = []
        for total in scale.history:
            hub, database = stack.enter_context(_served(cluster))
            person = sign_up(hub)
            if not in_order:
                person.new_id = world.random_id
            _fill(person, 500)
            run_apart(partial(_load, database, person, total, in_order))
            sides.append((total, person, database))
        # The sizes take turns, so that what else the machine does is in all of them.
        for number in range(scale.rounds * 4 + 1):
            for total, person, database in sides:
                client = person.client()
                head = run_apart(partial(_head, database, person.space))
                prepared = {
                    "push": [
                        client.prepared("POST", person.changes_path, body)
                        for body in person.bodies(5, 50)
                    ],
                    "empty": [client.prepared("GET", f"{person.changes_path}?after={head}")] * 20,
                    "pull": [
                        client.prepared("GET", f"{person.changes_path}?after={head // 2}&limit=100")
                    ]
                    * 8,
                }
                for name in ("empty", "pull", "push"):
                    seconds = [_timed(client, request) for request in prepared[name]]
                    if number:  # the first round pays for what each hub does once
                        taken.setdefault((name, total), []).extend(seconds)
                client.close()
    figures = {
        name: [statistics.median(taken[name, total]) for total in scale.history] for name in names
    }
    base = {name: values[0] for name, values in figures.items()}
    rows = []
    for number, total in enumerate(scale.history):
        push, none, pull = (figures[name][number] for name in ("push", "empty", "pull"))
        ratios = [figures[name][number] / base[name] for name in figures]
        rows.append([
            f"{total:,}", f"{push * 1e3:.2f}", f"{50 / push:,.0f}", f"{none * 1e3:.2f}",
            f"{pull * 1e3:.2f}", " ".join(f"{ratio:.2f}" for ratio in ratios),
            _met("empty <= 2 ms", none <= 0.002) + ", " + _met("<= 1.2", max(ratios) <= 1.2),
        ])  # fmt: skip
    world.table(
        f"history: rows of everybody, ids {'in order of time' if in_order else 'without order'}",
        ("rows", "push of 50 ms", "changes/s", "empty pull ms", "pull of 100 ms",
         "ratios push empty pull", "aim"),
        rows,
    )  # fmt: skip


async def _load(database: Database, person: Person, total: int, in_order: bool) -> None:
    """Bring the log and the records to this many rows, half of them in the person's own space."""
    async with connected(database.owner_url) as owner:
        have = await owner.fetchval("select count(*) from mana.sync_changes")
        need = max(0, total - have)
        await owner.execute("set session_replication_role = replica")
        await owner.execute(
            "insert into mana.spaces (space_id, type, members, key_version, created_at)"
            " select md5('a' || n) || md5('b' || n), 'personal',"
            " array[gen_random_uuid()::text], 1, now() from generate_series(1, 100) n"
            " on conflict do nothing"
        )
        spaces = await owner.fetch(
            "select space_id from mana.spaces where space_id <> $1 order by space_id limit 100",
            person.space,
        )
        targets = [(person.space, need // 2)] + [
            (row["space_id"], need // 2 // len(spaces)) for row in spaces
        ]
        for space, count in targets:
            for name in ("sync_changes", "records"):
                await _copy_rows(owner, name, person.space, space, count, in_order)
            await owner.execute(
                "insert into mana.space_heads (space_id, seq) values ($1, $2)"
                " on conflict (space_id) do update set seq = space_heads.seq + excluded.seq",
                space,
                count,
            )
        await owner.execute("set session_replication_role = origin")
        await owner.execute("vacuum analyze mana.sync_changes")
        await owner.execute("vacuum analyze mana.records")
        await owner.execute("checkpoint")


async def _copy_rows(
    owner: object, name: str, sample: str, space: str, count: int, in_order: bool
) -> None:
    """Insert copies of sample rows of one space into a space, under new ids and numbers."""
    columns = [
        row["attname"]
        for row in await owner.fetch(  # type: ignore[attr-defined]
            "select attname from pg_attribute where attrelid = $1::regclass and attnum > 0"
            " and not attisdropped and attgenerated = '' order by attnum",
            f"mana.{name}",
        )
    ]
    new_id = "uuidv7()" if in_order else "gen_random_uuid()"
    made = {
        "space_id": "$1",
        "seq": "coalesce((select seq from mana.space_heads where space_id = $1), 0) + n.n",
        "change_id": f"{new_id}::text::{{}}",
        "record_id": f"{new_id}::text::{{}}",
    }
    types = {
        row["attname"]: row["type"]
        for row in await owner.fetch(  # type: ignore[attr-defined]
            "select attname, format_type(atttypid, atttypmod) as type from pg_attribute"
            " where attrelid = $1::regclass and attnum > 0",
            f"mana.{name}",
        )
    }
    chosen = ", ".join(made.get(c, f"s.{c}").format(types[c]) for c in columns)
    await owner.execute(  # type: ignore[attr-defined]
        f"with s as materialized (select row_number() over () - 1 as place, t.* from"
        f" (select * from mana.{name} where space_id = $2 limit 200) t)"
        f" insert into mana.{name} ({', '.join(columns)}) select {chosen}"
        " from generate_series(1, $3::bigint) n (n)"
        " join s on s.place = n.n % (select count(*) from s)",
        space,
        sample,
        count,
    )


async def _head(database: Database, space: str) -> int:
    async with connected(database.owner_url) as owner:
        return int(
            await owner.fetchval("select seq from mana.space_heads where space_id = $1", space)
        )


# Events


def _event(cluster: Cluster, scale: Scale) -> None:
    with _served(cluster) as (hub, _database):
        person = sign_up(hub)
        writer, reader = person.client(), person.client()
        lines = reader.listen("/api/v1/live")
        while next(lines) != b"event: hello":
            pass
        taken = []
        for body in person.bodies(scale.events, 1):
            request = writer.prepared("POST", person.changes_path, body)
            heard: list[float] = []

            def wait(heard: list[float] = heard) -> None:
                for line in lines:
                    if line.startswith(b'data: {"spaceId"'):
                        heard.append(time.perf_counter())
                        return

            listener = threading.Thread(target=wait)
            listener.start()
            began = time.perf_counter()
            writer.send(request)
            listener.join(10)
            taken.append(heard[0] - began)
        measured = Measured([], taken)
        world.table(
            "from the push of a device to another device's event",
            ("", "p50 ms", "p99 ms", "aim"),
            [["SSE", f"{measured.quantile(0.5):.2f}", f"{measured.quantile(0.99):.2f}",
              _met("<= 7 ms", measured.quantile(0.5) <= 7)]],
        )  # fmt: skip


# Nothing is lost


def _loss(cluster: Cluster, scale: Scale) -> None:
    with _served(cluster) as (hub, _database):
        person = sign_up(hub)
        done = threading.Event()
        acknowledged: dict[str, int] = {}
        each = scale.loss_changes // CLIENTS // 5
        work = [(person.client(), person.bodies(each, 5)) for _ in range(CLIENTS)]

        def write(client: Client, bodies: Sequence[bytes]) -> None:
            for body in bodies:
                _, answer = client.send(client.prepared("POST", person.changes_path, body))
                for result in msgspec.json.decode(answer, type=PushAnswer).results:
                    assert result.status == "accepted"
                    assert result.seq is not None
                    acknowledged[result.change_id] = result.seq

        def read() -> list[tuple[int, str]]:
            client, seen, after = person.client(), [], 0
            while True:
                last = done.is_set()
                answer = client.call("GET", f"{person.changes_path}?after={after}")
                pulled = msgspec.json.decode(answer, type=PullAnswer)
                seen += [(logged.seq, logged.change.change_id) for logged in pulled.changes]
                after = pulled.cursor
                if last and not pulled.more:
                    return seen

        with ThreadPoolExecutor(CLIENTS + 2) as threads:
            readers = [threads.submit(read) for _ in range(2)]
            for writer in [threads.submit(write, *one) for one in work]:
                writer.result()
            done.set()
            seen = [reader.result() for reader in readers]
        expected = sorted((seq, change_id) for change_id, seq in acknowledged.items())
        lost = sum(len(set(expected) - set(one)) for one in seen)
        ordered = all(one == expected for one in seen)
        world.table(
            "polling readers while 8 writers are busy",
            ("changes", "acknowledged", "lost to readers", "in order, each once", "aim"),
            [[f"{each * CLIENTS * 5:,}", f"{len(expected):,}", lost, ordered,
              _met("0 lost", lost == 0 and ordered)]],
        )  # fmt: skip


# Shared


@contextmanager
def _served(cluster: Cluster, *, synchronous: bool = True) -> Iterator[tuple[Hub, Database]]:
    with cluster.database() as database:
        if not synchronous:
            run_apart(lambda: _commit_later(database))
        with world.running_hub(cluster, database) as hub:
            yield hub, database


async def _commit_later(database: Database) -> None:
    async with connected(database.owner_url) as owner:
        await owner.execute(f'alter database "{database.name}" set synchronous_commit = off')


def _fill(person: Person, records: int) -> None:
    """Push until the person has this many records."""
    client = person.client()
    while len(person.made) < records:
        changes = person.changes(500)
        client.send(client.prepared("POST", person.changes_path, person.body(changes)))
    client.close()


def _timed(client: Client, request: bytes) -> float:
    began = time.perf_counter()
    status, answer = client.send(request)
    seconds = time.perf_counter() - began
    if status != 200:
        raise RuntimeError(f"{status} {answer[:300]!r}")
    return seconds


def _met(aim: str, is_met: bool) -> str:
    return f"{aim}: {'met' if is_met else 'MISSED'}"
