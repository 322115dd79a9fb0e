"""The runner's HTTP surface (docs/protocol/grants.md, 7): health, figures, a tick, the audit."""

from __future__ import annotations

import hmac
import importlib.metadata
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import msgspec

from mana.domain.errors import ManaError, Unauthenticated
from mana.domain.ids import require_uuid
from mana.hub.http.endpoints import Call, Document, Endpoint, Reply
from mana.hub.http.problems import status_of
from mana.hub.runner.audit import AUDIT_QUERY, answer
from mana.hub.runner.metrics import CONTENT_TYPE, Metrics
from mana.hub.runner.scheduler import Scheduler
from mana.hub.runner.store import RunnerStore
from mana.protocol.messages import Answer, AuditAnswer, MissionStatus

SERVICE_HEADER: Final = "x-service-key"
RUNS_SHOWN: Final = 5


class TickHealth(msgspec.Struct, frozen=True):
    """Whether the runner ticks by itself, and whether a pass is under way."""

    enabled: bool
    running: bool


class RunnerHealth(msgspec.Struct, frozen=True):
    """The answer of `/health`."""

    ok: bool
    service: str
    version: str
    tick: TickHealth


class TickAnswer(Answer, frozen=True):
    """What one pass over what is due came to."""

    scanned_at: str
    due_mission_count: int
    plans_produced: int
    plans_written_back: int
    parse_failures: int
    errors: list[str]


class RunState(Answer, frozen=True):
    """One line of a ledger, for operators: when, and how it ended."""

    scheduled_for: str
    kind: str
    state: str
    reason: str | None
    started_at: str | None
    finished_at: str | None


class MissionState(Answer, frozen=True):
    """Where a mission stands, for operators: its id, states and times."""

    mission_id: str
    next_run_at: str | None
    hold: str | None
    failures: int
    failure: str | None
    runs: list[RunState]


class MissionStates(Answer, frozen=True):
    """The missions of one account."""

    missions: list[MissionState]


def runner_endpoints(
    store: RunnerStore,
    scheduler: Scheduler,
    metrics: Metrics,
    *,
    service_key: str,
    tick_enabled: bool,
) -> tuple[Endpoint, ...]:
    """Return the endpoints of a runner, each counted and timed."""
    try:
        version = importlib.metadata.version("mana")
    except importlib.metadata.PackageNotFoundError:
        version = "0"  # run from its sources, as tests may

    async def health(_call: Call) -> Reply:
        tick = TickHealth(enabled=tick_enabled, running=tick_enabled)
        return RunnerHealth(ok=True, service="mana-ai", version=version, tick=tick)

    async def figures(_call: Call) -> Reply:
        return Document(metrics.text(), CONTENT_TYPE)

    def require_service(call: Call) -> None:
        given = call.headers.get(SERVICE_HEADER, "").encode("utf-8")
        if not hmac.compare_digest(given, service_key.encode("utf-8")):
            raise Unauthenticated("the service key is missing or wrong")

    async def missions(call: Call) -> Reply:
        require_service(call)
        account = require_uuid(call.path["userId"], "account id")
        async with store.work(account) as ledger:
            return MissionStates(
                missions=[_mission_state(one) for one in await ledger.statuses(RUNS_SHOWN)]
            )

    async def tick(call: Call) -> Reply:
        require_service(call)
        stats = await scheduler.tick()
        return TickAnswer(
            scanned_at=stats.scanned_at,
            due_mission_count=stats.due_mission_count,
            plans_produced=stats.plans_produced,
            plans_written_back=stats.plans_written_back,
            parse_failures=stats.parse_failures,
            errors=stats.errors,
        )

    async def audit(call: Call) -> Reply:
        account = call.session.account
        async with store.work(account) as ledger:
            return await answer(ledger, account, call)

    endpoints = (
        Endpoint("GET", "/health", health, "Is it up", answer=RunnerHealth, signed_in=False),
        Endpoint("GET", "/metrics", figures, "Figures", signed_in=False, media_type=CONTENT_TYPE),
        Endpoint(
            "POST",
            "/internal/tick",
            tick,
            "Work on what is due, now",
            answer=TickAnswer,
            signed_in=False,
            headers=(SERVICE_HEADER,),
        ),
        Endpoint(
            "GET",
            "/internal/missions/{userId}",
            missions,
            "Where the missions of an account stand: states and times",
            answer=MissionStates,
            signed_in=False,
            headers=(SERVICE_HEADER,),
        ),
        Endpoint(
            "GET",
            "/api/v1/me/ai-audit",
            audit,
            "What the runner has opened",
            answer=AuditAnswer,
            query=AUDIT_QUERY,
        ),
    )
    return tuple(_counted(endpoint, metrics) for endpoint in endpoints)


def _mission_state(status: MissionStatus) -> MissionState:
    return MissionState(
        mission_id=status.mission_id,
        next_run_at=status.next_run_at,
        hold=status.hold,
        failures=status.failures,
        failure=status.failure,
        runs=[
            RunState(
                scheduled_for=run.scheduled_for,
                kind=run.kind,
                state=run.state,
                reason=run.reason,
                started_at=run.started_at,
                finished_at=run.finished_at,
            )
            for run in status.occurrences
        ],
    )


def _counted(endpoint: Endpoint, metrics: Metrics) -> Endpoint:
    """Return the endpoint with its requests counted by route, never by the address asked for."""
    run: Callable[[Call], Awaitable[Reply]] = endpoint.run

    async def counted(call: Call) -> Reply:
        began = time.monotonic()
        status = 500
        try:
            reply = await run(call)
            status = endpoint.status
            return reply
        except ManaError as error:
            status = status_of(error)
            raise
        finally:
            labels = (endpoint.method, endpoint.path, str(status))
            metrics.http_requests.labels(*labels).inc()
            metrics.http_seconds.labels(*labels).observe(time.monotonic() - began)

    return replace(endpoint, run=counted)
