"""Which HTTP status each error of the tree has. The most special class that is listed wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mana.protocol.errors import RateLimited, UpgradeNeeded
from mana.protocol.messages import Problem
from mana.protocol.problems import problem_of

STATUS: Final[Mapping[type[ManaError], int]] = {
    CryptoFailed: 400,
    Invalid: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    UpgradeNeeded: 426,
    RateLimited: 429,
    Unavailable: 503,
}
_BY_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("BAD_REQUEST", "the request is malformed"),
    401: ("UNAUTHENTICATED", "no valid access token"),
    404: ("NOT_FOUND", "there is no such path"),
    405: ("METHOD_NOT_ALLOWED", "this path does not take this method"),
    413: ("TOO_LARGE", "the body is larger than this path takes"),
    415: ("BAD_REQUEST", "the body has a form that is not taken"),
}
INTERNAL: Final = Problem(
    code="INTERNAL",
    title="the hub failed",
    status=500,
    advice="Try again; if it stays, look at the hub's log.",
)


def status_of(error: ManaError) -> int:
    """Return the status of an error; 500 for one that nobody foresaw."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem_for(error: Exception, *, status: int | None = None) -> Problem:
    """Return the problem document of any exception, without a word of an unforeseen one.

    `status`: what the HTTP framework would answer, for exceptions of its own.
    """
    if isinstance(error, ManaError):
        found = status_of(error)
        return INTERNAL if found == 500 else problem_of(error, found)
    if status is not None and status < 500:
        code, title = _BY_STATUS.get(status, _BY_STATUS[400])
        return Problem(code=code, title=title, status=status)
    return INTERNAL
