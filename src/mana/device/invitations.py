"""Invitations: made here with a secret that the hub never sees, and completed by it alone.

Role, space and secret of an invitation are sealed in the inviter's user scope. What the hub says
of one is never enough: a device lets somebody in only if they proved the secret for exactly the
keys that they join with, as the role and into the space that stand in the own record, and never
twice by one invitation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from mana.crypto.authority import public_identity
from mana.crypto.invitations import (
    InvitationLink,
    InvitationRejected,
    acceptance_mac,
    invitation_token,
    new_secret,
    parse_link,
    parse_secret,
    secret_text,
    token_hash,
    verify_acceptance,
)
from mana.crypto.primitives import b64
from mana.device import membership
from mana.device.membership import Hand
from mana.device.moves import Moves
from mana.device.opened import Opened
from mana.device.vault import SpaceKeys
from mana.device.views import InvitationView, Notice
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unavailable,
)
from mana.domain.ids import RecordId, require_uuid
from mana.domain.records import View
from mana.domain.settings import INVITATIONS
from mana.domain.spaces import Member, MembershipRefused, Role, can_manage
from mana.domain.tables import DELETED_AT
from mana.protocol.errors import AlreadyMember, SpaceUndeletable
from mana.protocol.messages import (
    AcceptInvitation,
    InvitationInfo,
    MembershipAppend,
    NewInvitation,
)
from mana.protocol.replication import HubDistrusted

DAYS_MAX: Final = 30
LABEL_MAX: Final = 120
DAY_MS: Final = 24 * 60 * 60 * 1_000
JOINING: Final = "joining"
INVITED_ROLES: Final[tuple[Role, ...]] = ("admin", "member", "viewer")


class LinkMalformed(Invalid):
    """What was entered is not a whole link of an invitation."""

    code: ClassVar[str] = "LINK_MALFORMED"
    advice: ClassVar[str] = "Copy the whole link, to its last character."


class InvitationEnded(NotFound):
    """The invitation is used, withdrawn or expired, or there never was one on this hub."""

    code: ClassVar[str] = "INVITATION_ENDED"
    advice: ClassVar[str] = (
        "Ask for another link, and whether you both use the same hub: MANA_HUB_URL names it."
    )


class InvitationUsed(Conflict):
    """Another account accepted this invitation first; one link is for one account."""

    code: ClassVar[str] = "INVITATION_USED"
    advice: ClassVar[str] = "Ask for a link of your own; whoever has yours is named to the inviter."


@dataclass(frozen=True, slots=True)
class Offer:
    """What stands in the own record of an invitation; `head`: the log's head when it was made."""

    invitation_id: str
    space_id: str
    role: Role
    secret: bytes = field(repr=False)
    expires_ms: int
    label: str
    head: str


class Invitations:
    """Invitations of one unlocked account, made and accepted."""

    def __init__(self, opened: Opened, moves: Moves, *, say: Callable[[Notice], None]) -> None:
        self._opened = opened
        self._moves = moves
        self._say = say
        self._told: set[str] = set()

    # As the inviter

    async def invite(
        self, space_id: str, role: str, *, days: int = 7, label: str = ""
    ) -> InvitationView:
        """Make an invitation for one person and return it with its link. Needs the hub.

        `days`: 1 to 30. The secret is sealed and on the hub before the hub knows of the
        invitation, so that any device of this account can complete it.
        """
        space = self._require_manager(space_id)
        offered = next((one for one in INVITED_ROLES if one == role), None)
        if offered is None:
            raise Invalid("an invitation is for an admin, a member or a viewer")
        if offered == "admin" and space.role != "owner":
            raise MembershipRefused("only an owner makes admins", detail={"reason": "role"})
        if not 1 <= days <= DAYS_MAX:
            raise Invalid(f"an invitation holds for 1 to {DAYS_MAX} days")
        if len(label.strip()) > LABEL_MAX:
            raise Invalid(f"a label has at most {LABEL_MAX} characters")
        offer = Offer(
            invitation_id=self._opened.new_id(),
            space_id=space_id,
            role=offered,
            secret=new_secret(random=self._moves.random),
            expires_ms=self._opened.now_ms() + days * DAY_MS,
            label=label.strip(),
            head=space.verified.head,
        )
        token = invitation_token(offer.secret, space_id, offer.invitation_id)
        made = NewInvitation(
            invitation_id=require_uuid(offer.invitation_id, "invitation id"),
            role=offer.role,
            token_hash=token_hash(token),
            expires_at=iso_ms(offer.expires_ms),
        )
        try:
            await self._keep(offer)
            info = await self._opened.hub.create_invitation(space_id, made)
        except ManaError:
            # Nobody has the link, so nothing is lost with its secret.
            with contextlib.suppress(ManaError):
                await self._drop(offer.invitation_id)
            raise
        return self._view(space, info, offer)

    async def of_space(self, space_id: str) -> list[InvitationView]:
        """Return the invitations into a space, newest first. Needs the hub."""
        space = self._require_manager(space_id)
        offers = await self._offers(space_id)
        infos = await self._opened.hub.invitations(space_id)
        return [
            self._view(space, info, offers.get(info.invitation_id))
            for info in infos
            if info.space_id == space_id
        ]

    async def withdraw(self, space_id: str, invitation_id: str) -> None:
        """End an invitation. Needs the hub; the own devices forget its secret."""
        require_uuid(invitation_id, "invitation id")
        try:
            await self._opened.hub.withdraw_invitation(space_id, invitation_id)
        except NotFound:
            if invitation_id not in await self._offers(space_id):
                raise
        await self._drop(invitation_id)

    async def complete(self, space: SpaceKeys) -> bool:
        """Let in who accepted an invitation of this account; say whether anybody came in.

        Asks the hub only where this account has an invitation out.
        """
        offers = await self._offers(space.space_id)
        if not offers:
            return False
        moved = False
        for info in await self._opened.hub.invitations(space.space_id):
            offer = offers.pop(info.invitation_id, None)
            if offer is None:
                continue
            if info.state == "accepted" and not self._is_over(offer):
                moved = await self._complete(offer, info) or moved
            elif info.state in ("joined", "withdrawn", "expired"):
                await self._drop(offer.invitation_id)
        for offer in offers.values():
            # The hub forgot it, or never heard of it: a call that was lost on the way.
            if self._is_over(offer):
                await self._drop(offer.invitation_id)
        return moved

    def _is_over(self, offer: Offer) -> bool:
        """Say whether an invitation has ended whatever the hub says; a day is for late devices."""
        return offer.expires_ms + DAY_MS < self._opened.now_ms()

    async def _complete(self, offer: Offer, info: InvitationInfo) -> bool:
        try:
            newcomer = newcomer_of(offer, info)
        except CryptoFailed:
            self._tell(offer.invitation_id)
            return False

        def build(now: SpaceKeys, hand: Hand) -> MembershipAppend | None:
            if was_used(now, offer, newcomer.account_id):
                return None
            return membership.add(now, hand, newcomer)

        try:
            moved = await self._moves.append(offer.space_id, build)
        except Forbidden:
            # This account may no longer let somebody in as this; an owner sees who waits.
            self._tell(offer.invitation_id)
            return False
        await self._drop(offer.invitation_id)
        return moved

    def _tell(self, invitation_id: str) -> None:
        """Let the page say it, once."""
        if invitation_id not in self._told:
            self._told.add(invitation_id)
            self._say(Notice("spaces"))

    # As the one who was invited

    async def join(self, text: str) -> InvitationView:
        """Accept an invitation; a device of the inviter then lets this account in. Needs the hub.

        Raises LinkMalformed, AlreadyMember, InvitationEnded or InvitationUsed.
        """
        try:
            link = parse_link(text)
        except CryptoFailed:
            raise LinkMalformed("this is not a link of an invitation") from None
        vault = self._moves.vault
        known = vault.spaces.get(link.space_id)
        if known is not None and not known.former:
            raise AlreadyMember("this account is in the space already")
        public = vault.identity.public().to_wire()
        proof = acceptance_mac(
            link.secret,
            link.space_id,
            link.invitation_id,
            account_id=vault.account_id,
            signing_key=str(public["signingKey"]),
            hpke_key=str(public["hpkeKey"]),
        )
        token = invitation_token(link.secret, link.space_id, link.invitation_id)
        accepted = AcceptInvitation(space_id=link.space_id, token=b64(token), mac=b64(proof))
        # First what has to be checked later: the answer can be lost, the acceptance then stands.
        waiting: dict[str, Json] = {"spaceId": link.space_id, "head": link.head}
        await self._moves.note(JOINING, {link.invitation_id: waiting})
        try:
            info = await self._opened.hub.accept_invitation(link.invitation_id, accepted)
        except ManaError as error:
            if not isinstance(error, Unavailable):
                await self._moves.note(JOINING, {link.invitation_id: None})
            if isinstance(error, NotFound):
                here = self._opened.book.settings.hub_url
                raise InvitationEnded(f"the hub at {here} has no open invitation of it") from None
            if error.code == "ALREADY_EXISTS":
                raise InvitationUsed("another account accepted this invitation") from None
            raise
        if (info.invitation_id, info.space_id) != (link.invitation_id, link.space_id):
            raise HubDistrusted("the hub answers for another invitation")
        self._say(Notice("spaces"))
        return self._joining_view(info)

    async def joining(self) -> list[InvitationView]:
        """Return what this account accepted and is not in yet, newest first. Needs the hub."""
        begun = await self._moves.begun(JOINING)
        views = []
        for info in await self._opened.hub.my_invitations():
            waiting = begun.get(info.invitation_id)
            if self._is_forked(waiting):
                views.append(self._joining_view(info, state="refused"))
            elif not self._is_in(info.space_id) and info.state != "joined":
                views.append(self._joining_view(info))
        return views

    async def arrived(self) -> list[str]:
        """Return the spaces that this device accepted an invitation to and is in now.

        A space whose log does not hold what the link names is not one of them: the person is
        told, and nothing is written there by itself.
        """
        found = []
        for invitation_id, waiting in (await self._moves.begun(JOINING)).items():
            space_id = str(waiting.get("spaceId")) if isinstance(waiting, dict) else ""
            if self._is_forked(waiting):
                self._tell(invitation_id)
            elif self._is_in(space_id):
                found.append(space_id)
        return found

    async def forget_joining(self, space_id: str) -> None:
        """Take off what was noted of joining a space."""
        done: dict[str, Json] = {
            name: None
            for name, waiting in (await self._moves.begun(JOINING)).items()
            if isinstance(waiting, dict) and waiting.get("spaceId") == space_id
        }
        if done:
            await self._moves.note(JOINING, done)

    def _is_in(self, space_id: str) -> bool:
        found = self._moves.vault.spaces.get(space_id)
        return found is not None and not found.former

    def _is_forked(self, waiting: Json) -> bool:
        """Say whether a space came whose log is not the one that its inviter saw."""
        if not isinstance(waiting, dict):
            return False
        found = self._moves.vault.spaces.get(str(waiting.get("spaceId")))
        return (
            found is not None
            and not found.former
            and waiting.get("head") not in found.verified.hashes
        )

    # Within

    def _require_manager(self, space_id: str) -> SpaceKeys:
        space = self._moves.space(space_id)
        if not space.shared:
            raise SpaceUndeletable("your own space is never shared")
        if space.role is None or not can_manage(space.role):
            raise MembershipRefused("only owners and admins invite", detail={"reason": "role"})
        return space

    async def _keep(self, offer: Offer) -> None:
        values: dict[str, Json] = {
            "spaceId": offer.space_id,
            "role": offer.role,
            "secret": secret_text(offer.secret),
            "expiresAt": iso_ms(offer.expires_ms),
            "label": offer.label,
            "head": offer.head,
        }
        record_id = RecordId(offer.invitation_id)
        change = Change(INVITATIONS.name, record_id, ChangeKind.CREATE, values)
        await self._opened.book.commit([Write(change, self._opened.person)], wait=True)

    async def _drop(self, invitation_id: str) -> None:
        view = await self._opened.book.view(INVITATIONS.name, invitation_id)
        if view is None or view.deleted:
            return
        values: dict[str, Json] = {DELETED_AT: self._opened.now_iso(), "secret": None}
        change = Change(INVITATIONS.name, view.id, ChangeKind.DELETE, values)
        await self._opened.book.commit([Write(change, self._opened.person)])

    async def _offers(self, space_id: str) -> dict[str, Offer]:
        """Return this account's own invitations into a space, by id."""
        views = await self._opened.book.views(INVITATIONS.name)
        offers = (offer_of(view) for view in views)
        return {one.invitation_id: one for one in offers if one and one.space_id == space_id}

    def _view(self, space: SpaceKeys, info: InvitationInfo, offer: Offer | None) -> InvitationView:
        state, link = info.state, ""
        if offer is not None:
            if info.state == "open":
                url = self._opened.book.settings.hub_url
                name = (url, space.space_id, offer.invitation_id, offer.secret)
                link = InvitationLink(*name, head=space.verified.head).text()
            if info.state == "accepted":
                state = "expired" if self._is_over(offer) else _judged(offer, info)
        return InvitationView(
            invitation_id=info.invitation_id,
            space_id=info.space_id,
            role=offer.role if offer is not None else info.role,
            state=state,
            expires_ms=offer.expires_ms if offer is not None else _moment_ms(info.expires_at),
            label=offer.label if offer is not None else "",
            link=link,
            fingerprint=_fingerprint(info),
        )

    def _joining_view(self, info: InvitationInfo, *, state: str = "") -> InvitationView:
        return InvitationView(
            invitation_id=info.invitation_id,
            space_id=info.space_id,
            role=info.role,
            state=state or info.state,
            expires_ms=_moment_ms(info.expires_at),
            fingerprint=self._moves.vault.identity.public().fingerprint(),
        )


def newcomer_of(offer: Offer, info: InvitationInfo) -> Member:
    """Return whom an acceptance lets in, with the role of the offer.

    Raises InvitationRejected, or Malformed for keys that are none: the hub's word is not enough.
    """
    account_id, signing_key, hpke_key = info.account_id, info.signing_key, info.hpke_key
    if account_id is None or signing_key is None or hpke_key is None or info.mac is None:
        raise InvitationRejected("the hub does not say who accepted the invitation")
    verify_acceptance(
        offer.secret,
        offer.space_id,
        offer.invitation_id,
        account_id=account_id,
        signing_key=signing_key,
        hpke_key=hpke_key,
        proof=info.mac,
    )
    newcomer = Member(account_id, offer.role, signing_key, hpke_key)
    public_identity(newcomer)
    return newcomer


def _judged(offer: Offer, info: InvitationInfo) -> str:
    try:
        newcomer_of(offer, info)
    except CryptoFailed:
        return "refused"
    return info.state


def was_used(space: SpaceKeys, offer: Offer, account_id: str) -> bool:
    """Say whether an account has been in the space since an invitation was made.

    So an acceptance that is shown again, after the account was removed, lets nobody in. If the log
    does not hold the head that the invitation was made at, it counts as used.
    """
    hashes = space.verified.hashes
    if offer.head not in hashes:
        return True
    since = space.entries[hashes.index(offer.head) :]
    return any(entry.member(account_id) is not None for entry in since)


def offer_of(view: View) -> Offer | None:
    """Return the invitation of an own record; None for one that is not whole."""
    try:
        role = next(one for one in INVITED_ROLES if one == view.text("role"))
        return Offer(
            invitation_id=str(view.id),
            space_id=view.text("spaceId"),
            role=role,
            secret=parse_secret(view.text("secret")),
            expires_ms=parse_iso_ms(view.text("expiresAt")),
            label=view.text("label"),
            head=view.text("head"),
        )
    except (ManaError, StopIteration):
        return None


def _moment_ms(moment: str) -> int:
    try:
        return parse_iso_ms(moment)
    except Invalid:
        return 0


def _fingerprint(info: InvitationInfo) -> str:
    if info.account_id is None or info.signing_key is None or info.hpke_key is None:
        return ""
    try:
        member = Member(info.account_id, "viewer", info.signing_key, info.hpke_key)
        return public_identity(member).fingerprint()
    except CryptoFailed:
        return ""
