"""What of a mission of this device has come due: by its clock, or by changes of its inputs. Pure.

The same rules as on the hub (docs/protocol/engine.md, 1). A moment follows from cadence, zone and
anchor alone, so whoever looks later finds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mana.device.flips import flip_change_id
from mana.device.opened import stamp_ms
from mana.domain.cadences import Cadence, next_due
from mana.domain.errors import Invalid
from mana.domain.missed import Passed, passed
from mana.domain.missions import Mission
from mana.domain.records import Record, View

DEBOUNCES_MAX: Final = 4
"""How many times its rest a change waits at most while others follow it."""
_MINUTE_MS: Final = 60_000


def arranged_ms(view: View) -> int:
    """Return since when a mission is arranged as it is; nothing before that is due."""
    paths = ("cadence", "timeZone", "runsOn", "state")
    return max(stamp_ms(view.stamps.get(path)) for path in paths)


def next_ms(mission: Mission, view: View, after_ms: int) -> int | None:
    """Return the first due moment after a time, None where no clock says when."""
    try:
        return next_due(
            mission.cadence,
            mission.zone,
            anchor_ms=stamp_ms(view.stamps.get("cadence")),
            after_ms=after_ms,
        )
    except Invalid:
        return None


def due_moments(mission: Mission, view: View, *, after_ms: int, now_ms: int) -> Passed | None:
    """Return what came due later than `after_ms`, by the mission's policy; None if nothing did."""
    due_ms = next_ms(mission, view, max(after_ms, arranged_ms(view)))
    if due_ms is None or due_ms > now_ms:
        return None
    return passed(
        mission.cadence,
        mission.zone,
        mission.if_missed,
        anchor_ms=stamp_ms(view.stamps.get("cadence")),
        due_ms=due_ms,
        now_ms=now_ms,
    )


def changed_ms(records: Iterable[Record]) -> list[int]:
    """Return when people wrote to these records, by the stamps that stand; oldest first.

    What an agent or the system wrote is not among them, nor who may see a record: a change of that
    writes everything anew.
    """
    return sorted(
        stamp_ms(entry.at)
        for record in records
        for entry in record.entries.values()
        if entry.origin == "user"
        and entry.change_id != flip_change_id(record.table, record.id, entry.at)
    )


def change_due_ms(
    cadence: Cadence, *, first_ms: int, newest_ms: int, last_run_ms: int | None
) -> int:
    """Return when a run on change is due: the inputs have rested, and the last run is long past."""
    rest_ms = cadence.debounce_minutes * _MINUTE_MS
    due_ms = min(newest_ms + rest_ms, first_ms + DEBOUNCES_MAX * rest_ms)
    if last_run_ms is None:
        return due_ms
    return max(due_ms, last_run_ms + cadence.spacing_minutes * _MINUTE_MS)
