"""The runner, wired, and served as an operating-system process of its own.

`build` opens nothing; `Runner.open` connects, listens and begins to tick. `serve` adds the HTTP
surface and ends gently on SIGTERM: runs finish or are given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import uvicorn
from litestar.types import ASGIApp

from mana.crypto.primitives import b64
from mana.domain.errors import ManaError
from mana.domain.ids import AccountId, SpaceId
from mana.hub.accounts.tokens import TokenVerifier
from mana.hub.http.endpoints import Endpoint, Session
from mana.hub.http.server import serve_endpoints
from mana.hub.runner.isolation import forbid_dumps, kill_self
from mana.hub.runner.keys import RunnerKeys, load_service_key, runner_device_id
from mana.hub.runner.memory import RunnerMemory
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.routes import runner_endpoints
from mana.hub.runner.scheduler import Scheduler
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.shared import Setting
from mana.hub.runner.store import RunnerStore, Transaction
from mana.hub.runner.tracing import Tracing
from mana.hub.runner.workers import ProcessWorkers, Workers
from mana.hub.secrets import load_public_keys
from mana.hub.security.gate import SessionGate
from mana.hub.security.store import SecurityStore
from mana.hub.sync.store import ChangeLog
from mana.hub.sync.validate import Writer, WriterKind
from mana.protocol.messages import ChangeMessage
from mana.registry.catalogue import load_catalogue

DRAIN_S: Final = 8.0
CONNECTIONS_MAX: Final = 10
"""Runs share their transactions, so many of them need few; each one plans every statement anew."""
END_S: Final = 1.5
_log: Final = structlog.get_logger("mana.runner")


@dataclass(slots=True)
class Runner:
    """A wired runner. `open` before use; `asgi` answers its HTTP surface."""

    settings: RunnerSettings
    keys: RunnerKeys
    store: RunnerStore
    workers: Workers
    scheduler: Scheduler
    metrics: Metrics
    asgi: ASGIApp
    endpoints: tuple[Endpoint, ...]
    tracing: Tracing
    _ticking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, listen for what becomes due, and begin to tick if that is enabled."""
        await self.store.open()
        await self.workers.open()
        await self.store.listen(self.scheduler.wake)
        await self.store.listen_stops(self.scheduler.stop_soon)
        if self.settings.tick_enabled:
            self._ticking = asyncio.create_task(self._tick(), name="runner-tick")

    async def close(self) -> None:
        """Finish or give back what is under way, within ten seconds, and disconnect."""
        await self.scheduler.drain(seconds=DRAIN_S)
        task, self._ticking = self._ticking, None
        if task is not None:
            # It ends by itself after the pass; to cut a transaction off is for what is stuck.
            await asyncio.wait({task}, timeout=END_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.workers.close()
        await self.store.close()
        await asyncio.to_thread(self.tracing.close)

    async def _tick(self) -> None:
        interval_s = self.settings.tick_interval_ms / 1_000
        awake = self.scheduler.awake
        while not self.scheduler.is_draining:
            try:
                await self.scheduler.tick()
            except ManaError as error:
                _log.error("tick_failed", code=error.code)
                self.scheduler.broke_down()
            except Exception as error:
                # A defect must not end the runner; what a library says may quote a value.
                _log.error("tick_failed", kind=type(error).__name__)
                self.scheduler.broke_down()
            if not self.scheduler.is_draining:
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await awake.wait()


def build(
    settings: RunnerSettings, *, workers: Workers | None = None, tracing: Tracing | None = None
) -> Runner:
    """Wire the runner. `workers` is given by tests; the keys are made on first use."""
    tracing = tracing or Tracing()
    keys = RunnerKeys(settings)
    memory = RunnerMemory(settings)
    store = RunnerStore.at(settings.database_url, size=CONNECTIONS_MAX)
    metrics = Metrics()
    log = ChangeLog({table.name: table for table in load_catalogue().tables})

    async def append(
        tx: Transaction,
        account: AccountId,
        space: SpaceId,
        changes: Sequence[ChangeMessage],
        *,
        key_id: str,
        now_ms: int,
    ) -> list[str | None]:
        writer = Writer(WriterKind.RUNNER, account, runner_device_id(key_id), key_id)
        answer = await log.append(tx, space, writer, changes, now_ms=now_ms)
        return [
            (result.code or "") if result.status == "refused" else None for result in answer.results
        ]

    setting = Setting(
        name=f"{os.getpid()}-{uuid.uuid4().hex[:8]}",
        keys=keys,
        memory=memory,
        hub_key=lambda: b64(load_public_keys(settings.secrets_dir)[1].to_bytes()),
        models=settings.models,
        concurrency=settings.concurrency,
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        run_s_max=settings.run_s_max,
        fail_point=settings.fail_point,
        fail=kill_self,
    )
    made_by = workers or ProcessWorkers()
    scheduler = Scheduler(store, made_by, append, metrics, setting, tracing)
    endpoints = runner_endpoints(
        store,
        scheduler,
        metrics,
        service_key=load_service_key(settings),
        tick_enabled=settings.tick_enabled,
    )

    def authenticate(token: str) -> Session:
        # Read at each use: the hub may be started, or get new keys, after the runner.
        token_key, _ = load_public_keys(settings.secrets_dir)
        verifier = TokenVerifier(token_key, issuer=settings.issuer)
        return verifier.verify(token, now_ms=time.time_ns() // 1_000_000)

    runner: Runner

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        await runner.open()
        try:
            yield
        finally:
            await runner.close()

    asgi = serve_endpoints(
        endpoints,
        authenticate=authenticate,
        lifespan=opened,
        # It hears of no session that ends, so it looks each time.
        admit=SessionGate(SecurityStore(store.tenancy)).admit,
        served="runner",
    )
    runner = Runner(settings, keys, store, made_by, scheduler, metrics, asgi, endpoints, tracing)
    return runner


class _Server(uvicorn.Server):
    """Tells when it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._has_started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a wish to end, and end with success then."""
        loop = asyncio.get_running_loop()
        taken: list[signal.Signals] = []
        for name in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may; elsewhere whoever started this one ends it by `stop`.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(name, self._end)
                taken.append(name)
        try:
            yield
        finally:
            for name in taken:
                loop.remove_signal_handler(name)

    def _end(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._has_started()


async def serve(
    runner: Runner,
    *,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`. Port 0 takes a free one; `ready` is told which.

    Raises OSError if the port is taken, before anything else is started.
    """
    forbid_dumps()
    settings = runner.settings
    listener = socket.create_server(
        (host or settings.host, settings.port if port is None else port), backlog=128
    )
    bound = listener.getsockname()[1]
    config = uvicorn.Config(
        runner.asgi,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    server = _Server(config, lambda: None if ready is None else ready(bound))

    async def watch(stopping: asyncio.Event) -> None:
        await stopping.wait()
        server.should_exit = True

    watching = asyncio.create_task(watch(stop or asyncio.Event()), name="runner-stop")
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        listener.close()
