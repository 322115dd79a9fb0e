"""What can go wrong between a runner and others: a line to PostgreSQL, and a model's endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from mana.planning.ports import FunctionCall
from mana.testing import endpoints
from mana.testing.endpoints import Asked, Line

SOCKET = ".s.PGSQL.5432"
CALL = FunctionCall("c1", "create_task", {"title": "Call", "rationale": "It is in a note."})


@dataclass
class BadLine:
    """A line to a server's socket. While `every` is set, about one message in so many goes wrong.

    Either it is refused: it never arrives; or it is torn: a part of it arrives; or its answer is
    lost, or torn: it is carried out, and the line is cut before the sender learns of it. Some
    others arrive late.
    """

    target: Path
    dice: random.Random
    every: int | None = None
    refused: int = 0
    unanswered: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to the server until it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError):
                theirs, ours = await asyncio.open_unix_connection(str(self.target))
                try:
                    await self._carry(reader, writer, theirs, ours)
                finally:
                    ours.transport.abort()
        finally:
            writer.transport.abort()
            self._open.discard(task)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        theirs: asyncio.StreamReader,
        ours: asyncio.StreamWriter,
    ) -> None:
        deaf = asyncio.Event()
        back = asyncio.create_task(self._answers(theirs, writer, deaf))
        there = asyncio.create_task(self._messages(reader, ours, deaf))
        try:
            await asyncio.wait({back, there}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (back, there):
                one.cancel()
            await asyncio.gather(back, there, return_exceptions=True)

    async def _messages(
        self, reader: asyncio.StreamReader, ours: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            if self.every is not None and self.dice.randrange(self.every) == 0:
                fault = self.dice.choice(("refused", "torn", "unanswered", "late"))
                if fault in ("refused", "torn"):
                    self.refused += 1
                    if fault == "torn":
                        ours.write(data[: self.dice.randrange(len(data))])
                        await ours.drain()
                    return
                if fault == "unanswered":
                    self.unanswered += 1
                    deaf.set()
                else:
                    await asyncio.sleep(self.dice.random() * 0.3)
            ours.write(data)
            await ours.drain()

    async def _answers(
        self, theirs: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        while data := await theirs.read(65_536):
            if deaf.is_set():
                writer.write(data[: self.dice.randrange(len(data))])
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()

    async def cut(self) -> None:
        """Cut every connection at once."""
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


@contextlib.asynccontextmanager
async def bad_line(target: Path, folder: Path, dice: random.Random) -> AsyncIterator[BadLine]:
    """Lend a bad line to the server whose socket lies in `target`; its own lies in `folder`."""
    line = BadLine(target / SOCKET, dice)
    server = await asyncio.start_unix_server(line.talk, str(folder / SOCKET))
    try:
        yield line
    finally:
        server.close()
        await line.cut()


class MoodyModel:
    """An endpoint that is mostly well, and else anything that an endpoint can be.

    `asked`: by the title of the mission, how many requests came for it. `moods`: what they got.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.is_well = False
        self.asked: Counter[str] = Counter()
        self.moods: Counter[str] = Counter()

    async def __call__(self, asked: Asked, line: Line) -> None:
        """Answer one request."""
        text = asked.raw.decode()
        title = text.partition("title of ")[2].partition(";")[0]
        self.asked[title] += 1
        mood = "well" if self.is_well else self._mood()
        self.moods[mood] += 1
        plan = (CALL,) if asked.body["messages"][-1]["role"] != "tool" else ()
        good = endpoints.says("" if plan else "Done.", *plan)
        answer = {
            "well": good,
            "late": endpoints.late(0.3, good),
            "busy": endpoints.body(b"{}", 429, "Retry-After: 1"),
            "broken": endpoints.body(b"{}", 500),
            "silent": endpoints.silent,
            "stalling": endpoints.stalls(),
            "dropping": endpoints.drops(endpoints.delta(content="Do")),
            "nonsense": endpoints.raw(b"\x00nonsense\r\n\r\n"),
            "dear": endpoints.says("" if plan else "Done.", *plan, usage=(10**9, 10**9)),
            "negative": endpoints.says("" if plan else "Done.", *plan, usage=(-5, -7)),
            "cheap": endpoints.says("" if plan else "Done.", *plan, usage=(1, 1)),
            "mute": endpoints.says("" if plan else "Done.", *plan, usage=None),
        }[mood]
        await answer(asked, line)

    def _mood(self) -> str:
        if self._dice.random() < 0.7:
            return "well"
        others = ("late", "busy", "broken", "silent", "stalling", "dropping", "nonsense")
        return self._dice.choice((*others, "dear", "negative", "cheap", "mute"))
