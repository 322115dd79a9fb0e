"""Admission: which leased occurrences run, and everything that a worker needs for them.

The gates are asked in their order, for all leases of an account that came together. What is refused
ends here with its reason, without a worker; what an agent has no room for is queued again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.clock import iso_ms
from mana.domain.errors import Invalid
from mana.domain.grants import GrantHeader
from mana.domain.ids import AccountId, AgentId, MissionId, OccurrenceId, SpaceId
from mana.domain.missions import MISSIONS
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_ID
from mana.hub.money.store import Run, caps_of
from mana.hub.runner import endings, gates, scheduling
from mana.hub.runner.batches import Batch, FoundRecords, WantedRecords, by_space
from mana.hub.runner.dialogue import GrantMaterial, Job, OpeningKey, Standing
from mana.hub.runner.endings import Outcome
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot, RegisteredGrant
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import Prices
from mana.hub.runner.queue import End
from mana.hub.runner.shared import Setting
from mana.hub.runner.store import Ledger, RunnerStore
from mana.planning.budget import Cap, used_up

CONCURRENCY_DELAY_MS: Final = 5_000
HISTORY_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Admitted:
    """A leased occurrence that passed every gate that the database can judge."""

    lease: Lease
    agent: AgentSnapshot
    header: GrantHeader
    job: Job
    standing: Standing
    key: OpeningKey
    named_at: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A lease that passed the gates up to its grant."""

    lease: Lease
    mission: MissionSnapshot
    agent: AgentSnapshot
    grant: RegisteredGrant


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A candidate whose grant can be read and whose key is here."""

    candidate: _Candidate
    header: GrantHeader
    material: GrantMaterial
    key: OpeningKey
    run: int
    spent: int

    @property
    def wanted(self) -> WantedRecords:
        """Return the records that the run may ask to open."""
        lease, agent = self.candidate.lease, self.candidate.agent
        refs = [
            (MISSIONS.name, str(lease.mission_id)),
            (AGENTS.name, str(agent.agent_id)),
            (AGENT_MEMORY.name, str(agent.agent_id)),
            (SPACE_POLICY.name, SPACE_POLICY_ID),
        ]
        for name in self.header.record_ids:
            table, _, record = name.partition(":")
            refs.append((table, record))
        return WantedRecords(self.run, lease.mission_id, refs)


@dataclass(slots=True)
class _Tally:
    """What ends in the transaction, and what is counted when it has committed."""

    ends: list[End] = field(default_factory=list)
    ended: list[Outcome] = field(default_factory=list)
    waiting: int = 0
    missed: int = 0

    def skip(self, lease: Lease, reason: str) -> None:
        """Have an occurrence end as skipped."""
        self.ends.append(End(lease, "skipped", reason))


class Admission:
    """Asks the gates for batches of leases of one account."""

    def __init__(
        self, store: RunnerStore, setting: Setting, metrics: Metrics, prices: Prices
    ) -> None:
        self._store = store
        self._prices = prices
        self._setting = setting
        self._metrics = metrics
        self._numbers = itertools.count(1)

    async def admit(self, leases: Sequence[Lease]) -> list[Admitted | None]:
        """Return for each lease what runs now; None: it ended, or waits, or is another's."""
        found: dict[OccurrenceId, Admitted] = {}
        for space, some in by_space(leases).items():
            account = some[0].account_id
            tally = _Tally()
            async with self._store.work(account, space=space) as ledger:
                found.update(await self._admit(ledger, account, space, some, tally))
                tally.ended = await endings.end_all(ledger, tally.ends)
            self._count(tally)
        return [found.get(lease.occurrence_id) for lease in leases]

    async def _admit(
        self,
        ledger: Ledger,
        account: AccountId,
        space: SpaceId,
        leases: Sequence[Lease],
        tally: _Tally,
    ) -> dict[OccurrenceId, Admitted]:
        batch = Batch(ledger.tx, space)
        missions = await batch.missions(leases)
        held = await batch.held(leases, account)
        mine = [lease for lease in leases if lease.occurrence_id in held.ids]
        agents = await batch.agents(missions.values())
        grants = await batch.grants(missions)
        candidates: list[_Candidate] = []
        # A lease that stands for missed moments may be replaced by that of the newest one.
        origin: dict[OccurrenceId, OccurrenceId] = {}
        for lease in mine:
            passed = await self._gates(ledger, lease, held.role, missions, agents, grants, tally)
            if passed is not None:
                origin[passed.lease.occurrence_id] = lease.occurrence_id
                candidates.append(passed)
        candidates = await self._with_room(batch, candidates, tally)
        prepared = await self._prepared(ledger, candidates, tally)
        if not prepared:
            return {}
        records = await batch.records([one.wanted for one in prepared], earlier=HISTORY_MAX)
        standing = await _standing(ledger, space)
        found: dict[OccurrenceId, Admitted] = {}
        for one in prepared:
            lease = one.candidate.lease
            rows = records.get(one.run, FoundRecords())
            if rows.named_at < self._setting.memory.named_at(space, lease.mission_id):
                tally.skip(lease, "set-back")
            else:
                admitted = self._admitted(one, rows, standing, held.now_ms)
                found[origin[lease.occurrence_id]] = admitted
        return found

    async def _gates(
        self,
        ledger: Ledger,
        lease: Lease,
        role: str | None,
        missions: Mapping[MissionId, MissionSnapshot],
        agents: Mapping[AgentId, AgentSnapshot],
        grants: Mapping[MissionId, RegisteredGrant],
        tally: _Tally,
    ) -> _Candidate | None:
        """Ask the gates of mission, agent and grant; None if the occurrence ended."""
        if lease.stop:
            tally.ends.append(End(lease, "failed", "stopped"))
            return None
        mission = missions.get(lease.mission_id)
        refusal = gates.mission_refusal(mission)
        if mission is None and role is None:
            refusal = "not-a-member"
        if mission is None or refusal is not None:
            tally.skip(lease, refusal or "mission-not-active")
            return None
        setting = self._setting
        due = await scheduling.due(
            ledger, lease, mission, worker=setting.name, lease_s=setting.lease_s
        )
        tally.missed += due.missed
        if due.lease is None:
            return None
        agent = None if mission.agent_id is None else agents.get(mission.agent_id)
        refusal = gates.agent_refusal(agent)
        grant = grants.get(lease.mission_id)
        if refusal is None:
            refusal = setting.grant_refusal(grant)
            if refusal == "expired" and grant is not None:
                await ledger.expire_grant(grant.grant_id)
        if refusal is None and grant is not None and grant.account_id != lease.account_id:
            refusal = "scope-mismatch"
        if refusal is not None or agent is None or grant is None:
            tally.skip(due.lease, refusal or "no-grant")
            return None
        return _Candidate(due.lease, mission, agent, grant)

    async def _with_room(
        self, batch: Batch, candidates: Sequence[_Candidate], tally: _Tally
    ) -> list[_Candidate]:
        """Return those that their agents have room for; the others are queued again, uncounted."""
        if not candidates:
            return []
        taken = await batch.admit([(one.lease, one.agent) for one in candidates])
        waiting = [one.lease for one in candidates if one.lease.occurrence_id not in taken]
        if waiting:
            tally.waiting += len(waiting)
            await batch.put_back(waiting, delay_ms=CONCURRENCY_DELAY_MS, counted=False)
        return [one for one in candidates if one.lease.occurrence_id in taken]

    async def _prepared(
        self, ledger: Ledger, candidates: Sequence[_Candidate], tally: _Tally
    ) -> list[_Prepared]:
        """Return the candidates that are within their budgets and whose grants can be read."""
        runs = [
            Run(one.lease.space_id, one.lease.mission_id, one.agent.agent_id) for one in candidates
        ]
        caps = await caps_of(ledger.tx, runs) if runs else []
        prepared: list[_Prepared] = []
        for one, its in zip(candidates, caps, strict=True):
            found: _Prepared | str | None = used_up(
                its, metered=self._prices.metered, priced=self._prices.priced
            )
            found = found or self._read(one, its)
            if isinstance(found, str):
                tally.skip(one.lease, found)
            else:
                prepared.append(found)
        return prepared

    def _read(self, one: _Candidate, caps: Sequence[Cap]) -> _Prepared | str:
        """Return a candidate with its grant read, or why there is no work to give."""
        try:
            header = gates.read_header(one.grant.header)
            material = _material(one.grant)
        except (Invalid, msgspec.ValidationError):
            return "malformed"
        keys = self._setting.keys
        key = keys.opening(header.runner_key_id)
        refusal = gates.register_refusal(one.grant, header)
        if refusal is not None or key is None:
            return refusal or keys.refusal(header.runner_key_id) or "not-configured"
        opening = OpeningKey(header.runner_key_id, key.to_pem())
        spent = (cap.counted for cap in caps if (cap.scope, cap.unit) == ("agent", "tokens"))
        return _Prepared(one, header, material, opening, next(self._numbers), next(spent, 0))

    def _count(self, tally: _Tally) -> None:
        for outcome in tally.ended:
            endings.count(self._metrics, outcome)
        self._metrics.missed.inc(tally.missed)
        if tally.waiting:
            self._metrics.decisions.labels("skipped-concurrency").inc(tally.waiting)

    def _admitted(
        self, one: _Prepared, rows: FoundRecords, standing: Standing, now_ms: int
    ) -> Admitted:
        lease, agent = one.candidate.lease, one.candidate.agent
        job = Job(
            run=one.run,
            space_id=lease.space_id,
            mission_id=lease.mission_id,
            agent_id=agent.agent_id,
            account_id=lease.account_id,
            scheduled_for=iso_ms(lease.scheduled_ms),
            fence=lease.fence,
            now_ms=now_ms,
            grant=one.material,
            standing=standing.digest,
            runner_key_id=one.key.key_id,
            records=rows.json,
            tokens_today=one.spent,
            fail_point=self._setting.fail_point,
        )
        return Admitted(lease, agent, one.header, job, standing, one.key, rows.named_at)


async def _standing(ledger: Ledger, space: SpaceId) -> Standing:
    """Return who may decide in a space, as its members' devices signed it."""
    log = await ledger.membership_log(space)
    devices = await ledger.devices(space)
    told = msgspec.msgpack.encode((space, log, devices))
    digest = hashlib.sha256(told).hexdigest()
    return Standing(space, digest, log, devices.devices, devices.revoked)


def _material(grant: RegisteredGrant) -> GrantMaterial:
    """Return the sealed side of a row; raise ValidationError for one of another form."""
    return msgspec.convert(
        {
            "header": grant.header,
            "wrapped_key": grant.wrapped_key,
            "sealed_keys": grant.sealed_keys,
            "signature": {"signer": grant.signer, "value": grant.signature},
            "hub_signature": grant.hub_signature or "",
        },
        GrantMaterial,
    )
