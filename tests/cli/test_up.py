"""One command starts everything, says where the page is, and stops cleanly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.cli.started import MANA, address, environment, hub_address, up

pytestmark = pytest.mark.slow


def processes_of(home: Path) -> list[str]:
    """Return the command lines of processes that name or use this data folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(home) in words or f"MANA_HOME={home}".encode() in environ:
            found.append(words)
    return found


def test_a_start_leads_to_the_page_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    """The page answers at the printed address; Ctrl-C ends every process; the data stays."""
    home = tmp_path / "home"
    with up(home) as (process, lines):
        with urllib.request.urlopen(address(lines), timeout=10) as answer:
            page = answer.read().decode()
        assert "Create your account" in page
        assert "Try the demo" in page
        assert any(re.match(r"Demo http://127\.0\.0\.1:\d+/demo/\S+", line) for line in lines)
    assert process.returncode == 0, lines
    assert processes_of(home) == []
    assert "not a language model" in (home / "logs" / "runner.log").read_text()
    assert any("not a language model" in line for line in lines)
    assert (home / "postgres" / "data" / "PG_VERSION").exists()
    with up(home) as (process, lines):
        with urllib.request.urlopen(address(lines), timeout=10) as answer:
            assert answer.status == 200
    assert process.returncode == 0, lines


def test_a_taken_port_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    """The line names the variable, the status is 2, and no data folder of PostgreSQL is made."""
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*MANA, "up"],
            env=environment(home, MANA_DEVICE_PORT=port),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    said = (done.stdout + done.stderr).strip().splitlines()
    assert len(said) == 1
    assert "MANA_DEVICE_PORT" in said[0]
    assert not (home / "postgres").exists()


def test_two_starts_on_one_folder_do_not_meet(tmp_path: Path) -> None:
    """The second start says that the first runs, and harms nothing."""
    home = tmp_path / "home"
    with up(home) as (_, lines):
        second = subprocess.run(
            [*MANA, "up"],
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 5
        assert "ALREADY_RUNNING" in second.stderr
        with urllib.request.urlopen(address(lines), timeout=10) as answer:
            assert answer.status == 200


def test_parts_end_with_a_killed_supervisor_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """After SIGKILL of `mana up` no part of Mana stays, and the same data is served again."""
    home = tmp_path / "home"
    with up(home) as (process, _):
        process.kill()
        process.wait(10)
        deadline = time.monotonic() + 30
        while any("mana.cli.main" in words for words in processes_of(home)):
            assert time.monotonic() < deadline, processes_of(home)
            time.sleep(0.05)
    with up(home) as (process, lines):
        with urllib.request.urlopen(address(lines), timeout=10) as answer:
            assert answer.status == 200
    assert process.returncode == 0, lines
    assert processes_of(home) == []


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    """A killed hub is back by itself, at the same address."""
    home = tmp_path / "home"
    with up(home) as (_, lines):
        health = f"{hub_address(lines)}/health"
        pids = [
            int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _is_hub_of(folder, home)
        ]
        assert len(pids) == 1
        os.kill(pids[0], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(health, timeout=5) as answer:
                    assert answer.status == 200
                    if not Path(f"/proc/{pids[0]}").exists():
                        break
            except OSError:
                assert time.monotonic() < deadline, lines
                time.sleep(0.05)


def _is_hub_of(folder: Path, home: Path) -> bool:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
        environ = (folder / "environ").read_bytes()
    except OSError:
        return False
    return words[-2:-1] == [b"hub"] and f"MANA_HOME={home}".encode() in environ
