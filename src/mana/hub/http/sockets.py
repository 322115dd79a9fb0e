"""WebSockets behind the same edge: who may open one, and text in both directions.

A page of another host must not be able to open one with what a browser adds by itself, so an
`Origin` that is not this hub's is refused before anything is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from mana.domain.errors import Forbidden, ManaError, NotFound, Unauthenticated
from mana.hub.http.problems import problem_for
from mana.protocol.codec import encode
from mana.protocol.problems import MEDIA_TYPE

DONE: Final = 1000
BROKEN_RULE: Final = 1008
TRY_LATER: Final = 1013
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}

Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]


class SocketGone(Exception):
    """The other side closed the connection, or it broke."""


class NotText(Exception):
    """The other side sent bytes where this hub takes text."""


class Socket:
    """One connection: `accept` or `refuse`, then text until `close`."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_accepted = False
        self.closed_with: int | None = None

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, None if it is absent."""
        wanted = name.lower().encode("ascii")
        for key, value in self._scope.get("headers", ()):
            if bytes(key).lower() == wanted:
                return bytes(value).decode("latin-1")
        return None

    async def accept(self) -> None:
        """Open the connection."""
        await self._receive()  # the request itself, which says nothing more
        self._is_accepted = True
        await self._say({"type": "websocket.accept"})

    async def text(self) -> str:
        """Return the next message; raise SocketGone, or NotText for bytes."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.closed_with = message.get("code", self.closed_with)
            raise SocketGone
        text = message.get("text")
        if not isinstance(text, str):
            raise NotText
        return text

    async def say(self, text: str) -> None:
        """Send a message; waits while the other side does not read. Raises SocketGone."""
        await self._say({"type": "websocket.send", "text": text})

    async def close(self, code: int) -> None:
        """End the connection; one that is gone stays so."""
        if self.closed_with is None:
            self.closed_with = code
            try:
                await self._say({"type": "websocket.close", "code": code})
            except SocketGone:
                return

    async def refuse(self, error: Exception) -> None:
        """Answer the request with a problem document, or end what was accepted already."""
        if self._is_accepted:
            await self.close(BROKEN_RULE if isinstance(error, ManaError) else 1011)
            return
        problem = problem_for(error)
        self.closed_with = problem.status
        if "websocket.http.response" not in self._scope.get("extensions", {}):
            await self._say({"type": "websocket.close", "code": BROKEN_RULE})
            return
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store")]
        start = {"type": "websocket.http.response.start", "status": problem.status}
        await self._say({**start, "headers": headers})
        await self._say({"type": "websocket.http.response.body", "body": encode(problem)})

    async def _say(self, message: Mapping[str, Any]) -> None:
        try:
            await self._send(message)
        except Exception as error:
            # Each server has an exception of its own for a connection that is gone.
            raise SocketGone from error


Run: TypeAlias = Callable[[Socket], Awaitable[None]]
"""What a connection to one path is served by."""


async def serve_socket(socket: Socket, run: Run | None) -> None:
    """Serve one connection from its request to its end."""
    try:
        if run is None:
            raise NotFound("there is no such path")
        _require_own_page(socket.header("origin"), socket.header("host"))
        await run(socket)
    except SocketGone:
        return
    except ManaError as error:
        await socket.refuse(error)


def token_of(socket: Socket) -> str | None:
    """Return the access token of the request, None without one; raise Unauthenticated."""
    header = socket.header("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("no access token")
    return token.strip()


def _require_own_page(origin: str | None, host: str | None) -> None:
    """Raise Forbidden for a page of another host; what is no browser names no origin."""
    if origin is None:
        return
    try:
        found = urlsplit(origin)
    except ValueError:
        raise Forbidden("a page of another host may not open this") from None
    port = _DEFAULT_PORTS.get(found.scheme, "")
    if (
        not host
        or not port
        or found.netloc.lower().removesuffix(port) != host.lower().removesuffix(port)
    ):
        raise Forbidden("a page of another host may not open this")
