"""How far a run is goes out for whoever can look at it, and costs a short run nothing."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from mana.hub.runner import conversation
from mana.hub.runner.conversation import Line, ToldProgress
from mana.hub.runner.dialogue import Message, PhaseNote, Setup, Stopped, WorkerLost
from mana.hub.runner.worker import work
from mana.planning.ports import Moment
from mana.testing.runs import Instant, Missions, answer

pytestmark = pytest.mark.anyio


class Pipe:
    """A worker's end of a pipe; `said` is what it told."""

    def __init__(self, *given: Message) -> None:
        self.said: list[Message] = []
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue()
        for message in given:
            self._waiting.put_nowait(message)

    @property
    def notes(self) -> list[PhaseNote]:
        return [one for one in self.said if isinstance(one, PhaseNote)]

    async def send(self, message: Message) -> None:
        self.tell(message)

    def tell(self, message: Message) -> None:
        self.said.append(message)
        reply = answer(message)
        if reply is not None or not isinstance(message, PhaseNote):
            self._waiting.put_nowait(reply)

    async def receive(self) -> Message:
        message = await self._waiting.get()
        if message is None:
            raise WorkerLost("that was all")
        return message

    async def close(self) -> None:
        return


@pytest.mark.parametrize("traced", [False, True])
async def test_what_is_over_at_once_is_not_told(traced: bool) -> None:
    """A run of no time says nothing of its phases, but where each of them is traced."""
    missions = Missions.made(1)
    setup = [
        msgspec.structs.replace(one, traced=traced) if isinstance(one, Setup) else one
        for one in missions.setup
    ]
    pipe = Pipe(*setup, missions.job(0))
    with pytest.raises(WorkerLost):
        await work(pipe, model=Instant)
    assert not [one for one in pipe.said if isinstance(one, Stopped)]
    phases = ["prompt", "model", "tools", "model", "done"] if traced else []
    assert [note.name for note in pipe.notes] == phases


async def test_what_lasts_is_told_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time has passed, the newest word goes out, once; and nothing after the end."""
    monkeypatch.setattr(conversation, "NOTES_EVERY_S", 0.0)
    pipe = Pipe()
    progress = ToldProgress(Line(pipe, 7))
    progress.phase("prompt")
    progress.moment(Moment("model", 1, 2, 3, 40))
    assert pipe.notes == []
    await turn()
    assert pipe.notes == [PhaseNote(7, "model", 1, 2, 3, 40)]
    await turn()
    assert len(pipe.notes) == 1
    progress.moment(Moment("model", 1, 2, 3, 90))
    await turn()
    assert pipe.notes[1:] == [PhaseNote(7, "model", 1, 2, 3, 90)]
    progress.phase("done")
    progress.close()
    await turn()
    assert len(pipe.notes) == 2


async def turn() -> None:
    """Let the loop do what is due, timers too."""
    for _ in range(3):
        await asyncio.sleep(0)
