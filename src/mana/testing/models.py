"""A model for tests that says what it is told to, a budget that keeps its ledger, and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mana.domain.encoding import Json
from mana.planning.budget import counted_tokens, fitting
from mana.planning.ports import (
    FunctionCall,
    ModelCall,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Moment,
    Reservation,
    Usage,
)

Script = ModelReply | ModelFailed | Callable[[ModelRequest], ModelReply]


def says(content: str, *calls: FunctionCall, usage: Usage | None = None) -> ModelReply:
    """Return a reply with these calls, or a closing one without."""
    return ModelReply(content, calls, "calls" if calls else "stop", usage or Usage(2_000, 20))


def calling(tool: str, arguments: Json = None, *, id: str = "") -> FunctionCall:  # noqa: A002
    """Return a call with an id of its own kind."""
    return FunctionCall(id or f"{tool}-1", tool, {} if arguments is None else arguments)


class ScriptedModel:
    """A model that answers with the given replies, then with a closing one.

    `requests` holds what it was asked, in order.
    """

    endpoint = "scripted:test"
    name = "scripted"
    description = "scripted: answers as a test says; text stays on this machine"
    local = True
    metered = True

    def __init__(self, replies: Iterable[Script] = ()) -> None:
        self._replies = list(replies)
        self.requests: list[ModelRequest] = []

    def add(self, *replies: Script) -> None:
        """Add replies at the end."""
        self._replies += replies

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the next reply, or raise the next failure."""
        self.requests.append(request)
        if not self._replies:
            return says("Done.")
        script = self._replies.pop(0)
        if isinstance(script, ModelFailed):
            raise script
        return script(request) if callable(script) else script


class CountedBudget:
    """A budget in memory that keeps its ledger; `tokens_max` None has no limit."""

    def __init__(self, tokens_max: int | None = None) -> None:
        self.tokens_max = tokens_max
        self.reserved: dict[str, int] = {}
        self.settled: dict[str, int] = {}

    @property
    def spent(self) -> int:
        """Return what counts as spent: settled use, and every reservation that still stands."""
        return sum(self.settled.get(key, tokens) for key, tokens in self.reserved.items())

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve tokens; raise BudgetExceeded."""
        granted = fitting(
            prompt_tokens, completion_tokens_max, cap=self.tokens_max, counted=self.spent
        )
        key = f"reservation-{len(self.reserved)}"
        self.reserved[key] = prompt_tokens + granted
        return Reservation(key, granted)

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Count what was used; what cannot be true leaves the reservation."""
        self.settled[reservation] = counted_tokens(usage, self.reserved[reservation])

    async def release(self, reservation: str) -> None:
        """Count nothing for a call that no model worked on."""
        self.settled[reservation] = 0


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str) -> None:
        """Do nothing."""

    def moment(self, moment: Moment) -> None:
        """Do nothing."""
