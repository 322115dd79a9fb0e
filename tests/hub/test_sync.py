"""Push and pull: what is taken, in which order, and what everybody sees of it."""

from __future__ import annotations

import pytest

from mana.modules.todo.manifest import MANIFEST as TODO
from mana.testing.accounts import sealed_change
from mana.testing.postgres import Database
from tests.hub.client import codes, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TASKS = next(table for table in TODO.tables if table.name == "tasks")


async def test_round_trip(database: Database) -> None:
    """What is pushed comes back by pull and in the state, byte for byte; a resend is known."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        change = sealed_change(
            ada.account, TASKS, "t1", {"title": "milk"}, now_ms=served.clock.now_ms
        )
        assert codes(await ada.push([change])) == ["accepted"]
        assert codes(await ada.push([change])) == ["duplicate"]
        pulled = await ada.pull()
        assert [logged.change for logged in pulled.changes] == [change]
        assert pulled.cursor == 1
        state = await ada.state()
        assert state.records[0].fields["title"].value == change.fields["title"].value
