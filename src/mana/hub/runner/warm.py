"""What a worker needs in every run and makes once: the catalogue, and the runner's key.

The warm parent loads the catalogue before it forks; the key is read by the worker itself, so that
no process holds it that could outlive the worker. Nothing here is of a person.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Final

from mana.crypto.runners import RunnerPrivateKey
from mana.domain.cadences import zone
from mana.domain.encoding import canonical_json
from mana.models import connections
from mana.registry.catalogue import load_catalogue

KEYS_MAX: Final = 4
"""A runner has at most its current pair and those before it whose grants still open."""
UNKNOWN_TABLE: Final = "unknown"
"""How a table that is not installed is called where nothing of a person may stand."""


@cache
def plain_tables() -> frozenset[str]:
    """Return the names of tables that may stand in the audit and in figures."""
    return frozenset(table.name for table in load_catalogue().tables)


@cache
def plain_tools() -> frozenset[str]:
    """Return the names of tools that may stand in figures."""
    return frozenset(tool.name for tool in load_catalogue().tools)


@lru_cache(maxsize=KEYS_MAX)
def runner_key(pem: str) -> RunnerPrivateKey:
    """Return the runner's key, which the runner itself read and tested before it sent it."""
    return RunnerPrivateKey.from_pem(pem, tested=True)


@lru_cache(maxsize=KEYS_MAX)
def key_id(key: RunnerPrivateKey) -> str:
    """Return the id of the runner's key, which every run checks and signs with."""
    return key.public().key_id()


def warm_up() -> None:
    """Load what the first run would load otherwise. Opens nothing that stays open."""
    connections.warm_up()
    canonical_json([tool.name for tool in load_catalogue().tools])
    zone("Europe/Berlin")
