"""What the operator does on the hub's own machine, with real processes, while the hub runs."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from mana.cli.instance import started
from mana.cli.places import Places
from tests.cli.shell import Shell

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.anyio]


@pytest.mark.timeout(300)
async def test_the_operator_helps_while_the_hub_runs(tmp_path: Path) -> None:
    """A one-time token signs in once; the hub's key is changed under a running hub, which opens
    what it keeps as before; and both work where nothing runs, and leave nothing running."""
    places = Places(tmp_path / "hub", {"hub": 0, "runner": 0, "device": 0})
    places.make_home()
    environ = {**os.environ, "MANA_HOME": str(places.home)}
    machine = Shell(environ)
    async with started(places, environ, say=[].append, with_device=False) as running:
        device = Shell.at(tmp_path / "device", running.hub_url)
        await device.ok("account", "create", "ada")

        async def reset(token: str) -> httpx.Response:
            async with httpx.AsyncClient(base_url=running.hub_url) as http:
                body = {"login": "ada", "token": token}
                return await http.post("/api/v1/auth/reset", json=body)

        lines = (await machine.cold.ok("hub", "reset", "ada")).splitlines()
        first = await reset(lines[1])
        assert first.status_code == 200, first.text
        assert (await reset(lines[1])).status_code == 401
        unknown = await machine.run("hub", "reset", "nobody")
        assert (unknown.returncode, unknown.stdout) == (3, "")
        assert "LOGIN_UNKNOWN" in unknown.stderr

        said = await machine.ok("hub", "rotate-kek")
        assert said.splitlines()[:2] == ["0 of 1 master keys", "1 of 1 master keys"]
        token = (await machine.json("hub", "reset", "ada"))["token"]
        second = await reset(token)
        assert second.json()["masterKey"] == first.json()["masterKey"]
    assert await machine.json("hub", "rotate-kek") == {"rewrapped": 1}
    assert not (places.home / "postgres" / "data" / "postmaster.pid").exists()
