"""The real hub over PostgreSQL as the simulator's other back end.

It runs in a thread with a loop of its own, because a database does not live in virtual time; the
simulated world stands still while it answers. A run against it must go exactly as one against the
hub in memory: that is what makes the latter worth anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from unittest.mock import patch

import httpx

from mana.crypto.passwords import HashCost
from mana.hub import app
from mana.hub.settings import HubSettings
from mana.registry.catalogue import Catalogue
from mana.testing.accounts import CHEAP
from mana.testing.postgres import Database
from mana.testing.simulator.hub import Limits
from mana.testing.simulator.network import Backend, HubAnswer, HubRequest

_T = TypeVar("_T")
_PATIENCE_S: Final = 60.0


class RealHub:
    """A hub in a thread."""

    def __init__(self, catalogue: Catalogue, now_ms: Callable[[], int]) -> None:
        self._catalogue = catalogue
        self._now_ms = now_ms
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._stack = AsyncExitStack()
        self._http: httpx.AsyncClient | None = None

    def start(self, database: Database, home: Path) -> None:
        """Open the hub on a database."""
        self._thread.start()
        self._wait(self._open(database, home))

    def stop(self) -> None:
        """Close the hub, and end its thread."""
        self._wait(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def handle(self, request: HubRequest, *, crash: bool = False) -> HubAnswer | None:
        """Answer a request; with `crash` it died before, so that nothing was written."""
        return None if crash else self._wait(self._ask(request))

    async def _open(self, database: Database, home: Path) -> None:
        settings = HubSettings(
            home=home,
            database_url=database.app_url,
            kdf_floor=CHEAP,
            hash_cost=HashCost(t=1, m_kib=8, p=1),
            pool_size=2,
        )
        with patch.object(app, "load_catalogue", lambda: self._catalogue):
            hub = app.build(settings, clock=self._now_ms)
        await self._stack.enter_async_context(hub.opened())
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=cast(Any, hub.asgi)), base_url="http://hub.test"
        )
        self._http = await self._stack.enter_async_context(client)

    async def _ask(self, request: HubRequest) -> HubAnswer:
        assert self._http is not None
        headers = {"content-type": "application/json"} if request.body else {}
        if request.token:
            headers["authorization"] = f"Bearer {request.token}"
        answer = await self._http.request(
            request.method, request.target, content=request.body or None, headers=headers
        )
        return HubAnswer(answer.status_code, answer.content)

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)


@contextmanager
def real_hubs(
    database: Database, home: Path
) -> Iterator[Callable[[Catalogue, Callable[[], int], Limits], Backend]]:
    """Lend what `simulate` takes as `backend_of`; the hub is stopped at the end."""
    started: list[RealHub] = []

    def backend_of(catalogue: Catalogue, now_ms: Callable[[], int], _limits: Limits) -> Backend:
        hub = RealHub(catalogue, now_ms)
        hub.start(database, home)
        started.append(hub)
        return hub

    try:
        yield backend_of
    finally:
        for hub in started:
            hub.stop()
