"""Embedded PostgreSQL: binaries that a package brings, in a lifecycle that is ours.

The packages' own start functions attach to dead servers and change the modes of home folders;
here a server is alive only if it answers a query about its own data folder.
"""

from mana.hub.postgres.binaries import Binaries, find_binaries
from mana.hub.postgres.errors import (
    PostgresFolderUnreachable,
    PostgresMissing,
    PostgresStartFailed,
    PostgresVersionMismatch,
)
from mana.hub.postgres.identity import Identity, choose_identity
from mana.hub.postgres.instance import Instance, Outcome

__all__ = [
    "Binaries",
    "Identity",
    "Instance",
    "Outcome",
    "PostgresFolderUnreachable",
    "PostgresMissing",
    "PostgresStartFailed",
    "PostgresVersionMismatch",
    "choose_identity",
    "find_binaries",
]
