"""Storms over a real installation, one for each seed: `make storm`.

Runners, a hub, PostgreSQL and a model's endpoint as people run them, thousands of runs, and
everything that can break; afterwards all is checked that must hold whatever happened.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Sequence

import structlog

from tests.faults.after import check
from tests.faults.engine import PEOPLE, Scale, party
from tests.faults.runners import HAS_MAD_CLOCK
from tests.faults.storm import told, weathered


def main(arguments: Sequence[str] | None = None) -> int:
    """Let the storms of the command line pass; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many storms")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--occurrences", type=int, default=50, help="for each mission by hand")
    parser.add_argument("--seconds", type=float, help="how long things break")
    parser.add_argument("--people", type=int, choices=range(1, len(PEOPLE) + 1), default=3)
    parser.add_argument("--runners", type=int, choices=range(2, len(HAS_MAD_CLOCK) + 1), default=4)
    given = parser.parse_args(arguments)
    seconds = given.seconds or 8 + given.occurrences / 2
    scale = Scale(given.people, given.occurrences, given.runners, seconds)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    broken = [
        seed
        for seed in range(given.first, given.first + given.seeds)
        if not asyncio.run(_is_kept(scale, seed))
    ]
    _say(f"{given.seeds} storms, {len(broken)} broke a promise")
    for seed in broken:
        others = " ".join(arguments if arguments is not None else sys.argv[1:])
        _say(
            f"replay, as far as processes allow: python -m tests.faults {others} "
            f"--first {seed} --seeds 1"
        )
    return 1 if broken else 0


async def _is_kept(scale: Scale, seed: int) -> bool:
    """Let one storm pass and say what came of it."""
    began = time.monotonic()
    async with party(scale, seed) as made:
        try:
            await weathered(made)
            ends = await check(made)
            assert all(runner.left() == [] and runner.said == {} for runner in made.runners), [
                (runner.left(), runner.said) for runner in made.runners
            ]
        except Exception:
            _say(f"seed {seed}: a promise was broken\n{traceback.format_exc()}")
            return False
        _say(f"{told(seed, made, ends)}\n  {time.monotonic() - began:.0f} s")
    return True


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
