"""The worker's side of one run: what it may ask the runner, and what it tells it.

A run asks one question at a time and hears the answer only after the runner committed it. How far
it is goes out as a phase and whole numbers, and not more often than anybody could look at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditDone,
    AuditEntry,
    Channel,
    Granted,
    Message,
    PhaseNote,
    Refused,
    ReserveAsk,
    RunMessage,
    SettleAsk,
    WorkerLost,
)
from mana.planning.budget import read_budget_reason
from mana.planning.ports import (
    BudgetExceeded,
    ModelCall,
    Moment,
    PriceUnknown,
    Reservation,
    Usage,
)

NOTES_EVERY_S: Final = 0.25
"""How long a run goes on before its runner is told where it stands, and again after that."""
NO_PRICE: Final = "no-price"


class NotAllowed(Exception):
    """The runner refused a reading; `reason` is its word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Line:
    """One run's place on the pipe that all runs of the worker share."""

    def __init__(self, channel: Channel, run: int) -> None:
        self._channel = channel
        self.run = run
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Message] | None = None

    async def ask(self, question: RunMessage) -> Message:
        """Return the runner's answer."""
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            try:
                await self._channel.send(question)
                return await self._answer
            finally:
                self._answer = None

    def answered(self, answer: Message) -> None:
        """Hand over what the runner answered; nobody may be waiting for it any more."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def tell(self, note: RunMessage) -> None:
        """Tell the runner something that needs no answer."""
        self._channel.tell(note)

    async def audit(
        self, entries: Sequence[AuditEntry], *, endpoints: Sequence[str], checked: bool
    ) -> AuditDone:
        """Return when the rows are committed; raise NotAllowed if they may not be opened."""
        answer = await self.ask(AuditAsk(self.run, list(entries), list(endpoints), checked))
        if isinstance(answer, Refused):
            raise NotAllowed(answer.reason)
        if not isinstance(answer, AuditDone):
            raise WorkerLost("the audit was answered by something else")
        return answer


class AskedBudget:
    """The tokens of mission, agent, account and hub, each reservation committed by the runner."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._began: dict[str, float] = {}

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve the worst case of one call."""
        price = call.price
        ask = ReserveAsk(
            self._line.run,
            prompt_tokens,
            completion_tokens_max,
            call.endpoint,
            call.model,
            call.purpose,
            None if price is None else price.prompt,
            None if price is None else price.completion,
        )
        answer = await self._line.ask(ask)
        if isinstance(answer, Granted):
            self._began[answer.reservation] = _now_s()
            return Reservation(answer.reservation, answer.completion_tokens_max)
        reason = answer.reason if isinstance(answer, Refused) else ""
        refusal = read_budget_reason(reason)
        if refusal is not None:
            raise BudgetExceeded(
                left=refusal.left, cap=refusal.cap, scope=refusal.scope, unit=refusal.unit
            )
        if reason == NO_PRICE:
            raise PriceUnknown("nobody said what this model costs")
        raise NotAllowed(reason)

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Replace a reservation by what was used."""
        await self._settle(reservation, usage, released=False)

    async def release(self, reservation: str) -> None:
        """Give a reservation back, as no model worked on its call."""
        await self._settle(reservation, None, released=True)

    async def _settle(self, reservation: str, usage: Usage | None, *, released: bool) -> None:
        now_s = _now_s()
        ask = SettleAsk(
            self._line.run,
            reservation,
            None if usage is None else usage.prompt_tokens,
            None if usage is None else usage.completion_tokens,
            now_s - self._began.pop(reservation, now_s),
            released,
        )
        await self._line.ask(ask)


class ToldProgress:
    """Tells the runner how far the run is: where it stands when a quarter of a second has passed.

    What is over by then was nothing that anybody could look at. `traced`: each phase as it begins.
    """

    def __init__(self, line: Line, *, traced: bool = False) -> None:
        self._line = line
        self._traced = traced
        self._moment = Moment("")
        self._timer: asyncio.TimerHandle | None = None

    def phase(self, name: str) -> None:
        """Say that the run entered a phase."""
        was = self._moment
        self.moment(Moment(name, was.round, was.tool_calls, was.steps, 0))

    def moment(self, moment: Moment) -> None:
        """Say how far the run is by now."""
        is_new = moment.phase != self._moment.phase
        self._moment = moment
        if self._traced and is_new:
            self._tell()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTES_EVERY_S, self._tell)

    def close(self) -> None:
        """Tell nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self.close()
        told = self._moment
        self._line.tell(
            PhaseNote(
                self._line.run, told.phase, told.round, told.tool_calls, told.steps, told.heard
            )
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
