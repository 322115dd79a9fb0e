"""What a day's tokens and costs allow, and what counts as spent. Pure; every budget uses these rules.

The provider is not believed: a usage that cannot be true leaves the whole reservation counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from mana.domain.money import FREE, Price
from mana.planning.ports import CAP_SCOPES, BudgetExceeded, CapScope, CapUnit, PriceUnknown, Usage

COMPLETION_TOKENS_MIN: Final = 256
"""Below this a reply is cut before it is of use, so the call is not made."""

TOKENS_MAX: Final = 1_000_000_000
"""More than this no call has, asked or reported."""
BYTES_PER_TOKEN: Final = 3
"""How many bytes of a request are taken for one token where the worst case is reserved."""
BYTES_PER_TOKEN_MAX: Final = 40
TOKENS_BESIDE: Final = 64
"""What a provider may add to a request: its own frame around the messages."""
REPLY_TIMES_MAX: Final = 4
"""By how much a reply may be longer than was allowed: thoughts that are charged and not shown."""
_REASON: Final = re.compile(
    rf"budget:(?:({'|'.join(CAP_SCOPES)}):(tokens|cost):)?([0-9]{{1,18}})/([0-9]{{1,18}})"
)


@dataclass(frozen=True, slots=True)
class Cap:
    """What a day may take under one scope, and what it has taken; costs in millionths."""

    scope: CapScope
    unit: CapUnit
    cap: int
    counted: int

    @property
    def left(self) -> int:
        """Return what is left; less than nothing where a report went beyond its reservation."""
        return self.cap - self.counted

    def exceeded(self) -> BudgetExceeded:
        """Return the refusal that names this cap."""
        return BudgetExceeded(
            left=max(self.left, 0), cap=self.cap, scope=self.scope, unit=self.unit
        )


class BudgetRefusal(NamedTuple):
    """What a reason of a budget says: what was left of which cap."""

    left: int
    cap: int
    scope: CapScope = "agent"
    unit: CapUnit = "tokens"


def estimated_tokens(sent_bytes: int) -> int:
    """Return the tokens that reading so many bytes may cost, for the reservation."""
    return -(-sent_bytes // BYTES_PER_TOKEN)


def fitting(
    prompt_tokens: int, completion_tokens_max: int, *, cap: int | None, counted: int
) -> int:
    """Return how long a reply may be under an agent's cap of tokens alone, as `fitting_all`."""
    caps = () if cap is None else (Cap("agent", "tokens", cap, counted),)
    return fitting_all(prompt_tokens, completion_tokens_max, caps)


def fitting_all(
    prompt_tokens: int,
    completion_tokens_max: int,
    caps: Iterable[Cap],
    price: Price | None = FREE,
) -> int:
    """Return how long a reply may be, at most as wanted, so that every cap holds the whole call.

    Raises BudgetExceeded for the first cap that leaves less than the floor, and PriceUnknown under
    a cap of costs where the price is None. What costs nothing asks a cap of costs for nothing, but
    a cap of 0 stops that too.
    """
    room = completion_tokens_max
    for one in caps:
        if one.unit == "cost":
            if price is None:
                raise PriceUnknown("a cap of costs is set, and the model has no price")
            if price == FREE and one.cap > 0:
                continue
            fits = price.completion_tokens(prompt_tokens, one.left)
        else:
            fits = one.left - prompt_tokens
        if one.left <= 0 or fits < min(COMPLETION_TOKENS_MIN, completion_tokens_max):
            raise one.exceeded()
        room = min(room, fits)
    return room


def counted(
    usage: Usage | None, *, sent_bytes: int, reply_bytes: int, completion_tokens_max: int
) -> Usage | None:
    """Return the usage that a provider reported if it can be true; None: all reserved counts.

    `completion_tokens_max`: what the request allowed. Who knows only the reservation takes
    `BYTES_PER_TOKEN` bytes for each token of its prompt, and no byte of a reply.
    """
    if usage is None:
        return None
    prompt_fits = _within(usage.prompt_tokens, sent_bytes, sent_bytes + TOKENS_BESIDE)
    reply_max = REPLY_TIMES_MAX * completion_tokens_max
    reply_fits = _within(usage.completion_tokens, reply_bytes, reply_max)
    return usage if prompt_fits and reply_fits else None


def counted_slice(usage: Usage, *, asked: int, calls: int) -> Usage | None:
    """Return what a device used of tokens that it had asked for, for so many calls, as `counted`."""
    is_believed = is_sane(usage.prompt_tokens, usage.completion_tokens) and (
        usage.total <= REPLY_TIMES_MAX * asked + TOKENS_BESIDE * calls
    )
    return usage if is_believed else None


def _within(tokens: int, size: int, most: int) -> bool:
    """Say whether so many tokens can stand for so many bytes, and are no more than `most`."""
    return size <= tokens * BYTES_PER_TOKEN_MAX and 0 <= tokens <= min(most, TOKENS_MAX)


def counted_tokens(usage: Usage | None, reserved: int) -> int:
    """Return what a call counts, whose usage went through `counted`: that, else all reserved."""
    if usage is None or not is_sane(usage.prompt_tokens, usage.completion_tokens):
        return reserved
    return usage.total


def is_sane(prompt_tokens: int, completion_tokens: int) -> bool:
    """Say whether these can be numbers of tokens."""
    return 0 <= prompt_tokens <= TOKENS_MAX and 0 <= completion_tokens <= TOKENS_MAX


def is_used_up(cap: int | None, counted: int, *, metered: bool) -> bool:
    """Say whether an agent may not even begin. A cap of 0 stops it with any model."""
    return cap is not None and (cap <= 0 or (metered and counted >= cap))


def used_up(caps: Iterable[Cap], *, metered: bool, priced: bool) -> str | None:
    """Return why a run may not even begin, as ledgers keep it; None if it may.

    `priced`: some model that it may call costs something or has no price, so caps of costs count.
    """
    for one in caps:
        counts = metered and (priced or one.unit == "tokens")
        if is_used_up(one.cap, one.counted, metered=counts):
            return budget_reason(0, one.cap, one.scope, one.unit)
    return None


def budget_reason(left: int, cap: int, scope: CapScope = "agent", unit: CapUnit = "tokens") -> str:
    """Return why a run was skipped, as ledgers keep it: whose cap, what was left, and the cap."""
    return f"budget:{scope}:{unit}:{max(left, 0)}/{max(cap, 0)}"


def read_budget_reason(reason: str) -> BudgetRefusal | None:
    """Return what a reason says, None for another reason or one without numbers.

    Ledgers of earlier versions name no scope: it was the agent's tokens.
    """
    match = _REASON.fullmatch(reason)
    if match is None:
        return None
    scope, unit = match[1] or "agent", match[2] or "tokens"
    return BudgetRefusal(int(match[3]), int(match[4]), cast(CapScope, scope), cast(CapUnit, unit))
