"""Rows of missions, agents and occurrences as the facts that they are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from mana.crypto.work import Limits
from mana.domain.cadences import MANUAL, Cadence, cadence_from_wire
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import AccountId, AgentId, MissionId, OccurrenceId, SpaceId
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot
from mana.protocol.messages import OccurrenceInfo

Row: TypeAlias = Mapping[str, Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def to_ms(moment: datetime) -> int:
    """Return the whole milliseconds since 1970 of a moment of the database."""
    return (moment - _EPOCH) // _MS


def from_ms(wall_ms: int) -> datetime:
    """Return the moment of these milliseconds, exactly."""
    return _EPOCH + timedelta(milliseconds=wall_ms)


def from_ms_or_none(wall_ms: int | None) -> datetime | None:
    """Return the moment of these milliseconds, None where there is none."""
    return None if wall_ms is None else from_ms(wall_ms)


def mission_of(row: Row) -> MissionSnapshot:
    """Return a mission of its row."""
    next_run = row["next_run_at"]
    return MissionSnapshot(
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        account_id=AccountId(row["account_id"]),
        state=row["state"],
        cadence=_cadence(row["cadence"]),
        time_zone=row["time_zone"],
        agent_id=None if row["agent_id"] is None else AgentId(row["agent_id"]),
        runs_on=row["runs_on"],
        anchor_ms=row["anchor_ms"],
        deleted=row["deleted"],
        next_run_ms=None if next_run is None else to_ms(next_run),
        hold=row["hold"],
        if_missed=row["if_missed"],
        tokens_per_day_max=row["max_tokens_per_day"],
        cost_per_day_max=row["max_cost_per_day"],
        failures=row["failures"],
        failure=row["failure"],
    )


def agent_of(row: Row) -> AgentSnapshot:
    """Return an agent of its row."""
    return AgentSnapshot(
        space_id=SpaceId(row["space_id"]),
        agent_id=AgentId(row["agent_id"]),
        account_id=AccountId(row["account_id"]),
        state=row["state"],
        tokens_per_day_max=row["max_tokens_per_day"],
        cost_per_day_max=row["max_cost_per_day"],
        concurrent_max=row["max_concurrent_missions"],
        deleted=row["deleted"],
    )


def limits_of(row: Row) -> Limits:
    """Return what a row of `account_work` lets happen."""
    return Limits(row["stopped_at"] is not None, row["tokens_per_day_max"], row["cost_per_day_max"])


def lease_of(row: Row) -> Lease:
    """Return a lease of an occurrence's row, which says also whether it is to stop."""
    return Lease(
        occurrence_id=OccurrenceId(row["occurrence_id"]),
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        account_id=AccountId(row["account_id"]),
        kind=row["kind"],
        scheduled_ms=to_ms(row["scheduled_for"]),
        fence=row["fence"],
        attempts=row["attempts"],
        tries=row["tries"],
        stop=row["stop"],
    )


def occurrence_of(row: Row) -> OccurrenceInfo:
    """Return a line of the ledger, as people see it."""
    return OccurrenceInfo(
        occurrence_id=row["occurrence_id"],
        mission_id=row["mission_id"],
        scheduled_for=iso_ms(to_ms(row["scheduled_for"])),
        kind=row["kind"],
        state=row["state"],
        reason=row["reason"],
        iteration_id=row["iteration_id"],
        tokens=row["tokens"],
        started_at=_moment(row["started_at"]),
        finished_at=_moment(row["finished_at"]),
        phase=row["phase"],
        cost=row["cost"],
        tries=row["tries"],
        last_reason=row["last_reason"],
        due_at=_moment(row["due_at"]) if row["state"] == "queued" else None,
        round=row["round"],
        tool_calls=row["calls"],
        steps=row["steps"],
        heard=row["heard"],
        unconfirmed_tokens=max(row["tokens"] - row["confirmed_tokens"], 0),
        unconfirmed_cost=max(row["cost"] - row["confirmed_cost"], 0),
    )


def _cadence(value: Json) -> Cadence:
    try:
        return MANUAL if value is None else cadence_from_wire(value)
    except Invalid:
        return MANUAL


def _moment(value: datetime | None) -> str | None:
    return None if value is None else iso_ms(to_ms(value))
