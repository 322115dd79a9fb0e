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


class BudgetExceeded(Conflict):
    """What is left of the agent's budget is too little for the next call, or nothing."""

    code: ClassVar[str] = "BUDGET_EXCEEDED"
    advice: ClassVar[str] = "Raise the agent's budget, or wait until the next day."

    def __init__(self, *, left: int, cap: int) -> None:
        super().__init__(
            "what is left of the agent's budget is too little for a call",
            detail={"left": left, "cap": cap},
        )
        self.left = left
        self.cap = cap


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
    `name` the model there, `description` one honest sentence for the person. `metered`: its
    tokens count against the agent's budget; what is not metered costs nothing.
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

    @property
    def metered(self) -> bool:
        """Say whether calls are counted against budgets."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the model's answer; raise ModelFailed if there is none."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that are held for one call, and how long the reply to it may be at most."""

    id: str
    completion_tokens_max: int


class Budget(Protocol):
    """Tokens that a run may spend; the worst case is reserved before each metered call."""

    async def reserve(self, prompt_tokens: int, completion_tokens_max: int) -> Reservation:
        """Reserve the worst case; raise BudgetExceeded.

        Where less is left, the reply may be shorter than wanted, but not too short to be of use.
        """

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
