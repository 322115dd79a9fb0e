"""The one call that a start makes before any process opens the database.

Light on purpose: the supervisor imports it, and must not wait for the web framework.
"""

from __future__ import annotations

from mana.hub.db import ensure_database, migrate, read_migrations


async def bring_up_to_date(owner_url: str) -> tuple[int, int]:
    """Create and migrate the database; return the schema's number and how many were applied.

    Safe when several processes call it at once. Raises Unavailable with a code if the database
    cannot be reached, is newer than this release, or refuses a migration.
    """
    await ensure_database(owner_url)
    applied = await migrate(owner_url)
    return max((known.number for known in read_migrations()), default=0), len(applied)
