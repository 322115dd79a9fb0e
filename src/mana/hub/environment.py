"""Numbers and switches of an environment, refused by the name of the variable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mana.domain.errors import Invalid

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number within bounds; empty or absent is the default."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Invalid(f"{name} is not a whole number")
    found = int(text)
    if not low <= found <= high:
        raise Invalid(f"{name} is from {low} to {high}")
    return found


def flag(environ: Mapping[str, str], name: str, default: bool) -> bool:
    """Return a switch; empty or absent is the default."""
    text = environ.get(name, "").strip().lower()
    if not text:
        return default
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Invalid(f"{name} is true or false")
