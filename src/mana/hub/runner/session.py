"""A worker as the runner sees it: the runs that are in it, each with a port of its own.

A run that is to end is told so, and the worker with it only if it does not obey. When a worker ends
by itself nobody can say which of its runs was at fault, unless there was one only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal

from mana.hub.money.store import Granted
from mana.hub.runner.admission import Admitted
from mana.hub.runner.dialogue import (
    Cancel,
    Finished,
    Message,
    PhaseNote,
    RunMessage,
    Setup,
    Stopped,
    WorkerLost,
)
from mana.hub.runner.prices import RULES
from mana.hub.runner.spending import Settle
from mana.hub.runner.workers import Worker

RUNS_MAX: Final = 256
AGE_S_MAX: Final = 60.0
IDLE_S: Final = 0.5
GRACE_S: Final = 1.0
"""How long a worker has to end a run that was cancelled, before it is ended itself."""
INBOX_MAX: Final = 32
RELEASES_MAX: Final = 16
"""How many calls of one run may count nothing, since no model worked on them. A chain of dead
endpoints comes to less; a worker that says so again and again buys no calls beyond a cap by it.
"""

_NOBODY: Final = -1

Interruption = Literal["timeout", "stopped", "lost"]
Blame = Literal["at-fault", "suspect", "innocent"]


class RunLost(WorkerLost):
    """The worker of a run ended; `blame` says whether the run was the cause."""

    code = "RUN_LOST"
    advice = (
        "The occurrence is leased again; after three times that are its own fault it has failed."
    )

    def __init__(self, blame: Blame, why: str = "the worker of the run ended") -> None:
        super().__init__(why)
        self.blame: Blame = blame


class Port:
    """One run in a worker."""

    def __init__(self, session: Session, admitted: Admitted) -> None:
        self._session = session
        self.admitted: Final = admitted
        self.run: Final = admitted.job.run
        self._inbox: asyncio.Queue[Message | RunLost] = asyncio.Queue()
        self._grace: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_closed = False
        self.interruption: Interruption | None = None
        self.provider = RULES
        """A word for whoever answers the call of a model that was asked for last."""
        self.granted: Final[dict[str, Granted]] = {}
        """The reservations of the run that are not settled, by their ids."""
        self.settled: Final[list[Settle]] = []
        """Calls that ended and go along with what the run commits next."""
        self._releases = 0

    async def receive(self) -> Message:
        """Return what the run says next; raise RunLost when its worker has ended."""
        found = await self._inbox.get()
        if isinstance(found, RunLost):
            self._inbox.put_nowait(found)
            raise found
        return found

    def may_release(self) -> bool:
        """Say whether it is believed once more that no model worked on a call of this run."""
        self._releases += 1
        return self._releases <= RELEASES_MAX

    async def answer(self, message: Message) -> None:
        """Answer the run; raise RunLost."""
        try:
            await self._session.worker.channel.send(message)
        except WorkerLost:
            raise RunLost(self._session.blame(self.run)) from None

    def interrupt(self, why: Interruption) -> None:
        """End the run: it says `Stopped` then, or its worker ends."""
        if self.interruption is None:
            self.interruption = why
            self._session.cancel(self.run)
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(GRACE_S, self.blame)

    def blame(self) -> None:
        """End the worker, because of this run."""
        self._session.kill(self.run)

    def close(self) -> None:
        """Leave the worker; what the run still says is not heard. It ends, if it has not yet."""
        self._is_closed = True
        if self._is_over:
            self._leave()
        else:
            self.interrupt("lost")

    def _leave(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._session.leave(self.run)

    def hear(self, message: Message) -> None:
        """Take in what the run said."""
        self._is_over = self._is_over or isinstance(message, Stopped | Finished)
        if self._is_closed:
            if self._is_over:
                self._leave()
        elif self._inbox.qsize() >= INBOX_MAX:
            self.blame()
        elif self.interruption is None or isinstance(message, Stopped | Finished):
            # After it was told to end, a run is given nothing any more.
            self._inbox.put_nowait(message)

    def lose(self, lost: RunLost) -> None:
        """Take in that the worker has ended."""
        self._is_over = True
        if self._grace is not None:
            self._grace.cancel()
        self._inbox.put_nowait(lost)


class Session:
    """A worker process and the runs in it. `noted` is told how far they are."""

    def __init__(
        self,
        worker: Worker,
        setup: Setup,
        *,
        noted: Callable[[Port, PhaseNote], None],
        ended: Callable[[Session], None],
    ) -> None:
        self.worker: Final = worker
        self.setup: Final = setup
        self._noted = noted
        self._ended = ended
        self._ports: dict[int, Port] = {}
        self._told: set[tuple[str, str]] = set()
        self._born_s = time.monotonic()
        self._served = 0
        self._blamed: int | None = None
        self._is_over = False
        self._idling: asyncio.TimerHandle | None = None
        worker.channel.tell(setup)
        self._reading = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        """Say whether further runs may come in."""
        is_old = time.monotonic() - self._born_s >= AGE_S_MAX
        return not self._is_over and self._served < RUNS_MAX and not is_old

    def enter(self, admitted: Admitted) -> Port:
        """Give the worker a run."""
        if self._idling is not None:
            self._idling.cancel()
            self._idling = None
        port = self._ports[admitted.job.run] = Port(self, admitted)
        self._served += 1
        for name, message in (
            (("key", admitted.key.key_id), admitted.key),
            ((admitted.standing.space_id, admitted.standing.digest), admitted.standing),
        ):
            if name not in self._told:
                self._told.add(name)
                self.worker.channel.tell(message)
        self.worker.channel.tell(admitted.job)
        if self._is_over:
            port.lose(RunLost("innocent"))
        return port

    def cancel(self, run: int) -> None:
        """Tell the worker to end a run."""
        self.worker.channel.tell(Cancel(run))

    def blame(self, run: int) -> Blame:
        """Say whether a run is why the worker ended."""
        if self._blamed is not None:
            return "at-fault" if self._blamed == run else "innocent"
        return "at-fault" if len(self._ports) == 1 else "suspect"

    def kill(self, run: int = _NOBODY) -> None:
        """End the worker at once, because of this run, or through nobody's fault."""
        if self._blamed is None and not self._is_over:
            self._blamed = run
        self.worker.kill()

    def leave(self, run: int) -> None:
        """Take a run out; a worker without any ends after a moment."""
        self._ports.pop(run, None)
        if not self._ports and not self._is_over and self._idling is None:
            pause_s = IDLE_S if self.is_open else 0.0
            loop = asyncio.get_running_loop()
            self._idling = loop.call_later(pause_s, self._end)

    async def close(self) -> None:
        """End the worker and wait for it; it is nobody's fault."""
        self._end()
        await asyncio.gather(self._reading, return_exceptions=True)

    def _end(self) -> None:
        if self._blamed is None:
            self._blamed = _NOBODY
        self._is_over = True
        self._reading.cancel()

    def _is_ending(self) -> bool:
        """Say whether the worker is being ended: nothing is heard any more from it then."""
        return self._blamed is not None

    async def _read(self) -> None:
        """Hand out what the worker says, until it ends."""
        try:
            while not self._is_ending():
                message = await self.worker.channel.receive()
                port = self._ports.get(message.run) if isinstance(message, RunMessage) else None
                if port is None or self._is_ending():
                    continue
                if isinstance(message, PhaseNote):
                    self._noted(port, message)
                else:
                    port.hear(message)
        except WorkerLost:
            pass
        finally:
            self._is_over = True
            for port in self._ports.values():
                port.lose(RunLost(self.blame(port.run)))
            self._ended(self)
            self.worker.kill()
            await asyncio.shield(self.worker.close())
