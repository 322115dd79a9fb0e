"""What planning needs from outside: a model, a budget and someone who watches.

Hub, device and tests implement these; planning itself opens nothing and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, Protocol

from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Unavailable
from mana.domain.money import FREE, Price

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "calls", "length", "content-filter", "other"]
FailureKind = Literal["provider", "timeout", "refused-reply", "rate-limit", "auth"]
FAILURE_KINDS: Final = ("provider", "timeout", "refused-reply", "rate-limit", "auth")
Purpose = Literal["plan", "sub-agent", "compaction"]
CapScope = Literal["mission", "agent", "account", "hub"]
CAP_SCOPES: Final = ("mission", "agent", "account", "hub")
CapUnit = Literal["tokens", "cost"]
CONTEXT_TOKENS: Final = 32_768
"""What a model can read at once where nobody said how much."""


class BudgetExceeded(Conflict):
    """What is left of a budget is too little for the next call, or nothing.

    `scope` and `unit` name the cap: of the mission, the agent, the account or the hub, in tokens or
    in millionths of the currency.
    """

    code: ClassVar[str] = "BUDGET_EXCEEDED"
    advice: ClassVar[str] = "Raise the budget that it names, or wait until the next day."

    def __init__(
        self, *, left: int, cap: int, scope: CapScope = "agent", unit: CapUnit = "tokens"
    ) -> None:
        super().__init__(
            f"what is left of the {scope}'s budget of {unit} is too little for a call",
            detail={"left": left, "cap": cap, "scope": scope, "unit": unit},
        )
        self.left = left
        self.cap = cap
        self.scope: CapScope = scope
        self.unit: CapUnit = unit


class PriceUnknown(Conflict):
    """A cap of costs is set, and nobody said what this model costs."""

    code: ClassVar[str] = "PRICE_UNKNOWN"
    advice: ClassVar[str] = "Give the model's prices, or remove the cap of costs."


class ModelFailed(Unavailable):
    """A model gave no usable reply. `kind` chooses the back-off; no reply text is kept.

    `retry_after_ms`: how long the endpoint asks to be left alone, where it said so. `unbilled`: it is
    certain that the model did no work; whoever does not know that says False.
    """

    code: ClassVar[str] = "MODEL_FAILED"
    advice: ClassVar[str] = "Check the model's address and key; the mission tries again."

    def __init__(
        self,
        kind: FailureKind,
        message: str = "",
        *,
        retry_after_ms: int | None = None,
        unbilled: bool = False,
    ) -> None:
        super().__init__(message or f"model call failed: {kind}", detail={"kind": kind})
        self.kind: FailureKind = kind
        self.retry_after_ms = retry_after_ms
        self.unbilled = unbilled


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
    """One call of a model. `tools` are function schemas, as `registry.schemas` makes them.

    `heard` is told, while the reply comes, how many characters of it have come.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Json], ...]
    temperature: float
    completion_tokens_max: int
    heard: Callable[[int], None] | None = field(default=None, compare=False, repr=False)


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
        """Return the model's answer; raise ModelFailed if there is none.

        To cancel the task that waits for it ends the call: nothing goes on behind it.
        """


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a run may call. `price` None: nobody said what it costs."""

    model: Model
    price: Price | None = FREE
    context_tokens: int = CONTEXT_TOKENS


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What one call is, for the ledger: which model, at what price, and what for."""

    endpoint: str
    model: str
    price: Price | None = FREE
    purpose: Purpose = "plan"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that are held for one call, and how long the reply to it may be at most."""

    id: str
    completion_tokens_max: int


class Budget(Protocol):
    """Tokens and costs that a run may have; the worst case is reserved before each metered call."""

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve the worst case; raise BudgetExceeded, or PriceUnknown under a cap of costs.

        Where less is left, the reply may be shorter than wanted, but not too short to be of use.
        """

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Replace a reservation by what was used; None leaves it counted in full."""

    async def release(self, reservation: str) -> None:
        """Give a reservation back, as it is certain that the model did no work for its call."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a run is: rounds begun, calls of tools answered, steps planned, and how many
    characters of the reply have come.
    """

    phase: str
    round: int = 0
    tool_calls: int = 0
    steps: int = 0
    heard: int = 0


class Progress(Protocol):
    """Someone who wants to see how far a run is. Nothing that it is told is a person's text."""

    def phase(self, name: str) -> None:
        """Say that the run entered the phase of this name."""

    def moment(self, moment: Moment) -> None:
        """Say how far the run is by now; it may come often."""
