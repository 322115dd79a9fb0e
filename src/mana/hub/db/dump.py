"""Write `schema.sql` anew: migrate a throw-away database and read its catalogue.

Run as `python -m mana.hub.db.dump`, after adding a migration.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Final

import asyncpg

from mana.hub.db.catalogue import schema_text
from mana.hub.db.migrating import migrate
from mana.hub.postgres import Instance, find_binaries

SCHEMA_FILE: Final = Path(__file__).with_name("schema.sql")


async def migrated_schema(url: str) -> str:
    """Migrate the database of an address and return its schema as text."""
    await migrate(url)
    connection = await asyncpg.connect(url)
    try:
        return await schema_text(connection)
    finally:
        await connection.close()


def main() -> None:
    """Write the file beside this module."""
    with tempfile.TemporaryDirectory(prefix="mana-schema-") as folder:
        Path(folder).chmod(0o711)
        instance = Instance(
            find_binaries(os.environ), Path(folder) / "postgres", settings={"fsync": "off"}
        )
        instance.ensure()
        try:
            SCHEMA_FILE.write_text(asyncio.run(migrated_schema(instance.url())), encoding="utf-8")
        finally:
            instance.stop()


if __name__ == "__main__":
    main()
