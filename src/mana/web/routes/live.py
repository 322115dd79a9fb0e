"""One live stream per open page: what changed, so that the page asks for it again.

The stream carries topics and names of tables, never a text; the page then fetches what it
shows, through the same doors as ever.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Response, get
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.types import ControllerRouterHandler

from mana.device.views import Notice
from mana.domain.errors import ManaError
from mana.web.problems import SignedOut
from mana.web.visits import Visiting, Web

HEARTBEAT_S: Final = 15.0
RETRY_MS: Final = 2_000


@get("/live")
async def live(visit: Visiting) -> Response[object] | ServerSentEvent:
    """Stream notices; tell a browser without an open account to stop asking."""
    try:
        stream = visit.device.subscribe()
    except SignedOut:
        return Response(None, status_code=204)
    except ManaError as error:
        if error.code != "LOCKED":
            raise
        return Response(None, status_code=204)
    return ServerSentEvent(_messages(visit.web, stream))


@get("/here", status_code=204)
async def here() -> None:
    """Take note that a person types on an open page: that they ask says it."""


async def _messages(
    web: Web, stream: AsyncIterator[Notice]
) -> AsyncIterator[ServerSentEventMessage]:
    """Yield a message per notice, a heartbeat where none comes, and end with the server."""
    yield ServerSentEventMessage(event="hello", data="{}", retry=RETRY_MS)
    closing = asyncio.ensure_future(web.closing.wait())
    coming: asyncio.Future[Notice] | None = None
    try:
        while not web.closing.is_set():
            if coming is None:
                coming = asyncio.ensure_future(anext(stream))
            waited: set[asyncio.Future[Any]] = {coming, closing}
            await asyncio.wait(waited, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                return
            if not coming.done():
                yield ServerSentEventMessage(comment="still here")
                continue
            try:
                notice = coming.result()
            except (StopAsyncIteration, ManaError):
                yield ServerSentEventMessage(event="notice", data='{"topic":"lock","tables":[]}')
                return
            coming = None
            told = {"topic": notice.topic, "tables": sorted(notice.tables)}
            yield ServerSentEventMessage(event="notice", data=json.dumps(told))
    finally:
        closing.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (live, here)
