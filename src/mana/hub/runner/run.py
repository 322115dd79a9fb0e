"""One occurrence in a worker, from its sealed rows to its sealed result.

It verifies who decided, asks for the audit, opens, plans with the model, seals and signs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from mana.crypto.authority import NotAMember
from mana.crypto.errors import SignatureRejected, WrapRejected
from mana.crypto.grants import VerifiedGrant
from mana.crypto.policies import space_policy_of
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import VerifyKey
from mana.domain.agents import AGENT_MEMORY, AGENTS, Agent, agent_from_view
from mana.domain.cadences import zone
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Invalid, NotFound
from mana.domain.grants import SUITES, GrantHeader
from mana.domain.ids import IterationId, MissionId, RecordId, iteration_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import MISSIONS, RUNS_ON_HUB, Mission, mission_from_view
from mana.domain.policy import SpacePolicy
from mana.domain.records import Snapshot, View
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_ID
from mana.domain.tables import Table
from mana.hub.runner.choosing import Models
from mana.hub.runner.conversation import AskedBudget, Line, NotAllowed, ToldProgress
from mana.hub.runner.dialogue import (
    AuditDone,
    AuditEntry,
    Counts,
    Finished,
    Job,
    PhaseNote,
    WorkerLost,
    earlier_of,
    records_of,
)
from mana.hub.runner.gates import header_fits, read_header
from mana.hub.runner.opening import (
    GrantKeys,
    KeyRotated,
    open_keys,
    open_record,
    read_grant,
)
from mana.hub.runner.standing import Space, by_stamp
from mana.hub.runner.warm import UNKNOWN_TABLE, key_id
from mana.hub.runner.writeback import Draft, RunFacts, seal_run
from mana.models.choose import ModelUnknown
from mana.planning.budget import budget_reason
from mana.planning.guardrails import GuardrailBlocked, InputTooLarge
from mana.planning.loop import Plan, run
from mana.planning.past import PAST_FIELDS, past_from_views
from mana.planning.ports import BudgetExceeded, Candidate, ModelFailed, PriceUnknown
from mana.planning.prompt import PastIteration, PlanInput, PlannedInput
from mana.protocol.messages import StateRecord
from mana.protocol.replication import apply_state
from mana.registry.catalogue import Catalogue, load_catalogue

PROPOSAL_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
REFUSALS_BYTES_MAX: Final = 16_384


class Ended(Exception):
    """The run ends without an iteration; carries documented words only."""

    def __init__(
        self,
        outcome: str,
        reason: str,
        detail: str | None = None,
        *,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.detail = detail
        self.retry_after_ms = retry_after_ms


class Run:
    """One occurrence, from its sealed rows to its sealed result."""

    def __init__(
        self,
        line: Line,
        job: Job,
        *,
        models: Models,
        runner: RunnerPrivateKey,
        hub: VerifyKey,
        space: Space,
        traced: bool = False,
    ) -> None:
        self._line = line
        self._traced = traced
        self._job = job
        self._models = models
        self._operators: Sequence[str] = ()
        self._endpoints: Sequence[str] = ()
        self._runner = runner
        self._hub = hub
        self._space = space
        self._catalogue: Catalogue = load_catalogue()
        self._records: dict[str, StateRecord] = {}
        self._opened: Counter[str] = Counter()
        self._head: AuditDone | None = None
        self._rotated = False
        self._started = asyncio.get_running_loop().time()

    async def result(self) -> Finished:
        """Return the sealed write; raise Ended where the run comes to nothing."""
        try:
            records, earlier = records_of(self._job), earlier_of(self._job)
        except msgspec.DecodeError:
            raise Ended("skipped", "malformed") from None
        self._records = {f"{record.table}:{record.id}": record for record in records}
        header, grant = self._verified()
        job = self._job
        support = self._support(header)
        await self._audit([_entry(record) for record in support])
        keys = await self._keys(header, grant, support)
        views = {f"{r.table}:{r.id}": await self._open(r, keys, fatal=True) for r in support}
        mission = self._mission(views[f"{MISSIONS.name}:{job.mission_id}"], header.grant_id)
        agent = self._agent(views)
        chosen = self._chosen(agent, header, keys)
        named = await self._announced(header, mission, earlier)
        inputs = await self._inputs(named, keys)
        history = await self._history(earlier, keys)
        await self._reach("after_open")
        plan = await self._plan(mission, agent, chosen, inputs, history, views)
        await self._reach("after_model")
        return self._sealed(header, keys, mission, agent, inputs, plan)

    def _verified(self) -> tuple[GrantHeader, VerifiedGrant]:
        """Return header and grant, after everything that needs no private key was checked."""
        job = self._job
        try:
            header = read_header(job.grant.header)
        except Invalid:
            raise Ended("skipped", "malformed") from None
        if not header_fits(
            header,
            account=job.account_id,
            space=job.space_id,
            mission=job.mission_id,
            agent=job.agent_id,
        ):
            raise Ended("skipped", "scope-mismatch")
        if header.suite not in SUITES or header.runner_key_id != key_id(self._runner):
            raise Ended("skipped", "not-configured")
        self._operators = self._models.endpoints_of(header.endpoints)
        # Which of them the agent's model may ask is not known before the agent is open.
        self._endpoints = header.endpoints if self._models.allow_own else self._operators
        if not self._endpoints:
            raise Ended("skipped", "scope-mismatch")
        try:
            authority = self._space.authority()
            authority.require_writer(header.account_id)
            account, device = authority.writer(job.grant.signature.signer, newest=header.issued_at)
            if account != header.account_id:
                raise SignatureRejected("the grant is signed by another account's device")
            grant = read_grant(job.grant, device=device, hub=self._hub)
            for record in self._support(header):
                self._space.require_obeyed(record, self._catalogue.table(record.table))
        except NotAMember:
            raise Ended("skipped", "not-a-member") from None
        except SignatureRejected:
            raise Ended("skipped", "signature-rejected") from None
        except (CryptoFailed, Invalid):
            raise Ended("skipped", "malformed") from None
        return header, grant

    def _support(self, header: GrantHeader) -> list[StateRecord]:
        """Return the records of mission, agent and memory; the first two must be there."""
        mission = self._records.get(f"{MISSIONS.name}:{header.mission_id}")
        agent = self._records.get(f"{AGENTS.name}:{header.agent_id}")
        memory = self._records.get(f"{AGENT_MEMORY.name}:{header.agent_id}")
        if mission is None:
            raise Ended("skipped", "mission-not-active")
        if agent is None:
            raise Ended("skipped", "agent-missing")
        return [mission, agent, *([memory] if memory is not None else [])]

    async def _keys(
        self, header: GrantHeader, grant: VerifiedGrant, support: Sequence[StateRecord]
    ) -> GrantKeys:
        """Open the keys of the grant, and say on the audit if they do not open."""
        try:
            keys = open_keys(header, grant, runner=self._runner)
            if self._operators or keys.model is not None:
                return keys
            reason = "scope-mismatch"
        except WrapRejected:
            reason = "wrap-rejected"
        except CryptoFailed:
            reason = "malformed"
        await self._audit([_entry(record, "failed", reason) for record in support], checked=False)
        raise Ended("skipped", reason)

    async def _open(self, record: StateRecord, keys: GrantKeys, *, fatal: bool) -> View | None:
        """Return a record opened. One that does not open is audited; `fatal` ends the run."""
        granted = keys.of(f"{record.table}:{record.id}")
        fields = PAST_FIELDS.get(record.table)
        if fields is not None:
            granted = keys.iteration.for_record(record.table, record.id)
        reason = "scope-mismatch"
        if granted is not None:
            try:
                table = self._catalogue.table(record.table)
                view = open_record(self._job.space_id, record, table, granted, fields=fields)
                self._opened[record.table] += 1
                return view
            except KeyRotated:
                reason, self._rotated = "key-rotated", True
            except (CryptoFailed, Invalid, NotFound):
                reason = "malformed"
        await self._audit([_entry(record, "failed", reason)], checked=False)
        if fatal:
            raise Ended("skipped", reason)
        return None

    def _mission(self, view: View | None, grant_id: str) -> Mission:
        if view is None:
            raise Ended("skipped", "malformed")
        try:
            mission = mission_from_view(view)
            zone(mission.zone)
        except Invalid:
            raise Ended("skipped", "malformed") from None
        if view.deleted or mission.state != "active" or mission.runs_on != RUNS_ON_HUB:
            raise Ended("skipped", "mission-not-active")
        if mission.agent_id != self._job.agent_id:
            raise Ended("skipped", "scope-mismatch")
        if mission.grant_id != grant_id:
            # The newest word of a member is which grant counts, not what the register has left.
            raise Ended("skipped", "scope-mismatch" if mission.grant_id else "no-grant")
        return mission

    def _agent(self, views: dict[str, View | None]) -> Agent:
        view = views[f"{AGENTS.name}:{self._job.agent_id}"]
        if view is None or view.deleted:
            raise Ended("skipped", "agent-missing")
        memory = views.get(f"{AGENT_MEMORY.name}:{self._job.agent_id}")
        agent = agent_from_view(view, None if memory is None or memory.deleted else memory)
        if agent.state != "active":
            raise Ended("skipped", f"agent-{agent.state}")
        return agent

    def _chosen(self, agent: Agent, header: GrantHeader, keys: GrantKeys) -> list[Candidate]:
        """Return the models that the run may call; only what the grant's header names."""
        try:
            chosen = self._models.candidates(agent.model, header.endpoints, keys.model)
        except ModelUnknown:
            raise Ended("failed", "no-model") from None
        if not chosen:
            raise Ended("skipped", "scope-mismatch")
        self._endpoints = tuple(dict.fromkeys(one.model.endpoint for one in chosen))
        return chosen

    def _space_policy(self) -> SpacePolicy:
        """Return what the space lets agents do without asking, as those who manage it signed."""
        record = self._records.get(f"{SPACE_POLICY.name}:{SPACE_POLICY_ID}")
        held = None if record is None else apply_state(None, record, guarded=by_stamp)
        return space_policy_of(self._space.authority(), held)

    async def _announced(
        self, header: GrantHeader, mission: Mission, earlier: Sequence[StateRecord]
    ) -> list[StateRecord]:
        """Note what is opened next, inputs and history; return the inputs.

        Inputs that the header does not name are noted as violations and left out.
        """
        named = set(header.record_ids)
        entries: list[AuditEntry] = []
        found: list[StateRecord] = []
        for reference in mission.inputs:
            record = self._records.get(reference.key)
            if reference.key not in named:
                table = self._known(reference.table)
                entries.append(AuditEntry(table, reference.id, "scope-violation", "scope-mismatch"))
            elif record is not None:
                entries.append(_entry(record))
                found.append(record)
        entries.extend(_entry(record) for record in earlier)
        if entries:
            await self._audit(entries)
        return found

    async def _inputs(self, found: Sequence[StateRecord], keys: GrantKeys) -> dict[str, View]:
        """Open the inputs; those that do not open are left out."""
        views: dict[str, View] = {}
        for record in found:
            view = await self._open(record, keys, fatal=False)
            if view is not None:
                views[f"{record.table}:{record.id}"] = view
        if found and not views:
            raise Ended("skipped", "key-rotated" if self._rotated else "malformed")
        return views

    def _known(self, table: str) -> str:
        """Return a table's name if it is one: what a mission names is sealed text until then."""
        try:
            return self._catalogue.table(table).name
        except NotFound:
            return UNKNOWN_TABLE

    async def _history(
        self, earlier: Sequence[StateRecord], keys: GrantKeys
    ) -> tuple[PastIteration, ...]:
        """Open what earlier runs of this mission wrote, so that nothing is proposed again."""
        views = [await self._open(record, keys, fatal=False) for record in earlier]
        opened = [view for view in views if view is not None]
        return past_from_views(
            [view for view in opened if view.table == ITERATIONS.name],
            [view for view in opened if view.table == STEPS.name],
        )

    async def _plan(
        self,
        mission: Mission,
        agent: Agent,
        chosen: Sequence[Candidate],
        inputs: dict[str, View],
        history: tuple[PastIteration, ...],
        support: Mapping[str, View | None],
    ) -> Plan:
        job = self._job
        memory = support.get(f"{AGENT_MEMORY.name}:{job.agent_id}")
        now = iso_ms(job.now_ms)
        today = _today(job.now_ms, mission.zone)

        def load(table: Table) -> list[View]:
            if table is AGENT_MEMORY:
                return [] if memory is None else [memory]
            return [view for view in inputs.values() if view.table == table.name]

        def new_id() -> RecordId:
            raise Invalid("a new record takes its id from its step")

        plan_input = PlanInput(
            mission=mission,
            agent=agent,
            inputs=tuple(self._shown(view) for view in inputs.values() if not view.deleted),
            history=history,
            now_iso=now,
            zone=mission.zone,
            today=today,
            tokens_today=job.tokens_today,
        )
        progress = ToldProgress(self._line, traced=self._traced)
        try:
            return await run(
                plan_input,
                models=chosen,
                catalogue=self._catalogue,
                policy=agent.policy,
                space_policy=self._space_policy(),
                records=Snapshot(load, new_id, today, now),
                budget=AskedBudget(self._line),
                progress=progress,
                iteration_id=self._iteration_id,
                clock_ms=_elapsed_ms,
            )
        except BudgetExceeded as error:
            reason = budget_reason(error.left, error.cap, error.scope, error.unit)
            raise Ended("skipped", reason) from None
        except PriceUnknown:
            raise Ended("skipped", "no-price") from None
        except NotAllowed as refused:
            raise Ended("skipped", refused.reason) from None
        except InputTooLarge:
            raise Ended("failed", "inputs") from None
        except GuardrailBlocked:
            raise Ended("failed", "guardrail") from None
        except ModelFailed as error:
            asked_ms = error.retry_after_ms
            raise Ended("failed", error.kind, error.kind, retry_after_ms=asked_ms) from None
        finally:
            progress.close()

    def _shown(self, view: View) -> PlannedInput:
        kind = self._catalogue.input_kind(view.table)
        return PlannedInput(
            key=f"{view.table}:{view.id}",
            module=self._catalogue.module_of(view.table),
            title="" if kind is None else kind.title(view),
            content="" if kind is None else kind.content(view),
        )

    @property
    def _iteration_id(self) -> IterationId:
        return iteration_id(MissionId(self._job.mission_id), self._job.scheduled_for)

    def _sealed(
        self,
        header: GrantHeader,
        keys: GrantKeys,
        mission: Mission,
        agent: Agent,
        inputs: dict[str, View],
        plan: Plan,
    ) -> Finished:
        job, iteration = self._job, self._iteration_id
        if self._head is None:
            raise WorkerLost("nothing was audited")
        elapsed_s = asyncio.get_running_loop().time() - self._started
        finished_ms = job.now_ms + round(elapsed_s * 1_000)
        steps = [
            Draft(
                STEPS,
                step.id,
                {
                    "missionId": job.mission_id,
                    "iterationId": iteration,
                    "index": step.index,
                    "status": "staged" if step.decision == "propose" else "planned",
                    "intent": step.intent,
                    "sentence": step.sentence,
                    "rationale": step.rationale,
                    "preview": list(step.preview),
                    "base": dict(step.base),
                    "binding": step.binding,
                    "decision": step.decision,
                    "expiresAt": iso_ms(finished_ms + PROPOSAL_LIFE_MS),
                },
            )
            for step in plan.steps
        ]
        written = Draft(
            ITERATIONS,
            iteration,
            {
                "missionId": job.mission_id,
                "scheduledFor": job.scheduled_for,
                "source": "hub",
                "stepIds": [step.record_id for step in steps],
                "agentName": agent.name[:80],
                "agentAvatar": agent.avatar[:16] or None,
                "missionTitle": mission.title[:200],
                "summary": plan.summary,
                "model": plan.model[:200],
                "endpoint": plan.endpoint[:500],
                "promptVersion": plan.prompt_version,
                "usage": plan.usage_to_wire(),
                "stopReason": plan.stop_reason,
                "inputsRead": list[Json](sorted(inputs)),
                "refusals": plan.refusals_within(REFUSALS_BYTES_MAX),
                "startedAt": iso_ms(job.now_ms),
                "finishedAt": iso_ms(finished_ms),
            },
        )
        facts = RunFacts(
            space_id=job.space_id,
            mission_id=job.mission_id,
            agent_id=job.agent_id,
            account_id=job.account_id,
            iteration_id=iteration,
            scheduled_for=job.scheduled_for,
            grant_id=header.grant_id,
            fence=job.fence,
            now_ms=finished_ms,
            audit_seq=self._head.seq,
            audit_hash=self._head.hash,
        )
        changes = seal_run(facts, written, steps, iteration_key=keys.iteration, runner=self._runner)
        calls = Counter(f"{step.tool}:{step.decision}" for step in plan.steps)
        counts = Counts(
            rounds=plan.rounds,
            tool_calls=dict(calls),
            opened=dict(self._opened),
            prompt_tokens=plan.usage.prompt_tokens,
            completion_tokens=plan.usage.completion_tokens,
            reminders={":".join(rule): number for rule, number in plan.reminded.items()},
            folded=[one.messages for one in plan.compactions],
        )
        return Finished(job.run, iteration, changes, counts)

    async def _audit(self, entries: Sequence[AuditEntry], *, checked: bool = True) -> None:
        """Return when the rows are committed; raise Ended if they may not be opened."""
        try:
            self._head = await self._line.audit(entries, endpoints=self._endpoints, checked=checked)
        except NotAllowed as refused:
            raise Ended("skipped", refused.reason) from None

    async def _reach(self, point: str) -> None:
        """Tell that a named place is reached; where a test kills the runner, wait for the end."""
        if self._job.fail_point == point:
            self._line.tell(PhaseNote(self._job.run, point))
            await asyncio.Event().wait()


def _elapsed_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1_000)


def _entry(record: StateRecord, status: str = "ok", reason: str | None = None) -> AuditEntry:
    return AuditEntry(record.table, record.id, status, reason)


def _today(now_ms: int, zone_name: str) -> str:
    moment = datetime.fromtimestamp(now_ms / 1_000, tz=UTC)
    return moment.astimezone(zone(zone_name)).date().isoformat()
