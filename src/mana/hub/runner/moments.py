"""Due moments that passed: which were missed, and which one is run for them. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from mana.domain.cadences import Cadence, next_due
from mana.domain.occurrences import MISSED_KEPT_MAX

_DAY_MS: Final = 24 * 60 * 60 * 1_000
_PERIOD_MS: Final = {"daily": _DAY_MS, "weekly": 7 * _DAY_MS}


def overdue(
    cadence: Cadence, zone: str, *, anchor_ms: int, due_ms: int, now_ms: int
) -> tuple[tuple[int, ...], int]:
    """Return the missed moments since `due_ms`, oldest first, and the newest, which runs.

    At most `MISSED_KEPT_MAX` are named: after a year off line an interval of a minute would
    otherwise fill the ledger.
    """
    if cadence.kind == "interval":
        step = cadence.every_minutes * 60_000
        newest = due_ms + max(0, (now_ms - due_ms) // step) * step
        first = max(due_ms, newest - MISSED_KEPT_MAX * step)
        return tuple(range(first, newest, step)), newest
    if cadence.kind not in _PERIOD_MS:
        return (), due_ms
    reach_ms = (MISSED_KEPT_MAX + 2) * _PERIOD_MS[cadence.kind]
    moments = deque([due_ms], maxlen=MISSED_KEPT_MAX + 1)
    after_ms = max(due_ms, now_ms - reach_ms)
    while (moment := next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=after_ms)) is not None:
        if moment > now_ms:
            break
        moments.append(moment)
        after_ms = moment
    *missed, newest = moments
    return tuple(missed), newest
