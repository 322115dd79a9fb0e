"""The main job from the terminal alone, with real processes: hub, runner, and a command a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mana.cli.instance import started
from mana.cli.places import Places
from tests.cli.shell import Shell

HEAVY = ("litestar", "asyncpg", "uvicorn", "jinja2", "mana.hub", "mana.web")

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """Lend a shell beside a started hub and runner."""
    places = Places(tmp_path / "hub", {"hub": 0, "runner": 0, "device": 0})
    places.make_home()
    environ = {**os.environ, "MANA_HOME": str(places.home), "TICK_INTERVAL_MS": "1000"}
    said: list[str] = []
    async with started(places, environ, say=said.append, with_device=False) as running:
        # Who names only the data folder finds the hub on the port that the system chose.
        beside = {"MANA_HOME": str(places.home)}
        assert Places.from_env(beside).hub_url(beside) == running.hub_url
        yield Shell.at(tmp_path / "device", running.hub_url)


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_the_main_job_from_the_terminal(shell: Shell) -> None:
    """A granted mission runs on the hub; what it proposes is approved, reverted and redone."""
    await shell.cold.ok("account", "create", "ada", "--name", "Ada", "--zone", "Europe/Berlin")
    await shell.cold.ok("note", "add", "Diary", "--content", "-", stdin="- [ ] Call the dentist\n")
    await shell.ok("agent", "create", "Mira")
    mission = ("mission", "create", "Review", "--agent", "Mira", "--objective", "Find what to do")
    await shell.ok(*mission, "--input", "notes:Diary", "--every", "weekly sunday 10:00")
    assert "Granted" in await shell.ok("grant", "give", "Review", "--yes")
    await shell.ok("mission", "run", "Review")
    for _ in range(60):
        proposals = (await shell.json("inbox"))["proposals"]
        if proposals:
            break
        await asyncio.sleep(0.5)
    (one,) = proposals
    assert one["verified"] is True
    short = f"{one['stepId'][:8]}-{one['stepId'].rpartition('-')[2]}"
    assert "dentist" in await shell.ok("inbox", "show", short)
    approved = await shell.json("approve", short)
    assert approved["sync"] == {"state": "synced", "waiting": 0, "refused": 0}
    assert "dentist" in await shell.ok("task", "list")
    assert (await shell.run("approve", short)).returncode == 5
    await shell.ok("revert", short)
    assert "dentist" not in await shell.ok("task", "list")
    await shell.ok("redo", short)
    assert "dentist" in await shell.ok("task", "list")
    access = (await shell.json("audit"))["dataAccess"]
    assert access["chainOk"] is True
    assert any("Diary" in reading["sentence"] for reading in access["readings"])
    await shell.ok("grant", "revoke", "Review")
    assert (await shell.json("grant", "list"))["grants"][0]["state"] == "revoked"

    # Several commands at once share one replica, as they do with a running `mana up`.
    await asyncio.gather(*(shell.ok("task", "add", f"At once {n}") for n in range(4)))
    tasks = (await shell.json("task", "list"))["tasks"]
    assert sum(task["values"]["title"].startswith("At once") for task in tasks) == 4

    offline = Shell({**shell.environ, "MANA_HUB_URL": "http://127.0.0.1:1"})
    assert "Kept here" in await offline.ok("note", "add", "On the train")
    wrong = await Shell({**shell.environ, "MANA_PASSWORD": "wrong"}).cold.run("note", "list")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    await shell.ok("account", "sign-out", "--yes")
    await shell.ok("account", "sign-in", "ada")
    assert "On the train" in await shell.ok("note", "list")
    await shell.ok("account", "remove", "--yes")
    assert (await shell.json("account", "list"))["accounts"] == []


def test_the_device_of_a_command_loads_no_server(tmp_path: Path) -> None:
    """A command opens the device without the hub's, the page's and the database's code."""
    code = (
        "import os, sys\nfrom mana.cli.opening import Surroundings\n"
        "Surroundings().build_host(os.environ)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MANA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
