"""The shared spaces of a device in memory: the same calls, no log, no keys, no hub.

Roles are those that a test sets; what others do (joining, removing) a test does for them.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mana.device.conflicts import ConflictGone
from mana.device.errors import Offline, ReadOnlyHere, SpaceLeft
from mana.device.fingerprints import FingerprintMoved
from mana.device.invitations import InvitationUsed, LinkMalformed
from mana.device.views import (
    ConflictView,
    HeldView,
    InvitationView,
    MemberView,
    OverwrittenField,
    SpaceView,
)
from mana.domain.errors import NotFound
from mana.domain.spaces import MembershipRefused

if TYPE_CHECKING:
    from tests.web.fake_device import FakeDevice

DAY_MS = 24 * 60 * 60 * 1_000
LINK = f"http://hub.example/join#1.{'a' * 64}.11111111-2222-4333-8444-555555555555.{'s' * 43}.{'b' * 64}"


@dataclass
class Shared:
    """One shared space: what is said of it, and who is in it."""

    view: SpaceView
    members: dict[str, MemberView] = field(default_factory=dict)
    invitations: dict[str, InvitationView] = field(default_factory=dict)


class FakeSpaces:
    """The part of the fake device that knows of spaces."""

    def __init__(self, first: FakeSpaces, space_id: str) -> None:
        self.first: FakeDevice = first  # type: ignore[assignment]
        self.space_id = space_id
        self.shared: dict[str, Shared] = {}
        self.beside: dict[str, FakeDevice] = {}
        self.waiting_to_join: list[InvitationView] = []
        self.overwritten: dict[str, ConflictView] = {}
        self.troubles: dict[str, str] = {}
        self.held: dict[str, builtins.list[HeldView]] = {}
        self.used_links: set[str] = set()
        self.asked = 0

    def everywhere(self) -> Sequence[FakeDevice]:
        """Return the devices of all spaces."""
        return (self.first, *self.first.beside.values())

    def in_space(self, space_id: str) -> FakeDevice:
        """Return the account in another of its spaces."""
        if space_id == self.first.space_id:
            return self.first
        if space_id not in self.first.beside:
            raise NotFound("there is no such space")
        return self.first.beside[space_id]

    @property
    def _space(self) -> Shared:
        return self.first.shared[self.space_id]

    def _require_writer(self) -> None:
        if self.space_id not in self.first.shared:
            return
        if self._space.view.left:
            raise SpaceLeft("the account is no longer in this space")
        if self._space.view.role == "viewer":
            raise ReadOnlyHere("the account's role does not let it write")

    def _require_hub(self) -> None:
        self.asked += 1
        self.first._check()
        if not self.first.online:
            raise Offline("the hub cannot be reached")

    # What a test does for others

    def found(
        self, name: str, kind: str = "family", *, role: str = "owner", **more: object
    ) -> FakeDevice:
        """Put the account into a new space, in a role."""
        first = self.first
        space_id = f"{len(first.shared) + 1:064x}"
        view = SpaceView(space_id, kind, name, role, 1, **more)  # type: ignore[arg-type]
        first.shared[space_id] = Shared(view)
        first.beside[space_id] = first._beside(space_id)
        first.beside[space_id].let_in(first.account_id, first.display_name, role)
        return first.beside[space_id]

    def let_in(self, account_id: str, name: str, role: str) -> None:
        """Let somebody into this space."""
        own = account_id == self.first.account_id
        member = MemberView(account_id, name, role, f"9F2C 41B7 {account_id}", own)
        self._space.members[account_id] = member
        self._count()

    def become(self, **fields: object) -> None:
        """Change what is said of this space: role, left, closed."""
        self._space.view = replace(self._space.view, **fields)  # type: ignore[arg-type]
        self.first.tell("spaces")

    def invited(self, state: str, **fields: object) -> InvitationView:
        """Add an invitation into this space, in a state."""
        number = len(self._space.invitations) + 1
        new = InvitationView(
            f"11111111-2222-4333-8444-{number:012d}",
            self.space_id,
            "member",
            state,
            time.time_ns() // 1_000_000 + 7 * DAY_MS,
            **fields,  # type: ignore[arg-type]
        )
        self._space.invitations[new.invitation_id] = new
        return new

    def give(self, table: str, record_id: str, account_id: str) -> None:
        """Let somebody else have made a record."""
        records = self.in_space(self.space_id)._records[table]
        records[record_id] = replace(records[record_id], author_id=account_id)

    def overwrite(self, record_id: str, was: str, now: str, *, by: str = "Bo") -> str:
        """Let a newer edit have replaced the text of a note."""
        found = str(len(self.first.overwritten) + 1)
        self.first.overwritten[found] = ConflictView(
            found,
            self.space_id,
            "notes",
            record_id,
            "Shopping",
            by,
            time.time_ns() // 1_000_000 - 60_000,
            (OverwrittenField("content", "Content", was, now),),
        )
        self.first.tell("conflicts")
        return found

    def _count(self) -> None:
        space = self._space
        space.view = replace(space.view, members=len(space.members))

    # What the page calls

    async def spaces(self) -> builtins.list[SpaceView]:
        self.first._check()
        own = SpaceView(self.first.space_id, "personal", "Personal", "owner", 1)
        return [own, *sorted((one.view for one in self.first.shared.values()), key=_last)]

    async def create_space(self, name: str, space_type: str, *, description: str = "") -> str:
        self._require_hub()
        return self.found(name, space_type, description=description).space_id

    async def edit_space(self, name: str | None = None, description: str | None = None) -> None:
        view = self._space.view
        self.become(name=name or view.name, description=description or "")

    async def confirm_fingerprint(self, account_id: str, fingerprint: str) -> None:
        known = self._space.members[account_id]
        if known.fingerprint != fingerprint:
            raise FingerprintMoved("these are not the keys of the member any more")
        self._space.members[account_id] = replace(known, comparison="compared")

    async def members(self) -> builtins.list[MemberView]:
        if self.first is self:
            me = self.first
            return [MemberView(me.account_id, me.display_name, "owner", "9F2C", True)]
        return builtins.list(self._space.members.values())

    async def set_role(self, account_id: str, role: str) -> None:
        self._require_hub()
        found = self._space.members[account_id]
        self._space.members[account_id] = replace(found, role=role)
        self.first.tell("spaces")

    async def remove_member(self, account_id: str) -> None:
        self._require_hub()
        del self._space.members[account_id]
        self._count()
        self.first.tell("spaces")

    async def transfer(self, account_id: str) -> None:
        await self.set_role(account_id, "owner")
        await self.set_role(self.first.account_id, "admin")
        self.become(role="admin")

    async def leave(self) -> None:
        self._require_hub()
        if not any(m.role == "owner" and not m.own for m in self._space.members.values()):
            raise MembershipRefused("no entry", detail={"reason": "no-owner"})
        self._space.members.clear()
        self.become(left=True, role="", members=0)

    async def close_space(self) -> None:
        self._require_hub()
        self._space.members.clear()
        self.become(left=True, closed=True, role="", members=0)

    async def forget_space(self) -> None:
        del self.first.shared[self.space_id]
        del self.first.beside[self.space_id]
        self.first.tell("spaces")

    async def reread(self) -> None:
        self._require_hub()
        self.first.troubles.pop(self.space_id, None)

    async def held_only(self) -> builtins.list[HeldView]:
        return self.first.held.get(self.space_id, [])

    async def invite(self, role: str, *, days: int = 7, label: str = "") -> InvitationView:
        self._require_hub()
        made = self.invited("open", label=label, link=LINK)
        self._space.invitations[made.invitation_id] = replace(made, role=role)
        return made

    async def invitations(self) -> builtins.list[InvitationView]:
        self._require_hub()
        return builtins.list(self._space.invitations.values())

    async def withdraw_invitation(self, invitation_id: str) -> None:
        self._require_hub()
        found = self._space.invitations[invitation_id]
        self._space.invitations[invitation_id] = replace(found, state="withdrawn")

    async def join(self, link: str) -> InvitationView:
        self._require_hub()
        if "/join#1." not in link:
            raise LinkMalformed("this is not a link of an invitation")
        if link in self.first.used_links:
            raise InvitationUsed("another account accepted this invitation")
        self.first.used_links.add(link)
        new = InvitationView("i-1", "c" * 64, "member", "accepted", 0, fingerprint="AB12 CD34")
        self.first.waiting_to_join.append(new)
        return new

    async def joining(self) -> builtins.list[InvitationView]:
        self._require_hub()
        return self.first.waiting_to_join

    async def conflicts(self) -> builtins.list[ConflictView]:
        self.first._check()
        return builtins.list(self.first.overwritten.values())

    async def restore_conflict(self, conflict_id: str) -> None:
        found = self.first.overwritten.get(conflict_id)
        if found is None:
            raise ConflictGone("nothing of this id was overwritten")
        values = {one.field: one.was for one in found.fields}
        await self.in_space(found.space_id).edit(found.table, found.record_id, values)
        del self.first.overwritten[conflict_id]
        self.first.tell("conflicts")

    async def dismiss_conflict(self, conflict_id: str) -> None:
        if self.first.overwritten.pop(conflict_id, None) is None:
            raise ConflictGone("nothing of this id was overwritten")
        self.first.tell("conflicts")


def _last(view: SpaceView) -> tuple[bool, str]:
    return (view.left, view.name)


async def seed_family(device: FakeDevice) -> FakeDevice:
    """Found a family of three with notes, a task, a private note, an invitation and a conflict."""
    family = device.found("The Lindens", description="Everything about the house and the garden.")
    family.let_in("bo", "Bo", "member")
    family.let_in("gran", "Grandma", "viewer")
    shopping = await family.create(
        "notes", {"title": "Shopping", "content": "Milk, bread, lamp oil."}
    )
    await family.create("notes", {"title": "Holidays", "content": "Graz in May, or the lake."})
    await family.create(
        "notes", {"title": "A present for Bo", "content": "The blue kite."}, visibility="private"
    )
    await family.create("tasks", {"title": "Call the chimney sweep", "isCompleted": False})
    family.give("notes", shopping, "bo")
    family.invited("open", label="Aunt Rita", link=LINK)
    family.invited("accepted", label="Jo", fingerprint="77AA 10C4 5E0B 9D21")
    family.invited("withdrawn", label="Somebody else")
    family.overwrite(shopping, "Milk, bread, candles.", "Milk, bread, lamp oil.")
    other = device.found("Choir of the old town", "club", role="viewer")
    other.let_in("con", "Conductor", "owner")
    return family
