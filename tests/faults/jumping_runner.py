"""A runner, and its workers, on a machine whose wall clock jumps all the time. Argument: seconds.

Every half second the clock stands that far ahead, right, or that far behind. Nothing that a run
decides may hang on it: moments are the database's, and what is waited for is counted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import uvloop

from mana.hub.runner.app import build, serve
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.workers import ProcessWorkers
from mana.hub.runner.zygote import main as warm_parent

_NS = 1_000_000_000


def let_jump(seconds: int) -> None:
    """From now on the wall clock of this process jumps."""
    real = time.time_ns

    def jumping() -> int:
        place = time.monotonic_ns() * 2 // _NS % 3 - 1
        return real() + place * seconds * _NS

    time.time_ns = jumping
    time.time = lambda: jumping() / _NS


def workers(seconds: int) -> ProcessWorkers:
    """Return workers with such a clock of their own."""
    folder = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {folder!r});"
        f" from tests.faults.jumping_runner import parent; sys.exit(parent({seconds}))"
    )
    return ProcessWorkers(("-c", program))


def parent(seconds: int) -> int:
    """Be the warm parent of such workers."""
    let_jump(seconds)
    return warm_parent()


def main() -> None:
    """Serve as `python -m mana.hub.runner` does."""
    seconds = int(sys.argv[1])
    let_jump(seconds)
    settings = RunnerSettings.from_env(
        os.environ,
        database_url=os.environ["MANA_RUNNER_DATABASE_URL"],
        home=Path(os.environ["MANA_HOME"]),
    )
    runner = build(settings, workers=workers(seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(
            serve(runner, ready=lambda port: print(f"runner listens on port {port}", flush=True))
        )


if __name__ == "__main__":
    main()
