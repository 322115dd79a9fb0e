"""Security: mode, password, recovery, second factors, keys, devices, grants, and what happened."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.device.sessions import PasskeySetup, TotpSetup
from mana.domain.errors import Invalid, ManaError, NotFound
from mana.protocol.errors import TwoFactorRequired
from mana.protocol.messages import FactorAnswer
from mana.web.places import Place
from mana.web.problems import problem_of
from mana.web.routes.entry import ask_factor, factor_of, new_password
from mana.web.visits import Named, Page, Visit, Visiting, text_of, trouble
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.security import RecoveryKit
    from mana.device.views import GrantView

T = TypeVar("T")
PAGE: Final = "/security"
KIT: Final = "/security/kit"
NEW_FACTOR: Final = "/security/factors/new"
DEVICES: Final = "/security/devices"
ZERO_KNOWLEDGE: Final = "zero-knowledge"
EVENTS: Final = 50
MINUTES: Final = (0, 5, 15, 30, 60, 240)
"""After how many minutes alone an account can be told to lock."""
MOVED: Final = frozenset({"VAULT_MOVED"})
ENDED: Final = frozenset({"SESSION_ENDED", "PASSWORD_ASKED", "TWO_FACTOR_REQUIRED"})


# What stands


@get(PAGE)
async def security(visit: Visiting) -> Page:
    """Show how the account stands, with all that can be changed of its keys."""
    device = visit.account
    line = (await device.status()).sync
    codes = {line.trouble, *line.troubles.values()}
    stands = await device.security.status()
    return await visit.page(
        "security.html",
        tab="keys",
        stands=stands,
        kit_waits=stands.recovery_waiting,
        moved=bool(codes & MOVED),
        ended=bool(codes & ENDED),
        minutes=await visit.host.auto_lock_minutes(device.account_id),
        minutes_shown=MINUTES,
        managed=[one for one in await visit.places() if _may_rotate(one)],
    )


@get(DEVICES)
async def devices(visit: Visiting) -> Page:
    """Show devices, sessions, and the new devices that ask."""
    device = visit.account
    links, known, sessions = await asyncio.gather(
        from_hub(device.links.waiting()),
        from_hub(device.sessions.devices()),
        from_hub(device.sessions.list()),
    )
    return await visit.page(
        "security_devices.html", tab="devices", links=links, devices=known, sessions=sessions
    )


@dataclass(frozen=True, slots=True)
class Listed:
    """A grant with where it is, who it is for and who gave it."""

    grant: GrantView
    home: Place
    agent: str
    by: str


@get("/security/grants")
async def grants(visit: Visiting) -> Page:
    """Show every grant of the account's spaces."""
    listed = [one for place in await visit.places() for one in await _grants_in(visit, place)]
    active = [one for one in listed if one.grant.state in ("active", "stale", "unverified")]
    ended = [one for one in listed if one not in active]
    allowed = (await visit.account.security.status()).grants
    return await visit.page(
        "security_grants.html", tab="grants", active=active, ended=ended[:EVENTS], allowed=allowed
    )


async def _grants_in(visit: Visit, place: Place) -> list[Listed]:
    device = visit.account.in_space(place.space_id)
    found = await device.grants()
    if not found:
        return []
    names = {one.account_id: one.name for one in await device.members()}
    agents = {one.mission_id: one.agent_name for one in await device.missions()}
    return [
        Listed(
            one,
            place,
            agents.get(one.mission_id, ""),
            "" if one.own else names.get(one.account_id, ""),
        )
        for one in found
    ]


@get("/security/log")
async def log(visit: Visiting) -> Page:
    """Show what happened to keys and sessions."""
    before = visit.request.query_params.get("before") or None
    events = await from_hub(visit.account.security.events(before=before, limit=EVENTS))
    return await visit.page(
        "security_log.html",
        tab="log",
        events=events,
        earlier=events[-1].at if events and len(events) == EVENTS else "",
        is_first=before is None,
    )


@get("/security/knock")
async def knock(visit: Visiting) -> Page:
    """Return what the account's keys need of the person now; every page asks for it by itself."""
    device = visit.account
    line = (await device.status()).sync
    links = [] if line.link != "online" else await from_hub(device.links.waiting()) or []
    stands = await device.security.status() if await _may_lack_code(visit) else None
    return visit.rendered(
        "knock.html",
        200,
        {
            "links": [one for one in links if one.state in ("waiting", "answered", "revealed")],
            "kit_waits": await device.security.waiting_kit() is not None,
            "no_code": stands is not None and stands.recovery_set_at is None,
            "moved": bool({line.trouble, *line.troubles.values()} & MOVED),
        },
    )


async def _may_lack_code(visit: Visit) -> bool:
    """Say whether the account must have a recovery code: its sign-up may have been cut off."""
    return (await visit.account.status()).mode == ZERO_KNOWLEDGE


# Mode, password, recovery


@post("/security/mode")
async def set_mode(visit: Visiting) -> Page:
    """Switch the mode."""
    form = await visit.form()
    mode = text_of(form, "mode")
    kit = await visit.account.security.set_mode(mode, text_of(form, "password"))
    return visit.go(KIT if kit is not None else PAGE, t("The mode is switched."))


@post("/security/grants/allowed")
async def allow_grants(visit: Visiting) -> Page:
    """Say whether missions may be granted to the hub's runner."""
    allowed = text_of(await visit.form(), "allowed") == "1"
    await visit.account.security.allow_grants(allowed)
    said = (
        t("Grants can be given.")
        if allowed
        else t("No grant can be given; those there were have ended.")
    )
    return visit.go(PAGE, said)


@post("/security/password")
async def set_password(visit: Visiting) -> Page:
    """Set another password."""
    form = await visit.form()
    await visit.account.security.change_password(text_of(form, "password"), new_password(form))
    return visit.go(PAGE, t("Your password is the new one. Every other session has ended."))


@post("/security/recovery")
async def make_code(visit: Visiting) -> Page:
    """Make a recovery code, and lead to it."""
    await visit.account.security.new_recovery_code()
    return visit.go(KIT)


@post("/security/recovery/remove")
async def remove_code(visit: Visiting) -> Page:
    """End the recovery code."""
    await visit.account.security.remove_recovery_code()
    return visit.go(PAGE, t("The recovery code is worthless now."))


@get(KIT)
async def kit(visit: Visiting) -> Page:
    """Show a recovery code that nobody has confirmed to have, to be printed or written down."""
    found = await visit.account.security.waiting_kit()
    return await _kit_page(visit, found)


@post(KIT)
async def confirm_kit(visit: Visiting) -> Page:
    """Forget the code here, once two groups of it were typed."""
    form = await visit.form()
    found = await visit.account.security.waiting_kit()
    if found is None:
        return visit.go(PAGE)
    groups = found.code.split("-")
    for at, name in zip(asked_groups(found.code), ("first", "second"), strict=True):
        if text_of(form, name).strip().upper() != groups[at]:
            raise Invalid("these are not the two groups; look at the paper once more")
    await visit.account.security.kit_seen()
    return visit.go(PAGE, t("Good. Keep it where you would look for it, and nobody else would."))


def asked_groups(code: str) -> tuple[int, int]:
    """Return which two groups of a code are asked for, counted from 0: the same until another code."""
    groups = len(code.split("-"))
    drawn = hashlib.sha256(code.encode()).digest()
    first = drawn[0] % (groups // 2)
    return first, groups // 2 + drawn[1] % (groups - groups // 2)


async def _kit_page(visit: Visit, found: RecoveryKit | None) -> Page:
    return await visit.page(
        "security_kit.html",
        tab="keys",
        kit=found,
        groups=[] if found is None else found.code.split("-"),
        asked=(0, 0) if found is None else asked_groups(found.code),
    )


# Second factors


@post("/security/factors/add/{kind:str}")
async def begin_factor(visit: Visiting, kind: Named) -> Page:
    """Begin to add a second factor; it waits at this browser for its first answer."""
    name = text_of(await visit.form(), "name").strip()
    sessions = visit.account.sessions
    if kind == "totp":
        visit.session.adding = await sessions.begin_totp(name)
    elif kind == "passkey":
        visit.session.adding = await sessions.begin_passkey(name)
    else:
        raise NotFound("there is no second factor of this kind")
    return visit.go(NEW_FACTOR)


@get(NEW_FACTOR)
async def new_factor(visit: Visiting) -> Page:
    """Show what an authenticator or the browser needs."""
    adding = visit.session.adding
    if adding is None:
        return visit.go(PAGE)
    return await visit.page(
        "security_factor.html",
        tab="keys",
        totp=adding if isinstance(adding, TotpSetup) else None,
        passkey=adding if isinstance(adding, PasskeySetup) else None,
    )


@post(f"{NEW_FACTOR}/finish")
async def finish_factor(visit: Visiting) -> Page:
    """Let a second factor count, by its first answer."""
    adding = visit.session.adding
    if adding is None:
        return visit.go(PAGE)
    await visit.account.sessions.finish_factor(adding.factor_id, factor_of(await visit.form()))
    visit.session.adding = None
    return visit.go(f"{PAGE}#factors", t("Added. It is asked for at the next sign-in."))


@post(f"{NEW_FACTOR}/leave")
async def leave_factor(visit: Visiting) -> Page:
    """Give up adding a second factor."""
    visit.session.adding = None
    return visit.go(f"{PAGE}#factors")


@post("/security/factors/{factor_id:str}/remove")
async def remove_factor(visit: Visiting, factor_id: Named) -> Page:
    """Remove a second factor."""
    await visit.account.sessions.remove_factor(factor_id)
    return visit.go(f"{PAGE}#factors", t("Removed. It is asked for no more."))


# Keys


@post("/security/rotate/{what:str}")
async def rotate(visit: Visiting, what: Named) -> Page:
    """Change a key: of a space, the identity, or the master key."""
    form = await visit.form()
    keys = visit.account.security
    if what == "master":
        await keys.rotate_master(text_of(form, "password"))
        return visit.go(KIT)
    if what == "identity":
        await keys.rotate_identity()
        return visit.go(
            f"{PAGE}#keys", t("You have a new identity. Your spaces follow by themselves.")
        )
    if what == "space":
        await keys.rotate_space(text_of(form, "space"))
        return visit.go(f"{PAGE}#keys", t("The space has a new key. What is in it is sealed anew."))
    raise NotFound("there is no such key")


@post("/security/follow")
async def follow(visit: Visiting) -> Page:
    """Take the keys that another device has changed, with the password in force."""
    password = text_of(await visit.form(), "password")
    try:
        await visit.account.security.refresh(password)
    except TwoFactorRequired as error:
        login = visit.account.login
        return ask_factor(visit, error, login=login, password=password, back=PAGE, follows=True)
    await _synced(visit)
    return visit.go(PAGE, t("This device has the keys in force again; what waited is sent."))


@post("/security/session")
async def begin_session(visit: Visiting) -> Page:
    """Sign in to the hub anew, where the session of this device has ended."""
    password, login = text_of(await visit.form(), "password"), visit.account.login
    try:
        await visit.host.sign_in(login, password, factor=FactorAnswer())
    except TwoFactorRequired as error:
        return ask_factor(visit, error, login=login, password=password, back=PAGE)
    await _synced(visit)
    return visit.go(PAGE, t("Signed in to the hub again."))


async def _synced(visit: Visit) -> None:
    """Send what waited, so that the page tells how it stands by now."""
    with contextlib.suppress(ManaError):
        await visit.account.sync_now()


# This device


@post("/security/auto-lock")
async def set_auto_lock(visit: Visiting) -> Page:
    """Choose after how long alone the account locks here."""
    typed = text_of(await visit.form(), "minutes")
    if not (typed.isascii() and typed.isdigit()):
        raise Invalid("choose after how many minutes to lock")
    await visit.host.set_auto_lock(visit.account.account_id, int(typed))
    return visit.go(f"{PAGE}#here", t("Saved."))


@post("/security/keyring")
async def set_keyring(visit: Visiting) -> Page:
    """Let the account open without its password here, or not."""
    on = text_of(await visit.form(), "on") == "1"
    await visit.account.keyring.remember(on)
    said = (
        t("It opens without the password here.")
        if on
        else t("The password is asked for here again.")
    )
    return visit.go(f"{PAGE}#here", said)


# Devices, sessions, links


@post("/security/sessions/{session_id:str}/end")
async def end_session(visit: Visiting, session_id: Named) -> Page:
    """End a session at once."""
    await visit.account.sessions.end(session_id)
    return visit.go(DEVICES, t("Ended. Its device asks for the password."))


@post("/security/devices/{device_id:str}/revoke")
async def revoke_device(visit: Visiting, device_id: Named) -> Page:
    """End a device for ever."""
    await visit.account.sessions.revoke(device_id)
    return visit.go(DEVICES, t("Revoked. What it signs from now on counts nowhere."))


@get("/security/links/{link_id:str}")
async def link(visit: Visiting, link_id: Named) -> Page:
    """Show a new device that asks: its digits, and the two answers."""
    links = visit.account.links
    try:
        found = next(one for one in await links.waiting() if one.link_id == link_id)
    except StopIteration:
        return visit.go(DEVICES, t("That device asks no more."))
    except ManaError as error:
        visit.session.say(trouble(problem_of(error)))
        return visit.go(DEVICES)
    return await visit.page("security_link.html", tab="devices", link=found)


@post("/security/links/{link_id:str}/answer")
async def answer_link(visit: Visiting, link_id: Named) -> Page:
    """Begin to unlock a new device: its digits come next."""
    await visit.account.links.answer(link_id)
    return visit.go(f"/security/links/{link_id}")


@post("/security/links/{link_id:str}/approve")
async def approve_link(visit: Visiting, link_id: Named) -> Page:
    """Hand the account over to a new device whose digits the person compared."""
    await visit.account.links.approve(link_id)
    return visit.go(DEVICES, t("Allowed. Confirm it on the new device, too."))


@post("/security/links/{link_id:str}/refuse")
async def refuse_link(visit: Visiting, link_id: Named) -> Page:
    """Turn a new device away."""
    await visit.account.links.refuse(link_id)
    return visit.go(DEVICES, t("Refused. Nothing was handed over."))


async def from_hub(asked: Awaitable[T]) -> T | None:
    """Return what the hub says; None if it cannot be asked, so that the page shows the rest."""
    try:
        return await asked
    except ManaError as error:
        if error.code in ("OFFLINE", "UNAVAILABLE", "RATE_LIMITED", *ENDED, *MOVED):
            return None
        raise


def _may_rotate(place: Place) -> bool:
    return not place.left and (place.may_manage or not place.shared)


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    security,
    devices,
    grants,
    log,
    knock,
    set_mode,
    allow_grants,
    set_password,
    make_code,
    remove_code,
    kit,
    confirm_kit,
    begin_factor,
    new_factor,
    finish_factor,
    leave_factor,
    remove_factor,
    rotate,
    follow,
    begin_session,
    set_auto_lock,
    set_keyring,
    end_session,
    revoke_device,
    link,
    answer_link,
    approve_link,
    refuse_link,
)
