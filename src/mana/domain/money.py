"""Tokens and costs: what a model charges, and what a day may cost.

Costs are whole millionths of the hub's one currency, so that no rounding gathers: 1,000,000 is one
unit of it. A price is given per million tokens, as providers give it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.records import View

TOKENS_PER_DAY_MAX: Final = 1_000_000_000
COST_PER_DAY_MAX: Final = 1_000_000_000_000
_MILLION: Final = 1_000_000
_TYPED: Final = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in millionths of the currency per million tokens."""

    prompt: int
    completion: int

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return what so many tokens cost at most, in millionths, rounded up."""
        total = prompt_tokens * self.prompt + completion_tokens * self.completion
        return -(-total // _MILLION)

    def completion_tokens(self, prompt_tokens: int, left: int) -> int:
        """Return how long the reply to a prompt may be, so that both cost at most `left`.

        Less than nothing where the prompt alone costs more.
        """
        room = left * _MILLION - prompt_tokens * self.prompt
        if room < 0:
            return -1
        return room // self.completion if self.completion else TOKENS_PER_DAY_MAX


FREE: Final = Price(0, 0)


def amount_words(cost: int, currency: str) -> str:
    """Return a cost as people read it, with two digits, or as many as it takes below a cent."""
    whole, rest = divmod(cost, _MILLION)
    digits = f"{rest:06}".rstrip("0") if not whole and 0 < rest < 10_000 else f"{rest // 10_000:02}"
    return f"{whole:,}.{digits} {currency}"


def cap_words(tokens: int | None, cost: int | None, currency: str) -> str:
    """Return caps in words; empty where there is none."""
    said = [] if tokens is None else [f"{tokens:,} tokens"]
    if cost is not None:
        said.append(amount_words(cost, currency))
    return " and ".join(said)


def cost_of(text: str) -> int:
    """Return a cost as a person types it, such as `1.50`, in millionths.

    Raises Invalid for anything else. A comma is refused, because people mean two things by it.
    """
    found = _TYPED.fullmatch(text.strip())
    if found is None:
        raise Invalid("an amount is written with a point and at most six digits after it: 1.50")
    cost = int(found[1]) * _MILLION + int((found[2] or "").ljust(6, "0"))
    if cost > COST_PER_DAY_MAX:
        raise Invalid(f"an amount is at most {COST_PER_DAY_MAX // _MILLION:,}")
    return cost


def whole_or_none(view: View, name: str) -> int | None:
    """Return a field's whole number that is not negative, None if there is none."""
    value = view.values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two caps; None is no cap."""
    return min((cap for cap in (one, other) if cap is not None), default=None)
