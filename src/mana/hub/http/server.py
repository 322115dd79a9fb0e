"""Endpoints behind Litestar: decoding, log-in, problem documents, the access log.

Every error leaves as a problem document, those of the framework included. The log names the
route, not the address that was asked for: paths hold ids and queries hold cursors.

The routes are made once for a process and its sets of paths: each request brings along what it is
answered with.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import structlog
from litestar import Litestar, Request
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response, Stream
from litestar.types import ASGIApp, Receive, Scope, Send

from mana.domain.errors import Invalid, TooLarge, Unauthenticated
from mana.hub.http.endpoints import Call, Document, Endpoint, EventStream, Session
from mana.hub.http.problems import problem_for
from mana.hub.http.sockets import Run, Socket, serve_socket
from mana.protocol.codec import decode, encode
from mana.protocol.problems import MEDIA_TYPE

Authenticate: TypeAlias = Callable[[str], Session]
"""From an access token to its session; raises Unauthenticated."""
Admit: TypeAlias = Callable[[Session], Awaitable[None]]
"""Raises Unauthenticated for a session that has ended before its token."""
Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]
"""What is open while the application runs."""

BROUGHT: Final = "mana.brought"
ROUTE: Final = "mana.route"
_HEADERS: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_LOG: Final = structlog.get_logger("mana.hub")


def serve_endpoints(
    endpoints: Sequence[Endpoint],
    *,
    authenticate: Authenticate,
    lifespan: Lifespan,
    admit: Admit | None = None,
    sockets: Mapping[str, Run] | None = None,
    served: str = "hub",
) -> ASGIApp:
    """Return the ASGI application. `served` is the name of the process in the log.

    `admit`: asked about each session; without it a token counts until it expires. `sockets`: by
    path, what a WebSocket to it is served by.
    """
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routing = _routing(tuple(_Path.of(methods) for methods in paths.values()))
    brought = _Brought(paths, authenticate, admit)
    return _logged(routing, brought, lifespan, dict(sockets or {}), served)


@dataclass(frozen=True, slots=True)
class _Brought:
    """What answers the requests of one application."""

    paths: Mapping[str, Mapping[str, Endpoint]]
    authenticate: Authenticate
    admit: Admit | None


@dataclass(frozen=True, slots=True)
class _Path:
    """What the framework knows of one path."""

    path: str
    parameters: tuple[str, ...]
    methods: tuple[str, ...]
    bytes_max: int

    @classmethod
    def of(cls, methods: Mapping[str, Endpoint]) -> _Path:
        first = next(iter(methods.values()))
        bytes_max = max(endpoint.bytes_max for endpoint in methods.values())
        return cls(first.path, tuple(first.parameters), tuple(methods), bytes_max)


@functools.cache
def _routing(paths: tuple[_Path, ...]) -> Litestar:
    """Return the framework's application for these paths; it keeps nothing of any request."""
    return Litestar(
        route_handlers=[_handler(path) for path in paths],
        exception_handlers={HTTPException: _failed, Exception: _failed},
        openapi_config=None,
        # The framework would set up the root logger, and with it what libraries say of URLs.
        logging_config=None,
        request_max_body_size=max(path.bytes_max for path in paths),
        debug=False,
    )


def _handler(served: _Path) -> HTTPRouteHandler:
    """Return the handler of one path, so that the framework knows all of its methods."""

    async def handle(request: Request[Any, Any, Any]) -> Response[Any]:
        state: dict[str, Any] = request.scope["state"]
        brought: _Brought = state[BROUGHT]
        endpoint = brought.paths[served.path][str(request.method)]
        state[ROUTE] = endpoint.path
        call = await _call(request, endpoint, brought)
        reply = await endpoint.run(call)
        if isinstance(reply, EventStream):
            return Stream(
                reply.events,
                status_code=endpoint.status,
                media_type="text/event-stream",
                headers={**_HEADERS, "x-accel-buffering": "no"},
            )
        if isinstance(reply, Document):
            body, media_type = reply.body, reply.media_type
        else:
            body = b"" if reply is None else encode(reply)
            media_type = endpoint.media_type
        return Response(body, status_code=endpoint.status, media_type=media_type, headers=_HEADERS)

    # As types and not as texts, which the framework would compile again for every path.
    handle.__annotations__ = {"request": Request[Any, Any, Any], "return": Response[Any]}
    path = served.path
    for name in served.parameters:
        path = path.replace(f"{{{name}}}", f"{{{name}:str}}")
    return HTTPRouteHandler(
        path,
        http_method=[HttpMethod(method) for method in served.methods],
        status_code=200,  # each response brings its own; the framework checks this one
        request_max_body_size=served.bytes_max,
        include_in_schema=False,
        name=served.path,
    )(handle)


async def _call(
    request: Request[Any, Any, Any],
    endpoint: Endpoint,
    brought: _Brought,
) -> Call:
    session = None
    if endpoint.signed_in:
        session = brought.authenticate(_bearer(request.headers.get("authorization")))
        if brought.admit is not None:
            await brought.admit(session)
    asked = request.query_params
    known = {query.name for query in endpoint.query}
    if not set(asked) <= known:
        raise Invalid("the query string names something that this path does not know")
    query = {query.name: query.parse(_once(asked, query.name)) for query in endpoint.query}
    body = None
    if endpoint.body is not None:
        raw = await request.body()
        if len(raw) > endpoint.bytes_max:
            raise TooLarge(
                "the body is larger than this path takes", detail={"bytesMax": endpoint.bytes_max}
            )
        body = decode(raw, endpoint.body)
    headers = {
        name: value for name in endpoint.headers if (value := request.headers.get(name)) is not None
    }
    path = {name: str(request.path_params[name]) for name in endpoint.parameters}
    return Call(path, query, body, session, headers)


def _once(asked: Any, name: str) -> str | None:
    values: list[str] = asked.getall(name, [])
    if len(values) > 1:
        raise Invalid(f"query {name} is given twice")
    return values[0] if values else None


def _bearer(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("no access token")
    return token.strip()


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    status = error.status_code if isinstance(error, HTTPException) else None
    problem = problem_for(error, status=status)
    if problem.status == 500:
        # The class and place only: a message of a library may quote a value.
        _LOG.error("failed", error=type(error).__name__, at=_place(error))
    headers = dict(_HEADERS)
    wait_s = problem.detail.get("retryAfterS")
    if isinstance(wait_s, int):
        headers["retry-after"] = str(wait_s)
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    allow = _allowed(error)
    if allow:
        headers["allow"] = allow
    return Response(
        encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )


def _allowed(error: Exception) -> str:
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    return next((value for name, value in headers.items() if name.lower() == "allow"), "")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"


def _logged(
    app: ASGIApp, brought: _Brought, lifespan: Lifespan, sockets: Mapping[str, Run], served: str
) -> ASGIApp:
    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        kind = str(scope["type"])
        if kind == "lifespan":
            await _live(lifespan, receive, send)
            return
        started = time.perf_counter()
        status: int | None = 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        socket: Socket | None = None
        route = "-"
        try:
            if kind == "websocket":
                run = sockets.get(str(scope["path"]))
                route = str(scope["path"]) if run is not None else route
                socket = Socket(scope, receive, send)
                await serve_socket(socket, run)
            else:
                scope.setdefault("state", {})[BROUGHT] = brought
                await app(scope, receive, sending)
        finally:
            if socket is not None:
                status = socket.closed_with
            _LOG.info(
                "request",
                served=served,
                method=str(scope.get("method", "SOCKET")),
                route=scope.get("state", {}).get(ROUTE, route),
                status=status,
                ms=round((time.perf_counter() - started) * 1_000, 1),
            )

    return logged


async def _live(lifespan: Lifespan, receive: Any, send: Any) -> None:
    """Be open as the server asks; where that fails, the server hears it as the error it is."""
    await receive()
    async with lifespan():
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
