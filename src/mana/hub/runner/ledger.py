"""Plain facts of missions, agents, grants and occurrences, as the runner and the hub pass them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mana.domain.agents import AgentState
from mana.domain.cadences import MANUAL, Cadence
from mana.domain.ids import AccountId, AgentId, GrantId, MissionId, OccurrenceId, SpaceId
from mana.domain.missions import RUNS_ON_HUB, IfMissed, MissionState

OccurrenceKind = Literal["scheduled", "manual", "change"]


@dataclass(frozen=True, slots=True)
class MissionSnapshot:
    """What the hub may read of a mission, and where its schedule stands.

    `failures`: occurrences that failed in a row; `failure`: why the last of them did.
    """

    space_id: SpaceId
    mission_id: MissionId
    account_id: AccountId
    state: MissionState
    cadence: Cadence = MANUAL
    time_zone: str = "UTC"
    agent_id: AgentId | None = None
    runs_on: str = RUNS_ON_HUB
    anchor_ms: int | None = None
    deleted: bool = False
    next_run_ms: int | None = None
    hold: str | None = None
    if_missed: IfMissed = "once"
    tokens_per_day_max: int | None = None
    cost_per_day_max: int | None = None
    failures: int = 0
    failure: str | None = None

    @property
    def key(self) -> tuple[SpaceId, MissionId]:
        """Return what tells this mission from every other of the hub."""
        return self.space_id, self.mission_id

    @property
    def runs_here(self) -> bool:
        """Say whether the hub may work on this mission at all, now or by schedule."""
        return self.state == "active" and not self.deleted and self.runs_on == RUNS_ON_HUB

    @property
    def rhythm(self) -> tuple[Cadence, str, int | None]:
        """Return all that the due moments depend on."""
        return self.cadence, self.time_zone, self.anchor_ms


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """What the hub may read of an agent."""

    space_id: SpaceId
    agent_id: AgentId
    account_id: AccountId
    state: AgentState
    tokens_per_day_max: int | None = None
    concurrent_max: int = 1
    deleted: bool = False
    cost_per_day_max: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A runner's short claim on one occurrence. `fence` tells it from every other claim.

    `tries`: how often it ran to a failure that is tried again. `stop`: somebody stopped it while it
    waited or ran; it ends as `failed(stopped)`.
    """

    occurrence_id: OccurrenceId
    space_id: SpaceId
    mission_id: MissionId
    account_id: AccountId
    kind: OccurrenceKind
    scheduled_ms: int
    fence: int
    attempts: int
    tries: int = 0
    stop: bool = False


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows of an audit are asked for; None: all. Times are ISO; `until` is not included."""

    mission: str | None = None
    table: str | None = None
    status: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class RegisteredGrant:
    """A grant as the register holds it; the sealed parts are there while it is active."""

    grant_id: GrantId
    account_id: AccountId
    space_id: SpaceId
    mission_id: MissionId
    agent_id: AgentId
    header: str
    suite: str
    runner_key_id: str
    state: str
    expired: bool
    expires_ms: int
    created_ms: int
    ended_ms: int | None = None
    wrapped_key: str | None = field(default=None, repr=False)
    sealed_keys: str | None = field(default=None, repr=False)
    signer: str | None = None
    signature: str | None = None
    hub_signature: str | None = None
    wrapped_key_hash: str | None = None
    sealed_keys_hash: str | None = None
    revoker: str | None = None
    revocation: str | None = None
