"""The plain side of missions and agents, written in the transaction that pushes them.

A snapshot is a pure function of its merged record, so it can be made anew from the records;
only where a schedule stands (`next_run_at`, `hold`) is the ledger's.
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
from mana.domain.missions import MISSION_STATES, MISSIONS, RUNS_ON_HUB
from mana.domain.occurrences import HOLDING
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
                made = replace(
                    made, account_id=old.account_id, next_run_ms=old.next_run_ms, hold=old.hold
                )
            await ledger.put_mission(made)
            await reschedule(ledger, old, made)


async def rebuild(tx: Transaction, space: SpaceId) -> None:
    """Make the snapshots of a space anew from its records, its register and its ledger."""
    ledger = Ledger(tx)
    for state in await ledger.records_of(space, sorted(PROJECTED)):
        record = MergedFacts(state.table, state.id, state.author_id, state.fields)
        if record.table == AGENTS.name:
            await ledger.put_agent(agent_snapshot(space, record))
            continue
        made = mission_snapshot(space, record)
        grant = await ledger.latest_grant(space, made.mission_id)
        lines = await ledger.occurrences(space, made.mission_id, 200)
        reason = next((line.reason for line in lines if line.state == "skipped"), None)
        if grant is not None:
            made = replace(made, account_id=grant.account_id)
        if reason in HOLDING and (grant is None or grant.state != "active"):
            made = replace(made, hold=reason)
        queued = await ledger.queued_ms(space, made.mission_id)
        await ledger.put_mission(replace(made, next_run_ms=queued))


def mission_snapshot(space: SpaceId, record: MergedFacts) -> MissionSnapshot:
    """Return what the hub may read of a mission; what it cannot read does not run."""
    state = _text(record, "state") or "active"
    cadence, anchor_ms = _cadence(record)
    zone_name = _text(record, "timeZone") or "UTC"
    try:
        zone(zone_name)
    except Invalid:
        zone_name, cadence = "UTC", MANUAL
    agent_id = _text(record, "agentId")
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
    )


def agent_snapshot(space: SpaceId, record: MergedFacts) -> AgentSnapshot:
    """Return what the hub may read of an agent."""
    state = _text(record, "state") or "active"
    cap = _value(record, "maxTokensPerDay")
    concurrent = _value(record, "maxConcurrentMissions")
    return AgentSnapshot(
        space_id=space,
        agent_id=AgentId(record.id),
        account_id=AccountId(record.author_id),
        state=state if state in AGENT_STATES else "archived",  # type: ignore[arg-type]
        tokens_per_day_max=cap if isinstance(cap, int) else None,
        concurrent_max=concurrent if isinstance(concurrent, int) else 1,
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


def _text(record: MergedFacts, path: str) -> str:
    value = _value(record, path)
    return value if isinstance(value, str) else ""
