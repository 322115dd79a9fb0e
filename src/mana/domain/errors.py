"""One tree of errors: the class is the fact, `code` is the contract.

Nothing here knows HTTP or exit codes; the edges translate (`hub/http/problems.py`,
`web/problems.py`, `cli/exits.py`). A code never changes its meaning once released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ManaError(Exception):
    """Something that Mana refuses or cannot do, with a stable code and a next step.

    `code` is UPPER_SNAKE and stable. The message says what happened; `advice` what the
    person can do. `detail` holds values that a program may need (ids, limits, times), never
    a person's text or a key.
    """

    code: ClassVar[str] = "INTERNAL"
    advice: ClassVar[str] = ""

    def __init__(self, message: str = "", *, detail: Mapping[str, object] | None = None) -> None:
        super().__init__(message or self.__class__.__name__)
        self.message = message or self.__class__.__name__
        self.detail: dict[str, object] = dict(detail or {})


class Invalid(ManaError):
    """The input has a form that can never be accepted."""

    code = "BAD_REQUEST"
    advice = "Correct the input and send it again."


class NotFound(ManaError):
    """There is no such thing here, or it is not this account's to see."""

    code = "NOT_FOUND"
    advice = "Check the id; it may belong to another space or have been removed."


class Conflict(ManaError):
    """The state has moved, or is not one in which this can be done."""

    code = "CONFLICT"
    advice = "Load the current state and try again."


class Forbidden(ManaError):
    """The account is known but may not do this."""

    code = "FORBIDDEN"
    advice = "Ask someone with the needed role."


class Unauthenticated(ManaError):
    """No valid proof of who is asking."""

    code = "UNAUTHENTICATED"
    advice = "Sign in again."


class Unavailable(ManaError):
    """Something that this needs is not reachable or not set up; nothing was lost."""

    code = "UNAVAILABLE"
    advice = "Try again later; what you wrote is kept."


class TooLarge(Invalid):
    """More than a documented limit in one piece."""

    code = "TOO_LARGE"
    advice = "Split it into smaller pieces."


class CryptoFailed(ManaError):
    """Bytes did not open, verify or parse. Never says which, beyond the code."""

    code = "CRYPTO_FAILED"
    advice = "The data was changed, or sealed with another key."
