"""Shared spaces of one unlocked account: founding, members, names, and what follows by itself.

What changes who is in a space needs the hub at once, because it is a compare-and-set on the signed
log; names are records like others and are written offline too. `after_spaces` brings to an end
what a crash, a lost answer or another person left half way: it can run at any time, on any device
of the account, and again.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from mana.crypto.primitives import Random
from mana.device import membership
from mana.device.fingerprints import Fingerprints
from mana.device.invitations import Invitations
from mana.device.membership import Hand, require_member
from mana.device.moves import Moves
from mana.device.opened import Opened
from mana.device.records import RecordBook
from mana.device.resealing import Resealing
from mana.device.rotation import Rotation
from mana.device.vault import SpaceKeys, found_space
from mana.device.views import HeldView, InvitationView, MemberView, Notice, SpaceView
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError, NotFound, Unavailable
from mana.domain.ids import RecordId
from mana.domain.records import View
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.spaces import (
    MEMBER_NAMES,
    PROFILE,
    PROFILE_ID,
    ROLES,
    SHARED_TYPES,
    MembershipRefused,
    Role,
    can_manage,
    can_write,
    rotation_due,
)
from mana.protocol.errors import SpaceUndeletable
from mana.protocol.messages import MembershipAppend, NewSpace

NAME_MAX: Final = 80
DESCRIPTION_MAX: Final = 2_000
FOUNDING: Final = "founding"
NAMING: Final = "naming"
PERSONAL_NAME: Final = "Personal"
UNNAMED_MEMBER: Final = "Unnamed member"
_FOUNDING_MS_MAX: Final = 60 * 60 * 1_000


class Spaces:
    """The spaces of one unlocked account. `say` tells the page that something moved."""

    def __init__(
        self,
        opened: Opened,
        *,
        say: Callable[[Notice], None] = lambda notice: None,
        random: Random = os.urandom,
    ) -> None:
        self._opened = opened
        self._say = say
        self._moves = Moves(opened, random=random)
        self.resealing: Final = Resealing(opened.book, new_id=opened.book.new_id)
        self.rotation: Final = Rotation(opened, self._moves, self.resealing)
        self._invitations = Invitations(opened, self._moves, say=say)
        self._fingerprints = Fingerprints(opened)
        self._one_at_a_time = asyncio.Lock()
        self._founding: set[str] = set()

    # Reading

    async def spaces(self) -> builtins.list[SpaceView]:
        """Return the account's spaces: the personal one first, former ones last."""
        views = [
            await self._space_view(space)
            for space in self._opened.book.spaces()
            if space.type != "user"
        ]
        return sorted(
            views, key=lambda one: (one.left, one.type != "personal", one.name, one.space_id)
        )

    async def members(self, space_id: str) -> builtins.list[MemberView]:
        """Return the members of a space, in the order in which they stand in its log."""
        space = self._moves.vault.space(space_id)
        own_id = self._opened.account_id
        known = await self._fingerprints.of(space.members, space.entries)
        return [
            MemberView(
                account_id=member.account_id,
                name=await self._member_name(space, member.account_id),
                role=member.role,
                fingerprint=seen.fingerprint,
                own=member.account_id == own_id,
                keys_changed_at=seen.changed_at,
                comparison=seen.comparison,
            )
            for member, seen in zip(space.members, known, strict=True)
        ]

    async def confirm_fingerprint(self, space_id: str, account_id: str, fingerprint: str) -> None:
        """Keep that the person compared a member's fingerprint; on all their devices, offline too.

        Raises FingerprintMoved if the member has other keys by now.
        """
        member = require_member(self._moves.vault.space(space_id), account_id)
        await self._fingerprints.confirm(member, fingerprint)
        self._say(Notice("spaces"))

    # Founding, naming, ending

    async def create_space(self, name: str, space_type: str, *, description: str = "") -> str:
        """Found a shared space with this account as its owner; return its id. Needs the hub.

        Asked for again after a lost answer, it is the same space.
        """
        named, told = _name(name), _description(description)
        kind = next((one for one in SHARED_TYPES if one == space_type), None)
        if kind is None:
            raise Invalid(f"a space is one of: {', '.join(SHARED_TYPES)}")
        space_id, plan = await self._begin_founding(kind, named, told)
        self._founding.add(space_id)
        try:
            founded = msgspec.json.decode(str(plan["new"]), type=NewSpace)
            try:
                info = await self._opened.hub.create_space(founded)
            except Unavailable:
                raise
            except ManaError:
                await self._moves.note(FOUNDING, {space_id: None})
                raise
            self._moves.vault.take_space(info)
            await self._moves.settle()
            await self._finish_founding(space_id, plan)
        finally:
            self._founding.discard(space_id)
        self._say(Notice("spaces"))
        return space_id

    async def edit_space(
        self, space_id: str, *, name: str | None = None, description: str | None = None
    ) -> None:
        """Rename a shared space, or say what it is for; owners and admins, offline too."""
        if not self._moves.space(space_id).shared:
            raise Invalid("the personal space has no name of its own")
        values: dict[str, Json] = {}
        if name is not None:
            values["name"] = _name(name)
        if description is not None:
            values["description"] = _description(description)
        await self._write(space_id, PROFILE.name, PROFILE_ID, values)

    async def leave(self, space_id: str) -> None:
        """Leave a space; what this device has of it stays readable here. Needs the hub."""
        space = self._require_shared(space_id)
        if len(space.members) == 1:
            raise MembershipRefused(
                "nobody else is in this space; close it instead", detail={"reason": "no-owner"}
            )
        await self._moves.append(space_id, membership.leave)
        await self._gone(space_id)

    async def close_space(self, space_id: str) -> None:
        """End a space for everybody; only an owner may. Needs the hub."""
        self._require_shared(space_id)
        await self._moves.close(space_id, membership.close)
        await self._gone(space_id)

    async def forget_space(self, space_id: str) -> None:
        """Remove a former space from this device, with all that is here of it."""
        await self._opened.book.inner().syncer.forget_space(space_id)
        await self._gone(space_id)

    async def reread(self, space_id: str) -> None:
        """Read a space anew from the hub, over what is held; the person's settings with their own.

        Raises SpaceLeft, and what stands in the way of the hub; a later sync then goes on.
        """
        space = self._moves.vault.space(space_id)
        # The user scope has no page of its own, and is theirs as the personal space is.
        beside = [] if space.shared else [self._opened.book.user_space]
        await self._opened.book.inner().syncer.reread([space_id, *beside])

    async def held_only(self, space_id: str) -> builtins.list[HeldView]:
        """Return what is held here and the hub did not show when the space was read anew."""
        book = self._opened.book.in_space(space_id)
        beside = [] if book.keys.shared else [book.user_space]
        keys = await book.held_only([space_id, *beside])
        return [HeldView(*key, await _title(book, *key)) for key in keys]

    async def _gone(self, space_id: str) -> None:
        await self._moves.note(NAMING, {space_id: None})
        await self._invitations.forget_joining(space_id)
        self._say(Notice("spaces"))

    # Members

    async def set_role(self, space_id: str, account_id: str, role: str) -> None:
        """Give a member another role. Needs the hub."""
        self._require_shared(space_id)
        wanted = _role(role)

        def build(space: SpaceKeys, hand: Hand) -> MembershipAppend | None:
            if require_member(space, account_id).role == wanted:
                return None
            return membership.set_role(space, hand, account_id, wanted)

        await self._move(space_id, build)

    async def remove_member(self, space_id: str, account_id: str) -> None:
        """Put a member out and give the space another key, in one entry. Needs the hub.

        Nothing happens if they are out already.
        """
        self._require_shared(space_id)
        if account_id == self._opened.account_id:
            raise Invalid("to go yourself, leave the space")

        def build(space: SpaceKeys, hand: Hand) -> MembershipAppend | None:
            if space.entries[-1].member(account_id) is None:
                return None
            return membership.remove(space, hand, account_id)

        await self._move(space_id, build)

    async def transfer(self, space_id: str, account_id: str) -> None:
        """Make a member an owner and this account an admin. Needs the hub."""
        space = self._require_shared(space_id)
        own = self._opened.account_id
        if account_id == own or space.role != "owner":
            raise MembershipRefused(
                "an owner hands a space over to somebody else", detail={"reason": "role"}
            )

        def build(now: SpaceKeys, hand: Hand) -> MembershipAppend | None:
            if require_member(now, account_id).role == "owner" and now.role != "owner":
                return None
            return membership.transfer(now, hand, account_id)

        await self._move(space_id, build)

    # Invitations

    async def invite(
        self, space_id: str, role: str, *, days: int = 7, label: str = ""
    ) -> InvitationView:
        """Make an invitation for one person; the view has its link. Needs the hub."""
        return await self._invitations.invite(space_id, role, days=days, label=label)

    async def invitations(self, space_id: str) -> builtins.list[InvitationView]:
        """Return the invitations into a space, newest first. Needs the hub."""
        return await self._invitations.of_space(space_id)

    async def withdraw_invitation(self, space_id: str, invitation_id: str) -> None:
        """End an invitation. Needs the hub."""
        await self._invitations.withdraw(space_id, invitation_id)
        self._say(Notice("spaces"))

    async def join(self, link: str) -> InvitationView:
        """Accept an invitation by its link. Needs the hub."""
        return await self._invitations.join(link)

    async def joining(self) -> builtins.list[InvitationView]:
        """Return what this account accepted and waits for, newest first. Needs the hub."""
        return await self._invitations.joining()

    # What follows by itself

    async def after_spaces(self) -> bool:
        """Bring to an end what waits in the account's spaces; say whether keys or members moved.

        Called after the spaces were read from the hub. Trouble in one space holds up no other;
        raises Offline, to be called again.
        """
        async with self._one_at_a_time:
            return await self._follow_up()

    async def display_name_changed(self) -> None:
        """Write the person's name where they have one already."""
        name = await self._own_name()
        for space in self._opened.book.spaces():
            if space.shared and space.role is not None and can_write(space.role):
                view = await self._own_record(space.space_id)
                if view is not None and view.text("displayName") != name:
                    await self._write_own_name(space.space_id, name)

    async def _follow_up(self) -> bool:
        moved = False
        for space in self._opened.book.spaces():
            if space.former:
                continue
            with _isolated():
                moved = await self.rotation.follow(space.space_id) or moved
            if space.shared:
                with _isolated():
                    moved = await self._look_after(space.space_id) or moved
        with _isolated():
            await self.rotation.revoke_anew()
        for space_id, plan in (await self._moves.begun(FOUNDING)).items():
            with _isolated():
                if isinstance(plan, dict) and space_id not in self._founding:
                    await self._finish_founding(space_id, plan)
        for space_id in await self._invitations.arrived():
            await self._moves.note(NAMING, {space_id: True})
            await self._invitations.forget_joining(space_id)
        for space_id in await self._moves.begun(NAMING):
            with _isolated():
                await self._introduce(space_id)
        with _isolated():
            await self.display_name_changed()
        if moved:
            self._say(Notice("spaces"))
        return moved

    async def _look_after(self, space_id: str) -> bool:
        moved = False
        space = self._moves.space(space_id)
        if space.role is not None and can_manage(space.role):
            with _isolated():
                moved = await self._invitations.complete(space) or moved
            if rotation_due(self._moves.space(space_id).entries):
                moved = await self._moves.append(space_id, _rotate_if_due) or moved
        return moved

    async def _begin_founding(
        self, kind: str, name: str, description: str
    ) -> tuple[str, Mapping[str, Json]]:
        """Return id and plan of a new space, the one of before if its answer was lost."""
        wanted = {"type": kind, "name": name, "description": description}
        for space_id, plan in (await self._moves.begun(FOUNDING)).items():
            if isinstance(plan, dict) and wanted.items() <= plan.items():
                return space_id, plan
        vault = self._moves.vault
        now_ms = self._opened.now_ms()
        space_type = next(one for one in SHARED_TYPES if one == kind)
        info, new = found_space(vault.identity, vault.master_key, space_type, now_ms=now_ms)
        plan = {**wanted, "new": msgspec.json.encode(new).decode(), "atMs": now_ms}
        # Written down first: if the answer is lost, the space must still get its name.
        await self._moves.note(FOUNDING, {info.space_id: plan})
        return info.space_id, plan

    async def _finish_founding(self, space_id: str, plan: Mapping[str, Json]) -> None:
        """Write the name of a space that was founded here; forget one that never came to be."""
        space = self._moves.vault.spaces.get(space_id)
        if space is not None and not space.former:
            book = self._opened.book.in_space(space_id)
            if await book.view(PROFILE.name, PROFILE_ID) is None:
                values = {"name": plan["name"], "description": plan["description"]}
                await self._write(space_id, PROFILE.name, PROFILE_ID, values)
            await self._introduce(space_id)
        else:
            at_ms = plan.get("atMs")
            if isinstance(at_ms, int) and at_ms + _FOUNDING_MS_MAX > self._opened.now_ms():
                return
        await self._moves.note(FOUNDING, {space_id: None})

    async def _introduce(self, space_id: str) -> None:
        """Write the person's name in a space that they founded or chose to join.

        Nowhere else: whoever can put somebody into a space would learn their name by it.
        """
        space = self._moves.vault.spaces.get(space_id)
        if space is not None and space.role is not None:
            if not can_write(space.role):
                return  # A viewer writes nothing; the name follows once they are more.
            if await self._own_record(space_id) is None:
                await self._write_own_name(space_id, await self._own_name())
        await self._moves.note(NAMING, {space_id: None})

    # Within

    async def _move(
        self, space_id: str, build: Callable[[SpaceKeys, Hand], MembershipAppend | None]
    ) -> None:
        if await self._moves.append(space_id, build):
            self._say(Notice("spaces"))

    def _require_shared(self, space_id: str) -> SpaceKeys:
        space = self._moves.space(space_id)
        if not space.shared:
            raise SpaceUndeletable("your own space is yours alone, for good")
        return space

    async def _space_view(self, space: SpaceKeys) -> SpaceView:
        view = await self._opened.book.in_space(space.space_id).view(PROFILE.name, PROFILE_ID)
        name = view.text("name") if view is not None else ""
        if not space.shared:
            name = PERSONAL_NAME
        beside = [] if space.shared else [self._opened.book.user_space]
        held_only = await self._opened.book.held_only([space.space_id, *beside])
        return SpaceView(
            space_id=space.space_id,
            type=space.type,
            name=name or f"{space.type.capitalize()} space",
            role=space.role or "",
            members=len(space.members),
            left=space.former,
            closed=space.closed,
            description=view.text("description") if view is not None and space.shared else "",
            held_only=len(held_only),
        )

    async def _member_name(self, space: SpaceKeys, account_id: str) -> str:
        book = self._opened.book.in_space(space.space_id)
        view = await book.view(MEMBER_NAMES.name, account_id) if space.shared else None
        # Only who bears the name writes it; the hub refuses others, and is not believed in this.
        name = view.text("displayName") if _is_by(view, account_id) and view is not None else ""
        if not name and account_id == self._opened.account_id:
            return await self._own_name()
        return name or UNNAMED_MEMBER

    async def _own_name(self) -> str:
        settings = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        name = settings.text("displayName") if settings is not None else ""
        return name or self._opened.login

    async def _own_record(self, space_id: str) -> View | None:
        book = self._opened.book.in_space(space_id)
        return await book.view(MEMBER_NAMES.name, self._opened.account_id)

    async def _write_own_name(self, space_id: str, name: str) -> None:
        values: dict[str, Json] = {"displayName": name}
        await self._write(space_id, MEMBER_NAMES.name, self._opened.account_id, values)

    async def _write(
        self, space_id: str, table: str, record_id: str, values: Mapping[str, Json]
    ) -> None:
        """Write what is not so already."""
        book = self._opened.book.in_space(space_id)
        view = await book.view(table, record_id)
        known = view.values if view is not None else {}
        changed = {name: value for name, value in values.items() if known.get(name) != value}
        if changed:
            kind = ChangeKind.UPDATE if view is not None else ChangeKind.CREATE
            change = Change(table, RecordId(record_id), kind, changed)
            await book.commit([Write(change, self._opened.person)])


def _rotate_if_due(space: SpaceKeys, hand: Hand) -> MembershipAppend | None:
    return membership.rotate(space, hand) if rotation_due(space.entries) else None


async def _title(book: RecordBook, table: str, record_id: str) -> str:
    try:
        named = book.catalogue.table(table).title_field
        view = await book.view(table, record_id)
    except NotFound:
        return ""  # its module is not installed here any more
    return view.text(named) if view is not None and named is not None else ""


def _is_by(view: View | None, account_id: str) -> bool:
    """Say whether a record's name stems from the account that it names."""
    actor = view.actors.get("displayName") if view is not None else None
    return actor is not None and actor.principal_id == account_id


def _isolated() -> contextlib.AbstractContextManager[object]:
    """Let what stands in the way of one space stand in the way of no other; offline ends all."""
    return _Isolated()


class _Isolated(contextlib.AbstractContextManager[None]):
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, ManaError) and not isinstance(error, Unavailable)


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not 0 < len(name) <= NAME_MAX:
        raise Invalid(f"a space's name has 1 to {NAME_MAX} characters")
    return name


def _description(text: str) -> str:
    if len(text.strip()) > DESCRIPTION_MAX:
        raise Invalid(f"a description has at most {DESCRIPTION_MAX} characters")
    return text.strip()


def _role(text: str) -> Role:
    found = next((one for one in ROLES if one == text), None)
    if found is None:
        raise Invalid(f"a role is one of: {', '.join(ROLES)}")
    return found
