"""The one call that a start makes before any process opens the database.

Light on purpose: the supervisor imports it, and must not wait for the web framework.
"""

from __future__ import annotations

from collections.abc import Mapping

from mana.hub.db import DatabaseUrls, database_urls, ensure_database, migrate, read_migrations


async def bring_up_to_date(owner_url: str) -> tuple[int, int]:
    """Create and migrate the database; return the schema's number and how many were applied.

    Safe when several processes call it at once. Raises Unavailable with a code if the database
    cannot be reached, is newer than this release, or refuses a migration.
    """
    await ensure_database(owner_url)
    applied = await migrate(owner_url)
    return max((known.number for known in read_migrations()), default=0), len(applied)


def addresses(environ: Mapping[str, str], *, embedded: str | None = None) -> DatabaseUrls:
    """Return the addresses of the database for its owner, the hub and the runner.

    `embedded` is the owner's address of an embedded server, used where MANA_DATABASE_URL is not
    set; MANA_APP_DATABASE_URL and MANA_RUNNER_DATABASE_URL name the other two if they differ in
    more than the role. Raises Invalid if there is no address at all.
    """
    return database_urls(environ, embedded=embedded)
