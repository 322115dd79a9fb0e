"""Worker processes: made quickly, of one account each, with nothing of others, and never left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import uvloop

from mana.crypto.envelope import RecordKey
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.hub.runner.dialogue import (
    Cancel,
    Finished,
    Message,
    SocketChannel,
    Stopped,
    ToRunner,
    WorkerLost,
)
from mana.hub.runner.worker import work
from mana.hub.runner.workers import (
    ENVIRONMENT,
    ProcessWorker,
    ProcessWorkers,
    WorkersUnavailable,
)
from mana.planning.ports import ModelReply, ModelRequest
from mana.testing.runs import Instant, Missions, answer
from tests.runner.processes import (
    OPEN_PROGRAM,
    born,
    children,
    descriptors,
    end_all,
    gone,
    is_there,
    owner,
    private_kib,
    said_by,
    status,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]

SOURCES = Path(__file__).parents[2] / "src"
UNPRIVILEGED = """
import ctypes, os
import mana.hub.runner.zygote as zygote

zygote.warm_up()
if os.geteuid() == 0:
    os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
raise SystemExit(zygote.main())
"""
"""The warm parent of an ordinary user: only what forbids it belongs to root in /proc."""


class Kept(ProcessWorkers):
    """Remembers the workers that it made, so that a test need not close each."""

    def __init__(self, program: tuple[str, ...]) -> None:
        super().__init__(program)
        self.made: list[ProcessWorker] = []
        self.family: set[tuple[int, str]] = set()

    async def open(self) -> None:
        await super().open()
        self._note(self.parent_pid)

    async def start(self) -> ProcessWorker:
        worker = await super().start()
        self.made.append(worker)
        self._note(self.parent_pid, worker.pid)
        return worker

    def _note(self, *pids: int | None) -> None:
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self.family |= {born(pid)} if pid is not None else set()


@contextlib.asynccontextmanager
async def opened(program: tuple[str, ...] = OPEN_PROGRAM) -> AsyncIterator[ProcessWorkers]:
    workers = Kept(program)
    await workers.open()
    try:
        yield workers
    except BaseException:
        # What a test that fails has stopped answers nobody, and would be waited for.
        end_all(workers.family)
        raise
    finally:
        try:
            await workers.close()
            for worker in workers.made:
                await worker.close()
        finally:
            end_all(workers.family)


async def test_a_test_that_fails_leaves_no_process() -> None:
    """Whatever a test has stopped when it fails is ended, by its id."""
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        async with opened() as workers:
            worker = await workers.start()
            pids += [worker.pid, parent_pid(workers)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            raise ZeroDivisionError
    await gone(*pids)


def parent_pid(workers: ProcessWorkers) -> int:
    assert workers.parent_pid is not None
    return workers.parent_pid


async def test_a_worker_holds_its_pipe_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has no secret in its environment or arguments, and no descriptor of the runner."""
    secrets = {
        "MANA_RUNNER_DATABASE_URL": "postgresql://secret-of-the-database",
        "MANA_LLM_KEY": "secret-of-the-model",
        "MANA_AI_PRIVATE_KEY_PEM": "secret-of-the-runner",
        "MANA_SERVICE_KEY": "secret-of-the-service",
        "PGPASSWORD": "secret-of-postgres",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    own = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(own, True)
    try:
        async with opened() as workers:
            first, second = await workers.start(), await workers.start()
            await at_rest(second)
            for pid in (parent_pid(workers), first.pid, second.pid):
                told = said_by(pid, "environ")
                names = {one.partition(b"=")[0].decode() for one in told.split(b"\0") if one}
                assert names <= {*ENVIRONMENT, "PYTHONPATH"}
                assert b"secret" not in told
                assert b"secret" not in said_by(pid, "cmdline")
                assert __file__ not in descriptors(pid).values()
            for worker in (first, second):
                held = descriptors(worker.pid)
                assert [held.pop(standard) for standard in range(3)] == [os.devnull] * 3
                sockets = [one for one in held.values() if one.startswith("socket:")]
                # Its pipe, and the pair by which its own event loop wakes itself.
                assert len(set(sockets)) == 3
                assert set(held.values()) - set(sockets) <= {"anon_inode:[eventpoll]"}
            ours = descriptors(first.pid).values()
            theirs = descriptors(second.pid).values()
            assert not {one for one in ours if one.startswith("socket:")} & set(theirs)
    finally:
        os.close(own)


async def at_rest(worker: ProcessWorker) -> None:
    """Return when a worker waits for its first message."""
    while "anon_inode:[eventpoll]" not in descriptors(worker.pid).values():  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # it says nothing before it is asked


async def test_the_parent_is_one_thread_and_knows_no_secret() -> None:
    """What workers are forked from has one thread, no database driver and no file open."""
    async with opened() as workers:
        pid = parent_pid(workers)
        assert status(pid, "Threads") == "1"
        assert b"asyncpg" not in said_by(pid, "maps")
        held = descriptors(pid)
        # Its errors go where the runner's go, until it forks; a worker has the null device there.
        assert [held.pop(standard) for standard in range(3)][:2] == [os.devnull] * 2
        assert [one.partition(":")[0] for one in held.values()] == ["socket"] * 3


async def test_nobody_reads_a_worker() -> None:
    """Parent and workers leave no dump, cannot be traced by their user, and gain no right."""
    async with opened(("-P", "-c", UNPRIVILEGED)) as workers:
        worker = await workers.start()
        await at_rest(worker)
        for pid in (parent_pid(workers), worker.pid):
            limits = said_by(pid, "limits").decode().splitlines()
            core = next(line for line in limits if line.startswith("Max core"))
            assert core.split()[4:6] == ["0", "0"]
            assert owner(pid) == 0
            assert status(pid, "Uid").split()[0] != "0"
            assert status(pid, "NoNewPrivs") == "1"


async def test_workers_are_forks_that_share_memory() -> None:
    """A worker that waits costs a few MiB of its own, not an interpreter; it starts in a moment."""
    async with opened() as workers:
        many = [await workers.start() for _ in range(8)]
        assert len({worker.pid for worker in many}) == 8
        for worker in many:
            await at_rest(worker)
            assert status(worker.pid, "PPid") == str(parent_pid(workers))
            assert os.getsid(worker.pid) == worker.pid
            assert private_kib(worker.pid) < 12 * 1_024


async def test_many_at_once() -> None:
    """Workers that are asked for at the same time are as many processes, each with its own pipe."""
    async with opened() as workers:
        many = await asyncio.gather(*(workers.start() for _ in range(24)))
        assert len({worker.pid for worker in many}) == 24
        await asyncio.gather(*(worker.close() for worker in many[:12]))
        assert [is_there(worker.pid) for worker in many] == [False] * 12 + [True] * 12
        await workers.close()
        assert not any(is_there(worker.pid) for worker in many)


async def test_a_killed_worker_leaves_no_zombie() -> None:
    """A worker that is killed, by the runner or by anybody, is gone, and the others go on."""
    async with opened() as workers:
        ours, others, third = [await workers.start() for _ in range(3)]
        ours.kill()
        os.kill(others.pid, signal.SIGKILL)
        await asyncio.gather(ours.close(), others.close())
        assert not is_there(ours.pid)
        assert not is_there(others.pid)
        assert is_there(third.pid)
        ours.kill()
        assert is_there(third.pid)


async def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not notice the end of its pipe is killed after a while."""
    monkeypatch.setattr("mana.hub.runner.workers.JOIN_S_MAX", 0.2)
    async with opened() as workers:
        worker = await workers.start()
        os.kill(worker.pid, signal.SIGSTOP)
        await worker.close()
        await gone(worker.pid)


async def test_workers_die_with_their_parent() -> None:
    """When the warm parent is killed its workers end, and the next one comes from a new parent."""
    async with opened() as workers:
        before = parent_pid(workers)
        first, second = await workers.start(), await workers.start()
        # One that is busy, and does not look whether its pipe has ended.
        os.kill(first.pid, signal.SIGSTOP)
        os.kill(before, signal.SIGKILL)
        await asyncio.gather(first.close(), second.close())
        await gone(before, first.pid, second.pid)
        third = await workers.start()
        assert parent_pid(workers) != before
        assert is_there(third.pid)
        await third.close()


async def test_a_lost_parent_is_replaced_while_it_is_asked() -> None:
    """A request that meets a parent that is just dying is answered by a new one."""
    async with opened() as workers:
        before = parent_pid(workers)
        os.kill(before, signal.SIGSTOP)
        asked = asyncio.create_task(workers.start())
        await asyncio.sleep(0)
        os.kill(before, signal.SIGKILL)
        worker = await asked
        assert status(worker.pid, "PPid") == str(parent_pid(workers)) != str(before)


async def test_who_stopped_waiting_gets_no_worker() -> None:
    """A worker that nobody waits for any more is ended, and not left without a runner."""
    async with opened() as workers:
        parent = parent_pid(workers)
        os.kill(parent, signal.SIGSTOP)
        asked = asyncio.create_task(workers.start())
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        os.kill(parent, signal.SIGCONT)
        kept = await workers.start()
        while children(parent) != [kept.pid]:  # noqa: ASYNC110 - another process's children
            await asyncio.sleep(0.01)


async def test_nothing_can_be_forked_from_a_parent_that_does_not_start() -> None:
    """A parent that breaks down at its start is an error that says what to look at."""
    workers = ProcessWorkers(("-c", "raise SystemExit(3)"))
    with pytest.raises(WorkersUnavailable):
        await workers.start()
    await workers.close()


RUNNER = """
import asyncio, os, sys
from mana.hub.runner.workers import ProcessWorkers

async def main():
    workers = ProcessWorkers()
    made = [await workers.start() for _ in range(3)]
    print(workers.parent_pid, *(one.pid for one in made), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def runner_apart() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Lend a process with a warm parent and three workers, and their process ids."""
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        family: list[tuple[int, str]] = []
        try:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            family += [born(pid) for pid in pids]
            yield process, pids
        finally:
            process.kill()
            end_all(family)


async def test_workers_die_with_the_runner() -> None:
    """However a runner ends, and in whatever its workers are busy, nothing of them stays."""
    with runner_apart() as (process, pids):
        parent, *workers = pids
        os.kill(workers[0], signal.SIGSTOP)
        assert len(workers) == 3
        process.kill()
        await gone(parent, *workers)


ORPHAN = """
import os, time
from mana.hub.runner.isolation import die_with_parent

parent, told = os.getpid(), os.pipe()
if os.fork() == 0:
    os.close(told[1])
    os.read(told[0], 1)
    while os.getppid() == parent:
        time.sleep(0.001)
    die_with_parent(parent)
    print("still here", flush=True)
    os._exit(0)
os._exit(0)
"""


def said_apart(code: str) -> str:
    """Return what a process says that runs this code."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES)}
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_a_worker_whose_parent_died_first_ends_itself() -> None:
    """A fork that asks for the death signal when its parent is dead already does not go on."""
    assert said_apart(ORPHAN) == ""
    assert said_apart(ORPHAN.replace("die_with_parent(parent)", "pass")) == "still here\n"


def test_a_parent_that_lives_is_no_reason_to_end() -> None:
    """The check for a parent that died before lets a process with a living parent go on."""
    code = (
        "import os; from mana.hub.runner.isolation import die_with_parent;"
        "die_with_parent(os.getppid()); print('here')"
    )
    assert said_apart(code) == "here\n"


async def conversed(worker: ProcessWorker, missions: Missions, runs: range) -> None:
    """Play the runner of a worker for these runs, one after the other."""
    for run in runs:
        worker.channel.tell(missions.job(run))
        while not isinstance(said := await worker.channel.receive(), Finished):
            assert not isinstance(said, Stopped), said
            if (reply := answer(said)) is not None:
                worker.channel.tell(reply)
        missions.ran(said)


@pytest.mark.slow
async def test_a_worker_stays_flat() -> None:
    """A worker that serves run after run needs no more memory for the last than for the first."""
    missions = Missions.made(8)
    async with opened() as workers:
        worker = await workers.start()
        for message in missions.setup:
            worker.channel.tell(message)
        await conversed(worker, missions, range(64))
        before = private_kib(worker.pid)
        await conversed(worker, missions, range(64, 320))
        assert private_kib(worker.pid) - before < 1_024
        assert len(descriptors(worker.pid)) < 16


class Inline:
    """The runner's side of a worker's session in this process."""

    def __init__(self, missions: Missions, runs: int) -> None:
        self._missions = missions
        self._runs = runs
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        for message in (*missions.setup, missions.job(0)):
            self._said.put_nowait(message)
        self.ended = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.tell(message)

    def tell(self, message: Message) -> None:
        if (reply := answer(message)) is not None:
            self._said.put_nowait(reply)
        elif isinstance(message, Finished):
            self._missions.ran(message)
            self._next(message.run + 1)
        elif isinstance(message, Stopped):
            self._next(message.run + 1)

    def _next(self, run: int) -> None:
        if run < self._runs:
            self._said.put_nowait(self._missions.job(run))
        else:
            # Not before the task of the run has ended, too.
            asyncio.get_running_loop().call_later(0.05, self.ended.set)

    async def receive(self) -> Message:
        return await self._said.get()

    async def close(self) -> None:
        return


class Seeing(Instant):
    """A model that knows whether it was shown a word, and breaks down if it is told to."""

    def __init__(self, mark: bytes, *, breaks: bool) -> None:
        self._mark = mark
        self._breaks = breaks
        self.saw = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        text = " ".join(message.content for message in request.messages)
        self.saw += self._mark.hex() in text
        if self._breaks:
            raise RuntimeError(text)
        return await super().complete(request)


def keys_of(missions: Missions) -> list[bytes]:
    """Return the keys that these grants give, as bytes and as they stand in a payload."""
    space = missions.account.personal.space_key
    names = [(one.table, one.id) for records in missions.records for one in records]
    raw = [RecordKey.derive(space, *name).to_bytes() for name in names]
    raw += [mission_key(space, job.mission_id) for job in map(missions.job, range(2))]
    return [*raw, *(b64(key).encode() for key in raw)]


def held(wanted: Sequence[bytes]) -> set[int]:
    """Return which of these are in a text or in bytes that some object of this process holds."""
    place_by_word = {word: place for place, word in enumerate(wanted)}
    alternatives = b"|".join(re.escape(word) for word in wanted)
    pattern = re.compile(alternatives)
    own = {id(one) for one in (*wanted, alternatives)}
    found: set[int] = set()
    gc.collect()
    waiting, seen = gc.get_objects(), set[int]()
    while waiting:
        for one in gc.get_referents(waiting.pop()):
            if isinstance(one, str | bytes | bytearray):
                raw = one.encode("utf-8", "replace") if isinstance(one, str) else one
                if id(one) not in own:
                    found |= {place_by_word[word] for word in pattern.findall(raw)}
            elif not gc.is_tracked(one) and id(one) not in seen:
                # What the collector does not follow may hold texts all the same.
                seen.add(id(one))
                waiting.append(one)
    return found


@pytest.mark.parametrize("breaks", [False, True])
async def test_nothing_of_a_run_is_held_after_it(breaks: bool) -> None:
    """When a run has ended, well or not, its worker holds no text that it opened and no key of its
    grant: not in a cache, not in an error, not in a task."""
    mark = secrets.token_bytes(12)
    missions = Missions.made(2, content=mark.hex())
    model = Seeing(mark, breaks=breaks)
    channel = Inline(missions, 4)
    session = asyncio.create_task(work(channel, model=lambda: model))
    try:
        async with asyncio.timeout(60):
            await channel.ended.wait()
        assert model.saw
        wanted = [mark.hex().encode(), *keys_of(missions)]
        kept = secrets.token_hex(12)
        assert held([*wanted, kept.encode()]) == {len(wanted)}, "of all this test's own word alone"
    finally:
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)


def test_a_pipe_whose_other_side_is_gone() -> None:
    """Whoever tells a worker something that has ended is not broken by it, under no event loop."""

    async def tell() -> None:
        ours, theirs = socket.socketpair()
        channel = await SocketChannel.over(ours, ToRunner)
        theirs.close()
        with pytest.raises(WorkerLost):
            await channel.receive()
        for _ in range(3):
            channel.tell(Cancel(1))
            await asyncio.sleep(0.01)  # the loop learns of it
        with pytest.raises(WorkerLost):
            await channel.send(Cancel(1))
        await channel.close()

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(tell())
