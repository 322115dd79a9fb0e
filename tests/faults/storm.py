"""The course of one seed: a while in which things break, then rest until nothing is open."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import asyncpg

from mana.testing.postgres import connected
from tests.faults.engine import LATE_TURNS, OPEN, Party
from tests.faults.harms import Harm, Harms
from tests.faults.runners import processes

AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
)
"""How a server speaks that is just killed or comes up."""
UNAVAILABLE = "DATABASE_UNAVAILABLE"
REST_S = 90.0
RUNS_S = 4.0
"""How long the engine may take, once nothing breaks any more, until all is at an end: so long, and
a second for so many runs."""


async def weathered(made: Party) -> None:
    """Let runners work while things break, then come to rest and end them gently."""
    await asyncio.gather(*(runner.start() for runner in made.runners))
    watching = asyncio.create_task(_watch(made))
    try:
        await _storm(made)
        made.model.is_well = True
        await _rest(made)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    made.codes += await asyncio.gather(*(runner.stop() for runner in made.runners))
    assert set(made.codes) == {0}, made.codes


async def _storm(made: Party) -> None:
    """Break one thing after the other, of machines and of people beside each other."""
    harms = Harms(made)
    until = time.monotonic() + made.scale.seconds
    async with asyncio.TaskGroup() as tasks:
        for kinds in (harms.of_machines, harms.of_people):
            tasks.create_task(_each(made, kinds, until))
    await harms.mend()


async def _each(made: Party, kinds: Sequence[Harm], until: float) -> None:
    """Let these happen, each once before any comes again, until the time is over.

    Where everything is to happen, that may take longer than the time.
    """
    waiting = list(kinds)
    if made.scale.is_whole:
        made.dice.shuffle(waiting)
    while (waiting and made.scale.is_whole) or time.monotonic() < until:
        harm = waiting.pop(0) if waiting else made.dice.choice(kinds)
        made.done[harm.__name__] += 1
        try:
            await harm()
        except AWAY:
            made.done["cut off"] += 1
        except AssertionError as error:
            if UNAVAILABLE not in str(error):
                raise
            made.done["cut off"] += 1
        await asyncio.sleep(made.dice.random() * 0.3)


async def _watch(made: Party) -> None:
    """Look at what must hold at any moment, and at the family of each runner."""
    while True:
        await asyncio.sleep(0.5)
        seen = processes()
        for runner in made.runners:
            runner.look(seen)
        try:
            async with connected(made.database.owner_url) as owner:
                made.late_turns += await owner.fetchval(LATE_TURNS)
        except AWAY:
            continue  # the server is just killed


async def _rest(made: Party) -> None:
    """Undo what holds work back, let retries be due, and wait until nothing is open."""
    async with asyncio.timeout(REST_S + sum(made.queued.values()) / RUNS_S):
        while True:
            await _resume(made)
            await made.hurry(everything=True)
            left = await made.execute(OPEN)
            if left == 0:
                return
            await asyncio.sleep(0.3)


async def _resume(made: Party) -> None:
    """Let missions that failed too often go on."""
    made.tell_time()
    for here in made.worlds.values():
        for one in (await here.missions()).missions:
            if one.hold == "errored":
                path = f"/api/v1/spaces/{here.ada.space}/missions/{one.mission_id}/resume"
                answer = await here.ada.call("POST", path)
                assert answer.status_code == 200, answer.text
                made.done["resumed"] += 1
                made.resumed.add((str(here.ada.space), one.mission_id))


def told(seed: int, made: Party, ends: Counter[str]) -> str:
    """Return the figures of a seed."""
    lines = [
        f"seed {seed}: {sum(ends.values())} occurrences {dict(sorted(ends.items()))}",
        f"  harms {dict(sorted(made.done.items()))}, the clock {made.ahead_minutes} min ahead",
        f"  failed {dict(made.odd.most_common())}",
        f"  line refused {made.line.refused}, unanswered {made.line.unanswered}",
        f"  model {dict(made.model.moods)}",
        f"  lives {[runner.lives for runner in made.runners]}",
        f"  memory in KiB {[_thinned(runner.memory_kib) for runner in made.runners]}",
    ]
    return "\n".join(lines)


def _thinned(values: Sequence[int]) -> list[int]:
    """Return about seven of the values."""
    return list(values[:: max(1, len(values) // 6)])
