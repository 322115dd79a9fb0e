"""What a person does with the keys of their account: password, recovery code, mode, rotation.

Each is one signed change of the vault. A recovery code is shown once the hub has it, and stays
kept here, sealed, until the person has said that they have it.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from mana.crypto.authority import read_revocation
from mana.crypto.errors import WrapRejected
from mana.crypto.identity import verify_revocation
from mana.crypto.keys import unwrap_master_key
from mana.crypto.passwords import PasswordKeys
from mana.crypto.vaults import recovery_code
from mana.device.accounts import require_password
from mana.device.errors import WrongPassword
from mana.device.idling import auto_lock_minutes
from mana.device.keeper import VaultKeeper
from mana.device.keyring import is_remembered
from mana.device.opened import Opened
from mana.device.qr import qr_svg
from mana.device.rotation import Counted
from mana.device.sessions import is_certified
from mana.device.vault import UNLOCK_KEY_ID, OpenedVault, derive, new_kdf
from mana.device.vaults import (
    FORMERS_MAX,
    STANDARD,
    ZERO_KNOWLEDGE,
    NewPassword,
    Wish,
    signing_key,
)
from mana.device.views import RotationView
from mana.domain.errors import CryptoFailed, Invalid, ManaError
from mana.protocol.errors import RecoveryWrapMissing
from mana.protocol.messages import (
    DeviceCertificate,
    DeviceRevocation,
    FactorAnswer,
    FactorInfo,
    KdfParameters,
    SecurityEvent,
    Vault,
)

MODES: Final = (STANDARD, ZERO_KNOWLEDGE)


@dataclass(frozen=True, slots=True)
class RecoveryKit:
    """What a person keeps on paper. `made_at`: ISO; the code alone is in the QR code."""

    login: str
    account_id: str
    fingerprint: str
    code: str = field(repr=False)
    made_at: str
    hub_url: str

    def qr_svg(self) -> str:
        """Return the code as a QR code (SVG)."""
        return qr_svg(self.code)


@dataclass(frozen=True, slots=True)
class SecurityStatus:
    """How an account stands. `recovery_set_at`: ISO, None without a code; minutes 0: never.

    `recovery_waiting`: a new recovery code waits to be seen. `factors` is None offline.
    """

    mode: str
    revision: int
    fingerprint: str
    recovery_set_at: str | None
    recovery_waiting: bool
    grants: bool
    factors: list[FactorInfo] | None
    rotations: list[RotationView]
    keyring: bool
    auto_lock_minutes: int


@dataclass(frozen=True, slots=True)
class Rotating:
    """How spaces follow new keys, what still counts on older ones, and how one gets a new key."""

    views: Callable[[], Awaitable[list[RotationView]]]
    rotate_space: Callable[[str], Awaitable[None]]
    counted: Callable[[], Awaitable[Counted]]


class Security:
    """The keys of one unlocked account, as a person changes them. All but `status` needs the hub.

    Changes raise VaultMoved if another device was quicker, IdentityMoving while spaces follow the
    identity before, Offline, and HubDistrusted. If the answer was lost, what became of it is found
    out at the next sync.
    """

    def __init__(self, opened: Opened, rotating: Rotating) -> None:
        self._opened = opened
        self._rotating = rotating

    async def status(self) -> SecurityStatus:
        """Return how the account stands, as far as it is known here."""
        opened, standing = self._opened, self._keeper.standing
        factors: list[FactorInfo] | None
        try:
            factors = await opened.hub.factors()
        except ManaError:
            factors = None
        return SecurityStatus(
            mode=standing.mode,
            revision=standing.revision,
            fingerprint=self._vault.identity.public().fingerprint(),
            recovery_set_at=standing.recovery_set_at,
            recovery_waiting=await self._keeper.waiting_code() is not None,
            grants=standing.grants,
            factors=factors,
            rotations=await self.rotations(),
            keyring=await is_remembered(opened.book.inner().replica),
            auto_lock_minutes=await auto_lock_minutes(opened.book),
        )

    async def change_password(self, old: str, new: str) -> None:
        """Set another password; every other session ends. Raises WrongPassword."""
        require_password(new)
        kdf = new_kdf(self._opened.book.settings.kdf_floor)
        keys = await self._derive(new, kdf)

        async def wish(standing: Vault) -> Wish:
            await self._unlock_key(standing, old)
            return Wish(password=NewPassword(kdf, keys))

        await self._keeper.change(wish)

    async def new_recovery_code(self) -> RecoveryKit:
        """Make a recovery code; the one before ends."""
        return await self._change_with_code(_wish(Wish(code=True)))

    async def remove_recovery_code(self) -> None:
        """End the recovery code; raise RecoveryWrapMissing in zero-knowledge mode."""
        if self._keeper.standing.mode == ZERO_KNOWLEDGE:
            raise RecoveryWrapMissing("zero-knowledge mode has a recovery code")
        await self._keeper.change(_wish(Wish(code=False)))

    async def rotate_master(self, password: str) -> RecoveryKit:
        """Draw another master key; the recovery code is another too. Raises WrongPassword."""

        async def wish(standing: Vault) -> Wish:
            return Wish(
                master=True,
                code=True,
                unlock_key=await self._unlock_key(standing, password),
                spares_master=await self._spares_master(standing),
            )

        return await self._change_with_code(wish)

    async def set_mode(self, mode: str, password: str) -> RecoveryKit | None:
        """Switch the mode; None: it is so already, or standard mode, which keeps the code.

        To zero-knowledge: every key is another from then on. To standard: the hub is given the
        master key. Raises WrongPassword.
        """
        if mode not in MODES:
            raise Invalid(f"a mode is one of: {', '.join(MODES)}")
        if mode == ZERO_KNOWLEDGE and self._keeper.standing.mode != mode:
            return await self._change_with_code(self._to_zero_knowledge(password))

        async def wish(standing: Vault) -> Wish:
            await self._unlock_key(standing, password)
            return Wish(mode=STANDARD, grants=True)

        if self._keeper.standing.mode != mode:
            await self._keeper.change(wish)
        return None

    async def allow_grants(self, allowed: bool) -> None:
        """Say whether missions of this account may be granted to the hub's runner.

        False ends all grants that stand.
        """
        if self._keeper.standing.grants != allowed:
            await self._keeper.change(_wish(Wish(grants=allowed)))

    async def rotate_identity(self) -> None:
        """Draw another identity; spaces and their members follow by themselves."""

        async def wish(standing: Vault) -> Wish:
            return Wish(identity=True, devices=await self._devices())

        await self._keeper.change(wish)

    async def rotate_space(self, space_id: str) -> None:
        """Give a space another key; owners and admins may."""
        await self._rotating.rotate_space(space_id)

    async def rotations(self) -> builtins.list[RotationView]:
        """Return how far spaces and records have followed new keys."""
        return await self._rotating.views()

    async def let_go(self) -> bool:
        """Drop the former identities on which nothing counts any more; say whether one was."""
        former = {signing_key(one) for one in self._vault.keys.former_identities}
        if not former:
            return False
        counted = await self._rotating.counted()
        if former <= counted.identities:
            return False
        await self._keeper.change(_wish(Wish(still_named=counted.identities)))
        return True

    async def events(
        self, before: str | None = None, limit: int = 50
    ) -> builtins.list[SecurityEvent]:
        """Return what happened to keys and sessions, newest first."""
        return (await self._opened.hub.security_events(before=before, limit=limit)).events

    async def refresh(self, password: str, *, factor: FactorAnswer | None = None) -> None:
        """Follow a vault that another device has changed, with the password in force.

        What waited here is sent then. Raises WrongPassword, TwoFactorRequired, HubDistrusted.
        """
        await self._keeper.follow(password, factor=factor)

    async def waiting_kit(self) -> RecoveryKit | None:
        """Return a recovery code that the hub has and nobody has confirmed to have seen."""
        found = await self._keeper.waiting_code()
        return None if found is None else self._kit(*found)

    async def kit_seen(self) -> None:
        """Forget the recovery code here: the person has it."""
        await self._keeper.code_seen()

    # Within

    @property
    def _keeper(self) -> VaultKeeper:
        return self._opened.book.inner().keeper

    @property
    def _vault(self) -> OpenedVault:
        return self._opened.book.inner().vault

    def _to_zero_knowledge(self, password: str) -> Callable[[Vault], Awaitable[Wish]]:
        async def wish(standing: Vault) -> Wish:
            return Wish(
                mode=ZERO_KNOWLEDGE,
                master=True,
                identity=True,
                code=True,
                grants=False,
                unlock_key=await self._unlock_key(standing, password),
                devices=await self._devices(),
                spares_master=await self._spares_master(standing),
            )

        return wish

    async def _change_with_code(self, wish: Callable[[Vault], Awaitable[Wish]]) -> RecoveryKit:
        secret = await self._keeper.change(wish)
        if secret is None:
            raise Invalid("the change made no recovery code")
        return self._kit(secret, self._keeper.standing.recovery_set_at or "")

    def _kit(self, secret: bytes, made_at: str) -> RecoveryKit:
        return RecoveryKit(
            login=self._opened.login,
            account_id=self._opened.account_id,
            fingerprint=self._vault.identity.public().fingerprint(),
            code=recovery_code(secret),
            made_at=made_at,
            hub_url=self._opened.book.settings.hub_url,
        )

    async def _derive(self, password: str, kdf: KdfParameters) -> PasswordKeys:
        floor = self._opened.book.settings.kdf_floor
        return await asyncio.to_thread(derive, password, self._opened.login, kdf, floor=floor)

    async def _unlock_key(self, standing: Vault, password: str) -> bytes:
        """Return the unlock key of the password in force; raise WrongPassword for any other."""
        keys = await self._derive(password, standing.kdf)
        try:
            unwrap_master_key(
                standing.master_wrap,
                keys.unlock_key,
                "unlock",
                standing.account_id,
                UNLOCK_KEY_ID,
            )
        except WrapRejected:
            raise WrongPassword("the password does not open this account") from None
        return keys.unlock_key

    async def _spares_master(self, standing: Vault) -> bool:
        """Say whether the oldest former master key may go: there is no room, and no use for it.

        Otherwise all of them stay, because a device that was away for long follows by them.
        """
        if len(standing.formers.masters) < FORMERS_MAX:
            return False
        return not (await self._rotating.counted()).masters

    async def _devices(self) -> list[DeviceCertificate]:
        """Return the devices of the account that count: certified by it, and not revoked."""
        answer, vault = await self._opened.hub.own_devices(), self._vault
        revoked = {one.device_id for one in answer.revoked if _is_revoked(one, vault)}
        return list(
            {
                one.device_id: one
                for one in answer.devices
                if one.device_id not in revoked and is_certified(one, vault)
            }.values()
        )


def _wish(wish: Wish) -> Callable[[Vault], Awaitable[Wish]]:
    async def build(standing: Vault) -> Wish:
        return wish

    return build


def _is_revoked(revocation: DeviceRevocation, vault: OpenedVault) -> bool:
    """Say whether the account revoked a device: the hub can leave none out by itself."""
    for identity in vault.identities:
        try:
            key = identity.signing_key.public()
            verify_revocation(read_revocation(revocation), key, vault.account_id)
        except CryptoFailed:
            continue
        return True
    return False
