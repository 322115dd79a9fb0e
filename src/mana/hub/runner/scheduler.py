"""The work of the runner: lease what is due, let the gates decide, drive a worker, finish.

One pass takes everything that is due; slow runs do not hold back others, and a second pass is
not started beside it. Every transaction that writes checks the lease's fence first, so a runner
that was thought dead changes nothing when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, get_args

import msgspec
import structlog

from mana.domain.clock import iso_ms
from mana.domain.errors import Conflict, Invalid, ManaError
from mana.domain.ids import AccountId, MissionId, SpaceId, iteration_id, step_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import MISSIONS
from mana.domain.occurrences import (
    FAIL_POINTS,
    HOLDING,
    LEASES_MAX,
    FailReason,
    SkipReason,
)
from mana.hub.runner import audit, gates, scheduling
from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditDone,
    AuditEntry,
    Finished,
    Granted,
    GrantMaterial,
    Job,
    Message,
    ModelSpec,
    OpeningKey,
    PhaseNote,
    Refused,
    ReserveAsk,
    SettleAsk,
    Setup,
    Standing,
    Stopped,
    WorkerLost,
)
from mana.hub.runner.keys import RunnerKeys
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot, RegisteredGrant
from mana.hub.runner.memory import RunnerMemory
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.moments import overdue
from mana.hub.runner.store import Ledger, RunnerStore, Transaction
from mana.hub.runner.workers import Worker, Workers
from mana.planning.budget import budget_reason, fitting, is_sane, read_budget_reason
from mana.planning.ports import FAILURE_KINDS, BudgetExceeded
from mana.protocol.messages import ChangeMessage, StateRecord

CONCURRENCY_DELAY_MS: Final = 5_000
CRASH_DELAY_MS: Final = 1_000
HISTORY_MAX: Final = 3
ERRORS_MAX: Final = 50
_GRANT_REASONS: Final = frozenset(
    {
        "no-grant",
        "not-configured",
        "expired",
        "revoked",
        "wrap-rejected",
        "malformed",
        "signature-rejected",
        "scope-mismatch",
        "key-rotated",
        "not-a-member",
        "set-back",
    }
)
_SKIPS: Final = frozenset(get_args(SkipReason))
_FAILURES: Final = frozenset(get_args(FailReason))
_PHASES: Final = frozenset({*FAIL_POINTS, "prompt", "model", "tools", "done"})
_RUN: Final = 1
"""The number of the one run that a worker is given."""
_log: Final = structlog.get_logger("mana.runner")


class ChangesRefused(Conflict):
    """The log did not take what a run wrote; `refusal` is a code of the sync protocol."""

    code = "CHANGES_REFUSED"

    def __init__(self, refusal: str) -> None:
        super().__init__("the log refused the run's changes", detail={"refusal": refusal})
        self.refusal = refusal


class Append(Protocol):
    """How the runner's changes get into the log: hub sync, within the finishing transaction."""

    async def __call__(
        self,
        tx: Transaction,
        account: AccountId,
        space: SpaceId,
        changes: Sequence[ChangeMessage],
        *,
        key_id: str,
        now_ms: int,
    ) -> None:
        """Append and merge as the runner of this key; raise ChangesRefused if one is refused."""


@dataclass(slots=True)
class TickStats:
    """What one pass came to (reference: engine 18.4)."""

    scanned_at: str
    due_mission_count: int = 0
    plans_produced: int = 0
    plans_written_back: int = 0
    parse_failures: int = 0
    errors: list[str] = field(default_factory=list)

    def fail(self, lease: Lease, code: str) -> None:
        """Note a failure by code; ids and codes are ours, so nobody's text gets out."""
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(f"mission={lease.mission_id}: {code}")


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same while a runner lives. `fail` ends the process at a named place."""

    name: str
    keys: RunnerKeys
    memory: RunnerMemory
    hub_key: Callable[[], str]
    model: ModelSpec
    metered: bool
    concurrency: int
    lease_s: int
    heartbeat_s: int
    run_s_max: int
    fail_point: str | None
    fail: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A leased occurrence that passed every gate that the database can judge."""

    lease: Lease
    mission: MissionSnapshot
    agent: AgentSnapshot
    job: Job
    standing: Standing
    key: OpeningKey
    runner_key_id: str
    named_at: str


class Scheduler:
    """Passes over what is due. `wake` makes a running pass look again."""

    def __init__(
        self,
        store: RunnerStore,
        workers: Workers,
        append: Append,
        metrics: Metrics,
        setting: Setting,
    ) -> None:
        self._store = store
        self._workers = workers
        self._append = append
        self._metrics = metrics
        self._setting = setting
        self._awake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_running = False
        self._is_draining = False
        self._active: dict[str, Worker] = {}
        self._leases: dict[str, Lease] = {}

    @property
    def awake(self) -> asyncio.Event:
        """Return what is set when something may be due."""
        return self._awake

    @property
    def is_draining(self) -> bool:
        """Say whether nothing new is taken any more."""
        return self._is_draining

    def wake(self, _payload: str = "") -> None:
        """Say that something may be due."""
        self._awake.set()

    async def tick(self) -> TickStats:
        """Work on all that is due, until nothing is; one pass at a time."""
        async with self._store.work(_NOBODY) as ledger:
            stats = TickStats(iso_ms(await ledger.now_ms()))
        if self._is_running or self._is_draining:
            stats.errors.append("overlap-skipped")
            return stats
        self._is_running = True
        self._idle.clear()
        self._metrics.ticks.inc()
        began = time.monotonic()
        try:
            # To draw a key takes a moment, and is done twice a month.
            await asyncio.to_thread(self._setting.keys.turn)
            await self._pass(stats)
        finally:
            self._is_running = False
            self._idle.set()
            self._metrics.tick_seconds.observe(time.monotonic() - began)
        return stats

    async def drain(self, *, seconds: float) -> None:
        """Take nothing new; let runs end within a time, then give their leases back."""
        self._is_draining = True
        self.wake()
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        for lease in list(self._leases.values()):
            with contextlib.suppress(ManaError):
                async with self._store.work(lease.account_id) as ledger:
                    await ledger.put_back(lease, delay_ms=0, counted=False)
        for worker in list(self._active.values()):
            worker.kill()

    async def _pass(self, stats: TickStats) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._awake.clear()
                free = self._setting.concurrency - len(running)
                leased: list[Lease] = []
                if free > 0 and not self._is_draining:
                    await self._setting.memory.saw_end(await self._store.end_grants())
                    await self._bury(stats)
                    leased = await self._store.lease(
                        self._setting.name, free, lease_s=self._setting.lease_s
                    )
                for lease in leased:
                    stats.due_mission_count += 1
                    running.add(asyncio.create_task(self._occurrence(lease, stats)))
                if not running:
                    return
                waker = asyncio.create_task(self._awake.wait())
                try:
                    done, _ = await asyncio.wait(
                        {*running, waker}, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    waker.cancel()
                running -= done
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)

    async def _bury(self, stats: TickStats) -> None:
        """Give up what was leased as often as allowed and never ended."""
        for lease in await self._store.crashed(20):
            async with self._store.work(lease.account_id) as ledger:
                if await self._end(ledger, lease, "failed", "crash"):
                    stats.fail(lease, "crash")
                    self._metrics.crashes.inc()

    async def _occurrence(self, lease: Lease, stats: TickStats) -> None:
        """Work on one leased occurrence; a defect in it never ends the pass."""
        key = lease.occurrence_id
        self._leases[key] = lease
        try:
            self._fail("after_lease")
            admitted = await self._admitted(lease)
            if admitted is not None:
                self._leases[key] = admitted.lease
                await self._run(admitted, stats)
        except ManaError as error:
            stats.fail(lease, error.code)
            self._metrics.mission_errors.inc()
            _log.error("run_failed", mission=lease.mission_id, code=error.code, why=error.message)
            await self._let_go(self._leases[key])
        except Exception as error:
            stats.fail(lease, "INTERNAL")
            self._metrics.mission_errors.inc()
            _log.error("run_failed", mission=lease.mission_id, kind=type(error).__name__)
            await self._let_go(self._leases[key])
        finally:
            self._leases.pop(key, None)

    async def _let_go(self, lease: Lease) -> None:
        """Queue a run that broke down again, counted; after the last attempt it has failed."""
        with contextlib.suppress(ManaError):
            async with self._store.work(lease.account_id) as ledger:
                if lease.attempts >= LEASES_MAX:
                    if await self._end(ledger, lease, "failed", "crash"):
                        self._metrics.crashes.inc()
                else:
                    await ledger.put_back(lease, delay_ms=CRASH_DELAY_MS, counted=True)

    async def _admitted(self, lease: Lease) -> _Admitted | None:
        """Ask the gates in their order; None if the occurrence ended or waits."""
        async with self._store.work(lease.account_id) as ledger:
            if not await ledger.holds(lease):
                return None
            mission = await ledger.mission(lease.space_id, lease.mission_id, lock=True)
            if mission is None and await ledger.role(lease.space_id, lease.account_id) is None:
                await self._skip(ledger, lease, "not-a-member")
                return None
            refusal = gates.mission_refusal(mission)
            if mission is None or refusal is not None:
                await self._skip(ledger, lease, refusal or "mission-not-active")
                return None
            newest = await self._newest(ledger, lease, mission)
            if newest is None:
                return None
            lease = newest
            agent = (
                None
                if mission.agent_id is None
                else await ledger.agent(lease.space_id, mission.agent_id)
            )
            refusal = gates.agent_refusal(agent)
            grant: RegisteredGrant | None = None
            if refusal is None:
                grant = await ledger.latest_grant(lease.space_id, lease.mission_id)
                refusal = self._grant_refusal(grant)
                if refusal == "expired" and grant is not None:
                    await ledger.expire_grant(grant.grant_id)
            if refusal is None and grant is not None and grant.account_id != lease.account_id:
                refusal = "scope-mismatch"
            if refusal is not None or agent is None or grant is None:
                await self._skip(ledger, lease, refusal or "no-grant")
                return None
            if not await ledger.admit(lease, agent.agent_id, agent.concurrent_max):
                self._metrics.decisions.labels("skipped-concurrency").inc()
                await ledger.put_back(lease, delay_ms=CONCURRENCY_DELAY_MS, counted=False)
                return None
            spent = await ledger.spent(lease.space_id, agent.agent_id)
            spent_up = gates.budget_refusal(agent, spent, metered=self._setting.metered)
            if spent_up is not None:
                await self._skip(ledger, lease, spent_up)
                return None
            parts = await self._job(ledger, lease, mission, agent, grant, spent)
            if isinstance(parts, str):
                await self._skip(ledger, lease, parts)
                return None
            job, standing, key, named_at = parts
            if named_at < self._setting.memory.named_at(lease.space_id, lease.mission_id):
                await self._skip(ledger, lease, "set-back")
                return None
            return _Admitted(
                lease, mission, agent, job, standing, key, grant.runner_key_id, named_at
            )

    def _grant_refusal(self, grant: RegisteredGrant | None) -> SkipReason | None:
        setting = self._setting
        return gates.grant_refusal(
            grant, key_refusal=setting.keys.refusal, has_ended=setting.memory.has_ended
        )

    async def _newest(self, ledger: Ledger, lease: Lease, mission: MissionSnapshot) -> Lease | None:
        """Note missed moments and return the lease of the newest, which runs for them all."""
        if lease.kind == "manual" or mission.anchor_ms is None or lease.attempts > 1:
            return lease
        missed, newest_ms = overdue(
            mission.cadence,
            mission.time_zone,
            anchor_ms=mission.anchor_ms,
            due_ms=lease.scheduled_ms,
            now_ms=await ledger.now_ms(),
        )
        if newest_ms == lease.scheduled_ms:
            return lease
        await ledger.end(lease, "missed")
        await ledger.add_missed(mission, missed)
        self._metrics.missed.inc(len(missed))
        newest = await ledger.lease_at(
            lease, mission, newest_ms, worker=self._setting.name, lease_s=self._setting.lease_s
        )
        if newest is None:
            # The newest moment is in the ledger already: it ran, so only what follows remains.
            await scheduling.after_run(ledger, mission, newest_ms, None)
            return None
        await ledger.set_schedule(mission, next_run_ms=newest_ms, hold=mission.hold)
        return newest

    async def _job(
        self,
        ledger: Ledger,
        lease: Lease,
        mission: MissionSnapshot,
        agent: AgentSnapshot,
        grant: RegisteredGrant,
        spent: int,
    ) -> tuple[Job, Standing, OpeningKey, str] | SkipReason:
        """Return everything that a worker needs, or why there is no work to give."""
        try:
            header = gates.read_header(grant.header)
            material = _material(grant)
        except (Invalid, msgspec.ValidationError):
            return "malformed"
        refusal = gates.register_refusal(grant, header)
        runner_key = self._setting.keys.opening(header.runner_key_id)
        if refusal is not None or runner_key is None:
            return refusal or self._setting.keys.refusal(header.runner_key_id) or "not-configured"
        keys = [
            ("aiMissions", str(lease.mission_id)),
            ("agents", str(agent.agent_id)),
            ("agentMemory", str(agent.agent_id)),
        ]
        for name in header.record_ids:
            table, _, record = name.partition(":")
            keys.append((table, record))
        try:
            records = await ledger.records(lease.space_id, keys)
            history = await ledger.history(lease.space_id, lease.mission_id, HISTORY_MAX)
            devices = await ledger.devices(lease.space_id)
        except msgspec.ValidationError:
            return "malformed"
        log = await ledger.membership_log(lease.space_id)
        told = msgspec.msgpack.encode([lease.space_id, log, devices.devices, devices.revoked])
        standing = Standing(
            lease.space_id, hashlib.sha256(told).hexdigest(), log, devices.devices, devices.revoked
        )
        records = [*records, *history]
        job = Job(
            run=_RUN,
            space_id=lease.space_id,
            mission_id=lease.mission_id,
            agent_id=str(mission.agent_id),
            account_id=lease.account_id,
            scheduled_for=iso_ms(lease.scheduled_ms),
            fence=lease.fence,
            now_ms=await ledger.now_ms(),
            grant=material,
            standing=standing.digest,
            runner_key_id=header.runner_key_id,
            records=msgspec.json.encode(records),
            tokens_today=spent,
            fail_point=self._setting.fail_point,
        )
        key = OpeningKey(header.runner_key_id, runner_key.to_pem())
        return job, standing, key, _named_at(lease.mission_id, records)

    async def _run(self, admitted: _Admitted, stats: TickStats) -> None:
        """Drive a worker through one run, with a heartbeat, and finish what it answers."""
        lease = admitted.lease
        worker = await self._workers.start()
        self._active[lease.occurrence_id] = worker
        began = time.monotonic()
        talk = asyncio.create_task(self._talk(admitted, worker, stats))
        beat = asyncio.create_task(self._beat(lease))
        try:
            done, _ = await asyncio.wait(
                {talk, beat},
                timeout=self._setting.run_s_max,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if talk in done:
                await talk
            elif beat in done:
                # Another runner has the occurrence; whatever this one does is fenced off.
                _log.warning("lease_lost", mission=lease.mission_id)
            else:
                await self._stop(admitted, Stopped(_RUN, "failed", "timeout", "timeout"), stats)
        finally:
            for task in (talk, beat):
                task.cancel()
            await asyncio.gather(talk, beat, return_exceptions=True)
            worker.kill()
            self._active.pop(lease.occurrence_id, None)
            await worker.close()
            self._metrics.run_seconds.observe(time.monotonic() - began)

    async def _beat(self, lease: Lease) -> None:
        """Renew the lease until it is lost."""
        while True:
            await asyncio.sleep(self._setting.heartbeat_s)
            with contextlib.suppress(ManaError):
                if not await self._store.renew(lease, lease_s=self._setting.lease_s):
                    return

    async def _talk(self, admitted: _Admitted, worker: Worker, stats: TickStats) -> None:
        channel = worker.channel
        await channel.send(Setup(self._setting.hub_key(), self._setting.model))
        await channel.send(admitted.key)
        await channel.send(admitted.standing)
        await channel.send(admitted.job)
        while True:
            message = await channel.receive()
            match message:
                case AuditAsk():
                    await channel.send(await self._audit(admitted, message))
                    if message.checked:
                        self._fail("after_audit")
                case ReserveAsk():
                    await channel.send(await self._reserve(admitted, message))
                case SettleAsk():
                    await channel.send(await self._settle(admitted, message))
                case PhaseNote(_, name) if name in _PHASES:
                    await self._store.phase(admitted.lease, name)
                    self._fail(name)
                case Finished():
                    await self._finish(admitted, message, stats)
                    return
                case Stopped():
                    await self._stop(admitted, message, stats)
                    return
                case _:
                    raise WorkerLost("the worker said something else")

    async def _audit(self, admitted: _Admitted, ask: AuditAsk) -> Message:
        """Commit the rows, if grant, role and fence stand in the same transaction."""
        lease, job = admitted.lease, admitted.job
        header = gates.read_header(job.grant.header)
        refusal: str | None = None
        entries = ask.entries
        if any(entry.reason is not None and entry.reason not in _SKIPS for entry in entries):
            raise WorkerLost("the worker gave a reason that is not a documented word")
        async with self._store.work(lease.account_id) as ledger:
            if not await ledger.holds(lease):
                raise WorkerLost("the lease is another's by now")
            if ask.checked:
                grant = await ledger.latest_grant(lease.space_id, lease.mission_id, lock=True)
                if grant is None or grant.grant_id != header.grant_id:
                    refusal = "revoked"
                else:
                    refusal = self._grant_refusal(grant) or gates.register_refusal(grant, header)
                    if grant.header != job.grant.header:
                        refusal = "scope-mismatch"
                if refusal is None:
                    role = await ledger.role(lease.space_id, lease.account_id)
                    refusal = None if role not in (None, "viewer") else "not-a-member"
            if refusal is not None:
                status = "revoked" if refusal == "revoked" else "failed"
                entries = [
                    _refused_entry(entry, status=status, reason=refusal) for entry in entries
                ]
            try:
                seq, head = await audit.append(
                    ledger,
                    lease.account_id,
                    entries,
                    mission_id=lease.mission_id,
                    iteration_id=iteration_id(lease.mission_id, job.scheduled_for),
                    grant_id=header.grant_id,
                    endpoint=ask.endpoint,
                    runner_key_id=admitted.runner_key_id,
                    known=self._setting.memory.head(lease.account_id),
                )
            except audit.AuditSetBack:
                _log.error("audit_set_back", account=lease.account_id)
                return Refused(_RUN, "set-back")
        # The worker hears of it when the runner could not be talked out of it any more.
        await self._setting.memory.saw(
            lease.account_id,
            space_id=lease.space_id,
            mission_id=lease.mission_id,
            named_at=admitted.named_at,
            head=(seq, head),
        )
        for entry in entries:
            if entry.status == "scope-violation":
                self._metrics.scope_violations.labels(entry.table_name).inc()
        return AuditDone(_RUN, seq, head) if refusal is None else Refused(_RUN, refusal)

    async def _reserve(self, admitted: _Admitted, ask: ReserveAsk) -> Message:
        """Commit a reservation as far as the agent's day holds it, or refuse."""
        lease, agent_id = admitted.lease, admitted.agent.agent_id
        if not is_sane(ask.prompt_tokens, ask.completion_tokens_max):
            raise WorkerLost("the worker asked for what cannot be a number of tokens")
        async with self._store.work(lease.account_id) as ledger:
            if not await ledger.holds(lease):
                raise WorkerLost("the lease is another's by now")
            await ledger.lock_agent(lease.space_id, agent_id)
            agent = await ledger.agent(lease.space_id, agent_id)
            cap = None if agent is None else agent.tokens_per_day_max
            spent = await ledger.spent(lease.space_id, agent_id)
            try:
                granted = fitting(
                    ask.prompt_tokens, ask.completion_tokens_max, cap=cap, counted=spent
                )
            except BudgetExceeded as error:
                return Refused(_RUN, budget_reason(error.left, error.cap))
            reservation = await ledger.reserve(lease, agent_id, ask.prompt_tokens + granted)
            return Granted(_RUN, reservation, granted)

    async def _settle(self, admitted: _Admitted, ask: SettleAsk) -> Message:
        prompt, completion = ask.prompt_tokens, ask.completion_tokens
        # What cannot be true leaves the reservation, which counts in full.
        if prompt is not None and completion is not None and is_sane(prompt, completion):
            async with self._store.work(admitted.lease.account_id) as ledger:
                await ledger.settle(ask.reservation, prompt, completion)
            self._metrics.tokens.inc(prompt + completion)
        return Granted(_RUN, ask.reservation)

    async def _finish(self, admitted: _Admitted, done: Finished, stats: TickStats) -> None:
        """Write iteration, steps, ledger and next occurrence, all or nothing."""
        lease = admitted.lease
        _check_written(admitted, done)
        stats.plans_produced += 1
        self._metrics.plans_produced.inc()
        try:
            written = await self._store.again(lambda: self._commit(admitted, done))
        except ChangesRefused as error:
            await self._refused(lease, error.refusal, done.iteration_id, stats)
            return
        if not written:
            return
        self._fail("after_commit")
        stats.plans_written_back += 1
        metrics = self._metrics
        metrics.plans_written_back.inc()
        metrics.decisions.labels("ran").inc()
        metrics.rounds.observe(done.counts.rounds)
        for table, number in done.counts.opened.items():
            metrics.decrypts.labels(table).inc(number)
        for call, number in done.counts.calls.items():
            tool, _, policy = call.partition(":")
            metrics.tool_calls.labels(tool, policy, "deferred").inc(number)

    async def _commit(self, admitted: _Admitted, done: Finished) -> bool:
        """Write it in one transaction; False if another runner has the occurrence by now."""
        lease = admitted.lease
        async with self._store.work(lease.account_id) as ledger:
            if not await ledger.holds(lease):
                return False
            # The log's head is locked before the mission, as a push does, so that neither waits
            # for the other.
            await self._append(
                ledger.tx,
                lease.account_id,
                lease.space_id,
                done.changes,
                key_id=admitted.runner_key_id,
                now_ms=await ledger.now_ms(),
            )
            await self._end(ledger, lease, "done", None, iteration=done.iteration_id)
            self._fail("before_commit")
        return True

    async def _refused(self, lease: Lease, refusal: str, iteration: str, stats: TickStats) -> None:
        """End a run whose result the log did not take."""
        async with self._store.work(lease.account_id) as ledger:
            if refusal == "immutable":
                # A device ran this very occurrence before: the first iteration counts.
                await self._end(ledger, lease, "done", None, iteration=iteration)
            elif refusal in ("stale-key", "role"):
                reason = "key-rotated" if refusal == "stale-key" else "not-a-member"
                await self._skip(ledger, lease, reason)
            elif await self._end(ledger, lease, "failed", "internal"):
                stats.fail(lease, refusal)
                self._metrics.mission_errors.inc()

    async def _stop(self, admitted: _Admitted, stopped: Stopped, stats: TickStats) -> None:
        """End a run without an iteration."""
        lease = admitted.lease
        reason = stopped.reason if stopped.reason in _FAILURES else "internal"
        async with self._store.work(lease.account_id) as ledger:
            if stopped.outcome == "skipped" and _word(stopped.reason) in _SKIPS:
                await self._skip(ledger, lease, stopped.reason)
                return
            if await self._end(ledger, lease, "failed", reason):
                stats.fail(lease, reason)
        if reason in FAILURE_KINDS:
            stats.parse_failures += 1
            self._metrics.parse_failures.inc()
            kind = stopped.detail if stopped.detail in FAILURE_KINDS else "other"
            self._metrics.provider_errors.labels(
                "rules" if not self._setting.model.url else "openai", kind
            ).inc()
        else:
            self._metrics.mission_errors.inc()

    async def _skip(self, ledger: Ledger, lease: Lease, reason: str) -> None:
        """End an occurrence that a gate refused."""
        if await self._end(ledger, lease, "skipped", reason):
            if reason in _GRANT_REASONS:
                self._metrics.grant_skips.labels(reason).inc()
            else:
                self._metrics.decisions.labels(f"skipped-{_word(reason)}").inc()

    async def _end(
        self,
        ledger: Ledger,
        lease: Lease,
        state: str,
        reason: str | None,
        *,
        iteration: str | None = None,
    ) -> bool:
        """End the occurrence and schedule what follows, if the fence is current."""
        mission = await ledger.mission(
            SpaceId(lease.space_id), MissionId(lease.mission_id), lock=True
        )
        if not await ledger.end(lease, state, reason=reason, iteration_id=iteration):
            return False
        await scheduling.after_run(
            ledger, mission, lease.scheduled_ms, reason if reason in HOLDING else None
        )
        return True

    def _fail(self, point: str) -> None:
        """End this process and its workers where a test wants it."""
        if self._setting.fail_point == point:
            for worker in self._active.values():
                worker.kill()
            self._setting.fail()


def _check_written(admitted: _Admitted, done: Finished) -> None:
    """Raise WorkerLost unless a worker wrote its own iteration and steps, and nothing else.

    A worker has read text that may be an attacker's; what it hands back is not believed.
    """
    lease = admitted.lease
    iteration = iteration_id(lease.mission_id, admitted.job.scheduled_for)
    first, *steps = [(change.table, change.id) for change in done.changes] or [("", "")]
    is_own = (
        done.iteration_id == iteration
        and first == (ITERATIONS.name, iteration)
        and steps == [(STEPS.name, step_id(iteration, place)) for place in range(len(steps))]
        and all(
            change.author_id == lease.account_id
            and change.actor.get("missionId") == lease.mission_id
            and change.actor.get("iterationId") == iteration
            and change.actor.get("principalId") == admitted.agent.agent_id
            for change in done.changes
        )
    )
    if not is_own:
        raise WorkerLost("the worker wrote something that is not its run's")


def _named_at(mission_id: str, records: Sequence[StateRecord]) -> str:
    """Return the stamp at which the mission's record named its grant; empty if it names none."""
    for record in records:
        if (record.table, record.id) == (MISSIONS.name, mission_id):
            entry = record.fields.get("grantId")
            return "" if entry is None else entry.at
    return ""


def _word(reason: str) -> str:
    """Return a reason without the numbers that the one of budgets may have."""
    return "budget" if read_budget_reason(reason) is not None else reason


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


def _refused_entry(entry: AuditEntry, *, status: str, reason: str) -> AuditEntry:
    """Return the entry as it is noted when it may not be opened."""
    return AuditEntry(entry.table_name, entry.record_id, status, reason)


_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
