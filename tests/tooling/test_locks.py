"""The lock files pin all that the project names, with hashes and without hosts."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tooling.files import ROOT, text_of, tracked_files

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^ ;\\]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """Return version by package of one lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    return {match["name"]: match["version"] for match in PIN.finditer(text)}


def project() -> dict[str, object]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_name_no_host(lock) -> None:
    """A lock file serves any registry: it names none."""
    text = lock.read_text("utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes(lock) -> None:
    """Nothing is installed that was not hashed when it was locked."""
    blocks = re.split(r"\n(?=\S)", lock.read_text("utf-8").strip())
    assert all("--hash=sha256:" in block for block in blocks)


def test_locks_satisfy_the_project() -> None:
    """Every dependency that pyproject.toml names is locked, at a version that it accepts."""
    document = project()
    runtime = [Requirement(text) for text in document["project"]["dependencies"]]
    groups = document["dependency-groups"]
    build = [Requirement(text) for text in groups["build"]]
    dev = [Requirement(text) for text in groups["dev"] if isinstance(text, str)]
    for lock, requirements in (
        ("runtime", runtime),
        ("build", build),
        ("dev", [*runtime, *build, *dev]),
    ):
        locked = pins(lock)
        for requirement in requirements:
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_locks_agree() -> None:
    """The versions that people run are the versions that were tested."""
    dev = pins("dev")
    assert pins("runtime").items() <= dev.items()
    assert pins("build").items() <= dev.items()


def test_runtime_dependencies_are_exact() -> None:
    """An application says which versions it was tested with."""
    for text in project()["project"]["dependencies"]:
        (specifier,) = Requirement(text).specifier
        assert specifier.operator == "==", text


def test_no_other_lock_is_tracked() -> None:
    """uv.lock and pylock.toml name registry hosts, so they stay out."""
    names = {path.name for path in tracked_files()}
    assert not names & {"uv.lock", "pylock.toml", "poetry.lock", "Pipfile.lock"}


def test_no_file_names_a_registry() -> None:
    """Where packages come from is the reader's choice, in their own pip or uv settings."""
    mark = re.compile(r"--(?:extra-)?index-url|files\.python" r"hosted\.org|/simple\b")
    own = {"tests/tooling/test_locks.py", "tools/lock"}
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if str(path.relative_to(ROOT)) not in own and mark.search(text_of(path))
    ]
    assert found == []
