"""The demo plays the main job for real, and fails when a step does not hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
MANA = [sys.executable, "-m", "mana.cli.main"]


def demo(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a person would; its own folders are temporary."""
    return subprocess.run(
        [*MANA, "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **environ},
    )


def test_the_main_job_works_end_to_end(tmp_path: Path) -> None:
    """Every step of the main job has its effect, and stdout is one JSON document."""
    done = demo("--json", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert all(step["ok"] for step in told["steps"])
    facts = {key: value for step in told["steps"] for key, value in step["facts"].items()}
    assert facts["stored"].startswith("enc:2:s1:")
    assert len(facts["records"]) == 5
    assert facts["reason"] == "revoked"
    assert facts["restored"]
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"


def test_a_step_that_does_not_hold_ends_the_demo(tmp_path: Path) -> None:
    """With a model that cannot be reached nothing is planned, and the demo says so."""
    done = demo(
        "--json", TMPDIR=str(tmp_path), MANA_LLM_URL="http://127.0.0.1:1", MANA_LLM_MODEL="m"
    )
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert told["problem"]["code"] == "DEMO_UNVERIFIED"
    assert [step["ok"] for step in told["steps"]].count(False) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal in the middle ends the demo with status 1, its processes and its folder."""
    process = subprocess.Popen(
        [*MANA, "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "PostgreSQL started" in line:
            break
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "DEMO_STOPPED" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
