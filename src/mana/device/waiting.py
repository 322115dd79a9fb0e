"""What a mission waits for beside its clock: a change of what it looks at, or room under a cap. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mana.device.due import change_due_ms
from mana.device.run_ledger import MissionMarks
from mana.device.views import CapWait, OnChange, RunView
from mana.device.words import budget_words
from mana.domain.cadences import Cadence
from mana.domain.clock import parse_iso_ms
from mana.planning.budget import read_budget_reason
from mana.protocol.messages import UsageLine

HOUR_MS: Final = 60 * 60 * 1_000
_MINUTE_MS: Final = 60_000
_DAY_HOURS: Final = 25
"""A day under a cap is the 24 whole hours before the current one, and that one."""

Caps = Mapping[tuple[str, str], int | None]
"""By scope and unit the cap that holds now; one that is not listed is not known here."""


def on_change(
    cadence: Cadence,
    *,
    changes: Sequence[int],
    runs: Sequence[RunView],
    here: MissionMarks | None,
    since_ms: int,
    now_ms: int,
) -> OnChange:
    """Return when a mission on change runs.

    `changes`: when people changed its inputs, oldest first. `here`: what this device's ledger marks,
    where it runs here; then changes after `since_ms` wait. On the hub a run that waits says so.
    """
    of_kind = [run for run in runs if run.kind == "change"]
    last_ms = max((run.started_ms for run in of_kind if run.started_ms), default=None)
    due_ms = next((run.due_ms for run in of_kind if run.state == "queued"), None)
    pending = [at_ms for at_ms in changes if at_ms > since_ms]
    if here is not None and due_ms is None and pending:
        due_ms = change_due_ms(
            cadence,
            first_ms=here.first_ms or pending[0],
            newest_ms=pending[-1],
            last_run_ms=last_ms,
        )
    rested_ms = 0 if last_ms is None else last_ms + cadence.spacing_minutes * _MINUTE_MS
    return OnChange(
        changed_ms=changes[-1] if changes else None,
        due_ms=due_ms,
        rests_until_ms=rested_ms if due_ms is None and rested_ms > now_ms else None,
    )


def cap_wait(
    runs: Sequence[RunView],
    *,
    caps: Caps,
    ids: Mapping[str, str],
    used: Sequence[UsageLine],
    currency: str,
    now_ms: int,
) -> CapWait | None:
    """Return the used-up cap that a mission waits for; None if it waits for none.

    Its newest run says so, and not any more where the cap is another by now, or where room has come
    since. `runs`: newest first. `ids`: by scope whose use counts. `used`: of the last two days and
    more, by the hour.
    """
    begun = (run for run in runs if run.state != "missed" and (run.state != "queued" or run.tries))
    last = next(begun, None)
    refused = None if last is None else read_budget_reason(last.reason)
    if last is None or refused is None or last.state != "skipped":
        return None
    if caps.get((refused.scope, refused.unit), refused.cap) != refused.cap:
        return None
    room_ms = None
    if refused.cap:
        room_ms = _room_ms(used, refused.scope, ids.get(refused.scope, ""), now_ms)
        if room_ms is not None and room_ms <= now_ms:
            return None
    words = budget_words(refused, currency)
    return CapWait(refused.scope, refused.unit, refused.cap, words, room_ms)


def _room_ms(used: Sequence[UsageLine], scope: str, name: str, now_ms: int) -> int | None:
    """Return when the oldest use of the day under a cap is no longer of that day."""
    first_ms = now_ms // HOUR_MS * HOUR_MS - (_DAY_HOURS - 1) * HOUR_MS
    hours = [
        parse_iso_ms(line.hour)
        for line in used
        if (line.scope, line.id) == (scope, name) and (line.tokens or line.cost)
    ]
    counted = [at_ms for at_ms in hours if at_ms >= first_ms]
    return min(counted) + _DAY_HOURS * HOUR_MS if counted else None
