"""The supervisor keeps parts running, and hands them what they were started with."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from mana.cli import supervisor
from mana.cli.supervisor import Part, Supervisor

# Dies at the fail point; started without it, says so on a pipe and waits for its lifeline.
PART = """#!{python}
import os, sys
os.write(int(os.environ["MANA_READY_FD"]), b"{{}}\\n")
if os.environ.get("MANA_FAIL_POINT"):
    sys.exit(9)
open(os.environ["SAYS"], "w").write(os.environ["KEPT"])
sys.stdin.read()
"""


@pytest.mark.anyio
async def test_a_fail_point_kills_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that ended is started with the same settings, but without the fail point."""
    program, says = tmp_path / "part", tmp_path / "says"
    program.write_text(PART.format(python=sys.executable))
    program.chmod(0o700)
    os.mkfifo(says)
    monkeypatch.setattr(supervisor.sys, "executable", str(program))
    said: list[str] = []
    running = Supervisor(say=said.append)
    environ = {"SAYS": str(says), "MANA_FAIL_POINT": "after_lease", "KEPT": "kept"}
    await running.start(Part("runner", ("runner",), environ, tmp_path / "log"))
    watching = asyncio.create_task(running.watch())
    assert await asyncio.to_thread(says.read_text) == "kept"
    running.stop()
    await watching
    await running.close()
    assert len(said) == 1
    assert "status 9" in said[0]
