"""Errors as problem documents (RFC 9457) and back, so that the far side raises the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from mana.domain.encoding import Json
from mana.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mana.protocol.errors import RateLimited
from mana.protocol.messages import Problem

MEDIA_TYPE: Final = "application/problem+json"
_FAMILIES: Final[Mapping[int, type[ManaError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: RateLimited,
}


def problem_of(error: ManaError, status: int) -> Problem:
    """Return the document of an error. What is not JSON in its detail is left out."""
    detail: dict[str, Json] = {}
    for name, value in error.detail.items():
        if isinstance(value, str | int | float | bool | list | dict) or value is None:
            detail[name] = value
    return Problem(
        code=error.code, title=error.message, status=status, advice=error.advice, detail=detail
    )


def error_of(raw: bytes, status: int) -> ManaError:
    """Return the error that an answer of this status stands for.

    A code that this version does not know becomes an error of the status' family with the
    code kept; an answer that is no problem document becomes the family itself.
    """
    family = _FAMILIES.get(status, Invalid if 400 <= status < 500 else Unavailable)
    try:
        problem = msgspec.json.decode(raw, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return family(f"the hub answered with status {status}")
    found = next((known for known in _known(ManaError) if known.code == problem.code), None)
    if found is None:
        found = type("Refused", (family,), {"code": problem.code, "advice": problem.advice})
    error = found.__new__(found)
    # Some classes take other arguments to be raised first-hand.
    ManaError.__init__(error, problem.title, detail=problem.detail)
    return error


def _known(root: type[ManaError]) -> Iterator[type[ManaError]]:
    yield root
    for child in root.__subclasses__():
        yield from _known(child)
