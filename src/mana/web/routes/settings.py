"""Settings: the account, what its mode protects from, what was refused, and the ways out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid, ManaError, NotFound, Unauthenticated, Unavailable
from mana.web.problems import problem_of
from mana.web.visits import Named, Page, Visit, Visiting, text_of, trouble
from mana.web.words import t

if TYPE_CHECKING:
    from mana.protocol.messages import NotifyState

WAITING: Final = frozenset({"CHANGES_WAITING", "OFFLINE"})
"""Errors of signing out after which the person may choose to lose what waits."""


@get("/settings")
async def settings(visit: Visiting) -> Page:
    """Show the settings."""
    device = visit.device
    return await visit.page(
        "settings.html",
        refused=await device.refused(),
        waiting="waiting" in visit.request.query_params,
        own_models=await device.own_models(),
        device_models=await device.device_models(),
        letters=await _letters(visit),
    )


async def _letters(visit: Visit) -> NotifyState | None:
    """Return whether the hub writes letters; None where it cannot be asked now."""
    try:
        return await visit.device.notifications()
    except (Unavailable, Unauthenticated, NotFound):
        return None


@post("/settings/letters")
async def set_letters(visit: Visiting) -> Page:
    """Give an address for letters, confirm it by its code, or switch letters on and off."""
    form = await visit.form()
    wanted, device = text_of(form, "do"), visit.device
    if wanted == "address":
        address = text_of(form, "address").strip()
        if not address:
            raise Invalid("an address is needed")
        await device.set_notifications(address=address)
        said = t("A code is on its way to {address}.", address=address)
    elif wanted == "code":
        await device.set_notifications(code=text_of(form, "code").strip())
        said = t("Confirmed. The hub writes when something waits for you.")
    elif wanted == "forget":
        await device.set_notifications(address="")
        said = t("The hub no longer has your address.")
    elif wanted in ("on", "off"):
        await device.set_notifications(enabled=wanted == "on")
        said = t("Letters are on.") if wanted == "on" else t("Letters are off.")
    else:
        raise Invalid("letters are given an address, confirmed, switched on or off")
    return visit.go(visit.to("/settings#letters"), said)


@post("/settings/name")
async def set_name(visit: Visiting) -> Page:
    """Set the name by which the person is addressed."""
    form = await visit.form()
    name = text_of(form, "display_name").strip()
    if not name:
        raise Invalid("a name is needed")
    await visit.device.set_display_name(name)
    return visit.go(visit.to("/settings"), t("Saved."))


@post("/sync")
async def sync_now(visit: Visiting) -> Page:
    """Push and pull now."""
    form = await visit.form()
    path = visit.back(form, "/settings")
    try:
        await visit.device.sync_now()
    except ManaError as error:
        visit.session.say(trouble(problem_of(error)))
        return visit.go(path)
    return visit.go(path, t("Synced."))


@post("/refused/{change_id:str}/retry")
async def retry_refused(visit: Visiting, change_id: Named) -> Page:
    """Send a refused change again."""
    await visit.device.retry_refused(change_id)
    return visit.go(visit.to("/settings"), t("It is sent again."))


@post("/refused/{change_id:str}/drop")
async def drop_refused(visit: Visiting, change_id: Named) -> Page:
    """Forget a refused change."""
    await visit.device.drop_refused(change_id)
    return visit.go(visit.to("/settings"), t("Dropped. The record shows what the hub holds."))


@post("/lock")
async def lock(visit: Visiting) -> Page:
    """Take the account's keys out of memory."""
    await visit.host.lock(visit.device.account_id)
    return visit.go("/")


@post("/sign-out")
async def sign_out(visit: Visiting) -> Page:
    """Remove the account's data from this device, after what waits was sent."""
    form = await visit.form()
    account_id = visit.device.account_id
    force = text_of(form, "force") == "1"
    try:
        await visit.host.sign_out(account_id, force=force)
    except ManaError as error:
        if force or error.code not in WAITING:
            raise
        visit.session.say(trouble(problem_of(error)))
        return visit.go(visit.to("/settings?waiting=1#leave"))
    visit.sign_out()
    visit.web.sessions.leave(account_id)
    return visit.go("/", t("Signed out. This device no longer holds your data."))


@post("/leave")
async def leave(visit: Visiting) -> Page:
    """Untie this browser from the account, which stays as it is on the device."""
    visit.sign_out()
    return visit.go("/")


@post("/settings/remove-account")
async def remove_account(visit: Visiting) -> Page:
    """Delete the account on the hub and here."""
    form = await visit.form()
    account_id = visit.device.account_id
    await visit.host.remove_account(account_id, text_of(form, "password"))
    visit.sign_out()
    visit.web.sessions.leave(account_id)
    return visit.go("/", t("The account and all its data are deleted."))


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    settings,
    set_letters,
    set_name,
    sync_now,
    retry_refused,
    drop_refused,
    lock,
    leave,
    sign_out,
    remove_account,
)
