"""What becomes of due moments that passed while nothing could run. Pure; hub and device alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mana.domain.cadences import Cadence, next_due, overdue
from mana.domain.missions import IfMissed
from mana.domain.occurrences import MISSED_KEPT_MAX

MISSED_RUN_MAX: Final = 24
"""Under `all` this many of the newest moments run."""
LATE_MS_MAX: Final = 10 * 60 * 1_000
"""Under `skip` a moment that is later than this, or than half its interval, does not run."""


@dataclass(frozen=True, slots=True)
class Passed:
    """`missed`: moments that do not run, oldest first; `runs`: the one that runs now, if any.

    `newest`: the newest moment that passed; what follows is due after it, or after `runs` if that
    is older (under `all`, where one after the other runs).
    """

    missed: tuple[int, ...]
    runs: int | None
    newest: int


def passed(
    cadence: Cadence,
    zone: str,
    if_missed: IfMissed,
    *,
    anchor_ms: int,
    due_ms: int,
    now_ms: int,
    delay_ms: int = 0,
) -> Passed:
    """Return what becomes of the moments from `due_ms` to `now_ms`.

    `delay_ms`: how much later than its moment an occurrence is due on purpose (jitter).
    """
    before, newest = overdue(
        cadence, zone, anchor_ms=anchor_ms, due_ms=due_ms, now_ms=now_ms, kept=MISSED_KEPT_MAX
    )
    if if_missed == "all":
        moments = (*before, newest)
        return Passed(moments[:-MISSED_RUN_MAX], moments[-MISSED_RUN_MAX:][0], newest)
    if if_missed == "skip":
        following = next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=newest)
        late_ms_max = LATE_MS_MAX
        if following is not None:
            late_ms_max = min(late_ms_max, (following - newest) // 2)
        if now_ms - newest - delay_ms > late_ms_max:
            return Passed((*before, newest)[-MISSED_KEPT_MAX:], None, newest)
    return Passed(before, newest, newest)
