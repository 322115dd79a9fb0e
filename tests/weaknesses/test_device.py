"""Ways in which a device loses, leaks or stalls, tried on ours. docs/weaknesses.md has the list."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mana.testing.postgres import Database, connected
from tests.device.household import household
from tests.device.rig import Rig, note, rig_on, titles

pytest_plugins = ["mana.testing.plugin"]
SUBTASKS = [{"title": "boxes"}, {"title": "van"}]

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def logged(database: Database) -> list[tuple[str, str, str]]:
    """Return table, record and device of every change of every log."""
    async with connected(database.owner_url) as owner:
        rows = await owner.fetch(
            "select table_name, record_id, client_id from mana.sync_changes order by space_id, seq"
        )
    return [tuple(row) for row in rows]


async def test_a_device_that_pushes_first_misses_nothing(rig: Rig) -> None:
    """A new device that writes and pushes before it has read anything still gets all that was
    there: its own push moves no cursor (S2)."""
    here = await rig.machine().sign_up()
    for number in range(40):
        await note(here, f"n{number}", title=f"old {number}")
    await here.sync_now()
    there = await rig.machine().sign_in()
    await note(there, "own", title="new")
    await there.sync_now()
    found = await titles(there)
    assert found == {"own": "new", **{f"n{number}": f"old {number}" for number in range(40)}}


async def test_writes_during_sync_are_synced(rig: Rig) -> None:
    """What a person writes while pages are being applied is a write like any other: stamped,
    queued and sent, in the same table too (C2)."""
    here, other = await rig.machine().sign_up(), rig.machine()
    there = await other.sign_in()
    for number in range(60):
        await note(here, f"h{number}", title=f"here {number}")
    await here.sync_now()

    async def write_on() -> None:
        for number in range(30):
            await note(there, f"t{number}", title=f"there {number}")

    await asyncio.gather(there.sync_now(), write_on(), there.sync_now())
    await there.sync_now()
    await here.sync_now()
    assert (await there.status()).waiting == 0
    assert await titles(here) == await titles(there)
    assert len(await titles(here)) == 90


async def test_a_new_device_overwrites_nothing(database: Database) -> None:
    """A device that signs in brings no defaults of its own: before the person does something it
    has pushed nothing, and the settings are what they were (C3)."""
    async with household(database) as home:
        first = await home.person()
        await first.create("notes", {"title": "there before"})
        await first.sync_now()
        before = await logged(database)
        assert before
        second = await home.second()
        await second.sync_now()
        await second.sync_now()
        assert await logged(database) == before
        assert [one.text("title") for one in await second.list("notes")] == ["there before"]


async def test_a_wiped_device_has_its_own_history_again(rig: Rig) -> None:
    """Somebody who removes everything from a machine and signs in again on it reads all that
    they had written there, under a new device id (C6)."""
    machine = rig.machine()
    book = await machine.sign_up()
    for number in range(5):
        await note(book, f"n{number}", title=f"mine {number}")
    await book.sync_now()
    device, account = book.device_id, book.account_id
    machine.books.remove(book)
    await book.lock()
    machine.accounts.forget(account)
    again = await machine.sign_in()
    await again.sync_now()
    assert await titles(again) == {f"n{number}": f"mine {number}" for number in range(5)}
    assert again.device_id != device


async def test_an_equal_array_is_no_edit(database: Database) -> None:
    """Saving a record whose lists did not change writes none of them, so that an old copy of a
    list overwrites nobody's newer one (C5)."""
    async with household(database) as home:
        here = await home.person()
        task = await here.create("tasks", {"title": "Move", "subtasks": SUBTASKS})
        await here.sync_now()
        there = await home.second()
        await there.sync_now()
        before = len(await logged(database))
        view = await there.get("tasks", task)
        await there.edit(
            "tasks", task, {"title": "Move house", "subtasks": view.values["subtasks"]}
        )
        await there.sync_now()
        async with connected(database.owner_url) as owner:
            rows = await owner.fetch(
                "select data from mana.sync_changes where record_id = $1 order by seq", task
            )
        assert len(await logged(database)) == before + 1
        assert '"title"' in rows[-1]["data"]
        assert "subtasks" not in rows[-1]["data"]


async def test_lists_do_not_scan_what_is_elsewhere(rig: Rig) -> None:
    """Reading a list of one table of one space goes by the key of the file, not over all records
    of every space (C14)."""
    statements: set[str] = set()

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            statements.add(sql)
            return super().execute(sql, *args)

    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="one")
    replica = book.inner().replica
    await replica.close()
    watched = type(replica)(replica.path, guarded=replica._guarded, factory=Watched)
    await watched.open()
    statements.clear()
    try:
        await watched.read(lambda tx: tx.marks(book.space, "notes"))
        await watched.read(lambda tx: tx.all_held(book.space, "notes", ["n1"]))
        found = [sql for sql in statements if "records" in sql]
        assert found
        plain = sqlite3.connect(replica.path)
        try:
            for sql in found:
                marks = ("?",) * sql.count("?")
                plan = plain.execute(f"explain query plan {sql}", marks).fetchall()
                details = " ".join(str(row[3]) for row in plan)
                assert "SEARCH" in details, (sql, details)
                # What is walked through is the list of ids that was asked for, if anything.
                assert "SCAN r" not in details, (sql, details)
        finally:
            plain.close()
    finally:
        await watched.close()
