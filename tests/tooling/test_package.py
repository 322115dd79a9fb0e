"""What is built and what a machine runs is what the checkout holds."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.tooling.files import ROOT, tracked_files


@pytest.mark.slow
def test_wheel_holds_every_file(tmp_path: Path) -> None:
    """An installed Mana has each file of the package: SQL, templates and static files too."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in tracked_files()
        if path.is_relative_to(source)
    }
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_entry_point_is_the_command_line() -> None:
    """`mana` is `mana.cli.main:app`; nothing else is put on PATH."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert document["project"]["scripts"] == {"mana": "mana.cli.main:app"}


def test_continuous_integration_requires_every_program(tmp_path: Path) -> None:
    """`.ci/run` runs `make test` in the checkout, and lets no test be left out for want of one."""
    required = "$MANA_REQUIRE_BROWSER$MANA_REQUIRE_PROMTOOL"
    script = f'#!/bin/sh\necho "make $* required={required} in $PWD"\n'
    (tmp_path / "make").write_text(script, "utf-8")
    (tmp_path / "make").chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"make test required=11 in {ROOT}\n"


def test_settings_of_the_person_are_out_of_reach() -> None:
    """No test meets the person's data, database or paid model."""
    assert not {"MANA_DATABASE_URL", "MANA_LLM_URL", "MANA_LLM_KEY"} & set(os.environ)
    assert not Path(os.environ["MANA_HOME"]).is_relative_to(Path("~/.local").expanduser())
