"""What dies is started again, and a start that is asked to stop leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.started import MANA, address, environment, hub_address, up
from tests.cli.test_up import processes_of

pytestmark = pytest.mark.slow


def test_a_database_that_dies_is_started_again(tmp_path: Path) -> None:
    """A killed PostgreSQL is back by itself, and the hub works with it again; nothing is lost."""
    home = tmp_path / "home"
    with up(home) as (process, lines):
        health = f"{hub_address(lines)}/health"
        pid_file = home / "postgres" / "data" / "postmaster.pid"
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError, ValueError, IndexError):
                if int(pid_file.read_text().split()[0]) != pid:
                    with urllib.request.urlopen(health, timeout=5) as answer:
                        assert answer.status == 200
                        break
            assert time.monotonic() < deadline, lines
            time.sleep(0.05)
    assert process.returncode == 0, lines
    assert "mana: PostgreSQL ended; starting it again" in lines
    assert processes_of(home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["initdb", "PostgreSQL started", "database schema"])
def test_a_stop_during_the_start_leaves_nothing(
    tmp_path: Path, number: signal.Signals, phase: str
) -> None:
    """A start that is asked to stop says so, leaves no process, and the next start works."""
    home = tmp_path / "home"
    process = subprocess.Popen(
        [*MANA, "up"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    if phase == "initdb":
        deadline = time.monotonic() + 30
        while not (home / "postgres" / "data.new").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    else:
        assert any(phase in line for line in iter(process.stdout.readline, ""))
    # As a terminal does it: to the whole group.
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert said.endswith("mana: stopped\n"), said
    assert (process.returncode, processes_of(home)) == (0, []), said
    if phase == "initdb" and number is signal.SIGINT:
        with up(home) as (again, lines):
            assert address(lines)
        assert again.returncode == 0, lines
