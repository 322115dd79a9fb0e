"""The import contracts catch what they are there for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tooling.files import ROOT

MODULES = (
    "cli.main",
    "crypto.seals",
    "device.app",
    "device.replica.store",
    "device.vault",
    "domain.clock",
    "domain.ids",
    "hub.app",
    "hub.db.pool",
    "hub.runner.batches",
    "hub.runner.queue",
    "hub.runner.rebuilding",
    "hub.sync.service",
    "hub.sync.store",
    "models.rules",
    "modules.notes.tools",
    "modules.todo.tools",
    "planning.dispatch",
    "protocol.codec",
    "registry.catalogue",
    "testing.postgres",
    "web.app",
)
ALLOWED = {
    "crypto.seals": "import cryptography",
    "device.replica.store": "import sqlite3",
    "hub.db.pool": "import asyncpg",
    "hub.sync.store": "from mana.hub.db import pool",
    "registry.catalogue": "from mana.modules.notes import tools",
    "testing.postgres": "import asyncpg\nfrom mana.hub.db import pool",
    "web.app": "from mana.device import app",
}
BROKEN = [
    ("domain.ids", "from mana.crypto import seals", "Layers point down"),
    ("device.app", "from mana.hub import app", "Layers point down"),
    ("hub.app", "from mana.device import app", "Layers point down"),
    ("models.rules", "from mana.hub import app", "Layers point down"),
    ("cli.main", "from mana.testing import postgres", "Layers point down"),
    ("web.app", "from mana.hub import app", "The page knows the device only"),
    ("modules.notes.tools", "from mana.modules.todo import tools", "Data modules never import"),
    ("domain.ids", "from mana.domain import clock", "No cycles between siblings"),
    ("domain.clock", "import time", "The core does no I/O"),
    ("planning.dispatch", "import os", "The core does no I/O"),
    ("protocol.codec", "import asyncio", "Nothing below planning waits"),
    ("planning.dispatch", "from mana.crypto import seals", "What declares or decides"),
    ("device.vault", "import cryptography", "Only crypto touches the primitives"),
    ("hub.sync.store", "import asyncpg", "SQL is spoken in two places"),
    ("device.vault", "import sqlite3", "SQL is spoken in two places"),
    ("hub.sync.service", "from mana.hub.db import pool", "Only stores open a transaction"),
    ("planning.dispatch", "from mana.modules.notes import tools", "Modules are reached through"),
]


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """Mana's packages with allowed imports only, under the project's own contracts."""
    package = tmp_path / "src" / "mana"
    for module in MODULES:
        path = package.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ALLOWED.get(module, "") + "\n", "utf-8")
    (package / "domain" / "clock.py").write_text("from mana.domain import ids\n", "utf-8")
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    start = text.index("[tool.importlinter]")
    (tmp_path / "pyproject.toml").write_text(text[start:], "utf-8")
    return tmp_path


def lint(skeleton: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts on the skeleton."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=skeleton,
        env={"PYTHONPATH": "src", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_allowed_imports_pass(skeleton: Path) -> None:
    """The arrows of the architecture can all be drawn."""
    done = lint(skeleton)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("module", "line", "contract"), BROKEN)
def test_broken_imports_are_caught(skeleton: Path, module: str, line: str, contract: str) -> None:
    """An arrow that the architecture forbids breaks the contract that forbids it."""
    path = (skeleton / "src" / "mana").joinpath(*module.split(".")).with_suffix(".py")
    path.write_text(f"{line}\n", "utf-8")
    done = lint(skeleton)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [row for row in done.stdout.splitlines() if " BROKEN" in row]
    assert any(row.startswith(contract) for row in broken), broken


def test_contracts_stand() -> None:
    """No contract is dropped in silence."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert {contract["id"] for contract in document["tool"]["importlinter"]["contracts"]} >= {
        "layers",
        "page",
        "modules",
        "acyclic",
        "pure",
        "waits",
        "sealed",
        "hazmat",
        "sql",
        "database",
        "dispatch",
    }
