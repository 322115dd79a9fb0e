"""Due moments that passed: which were missed, and which one is run for them. Pure."""

from __future__ import annotations

from mana.domain import cadences
from mana.domain.cadences import Cadence
from mana.domain.occurrences import MISSED_KEPT_MAX


def overdue(
    cadence: Cadence, zone: str, *, anchor_ms: int, due_ms: int, now_ms: int
) -> tuple[tuple[int, ...], int]:
    """Return the missed moments since `due_ms`, oldest first, and the newest, which runs."""
    return cadences.overdue(
        cadence, zone, anchor_ms=anchor_ms, due_ms=due_ms, now_ms=now_ms, kept=MISSED_KEPT_MAX
    )
