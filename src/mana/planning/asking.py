"""Asking a model: each try is reserved before it is made and settled after it, as a call of its own.

The first candidate is the choice, the others stand behind it. One that fails in a way that another
endpoint may not share is left for the rest of the run, so that a dead endpoint costs one wait.
Who is cancelled while a model answers leaves the reservation open, and so counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid
from mana.domain.money import Price
from mana.planning.budget import counted, estimated_tokens
from mana.planning.ports import (
    Budget,
    Candidate,
    FailureKind,
    Message,
    ModelCall,
    ModelFailed,
    ModelReply,
    ModelRequest,
    PriceUnknown,
    Purpose,
    Usage,
)

FALLS_BACK: Final = frozenset({"provider", "timeout", "rate-limit", "auth"})
"""Failures of one endpoint. A refused reply is an answer, which another model is not asked to mend."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model was asked for one purpose: how often, and what its provider reported."""

    endpoint: str
    model: str
    price: Price | None
    purpose: Purpose
    calls: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class FallBack:
    """A model that was left for the next one, and the class of its failure."""

    endpoint: str
    model: str
    kind: FailureKind


class Asking:
    """The models of one run, and what was asked of them.

    `tokens_counted`: what the calls take of a day, those without a usage that can be true in full.
    """

    def __init__(self, models: Sequence[Candidate], budget: Budget) -> None:
        if not models:
            raise Invalid("a run needs a model")
        self._waiting = list(models)
        self._budget = budget
        self._spent: dict[tuple[str, str, Purpose], Spent] = {}
        self._failed: ModelFailed | None = None
        self.fallbacks: list[FallBack] = []
        self.tokens_counted = 0

    @property
    def current(self) -> Candidate:
        """Return the model that the next call goes to."""
        return self._waiting[0]

    @property
    def spent(self) -> tuple[Spent, ...]:
        """Return what was asked, in the order of the first call of each."""
        return tuple(self._spent.values())

    @property
    def usage(self) -> Usage:
        """Return what providers reported for all calls together."""
        return sum((one.usage for one in self._spent.values()), Usage())

    async def ask(self, request: ModelRequest, purpose: Purpose, *, size: int) -> ModelReply:
        """Return the current model's reply. The worst case is reserved first, and settled after.

        `size`: the bytes of the request, as `request_size` counts them. Without a usage that can be
        true the whole reservation counts, and nothing where it is certain that the model did no
        work. A model that is not metered costs nothing, whatever it reports. Raises BudgetExceeded,
        PriceUnknown or ModelFailed.
        """
        candidate, model = self.current, self.current.model
        if not model.metered:
            reply = _writable(await model.complete(request))
            self._count(candidate, purpose, Usage())
            return reply
        call = ModelCall(model.endpoint, model.name, candidate.price, purpose)
        reservation = await self._budget.reserve(
            estimated_tokens(size), request.completion_tokens_max, call
        )
        request = replace(request, completion_tokens_max=reservation.completion_tokens_max)
        held = estimated_tokens(size) + reservation.completion_tokens_max
        try:
            reply = _writable(await model.complete(request))
        except ModelFailed as failed:
            self._count(candidate, purpose, Usage())
            if failed.unbilled:
                await self._budget.release(reservation.id)
            else:
                await self._budget.settle(reservation.id, None)
                self.tokens_counted += held
            raise
        usage = counted(
            reply.usage,
            sent_bytes=size,
            reply_bytes=reply_size(reply),
            completion_tokens_max=reservation.completion_tokens_max,
        )
        await self._budget.settle(reservation.id, usage)
        self._count(candidate, purpose, usage or Usage())
        self.tokens_counted += held if usage is None else usage.total
        return replace(reply, usage=usage)

    def falls_back(self, error: ModelFailed | PriceUnknown) -> bool:
        """Leave the current model for the next one, and say whether there is one to ask.

        A fall-back without a price, under a cap of costs, is passed over; if none is left, what
        the first choice failed of is raised.
        """
        if isinstance(error, PriceUnknown):
            if self._failed is None:
                return False
            if len(self._waiting) == 1:
                raise self._failed from None
        else:
            if error.kind not in FALLS_BACK or len(self._waiting) == 1:
                return False
            self._failed = error
            left = self.current.model
            self.fallbacks.append(FallBack(left.endpoint, left.name, error.kind))
        self._waiting.pop(0)
        return True

    def _count(self, candidate: Candidate, purpose: Purpose, usage: Usage) -> None:
        model = candidate.model
        key = (model.endpoint, model.name, purpose)
        old = self._spent.get(key) or Spent(
            model.endpoint, model.name, candidate.price, purpose, 0, Usage()
        )
        self._spent[key] = replace(old, calls=old.calls + 1, usage=old.usage + usage)


def _writable(reply: ModelReply) -> ModelReply:
    """Return a reply whose text has a UTF-8 form: half characters are replaced."""
    return replace(reply, content=reply.content.encode("utf-8", "replace").decode("utf-8"))


def message_size(message: Message) -> int:
    """Return how many bytes a message has when it is sent."""
    calls = [[call.id, call.name, call.arguments] for call in message.calls]
    return len(canonical_json([message.role, message.content, message.call_id, calls])) + 1


def request_size(request: ModelRequest) -> int:
    """Return how many bytes a request has when it is sent."""
    tools = sum(len(canonical_json(tool)) for tool in request.tools)
    return sum(map(message_size, request.messages)) + tools


def reply_size(reply: ModelReply) -> int:
    """Return how many bytes a reply has that anybody pays for."""
    calls = sum(len(call.name) + _arguments_size(call.arguments) for call in reply.calls)
    return len(reply.content.encode("utf-8")) + calls


def _arguments_size(arguments: Json) -> int:
    """Return the bytes of a call's arguments; what is not JSON is refused later, and counts none."""
    try:
        return len(canonical_json(arguments))
    except Invalid:
        return 0


def prompt_tokens(request: ModelRequest) -> int:
    """Return the tokens that reading a request may cost at most, by the size of what is sent."""
    return estimated_tokens(request_size(request))
