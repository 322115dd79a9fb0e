"""Set-up: one clear line when it cannot, no work when there is none, silence on standard output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tooling.files import ROOT
from tools import setup


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder with a space in its name, without `.venv`."""
    folder = tmp_path / "my mana"
    for part in ("tools", "requirements"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with what a bare machine has, but no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "make", "awk"):
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is needed"))
    return folder


def make(checkout: Path, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run make in `checkout`, seeing only the programs in `path`."""
    env = {"PATH": str(path), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        ["make", *words], cwd=checkout, env=env, capture_output=True, text=True, check=False
    )


def test_missing_python_is_one_line(checkout: Path, programs: Path) -> None:
    """Without a Python the person reads one line that says what is needed."""
    done = make(checkout, "run", path=programs)
    told = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(told) == 1
    assert "no Python 3.11 or newer" in told[0]


def test_old_python_is_passed_over(checkout: Path, programs: Path) -> None:
    """A Python that is too old, or a name that only pretends, is not used."""
    for name in ("python3", "python3.12"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n", "utf-8")
        (programs / name).chmod(0o755)
    assert "no Python 3.11 or newer" in make(checkout, "setup", path=programs).stderr


def test_named_python_is_not_replaced(checkout: Path, programs: Path) -> None:
    """A PYTHON that will not do is refused by name; no other is taken in its stead."""
    (programs / "python3").symlink_to(sys.executable)
    done = make(checkout, "setup", "PYTHON=/nowhere/python", path=programs)
    assert done.returncode != 0
    assert "PYTHON=/nowhere/python is not" in done.stderr
    assert not (checkout / ".venv").exists()


def test_help_lists_targets(checkout: Path, programs: Path) -> None:
    """`make` alone changes nothing and names the commands."""
    done = make(checkout, path=programs)
    assert done.returncode == 0
    for target in ("run", "demo", "quick", "check", "test", "bench", "format", "clean"):
        assert f"make {target} " in done.stdout


def test_demo_prints_the_document_only(checkout: Path, programs: Path) -> None:
    """`make demo` writes to standard output what `mana demo` writes, and nothing else."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, script in (
        ("python", "echo progress; exit 0"),
        ("mana", 'echo "{\\"words\\": \\"$*\\"}"'),
    ):
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (binaries / name).chmod(0o755)
    done = make(checkout, "demo", "ARGS=--json", path=programs)
    assert done.stdout == '{"words": "demo --json"}\n'


@pytest.fixture
def noted(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose set-up for the run time is done, as tools/setup.py sees it."""
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setattr(setup, "ROOT", checkout)
    monkeypatch.setattr(setup, "STATE", checkout / "state.json")
    locks = {name: checkout / "requirements" / path.name for name, path in setup.LOCKS.items()}
    monkeypatch.setattr(setup, "LOCKS", locks)
    setup.note("runtime")
    return checkout


@pytest.mark.usefixtures("noted")
def test_finished_set_up_is_current() -> None:
    """What was noted when set-up finished spares the next one all work."""
    assert setup.is_current("runtime")


@pytest.mark.usefixtures("noted")
def test_larger_group_serves_the_smaller() -> None:
    """Development tools include the run time; the run time is not enough for them."""
    assert not setup.is_current("dev")
    setup.note("dev")
    assert setup.is_current("runtime")


@pytest.mark.parametrize(
    "name",
    [
        "pyproject.toml",
        "requirements/build.txt",
        "requirements/runtime.txt",
        "requirements/dev.txt",
    ],
)
def test_changed_lock_asks_for_set_up(noted: Path, name: str) -> None:
    """After a pull that changes a dependency, the next command sets up again."""
    with (noted / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert not setup.is_current("runtime")


def test_moved_checkout_asks_for_set_up(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts in `.venv` name their place, so a checkout that was moved is set up again."""
    moved = noted.with_name("moved mana")
    noted.rename(moved)
    for name in ("ROOT", "STATE"):
        old = getattr(setup, name)
        monkeypatch.setattr(setup, name, moved / old.relative_to(noted))
    locks = {name: moved / path.relative_to(noted) for name, path in setup.LOCKS.items()}
    monkeypatch.setattr(setup, "LOCKS", locks)
    assert not setup.is_current("runtime")


@pytest.mark.usefixtures("noted")
def test_other_python_asks_for_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who names another Python gets it; one who names none keeps what is there."""
    monkeypatch.setenv("PYTHON", "python3.13")
    assert not setup.is_current("runtime")
    setup.note("runtime")
    monkeypatch.delenv("PYTHON")
    assert setup.is_current("runtime")


def test_torn_note_is_no_note(noted: Path) -> None:
    """A note that cannot be read counts as none."""
    (noted / "state.json").write_text('{"key": ', "utf-8")
    assert not setup.is_current("runtime")
