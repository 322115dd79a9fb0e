"""Costs as they stand in fields: units of the currency with a point, kept as millionths."""

from __future__ import annotations

from typing import Final

from mana.domain.money import cost_of

MILLIONTHS: Final = 1_000_000


def amount_of(text: str) -> int | None:
    """Return what was typed in millionths, None for nothing; raise Invalid for what is no amount."""
    return cost_of(text) if text.strip() else None


def amount_field(cost: int | None) -> str:
    """Return an amount as it stands in a field, empty for none."""
    if cost is None:
        return ""
    whole, rest = divmod(cost, MILLIONTHS)
    digits = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{digits}"
