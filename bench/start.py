"""How long a start takes until the page answers: the first on a machine, and every later one.

Beside it, in the same run, the time in which the same Python starts and imports what the three
parts import, one after the other: what no supervisor can go below on one core. Aim: a second
start in 3 s at most.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 5
IMPORTS = "mana.cli.commands.hub, mana.cli.commands.runner, mana.cli.commands.device"


def main(_options: Sequence[str] = ()) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory(prefix="mana-bench-") as home:
        first = _start(Path(home))
        later = []
        floor = []
        for _ in range(ROUNDS):
            later.append(_start(Path(home)))
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", f"import {IMPORTS}"], check=True)
            floor.append(time.monotonic() - began)
    base = statistics.median(floor)
    print(f"{'start':<24}{'seconds':>10}{'ratio to imports':>20}")
    for name, seconds in (
        ("imports alone", base),
        ("first start", first),
        ("second start, median", statistics.median(later)),
        ("second start, worst", max(later)),
    ):
        print(f"{name:<24}{seconds:>10.2f}{seconds / base:>20.2f}")


def _start(home: Path) -> float:
    """Return the seconds from the command to the first answer of the page."""
    environ = {
        **os.environ,
        "MANA_HOME": str(home),
        "MANA_HUB_PORT": "0",
        "MANA_RUNNER_PORT": "0",
        "MANA_DEVICE_PORT": "0",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mana.cli.main", "up"],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Open http://"):
                urllib.request.urlopen(line.split()[1], timeout=10).read()
                return time.monotonic() - began
        raise RuntimeError("mana up ended without an address")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
