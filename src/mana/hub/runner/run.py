"""One occurrence in a worker, from its sealed rows to its sealed result.

It verifies who decided, asks for the audit, opens, plans with the model, seals and signs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from mana.crypto.authority import Authority, NotAMember, verify_record
from mana.crypto.errors import SignatureRejected, WrapRejected
from mana.crypto.grants import verify_countersignature, verify_grant
from mana.crypto.primitives import unb64
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
from mana.domain.tables import Table
from mana.hub.runner.conversation import AskedBudget, Line, NotAllowed, ToldProgress
from mana.hub.runner.dialogue import (
    AuditDone,
    AuditEntry,
    Counts,
    Finished,
    Job,
    PhaseNote,
    WorkerLost,
    records_of,
)
from mana.hub.runner.gates import header_fits, read_header
from mana.hub.runner.opening import (
    GrantKeys,
    KeyRotated,
    open_keys,
    open_record,
    sealed_grant,
)
from mana.hub.runner.warm import catalogue
from mana.hub.runner.writeback import Draft, RunFacts, seal_run
from mana.planning.budget import budget_reason
from mana.planning.loop import InputTooLarge, Plan, run
from mana.planning.ports import BudgetExceeded, Model, ModelFailed
from mana.planning.prompt import (
    PastIteration,
    PastStep,
    PlanInput,
    PlannedInput,
)
from mana.protocol.messages import StateRecord
from mana.protocol.replication import apply_state
from mana.registry.catalogue import Catalogue

PROPOSAL_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
REFUSALS_BYTES_MAX: Final = 16_384


class Ended(Exception):
    """The run ends without an iteration; carries documented words only."""

    def __init__(self, outcome: str, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.detail = detail


class Run:
    """One occurrence, from its sealed rows to its sealed result."""

    def __init__(
        self,
        line: Line,
        job: Job,
        *,
        model: Model,
        runner: RunnerPrivateKey,
        hub: VerifyKey,
        authority: Callable[[], Authority],
    ) -> None:
        self._line = line
        self._job = job
        self._model = model
        self._runner = runner
        self._hub = hub
        self._authority = authority
        self._catalogue: Catalogue = catalogue()
        self._records: dict[str, StateRecord] = {}
        self._opened: Counter[str] = Counter()
        self._head: AuditDone | None = None
        self._rotated = False
        self._started = asyncio.get_running_loop().time()

    async def result(self) -> Finished:
        """Return the sealed write; raise Ended where the run comes to nothing."""
        try:
            records = records_of(self._job)
        except msgspec.DecodeError:
            raise Ended("skipped", "malformed") from None
        self._records = {f"{record.table}:{record.id}": record for record in records}
        header, device = self._verified()
        job = self._job
        support = self._support(header)
        await self._audit([_entry(record) for record in support])
        keys = await self._keys(header, device, support)
        views = {f"{r.table}:{r.id}": await self._open(r, keys, fatal=True) for r in support}
        mission = self._mission(views[f"{MISSIONS.name}:{job.mission_id}"], header.grant_id)
        agent = self._agent(views)
        earlier = [record for record in records if record.table in (ITERATIONS.name, STEPS.name)]
        named = await self._announced(header, mission, earlier)
        inputs = await self._inputs(named, keys)
        history = await self._history(earlier, keys)
        await self._reach("after_open")
        plan = await self._plan(mission, agent, inputs, history)
        await self._reach("after_model")
        return self._sealed(header, keys, mission, agent, inputs, plan)

    def _verified(self) -> tuple[GrantHeader, VerifyKey]:
        """Return header and device key, after everything that needs no key was checked."""
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
        if header.suite not in SUITES or header.runner_key_id != self._runner.public().key_id():
            raise Ended("skipped", "not-configured")
        if self._model.endpoint not in header.endpoints:
            raise Ended("skipped", "scope-mismatch")
        try:
            authority = self._authority()
            authority.require_writer(header.account_id)
            account, device = authority.writer(job.grant.signature.signer, newest=header.issued_at)
            if account != header.account_id:
                raise SignatureRejected("the grant is signed by another account's device")
            grant = sealed_grant(job.grant)
            raw = job.grant.header.encode("utf-8")
            verify_grant(raw, grant, device=device)
            verify_countersignature(raw, grant, unb64(job.grant.hub_signature), hub=self._hub)
            for record in self._support(header):
                held = apply_state(None, record, guarded=_by_stamp)
                verify_record(authority, held, self._catalogue.table(record.table))
        except NotAMember:
            raise Ended("skipped", "not-a-member") from None
        except SignatureRejected:
            raise Ended("skipped", "signature-rejected") from None
        except (CryptoFailed, Invalid):
            raise Ended("skipped", "malformed") from None
        return header, device

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
        self, header: GrantHeader, device: VerifyKey, support: Sequence[StateRecord]
    ) -> GrantKeys:
        """Open the keys of the grant, and say on the audit if they do not open."""
        try:
            return open_keys(
                header,
                self._job.grant,
                runner=self._runner,
                device=device,
                hub=self._hub,
            )
        except WrapRejected:
            reason = "wrap-rejected"
        except SignatureRejected:
            reason = "signature-rejected"
        except CryptoFailed:
            reason = "malformed"
        await self._audit([_entry(record, "failed", reason) for record in support], checked=False)
        raise Ended("skipped", reason)

    async def _open(self, record: StateRecord, keys: GrantKeys, *, fatal: bool) -> View | None:
        """Return a record opened. One that does not open is audited; `fatal` ends the run."""
        granted = keys.of(f"{record.table}:{record.id}")
        if record.table in (ITERATIONS.name, STEPS.name):
            granted = keys.iteration.for_record(record.table, record.id)
        reason = "scope-mismatch"
        if granted is not None:
            try:
                table = self._catalogue.table(record.table)
                view = open_record(self._job.space_id, record, table, granted)
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
            return "unknown"

    async def _history(
        self, earlier: Sequence[StateRecord], keys: GrantKeys
    ) -> tuple[PastIteration, ...]:
        """Open what earlier runs of this mission wrote, so that nothing is proposed again."""
        iterations: list[View] = []
        steps: dict[str, list[View]] = {}
        for record in earlier:
            view = await self._open(record, keys, fatal=False)
            if view is None or view.deleted:
                continue
            if record.table == ITERATIONS.name:
                iterations.append(view)
            else:
                steps.setdefault(view.text("iterationId"), []).append(view)
        iterations.sort(key=lambda view: view.text("scheduledFor"))
        return tuple(
            PastIteration(
                id=view.id,
                started_at=view.text("startedAt") or view.text("scheduledFor"),
                summary=view.text("summary"),
                steps=tuple(_past_step(step) for step in _in_order(steps.get(view.id, ()))),
            )
            for view in iterations
        )

    async def _plan(
        self,
        mission: Mission,
        agent: Agent,
        inputs: dict[str, View],
        history: tuple[PastIteration, ...],
    ) -> Plan:
        job = self._job
        now = iso_ms(job.now_ms)
        today = _today(job.now_ms, mission.zone)

        def load(table: Table) -> list[View]:
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
        try:
            return await run(
                plan_input,
                model=self._model,
                catalogue=self._catalogue,
                policy=agent.policy,
                space_policy=SpacePolicy(),
                records=Snapshot(load, new_id, today, now),
                budget=AskedBudget(self._line),
                progress=ToldProgress(self._line),
                iteration_id=self._iteration_id,
            )
        except BudgetExceeded as error:
            raise Ended("skipped", budget_reason(error.left, error.cap)) from None
        except InputTooLarge:
            raise Ended("failed", "inputs") from None
        except ModelFailed as error:
            raise Ended("failed", error.kind, error.kind) from None

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
        usage: dict[str, Json] = {
            "promptTokens": plan.usage.prompt_tokens,
            "completionTokens": plan.usage.completion_tokens,
        }
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
                "usage": usage,
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
            calls=dict(calls),
            opened=dict(self._opened),
            prompt_tokens=plan.usage.prompt_tokens,
            completion_tokens=plan.usage.completion_tokens,
        )
        return Finished(job.run, iteration, changes, counts)

    async def _audit(self, entries: Sequence[AuditEntry], *, checked: bool = True) -> None:
        """Return when the rows are committed; raise Ended if they may not be opened."""
        try:
            self._head = await self._line.audit(
                entries, endpoint=self._model.endpoint, checked=checked
            )
        except NotAllowed as refused:
            raise Ended("skipped", refused.reason) from None

    async def _reach(self, point: str) -> None:
        """Tell that a named place is reached; where a test kills the runner, wait for the end."""
        if self._job.fail_point == point:
            self._line.tell(PhaseNote(self._job.run, point))
            await asyncio.Event().wait()


def _by_stamp(_table: str, _path: str) -> bool:
    """Say that no path is guarded: a record that is read alone stands as it is."""
    return False


def _entry(record: StateRecord, status: str = "ok", reason: str | None = None) -> AuditEntry:
    return AuditEntry(record.table, record.id, status, reason)


def _in_order(steps: Sequence[View]) -> list[View]:
    def place(view: View) -> int:
        index = view.values.get("index")
        return index if isinstance(index, int) else 0

    return sorted(steps, key=place)


def _past_step(view: View) -> PastStep:
    intent = view.values.get("intent")
    tool = intent.get("toolName") if isinstance(intent, dict) else None
    return PastStep(
        tool=tool if isinstance(tool, str) else "",
        sentence=view.text("sentence"),
        status=view.text("status"),
        feedback=view.text("feedback"),
    )


def _today(now_ms: int, zone_name: str) -> str:
    moment = datetime.fromtimestamp(now_ms / 1_000, tz=UTC)
    return moment.astimezone(zone(zone_name)).date().isoformat()
