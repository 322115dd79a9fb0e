"""Shared spaces in memory, beside the fake host: members, roles, invitations, former ones.

It keeps the promises of `mana.device.spaces` that the terminal relies on. Nobody's keys are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mana.device.vault import SpaceStillHeld
from mana.device.views import InvitationView, MemberView, SpaceView
from mana.domain.errors import NotFound
from mana.domain.ids import derived_id
from mana.domain.spaces import MembershipRefused

FINGERPRINT = "{}a3f 77c0 9e42"
LINK = "http://127.0.0.1:3050/join#1.example"


def empty_contents() -> dict[str, Any]:
    """Return what one space holds, by the name of the attribute of `FakeDevice`."""
    return {
        "tables": {"notes": {}, "tasks": {}},
        "agent_views": {},
        "mission_views": {},
        "grant_views": {},
        "proposals": {},
        "reverted": set(),
        "moved": set(),
    }


@dataclass
class FakeSpace:
    """One shared space as its members have it in common."""

    space_id: str
    type: str
    name: str
    description: str
    members: dict[str, MemberView]
    invitations: dict[str, InvitationView] = field(default_factory=dict)
    accepted: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By invitation the account id and name of who accepted it."""
    contents: dict[str, Any] = field(default_factory=empty_contents)
    former: set[str] = field(default_factory=set)
    closed: bool = False

    def view(self, account_id: str) -> SpaceView:
        """Return the space as an account sees it."""
        here = account_id in self.members and not self.closed
        return SpaceView(
            space_id=self.space_id,
            type=self.type,
            name=self.name,
            role=self.members[account_id].role if here else "",
            members=len(self.members),
            left=not here,
            closed=self.closed,
            description=self.description,
        )

    def take(self, account_id: str, name: str, role: str) -> None:
        """Let somebody in."""
        sign = FINGERPRINT.format(len(self.members) + 1)
        self.members[account_id] = MemberView(account_id, name, role, sign, own=False)
        self.former.discard(account_id)

    def put_out(self, account_id: str) -> None:
        """Put somebody out, who keeps what is on their device."""
        if account_id not in self.members:
            raise NotFound("nobody of this id is in the space")
        del self.members[account_id]
        self.former.add(account_id)

    def give_role(self, account_id: str, role: str) -> None:
        """Give a member another role; the last owner keeps theirs."""
        member = self.members[account_id]
        owners = [one for one in self.members.values() if one.role == "owner"]
        if owners == [member] and role != "owner":
            raise MembershipRefused("a space has an owner", detail={"reason": "no-owner"})
        self.members[account_id] = replace(member, role=role)

    def invite(self, role: str, *, expires_ms: int, label: str) -> InvitationView:
        """Make an invitation with a link."""
        ident = derived_id("fake-invitation", self.space_id, str(len(self.invitations)))
        link = f"{LINK}.{ident}"
        made = InvitationView(ident, self.space_id, role, "open", expires_ms, label, link)
        self.invitations[ident] = made
        return made

    def require_former(self, account_id: str) -> None:
        """Raise unless the account is out of the space."""
        if account_id in self.members and not self.closed:
            raise SpaceStillHeld("this account is a member of the space")
