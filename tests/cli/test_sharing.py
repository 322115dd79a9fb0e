"""Two people share a space from the terminal alone: two devices, one real hub, real processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mana.cli.supervisor import Part, Supervisor
from mana.testing.postgres import Database
from tests.cli.shell import Shell

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(240)]


@pytest.fixture
async def people(database: Database, tmp_path: Path) -> AsyncIterator[tuple[Shell, Shell]]:
    """Lend the shells of two people, each at a device of their own, beside a hub."""
    supervisor = Supervisor(say=lambda words: None)
    environ = {
        **os.environ,
        "MANA_HOME": str(tmp_path / "hub"),
        "MANA_APP_DATABASE_URL": database.app_url,
        "MANA_HUB_PORT": "0",
    }
    try:
        facts = await supervisor.start(Part("hub", ("hub",), environ, tmp_path / "hub.log"))
        url = str(facts["url"])
        yield Shell.at(tmp_path / "ada", url), Shell.at(tmp_path / "bo", url)
    finally:
        await supervisor.close()


async def test_two_people_share_and_part(people: tuple[Shell, Shell]) -> None:
    """Who joins by a link reads what is shared and not what is private; who is removed gets
    nothing more, and keeps what they had until they forget it.
    """
    ada, bo = people
    await ada.ok("account", "create", "ada", "--name", "Ada")
    await bo.ok("account", "create", "bo", "--name", "Bo")
    made = (await ada.json("space", "create", "The Lindens", "--type", "family"))["space"]
    assert made["name"] == "The Lindens"
    home = ("--space", "lindens")
    await ada.ok("note", "add", "Bins", "--content", "On Tuesdays.", *home)
    await ada.ok("note", "add", "Present", "--private", *home)
    invited = await ada.json("space", "invite", "lindens", "--role", "member", "--for", "Bo")
    link = invited["invitation"]["link"]

    assert "Asked to join as member" in await bo.ok("space", "join", stdin=link + "\n")
    assert (await bo.json("space", "joining"))["joining"][0]["spaceId"] == made["spaceId"]
    members = (await ada.json("space", "members", "lindens"))["members"]
    assert [one["role"] for one in members] == ["owner", "member"]

    # A write pulls nothing first, and still finds the space that this device has not heard of.
    assert "In “The Lindens”." in await bo.ok("note", "add", "Keys", *home)
    assert (await bo.json("space", "joining"))["joining"] == []
    listed = await bo.ok("note", "list", *home)
    assert "Bins" in listed
    assert "Present" not in listed
    assert "Keys" in await ada.ok("note", "list", *home)
    assert (await bo.json("note", "list"))["notes"] == []
    refused = await bo.run("space", "remove", "lindens", "Ada", "--yes")
    assert refused.returncode == 4
    assert "MEMBERSHIP_REFUSED" in refused.stderr
    assert "does not allow this entry" not in refused.stderr

    await ada.ok("note", "visibility", "Present", "space", *home)
    assert "Present" in await bo.ok("note", "list", *home)

    # The newcomer's name is their own to write, and came with their first sync.
    assert "Removed Bo." in await ada.ok("space", "remove", "lindens", "Bo", "--yes")
    await ada.ok("note", "add", "Later", *home)
    assert "left" in await bo.ok("space", "list")
    listed = await bo.ok("note", "list", *home)
    assert "Bins" in listed
    assert "Later" not in listed
    written = await bo.run("note", "add", "Mine", *home)
    assert (written.returncode, written.stdout) == (4, "")
    assert "SPACE_LEFT" in written.stderr
    await bo.ok("space", "forget", "lindens", "--yes")
    assert (await bo.run("note", "list", *home)).returncode == 3
    await ada.ok("space", "close", "lindens", "--yes")
    assert "closed" in await ada.ok("space", "list")
