"""The first page: create an account, sign in, unlock, or try the demo."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid, ManaError
from mana.protocol.errors import TwoFactorRequired
from mana.web.problems import DemoLinkUsed, problem_of
from mana.web.routes.entry import ask_factor
from mana.web.routes.home import home_page
from mana.web.routes.security import KIT
from mana.web.visits import Named, Page, Visit, Visiting, text_of
from mana.web.words import t


async def welcome_page(
    visit: Visit,
    *,
    error: ManaError | None = None,
    part: str = "",
    then: str = "",
    **typed: str,
) -> Page:
    """Return the first page; with an error, beside the part that it belongs to."""
    accounts = visit.host.accounts()
    demo = next((one for one in accounts if one.demo), None)
    problem = None if error is None else problem_of(error)
    page = await visit.page(
        "welcome.html",
        shell=False,
        status=200 if problem is None else problem.status,
        accounts=[one for one in accounts if not one.demo],
        demo=demo,
        problem=problem,
        part=part,
        back="/join" if then == "join" else "",
        typed={"login": "", "display_name": "", "mode": "", **typed},
    )
    if problem is not None:
        # The address stays one that can be loaded again.
        page.headers["HX-Push-Url"] = "false"
    return page


@get("/")
async def first(visit: Visiting) -> Page:
    """Show the scene of whoever is signed in, else the first page."""
    if visit.session.account_id is None:
        return await welcome_page(visit, then=visit.request.query_params.get("then", ""))
    return await home_page(visit)


@get("/welcome")
async def welcome(visit: Visiting) -> Page:
    """Show the first page also to whoever is signed in, to open another account."""
    return await welcome_page(visit)


@get(["/sign-up", "/sign-in", "/demo"])
async def again(visit: Visiting) -> Page:
    """Lead to the first page whoever loads anew what a form had answered."""
    return visit.go("/")


@post("/sign-up")
async def sign_up(visit: Visiting) -> Page:
    """Create an account and open it."""
    form = await visit.form()
    login = text_of(form, "login").strip()
    password = text_of(form, "password")
    name = text_of(form, "display_name").strip()
    mode = text_of(form, "mode") or "standard"
    try:
        if not login or not password:
            raise Invalid("a login name and a password are needed")
        invite = text_of(form, "invite").strip()
        if "#" in invite:
            raise Invalid("that is the link to a space: leave it out, and join with it afterwards")
        device = await visit.host.sign_up(
            login,
            password,
            display_name=name or login,
            mode=mode,
            invite=invite or None,
            zone=text_of(form, "zone") or "UTC",
        )
    except ManaError as error:
        return await welcome_page(
            visit,
            error=error,
            part="sign-up",
            then=_then(form),
            login=login,
            display_name=name,
            mode=mode,
        )
    visit.sign_in(device.account_id)
    if mode != "standard":
        # Without the code a lost password is lost data: it comes before anything is written.
        return visit.go(KIT)
    said = t("Your account is made. Write a first note, or add a task.")
    return visit.go(visit.back(form, "/"), "" if _then(form) else said)


@post("/sign-in")
async def sign_in(visit: Visiting) -> Page:
    """Open an account: known here, or fetched from the hub."""
    form = await visit.form()
    login, password = text_of(form, "login").strip(), text_of(form, "password")
    try:
        device = await visit.host.sign_in(login, password)
    except TwoFactorRequired as error:
        back = visit.back(form, "/")
        return ask_factor(visit, error, login=login, password=password, back=back)
    except ManaError as error:
        if "back" in form and visit.session.account_id is not None:
            return visit.locked(visit.back(form, "/"), problem_of(error))
        return await welcome_page(visit, error=error, part="sign-in", then=_then(form), login=login)
    visit.sign_in(device.account_id)
    return visit.go(visit.back(form, "/"))


def _then(form: FormMultiDict) -> str:
    """Return what was begun before somebody had to sign in."""
    return "join" if text_of(form, "back") == "/join" else ""


@post("/demo")
async def start_demo(visit: Visiting) -> Page:
    """Start the demo, a second account with things in it, and open it."""
    try:
        device = await visit.host.start_demo()
    except ManaError as error:
        return await welcome_page(visit, error=error, part="demo")
    visit.sign_in(device.account_id)
    return visit.go("/")


@get("/demo/{token:str}")
async def demo_link(visit: Visiting, token: Named) -> Page:
    """Sign in to the demo by the link that was printed, once."""
    try:
        device = await visit.host.redeem_demo_token(token)
    except ManaError as error:
        raise DemoLinkUsed("this link was used before, or is of an earlier start") from error
    visit.sign_in(device.account_id)
    return visit.go("/")


@post("/demo/remove")
async def remove_demo(visit: Visiting) -> Page:
    """Remove the demo with all that is in it."""
    demo = next((one for one in visit.host.accounts() if one.demo), None)
    await visit.host.remove_demo()
    if demo is not None and visit.session.account_id == demo.account_id:
        visit.sign_out()
    if demo is not None:
        visit.web.sessions.leave(demo.account_id)
    return visit.go("/", t("The demo is removed."))


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    first,
    welcome,
    again,
    sign_up,
    sign_in,
    start_demo,
    demo_link,
    remove_demo,
)
