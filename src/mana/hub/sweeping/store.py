"""Removes, a bounded part at a time, what is older than anybody asks for, whoever it was."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from mana.hub.db import Tenancy, load_queries

Q: Final = load_queries("mana.hub.sweeping")
PLACES: Final = 200
"""How many accounts, and how many missions, one pass looks at."""
ROWS_MAX: Final = 1_000
"""How many rows of each table one pass removes."""
JUMP_S_MAX: Final = 30.0 * 24 * 60 * 60
"""By how much the database's clock may have gone otherwise than time did; a machine that slept, too."""


class OldRows:
    """Walks over accounts and missions, a page at each pass, and begins anew at the end."""

    def __init__(
        self,
        tenancy: Tenancy,
        *,
        places: int = PLACES,
        rows_max: int = ROWS_MAX,
        passed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tenancy = tenancy
        self._passed_s = passed_s
        self._began_s: float | None = None
        self._places = places
        self._rows_max = rows_max
        # Somewhere, so that a hub that starts often comes to everybody, and two share the way.
        anywhere = secrets.token_hex(16)
        self._at = (anywhere, anywhere, "")

    async def sweep(self) -> None:
        """Remove what is old of the next page; nothing while the clock that says so has jumped."""
        async with self._tenancy.door() as tx:
            if self._has_jumped(float(await tx.value(Q["now"]))):
                return
            row = await tx.one(Q["sweep"], *self._at, self._places, self._rows_max)
        if row is not None:
            self._at = (row["account_id"], row["space_id"], row["mission_id"])

    def _has_jumped(self, now_s: float) -> bool:
        """Say whether the database's clock was set far since the first pass, and is not right again.

        What a clock that is years ahead calls old would be the sums of today, and every session.
        """
        began_s = now_s - self._passed_s()
        if self._began_s is None:
            self._began_s = began_s
        return abs(began_s - self._began_s) > JUMP_S_MAX
