"""When a mission is due next, kept in the ledger: by push, by grant, and by the end of a run.

The due moments are a pure function of the cadence (`domain.cadences`); what is decided here is
only from which moment on they count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mana.domain.cadences import next_due
from mana.domain.ids import AccountId, MissionId, SpaceId
from mana.domain.occurrences import HOLDING
from mana.hub.runner.ledger import MissionSnapshot
from mana.hub.runner.store import Ledger

_TAKEN: Final = frozenset({"done", "skipped", "failed", "missed"})


async def schedule_next(ledger: Ledger, mission: MissionSnapshot, *, after_ms: int) -> None:
    """Queue the first due moment after `after_ms` that is not in the ledger yet."""
    due: int | None = None
    if mission.runs_here and mission.hold is None and mission.anchor_ms is not None:
        due = _due(mission, after_ms)
        while due is not None:
            if await ledger.enqueue(mission, due, "scheduled") not in _TAKEN:
                break
            due = _due(mission, max(due, await ledger.now_ms()))
    await ledger.set_schedule(mission, next_run_ms=due, hold=mission.hold)


async def reschedule(ledger: Ledger, old: MissionSnapshot | None, mission: MissionSnapshot) -> None:
    """Bring the schedule in line with a mission that was pushed.

    A new rhythm counts from its own anchor, so that a mission that was made off line is not
    late for ever; one that was resumed or moved here counts from now.
    """
    starts = old is None or not old.runs_here
    if old is not None and not starts and old.rhythm == mission.rhythm and mission.runs_here:
        if old.agent_id != mission.agent_id or old.account_id != mission.account_id:
            await ledger.cancel_queued(mission.space_id, mission.mission_id, manual_too=False)
            await _requeue(ledger, mission, old.next_run_ms)
        return
    await ledger.cancel_queued(
        mission.space_id, mission.mission_id, manual_too=not mission.runs_here
    )
    new_anchor = old is None or old.anchor_ms != mission.anchor_ms
    if new_anchor and mission.anchor_ms is not None:
        after_ms = mission.anchor_ms
    else:
        after_ms = await ledger.now_ms()
    await schedule_next(ledger, mission, after_ms=after_ms)


async def granted(
    ledger: Ledger, space: SpaceId, mission_id: MissionId, account: AccountId
) -> None:
    """Clear the hold of a mission that has a grant again, and schedule it.

    The newest moment that passed meanwhile is run once; the others are noted as missed.
    """
    mission = await ledger.mission(space, mission_id, lock=True)
    if mission is None:
        return
    last_ms = await ledger.last_scheduled_ms(space, mission_id)
    was_held = mission.hold is not None
    mission = replace(mission, account_id=account, hold=None)
    await ledger.runs_as(space, mission_id, account)
    if was_held:
        await ledger.cancel_queued(space, mission_id, manual_too=False)
        anchor_ms = mission.anchor_ms or 0
        after_ms = anchor_ms if last_ms is None else max(anchor_ms, last_ms)
        await schedule_next(ledger, mission, after_ms=after_ms)
    else:
        await ledger.set_schedule(mission, next_run_ms=mission.next_run_ms, hold=None)


async def hold(ledger: Ledger, space: SpaceId, mission_id: MissionId, reason: str) -> None:
    """Stop a mission's schedule until the person grants again."""
    mission = await ledger.mission(space, mission_id, lock=True)
    if mission is None:
        return
    await ledger.cancel_queued(space, mission_id, manual_too=False)
    await ledger.set_schedule(mission, next_run_ms=None, hold=reason)


async def after_run(
    ledger: Ledger, mission: MissionSnapshot | None, scheduled_ms: int, reason: str | None
) -> None:
    """Schedule what follows an occurrence that ended, or hold the mission for its reason."""
    if mission is None:
        return
    if reason in HOLDING:
        await ledger.cancel_queued(mission.space_id, mission.mission_id, manual_too=False)
        await ledger.set_schedule(mission, next_run_ms=None, hold=reason)
        return
    if mission.next_run_ms is None or mission.next_run_ms <= scheduled_ms:
        await schedule_next(ledger, mission, after_ms=scheduled_ms)


async def _requeue(ledger: Ledger, mission: MissionSnapshot, next_run_ms: int | None) -> None:
    if next_run_ms is not None and mission.hold is None:
        await ledger.enqueue(mission, next_run_ms, "scheduled")
    await ledger.set_schedule(mission, next_run_ms=next_run_ms, hold=mission.hold)


def _due(mission: MissionSnapshot, after_ms: int) -> int | None:
    return next_due(
        mission.cadence, mission.time_zone, anchor_ms=mission.anchor_ms or 0, after_ms=after_ms
    )
