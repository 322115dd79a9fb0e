"""A replica that was put back to an older copy of itself is a device of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mana.testing.postgres import Database
from tests.device.rig import Rig, note, rig_on, titles

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_an_older_copy_in_the_same_file_takes_a_new_device_id(rig: Rig) -> None:
    """A database that is overwritten by its own older copy never stamps under the old id."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="first")
    await book.sync_now()
    await book.lock()
    database = next(path for path in machine.home.rglob("*.db"))
    older = database.read_bytes()
    again = await machine.sign_in()
    assert again.device_id == book.device_id
    await note(again, "n2", title="second")
    await again.sync_now()
    await again.lock()
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(older)
    restored = await machine.sign_in()
    assert restored.device_id != book.device_id
    await restored.sync_now()
    assert await titles(restored) == {"n1": "first", "n2": "second"}
