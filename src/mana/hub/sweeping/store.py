"""Removes, a bounded part at a time, what is older than anybody asks for, whoever it was."""

from __future__ import annotations

import secrets
from typing import Final

from mana.hub.db import Tenancy, load_queries

Q: Final = load_queries("mana.hub.sweeping")
PLACES: Final = 200
"""How many accounts, and how many missions, one pass looks at."""
ROWS_MAX: Final = 1_000
"""How many rows of each table one pass removes."""


class OldRows:
    """Walks over accounts and missions, a page at each pass, and begins anew at the end."""

    def __init__(self, tenancy: Tenancy, *, places: int = PLACES, rows_max: int = ROWS_MAX) -> None:
        self._tenancy = tenancy
        self._places = places
        self._rows_max = rows_max
        # Somewhere, so that a hub that starts often comes to everybody, and two share the way.
        anywhere = secrets.token_hex(16)
        self._at = (anywhere, anywhere, "")

    async def sweep(self) -> None:
        """Remove what is old of the next page."""
        async with self._tenancy.door() as tx:
            row = await tx.one(Q["sweep"], *self._at, self._places, self._rows_max)
        if row is not None:
            self._at = (row["account_id"], row["space_id"], row["mission_id"])
