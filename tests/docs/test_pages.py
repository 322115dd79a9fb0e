"""What the docs tell a person to type works as they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.docs.console import read_steps

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MAKE = re.compile(r"`?make ((?:[A-Z]+=\S+ )*)([a-z-]+)")


def shown_targets() -> list[str]:
    """Return the make targets that fenced blocks and tables of the docs show."""
    found: set[str] = set()
    for page in PAGES:
        for line in page.read_text("utf-8").splitlines():
            if line.startswith(("make ", "$ make ", "| `make ")):
                found |= {match[2] for match in MAKE.finditer(line)}
    return sorted(found)


@pytest.mark.parametrize("target", shown_targets())
def test_shown_targets_exist(target: str) -> None:
    """Every `make` command that the docs show names a target of the Makefile."""
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_first_page_shows_the_three_commands() -> None:
    """README tells how to start, how to see the job, and how to pass the tests, and no more."""
    assert [step.command for step in read_steps(ROOT / "README.md")] == [
        "make run",
        "make demo",
        "make test",
    ]


def test_the_tests_command_runs_what_ci_runs() -> None:
    """`make test` ends in `make check`, and CI calls nothing else."""
    dry = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pytest" in dry.stdout
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.slow
def test_the_first_command_leads_to_the_page(tmp_path: Path) -> None:
    """`make run` in this checkout prints an address that answers, and Ctrl-C ends it."""
    ports = dict.fromkeys(("MANA_HUB_PORT", "MANA_RUNNER_PORT", "MANA_DEVICE_PORT"), "0")
    process = subprocess.Popen(
        ["make", "run"],
        cwd=ROOT,
        env={**os.environ, **ports, "MANA_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Open "):
                with urllib.request.urlopen(line.split()[1], timeout=10) as answer:
                    assert "Create your account" in answer.read().decode()
                break
        else:
            pytest.fail("".join(lines))
    finally:
        # As a terminal does: the signal reaches make and what it started.
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert "mana: stopped" in rest, rest
