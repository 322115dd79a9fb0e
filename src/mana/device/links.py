"""Unlocking a new device by one that is signed in, both sides of it.

The hub stands between the two and may be an attacker. The new device keeps to the account and the
nonce that it showed its key for; the old one derives its nonce from the commitment, so that it
needs to remember nothing and another commitment is another nonce. What is left to the hub is one
guess at the digits that the person compares on both devices.
Normative: docs/protocol/vault.md, 6.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.identity import certify_device
from mana.crypto.linking import (
    LinkKeys,
    commit,
    hand_over,
    link_digits,
    new_nonce,
    old_nonce,
    open_commitment,
    open_old_nonce,
    receive,
)
from mana.crypto.primitives import Random, b64, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.device.hub_client import HubClient
from mana.device.opened import Opened
from mana.device.proofs import proved
from mana.device.vault import DeviceKey, OpenedVault, folded_login, random_id
from mana.domain.clock import iso_ms
from mana.domain.errors import Conflict, CryptoFailed, Invalid
from mana.domain.ids import DeviceId, require_uuid
from mana.protocol.errors import LinkEnded
from mana.protocol.messages import (
    ApproveLink,
    DeviceCertificate,
    LinkInfo,
    LinkRequest,
    LinkReveal,
    LinkState,
    MasterProof,
    Tokens,
)
from mana.protocol.replication import HubDistrusted

NAME_MAX: Final = 80
LinkStep: TypeAlias = Literal["waiting", "answered", "revealed", "approved", "refused", "forged"]
LINKS_MAX: Final = 20
"""More than any hub lets wait for one account."""
_LINK_ID_BYTES: Final = 16
_SHOWN_MS: Final = 3_600_000
"""Longer than any link lives: what was shown is not forgotten while it can be on a screen."""
_T = TypeVar("_T")


class LinkNotShown(Conflict):
    """The digits of this link were not shown on this device, so nobody can have compared them."""

    code: ClassVar[str] = "LINK_NOT_SHOWN"
    advice: ClassVar[str] = "Compare the digits on both devices, then allow it."


class LinkNotApproved(Conflict):
    """The other device has not allowed this link yet."""

    code: ClassVar[str] = "LINK_NOT_APPROVED"
    advice: ClassVar[str] = "Compare the digits, and allow it on the other device."


@dataclass(frozen=True, slots=True)
class LinkView:
    """A link as either side shows it.

    `state`: `waiting` for an answer; `answered`, and the new device's key is awaited; `revealed`:
    compare `digits`, two groups of six, and then allow it; `approved`; `refused`; `forged`: not
    what was committed to, refuse it. `name` is what the new device calls itself, and proves
    nothing. Times are ISO; the new device knows only the end.
    """

    link_id: str
    name: str
    state: LinkStep
    digits: str | None = None
    created_at: str = ""
    expires_at: str = ""


# The new device


@dataclass(frozen=True, slots=True)
class Handover:
    """What a link gave: the master key, this device's certified key, and a session."""

    login: str
    account_id: str
    master_key: bytes = field(repr=False)
    device: DeviceKey = field(repr=False)
    tokens: Tokens = field(repr=False)


class Newcomer:
    """The new device's half of one link, without the wire. Its keys live here only."""

    def __init__(
        self, login: str, *, new_id: Callable[[], str] = random_id, random: Random = os.urandom
    ) -> None:
        self.login: Final = folded_login(login)
        self.link_id: Final = random(_LINK_ID_BYTES).hex()
        self.digits: str | None = None
        self._hpke_key = HpkePrivateKey.generate(random=random)
        self._device_key = SigningKey.generate(random=random)
        self._keys = LinkKeys(self._hpke_key.public(), self._device_key.public(), new_id())
        self._nonce = new_nonce(random=random)
        self._answer: tuple[str, bytes] | None = None
        # What is shown before the other device's nonce is known.
        self.commitment: Final = commit(self.link_id, self.login, self._keys, self._nonce)

    def take_answer(self, state: LinkState) -> None:
        """Take account and nonce of the other device, the first that are named.

        Raises HubDistrusted for others later: this device's key was shown for the first.
        """
        if state.account_id is None or state.nonce is None:
            raise HubDistrusted("the hub names no answer to the link")
        answer = (state.account_id, unb64(state.nonce))
        if self._answer not in (None, answer):
            raise HubDistrusted("the hub names another answer than before")
        account_id, nonce = answer
        self.digits = link_digits(
            self.link_id, self.login, account_id, self._keys, self._nonce, nonce
        )
        self._answer = answer

    def reveal(self, ticket: str) -> LinkReveal:
        """Return what was committed to. It is shown once the other nonce is known, not before."""
        if self._answer is None:
            raise HubDistrusted("the hub asks for the key before there is an answer")
        return LinkReveal(
            ticket=ticket,
            hpke_key=b64(self._keys.hpke_key.to_bytes()),
            device_key=b64(self._keys.device_key.to_bytes()),
            device_id=self._keys.device_id,
            nonce=b64(self._nonce),
        )

    def receive(self, state: LinkState) -> Handover:
        """Return what was handed over, by whoever gave the digits and to this device alone.

        Raises WrapRejected or HubDistrusted for anything else. The certificate's signature is
        checked with the vault.
        """
        if self._answer is None or self.digits is None:
            raise HubDistrusted("the hub speaks of an approval before there was an answer")
        account_id, nonce = self._answer
        wrapped, certificate, tokens = state.wrapped, state.certificate, state.tokens
        if wrapped is None or certificate is None or tokens is None:
            raise HubDistrusted("the hub holds back a part of what was handed over")
        master_key = receive(unb64(wrapped), self.link_id, account_id, self.digits, self._hpke_key)
        open_old_nonce(nonce, master_key, self.link_id, self.commitment)
        named = (certificate.account_id, certificate.device_id, certificate.public_key)
        own = b64(self._keys.device_key.to_bytes())
        if named != (account_id, self._keys.device_id, own):
            raise HubDistrusted("the certificate is not of this device")
        device = DeviceKey(DeviceId(certificate.device_id), self._device_key, certificate)
        return Handover(self.login, account_id, master_key, device, tokens)


class PendingLink(Generic[_T]):
    """A new device that waits to be unlocked by another; `install` makes an account of it."""

    def __init__(
        self,
        hub: HubClient,
        newcomer: Newcomer,
        name: str,
        ticket: str,
        expires_at: str,
        install: Callable[[Handover], Awaitable[_T]],
    ) -> None:
        self._hub = hub
        self._newcomer = newcomer
        self._name = name
        self._ticket = ticket
        self._install = install
        self._given: Handover | None = None
        self._has_revealed = False
        self.link_id: Final = newcomer.link_id
        self.expires_at: Final = expires_at

    async def poll(self) -> LinkView:
        """Ask how the link stands, and go on with it as far as no person is needed.

        Raises LinkEnded, and HubDistrusted if the hub contradicts itself.
        """
        if self._given is not None:
            return self._view("approved")
        state = await self._hub.poll_link(self.link_id, self._ticket)
        if state.state in ("waiting", "refused") and self._newcomer.digits is None:
            return self._view("waiting" if state.state == "waiting" else "refused")
        if state.state == "refused":
            return self._view("refused")
        if state.state not in ("answered", "revealed", "approved"):
            raise HubDistrusted("the hub names a state of the link that cannot be")
        self._newcomer.take_answer(state)
        if state.state == "answered":
            # Noted before it is sent: if the answer to it is lost, the hub may have it.
            self._has_revealed = True
            await self._hub.reveal_link(self.link_id, self._newcomer.reveal(self._ticket))
        elif not self._has_revealed:
            raise HubDistrusted("the hub goes on with a key that was not shown to it")
        if state.state != "approved":
            return self._view("revealed")
        self._given = self._newcomer.receive(state)
        return self._view("approved")

    async def finish(self) -> _T:
        """Open the account that was handed over, and return it.

        Call it at the person's word that both devices show the same digits, and never by
        itself: a hub that plays the other device can be told in no other way. Raises
        LinkNotApproved. If the hub goes away, it can be called again.
        """
        if self._given is None:
            raise LinkNotApproved("the link is not approved yet")
        made = await self._install(self._given)
        await self.close()
        return made

    async def close(self) -> None:
        """Give the link up; what was handed over is dropped."""
        self._given = None
        await self._hub.close()

    def _view(self, state: LinkStep) -> LinkView:
        digits = self._newcomer.digits if self._has_revealed else None
        return LinkView(self.link_id, self._name, state, digits, "", self.expires_at)


async def begin_link(
    hub: HubClient,
    login: str,
    name: str,
    install: Callable[[Handover], Awaitable[_T]],
    *,
    new_id: Callable[[], str] = random_id,
) -> PendingLink[_T]:
    """Ask the other devices of an account to unlock this one; the hub needs no session for it.

    `name`: what this device calls itself, 1 to 80 characters.
    """
    called = name.strip()
    if not 0 < len(called) <= NAME_MAX:
        raise Invalid(f"the name of a device has 1 to {NAME_MAX} characters")
    newcomer = Newcomer(login, new_id=new_id)
    request = LinkRequest(
        link_id=newcomer.link_id,
        login=newcomer.login,
        name=called,
        commitment=b64(newcomer.commitment),
    )
    ticket = await hub.begin_link(request)
    return PendingLink(hub, newcomer, called, ticket.ticket, ticket.expires_at, install)


# The old device


@dataclass(frozen=True, slots=True)
class Revealed:
    """A link as the old device showed it to the person: what it will hand over to, if allowed."""

    keys: LinkKeys
    digits: str
    until_ms: int
    is_forged: bool = False


class Links:
    """The new devices that ask this account to be unlocked, as this device answers them."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._shown: dict[str, Revealed] = {}

    async def waiting(self) -> list[LinkView]:
        """Return the links of this account, with their digits once both sides gave their nonce."""
        infos = await self._opened.hub.links()
        if len(infos) > LINKS_MAX:
            raise HubDistrusted("the hub names more links than an account can have")
        now_ms = self._opened.now_ms()
        # Not by what the hub lists: it would show other keys under digits that are on a screen.
        self._shown = {key: kept for key, kept in self._shown.items() if now_ms < kept.until_ms}
        return [self._view(info, now_ms) for info in infos]

    async def answer(self, link_id: str) -> None:
        """Begin to unlock a new device: its key and the digits come next. Raises LinkEnded."""
        found = [info for info in await self._opened.hub.links() if info.link_id == link_id]
        if not found:
            raise LinkEnded("no such link waits")
        if found[0].state == "waiting":
            await self._opened.hub.answer_link(link_id, self._nonce(found[0]))

    async def approve(self, link_id: str) -> None:
        """Hand the account over to the new device whose digits the person has compared.

        Raises LinkNotShown, LinkEnded, and VaultMoved if another device changed the keys.
        """
        shown = self._shown.get(link_id)
        if shown is None or shown.is_forged:
            raise LinkNotShown("the digits were not shown on this device")
        opened, vault = self._opened, self._vault()
        keys = shown.keys
        made = certify_device(
            vault.identity.signing_key,
            vault.account_id,
            keys.device_id,
            keys.device_key,
            iso_ms(opened.now_ms()),
        )
        certificate = msgspec.convert(made.to_wire(), DeviceCertificate)
        wrapped = hand_over(vault.master_key, link_id, vault.account_id, shown.digits, keys)

        async def send(proof: MasterProof) -> None:
            approval = ApproveLink(wrapped=b64(wrapped), certificate=certificate, proof=proof)
            await opened.hub.approve_link(link_id, approval)

        body = {"linkId": link_id, "deviceId": keys.device_id}
        await proved(opened.hub, vault, "link-approve", body, send)
        self._shown.pop(link_id, None)

    async def refuse(self, link_id: str) -> None:
        """End a link; nothing was handed over."""
        self._shown.pop(link_id, None)
        await self._opened.hub.refuse_link(link_id)

    def _vault(self) -> OpenedVault:
        return self._opened.book.inner().vault

    def _nonce(self, info: LinkInfo) -> bytes:
        return old_nonce(self._vault().master_key, info.link_id, unb64(info.commitment))

    def _view(self, info: LinkInfo, now_ms: int) -> LinkView:
        digits: str | None = None
        state: LinkStep = "waiting" if info.state == "waiting" else "answered"
        if info.state == "revealed":
            shown = self._shown.get(info.link_id)
            try:
                revealed = self._revealed(info, now_ms)
            except (CryptoFailed, Invalid):
                state = "forged"
            else:
                shown = self._shown.setdefault(info.link_id, revealed)
                if shown.is_forged or shown.digits != revealed.digits:
                    state = "forged"
                else:
                    state, digits = "revealed", shown.digits
            if state == "forged" and shown is not None:
                self._shown[info.link_id] = replace(shown, is_forged=True)
        return LinkView(info.link_id, info.name, state, digits, info.created_at, info.expires_at)

    def _revealed(self, info: LinkInfo, now_ms: int) -> Revealed:
        """Return what the new device has revealed, with the digits.

        Raises SignatureRejected if it had committed to something else, and what else is wrong
        with its form.
        """
        members = (info.hpke_key, info.device_key, info.device_id, info.nonce)
        hpke_key, device_key, device_id, nonce = members
        if hpke_key is None or device_key is None or device_id is None or nonce is None:
            raise Invalid("a part of what the new device shows is missing")
        require_uuid(device_id, "the device's id")
        keys = LinkKeys(HpkePublicKey(unb64(hpke_key)), VerifyKey(unb64(device_key)), device_id)
        login, theirs = folded_login(self._opened.login), unb64(nonce)
        open_commitment(unb64(info.commitment), info.link_id, login, keys, theirs)
        account_id = self._opened.account_id
        digits = link_digits(info.link_id, login, account_id, keys, theirs, self._nonce(info))
        return Revealed(keys, digits, now_ms + _SHOWN_MS)
