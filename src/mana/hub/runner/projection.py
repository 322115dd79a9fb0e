"""The plain side of missions and agents, written in the transaction that pushes them.

A snapshot is a pure function of its merged record, so it can be made anew from the records
(`rebuilding`); only where a schedule stands (next run, hold, failures) is the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mana.domain.agents import AGENT_STATES, AGENTS
from mana.domain.cadences import MANUAL, Cadence, cadence_from_wire, zone
from mana.domain.clock import parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import AccountId, AgentId, MissionId, SpaceId
from mana.domain.missions import IF_MISSED, MISSION_STATES, MISSIONS, RUNS_ON_HUB
from mana.domain.tables import DELETED_AT
from mana.hub.runner.ledger import AgentSnapshot, MissionSnapshot
from mana.hub.runner.scheduling import reschedule
from mana.hub.runner.store import Ledger, Transaction
from mana.hub.sync.apply import MergedRecord

PROJECTED: Final = frozenset({MISSIONS.name, AGENTS.name})


class PlainEntry(Protocol):
    """A path of a merged record: its wire value and stamp."""

    @property
    def value(self) -> Json:
        """Return the wire value."""

    @property
    def at(self) -> str:
        """Return the stamp."""


@dataclass(frozen=True, slots=True)
class MergedFacts:
    """A merged record, wherever it comes from."""

    table: str
    id: str
    author_id: str
    entries: Mapping[str, PlainEntry]


class RunnerProjection:
    """Keeps snapshots and schedules in step with what devices push (`hub.sync` calls it)."""

    async def project(
        self,
        tx: Transaction,
        space_id: SpaceId,
        account_id: AccountId,
        merged: Sequence[MergedRecord],
        *,
        now_ms: int,
    ) -> None:
        """Take in the records that a batch touched, as they stand after it."""
        touched = [one.record for one in merged if one.record.table in PROJECTED]
        if touched:
            facts = [MergedFacts(one.table, one.id, one.author_id, one.entries) for one in touched]
            await project(tx, space_id, facts)


async def project(tx: Transaction, space: SpaceId, records: Iterable[MergedFacts]) -> None:
    """Write the snapshots of those records that have one, and bring schedules in line."""
    ledger = Ledger(tx)
    for record in records:
        if record.table == AGENTS.name:
            await ledger.put_agent(agent_snapshot(space, record))
        elif record.table == MISSIONS.name:
            made = mission_snapshot(space, record)
            old = await ledger.mission(space, made.mission_id, lock=True)
            if old is not None:
                made = standing_as(old, made)
            await ledger.put_mission(made)
            await reschedule(ledger, old, made)


def standing_as(old: MissionSnapshot, made: MissionSnapshot) -> MissionSnapshot:
    """Return a snapshot with the schedule of the one before it."""
    return replace(
        made,
        account_id=old.account_id,
        next_run_ms=old.next_run_ms,
        hold=old.hold,
        failures=old.failures,
        failure=old.failure,
    )


def mission_snapshot(space: SpaceId, record: MergedFacts) -> MissionSnapshot:
    """Return what the hub may read of a mission; what it cannot read does not run."""
    state = _text(record, "state") or "active"
    cadence, anchor_ms = _cadence(record)
    zone_name = _text(record, "timeZone") or "UTC"
    try:
        zone(zone_name)
    except Invalid:
        zone_name, cadence = "UTC", MANUAL
    agent_id, if_missed = _text(record, "agentId"), _text(record, "ifMissed")
    return MissionSnapshot(
        space_id=space,
        mission_id=MissionId(record.id),
        account_id=AccountId(record.author_id),
        state=state if state in MISSION_STATES else "archived",  # type: ignore[arg-type]
        cadence=cadence,
        time_zone=zone_name,
        agent_id=AgentId(agent_id) if agent_id else None,
        runs_on=_text(record, "runsOn") or RUNS_ON_HUB,
        anchor_ms=anchor_ms,
        deleted=_value(record, DELETED_AT) is not None,
        if_missed=if_missed if if_missed in IF_MISSED else "once",  # type: ignore[arg-type]
        tokens_per_day_max=_whole(record, "maxTokensPerDay"),
        cost_per_day_max=_whole(record, "maxCostPerDay"),
    )


def agent_snapshot(space: SpaceId, record: MergedFacts) -> AgentSnapshot:
    """Return what the hub may read of an agent."""
    state = _text(record, "state") or "active"
    concurrent = _whole(record, "maxConcurrentMissions")
    return AgentSnapshot(
        space_id=space,
        agent_id=AgentId(record.id),
        account_id=AccountId(record.author_id),
        state=state if state in AGENT_STATES else "archived",  # type: ignore[arg-type]
        tokens_per_day_max=_whole(record, "maxTokensPerDay"),
        cost_per_day_max=_whole(record, "maxCostPerDay"),
        concurrent_max=1 if concurrent is None else concurrent,
        deleted=_value(record, DELETED_AT) is not None,
    )


def _cadence(record: MergedFacts) -> tuple[Cadence, int | None]:
    entry = record.entries.get("cadence")
    if entry is None or entry.value is None:
        return MANUAL, None
    try:
        return cadence_from_wire(entry.value), parse_stamp(entry.at).wall_ms
    except Invalid:
        return MANUAL, None


def _value(record: MergedFacts, path: str) -> Json:
    entry = record.entries.get(path)
    return None if entry is None else entry.value


def _whole(record: MergedFacts, path: str) -> int | None:
    value = _value(record, path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(record: MergedFacts, path: str) -> str:
    value = _value(record, path)
    return value if isinstance(value, str) else ""
