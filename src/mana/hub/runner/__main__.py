"""Run the runner: `python -m mana.hub.runner`, with the settings of the environment.

Workers are forks of a process that has loaded this package and nothing else, so that none of
them starts by loading a whole command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from mana.domain.errors import ManaError
from mana.hub.runner.app import build, serve
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.tracing import tracing_from


def main() -> int:
    """Serve until told to stop; return the exit code."""
    url = os.environ.get("MANA_RUNNER_DATABASE_URL", "").strip()
    home = Path(os.environ.get("MANA_HOME", "").strip() or "~/.local/share/mana").expanduser()
    if not url:
        print("MANA_RUNNER_DATABASE_URL is not set", file=sys.stderr)  # noqa: T201 - for a person
        return 2
    try:
        settings = RunnerSettings.from_env(os.environ, database_url=url, home=home)
        runner = build(settings, tracing=tracing_from(os.environ))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            loop.run(serve(runner, ready=_say))
    except ManaError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)  # noqa: T201 - for a person
        return 1
    except OSError:
        print("the port of MANA_RUNNER_PORT is taken", file=sys.stderr)  # noqa: T201 - for a person
        return 2
    return 0


def _say(port: int) -> None:
    print(f"runner listens on port {port}", flush=True)  # noqa: T201 - for whoever started it


if __name__ == "__main__":
    sys.exit(main())
