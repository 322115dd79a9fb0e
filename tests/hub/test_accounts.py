"""Accounts: made whole or not at all, and silent about who has one."""

from __future__ import annotations

import pytest

from mana.testing.postgres import Database
from tests.hub.client import served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def test_first_day(database: Database) -> None:
    """Signing up makes an account that can log in, with a personal space and a user scope."""
    async with served_hub(database) as served:
        ada = await served.sign_up("Ada")
        me = (await ada.call("GET", "/api/v1/me")).json()
        assert (me["login"], me["role"], me["mode"]) == ("Ada", "administrator", "standard")
        spaces = (await ada.call("GET", "/api/v1/spaces")).json()["spaces"]
        assert sorted(space["type"] for space in spaces) == ["personal", "user"]
        answer = await ada.log_in()
        assert answer.status_code == 200, answer.text
