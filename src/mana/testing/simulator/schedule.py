"""What happens in a simulated world, as data: drawn from a seed, or written down by hand.

A schedule can be kept as JSON, so that a failure that was found becomes a test that does not
depend on how schedules are drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.testing.simulator.network import Weather

HOUR_S: Final = 3_600.0
DAY_S: Final = 86_400.0

CROSSED: Final = frozenset({"remove", "leave", "rerole", "close_space", "flip", "decide", "crash"})
"""What is worth meeting in the middle of something else."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens on one machine. `picks` choose among what is there then."""

    at_s: float
    machine: int
    name: str
    picks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Clock:
    """A machine's clock: how far it is off, and how much faster it runs."""

    offset_ms: int = 0
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A world and all that happens in it. `owners` names for each machine its person."""

    seed: int
    owners: tuple[int, ...]
    clocks: tuple[Clock, ...]
    steps: tuple[Step, ...]
    weather: Weather = field(default_factory=Weather)
    hub_skew_ms: int = 0
    batch: int = 500
    page: int = 1_000
    state_page: int = 500
    shared: int = 0
    """How many spaces there are from the beginning in which everybody is."""
    mends_clocks: bool = True
    """Whether the clocks are right in the end, or devices must live with wrong ones."""

    def to_json(self) -> bytes:
        """Return the schedule as JSON."""
        return msgspec.json.encode(self)


def schedule_from_json(raw: bytes) -> Schedule:
    """Return the schedule that was written down."""
    return msgspec.json.decode(raw, type=Schedule)


WEIGHTS: Final[dict[str, int]] = {
    "write": 24,
    "collect": 10,
    "delete": 5,
    "restore": 3,
    "group": 5,
    "propose": 4,
    "decide": 8,
    "sync": 34,
    "crash": 6,
    "second": 3,
    "back_up": 2,
    "set_back": 2,
    "wipe": 1,
    "clock": 3,
    "offline": 4,
    "retry": 2,
    "drop": 1,
    "hub_down": 2,
    "found_space": 1,
    "invite": 4,
    "join": 6,
    "withdraw": 1,
    "leave": 2,
    "remove": 4,
    "rerole": 3,
    "close_space": 1,
    "forget_space": 1,
    "flip": 6,
    "reseal": 3,
    "knock": 3,
}


def draw(seed: int, *, steps: int = 90) -> Schedule:
    """Draw a schedule: its people, their machines, the weather, and what they do."""
    dice = random.Random(f"schedule {seed}")
    people = dice.choice((1, 2, 2, 3, 3))
    owners = list(range(people)) + [dice.randrange(people) for _ in range(dice.randrange(1, 4))]
    wild = dice.choice((0.0, 0.5, 1.0, 1.0))
    weather = Weather(
        delay_s=dice.choice((0.02, 0.2, 2.0)),
        lost=0.06 * wild,
        late=0.05 * wild,
        answer_lost=0.08 * wild,
        doubled=0.10 * wild,
        crash_before=0.02 * wild,
        crash_after=0.03 * wild,
    )
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    found: list[Step] = []
    at_s = 0.0
    for _ in range(steps):
        # Mostly at once, so that things cross each other; sometimes a night or a week later.
        at_s += dice.expovariate(1 / dice.choice((0.01, 0.3, 0.3, 5.0, 5.0, 120.0, HOUR_S)))
        if dice.random() < 0.02:
            at_s += dice.random() * 7 * DAY_S
        name = dice.choices(names, weights)[0]
        picks = tuple(dice.randrange(1_000) for _ in range(6))
        machine = dice.randrange(len(owners))
        found.append(Step(round(at_s, 3), machine, name, picks))
        if name in CROSSED and dice.random() < 0.6:
            found += _crossing(dice, at_s, len(owners))
    found.sort(key=lambda step: step.at_s)
    return Schedule(
        seed=seed,
        owners=tuple(owners),
        clocks=tuple(_clock(dice) for _ in owners),
        steps=tuple(found),
        weather=weather,
        hub_skew_ms=dice.choice((0, 0, 45_000, -200_000)),
        batch=dice.choice((1, 2, 3, 7, 500)),
        page=dice.choice((1, 2, 3, 5, 1_000)),
        state_page=dice.choice((1, 2, 4, 500)),
        shared=dice.choice((0, 1, 1, 2)) if people > 1 else 0,
        mends_clocks=dice.random() < 0.5,
    )


def _crossing(dice: random.Random, at_s: float, machines: int) -> list[Step]:
    """Return what others do at the very time at which something moves."""
    found = []
    for _ in range(dice.choice((1, 2, 2, 4))):
        moment_s = max(0.0, at_s + (dice.random() - 0.3) * dice.choice((0.2, 2.0, 10.0)))
        name = dice.choice(("sync", "sync", "write", "decide", "collect"))
        picks = tuple(dice.randrange(1_000) for _ in range(6))
        found.append(Step(round(moment_s, 3), dice.randrange(machines), name, picks))
    return found


def _clock(dice: random.Random) -> Clock:
    offset = dice.choice((0, 0, 0, 20_000, -90_000, 400_000, -7_200_000, 3 * 86_400_000))
    return Clock(int(offset * dice.random()), 1 + dice.choice((0.0, 0.0, 1e-4, -1e-3, 0.01)))
