"""Starts the parts of Mana as processes of their own, watches them, and stops them cleanly.

A part says on a pipe when it serves. Its standard input is its lifeline: when the supervisor
ends, however hard, the pipe closes and the part stops by itself, so nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mana.domain.errors import ManaError, Unavailable

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 12.0
RESTARTS_MAX: Final = 5
RESTART_WINDOW_S: Final = 60.0
LOG_BYTES_MAX: Final = 8 * 1024 * 1024
READY_FD_VARIABLE: Final = "MANA_READY_FD"
"""The part writes one line of JSON to this file descriptor when it serves."""
FAIL_VARIABLE: Final = "MANA_FAIL_POINT"
LIFELINE_VARIABLE: Final = "MANA_LIFELINE"
"""Set to `stdin`: the part stops when its standard input ends."""


class PartFailed(Unavailable):
    """A part of Mana did not start, or ended again and again."""

    code = "PART_FAILED"


@dataclass(slots=True)
class Part:
    """One process: its name, arguments after `mana`, environment, and where its output goes."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    lifeline: int | None = None
    ready: dict[str, object] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)


class Supervisor:
    """Runs parts until it is asked to stop, or one of them cannot be kept running."""

    def __init__(self, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._parts: list[Part] = []
        self._stopping = asyncio.Event()
        self._failure: ManaError | None = None

    def fail(self, error: ManaError) -> None:
        """Let `watch` end with an error: something beside the parts cannot be kept running."""
        self._failure = error
        self._stopping.set()

    def stop(self) -> None:
        """Ask for a clean stop; `watch` returns."""
        self._stopping.set()

    async def start(self, part: Part) -> dict[str, object]:
        """Start a part and return what it said when it was ready."""
        if part not in self._parts:
            self._parts.append(part)
        read, write = os.pipe()
        lifeline_read, lifeline = os.pipe()
        log = _opened_log(part.log)
        part.starts.append(time.monotonic())
        try:
            part.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mana.cli.main",
                *part.arguments,
                stdin=lifeline_read,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                # A Ctrl-C reaches the supervisor alone, which then stops the parts in order.
                start_new_session=True,
                env={
                    **part.environment,
                    READY_FD_VARIABLE: str(write),
                    LIFELINE_VARIABLE: "stdin",
                    "PYTHONUNBUFFERED": "1",
                },
            )
        finally:
            for handle in (write, lifeline_read, log):
                os.close(handle)
        part.lifeline = lifeline
        try:
            async with asyncio.timeout(READY_S_MAX):
                line = await _first_line(read)
        except TimeoutError:
            line = b""
        finally:
            os.close(read)
        if not line:
            await self._stop_part(part)
            raise PartFailed(
                f"{part.name} did not start; its log is {part.log}",
                detail={"log": str(part.log)},
            )
        part.ready = json.loads(line)
        return part.ready

    async def watch(self) -> None:
        """Return when a stop was asked for; start again a part that ended by itself.

        Raises PartFailed when a part ends more than five times in a minute, and what `fail` was
        told.
        """
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not stopping.done():
                waits = {
                    asyncio.create_task(part.process.wait()): part
                    for part in self._parts
                    if part.process is not None
                }
                done, pending = await asyncio.wait(
                    {stopping, *waits}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in pending - {stopping}:
                    task.cancel()
                for task in done - {stopping}:
                    if not self._stopping.is_set():
                        await self._again(waits[task])
        finally:
            stopping.cancel()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop all parts, the last started first, and return when their processes are gone."""
        for part in reversed(self._parts):
            await self._stop_part(part)
        self._parts.clear()

    async def _again(self, part: Part) -> None:
        recent = [at for at in part.starts if at > time.monotonic() - RESTART_WINDOW_S]
        status = part.process.returncode if part.process is not None else None
        await self._stop_part(part)
        if len(recent) >= RESTARTS_MAX:
            raise PartFailed(
                f"{part.name} ended {len(recent)} times in a minute; its log is {part.log}"
            )
        self._say(f"{part.name} ended (status {status}); starting it again")
        # A part that ends at once is not started in a tight loop.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2 * 2 ** len(recent)):
                await self._stopping.wait()
        if not self._stopping.is_set():
            # A fail point kills once, so that a test sees the crash and what comes after it.
            part.environment = {
                name: value for name, value in part.environment.items() if name != FAIL_VARIABLE
            }
            await self.start(part)

    async def _stop_part(self, part: Part) -> None:
        process, part.process = part.process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S_MAX):
                    await process.wait()
            except TimeoutError:
                self._say(f"{part.name} did not stop in {STOP_S_MAX:.0f} s; ending it")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if part.lifeline is not None:
            os.close(part.lifeline)
            part.lifeline = None


async def _first_line(handle: int) -> bytes:
    """Return the first line that comes from a pipe; empty if it closes without one."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    os.set_blocking(handle, False)
    while not got.endswith(b"\n"):
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(handle, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(handle)
        chunk = os.read(handle, 65_536)
        if not chunk:
            return b""
        got += chunk
    return bytes(got)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _opened_log(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
