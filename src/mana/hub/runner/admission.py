"""Admission: which leased occurrences run, and everything that a worker needs for them.

The gates are asked in their order, for all leases of an account that came together. What is refused
ends here with its reason, without a worker; what an agent has no room for is queued again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.clock import iso_ms
from mana.domain.encoding import canonical_json
from mana.domain.errors import Invalid
from mana.domain.grants import GrantHeader
from mana.domain.ids import AccountId, MissionId, OccurrenceId, SpaceId
from mana.domain.missions import MISSIONS
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_ID
from mana.hub.accounts.store import devices_answer
from mana.hub.money.store import Run, caps_of
from mana.hub.runner import endings, gates, scheduling
from mana.hub.runner.batches import Batch, Facts, FoundRecords, Place, WantedRecords, by_space
from mana.hub.runner.dialogue import GrantMaterial, Job, OpeningKey, Standing
from mana.hub.runner.endings import STOPPED, Outcome
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot, RegisteredGrant
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import Prices
from mana.hub.runner.queue import End
from mana.hub.runner.shared import Setting
from mana.hub.runner.standing import Space
from mana.hub.runner.store import Ledger, RunnerStore
from mana.hub.runner.words import Words
from mana.planning.budget import Cap, used_up
from mana.protocol.messages import SignedEntry

CONCURRENCY_DELAY_MS: Final = 5_000
HISTORY_MAX: Final = 3
STANDINGS_MAX: Final = 64


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
    word: tuple[int, str] | None = None
    """Revision and hash of what the account signed on its work, to be remembered once verified."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A lease that passed the gates up to its grant."""

    lease: Lease
    mission: MissionSnapshot
    agent: AgentSnapshot
    grant: RegisteredGrant


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database tells of the missions of a batch, and of their agents and grants."""

    now_ms: int
    missions: Mapping[MissionId, MissionSnapshot]
    facts: Facts


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
        return WantedRecords(lease.mission_id, refs)


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
        self._standings = _Standings()
        self._words = Words(setting.memory, setting.hub_key)
        self._keys: dict[str, OpeningKey] = {}

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
        now_ms, missions = await ledger.missions_locked(
            [(space, lease.mission_id) for lease in leases]
        )
        facts = await batch.facts(leases, account)
        held = facts.held
        known = _Known(
            now_ms, {mission.mission_id: mission for mission in missions.values()}, facts
        )
        candidates: list[_Candidate] = []
        # A lease that stands for missed moments may be replaced by that of the newest one.
        origin: dict[OccurrenceId, OccurrenceId] = {}
        for lease in leases:
            if lease.occurrence_id not in held.ids:
                continue
            is_stopped = lease.stop or lease.occurrence_id in held.stopped
            passed = await self._gates(ledger, replace(lease, stop=is_stopped), known, tally)
            if passed is not None:
                origin[passed.lease.occurrence_id] = lease.occurrence_id
                candidates.append(passed)
        if not candidates:
            return {}
        caps = await caps_of(
            ledger.tx,
            [Run(space, one.lease.mission_id, one.agent.agent_id) for one in candidates],
        )
        judged_of = [
            (one, self._prepared(one, its)) for one, its in zip(candidates, caps, strict=True)
        ]
        prepared = await self._with_room(batch, judged_of, tally)
        if not prepared:
            return {}
        stands = await batch.standing()
        standing, known_space = self._standings.of(space, stands.log, stands.devices)
        judged = self._words.judge_work(account, stands.work, known_space)
        refusal = judged.refusal
        if refusal == "set-back" and judged.newest is not None:
            await batch.ask_word(judged.newest[0])
        if refusal is None:
            refusal = await self._words.lift_refusal(space, stands.policy, known_space)
        found: dict[OccurrenceId, Admitted] = {}
        for one, rows in prepared:
            lease = one.candidate.lease
            if refusal is not None:
                tally.skip(lease, refusal)
            elif rows.named_at < self._setting.memory.named_at(space, lease.mission_id):
                tally.skip(lease, "set-back")
            else:
                admitted = self._admitted(one, rows, standing, held.now_ms)
                found[origin[lease.occurrence_id]] = replace(admitted, word=judged.newest)
        return found

    async def _gates(
        self, ledger: Ledger, lease: Lease, known: _Known, tally: _Tally
    ) -> _Candidate | None:
        """Ask the gates of mission, agent and grant; None if the occurrence ended."""
        mission = known.missions.get(lease.mission_id)
        refusal = gates.mission_refusal(mission)
        if mission is None and known.facts.held.role is None:
            refusal = "not-a-member"
        if mission is None or refusal is not None:
            tally.skip(lease, refusal or "mission-not-active")
            return None
        setting = self._setting
        due = await scheduling.due(
            ledger,
            lease,
            mission,
            now_ms=known.now_ms,
            worker=setting.name,
            lease_s=setting.lease_s,
        )
        tally.missed += due.missed
        if due.lease is None:
            return None
        agent = None if mission.agent_id is None else known.facts.agents.get(mission.agent_id)
        refusal = gates.agent_refusal(agent)
        grant = known.facts.grants.get(lease.mission_id)
        if refusal is None:
            refusal = setting.grant_refusal(grant)
            if refusal == "expired" and grant is not None:
                await ledger.expire_grant(grant.grant_id)
        if refusal is None and grant is not None and grant.account_id != lease.account_id:
            refusal = "scope-mismatch"
        if refusal is not None or agent is None or grant is None:
            tally.skip(due.lease, refusal or "no-grant")
            return None
        if lease.stop:
            tally.ends.append(End(due.lease, "failed", STOPPED))
            return None
        return _Candidate(due.lease, mission, agent, grant)

    async def _with_room(
        self, batch: Batch, asked: Sequence[tuple[_Candidate, _Prepared | str]], tally: _Tally
    ) -> list[tuple[_Prepared, FoundRecords]]:
        """Return those that their agents have room for, with their records, where they may run.

        Those without room are queued again, uncounted.
        """
        found = await batch.admit(
            [
                Place(one.lease, one.agent, None if isinstance(its, str) else its.wanted)
                for one, its in asked
            ],
            earlier=HISTORY_MAX,
        )
        prepared: list[tuple[_Prepared, FoundRecords]] = []
        waiting: list[Lease] = []
        for one, its in asked:
            records = found.get(one.lease.occurrence_id)
            if records is None:
                waiting.append(one.lease)
            elif isinstance(its, str):
                tally.skip(one.lease, its)
            else:
                prepared.append((its, records))
        if waiting:
            tally.waiting += len(waiting)
            await batch.put_back(waiting, delay_ms=CONCURRENCY_DELAY_MS, counted=False)
        return prepared

    def _prepared(self, one: _Candidate, caps: Sequence[Cap]) -> _Prepared | str:
        """Return a candidate within its budgets with its grant read, or why it does not run."""
        refusal = used_up(caps, metered=self._prices.metered, priced=self._prices.priced)
        return refusal or self._read(one, caps)

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
        opening = self._keys.get(header.runner_key_id)
        if opening is None:
            # As many as a runner has at a time; to write one as text takes a moment.
            self._keys = {name: kept for name, kept in self._keys.items() if keys.opening(name)}
            opening = OpeningKey(header.runner_key_id, key.to_pem())
            self._keys[header.runner_key_id] = opening
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
            earlier=rows.earlier,
            tokens_today=one.spent,
            fail_point=self._setting.fail_point,
        )
        return Admitted(lease, agent, one.header, job, standing, one.key, rows.named_at)


class _Standings:
    """What was read of spaces last, so that nothing is read anew that is the same text."""

    def __init__(self) -> None:
        self._newest: dict[SpaceId, tuple[str, str, Standing, Space]] = {}

    def of(self, space: SpaceId, log: str, devices: str) -> tuple[Standing, Space]:
        """Return who may decide in a space, as its members' devices signed it, told and judged."""
        known = self._newest.pop(space, None)
        if known is None or known[:2] != (log, devices):
            standing = _standing(space, log, devices)
            known = log, devices, standing, Space(standing)
        self._newest[space] = known
        if len(self._newest) > STANDINGS_MAX:
            del self._newest[next(iter(self._newest))]
        return known[2:]


def _standing(space: SpaceId, log: str, devices: str) -> Standing:
    digest = hashlib.sha256(canonical_json([space, log, devices])).hexdigest()
    entries = msgspec.json.decode(log, type=list[SignedEntry])
    found = devices_answer(msgspec.json.decode(devices))
    return Standing(space, digest, entries, found.devices, found.revoked)


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
