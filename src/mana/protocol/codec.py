"""Messages to bytes and back, and which JSON values may travel at all.

A value travels only if every side gives it the same canonical bytes: signatures and hashes
are over those. So numbers are finite and exact in a double, and text has no NUL, which
PostgreSQL cannot keep.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

import msgspec

from mana.domain.encoding import Json
from mana.domain.errors import Invalid

NUMBER_MAX: Final = 2**53
SEQ_MAX: Final = 2**53 - 1
"""The last place that a log can have: each one up to here is told from its neighbours."""
DEPTH_MAX: Final = 64

_T = TypeVar("_T")


def encode(message: object) -> bytes:
    """Return the JSON bytes of a message."""
    return msgspec.json.encode(message)


def decode(raw: bytes, shape: type[_T]) -> _T:
    """Return the message of a shape; raise Invalid that names the place and quotes nothing."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        place = _place_of(str(error))
        raise Invalid(f"the message is malformed at {place}", detail={"at": place}) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("the message is not JSON in UTF-8") from None


def check_value(value: Json) -> None:
    """Raise Invalid unless this JSON value travels unchanged through every side."""
    _check(value, DEPTH_MAX)


def check_text(text: str) -> None:
    """Raise Invalid for text with NUL or a lone surrogate."""
    if "\x00" in text:
        raise Invalid("text with NUL cannot be kept")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Invalid("not text that can be written in UTF-8") from None


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise Invalid(f"a value is nested deeper than {DEPTH_MAX}")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > NUMBER_MAX:
            raise Invalid("a number is not exact in every implementation")
        if value == 0 and math.copysign(1, value) < 0:
            raise Invalid("minus zero has no one form")
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, dict):
        for name, member in value.items():
            check_text(name)
            _check(member, depth - 1)
    else:
        raise Invalid("not a JSON value")


def _place_of(message: str) -> str:
    """Return the JSON path of a validation message: names from our shapes, never a value."""
    _, found, place = message.rpartition(" - at `")
    return place.rstrip("`") if found else "$"
