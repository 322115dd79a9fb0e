"""Failures of the database as facts, without the values that caused them.

PostgreSQL quotes values in its messages and details. What leaves this package carries the
SQLSTATE and names from the schema only, and no chained driver error.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import asyncpg

from mana.domain.errors import Conflict, Forbidden, Invalid, ManaError, Unavailable

_T = TypeVar("_T")


class DatabaseFailed(ManaError):
    """The database refused a statement for a reason that the code did not foresee."""

    code = "DATABASE_FAILED"

    def __init__(self, sqlstate: str, constraint: str | None = None) -> None:
        named = f" ({constraint})" if constraint else ""
        super().__init__(f"the database refused a statement: {sqlstate}{named}")
        self.sqlstate = sqlstate
        self.constraint = constraint


class AlreadyExists(DatabaseFailed, Conflict):
    """A unique constraint holds already; `constraint` names it."""

    code = "ALREADY_EXISTS"
    advice = "Load what is there already."


class ReferenceMissing(DatabaseFailed, Conflict):
    """A row points to one that is not there, or is pointed to by others."""

    code = "REFERENCE_MISSING"
    advice = "Load the current state and try again."


class CheckFailed(DatabaseFailed, Invalid):
    """A value is outside what its column can hold."""

    code = "CHECK_FAILED"
    advice = "Correct the input and send it again."


class AccessRefused(DatabaseFailed, Forbidden):
    """Row-level security or a missing right refused the statement."""

    code = "ACCESS_REFUSED"
    advice = "Check that this account belongs to the space."


class SerializationFailed(DatabaseFailed, Conflict):
    """Another transaction came first, or both waited for each other; trying again helps."""

    code = "SERIALIZATION_FAILED"
    advice = "Try again."


class DatabaseUnavailable(DatabaseFailed, Unavailable):
    """There is no connection, or the statement took too long; nothing of it was kept."""

    code = "DATABASE_UNAVAILABLE"
    advice = "Try again later; check that PostgreSQL is running."


class CommitLost(DatabaseUnavailable):
    """The connection broke during commit: the transaction may or may not have happened."""

    code = "COMMIT_UNKNOWN"
    advice = "Send it again with the same ids; a repeated change is recognised."


class RoleUnsafe(Unavailable):
    """The database role could pass row-level security, so nothing is opened with it."""

    code = "DATABASE_ROLE_UNSAFE"
    advice = (
        "Give MANA_APP_DATABASE_URL and MANA_RUNNER_DATABASE_URL the roles mana_app and "
        "mana_runner, which are no superusers and own no table."
    )


# The driver's internal error is what is left of a connection whose server was killed while it
# answered.
_DRIVER: Final = (
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


async def translated(work: Awaitable[_T], *, lost: type[DatabaseFailed] | None = None) -> _T:
    """Await a call of the driver; raise our error, with no trace of the driver's, if it fails.

    `lost` replaces the class for a broken connection (used where its meaning differs).
    """
    try:
        return await work
    except _DRIVER as error:
        failure = _failure(error, lost or DatabaseUnavailable)
    # Raised outside the handler: a chained driver error would carry people's values along.
    raise failure


def _failure(error: Exception, unavailable: type[DatabaseFailed]) -> DatabaseFailed:
    if not isinstance(error, asyncpg.PostgresError):
        gone = not isinstance(error, asyncpg.InterfaceError) or any(
            word in str(error) for word in ("closed", "closing", "released")
        )
        return unavailable("08006") if gone else DatabaseFailed("driver")
    state = str(error.sqlstate or "XX000")
    constraint = getattr(error, "constraint_name", None)
    return _class_of(state, unavailable)(state, constraint)


def _class_of(state: str, unavailable: type[DatabaseFailed]) -> type[DatabaseFailed]:
    exact: dict[str, type[DatabaseFailed]] = {
        "23505": AlreadyExists,
        "23P01": AlreadyExists,
        "23503": ReferenceMissing,
        "23001": ReferenceMissing,
        "23502": CheckFailed,
        "23514": CheckFailed,
        "42501": AccessRefused,
        "40001": SerializationFailed,
        "40P01": SerializationFailed,
        "55P03": SerializationFailed,
        "25P03": unavailable,
        "57014": DatabaseUnavailable,
    }
    if state in exact:
        return exact[state]
    if state[:2] in {"08", "53", "57", "58"}:
        return unavailable
    return CheckFailed if state[:2] == "22" else DatabaseFailed
