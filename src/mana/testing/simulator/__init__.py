"""A seeded world of devices, a hub, bad networks and crashes, against the real code of both sides.

`make simulate SEEDS=1000` runs it; docs/simulator.md says what it drives and what it checks.
"""

from mana.testing.simulator.ledger import Broken
from mana.testing.simulator.network import Weather
from mana.testing.simulator.run import Report, simulate, simulate_seed
from mana.testing.simulator.schedule import (
    Clock,
    Schedule,
    Step,
    draw,
    schedule_from_json,
)

__all__ = [
    "Broken",
    "Clock",
    "Report",
    "Schedule",
    "Step",
    "Weather",
    "draw",
    "schedule_from_json",
    "simulate",
    "simulate_seed",
]
