"""Spaces: founding one, joining one, who is in it, and the ways out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid, NotFound, Unavailable
from mana.domain.spaces import SHARED_TYPES, holds
from mana.protocol.errors import HubBehind
from mana.registry.catalogue import load_catalogue
from mana.web.places import FOLDER, Place, may_leave, roles_for
from mana.web.visits import Named, Page, Visit, Visiting, text_of
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.views import InvitationView, SyncStatus

T = TypeVar("T")
DAYS_SHOWN: Final = (1, 7, 30)
ENDED: Final = ("joined", "withdrawn", "expired")
TYPES: Final = {
    "family": ("Family", "For a household, and whoever belongs to it."),
    "club": ("Club", "For an association, a choir, a garden that many keep."),
    "team": ("Team", "For people who work on the same things."),
    "brand": ("Brand", "For what appears under one name to the outside."),
    "practice": ("Practice", "For a practice or office, and those who work in it."),
}
"""By type of a space its name, and one line on what it is for."""


@get("/spaces")
async def spaces(visit: Visiting) -> Page:
    """List the spaces, and what this person waits to be let into."""
    joining = await _from_hub(visit, visit.account.joining)
    return await visit.page("spaces.html", joining=joining)


@get("/spaces/new")
async def new_space(visit: Visiting) -> Page:
    """Show the form of a new space."""
    modules = load_catalogue().modules
    held = {
        kind: [module.label.lower() for module in modules if holds(kind, module.id)]
        for kind in SHARED_TYPES
    }
    return await visit.page("space_new.html", types=TYPES, held=held)


@post("/spaces")
async def create_space(visit: Visiting) -> Page:
    """Found a space and lead into it."""
    form = await visit.form()
    name = _name(form)
    kind = text_of(form, "type")
    new_id = await visit.account.create_space(
        name, kind, description=text_of(form, "description").strip()
    )
    said = t("{space} is there, and you own it. Invite somebody.", space=name)
    return visit.go(f"{FOLDER}{new_id}/space", said)


@get("/join")
async def join_page(visit: Visiting) -> Page:
    """Ask for the link of an invitation; it is posted to this device and goes no further."""
    return await visit.page("join.html")


@post("/join")
async def join(visit: Visiting) -> Page:
    """Accept an invitation."""
    form = await visit.form()
    await visit.account.join(text_of(form, "link"))
    said = t("Accepted. You are in as soon as a device of who invited you is online.")
    return visit.go(visit.to("/spaces"), said)


@get("/space")
async def space(visit: Visiting) -> Page:
    """Show a space: what it is, who is in it, who is invited."""
    device, here = visit.device, await visit.place()
    members = await device.members()
    sync = (await device.status()).sync
    invitations: list[InvitationView] | None = []
    if here.may_manage:
        invitations = await _from_hub(visit, device.invitations)
    known = invitations or []
    return await visit.page(
        "space.html",
        members=members,
        roles={one.account_id: roles_for(here, one) for one in members},
        leaves=may_leave(members),
        invitations=[one for one in known if one.state not in ENDED],
        ended=[one for one in known if one.state in ENDED],
        unknown=invitations is None,
        offline=_is_away(sync),
        behind=_is_behind(here, [one.space_id for one in await visit.account.spaces()], sync),
        held_only=await device.held_only(),
        days_shown=DAYS_SHOWN,
    )


@post("/space")
async def edit_space(visit: Visiting) -> Page:
    """Rename a space, or say what it is for."""
    form = await visit.form()
    description = text_of(form, "description").strip()
    await visit.device.edit_space(name=_name(form), description=description)
    return visit.go(visit.to("/space"), t("Saved."))


@post("/space/members/{account_id:str}/role")
async def set_role(visit: Visiting, account_id: Named) -> Page:
    """Give a member another role."""
    form = await visit.form()
    name = await _member_name(visit, account_id)
    await visit.device.set_role(account_id, text_of(form, "role"))
    return visit.go(visit.to("/space"), t("The role of {name} is changed.", name=name))


@post("/space/members/{account_id:str}/remove")
async def remove_member(visit: Visiting, account_id: Named) -> Page:
    """Put a member out of the space."""
    name = await _member_name(visit, account_id)
    await visit.device.remove_member(account_id)
    said = t("{name} is out, and the space has a new key.", name=name)
    return visit.go(visit.to("/space"), said)


@post("/space/members/{account_id:str}/compared")
async def compared(visit: Visiting, account_id: Named) -> Page:
    """Keep that the fingerprint that was shown is the one that the member sees of themselves."""
    form = await visit.form()
    name = await _member_name(visit, account_id)
    await visit.device.confirm_fingerprint(account_id, text_of(form, "fingerprint"))
    said = t("Kept: these are the keys of {name}.", name=name)
    return visit.go(visit.to("/space"), said)


@post("/space/members/{account_id:str}/transfer")
async def transfer(visit: Visiting, account_id: Named) -> Page:
    """Hand the space over to a member."""
    name = await _member_name(visit, account_id)
    await visit.device.transfer(account_id)
    said = t("{name} owns the space now; you are an admin of it.", name=name)
    return visit.go(visit.to("/space"), said)


@post("/space/invitations")
async def invite(visit: Visiting) -> Page:
    """Make a link by which one person can join."""
    form = await visit.form()
    typed = text_of(form, "days")
    if typed not in {str(number) for number in DAYS_SHOWN}:
        raise Invalid("an invitation holds for 1, 7 or 30 days")
    made = await visit.device.invite(
        text_of(form, "role"), days=int(typed), label=text_of(form, "label").strip()
    )
    said = t("The link is made. Give it to one person.")
    return visit.go(visit.to(f"/space#i-{made.invitation_id}"), said)


@post("/space/invitations/{invitation_id:str}/withdraw")
async def withdraw(visit: Visiting, invitation_id: Named) -> Page:
    """Make an invitation worthless."""
    await visit.device.withdraw_invitation(invitation_id)
    return visit.go(visit.to("/space"), t("Withdrawn. Nobody can join by its link."))


@post("/space/reread")
async def reread(visit: Visiting) -> Page:
    """Read the space anew from the hub, over what this device holds."""
    name = (await visit.place()).name
    await visit.device.reread()
    return visit.go(visit.to("/space"), t("{space} was read anew.", space=name))


@post("/space/leave")
async def leave(visit: Visiting) -> Page:
    """Leave the space."""
    name = (await visit.place()).name
    await visit.device.leave()
    said = t("You left {space}. What this device has of it can still be read.", space=name)
    return visit.go(visit.to("/space"), said)


@post("/space/close")
async def close_space(visit: Visiting) -> Page:
    """End the space for everybody, if its name was typed."""
    form = await visit.form()
    name = (await visit.place()).name
    if " ".join(text_of(form, "name").split()) != " ".join(name.split()):
        raise Invalid("to close the space, type its name as it stands above")
    await visit.device.close_space()
    return visit.go(visit.to("/space"), t("{space} is closed for everybody.", space=name))


@post("/space/forget")
async def forget_space(visit: Visiting) -> Page:
    """Remove a former space from this device."""
    name = (await visit.place()).name
    await visit.device.forget_space()
    return visit.go("/spaces", t("{space} is removed from this device.", space=name))


async def _from_hub(visit: Visit, ask: Callable[[], Awaitable[list[T]]]) -> list[T] | None:
    """Return what the hub says; None if it cannot be asked, so that the page shows the rest."""
    if _is_away((await visit.account.status()).sync):
        return None
    try:
        return await ask()
    except Unavailable:
        return None


def _is_away(sync: SyncStatus) -> bool:
    """Say whether the hub was not reached; before the first try nobody knows that."""
    return sync.link == "offline" and bool(sync.trouble)


def _is_behind(here: Place, known: Sequence[str], sync: SyncStatus) -> bool:
    """Say whether the hub was set back in this space, or in the scope that goes with it."""
    stuck = {name for name, code in sync.troubles.items() if code == HubBehind.code}
    # The user scope is no place on the page; it goes with the person's own space.
    return here.space_id in stuck or (not here.shared and not stuck <= set(known))


async def _member_name(visit: Visit, account_id: str) -> str:
    for one in await visit.device.members():
        if one.account_id == account_id:
            return one.name
    raise NotFound("nobody of this space has this id")


def _name(form: FormMultiDict) -> str:
    named = " ".join(text_of(form, "name").split())
    if not named:
        raise Invalid("a space needs a name")
    return named


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    spaces,
    new_space,
    create_space,
    join_page,
    join,
    space,
    edit_space,
    set_role,
    remove_member,
    compared,
    transfer,
    invite,
    withdraw,
    reread,
    leave,
    close_space,
    forget_space,
)
