"""The spaces of whoever sits at the browser, with what they may do in each, for every page.

The space that a page is about stands in its address: `/s/<space id>/notes`; without it the page
is about the personal space. So links, the way back and two tabs in two spaces need no memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from mana.domain.spaces import Role, can_manage, can_write

if TYPE_CHECKING:
    from mana.device.views import MemberView, SpaceView, Status

PERSONAL: Final = "personal"
FOLDER: Final = "/s/"
PARTS: Final = frozenset(
    [
        "notes",
        "tasks",
        "inbox",
        "missions",
        "agents",
        "timeline",
        "data-access",
        "settings",
        "usage",
        "space",
        "spaces",
    ]
)
"""First parts of addresses that are there in every space; switching spaces keeps them."""
_PREFIX: Final = re.compile(rf"{FOLDER}([\w.-]{{1,128}})(?=/|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """One space: `at` begins its addresses, `to_decide` counts its open proposals."""

    view: SpaceView
    at: str
    to_decide: int

    @property
    def space_id(self) -> str:
        """Return the space's id."""
        return self.view.space_id

    @property
    def name(self) -> str:
        """Return what its owners call it."""
        return self.view.name

    @property
    def shared(self) -> bool:
        """Say whether others can be in it."""
        return self.view.type != PERSONAL

    @property
    def left(self) -> bool:
        """Say whether this person is out of it."""
        return self.view.left

    @property
    def may_write(self) -> bool:
        """Say whether this person may write here."""
        return not self.left and can_write(cast("Role", self.view.role))

    @property
    def may_manage(self) -> bool:
        """Say whether this person may invite, remove and rename."""
        return self.shared and not self.left and can_manage(cast("Role", self.view.role))

    @property
    def is_owner(self) -> bool:
        """Say whether this person owns it."""
        return not self.left and self.view.role == "owner"


def space_of(path: str) -> str:
    """Return the id of the space that an address names; empty for the personal one."""
    found = _PREFIX.match(path)
    return found[1] if found else ""


def within(path: str) -> str:
    """Return an address without its space."""
    return _PREFIX.sub("", path, count=1) or "/"


def part(path: str) -> str:
    """Return the part of the page that is there in every space too; empty for the scene."""
    first = within(path).split("/")[1]
    return f"/{first}" if first in PARTS else ""


def places(views: Sequence[SpaceView], status: Status) -> list[Place]:
    """Return the spaces in the order in which the device gives them."""
    return [
        Place(
            view,
            "" if view.type == PERSONAL else f"{FOLDER}{view.space_id}",
            status.to_decide_by_space.get(view.space_id, 0),
        )
        for view in views
    ]


def roles_for(place: Place, member: MemberView) -> tuple[Role, ...]:
    """Return the roles that this person may give a member; none where they may not."""
    if member.own or not place.may_manage:
        return ()
    if place.is_owner:
        return ("owner", "admin", "member", "viewer")
    return ("member", "viewer") if member.role in ("member", "viewer") else ()


def may_leave(members: Sequence[MemberView]) -> bool:
    """Say whether the space has an owner without this person."""
    return any(one.role == "owner" and not one.own for one in members)
