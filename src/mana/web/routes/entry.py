"""The other doors: a second factor, a lost password, and a new device that an old one unlocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import msgspec
from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid, ManaError
from mana.protocol.errors import TwoFactorFailed, TwoFactorRequired
from mana.protocol.messages import FactorAnswer
from mana.web.problems import problem_of
from mana.web.sessions import ASKING_MS_MAX, Asking
from mana.web.visits import Page, Visit, Visiting, now_ms, text_of
from mana.web.words import t

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from litestar.datastructures import FormMultiDict

    from mana.device.desk import Device

FACTOR: Final = "/sign-in/factor"
BY_DEVICE: Final = "/sign-in/device"
LOST: Final = "/sign-in/lost"


def ask_factor(
    visit: Visit,
    error: TwoFactorRequired,
    *,
    login: str,
    password: str,
    back: str,
    follows: bool = False,
) -> Page:
    """Keep a right password for a moment, and lead to the page that asks for the rest."""
    kinds, passkey = error.detail.get("kinds"), error.detail.get("passkey")
    visit.session.asking = Asking(
        login=login,
        password=password,
        kinds=[str(kind) for kind in kinds] if isinstance(kinds, list) else [],
        passkey=passkey if isinstance(passkey, dict) else None,
        back=back,
        until_ms=now_ms() + ASKING_MS_MAX,
        follows=follows,
    )
    return visit.go(FACTOR)


@get(FACTOR)
async def factor(visit: Visiting) -> Page:
    """Ask for the second factor of a sign-in whose password was right."""
    asking = visit.session.asked(now_ms())
    return visit.go("/") if asking is None else await _factor_page(visit, asking)


@post(FACTOR)
async def answer_factor(visit: Visiting) -> Page:
    """Finish a sign-in by its second factor."""
    asking = visit.session.asked(now_ms())
    if asking is None:
        return visit.go("/", t("That took too long. Give the password again."))
    form = await visit.form()
    try:
        account_id = await _entered(visit, asking, factor_of(form))
    except TwoFactorFailed as error:
        # A passkey's challenge is spent by a wrong answer: the next one needs another.
        return await _factor_page(visit, await _asked_anew(visit, asking), error)
    except ManaError as error:
        return await _factor_page(visit, asking, error)
    visit.sign_in(account_id)
    return visit.go(asking.back)


@post(f"{FACTOR}/leave")
async def leave_factor(visit: Visiting) -> Page:
    """Give a sign-in up; the password is forgotten."""
    visit.session.asking = None
    return visit.go("/")


async def _entered(visit: Visit, asking: Asking, answer: FactorAnswer) -> str:
    if asking.follows:
        await visit.account.security.refresh(asking.password, factor=answer)
        return visit.account.account_id
    device = await visit.host.sign_in(asking.login, asking.password, factor=answer)
    return device.account_id


async def _asked_anew(visit: Visit, asking: Asking) -> Asking:
    if asking.passkey is None:
        return asking
    try:
        await _entered(visit, asking, FactorAnswer())
    except TwoFactorRequired as error:
        found = error.detail.get("passkey")
        passkey = found if isinstance(found, dict) else None
        asking = Asking(
            login=asking.login,
            password=asking.password,
            kinds=asking.kinds,
            passkey=passkey,
            back=asking.back,
            until_ms=asking.until_ms,
            follows=asking.follows,
        )
        visit.session.asking = asking
    return asking


async def _factor_page(visit: Visit, asking: Asking, error: ManaError | None = None) -> Page:
    problem = None if error is None else problem_of(error)
    page = await visit.page(
        "factor.html",
        shell=False,
        status=200 if problem is None else problem.status,
        asking=asking,
        options=None if asking.passkey is None else json.dumps(asking.passkey),
        problem=problem,
    )
    if problem is not None:
        page.headers["HX-Push-Url"] = "false"
    return page


def factor_of(form: FormMultiDict) -> FactorAnswer:
    """Return the second factor that was typed, or that the browser gave; raise Invalid."""
    raw = text_of(form, "passkey")
    if raw:
        try:
            return FactorAnswer(passkey=msgspec.json.decode(raw, type=dict))
        except msgspec.MsgspecError:
            raise Invalid("the browser's answer has another form") from None
    typed = "".join(text_of(form, "code").split())
    if not typed:
        raise Invalid("the code of your authenticator is needed")
    return FactorAnswer(totp=typed[:16])


# A lost password


@get(LOST)
async def lost(visit: Visiting) -> Page:
    """Show the ways back to an account whose password is lost."""
    return await _lost_page(visit, login=visit.request.query_params.get("login", ""))


@post(f"{LOST}/code")
async def recover(visit: Visiting) -> Page:
    """Open an account by its recovery code, with a new password."""
    return await _come_back(visit, "code", visit.host.recover)


@post(f"{LOST}/token")
async def reset(visit: Visiting) -> Page:
    """Open an account by a token of the hub's operator, with a new password."""
    return await _come_back(visit, "token", visit.host.reset)


async def _come_back(
    visit: Visit, part: str, way: Callable[[str, str, str], Awaitable[Device]]
) -> Page:
    """Open an account by what was typed into one part of the page, with a new password."""
    form = await visit.form()
    login = text_of(form, "login").strip()
    try:
        password = new_password(form)
        device = await way(login, text_of(form, part), password)
    except ManaError as error:
        return await _lost_page(visit, login=login, error=error, part=part)
    visit.sign_in(device.account_id)
    return visit.go("/security", t("Your password is the new one. Every other session has ended."))


def new_password(form: FormMultiDict) -> str:
    """Return a new password that was typed twice; raise Invalid."""
    typed = text_of(form, "new_password")
    if typed != text_of(form, "again"):
        raise Invalid("the two new passwords are not the same")
    return typed


async def _lost_page(
    visit: Visit, *, login: str, error: ManaError | None = None, part: str = ""
) -> Page:
    problem = None if error is None else problem_of(error)
    page = await visit.page(
        "lost.html",
        shell=False,
        status=200 if problem is None else problem.status,
        login=login,
        problem=problem,
        part=part,
    )
    if problem is not None:
        page.headers["HX-Push-Url"] = "false"
    return page


# A new device


@get(BY_DEVICE)
async def by_device(visit: Visiting) -> Page:
    """Show how a link stands, or the form that begins one."""
    pending = visit.session.linking
    if pending is None:
        return await _device_page(visit)
    try:
        view = await pending.poll()
    except ManaError as error:
        if error.code != "OFFLINE":
            await _give_up(visit)
        return await _device_page(visit, error=error)
    return await visit.page("by_device.html", shell=False, link=view, problem=None, login="")


@post(BY_DEVICE)
async def begin_by_device(visit: Visiting) -> Page:
    """Ask the other devices of an account to unlock this one."""
    form = await visit.form()
    login = text_of(form, "login").strip()
    await _give_up(visit)
    try:
        if not login:
            raise Invalid("a login name is needed")
        name = text_of(form, "name").strip() or visit.host.settings.name
        visit.session.linking = await visit.host.begin_link(login, name)
    except ManaError as error:
        return await _device_page(visit, error=error, login=login)
    return visit.go(BY_DEVICE)


@post(f"{BY_DEVICE}/finish")
async def finish_by_device(visit: Visiting) -> Page:
    """Open the account that was handed over, at the person's word that the digits are the same."""
    pending = visit.session.linking
    if pending is None:
        return visit.go(BY_DEVICE)
    try:
        device = await pending.finish()
    except ManaError as error:
        if error.code not in ("OFFLINE", "LINK_NOT_APPROVED"):
            await _give_up(visit)
        return await _device_page(visit, error=error)
    visit.session.linking = None
    visit.sign_in(device.account_id)
    return visit.go(
        "/", t("This device is one of yours now. It asks for the password once it is locked.")
    )


@post(f"{BY_DEVICE}/leave")
async def leave_by_device(visit: Visiting) -> Page:
    """Give a link up; what was handed over is dropped."""
    await _give_up(visit)
    return visit.go("/")


async def _give_up(visit: Visit) -> None:
    pending, visit.session.linking = visit.session.linking, None
    if pending is not None:
        await pending.close()


async def _device_page(visit: Visit, *, error: ManaError | None = None, login: str = "") -> Page:
    problem = None if error is None else problem_of(error)
    page = await visit.page(
        "by_device.html",
        shell=False,
        status=200 if problem is None else problem.status,
        link=None,
        problem=problem,
        login=login,
    )
    if problem is not None:
        page.headers["HX-Push-Url"] = "false"
    return page


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    factor,
    answer_factor,
    leave_factor,
    lost,
    recover,
    reset,
    by_device,
    begin_by_device,
    finish_by_device,
    leave_by_device,
)
