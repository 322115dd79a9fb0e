"""What many ask at the same moment is answered at once.

While one batch is under way the next gathers, and nobody waits for more to come: whoever is alone
is a batch of one. Where a batch fails, each of it is done by itself, so that one that cannot be
done fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

BATCH_MAX: Final = 64


class Turn:
    """The turn of gatherers that do one batch at a time between them.

    `room`: how many batches are under way in all turns together. Whoever waits for room has more
    come together meanwhile, so that what the database is asked falls as the load rises.
    """

    def __init__(self, room: asyncio.Semaphore | None = None) -> None:
        self._own = asyncio.Lock()
        self._room = room if room is not None else asyncio.Semaphore()

    async def __aenter__(self) -> None:
        await self._own.acquire()
        try:
            await self._room.acquire()
        except BaseException:
            self._own.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._room.release()
        self._own.release()


class Gatherer(Generic[_Asked, _Answer]):
    """Answers what is asked in batches, one after the other, in the order of the questions.

    `settle` answers a whole batch, in its order, or raises and has changed nothing. Gatherers that
    share a `turn` do one batch at a time between them, so that more comes together meanwhile.
    """

    def __init__(
        self,
        settle: Callable[[Sequence[_Asked]], Awaitable[Sequence[_Answer]]],
        *,
        turn: Turn | None = None,
        batch_max: int = BATCH_MAX,
    ) -> None:
        self._settle = settle
        self._turn = turn or Turn()
        self._batch_max = batch_max
        self._waiting: list[tuple[_Asked, asyncio.Future[_Answer]]] = []
        self._working: asyncio.Task[None] | None = None

    async def ask(self, asked: _Asked) -> _Answer:
        """Return the answer; raise what its batch of one raised.

        Whoever is cancelled while it waits hears nothing; the question is answered all the same.
        """
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                async with self._turn:
                    batch = self._waiting[: self._batch_max]
                    del self._waiting[: self._batch_max]
                    await self._answer(batch)
        finally:
            self._working = None
            for _, answer in self._waiting:
                answer.cancel()

    async def _answer(self, batch: Sequence[tuple[_Asked, asyncio.Future[_Answer]]]) -> None:
        try:
            found = await self._settle([asked for asked, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    await self._answer([each])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        for (_, told), one in zip(batch, found, strict=True):
            if not told.done():
                told.set_result(one)
