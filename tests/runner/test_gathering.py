"""What is asked at once is answered at once, and nobody pays for another's failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mana.hub.runner.gathering import Gatherer, Turn

pytestmark = pytest.mark.anyio


async def test_what_comes_meanwhile_goes_together() -> None:
    """Whoever is alone does not wait; what comes while a batch is under way is the next batch."""
    batches: list[list[int]] = []
    began, going = asyncio.Event(), asyncio.Event()

    async def settle(asked: Sequence[int]) -> list[int]:
        began.set()
        batches.append(list(asked))
        await going.wait()
        return [one * 10 for one in asked]

    gatherer = Gatherer[int, int](settle, batch_max=3)
    first = asyncio.create_task(gatherer.ask(1))
    await began.wait()
    others = [asyncio.create_task(gatherer.ask(number)) for number in range(2, 7)]
    await asyncio.sleep(0)
    going.set()
    assert await asyncio.gather(first, *others) == [10, 20, 30, 40, 50, 60]
    assert batches == [[1], [2, 3, 4], [5, 6]]


async def test_one_that_fails_fails_alone() -> None:
    """A batch that fails is done one by one: the others hear their answers, one hears the failure."""

    async def settle(asked: Sequence[int]) -> list[int]:
        if 2 in asked:
            raise ValueError("two")
        return list(asked)

    gatherer = Gatherer[int, int](settle)
    found = await asyncio.gather(*(gatherer.ask(one) for one in (1, 2, 3)), return_exceptions=True)
    assert found[::2] == [1, 3]
    assert isinstance(found[1], ValueError)


async def test_who_goes_away_keeps_nobody_waiting() -> None:
    """Somebody who was cancelled while they waited hears nothing, and the others hear theirs."""

    async def settle(asked: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        return list(asked)

    gatherer = Gatherer[int, int](settle)
    gone, stays = (asyncio.create_task(gatherer.ask(one)) for one in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 2
    assert await gatherer.ask(3) == 3


async def test_who_waits_for_room_gathers_meanwhile() -> None:
    """Turns share the room: no more batches are under way than it has, and the others grow."""
    batches: list[list[int]] = []
    began, going = asyncio.Event(), asyncio.Event()

    async def settle(asked: Sequence[int]) -> list[int]:
        batches.append(list(asked))
        began.set()
        await going.wait()
        return list(asked)

    room = asyncio.Semaphore(1)
    one, other = (Gatherer[int, int](settle, turn=Turn(room)) for _ in range(2))
    first = asyncio.create_task(one.ask(1))
    await began.wait()
    waiting = [asyncio.create_task(other.ask(2))]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(other.ask(3)))
    await asyncio.sleep(0)
    assert batches == [[1]]
    going.set()
    assert await asyncio.gather(first, *waiting) == [1, 2, 3]
    assert batches == [[1], [2, 3]]


async def test_who_stops_waiting_for_room_gives_its_turn_back() -> None:
    """A turn that was given up while it waited for room is free for the next."""
    room = asyncio.Semaphore(1)
    turn = Turn(room)
    async with room:
        waiting = asyncio.create_task(turn.__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with turn:
        assert room.locked()
    assert not room.locked()
