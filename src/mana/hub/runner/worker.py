"""The worker: a process for one account. Opened keys and plaintext are here and nowhere else.

It works on several runs at a time, each in a task of its own: one that breaks ends alone. It has
no database; the runner answers over the pipe, and if the runner ends, so does this.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import VerifyKey
from mana.domain.errors import ManaError
from mana.hub.runner.choosing import GivenModels, Models, SetUpModels
from mana.hub.runner.conversation import Line
from mana.hub.runner.dialogue import (
    Cancel,
    Channel,
    Job,
    Message,
    OpeningKey,
    RunMessage,
    Setup,
    SocketChannel,
    Standing,
    Stopped,
    ToWorker,
    WorkerLost,
)
from mana.hub.runner.run import Ended, Run
from mana.hub.runner.standing import Space
from mana.hub.runner.warm import runner_key
from mana.planning.ports import Model

RUNS_MAX: Final = 16
"""How many runs are worked on at a time; further ones wait for their turn."""


def serve(end: socket.socket) -> None:
    """Work on what comes over the pipe until it ends. Runs in a process of its own."""
    asyncio.run(_serve(end))


async def _serve(end: socket.socket) -> None:
    channel = await SocketChannel.over(end, ToWorker)
    try:
        await work(channel)
    except WorkerLost:
        return
    finally:
        await channel.close()


async def work(channel: Channel, *, model: Callable[[], Model] | None = None) -> None:
    """Work on what comes over the pipe; raise WorkerLost at its end.

    `model` makes a model for each run in place of the configured one (tests).
    """
    await _Session(channel, model).serve()


class _Session:
    """What one worker knows and does. Nothing of a run outlives it but what spaces share."""

    def __init__(self, channel: Channel, model: Callable[[], Model] | None) -> None:
        self._channel = channel
        self._models: Models | None = None if model is None else GivenModels(model)
        self._hub_key: VerifyKey | None = None
        self._spaces: dict[tuple[str, str], Space] = {}
        self._keys: dict[str, RunnerPrivateKey] = {}
        self._lines: dict[int, Line] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(RUNS_MAX)
        self._set_up: SetUpModels | None = None
        self._is_ending = False
        self._traced = False

    async def serve(self) -> None:
        """Take messages until the pipe ends."""
        try:
            while True:
                self._take(await self._channel.receive())
        finally:
            self._is_ending = True
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._set_up is not None:
                await self._set_up.close()

    def _take(self, message: Message) -> None:
        match message:
            case Setup():
                self._hub_key = VerifyKey(unb64(message.hub_key))
                self._traced = message.traced
                if self._models is None:
                    self._models = self._set_up = SetUpModels(message.models)
            case OpeningKey():
                self._keys[message.key_id] = runner_key(message.pem)
            case Standing():
                self._spaces[message.space_id, message.digest] = Space(message)
            case Job():
                task = asyncio.create_task(self._work(message))
                self._tasks[message.run] = task
                task.add_done_callback(lambda _task: self._forget(message.run))
            case Cancel():
                task_of = self._tasks.get(message.run)
                if task_of is not None:
                    task_of.cancel()
            case RunMessage():
                line = self._lines.get(message.run)
                if line is not None:
                    line.answered(message)

    def _forget(self, run: int) -> None:
        self._tasks.pop(run, None)
        self._lines.pop(run, None)

    async def _work(self, job: Job) -> None:
        """Work on one run and send what it came to."""
        try:
            async with self._turns:
                answer: Message = await self._result(job)
        except asyncio.CancelledError:
            if self._is_ending:
                raise
            answer = Stopped(job.run, "failed", "stopped")
        except Ended as ended:
            answer = Stopped(
                job.run, ended.outcome, ended.reason, ended.detail, ended.retry_after_ms
            )
        except ManaError as error:
            # The code is a word of ours; the message may not leave this process.
            answer = Stopped(job.run, "failed", "internal", error.code)
        except Exception as error:
            # What was not foreseen may quote what was opened: its traceback must not be printed.
            answer = Stopped(job.run, "failed", "internal", type(error).__name__)
        try:
            await self._channel.send(answer)
        except WorkerLost:
            return

    async def _result(self, job: Job) -> Message:
        space = self._spaces.get((job.space_id, job.standing))
        key = self._keys.get(job.runner_key_id)
        if self._hub_key is None or self._models is None or space is None or key is None:
            raise WorkerLost("a job came before what it names")
        line = self._lines[job.run] = Line(self._channel, job.run)
        run = Run(
            line,
            job,
            models=self._models,
            runner=key,
            hub=self._hub_key,
            space=space,
            traced=self._traced,
        )
        return await run.result()
