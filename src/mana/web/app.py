"""The page as one ASGI application, and the server that shows it on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.routes import BaseRoute
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from mana.domain.errors import ManaError
from mana.web import doors, running, showing, words
from mana.web.places import within
from mana.web.problems import (
    ForeignHost,
    ForeignRequest,
    PortTaken,
    Problem,
    SignedOut,
    problem_of,
    problem_of_status,
)
from mana.web.routes import ROUTES
from mana.web.sessions import Session, Sessions
from mana.web.visits import HTML, REFRESH, Asked, Page, Visit, Web, now_ms

if TYPE_CHECKING:
    from mana.device.app import DeviceHost
    from mana.device.settings import DeviceSettings

HERE: Final = Path(__file__).parent
BODY_MAX: Final = 2 * 1024 * 1024
GRACE_S: Final = 3
STATIC: Final = "/static/"
EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - names to recognise, nothing is bound
LOCKED: Final = "LOCKED"
LIVE: Final = "/live"
NOT_OURS: Final = "this did not come from a page that is open here"
ENTRANCE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Mana</title>'
    '<meta http-equiv="refresh" content="0"><a href="">Mana</a></html>'
)
"""For whoever comes by another site's link, without the cookie: the same address, from here."""
_log: Final = logging.getLogger("mana.web")
Ready = Callable[[str], None]


class PageApp:
    """The page of one device host, as an ASGI application."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self._routing = _routing()

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """What is served, by path and method."""
        return self._routing.routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        scope.setdefault("state", {})["web"] = self.web
        await self._routing(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.web.closing.set()
        for task in list(self.web.work):
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})


def build(host: DeviceHost, settings: DeviceSettings) -> PageApp:
    """Wire the page of a device host; tests call this too, with a host of their own."""
    web = Web(host, Sessions(), _templates(), names_of(settings.host))
    host.on_lock(web.sessions.lock)
    return PageApp(web)


@functools.cache
def _routing() -> Litestar:
    """Return the routes, which know of no host either: each request brings its own along."""
    static = create_static_files_router(
        path=STATIC.rstrip("/"), directories=[HERE / "static"], name="static"
    )
    routes: list[ControllerRouterHandler] = [*ROUTES, static]

    async def provide_visit(request: Request[Any, Any, Any]) -> Visit:
        visit = Visit(request.state.web, request, request.state.session)
        if visit.at:
            # Also the account's own space of settings is none that has pages.
            await visit.place()
        return visit

    async def enter(request: Request[Any, Any, Any]) -> Page | None:
        return await _enter(request.state.web, request)

    def refuse(request: Request[Any, Any, Any], error: Exception) -> Page:
        return _refuse(request.state.web, request, error)

    return Litestar(
        routes,
        dependencies={"visit": Provide(provide_visit)},
        before_request=enter,
        after_request=_leave,
        exception_handlers={Exception: refuse, HTTPException: refuse, ManaError: refuse},
        openapi_config=None,
        request_max_body_size=BODY_MAX,
        logging_config=None,
        debug=False,
    )


@functools.cache
def _templates() -> Environment:
    """Return the templates, which know of no host: to compile them takes longer than to fill them."""
    templates = Environment(
        loader=PackageLoader("mana.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    showing.equip(templates)
    running.equip(templates)
    return templates


def names_of(host: str) -> frozenset[str]:
    """Return the names beside loopback by which the page may be asked for."""
    return frozenset() if host in EVERYWHERE else frozenset({host.lower()})


async def _enter(web: Web, request: Asked) -> Page | None:
    """Refuse what is not ours, and find the browser's session; static files need neither."""
    host = request.headers.get("host", "")
    if not doors.is_ours(host, web.names):
        raise ForeignHost("this address is not one of this device")
    if request.url.path.startswith(STATIC):
        return None
    posts = request.method not in ("GET", "HEAD")
    fetched_from = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    # Before a session is begun: its cookie would take the place of the one that is not sent.
    if posts and not doors.is_same_site(host, origin=origin, fetched_from=fetched_from):
        raise ForeignRequest(NOT_OURS)
    session = web.sessions.find(request.cookies.get(doors.cookie_name(host)))
    if session is None:
        if fetched_from == "cross-site":
            return Response(ENTRANCE, media_type=HTML)
        session = web.sessions.open()
    request.state.session = session
    if session.account_id is not None and not session.locked and _is_by_a_person(request):
        web.host.person_here(session.account_id)
    if posts and not session.holds(str((await request.form()).get("csrf", ""))):
        raise ForeignRequest(NOT_OURS)
    await _set_clocks(web, session)
    return None


async def _set_clocks(web: Web, session: Session) -> None:
    """Show moments as the account has its clocks, on this machine wherever it is."""
    if session.account_id is None or session.locked:
        return
    with contextlib.suppress(ManaError):
        words.set_clocks(await web.host.device(session.account_id).zone())


def _is_by_a_person(request: Asked) -> bool:
    """Say whether a person asks; an open page asks by itself whenever something changed."""
    return request.headers.get(REFRESH) != "1" and request.url.path != LIVE


async def _leave(response: Response[Any]) -> Response[Any]:
    for name, value in doors.HEADERS.items():
        response.headers[name] = value
    if getattr(response, "media_type", None) == HTML:
        response.headers["Cache-Control"] = doors.NOT_KEPT
    return response


def _refuse(web: Web, request: Asked, error: Exception) -> Page:
    """Show an error: beside the form that is open, or as a page of its own."""
    if isinstance(error, HTTPException):
        problem = problem_of_status(error.status_code)
    else:
        problem = problem_of(error)
        if not isinstance(error, ManaError):
            _report(error)
    session = getattr(request.state, "session", None)
    answer = _shown(web, request, session, error, problem)
    for name, value in doors.HEADERS.items():
        answer.headers.setdefault(name, value)
    answer.headers["Cache-Control"] = doors.NOT_KEPT
    return answer


def _report(error: Exception) -> None:
    """Log where an unknown error arose; never what it says, for that may be a person's text."""
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    _log.error("page failed: %s at %s", type(error).__name__, " < ".join(reversed(places[-8:])))


def _shown(
    web: Web, request: Asked, session: Session | None, error: Exception, problem: Problem
) -> Page:
    if session is None:
        return _bare(problem)
    visit = Visit(web, request, session)
    if isinstance(error, SignedOut):
        # The browser keeps the fragment of a link, and the page what it says, until then.
        return visit.go("/?then=join" if within(request.url.path) == "/join" else "/")
    values: dict[str, object] = {
        "csrf": session.csrf,
        "problem": problem,
        "now_ms": now_ms(),
        "said": (),
        "path": request.url.path,
    }
    if problem.code == LOCKED and request.method == "GET":
        return visit.locked(request.url.path)
    if visit.is_enhanced and request.method != "GET":
        # The form stays as it is, with all that was typed; the problem appears above it.
        page = visit.rendered("alert.html", problem.status, values)
        page.headers |= {
            "HX-Retarget": "#alert",
            "HX-Reswap": "innerHTML",
            "HX-Reselect": "#problem",
            "HX-Push-Url": "false",
        }
        return page
    return visit.rendered("problem.html", problem.status, values)


def _bare(problem: Problem) -> Page:
    text = f"{problem.title}\n{problem.happened}\n{problem.advice}\n[{problem.code}]\n"
    return Response(text, status_code=problem.status, media_type="text/plain")


class _Server(uvicorn.Server):
    """A server whose open live streams end when it stops, instead of holding it."""

    def __init__(
        self, config: uvicorn.Config, before_end: Callable[[], None], *, takes_signals: bool
    ) -> None:
        super().__init__(config)
        self._before_end = before_end
        self._takes_signals = takes_signals
        self.answers = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._takes_signals else contextlib.nullcontext():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_end()
        await super().shutdown(sockets)


async def serve(
    host: DeviceHost,
    settings: DeviceSettings,
    port: int | None = None,
    ready: Ready | None = None,
    *,
    until: Awaitable[object] | None = None,
) -> None:
    """Serve the page until the process is asked to stop; the host is the caller's to close.

    `port` None: the settings'; 0: a free one. `ready` is told the page's address once it
    answers. `until` ends the serving when it is done; without it, signals do. Raises PortTaken.
    """
    app = build(host, settings)
    wanted = settings.port if port is None else port
    with contextlib.closing(_listening(settings.host, wanted)) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            lifespan="on",
            ws="none",
        )
        server = _Server(config, app.web.closing.set, takes_signals=until is None)
        address = f"http://{_shown_host(settings.host)}:{listener.getsockname()[1]}/"
        await _run(server, listener, address, ready, until)


async def _run(
    server: _Server,
    listener: socket.socket,
    address: str,
    ready: Ready | None,
    until: Awaitable[object] | None,
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        answers = asyncio.create_task(server.answers.wait())
        await asyncio.wait({serving, answers}, return_when=asyncio.FIRST_COMPLETED)
        answers.cancel()
        if server.started and ready is not None:
            ready(address)
        if until is None:
            await asyncio.shield(serving)
        else:
            ended = asyncio.ensure_future(until)
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
    finally:
        server.should_exit = True
        await serving


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise PortTaken(f"MANA_DEVICE_PORT: {port} cannot be used on {host}") from error
    return listener


def _shown_host(host: str) -> str:
    if host in EVERYWHERE:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
