"""Snapshots of missions and agents made anew from their records, for all accounts of a hub.

For the operator, when snapshots were lost or cannot be trusted. What the records say is written
over; where a schedule stands is kept, and derived from grants and ledger only where it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mana.domain.agents import AGENTS
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import AccountId, SpaceId
from mana.domain.missions import MISSIONS
from mana.domain.occurrences import ERRORED, FAILURES_MAX, HOLDING
from mana.hub.db import Row, Tenancy, load_queries
from mana.hub.runner.ledger import AgentSnapshot, MissionSnapshot
from mana.hub.runner.projection import MergedFacts, agent_snapshot, mission_snapshot
from mana.hub.runner.queue import Moment, due_ms_of
from mana.hub.runner.rows import to_ms
from mana.hub.runner.scheduling import following

SPACES_AT_ONCE: Final = 2_000
"""Nobody pushes to these spaces while they are made anew, which takes a part of a second."""
_Q: Final = load_queries("mana.hub.runner", "rebuilding.sql")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How many snapshots were made anew."""

    missions: int = 0
    agents: int = 0


@dataclass(frozen=True, slots=True)
class _Plain:
    """A plain path of a record: its wire value and stamp."""

    value: Json
    at: str


async def rebuild_all(tenancy: Tenancy) -> Rebuilt:
    """Make all snapshots anew, a batch of spaces in a transaction. It can be cut off and repeated."""
    missions = agents = 0
    after = ""
    while True:
        async with tenancy.door() as tx:
            spaces = await tx.value(_Q["hold_spaces"], after, SPACES_AT_ONCE)
            if not spaces:
                break
            jitter_ms = int(await tx.value(_Q["jitter_max"]))
            found = [_rebuilt(row) for row in await tx.all(_Q["plain_missions"], spaces)]
            helpers = [
                agent_snapshot(SpaceId(row["space_id"]), _facts(AGENTS.name, row))
                for row in await tx.all(_Q["plain_agents"], spaces)
            ]
            moments = [moment for _, moment in found if moment is not None]
            await tx.execute(
                _Q["put_plain"],
                [_mission_row(mission) for mission, _ in found],
                [_agent_row(agent) for agent in helpers],
                [_moment_row(moment, jitter_ms) for moment in moments],
            )
        missions, agents, after = missions + len(found), agents + len(helpers), spaces[-1]
    async with tenancy.door() as tx:
        await tx.execute(_Q["put_turns"])
    return Rebuilt(missions, agents)


def _rebuilt(row: Row) -> tuple[MissionSnapshot, Moment | None]:
    """Return a mission as its record and the ledger have it, and the moment that it lacks."""
    made = mission_snapshot(SpaceId(row["space_id"]), _facts(MISSIONS.name, row))
    if row["account_id"] is not None:
        made = replace(made, account_id=AccountId(row["account_id"]))
    if row["stands"]:
        made = replace(made, hold=row["hold"], failures=row["failures"], failure=row["failure"])
    else:
        made = _as_it_went(made, row["lines"] or [])
    waits, last = row["waits_for"], row["last_for"]
    if waits is not None:
        return replace(made, next_run_ms=to_ms(waits)), None
    after_ms = max(made.anchor_ms or 0, 0 if last is None else to_ms(last))
    due_ms = following(made, after_ms)
    if due_ms is None:
        return made, None
    made = replace(made, next_run_ms=due_ms)
    return made, Moment(made, due_ms)


def _as_it_went(mission: MissionSnapshot, lines: Sequence[Sequence[Any]]) -> MissionSnapshot:
    """Return the mission with the hold and the failures that the end of its ledger tells of."""
    ended = [line for line in lines if line[0] in ("done", "skipped", "failed")]
    failures: list[str] = []
    for state, reason, _ in ended:
        if state == "done":
            break
        if state == "failed" and reason != "stopped":
            failures.append(reason)
    hold: str | None = None
    if ended and ended[0][0] == "skipped" and ended[0][1] in HOLDING and not ended[0][2]:
        hold = ended[0][1]
    if len(failures) >= FAILURES_MAX:
        hold = ERRORED
    return replace(
        mission,
        hold=hold,
        failures=len(failures),
        failure=failures[0] if failures else None,
    )


def _facts(table: str, row: Row) -> MergedFacts:
    fields: Mapping[str, Any] = row["fields"]
    entries = {
        path: _Plain(entry["value"], entry["at"])
        for path, entry in fields.items()
        if entry is not None
    }
    return MergedFacts(table, row["record_id"], row["author_id"], entries)


def _mission_row(mission: MissionSnapshot) -> dict[str, Json]:
    return {
        "space_id": mission.space_id,
        "mission_id": mission.mission_id,
        "account_id": mission.account_id,
        "state": mission.state,
        "cadence": mission.cadence.to_wire(),
        "time_zone": mission.time_zone,
        "agent_id": mission.agent_id,
        "runs_on": mission.runs_on,
        "anchor_ms": mission.anchor_ms,
        "deleted": mission.deleted,
        "next_run_at": None if mission.next_run_ms is None else iso_ms(mission.next_run_ms),
        "hold": mission.hold,
        "if_missed": mission.if_missed,
        "max_tokens_per_day": mission.tokens_per_day_max,
        "max_cost_per_day": mission.cost_per_day_max,
        "failures": mission.failures,
        "failure": mission.failure,
    }


def _agent_row(agent: AgentSnapshot) -> dict[str, Json]:
    return {
        "space_id": agent.space_id,
        "agent_id": agent.agent_id,
        "account_id": agent.account_id,
        "state": agent.state,
        "max_tokens_per_day": agent.tokens_per_day_max,
        "max_cost_per_day": agent.cost_per_day_max,
        "max_concurrent_missions": agent.concurrent_max,
        "deleted": agent.deleted,
    }


def _moment_row(moment: Moment, jitter_ms: int) -> dict[str, Json]:
    mission = moment.mission
    return {
        "space_id": mission.space_id,
        "mission_id": mission.mission_id,
        "account_id": mission.account_id,
        "agent_id": mission.agent_id,
        "scheduled_for": iso_ms(moment.scheduled_ms),
        "due_at": iso_ms(due_ms_of(moment, jitter_ms)),
    }
