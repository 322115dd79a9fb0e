"""Which space a command works in, and how a space, a member or a place is told.

A space is called what its members call it, so two may have one name. What decides is the id, and
only its beginning is ever put into a command that is shown: a name may hold what a shell obeys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mana.cli.naming import NameAmbiguous, resolve, shorts
from mana.cli.text import one_line

if TYPE_CHECKING:
    from mana.device.desk import Device
    from mana.device.views import SpaceView

PERSONAL: Final = "personal"
NAME_SHOWN_MAX: Final = 80


async def find_space(device: Device, named: str) -> SpaceView:
    """Return the one space that a person names; raise NameUnknown, or NameAmbiguous with them."""
    spaces = await device.spaces()
    by_id = {one.space_id: one for one in spaces}
    try:
        return by_id[resolve(named, [(one.space_id, one.name) for one in spaces], "space")]
    except NameAmbiguous as error:
        ids = shorts(by_id)
        fitting = [one for one in spaces if one.space_id in error.ids]
        shown = [f"{ids[one.space_id]} {called(one)} ({state_words(one)})" for one in fitting]
        raise NameAmbiguous("space", [one.space_id for one in fitting], shown) from None


async def space_of(device: Device) -> SpaceView:
    """Return the space in which a device works."""
    return next(one for one in await device.spaces() if one.space_id == device.space_id)


async def option(device: Device) -> str:
    """Return what a shown command needs to work in the same space; empty for the personal one."""
    spaces = await device.spaces()
    here = next(one for one in spaces if one.space_id == device.space_id)
    if here.type == PERSONAL:
        return ""
    return f" --space {shorts(one.space_id for one in spaces)[here.space_id]}"


async def names_by_id(device: Device) -> dict[str, str]:
    """Return what each space of the account is called."""
    return {one.space_id: called(one) for one in await device.spaces()}


def called(space: SpaceView) -> str:
    """Return a space's name on one line, harmless."""
    return one_line(space.name, NAME_SHOWN_MAX) or "a space without a name"


def state_words(space: SpaceView) -> str:
    """Return the person's role in a space, or that it is over."""
    return "closed" if space.closed else "left" if space.left else space.role
