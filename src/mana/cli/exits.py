"""Which exit status each error has, so that a script can tell them apart.

The nearest class in the tree decides, so an error that is added later already has a status.
0 is success, 2 also what the command line itself reports for wrong usage.
"""

from __future__ import annotations

from typing import Final

from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
    Unavailable,
)

EXIT_STATUS_BY_ERROR: Final[dict[type[ManaError], int]] = {
    ManaError: 1,
    Invalid: 2,
    NotFound: 3,
    Unauthenticated: 4,
    Forbidden: 4,
    Conflict: 5,
    Unavailable: 6,
    CryptoFailed: 7,
}


def exit_status(error: ManaError) -> int:
    """Return the exit status for `error`."""
    return next(
        status
        for kind in type(error).__mro__
        if (status := EXIT_STATUS_BY_ERROR.get(kind)) is not None
    )
