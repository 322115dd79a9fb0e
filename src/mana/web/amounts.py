"""Costs as a person types them: units of the currency with a point, kept as millionths."""

from __future__ import annotations

import re
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.money import COST_PER_DAY_MAX

MILLIONTHS: Final = 1_000_000
_TYPED: Final = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?", re.ASCII)


def amount_of(text: str) -> int | None:
    """Return what was typed in millionths, None for nothing; raise Invalid for what is no amount."""
    typed = text.replace(",", "").strip()
    if not typed:
        return None
    found = _TYPED.fullmatch(typed)
    if found is None:
        raise Invalid("an amount is a number such as 1.50, or empty for none")
    cost = int(found[1]) * MILLIONTHS + int((found[2] or "").ljust(6, "0"))
    if cost > COST_PER_DAY_MAX:
        raise Invalid("this amount is larger than any that can be kept")
    return cost


def amount_field(cost: int | None) -> str:
    """Return an amount as it stands in a field, empty for none."""
    if cost is None:
        return ""
    whole, rest = divmod(cost, MILLIONTHS)
    digits = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{digits}"
