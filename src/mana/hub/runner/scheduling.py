"""When a mission is due next, kept in the ledger: by push, by grant, and by the end of a run.

The due moments are a pure function of the cadence (`domain.cadences`); what is decided here is
only from which moment on they count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from mana.domain.cadences import next_due
from mana.domain.ids import AccountId, MissionId, SpaceId
from mana.domain.missed import passed
from mana.domain.occurrences import (
    ERRORED,
    FAILURES_MAX,
    HOLDING,
    RETRIES_MS,
    RETRY_ASKED_MS_MAX,
)
from mana.hub.runner.ledger import Lease, MissionSnapshot
from mana.hub.runner.queue import End, Moment, Queue, Retry

_TAKEN: Final = frozenset({"done", "skipped", "failed", "missed"})
Locked: TypeAlias = tuple[int, Mapping[tuple[SpaceId, MissionId], MissionSnapshot]]
"""The database's time, and missions by their keys, which nobody else changes until the end."""
_SPREAD: Final = 5
"""A retry comes up to this part earlier or later than its class says."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of an occurrence.

    `took`: False where the lease is another's by now, and nothing was written. `retry_ms`: when it
    is tried again, instead of having ended. `hold`: what holds the mission from now on.
    """

    took: bool
    retry_ms: int | None = None
    hold: str | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """What of a leased moment is to be run now, and how many moments were noted as missed."""

    lease: Lease | None
    missed: int = 0


async def schedule_all(
    ledger: Queue, missions: Mapping[MissionSnapshot, int], *, now_ms: int
) -> None:
    """Queue of each mission the first due moment after a time that is not in the ledger yet."""
    next_ms: dict[MissionSnapshot, int | None] = {
        mission: following(mission, after_ms) for mission, after_ms in missions.items()
    }
    asked = [Moment(mission, due) for mission, due in next_ms.items() if due is not None]
    while asked:
        states = await ledger.enqueue_all(asked)
        taken = [one for one, state in zip(asked, states, strict=True) if state in _TAKEN]
        asked = []
        for one in taken:
            after_ms = one.scheduled_ms
            if one.mission.if_missed != "all":
                after_ms = max(after_ms, now_ms)
            next_ms[one.mission] = due = _due(one.mission, after_ms)
            if due is not None:
                asked.append(Moment(one.mission, due))
    await ledger.set_schedules(
        [replace(mission, next_run_ms=due) for mission, due in next_ms.items()]
    )


def following(mission: MissionSnapshot, after_ms: int) -> int | None:
    """Return the first due moment after a time; None where no clock says, or it may not run here."""
    return _due(mission, after_ms) if _may_run(mission) else None


async def schedule_next(ledger: Queue, mission: MissionSnapshot, *, after_ms: int) -> None:
    """Queue the first due moment of one mission after a time."""
    await schedule_all(ledger, {mission: after_ms}, now_ms=await ledger.now_ms())


async def reschedule(ledger: Queue, old: MissionSnapshot | None, mission: MissionSnapshot) -> None:
    """Bring the schedule in line with a mission that was pushed.

    A new rhythm counts from its own anchor, so that a mission that was made off line is not
    late for ever; one that was resumed or moved here counts from now.
    """
    starts = old is None or not old.runs_here
    if old is not None and not starts and old.rhythm == mission.rhythm and mission.runs_here:
        if old.agent_id != mission.agent_id:
            await ledger.cancel_scheduled(*mission.key)
            await _requeue(ledger, mission)
        return
    await ledger.cancel_queued(*mission.key, manual_too=not mission.runs_here)
    new_anchor = old is None or old.anchor_ms != mission.anchor_ms
    if new_anchor and mission.anchor_ms is not None:
        after_ms = mission.anchor_ms
    else:
        after_ms = await ledger.now_ms()
    await schedule_next(ledger, mission, after_ms=after_ms)


async def granted(ledger: Queue, space: SpaceId, mission_id: MissionId, account: AccountId) -> None:
    """Clear the hold of a mission that has a grant again, and schedule it.

    The newest moment that passed meanwhile is run once; the others are noted as missed. A mission
    that failed too often waits for its person all the same.
    """
    mission = await ledger.mission(space, mission_id, lock=True)
    if mission is None:
        return
    was_held = mission.hold is not None and mission.hold != ERRORED
    mission = replace(mission, account_id=account, hold=None if was_held else mission.hold)
    await ledger.runs_as(space, mission_id, account)
    await ledger.wake()
    if not was_held:
        await ledger.set_schedules([mission])
        return
    last_ms = await ledger.last_scheduled_ms(space, mission_id)
    await ledger.cancel_queued(space, mission_id, manual_too=False)
    anchor_ms = mission.anchor_ms or 0
    after_ms = anchor_ms if last_ms is None else max(anchor_ms, last_ms)
    await schedule_next(ledger, mission, after_ms=after_ms)


async def hold(ledger: Queue, space: SpaceId, mission_id: MissionId, reason: str) -> None:
    """Stop a mission's schedule until the person grants again."""
    mission = await ledger.mission(space, mission_id, lock=True)
    if mission is None:
        return
    await ledger.cancel_queued(space, mission_id, manual_too=False)
    kept = ERRORED if mission.hold == ERRORED else reason
    await ledger.set_schedules([replace(mission, next_run_ms=None, hold=kept)])


async def resume(ledger: Queue, mission: MissionSnapshot) -> None:
    """Forget a mission's failures and let one that they hold go on, from now."""
    forgiven = replace(mission, failures=0, failure=None)
    if mission.hold != ERRORED:
        await ledger.set_schedules([forgiven])
        return
    now_ms = await ledger.now_ms()
    await schedule_all(ledger, {replace(forgiven, hold=None): now_ms}, now_ms=now_ms)


async def due(
    ledger: Queue,
    lease: Lease,
    mission: MissionSnapshot,
    *,
    now_ms: int,
    worker: str,
    lease_s: int,
) -> Due:
    """Note what was missed, by the mission's rule, and return the lease of what is to run now.

    No lease: nothing is to run now, and what follows is queued. A moment that crashed runs again,
    however late it is by then.
    """
    if lease.kind != "scheduled" or mission.anchor_ms is None or lease.attempts > 1:
        return Due(lease)
    delay_ms = 0
    if mission.if_missed == "skip":
        delay_ms = await ledger.jitter_ms(mission, lease.scheduled_ms)
    found = passed(
        mission.cadence,
        mission.time_zone,
        mission.if_missed,
        anchor_ms=mission.anchor_ms,
        due_ms=lease.scheduled_ms,
        now_ms=now_ms,
        delay_ms=delay_ms,
    )
    if found.runs == lease.scheduled_ms:
        return Due(lease)
    if not await ledger.end(lease, "missed"):
        return Due(None)
    await ledger.add_missed(mission, found.missed)
    newer: Lease | None = None
    if found.runs is not None:
        newer = await ledger.lease_at(lease, mission, found.runs, worker=worker, lease_s=lease_s)
    if newer is None:
        after_ms = found.newest if found.runs is None else found.runs
        await schedule_all(ledger, {mission: after_ms}, now_ms=now_ms)
    else:
        await ledger.set_schedules([replace(mission, next_run_ms=newer.scheduled_ms)])
    return Due(newer, len(found.missed))


async def ended(
    ledger: Queue,
    lease: Lease,
    state: str,
    reason: str | None = None,
    *,
    iteration: str | None = None,
) -> Ended:
    """End one occurrence; see `ended_all`."""
    return (await ended_all(ledger, [End(lease, state, reason, iteration)]))[0]


async def ended_all(
    ledger: Queue, ends: Sequence[End], *, locked: Locked | None = None
) -> list[Ended]:
    """End occurrences, or put them back for another try, and see to what follows each.

    `locked`: what `missions_locked` told in this transaction, where nothing was written since.

    A failure of a class that may pass is tried again, but never past the mission's next moment.
    One that is final counts: too many in a row hold the mission until its person resumes it.
    """
    if locked is None:
        locked = await ledger.missions_locked([_key(end.lease) for end in ends])
    now_ms, missions = locked[0], dict(locked[1])
    retries = {
        end.lease.occurrence_id: Retry(end.lease, at_ms, str(end.reason))
        for end in ends
        if (at_ms := _retry_ms(end, missions.get(_key(end.lease)), now_ms)) is not None
    }
    final = [end for end in ends if end.lease.occurrence_id not in retries]
    took = set(await ledger.retry_all(list(retries.values()))) if retries else set()
    took |= await ledger.end_all(final) if final else set()
    moved: dict[tuple[SpaceId, MissionId], int | None] = {}
    for end in final:
        mission = missions.get(_key(end.lease))
        if mission is None or end.lease.occurrence_id not in took:
            continue
        after_ms = moved.get(mission.key)
        missions[mission.key] = counted = _counted(mission, end)
        if counted.hold is None and _calls_for_next(mission, end.lease):
            after_ms = max(after_ms or end.lease.scheduled_ms, end.lease.scheduled_ms)
        if counted != mission or after_ms is not None:
            moved[mission.key] = after_ms
    await _move(ledger, {missions[key]: after for key, after in moved.items()}, now_ms)
    results = []
    for end in ends:
        occurrence, mission = end.lease.occurrence_id, missions.get(_key(end.lease))
        retry = retries.get(occurrence)
        results.append(
            Ended(
                occurrence in took,
                retry.at_ms if retry is not None and occurrence in took else None,
                None if mission is None else mission.hold,
            )
        )
    return results


async def _move(ledger: Queue, moved: Mapping[MissionSnapshot, int | None], now_ms: int) -> None:
    """Hold what is held, queue what is due next, and write where each mission stands."""
    for mission in moved:
        if mission.hold is not None:
            await ledger.cancel_queued(*mission.key, manual_too=mission.hold == ERRORED)
    going_on = {mission: after for mission, after in moved.items() if after is not None}
    if going_on:
        await schedule_all(ledger, going_on, now_ms=now_ms)
    others = [
        mission if mission.hold is None else replace(mission, next_run_ms=None)
        for mission, after in moved.items()
        if after is None
    ]
    if others:
        await ledger.set_schedules(others)


def _counted(mission: MissionSnapshot, end: End) -> MissionSnapshot:
    """Return the mission with what an end changes of its failures and its hold."""
    if end.state == "done":
        return replace(mission, failures=0, failure=None)
    if end.state == "skipped" and end.reason in HOLDING:
        return replace(mission, hold=mission.hold or end.reason)
    if end.state == "failed" and end.reason != "stopped":
        failures = mission.failures + 1
        held = ERRORED if failures >= FAILURES_MAX else mission.hold
        return replace(mission, failures=failures, failure=end.reason, hold=held)
    return mission


def _calls_for_next(mission: MissionSnapshot, lease: Lease) -> bool:
    """Say whether the end of this occurrence is what the mission's next moment waited for."""
    if mission.next_run_ms is None:
        return True
    return lease.kind == "scheduled" and mission.next_run_ms <= lease.scheduled_ms


def _retry_ms(end: End, mission: MissionSnapshot | None, now_ms: int) -> int | None:
    """Return when a failed occurrence is tried again, None if it has failed for good.

    An endpoint that asks to be left alone for longer than the class of the failure says is heeded.
    """
    waits = RETRIES_MS.get(end.reason or "", ())
    lease = end.lease
    if end.state != "failed" or mission is None or not _may_run(mission):
        return None
    if lease.stop or lease.tries >= len(waits):
        return None
    wait = waits[lease.tries]
    name = f"{lease.occurrence_id}:{lease.tries}"
    part = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    wait += int((2 * part - 1) * wait / _SPREAD)
    at_ms = now_ms + max(wait, min(end.wait_ms, RETRY_ASKED_MS_MAX))
    next_ms = mission.next_run_ms
    if next_ms is None or next_ms <= lease.scheduled_ms:
        next_ms = _due(mission, lease.scheduled_ms)
    return at_ms if next_ms is None or at_ms < next_ms else None


async def _requeue(ledger: Queue, mission: MissionSnapshot) -> None:
    if mission.next_run_ms is not None and mission.hold is None:
        await ledger.enqueue(mission, mission.next_run_ms, "scheduled")


def _may_run(mission: MissionSnapshot) -> bool:
    return mission.runs_here and mission.hold is None


def _due(mission: MissionSnapshot, after_ms: int) -> int | None:
    if mission.anchor_ms is None:
        return None
    return next_due(
        mission.cadence, mission.time_zone, anchor_ms=mission.anchor_ms, after_ms=after_ms
    )


def _key(lease: Lease) -> tuple[SpaceId, MissionId]:
    return lease.space_id, lease.mission_id
