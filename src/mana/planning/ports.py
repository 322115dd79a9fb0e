"""What planning needs from outside: a model, a budget and someone who watches.

Hub, device and tests implement these; planning itself opens nothing and reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Protocol

from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Unavailable

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "calls", "length", "content-filter", "other"]
FailureKind = Literal["provider", "timeout", "refused-reply", "rate-limit", "auth"]
FAILURE_KINDS: Final = ("provider", "timeout", "refused-reply", "rate-limit", "auth")
Phase = Literal["prompt", "model", "tools", "done"]


class BudgetExceeded(Conflict):
    """The agent, mission or account has no tokens left for the next call's worst case."""

    code: ClassVar[str] = "BUDGET_EXCEEDED"
    advice: ClassVar[str] = "Raise the agent's budget, or wait until the next day."


class ModelFailed(Unavailable):
    """A model gave no usable reply. `kind` chooses the back-off; no reply text is kept."""

    code: ClassVar[str] = "MODEL_FAILED"
    advice: ClassVar[str] = "Check the model's address and key; the mission tries again."

    def __init__(self, kind: FailureKind, message: str = "") -> None:
        super().__init__(message or f"model call failed: {kind}", detail={"kind": kind})
        self.kind: FailureKind = kind


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A tool call as the model wrote it.

    `arguments` is the parsed JSON, or the raw string where it was not JSON: the loop
    refuses that with a reason, so that the model can repair it.
    """

    id: str
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation. `call_id` is set exactly for role `tool`."""

    role: Role
    content: str
    calls: tuple[FunctionCall, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or of a whole run."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        """Return both kinds together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of two usages."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model. `tools` are function schemas, as `registry.schemas` makes them."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Json], ...]
    temperature: float
    completion_tokens_max: int


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered. `usage` is None where the provider did not say."""

    content: str
    calls: tuple[FunctionCall, ...]
    finish: Finish
    usage: Usage | None


class Model(Protocol):
    """A model behind one endpoint.

    `endpoint` is what a grant's header allows (scheme, host and port, or `rules:offline`),
    `name` the model there, `description` one honest sentence for the person.
    """

    @property
    def endpoint(self) -> str:
        """Return where text goes, as grants name it."""

    @property
    def name(self) -> str:
        """Return the model's name at that endpoint."""

    @property
    def description(self) -> str:
        """Return one sentence that says what this is and where text goes."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the model's answer; raise ModelFailed if there is none."""


class Budget(Protocol):
    """Tokens that a run may spend; the worst case is reserved before each call."""

    async def reserve(self, tokens: int) -> str:
        """Reserve the worst case and return the reservation; raise BudgetExceeded."""

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Replace a reservation by what was used; None leaves it counted in full."""


class Progress(Protocol):
    """Someone who wants to see how far a run is."""

    def phase(self, name: str) -> None:
        """Say that the run entered the phase of this name; names carry no person's text."""


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str) -> None:
        """Do nothing."""
