"""Types commands as a person does: each one a process of its own, on a device of its own.

They are forks of a process that has loaded the code, which is cheaper by far; `cold` types at
programs that start from nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.cli.warm import PATIENCE_S, run_forked

PASSWORD = "correct horse battery staple"


@dataclass
class Shell:
    """Runs `mana` as a process of its own on one device."""

    environ: dict[str, str]
    is_cold: bool = False

    @property
    def cold(self) -> Shell:
        """Return the same shell, whose commands are programs that start from nothing."""
        return replace(self, is_cold=True)

    @classmethod
    def at(cls, home: Path, hub_url: str) -> Shell:
        """Return a shell on a device of its own, whose data is in `home`."""
        return cls(
            {
                **os.environ,
                "MANA_HOME": str(home),
                "MANA_HUB_URL": hub_url,
                "MANA_PASSWORD": PASSWORD,
                "PYTHONWARNINGS": "error",
            }
        )

    async def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `mana` with these arguments."""
        run = self._started if self.is_cold else run_forked
        return await asyncio.to_thread(run, arguments, self.environ, stdin=stdin)

    @staticmethod
    def _started(
        arguments: Sequence[str], environ: Mapping[str, str], *, stdin: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "mana.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=environ,
            timeout=PATIENCE_S,
            check=False,
        )

    async def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed without a word on standard error."""
        done = await self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
        return done.stdout

    async def json(self, *arguments: str) -> Any:
        """Run a command with `--json` that must succeed, and return its document."""
        return json.loads(await self.ok(*arguments, "--json"))
