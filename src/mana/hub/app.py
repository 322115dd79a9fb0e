"""The hub, wired: the one place where stores, services and endpoints meet.

`build` opens nothing; entering the application's lifespan does. Tests call it too, with a
throw-away database.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
import uvicorn
from litestar.types import ASGIApp

from mana.crypto.work import hub_id
from mana.domain.errors import ManaError
from mana.domain.ids import SpaceId
from mana.hub.accounts.routes import account_routes
from mana.hub.accounts.service import REFRESH_LIFE_MS, AccountService
from mana.hub.accounts.store import AccountStore, require_proof
from mana.hub.db import Pool, Role, Tenancy
from mana.hub.factors.passkeys import RelyingParty
from mana.hub.factors.routes import factor_routes
from mana.hub.factors.service import FactorService, factor_key
from mana.hub.factors.store import FactorStore
from mana.hub.grants.routes import grants_endpoints
from mana.hub.grants.service import GrantService, RunnerKeyFile
from mana.hub.grants.store import GrantStore
from mana.hub.http.endpoints import Call, Document, Endpoint, Reply
from mana.hub.http.openapi import openapi
from mana.hub.http.server import serve_endpoints
from mana.hub.invitations.routes import invitation_routes
from mana.hub.invitations.service import InvitationService
from mana.hub.invitations.store import InvitationStore
from mana.hub.letters.post import Post, Send
from mana.hub.letters.routes import letter_routes
from mana.hub.letters.service import LetterService, letters_key
from mana.hub.letters.store import CHANNEL as LETTERS
from mana.hub.letters.store import LetterStore
from mana.hub.links.routes import link_routes
from mana.hub.links.service import LinkService
from mana.hub.links.store import LinkStore
from mana.hub.money.routes import money_routes
from mana.hub.money.service import MoneyService
from mana.hub.money.store import MoneyStore
from mana.hub.operating.service import Operator
from mana.hub.operating.store import KekStore, WorkLimitStore
from mana.hub.runner.keys import PUBLIC_FILE
from mana.hub.runner.projection import RunnerProjection
from mana.hub.secrets import HubSecrets, KekRing, load, load_or_create
from mana.hub.security.gate import SessionGate
from mana.hub.security.log import SecurityLog
from mana.hub.security.routes import security_routes
from mana.hub.security.service import SecurityService
from mana.hub.security.store import SecurityStore
from mana.hub.settings import HubSettings
from mana.hub.spaces.routes import space_routes
from mana.hub.spaces.service import SpaceService
from mana.hub.spaces.store import SpaceStore
from mana.hub.sweeping.store import OldRows
from mana.hub.sync.live import LiveHub, Subscribed
from mana.hub.sync.routes import SOCKET_PATH, sync_routes
from mana.hub.sync.service import SyncService
from mana.hub.sync.store import ChangeLog, SyncStore
from mana.hub.tenants import Tenant
from mana.hub.vaults.routes import vault_routes
from mana.hub.vaults.service import VaultService
from mana.hub.vaults.store import VaultStore
from mana.hub.work.routes import work_routes
from mana.hub.work.service import WorkService
from mana.hub.work.store import Place, WorkStore
from mana.models.choose import model_infos
from mana.protocol.codec import encode
from mana.registry.catalogue import load_catalogue

GARBAGE_OBJECTS: Final = 20_000
"""After how many more objects than before the collector looks for cycles among the new ones."""
DRAIN_S: Final = 2
"""How long a stopping server waits for requests that are under way."""
QUIET_S: Final = 0.5
"""How long it waits before that for live streams to say goodbye."""
SWEEP_S: Final = 60.0
"""How often it removes links and second factors that nobody finished."""
SOCKET_BYTES_MAX: Final = 16 * 1024
"""The largest message that a client may send; a token has 2 KiB at most."""
UNREAD_MS_MAX: Final = 60_000
"""How long a connection is kept whose other side takes nothing of what is sent."""
_LOG: Final = structlog.get_logger("mana.hub")


class Health(msgspec.Struct, frozen=True):
    """The answer of `/health`."""

    ok: bool
    service: str
    version: str


@dataclass(frozen=True, slots=True)
class Hub:
    """A wired hub. `asgi` runs under any server that speaks the lifespan protocol.

    `opened` is that lifespan, for a caller that drives the application without a server.
    """

    settings: HubSettings
    asgi: ASGIApp
    live: LiveHub
    endpoints: tuple[Endpoint, ...]
    opened: Callable[[], AbstractAsyncContextManager[None]]


def now_ms() -> int:
    """Return the milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def build(
    settings: HubSettings,
    *,
    clock: Callable[[], int] = now_ms,
    secrets: HubSecrets | None = None,
) -> Hub:
    """Wire the hub. `clock` and `secrets` are given by tests; the secrets are made on first use."""
    kept = secrets or load_or_create(settings.secrets_dir)
    keks = KekRing(lambda: secrets or load(settings.secrets_dir))
    tables = {table.name: table for table in load_catalogue().tables}
    pool = Pool(settings.database_url, role=Role.APP, size=settings.pool_size)
    tenancy = Tenancy(pool)
    log = ChangeLog(tables, projections=(RunnerProjection(),))
    store = SyncStore(tenancy, log)
    kept_security = SecurityStore(tenancy)
    security_log = SecurityLog(kept_security, now_ms=clock)
    gate = SessionGate(kept_security)
    factors = FactorService(
        FactorStore(tenancy, require_proof),
        security_log,
        factor_key(kept.salt),
        RelyingParty(settings.passkey_domain),
        now_ms=clock,
    )
    kept_accounts = AccountStore(tenancy, keks)
    accounts = AccountService(
        kept_accounts, kept, settings, log=security_log, factors=factors, now_ms=clock
    )
    vaults = VaultService(
        VaultStore(tenancy, keks),
        security_log,
        accounts.hash_login_key,
        floor=settings.kdf_floor,
        now_ms=clock,
    )

    links = LinkService(
        LinkStore(tenancy), kept_accounts, security_log, kept.salt, accounts.tokens, now_ms=clock
    )

    async def heads(tenant: Tenant) -> dict[SpaceId, int]:
        return await store.heads(tenant)

    live = LiveHub(
        heads,
        authenticate=accounts.authenticate,
        admit=gate.admit,
        now_ms=clock,
        heartbeat_s=settings.heartbeat_s,
        auth_s=settings.socket_auth_s,
    )
    security = SecurityService(
        kept_security, security_log, gate, life_ms=REFRESH_LIFE_MS, now_ms=clock
    )
    letters = LetterService(LetterStore(tenancy), letters_key(kept.salt), _post(settings))
    place = Place(settings.currency, hub_id(kept.grant_key.public()))
    endpoints = [
        *account_routes(accounts),
        *vault_routes(vaults),
        *security_routes(security, security_log),
        *factor_routes(factors),
        *link_routes(links),
        *space_routes(SpaceService(SpaceStore(tenancy), now_ms=clock)),
        *invitation_routes(InvitationService(InvitationStore(tenancy), now_ms=clock)),
        *sync_routes(SyncService(store, now_ms=clock), live),
        *letter_routes(letters),
        *grants_endpoints(_grants(settings, kept, tenancy, place)),
        *work_routes(WorkService(WorkStore(tenancy, place))),
        *money_routes(MoneyService(MoneyStore(tenancy), currency=settings.currency)),
    ]
    endpoints += _own_routes(endpoints)

    async def listen(channel: str, callback: Callable[[str], None]) -> Subscribed:
        def heard(payload: str) -> None:
            gate.notice(payload)
            callback(payload)

        subscription = await pool.listen(channel, heard)
        gate.follow(subscription)
        return subscription

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        async with pool:
            await live.start(listen)
            await pool.listen(LETTERS, letters.wake)
            aside = [
                asyncio.create_task(_sweep(links, OldRows(tenancy)), name="hub-sweep"),
                asyncio.create_task(letters.work(), name="hub-letters"),
            ]
            try:
                yield
            finally:
                letters.end()
                for task in aside:
                    task.cancel()
                await asyncio.gather(*aside, return_exceptions=True)
                await live.close()

    asgi = serve_endpoints(
        endpoints,
        authenticate=accounts.authenticate,
        lifespan=opened,
        admit=gate.admit,
        sockets={SOCKET_PATH: live.socket},
    )
    return Hub(settings, asgi, live, tuple(endpoints), opened)


def _post(settings: HubSettings) -> Send | None:
    """Return what sends letters, None where the operator set up none."""
    if not settings.smtp_url:
        return None
    return Post.from_url(settings.smtp_url, settings.smtp_from).send


async def _sweep(links: LinkService, old: OldRows) -> None:
    """Remove now and then what waited in vain, and what is old; what fails is tried again."""
    while True:
        for sweep in (links.sweep, old.sweep):
            try:
                await sweep()
            except ManaError as error:
                _LOG.warning("sweep failed", error=type(error).__name__)
        await asyncio.sleep(SWEEP_S)


@contextlib.asynccontextmanager
async def operator(
    settings: HubSettings, *, clock: Callable[[], int] = now_ms
) -> AsyncIterator[Operator]:
    """Lend what the operator does beside the hub; the hub may run meanwhile or not."""
    pool = Pool(settings.database_url, role=Role.APP, size=1)
    tenancy = Tenancy(pool)
    accounts = AccountStore(tenancy, KekRing(lambda: load(settings.secrets_dir)))
    async with pool:
        yield Operator(
            accounts,
            KekStore(tenancy),
            WorkLimitStore(tenancy),
            settings.secrets_dir,
            now_ms=clock,
        )


def _grants(
    settings: HubSettings, kept: HubSecrets, tenancy: Tenancy, place: Place
) -> GrantService:
    return GrantService(
        GrantStore(tenancy),
        RunnerKeyFile(settings.secrets_dir / PUBLIC_FILE, pem=settings.runner_public_pem),
        kept.grant_key,
        model_infos(settings.models),
        settings.models.own_models,
        place,
    )


def _own_routes(others: Sequence[Endpoint]) -> list[Endpoint]:
    try:
        version = importlib.metadata.version("mana")
    except importlib.metadata.PackageNotFoundError:
        version = "0"  # run from a source tree that was not installed

    @functools.cache
    def described() -> bytes:
        # Asked for by few, and it takes a third of the wiring: made when it is asked for.
        return encode(openapi([*others, *own], version=version))

    async def health(_call: Call) -> Reply:
        return Health(ok=True, service="mana-hub", version=version)

    async def document(_call: Call) -> Reply:
        return Document(described())

    own = [
        Endpoint("GET", "/health", health, "Is it up", answer=Health, signed_in=False),
        Endpoint("GET", "/api/v1/openapi.json", document, "This description", signed_in=False),
    ]
    return own


class _Server(uvicorn.Server):
    """Ends the live streams before it waits for connections, which would never end else."""

    def __init__(self, config: uvicorn.Config, live: LiveHub, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._live = live
        self._has_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._has_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._live.stop()
        await self._live.quiet(QUIET_S)
        await super().shutdown(sockets)


def settle_memory() -> None:
    """Let the collector pass over what was imported and wired; for a process that only serves.

    A batch of 500 makes some ten thousand objects that live for milliseconds; by the defaults
    the collector would look through all of the process again and again meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 10, 20)


async def serve(
    hub: Hub,
    *,
    host: str,
    port: int,
    ready: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`. Port 0 takes a free one; `ready` is told which.

    Raises OSError if the port is taken, before anything else is started.
    """
    listener = socket.create_server((host, port), reuse_port=False, backlog=512)
    # Accepted connections inherit both. An answer leaves in two writes, and would wait for the
    # other side's delayed acknowledgement of the first: 40 ms on each.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # One that is never read from does not stay for ever.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS_MAX)
    config = uvicorn.Config(
        hub.asgi,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        ws="websockets-sansio",
        ws_max_size=SOCKET_BYTES_MAX,
        ws_per_message_deflate=False,
    )
    bound = listener.getsockname()[1]
    server = _Server(config, hub.live, lambda: None if ready is None else ready(bound))

    async def watch(stopping: asyncio.Event) -> None:
        await stopping.wait()
        server.should_exit = True

    watching = asyncio.create_task(watch(stop or asyncio.Event()), name="hub-stop")
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        listener.close()
