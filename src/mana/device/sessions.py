"""Who is signed in to the account, by which devices, and what is asked for besides the password.

A session alone changes none of it: a device is revoked by the identity, and a second factor is
added or removed with a proof that the vault is open. Normative: docs/protocol/vault.md, 3 and 5.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from mana.crypto.identity import DeviceCertificate as Certificate
from mana.crypto.identity import revoke_device, verify_certificate
from mana.crypto.primitives import b64
from mana.device.opened import Opened
from mana.device.proofs import proved
from mana.device.qr import qr_svg
from mana.device.vault import OpenedVault
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Invalid, NotFound
from mana.protocol.messages import (
    DeviceCertificate,
    DeviceRevocation,
    FactorAnswer,
    FactorInfo,
    FactorSetup,
    MasterProof,
    NewFactor,
    RemoveFactor,
    SessionInfo,
)
from mana.protocol.replication import HubDistrusted

FACTOR_NAME_MAX: Final = 80


class DeviceInUse(Conflict):
    """A device does not revoke itself: it could no longer send what waits."""

    code: ClassVar[str] = "DEVICE_IN_USE"
    advice: ClassVar[str] = "Sign out here instead, or revoke it from another device."


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device of the account. Times are ISO; `revoked_at` None: it counts.

    `name`: what its newest session calls itself, empty without one. `current`: this device.
    `certified`: the account's identity signed it, so it is none that the hub made up.
    """

    id: str
    name: str
    created_at: str
    revoked_at: str | None
    current: bool
    certified: bool


@dataclass(frozen=True, slots=True)
class TotpSetup:
    """What an authenticator needs: the secret (base32), or the address as a QR code (SVG)."""

    factor_id: str
    secret: str = field(repr=False)
    uri: str = field(repr=False)
    qr_svg: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasskeySetup:
    """What the browser needs to make a passkey: `PublicKeyCredentialCreationOptions` as JSON."""

    factor_id: str
    options: dict[str, Json]


class Sessions:
    """The sessions, devices and second factors of an account. All of it needs the hub."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def list(self) -> builtins.list[SessionInfo]:
        """Return the sessions that stand, newest first."""
        return await self._opened.hub.sessions()

    async def end(self, session_id: str) -> None:
        """End a session at once; its device asks for the password. Raises NotFound."""
        await self._opened.hub.end_session(session_id)

    async def devices(self) -> builtins.list[DeviceView]:
        """Return the account's devices, those that count first, newest first."""
        hub = self._opened.hub
        answer = await hub.own_devices()
        names = _names(await hub.sessions())
        revoked = {one.device_id: one.revoked_at for one in answer.revoked}
        vault = self._vault()
        # While the identity changes a device has two certificates, one by each.
        certificates: dict[str, DeviceCertificate] = {}
        certified: set[str] = set()
        for one in answer.devices:
            certificates.setdefault(one.device_id, one)
            if is_certified(one, vault):
                certified.add(one.device_id)
        found = [
            DeviceView(
                id=device_id,
                name=names.get(device_id, ""),
                created_at=certificate.created_at,
                revoked_at=revoked.get(device_id),
                current=device_id == self._opened.device_id,
                certified=device_id in certified,
            )
            for device_id, certificate in certificates.items()
        ]
        found.sort(key=lambda view: view.created_at, reverse=True)
        return sorted(found, key=lambda view: view.revoked_at is not None)

    async def revoke(self, device_id: str) -> None:
        """End a device for ever: its sessions end, and what it signs later counts nowhere.

        What it wrote before stays. Raises DeviceInUse for this device, and NotFound.
        """
        opened = self._opened
        if device_id == opened.device_id:
            raise DeviceInUse("this is the device at hand")
        known = {one.device_id for one in (await opened.hub.own_devices()).devices}
        if device_id not in known:
            raise NotFound("the account has no such device")
        vault = self._vault()
        at = iso_ms(opened.now_ms())
        word = revoke_device(vault.identity.signing_key, vault.account_id, device_id, at)
        await opened.hub.revoke_device(
            DeviceRevocation(
                account_id=word.account_id,
                device_id=word.device_id,
                revoked_at=word.revoked_at,
                signature=b64(word.signature),
            )
        )

    # Second factors

    async def factors(self) -> builtins.list[FactorInfo]:
        """Return the second factors that a log-in asks for."""
        return await self._opened.hub.factors()

    async def begin_totp(self, name: str) -> TotpSetup:
        """Begin to add an authenticator; its first code finishes it, within ten minutes."""
        made = await self._begin("totp", name)
        if made.secret is None or made.uri is None or not _is_address(made.uri, made.secret):
            raise HubDistrusted("the hub's authenticator is not of the form that it should be")
        return TotpSetup(made.factor_id, made.secret, made.uri, qr_svg(made.uri))

    async def begin_passkey(self, name: str) -> PasskeySetup:
        """Begin to add a passkey; the browser's answer finishes it, within ten minutes."""
        made = await self._begin("passkey", name)
        if made.options is None:
            raise HubDistrusted("the hub's passkey is not of the form that it should be")
        return PasskeySetup(made.factor_id, made.options)

    async def finish_factor(self, factor_id: str, answer: FactorAnswer) -> None:
        """Let a factor count, by its first answer; raise TwoFactorFailed or FactorUnknown."""
        await self._opened.hub.finish_factor(factor_id, answer)

    async def remove_factor(self, factor_id: str) -> None:
        """Remove a second factor; raise FactorUnknown."""

        async def send(proof: MasterProof) -> None:
            await self._opened.hub.remove_factor(factor_id, RemoveFactor(proof=proof))

        body = {"factorId": factor_id}
        await proved(self._opened.hub, self._vault(), "factor-remove", body, send)

    async def _begin(self, kind: str, name: str) -> FactorSetup:
        called = name.strip()
        if not 0 < len(called) <= FACTOR_NAME_MAX:
            raise Invalid(f"the name of a second factor has 1 to {FACTOR_NAME_MAX} characters")

        async def send(proof: MasterProof) -> FactorSetup:
            new = NewFactor(kind=kind, name=called, proof=proof)
            return await self._opened.hub.begin_factor(new)

        body = {"kind": kind, "name": called}
        return await proved(self._opened.hub, self._vault(), "factor-begin", body, send)

    def _vault(self) -> OpenedVault:
        return self._opened.book.inner().vault


def _names(sessions: Sequence[SessionInfo]) -> dict[str, str]:
    """Return by device id what its newest session calls itself."""
    names: dict[str, str] = {}
    for session in sessions:
        if session.device_id is not None and session.name:
            names.setdefault(session.device_id, session.name)
    return names


def is_certified(certificate: DeviceCertificate, vault: OpenedVault) -> bool:
    """Say whether the account signed a device, as it is or was: the hub can list any it likes."""
    for identity in vault.identities:
        try:
            read = Certificate.from_wire(msgspec.to_builtins(certificate))
            verify_certificate(read, identity.signing_key.public(), vault.account_id)
        except CryptoFailed:
            continue
        return True
    return False


def _is_address(uri: str, secret: str) -> bool:
    """Say whether the address of an authenticator holds this secret."""
    parts = urlsplit(uri)
    named = parse_qs(parts.query).get("secret")
    return (parts.scheme, parts.netloc, named) == ("otpauth", "totp", [secret])
