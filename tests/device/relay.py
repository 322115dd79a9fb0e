"""A hub between a new device and an old one, which a test can make an attacker at each message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from mana.crypto.identity import PrivateIdentity, certify_device
from mana.crypto.linking import LinkKeys, commit, hand_over, new_nonce
from mana.crypto.primitives import b64, unb64
from mana.crypto.vaults import new_challenge, verify_proof
from mana.device.links import Handover, Links, Newcomer, PendingLink, begin_link
from mana.device.opened import Opened
from mana.device.vault import OpenedVault
from mana.protocol.errors import LinkEnded, ProofRefused
from mana.protocol.messages import (
    ApproveLink,
    DeviceCertificate,
    Identity,
    KdfParameters,
    LinkInfo,
    LinkRequest,
    LinkReveal,
    LinkState,
    LinkTicket,
    MasterProof,
    Tokens,
    Vault,
)
from mana.testing.accounts import NewAccount, new_account
from tests.hub.client import START_MS

ADA = new_account("Ada", now_ms=START_MS)
MALLORY = new_account("Mallory", now_ms=START_MS)
Twist = Callable[[Any], Any]


def vault_of(account: NewAccount) -> OpenedVault:
    """Return the open vault of an account."""
    return OpenedVault(
        account_id=account.account_id,
        login=account.login,
        mode="standard",
        login_key=account.login_key,
        master_key=account.master_key,
        identity=account.identity,
    )


@dataclass
class Relay:
    """A hub that keeps to vault.md, 6, except where a twist changes what it passes on.

    Twists by point: `request` (to the old device), `answer` (to the new one), `reveal` (to the
    old one), `handover` (to the new one). Everything that was sent to the hub is in `heard`.
    """

    account: NewAccount = ADA
    twists: dict[str, Twist] = field(default_factory=dict)
    link: LinkInfo | None = None
    approval: ApproveLink | None = None
    heard: list[Any] = field(default_factory=list)
    challenge: str = field(default_factory=new_challenge)

    def _told(self, point: str, value: Any) -> Any:
        twist = self.twists.get(point)
        return value if twist is None else twist(value)

    def _standing(self) -> LinkInfo:
        if self.link is None:
            raise LinkEnded("no such link")
        return self.link

    # The new device's calls

    async def begin_link(self, request: LinkRequest) -> LinkTicket:
        self.heard.append(request)
        info = LinkInfo(
            link_id=request.link_id,
            name=request.name,
            state="waiting",
            created_at="",
            expires_at="",
            commitment=request.commitment,
        )
        self.link = self._told("request", info)
        return LinkTicket(ticket="ticket", expires_at="2027-01-15T08:10:00.000Z")

    async def poll_link(self, link_id: str, ticket: str) -> LinkState:
        link = self._standing()
        state = LinkState(state=link.state)
        if link.state in ("answered", "revealed", "approved"):
            answer = msgspec.structs.replace(
                state, account_id=self.account.account_id, nonce=link.own_nonce
            )
            state = self._told("answer", answer)
        if link.state == "approved" and self.approval is not None:
            handover = msgspec.structs.replace(
                state,
                wrapped=self.approval.wrapped,
                certificate=self.approval.certificate,
                tokens=Tokens(self.account.account_id, "access", "refresh", 900),
            )
            state = self._told("handover", handover)
        return state

    async def reveal_link(self, link_id: str, reveal: LinkReveal) -> None:
        self.heard.append(reveal)
        revealed = msgspec.structs.replace(
            self._standing(),
            state="revealed",
            hpke_key=reveal.hpke_key,
            device_key=reveal.device_key,
            device_id=reveal.device_id,
            nonce=reveal.nonce,
        )
        self.link = self._told("reveal", revealed)

    async def close(self) -> None:
        pass

    # The old device's calls

    async def links(self) -> list[LinkInfo]:
        return [] if self.link is None else [self.link]

    async def answer_link(self, link_id: str, nonce: bytes) -> None:
        self.heard.append(nonce)
        self.link = msgspec.structs.replace(
            self._standing(), state="answered", own_nonce=b64(nonce)
        )

    async def vault(self) -> Vault:
        request = self.account.request
        return Vault(
            account_id=self.account.account_id,
            login=self.account.login,
            mode="standard",
            role="member",
            kdf=KdfParameters(salt="", t=1, m_kib=8, p=1),
            master_wrap=request.master_wrap,
            master_check=request.master_check,
            identity=cast(Identity, request.identity),
            challenge=self.challenge,
        )

    async def approve_link(self, link_id: str, approval: ApproveLink) -> None:
        self.heard.append(approval)
        self.require_proof(
            approval.proof,
            "link-approve",
            {"linkId": link_id, "deviceId": approval.certificate.device_id},
        )
        self.approval = approval
        self.link = msgspec.structs.replace(self._standing(), state="approved")

    async def refuse_link(self, link_id: str) -> None:
        self.link = msgspec.structs.replace(self._standing(), state="refused")

    def require_proof(self, proof: MasterProof, action: str, body: dict[str, Any]) -> None:
        """Check a proof as the hub does; each challenge counts once."""
        if proof.challenge != self.challenge:
            raise ProofRefused("another challenge stands")
        self.challenge = new_challenge()
        verify_proof(
            self.account.identity.signing_key.public(),
            unb64(proof.signature),
            self.account.account_id,
            action,
            proof.challenge,
            body,
        )


def old_device(relay: Relay) -> Links:
    """Return the old device's side, with the account of the relay open."""
    vault = vault_of(relay.account)
    opened = SimpleNamespace(
        hub=relay,
        account_id=vault.account_id,
        login=vault.login,
        now_ms=lambda: START_MS,
        book=SimpleNamespace(inner=lambda: SimpleNamespace(vault=vault)),
    )
    return Links(cast(Opened, opened))


async def new_device(relay: Relay, login: str = "ada ") -> PendingLink[Handover]:
    """Return the new device's side; what was handed over is returned by `finish`."""

    async def install(handover: Handover) -> Handover:
        return handover

    return await begin_link(cast(Any, relay), login, "Ada's laptop", install)


@dataclass
class Attacker:
    """The hub's own keys, with which it stands in for either device."""

    login: str = "ada"
    account: NewAccount = MALLORY
    own_nonce: bytes = field(default_factory=new_nonce)
    newcomer: Newcomer = field(default_factory=lambda: Newcomer("ada"))

    def __post_init__(self) -> None:
        self.nonce = new_nonce()

    def keys(self) -> LinkKeys:
        shown = self.newcomer._keys
        return LinkKeys(shown.hpke_key, shown.device_key, shown.device_id)

    def swap_commitment(self, info: LinkInfo) -> LinkInfo:
        """Commit to the attacker's keys in the new device's name."""
        mine = commit(info.link_id, self.login, self.keys(), self.nonce)
        return msgspec.structs.replace(info, commitment=b64(mine))

    def swap_keys(self, info: LinkInfo) -> LinkInfo:
        """Show the attacker's keys instead of the new device's."""
        keys = self.keys()
        return msgspec.structs.replace(
            info,
            hpke_key=b64(keys.hpke_key.to_bytes()),
            device_key=b64(keys.device_key.to_bytes()),
            device_id=keys.device_id,
            nonce=b64(self.nonce),
        )

    def swap_one(self, name: str) -> Twist:
        """Show one member of the attacker's instead of the new device's."""

        def twist(info: LinkInfo) -> LinkInfo:
            return msgspec.structs.replace(info, **{name: getattr(self.swap_keys(info), name)})

        return twist

    def swap_answer(self, state: LinkState) -> LinkState:
        """Answer the new device with the attacker's nonce."""
        return msgspec.structs.replace(state, nonce=b64(self.own_nonce))

    def swap_account(self, state: LinkState) -> LinkState:
        """Answer the new device in the name of the attacker's account."""
        return msgspec.structs.replace(state, account_id=self.account.account_id)

    def swap_handover(self, state: LinkState, shown: Newcomer) -> LinkState:
        """Hand over the attacker's account, bound to what the new device shows."""
        assert state.account_id is not None
        assert shown.digits is not None
        keys = shown._keys
        wrapped = hand_over(
            self.account.master_key, shown.link_id, state.account_id, shown.digits, keys
        )
        certificate = certified(self.account.identity, keys, state.account_id)
        return msgspec.structs.replace(state, wrapped=b64(wrapped), certificate=certificate)


def certified(identity: PrivateIdentity, keys: LinkKeys, account_id: str) -> DeviceCertificate:
    """Return a certificate by some identity for the keys of a new device."""
    made = certify_device(
        identity.signing_key,
        account_id,
        keys.device_id,
        keys.device_key,
        "2027-01-15T08:00:00.000Z",
    )
    return msgspec.convert(made.to_wire(), DeviceCertificate)
