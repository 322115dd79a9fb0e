"""Types commands as a person does: each one a process of its own, on a device of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSWORD = "correct horse battery staple"


@dataclass
class Shell:
    """Runs `mana` as a process of its own on one device."""

    environ: dict[str, str]

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
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-m", "mana.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=100,
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
