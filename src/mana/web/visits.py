"""One request, with whose it is: the only thing that routes ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from jinja2 import Environment
from litestar import Request, Response
from litestar.datastructures import FormMultiDict
from litestar.di import NamedDependency
from litestar.params import FromPath
from markupsafe import Markup

from mana.device.errors import Locked, ReadOnlyHere, SpaceLeft
from mana.domain.errors import Invalid, ManaError, NotFound
from mana.domain.ids import RecordId, require_record_id
from mana.domain.records import Visibility
from mana.web import doors
from mana.web.places import FOLDER, Place, part, places, space_of, within
from mana.web.problems import Problem, SignedOut, problem_of
from mana.web.sessions import Said, Session, Sessions

if TYPE_CHECKING:
    from mana.device.app import DeviceHost
    from mana.device.desk import Device

HTML: Final = "text/html"
REFRESH: Final = "mana-refresh"
"""The header by which a page says that it asks by itself."""
WAIT_S: Final = 1.0
"""How long an answer waits for long work before the page shows its progress instead."""

Page = Response[str]
Asked = Request[Any, Any, Any]


@dataclass(slots=True)
class Web:
    """What the routes share: the device host, the sessions, the templates, the end."""

    host: DeviceHost
    sessions: Sessions
    templates: Environment
    names: frozenset[str]
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    work: set[asyncio.Task[None]] = field(default_factory=set)


class Visit:
    """One request of one browser.

    No dataclass: the framework would look into one, and evaluate what only type checkers see.
    """

    def __init__(self, web: Web, request: Asked, session: Session) -> None:
        self.web = web
        self.request = request
        self.session = session

    @property
    def host(self) -> DeviceHost:
        """Return the device process behind this page."""
        return self.web.host

    @property
    def device(self) -> Device:
        """Return the open account in the space of the address; raise SignedOut or Locked."""
        wanted = space_of(self.request.url.path)
        return self.account.in_space(wanted) if wanted else self.account

    @property
    def account(self) -> Device:
        """Return the open account of this browser; raise SignedOut or Locked."""
        if self.session.account_id is None:
            raise SignedOut("sign in first")
        if self.session.locked:
            raise Locked("the account was locked")
        try:
            return self.host.device(self.session.account_id)
        except NotFound:
            self.session.account_id = None
            raise SignedOut("sign in first") from None

    @property
    def at(self) -> str:
        """Return what the addresses of this page's space begin with."""
        wanted = space_of(self.request.url.path)
        return f"{FOLDER}{wanted}" if wanted else ""

    def to(self, path: str) -> str:
        """Return the address of a page in this page's space."""
        return (self.at if path == "/" else f"{self.at}{path}") or "/"

    async def place(self) -> Place:
        """Return the space of this page, with what the person may do there; raise NotFound."""
        wanted = self.device.space_id
        for one in await self.places():
            if one.space_id == wanted:
                return one
        raise NotFound("there is no such space")

    async def places(self) -> list[Place]:
        """Return every space of the account, the personal one first."""
        account = self.account
        return places(await account.spaces(), await account.status())

    async def require_writer(self) -> None:
        """Raise ReadOnlyHere or SpaceLeft before a form is shown that could not be sent."""
        here = await self.place()
        if here.left:
            raise SpaceLeft("you are no longer in this space")
        if not here.may_write:
            raise ReadOnlyHere("your role in this space lets you read, not write")

    @property
    def is_enhanced(self) -> bool:
        """Say whether htmx asks, so that only a part of the page is replaced."""
        return self.request.headers.get("hx-request") == "true"

    @property
    def is_refresh(self) -> bool:
        """Say whether the page asks by itself because something changed."""
        return self.request.headers.get(REFRESH) == "1"

    async def form(self) -> FormMultiDict:
        """Return the posted form."""
        return await self.request.form()

    async def page(
        self, template: str, *, status: int = 200, shell: bool = True, **values: object
    ) -> Page:
        """Return a rendered page; with `shell`, inside rail, drawer and status line."""
        shared: dict[str, object] = {
            "csrf": self.session.csrf,
            "path": self.request.url.path,
            "within": within(self.request.url.path),
            "now_ms": now_ms(),
            "said": () if self.is_refresh else self.session.take_said(),
            "decided": self.session.decided,
        }
        if shell:
            device = self.device
            line = await device.status()
            spaces = places(await device.spaces(), line)
            shared |= {
                "status": line,
                "spaces": spaces,
                "here": next(one for one in spaces if one.space_id == device.space_id),
                "space_by_id": {one.space_id: one for one in spaces},
                "part": part(self.request.url.path),
                "overwritten": len(await device.conflicts()),
                "drawer": (await device.inbox())[:20],
                "work": await device.work_state(),
            }
        return self.rendered(template, status, shared | values)

    def rendered(self, template: str, status: int, values: Mapping[str, object]) -> Page:
        """Return a page from a template and its values; it says which account it is for."""
        shared = {"at": self.at, "signed_in": self.session.account_id or ""}
        text = self.web.templates.get_template(template).render(shared | dict(values))
        return self._carrying(Response(text, status_code=status, media_type=HTML))

    def locked(self, path: str, trouble: Problem | None = None) -> Page:
        """Return the page of a locked account, which leads on to `path` once it is open."""
        known = [one for one in self.host.accounts() if one.account_id == self.session.account_id]
        values = {
            "csrf": self.session.csrf,
            "path": path,
            "account": known[0] if known else None,
            "trouble": trouble,
        }
        page = self.rendered("locked.html", 423 if trouble is None else trouble.status, values)
        if trouble is not None:
            page.headers["HX-Push-Url"] = "false"
        return page

    def _carrying(self, answer: Page) -> Page:
        """Give the browser its session's id, where it does not hold it yet."""
        name = doors.cookie_name(self.request.headers.get("host", ""))
        if self.request.cookies.get(name) != self.session.id:
            secure = self.request.headers.get("x-forwarded-proto") == "https"
            answer.headers["Set-Cookie"] = (
                f"{name}={self.session.id}; Path=/; HttpOnly; SameSite=Strict"
                + ("; Secure" if secure else "")
            )
        return answer

    def go(
        self, path: str, said: Markup | str = "", *, undo: str = "", label: str = "", **values: str
    ) -> Page:
        """Return the way to a page after a post, with what to say there and how to undo it."""
        if said:
            text = said if isinstance(said, Markup) else Markup("{}").format(said)
            self.session.say(Said(text, undo, tuple(values.items()), label=label))
        return self._carrying(
            Response("", status_code=303, headers={"Location": path}, media_type=HTML)
        )

    def back(self, form: FormMultiDict, fallback: str) -> str:
        """Return where a form wants to return to, if that is a page of ours.

        `fallback` is a page in this page's space.
        """
        path = str(form.get("back", ""))
        if path.startswith("/") and not path.startswith("//") and "\\" not in path:
            return path
        return self.to(fallback)

    def sign_in(self, account_id: str) -> None:
        """Tie the browser to an account, under a new session id."""
        self.session = self.web.sessions.open(account_id, after=self.session)
        self.request.state.session = self.session

    def sign_out(self) -> None:
        """Untie the browser from its account."""
        self.session = self.web.sessions.open(None, after=self.session)
        self.request.state.session = self.session

    async def in_background(self, work: Coroutine[Any, Any, object]) -> bool:
        """Start long work and say whether it is done already; its failure is raised or told later."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=WAIT_S)
        if task.done():
            task.result()
            return True
        session = self.session

        async def follow() -> None:
            try:
                await task
            except ManaError as error:
                session.say(trouble(problem_of(error)))

        follower = asyncio.create_task(follow())
        self.web.work.add(follower)
        follower.add_done_callback(self.web.work.discard)
        return False


Visiting = NamedDependency[Visit]
"""How a route asks for the visit."""
Named = FromPath[str]
"""How a route asks for a part of its path."""


def trouble(problem: Problem) -> Said:
    """Return an error as a sentence to be shown once."""
    text = Markup("{} {}").format(problem.happened or problem.title, problem.advice)
    return Said(text, trouble=True)


def now_ms() -> int:
    """Return the moment, in ms since 1970."""
    return time.time_ns() // 1_000_000


def record_id(text: str) -> RecordId:
    """Return an id from a path; raise NotFound for what can be none."""
    try:
        return RecordId(require_record_id(text))
    except ManaError:
        raise NotFound("no record has this id") from None


def text_of(form: FormMultiDict, name: str) -> str:
    """Return a posted text, with the line ends of browsers made plain."""
    value = form.get(name, "")
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def visibility_of(form: FormMultiDict) -> Visibility:
    """Return who may see a record, as it was chosen; everybody in the space if nothing was."""
    chosen = text_of(form, "visibility")
    if chosen not in ("", "space", "private"):
        raise Invalid("a record is for everybody in the space, or for you alone")
    return "private" if chosen == "private" else "space"


def query(path: str, **values: str) -> str:
    """Return a path with a query."""
    return f"{path}?{urlencode(values)}"
