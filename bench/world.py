"""What the measurements of sync share: a real PostgreSQL, a hub process, clients, and changes.

The clients are plain sockets with prepared bodies, in the process that measures, so that what is
measured is the hub and not the client.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from mana.cli.supervisor import READY_FD_VARIABLE
from mana.crypto.envelope import Binding, RecordKey, seal_field
from mana.device.app import new_id
from mana.domain.clock import Stamp
from mana.domain.ids import RecordId
from mana.hub.db.urls import url_as
from mana.hub.postgres import Instance, find_binaries
from mana.protocol.messages import ChangeMessage, FieldWrite, PushRequest, Tokens
from mana.testing.accounts import NewAccount, new_account
from mana.testing.postgres import Cluster, Database

_HERE: Final = Path(__file__).resolve().parent.parent
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_SIZES: Final = (200, 300, 400, 500, 600)
"""Characters of a note's content."""


@contextlib.contextmanager
def durable_cluster(**settings: str) -> Iterator[Cluster]:
    """Lend a PostgreSQL with the settings that `mana up` gives its own: nothing is switched off."""
    folder = Path(tempfile.mkdtemp(prefix="mana-bench-"))
    folder.chmod(0o711)
    instance = Instance(
        find_binaries(os.environ), folder / "postgres", settings={"max_wal_size": "8GB", **settings}
    )
    try:
        instance.ensure()
        try:
            yield Cluster(instance)
        finally:
            instance.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Hub:
    """A hub process and the server behind it."""

    process: subprocess.Popen[bytes]
    port: int
    postmaster: int

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds so far of the hub and of all processes of PostgreSQL."""
        return _cpu_s(self.process.pid), postgres_cpu_s(self.postmaster)

    def resident_mib(self) -> float:
        """Return the resident memory of the hub."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def running_hub(
    cluster: Cluster, database: Database, home: str | None = None, **variables: str
) -> Iterator[Hub]:
    """Lend a hub process on a database. `home`: where its secrets are, and those of a runner."""
    app_url = url_as(database.owner_url, "mana_app")
    with tempfile.TemporaryDirectory(prefix="mana-bench-") as own:
        told, telling = os.pipe()
        environ = {
            **os.environ,
            **variables,
            "MANA_HOME": home or own,
            "MANA_APP_DATABASE_URL": app_url,
            READY_FD_VARIABLE: str(telling),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.hub"],
            cwd=_HERE,
            env=environ,
            stdout=subprocess.DEVNULL,
            pass_fds=(telling,),
            start_new_session=True,
        )
        os.close(telling)
        assert cluster.instance.pid is not None
        try:
            with os.fdopen(told) as pipe:
                port = int(json.loads(pipe.readline())["port"])
            yield Hub(process, port, cluster.instance.pid)
        finally:
            process.terminate()
            process.wait(30)


def postgres_cpu_s(postmaster: int) -> float:
    """Return the CPU seconds of a server and all that it started, the ended ones included."""
    total = _cpu_s(postmaster, with_ended=True)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int(_stat(int(entry.name))[1]) == postmaster:
                    total += _cpu_s(int(entry.name))
    return total


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_s(pid: int, *, with_ended: bool = False) -> float:
    fields = _stat(pid)
    ticks = sum(int(value) for value in fields[11 : 15 if with_ended else 13])
    return ticks * _TICK_S


class Client:
    """One connection to a hub, kept alive. `send` returns status and body."""

    def __init__(self, port: int, token: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = port
        self._authorization = f"authorization: Bearer {token}\r\n" if token else ""
        self._buffer = bytearray(1 << 20)

    def prepared(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the bytes of a request."""
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n{self._authorization}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a prepared request and return what came back."""
        self._socket.sendall(request)
        raw = bytearray()
        while (end := raw.find(b"\r\n\r\n")) < 0:
            raw += self._received()
        head = bytes(raw[:end]).lower()
        place = head.index(b"content-length:") + 15
        length = int(head[place : (head.find(b"\r\n", place) + len(head) + 1) % (len(head) + 1)])
        body = memoryview(bytearray(length))
        have = len(raw) - end - 4
        body[:have] = raw[end + 4 :]
        while have < length:
            count = self._socket.recv_into(body[have:])
            if not count:
                raise ConnectionError("the hub closed the connection")
            have += count
        return int(head[9:12]), bytes(body)

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """Send a message and return the answer; raise for any status but 2xx."""
        content = b"" if body is None else msgspec.json.encode(body)
        status, answer = self.send(self.prepared(method, path, content))
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
        return answer

    def listen(self, path: str) -> Iterator[bytes]:
        """Yield the lines of an event stream as they come."""
        self._socket.sendall(self.prepared("GET", path))
        kept = b""
        while True:
            *lines, kept = (kept + self._received()).split(b"\n")
            yield from lines

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _received(self) -> memoryview:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionError("the hub closed the connection")
        return memoryview(self._buffer)[:count]


@dataclass
class Person:
    """An account that is signed up, and what it writes next."""

    hub: Hub
    account: NewAccount
    token: str
    random: random.Random = field(default_factory=lambda: random.Random(7))
    new_id: Callable[[], str] = new_id
    """Names records and changes; as a device does it, in order of time."""
    made: list[tuple[str, str]] = field(default_factory=list)
    _pool: dict[int, list[str]] = field(default_factory=dict)

    @property
    def space(self) -> str:
        return self.account.personal.space_id

    @property
    def changes_path(self) -> str:
        return f"/api/v1/spaces/{self.space}/changes"

    def client(self) -> Client:
        return Client(self.hub.port, self.token)

    def changes(self, count: int) -> list[ChangeMessage]:
        """Return the next changes: three of four make a note or a task, one edits an older one."""
        at = str(Stamp(time.time_ns() // 1_000_000, 0, self.account.device_id))
        fresh: list[tuple[str, str]] = []
        out = []
        for number in range(count):
            if number % 4 == 3 and self.made:
                table, record_id = self.random.choice(self.made)
                out.append(self._change(table, record_id, "update", {"title": 40}, at))
                continue
            table, record_id = ("notes", "tasks")[number % 2], self.new_id()
            fresh.append((table, record_id))
            sizes = (
                {"title": 40, "content": self.random.choice(_SIZES)}
                if table == "notes"
                else {"title": 40, "isCompleted": 4, "priority": 8, "dueDate": 12, "order": 3}
            )
            out.append(self._change(table, record_id, "insert", sizes, at))
        self.made += fresh
        return out

    def bodies(self, batches: int, size: int) -> list[bytes]:
        """Return the bodies of pushes."""
        return [self.body(self.changes(size)) for _ in range(batches)]

    def body(self, changes: Sequence[ChangeMessage]) -> bytes:
        """Return the body of one push."""
        request = PushRequest(device_id=self.account.device_id, changes=list(changes))
        return msgspec.json.encode(request)

    def _change(
        self, table: str, record_id: str, op: str, sizes: dict[str, int], at: str
    ) -> ChangeMessage:
        return ChangeMessage(
            change_id=self.new_id(),
            table=table,
            id=record_id,
            op=op,
            fields={
                path: FieldWrite(value=self._sealed(size), at=at) for path, size in sizes.items()
            },
            actor={"kind": "user", "principalId": self.account.account_id},
            origin="user",
            author_id=self.account.account_id,
        )

    def _sealed(self, size: int) -> str:
        """Return an envelope of a value of this length; the hub cannot tell whose it is."""
        if size not in self._pool:
            key = RecordKey.derive(self.account.personal.space_key, "notes", RecordId("x"))
            binding = Binding(self.space, "notes", RecordId("x"), "x", "", {})
            self._pool[size] = [
                seal_field(key, cls="s", version=1, binding=binding, value="x" * (size - 2))
                for _ in range(16)
            ]
        return self.random.choice(self._pool[size])


def random_id() -> str:
    """Return an id without order, as derived ids are."""
    return str(uuid.uuid4())


def sign_up(hub: Hub) -> Person:
    """Make an account on a hub."""
    account = new_account(f"p-{uuid.uuid4().hex[:12]}", now_ms=time.time_ns() // 1_000_000)
    client = Client(hub.port)
    raw = client.call("POST", "/api/v1/auth/signup", account.request)
    client.close()
    return Person(hub, account, msgspec.json.decode(raw, type=Tokens).access_token)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under heads."""
    widths = [max(len(head), *(len(str(row[n])) for row in rows)) for n, head in enumerate(heads)]
    print(f"\n{title}")
    for line in (heads, *rows):
        cells = [str(cell) for cell in line]
        first = cells[0].ljust(widths[0])
        print(
            "  "
            + "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        )
