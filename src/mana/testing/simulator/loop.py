"""Virtual time, and processes that can die at any place where they wait.

An asyncio loop whose clock jumps to the next timer instead of waiting, so that a month of the
simulated world takes seconds, and whose only order is that of its timers. Work for a thread runs
here, in one piece, a drawn moment before its caller hears of it or just when it does: so a crash
can fall between a commit and its caller.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import base_events
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
WORK_S_MAX: Final = 0.004
"""How long work for a thread takes at most, in virtual seconds."""


class Killed(BaseException):
    """The process of this task is dead. No `except Exception` of the code under test sees it."""


class Stalled(Exception):
    """Every task waits and no timer is set: nothing will ever happen again."""


class Process:
    """What dies at once: its tasks end, and nothing that they still try has an effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._futures: set[asyncio.Future[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run a coroutine as a task of this process, and of nobody else."""
        token = _PROCESS.set(self)
        try:
            task = asyncio.get_running_loop().create_task(work)
        finally:
            _PROCESS.reset(token)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Take a task that was begun by code of this process."""
        self._tasks.add(task)
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self.is_dead and not task.cancelled():
            task.exception()  # what a dead process says is nobody's news

    def wait(self, future: asyncio.Future[_T]) -> asyncio.Future[_T]:
        """Return a future that ends with this process."""
        if self.is_dead:
            future.set_exception(Killed())
            return future
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def kill(self) -> None:
        """End the process: what it waits for never comes."""
        self.is_dead = True
        # Sets have no order that holds from run to run; names of tasks count up.
        for future in list(self._futures):
            if not future.done():
                future.set_exception(Killed())
        for task in sorted(self._tasks, key=lambda one: int(one.get_name().rpartition("-")[2])):
            task.cancel()

    @property
    def idle(self) -> bool:
        """Say whether no task of the process is left."""
        return not self._tasks


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def current_process() -> Process | None:
    """Return the process whose code runs now."""
    return _PROCESS.get()


class _Selector:
    """Instead of waiting for sockets, lets time pass."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stalled("every task waits for something that nobody will do")
        self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        """Nothing was opened."""


class SimulatedLoop(base_events.BaseEventLoop):
    """The event loop of a simulated world; `chance` decides how long threads take."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._now_s = 0.0
        self._chance = chance
        self._selector = _Selector(self)
        self._tasks_made = 0
        self.set_task_factory(self._named)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def pass_time(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now_s += max(0.0, seconds)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        """Run work for a thread here, in one piece."""
        future: asyncio.Future[_T] = self.create_future()
        process = current_process()
        if process is not None:
            process.wait(future)
            if process.is_dead:
                return future
        after_s = self._chance.random() * WORK_S_MAX
        if self._chance.random() < 0.5:
            outcome = _tried(func, args)
            self.call_later(after_s, lambda: _settle(future, outcome))
        else:
            self.call_later(after_s, lambda: future.done() or _run_into(future, func, args))
        return future

    def _named(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        # The loop's own counter goes on from run to run; ours names tasks the same in each.
        self._tasks_made += 1
        options["name"] = f"task-{self._tasks_made}"
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        process = current_process()
        if process is not None:
            process.adopt(task)
        return task

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector who would have to be woken."""


def _tried(
    func: Callable[..., _T], args: tuple[Any, ...]
) -> tuple[_T | None, BaseException | None]:
    try:
        return func(*args), None
    except BaseException as error:
        return None, error


def _run_into(future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    _settle(future, _tried(func, args))
    return True


def _settle(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if future.done():
        return
    value, error = outcome
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
