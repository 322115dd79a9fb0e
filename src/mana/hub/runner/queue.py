"""The queue of occurrences and what schedules it: missions, agents, leases, stops.

`Queue` is the part of `Ledger` that works inside somebody's transaction, `Turns` the part of
`RunnerStore` that crosses accounts: ids, times and states. All times are the database's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from mana.domain.cadences import next_due
from mana.domain.clock import iso_ms
from mana.domain.ids import AccountId, AgentId, MissionId, OccurrenceId, SpaceId
from mana.domain.occurrences import LEASES_MAX, MISSED_KEPT_MAX
from mana.hub.db import Pool, Tenancy, Transaction, load_queries
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot, OccurrenceKind
from mana.hub.runner.rows import (
    agent_of,
    from_ms,
    from_ms_or_none,
    lease_of,
    mission_of,
    occurrence_of,
    to_ms,
)
from mana.protocol.messages import MissionStatus, OccurrenceInfo

DUE: Final = "mana_due"
STOP: Final = "mana_stop"
JITTER_PART: Final = 20
"""A moment is put off by at most this part of its interval."""
JITTER_MS_MAX: Final = 3_600_000
"""The most that `hub_limits.jitter_ms` may be."""
_MILLION: Final = 1_000_000
_Q: Final = load_queries("mana.hub.runner", "queue.sql")


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a mission that is to be queued."""

    mission: MissionSnapshot
    scheduled_ms: int
    kind: OccurrenceKind = "scheduled"


@dataclass(frozen=True, slots=True)
class End:
    """How the occurrence of a lease ends. `iteration`: the record that a done one left.

    `wait_ms`: how long it is not tried again at least, as an endpoint asked.
    """

    lease: Lease
    state: str
    reason: str | None = None
    iteration: str | None = None
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """When the occurrence of a lease is tried again, and the class of its failure."""

    lease: Lease
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What was leased, and how long until something else is due or a lease ends, in milliseconds.

    `wait_ms` None: nothing is; 0: something else is due already, or may be.
    """

    leases: list[Lease]
    wait_ms: int | None


class Queue:
    """The statements about missions and their occurrences, within one open transaction."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx

    async def now_ms(self) -> int:
        """Return the database's clock."""
        return to_ms(await self.tx.value(_Q["now"]))

    async def mission(
        self, space: SpaceId, mission: MissionId, *, lock: bool = False
    ) -> MissionSnapshot | None:
        """Return what the hub knows of a mission. `lock`: until the transaction ends."""
        if lock:
            return (await self.missions_locked([(space, mission)]))[1].get((space, mission))
        row = await self.tx.one(_Q["mission"], space, mission)
        return None if row is None else mission_of(row)

    async def missions_locked(
        self, keys: Sequence[tuple[SpaceId, MissionId]]
    ) -> tuple[int, dict[tuple[SpaceId, MissionId], MissionSnapshot]]:
        """Return the time and these missions, which nobody else changes until the end."""
        wanted = sorted(set(keys))
        rows = await self.tx.all(
            _Q["missions_locked"], [space for space, _ in wanted], [one for _, one in wanted]
        )
        now_ms = to_ms(rows[-1]["now"]) if rows else await self.now_ms()
        found = [mission_of(row) for row in rows]
        return now_ms, {mission.key: mission for mission in found}

    async def lock_granted(
        self, accounts: Sequence[str] | None = None, space: SpaceId | None = None
    ) -> None:
        """Hold the missions that accounts (None: our own) have granted, in a space or everywhere.

        Missions are locked before their grants, everywhere, so that who ends grants and who works
        under them do not wait for each other.
        """
        await self.tx.all(_Q["lock_granted"], accounts and list(accounts), space)

    async def missions(self) -> list[MissionSnapshot]:
        """Return the missions of all spaces of the account."""
        return [mission_of(row) for row in await self.tx.all(_Q["missions"])]

    async def put_mission(self, mission: MissionSnapshot) -> None:
        """Write the plain side of a mission; where its schedule stands is left as it is."""
        await self.tx.execute(
            _Q["put_mission"],
            mission.space_id,
            mission.mission_id,
            mission.account_id,
            mission.state,
            mission.cadence.to_wire(),
            mission.time_zone,
            mission.agent_id,
            mission.runs_on,
            mission.anchor_ms,
            mission.deleted,
            mission.if_missed,
            mission.tokens_per_day_max,
            mission.cost_per_day_max,
        )

    async def set_schedules(self, missions: Sequence[MissionSnapshot]) -> None:
        """Write where schedules stand: next run, hold, account and failures of each mission."""
        await self.tx.execute(
            _Q["set_schedules"],
            [one.space_id for one in missions],
            [one.mission_id for one in missions],
            [from_ms_or_none(one.next_run_ms) for one in missions],
            [one.hold for one in missions],
            [one.account_id for one in missions],
            [one.failures for one in missions],
            [one.failure for one in missions],
        )

    async def agent(self, space: SpaceId, agent: AgentId) -> AgentSnapshot | None:
        """Return what the hub knows of an agent."""
        row = await self.tx.one(_Q["agent"], space, agent)
        return None if row is None else agent_of(row)

    async def put_agent(self, agent: AgentSnapshot) -> None:
        """Write a snapshot."""
        await self.tx.execute(
            _Q["put_agent"],
            agent.space_id,
            agent.agent_id,
            agent.account_id,
            agent.state,
            agent.tokens_per_day_max,
            agent.cost_per_day_max,
            agent.concurrent_max,
            agent.deleted,
        )

    async def enqueue(
        self, mission: MissionSnapshot, scheduled_ms: int, kind: OccurrenceKind
    ) -> str:
        """Queue an occurrence unless it is in the ledger; return the state it has there."""
        return (await self.enqueue_all([Moment(mission, scheduled_ms, kind)]))[0]

    async def enqueue_all(self, moments: Sequence[Moment]) -> list[str]:
        """Queue those that are not in the ledger; return the state of each there, or `new`."""
        jitters = [_jitter_of(moment) for moment in moments]
        rows = await self.tx.all(
            _Q["enqueue"],
            [one.mission.space_id for one in moments],
            [one.mission.mission_id for one in moments],
            [one.mission.account_id for one in moments],
            [one.mission.agent_id for one in moments],
            [from_ms(one.scheduled_ms) for one in moments],
            [one.kind for one in moments],
            [later for later, _ in jitters],
            [part for _, part in jitters],
        )
        return [row["state"] for row in rows]

    async def jitter_ms(self, mission: MissionSnapshot, scheduled_ms: int) -> int:
        """Return by how much a scheduled moment is put off."""
        moment = Moment(mission, scheduled_ms)
        return due_ms_of(moment, int(await self.tx.value(_Q["jitter_max"]))) - scheduled_ms

    async def add_missed(self, mission: MissionSnapshot, moments: Sequence[int]) -> None:
        """Write due moments that passed while nothing could run; keep the newest hundred."""
        await self.tx.execute(
            _Q["add_missed"],
            mission.space_id,
            mission.mission_id,
            mission.account_id,
            mission.agent_id,
            [from_ms(moment) for moment in moments],
        )
        await self.tx.execute(
            _Q["trim_missed"], mission.space_id, mission.mission_id, MISSED_KEPT_MAX
        )

    async def cancel_queued(self, space: SpaceId, mission: MissionId, *, manual_too: bool) -> None:
        """Remove what is queued and will not happen."""
        kinds = ["scheduled", "change", *(["manual"] if manual_too else [])]
        await self.tx.execute(_Q["cancel_queued"], space, mission, kinds)

    async def cancel_scheduled(self, space: SpaceId, mission: MissionId) -> None:
        """Remove what the clock has queued."""
        await self.tx.execute(_Q["cancel_queued"], space, mission, ["scheduled"])

    async def runs_as(self, space: SpaceId, mission: MissionId, account: AccountId) -> None:
        """Let queued occurrences run under the account that granted."""
        await self.tx.execute(_Q["runs_as"], space, mission, account)

    async def last_scheduled_ms(self, space: SpaceId, mission: MissionId) -> int | None:
        """Return the newest scheduled moment in the ledger that is not queued."""
        found = await self.tx.value(_Q["last_scheduled"], space, mission)
        return None if found is None else to_ms(found)

    async def occurrences(
        self, space: SpaceId, mission: MissionId, limit: int
    ) -> list[OccurrenceInfo]:
        """Return the newest lines of a mission's ledger."""
        rows = await self.tx.all(_Q["occurrences"], space, mission, limit)
        return [occurrence_of(row) for row in rows]

    async def statuses(self, limit: int) -> list[MissionStatus]:
        """Return the missions of all spaces of the account with the newest lines of each."""
        lines: dict[tuple[str, str], list[OccurrenceInfo]] = {}
        for row in await self.tx.all(_Q["newest_occurrences"], limit):
            lines.setdefault((row["space_id"], row["mission_id"]), []).append(occurrence_of(row))
        return [status_of(mission, lines.get(mission.key, [])) for mission in await self.missions()]

    async def occurrence_at(
        self, space: SpaceId, mission: MissionId, scheduled_ms: int
    ) -> OccurrenceInfo | None:
        """Return the one occurrence of a moment."""
        row = await self.tx.one(_Q["occurrence_at"], space, mission, from_ms(scheduled_ms))
        return None if row is None else occurrence_of(row)

    async def wake(self) -> None:
        """Tell the runners that something is to be looked at, when this transaction commits."""
        await self.tx.value(_Q["notify_due"])

    async def stop_mission(self, space: SpaceId, mission: MissionId) -> None:
        """Mark what runs of a mission, and what waits by hand or for a retry, as to be stopped."""
        await self.tx.one(_Q["stop_mission"], space, mission)

    # What follows is the runner's, and its role alone has the rights for it.

    async def put_back(self, lease: Lease, *, delay_ms: int, counted: bool) -> bool:
        """Queue a leased occurrence again. `counted`: the attempt was one."""
        row = await self.tx.one(
            _Q["put_back"],
            lease.occurrence_id,
            lease.fence,
            timedelta(milliseconds=delay_ms),
            0 if counted else 1,
        )
        return row is not None

    async def retry_all(self, retries: Sequence[Retry]) -> set[OccurrenceId]:
        """Queue occurrences for another try; return those whose lease was the current one."""
        rows = await self.tx.all(
            _Q["retry"],
            [one.lease.occurrence_id for one in retries],
            [one.lease.fence for one in retries],
            [from_ms(one.at_ms) for one in retries],
            [one.reason for one in retries],
        )
        return {OccurrenceId(row["occurrence_id"]) for row in rows}

    async def end(
        self,
        lease: Lease,
        state: str,
        *,
        reason: str | None = None,
        iteration_id: str | None = None,
    ) -> bool:
        """End the occurrence if this lease is still the current one."""
        return bool(await self.end_all([End(lease, state, reason, iteration_id)]))

    async def end_all(self, ends: Sequence[End]) -> set[OccurrenceId]:
        """End occurrences; return those whose lease was the current one."""
        rows = await self.tx.all(
            _Q["end"],
            [one.lease.occurrence_id for one in ends],
            [one.lease.fence for one in ends],
            [one.state for one in ends],
            [one.reason for one in ends],
            [one.iteration for one in ends],
            [one.lease.space_id for one in ends],
        )
        return {OccurrenceId(row["occurrence_id"]) for row in rows}

    async def lock(self, occurrences: Iterable[OccurrenceId]) -> None:
        """Keep occurrences as they are until the transaction ends, whosever lease they have."""
        await self.tx.execute(_Q["lock_occurrences"], sorted(set(occurrences)))

    async def sum_up(self, occurrences: Iterable[OccurrenceId]) -> None:
        """Write into lines of the ledger what their runs used, as it is settled by now."""
        await self.tx.execute(_Q["sum_up"], sorted(set(occurrences)))

    async def lease_at(
        self,
        lease: Lease,
        mission: MissionSnapshot,
        scheduled_ms: int,
        *,
        worker: str,
        lease_s: int,
    ) -> Lease | None:
        """Lease another moment of the same mission, not yet in the ledger, at once."""
        row = await self.tx.one(
            _Q["lease_at"],
            lease.space_id,
            lease.mission_id,
            lease.account_id,
            mission.agent_id,
            from_ms(scheduled_ms),
            worker,
            timedelta(seconds=lease_s),
        )
        return None if row is None else lease_of(row)


class Turns:
    """Whose turn it is: the runner's look across accounts, each in a transaction of its own."""

    def __init__(self, tenancy: Tenancy, pool: Pool | None = None) -> None:
        self._tenancy = tenancy
        self._pool = pool

    async def listen(self, callback: Callable[[str], None]) -> None:
        """Call back when something became due, until closed."""
        if self._pool is not None:
            await self._pool.listen(DUE, callback)

    async def listen_stops(self, callback: Callable[[str], None]) -> None:
        """Call back when something that runs may have to stop, until closed; see `stopping`."""
        if self._pool is not None:
            await self._pool.listen(STOP, callback)

    async def lease(self, worker: str, limit: int, *, lease_s: int) -> Taken:
        """Lease what is due or was left by a runner that ended, in turns of accounts.

        At most `limit`, and no more than the hub's limits leave for all runners together.
        """
        async with self._tenancy.lease() as tx:
            rows = await tx.all(_Q["lease"], worker, limit, timedelta(seconds=lease_s), LEASES_MAX)
            # Where as many were leased as were asked for there may be more.
            wait_ms = 0 if rows and len(rows) >= limit else await tx.value(_Q["wait"])
        return Taken([lease_of(row) for row in rows], wait_ms)

    async def crashed(self, limit: int) -> list[Lease]:
        """Return what was left and is not to be leased again: too often, or stopped meanwhile."""
        async with self._tenancy.lease() as tx:
            rows = await tx.all(_Q["crashed"], limit, LEASES_MAX)
        return [lease_of(row) for row in rows]

    async def stopping(self, worker: str) -> list[Lease]:
        """Return what this worker works on and somebody has stopped."""
        async with self._tenancy.lease() as tx:
            rows = await tx.all(_Q["stopping"], worker)
        return [lease_of(row) for row in rows]


def status_of(mission: MissionSnapshot, lines: Sequence[OccurrenceInfo]) -> MissionStatus:
    """Return what people see of a mission's schedule, with these lines of its ledger."""
    return MissionStatus(
        mission_id=mission.mission_id,
        space_id=mission.space_id,
        next_run_at=None if mission.next_run_ms is None else iso_ms(mission.next_run_ms),
        hold=mission.hold,
        occurrences=list(lines),
        failures=mission.failures,
        failure=mission.failure,
    )


def due_ms_of(moment: Moment, jitter_ms_max: int) -> int:
    """Return when a moment is due, put off by at most so many milliseconds."""
    later, part = _jitter_of(moment)
    return moment.scheduled_ms + min(jitter_ms_max, later) * part // _MILLION


def _jitter_of(moment: Moment) -> tuple[int, int]:
    """Return the most by which a moment may be put off, and which part of it, in millionths.

    A fixed part that follows from mission and moment, so that missions of the same minute do not
    all begin in the same second, and each begins at its own, whoever asks.
    """
    if moment.kind != "scheduled":
        return 0, 0
    later = _later_of(moment)
    mission = moment.mission
    name = f"{mission.space_id}:{mission.mission_id}:{moment.scheduled_ms}"
    part = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _MILLION
    return later, part


def _later_of(moment: Moment) -> int:
    """Return a part of the time until the moment that follows; 0 where no clock says when."""
    mission, due_ms = moment.mission, moment.scheduled_ms
    if mission.cadence.kind in ("daily", "weekly"):
        # Of a day the part is more than the hub may put off, and to look for the next one is dear.
        return JITTER_MS_MAX
    following = next_due(
        mission.cadence, mission.time_zone, anchor_ms=mission.anchor_ms or 0, after_ms=due_ms
    )
    return 0 if following is None else (following - due_ms) // JITTER_PART
