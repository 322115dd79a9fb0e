"""A whole Mana, started as a person starts it, for tests that need all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANA = [sys.executable, "-m", "mana.cli.main"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment with a data folder of its own and ports that the system chooses."""
    ports = dict.fromkeys(("MANA_HUB_PORT", "MANA_RUNNER_PORT", "MANA_DEVICE_PORT"), "0")
    return {**os.environ, **ports, "MANA_HOME": str(home), **more}


@contextmanager
def up(home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start `mana up`, yield it with the lines until the address, and stop it by Ctrl-C."""
    process = subprocess.Popen(
        [*MANA, "up"],
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("Stop with"):
                break
        yield process, lines
    finally:
        process.send_signal(signal.SIGINT)
        lines += process.communicate(timeout=60)[0].splitlines()


def address(lines: list[str]) -> str:
    """Return the address of the page that was printed."""
    return next(line.split()[1] for line in lines if line.startswith("Open "))


def hub_address(lines: list[str]) -> str:
    """Return the address of the hub that was printed; a hub that starts again has it, too."""
    said = "mana: hub on "
    return next(line.removeprefix(said) for line in lines if line.startswith(said))
