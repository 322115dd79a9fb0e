"""Runs many seeds, and says how to replay those that broke a promise: `make simulate`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from mana.testing.simulator.run import Report, simulate, simulate_seed
from mana.testing.simulator.schedule import draw, schedule_from_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds or the schedule that the command line names; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m mana.testing.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--schedule", type=Path, help="play this schedule instead (JSON)")
    parser.add_argument("--print-schedule", action="store_true", help="print what a seed draws")
    given = parser.parse_args(arguments)
    if given.print_schedule:
        _say(draw(given.first).to_json().decode())
        return 0
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    for report in _reports(given):
        counts[report.invariant or "kept"] += 1
        if given.trace:
            _say(report.text(lines=0))
        elif not report.kept:
            _say(report.text())
    spent = time.monotonic() - begun
    words = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    _say(f"{sum(counts.values())} seeds in {spent:.0f} s: {words}")
    return 0 if set(counts) <= {"kept"} else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _reports(given: argparse.Namespace) -> Iterator[Report]:
    if given.schedule is not None:
        yield simulate(schedule_from_json(given.schedule.read_bytes()))
        return
    seeds = range(given.first, given.first + given.seeds)
    if given.workers < 2 or len(seeds) < 2:
        yield from map(simulate_seed, seeds)
        return
    with ProcessPoolExecutor(given.workers) as pool:
        yield from pool.map(simulate_seed, seeds, chunksize=4)


if __name__ == "__main__":
    sys.exit(main())
