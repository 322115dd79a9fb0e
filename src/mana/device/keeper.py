"""The vault of one open account as it stands: changed from here, followed where others change it.

A change is written down before it is sent, sealed under the master key that still stands, and
taken over in one transaction once the hub has it. So a crash at any step leaves a replica that
opens, and what was begun is taken over or let go as the hub says. Normative:
docs/protocol/vault.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, Literal, TypeAlias

import msgspec

from mana.crypto.keys import key_check
from mana.crypto.primitives import Random, b64, unb64
from mana.device.errors import WrongPassword
from mana.device.hub_client import HubClient
from mana.device.kept import (
    BEGUN,
    CERTIFICATE,
    CODE,
    HEAD,
    NEXT,
    VAULT,
    decode_vault,
    encode_vault,
    keep_sealed,
    keep_vault,
    open_sealed,
    require_known,
    seal_anew,
)
from mana.device.locks import locked
from mana.device.replica import Replica, Tx
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.vault import (
    DeviceKey,
    OpenedVault,
    VaultKeys,
    derive,
    open_vault,
    open_with_master,
)
from mana.device.vaults import (
    Head,
    Prepared,
    Wish,
    certified_anew,
    head_of,
    prepare,
    require_following,
)
from mana.domain.errors import ManaError, Unauthenticated, Unavailable
from mana.protocol.errors import InvalidCredentials, RateLimited, VaultMoved
from mana.protocol.messages import (
    DeviceCertificate,
    FactorAnswer,
    SignedStatement,
    Vault,
)

BEGUN_MS_MAX: Final = 60_000
"""How long a change whose answer was lost may still arrive at the hub."""
_ATTEMPTS: Final = 3
_UNDECIDED: Final = (Unavailable, RateLimited)
Outcome: TypeAlias = Literal["taken", "passed", "standing"]
BuildWish: TypeAlias = Callable[[Vault], Awaitable[Wish]]


class Begun(msgspec.Struct, frozen=True, rename="camel"):
    """The secrets of a change that was begun here; all of them in base64."""

    master_key: str
    login_key: str | None
    code: str | None
    at_ms: int


class KeptCode(msgspec.Struct, frozen=True, rename="camel"):
    """A recovery code (its secret in base64) that waits to be seen, and when it was made."""

    code: str
    made_at: str


class VaultKeeper:
    """The standing vault of one open account of this device.

    `moved` is called after the vault became another.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        vault: OpenedVault,
        sealer: Sealer,
        hub: HubClient,
        settings: DeviceSettings,
        standing: Vault,
        now_ms: Callable[[], int],
        random: Random = os.urandom,
    ) -> None:
        self._replica = replica
        self._vault = vault
        self._sealer = sealer
        self._hub = hub
        self._settings = settings
        self._standing = standing
        self._now_ms = now_ms
        self._random = random
        self._changing = asyncio.Lock()
        self.moved: Callable[[], None] = _nothing

    @property
    def standing(self) -> Vault:
        """Return the vault as this device holds it."""
        return self._standing

    # Following

    async def check(self) -> None:
        """Compare with the hub, and take what needs no password.

        Raises VaultMoved where it does, and nothing is written to the hub from then on; and
        HubDistrusted if what the hub shows does not follow from what is held here.
        """
        async with self._alone():
            await self._ask()

    async def follow(self, password: str, *, factor: FactorAnswer | None = None) -> None:
        """Take the vault that another device has changed, with the password in force.

        Raises WrongPassword, HubDistrusted, Offline, TwoFactorRequired.
        """
        async with self._changing, locked(self._replica.path.with_suffix(".vault")):
            if await self._take_replica(password):
                return
            try:
                await self._settle()
                found = await self._hub.vault()
            except (Unauthenticated, VaultMoved):
                await self._sign_in(password, factor)
                await self._settle()
                found = await self._hub.vault()
            await self._verify(found)
            found = self._named(found)
            floor = self._settings.kdf_floor
            keys = await asyncio.to_thread(derive, password, found.login, found.kdf, floor=floor)
            opened = open_vault(found, keys)
            await self._adopt(found, opened.keys)

    async def enter(self, found: Vault, keys: VaultKeys) -> None:
        """Take a vault that was opened before its chain was known to follow; HubDistrusted else."""
        async with self._alone():
            await self._verify(found)
            await self._adopt(self._named(found), keys)

    # Changing

    async def change(self, build: BuildWish) -> bytes | None:
        """Change the vault as `build` wishes; return the secret of a new recovery code.

        `build` gets the vault as it stands. Raises VaultMoved if another device was quicker, and
        what the hub refuses. If the answer is lost, Offline is raised, and what became of it is
        found out at the next sync.
        """
        async with self._alone():
            for attempt in range(1, _ATTEMPTS + 1):
                standing = await self._ask()
                wish = await build(standing)
                prepared = prepare(
                    standing, self._vault.keys, wish, now_ms=self._now_ms(), random=self._random
                )
                await self._begin(prepared)
                try:
                    await self._hub.change_vault(prepared.change)
                except ManaError as error:
                    outcome = await self._after(error)
                    if outcome == "taken":
                        return prepared.code
                    # Each proof of the vault draws another challenge; then it is signed again.
                    is_last = attempt == _ATTEMPTS
                    if outcome == "standing" and isinstance(error, VaultMoved) and not is_last:
                        continue
                    raise
                await self._adopt(prepared.vault, prepared.keys, code=prepared.code)
                return prepared.code
        raise VaultMoved("the vault moves faster than it is changed")

    async def waiting_code(self) -> tuple[bytes, str] | None:
        """Return a recovery code that the hub has and nobody has confirmed to have seen."""
        vault = self._vault
        raw = await self._replica.read(lambda tx: open_sealed(tx, vault, CODE))
        if raw is None:
            return None
        kept = msgspec.json.decode(raw, type=KeptCode)
        return unb64(kept.code), kept.made_at

    async def code_seen(self) -> None:
        """Forget the recovery code that waited: the person has it."""
        vault = self._vault
        await self._replica.write(lambda tx: keep_sealed(tx, vault, CODE, None))

    # Within: comparing

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other calls and other processes of this machine from changing the vault."""
        async with self._changing, locked(self._replica.path.with_suffix(".vault")):
            await self._take_replica()
            try:
                await self._settle()
                yield
            except InvalidCredentials:
                # The login key that is held signs in no more: the password is another by now.
                raise self._held("another device has changed the password") from None

    async def _ask(self) -> Vault:
        """Return the vault as the hub has it, with its challenge; it stands here too then."""
        found = await self._hub.vault()
        await self._verify(found)
        found = self._named(found)
        if head_of(found) != head_of(self._standing):
            opened = self._opened(found)
            if opened is None:
                raise self._held()
            await self._adopt(found, opened.keys)
        self._vault.typed = None
        self._hub.hold(None)
        return found

    def _opened(self, found: Vault) -> OpenedVault | None:
        """Open a later vault with what is known here; None if it takes the password."""
        if found.master_check == self._standing.master_check:
            login_key = self._login_key_under(found)
            return open_with_master(found, self._vault.master_key, login_key=login_key)
        if self._vault.typed is None or found.kdf != self._standing.kdf:
            return None
        with suppress(WrongPassword):
            return open_vault(found, self._vault.typed)
        return None

    async def _verify(self, found: Vault) -> list[SignedStatement]:
        log = await self._hub.vault_log(self._standing.revision, found.revision)
        require_following(self._standing, found, log)
        return log

    def _held(self, why: str = "another device has changed the master key") -> VaultMoved:
        """Write nothing to the hub any more until this device has the keys in force."""
        error = VaultMoved(why)
        self._hub.hold(error)
        return error

    def _named(self, found: Vault) -> Vault:
        """Return a vault under the login name that is kept here: keys are derived with it."""
        return msgspec.structs.replace(found, login=self._vault.login)

    def _login_key_under(self, found: Vault) -> bytes | None:
        """Return the login key that is held, unless the password is another by now."""
        return self._vault.login_key if found.kdf == self._standing.kdf else None

    async def _take_replica(self, password: str | None = None) -> bool:
        """Take what another process of this machine has made of the vault; say whether it did."""
        raws = await self._replica.read(lambda tx: (tx.meta(VAULT), tx.meta(CERTIFICATE)))
        wire = decode_vault(raws[0])
        if head_of(wire) == head_of(self._standing):
            return False
        if wire.master_check == key_check(self._vault.master_key, wire.account_id, 1):
            login_key = self._login_key_under(wire)
            keys = open_with_master(wire, self._vault.master_key, login_key=login_key).keys
        elif password is None:
            raise self._held()
        else:
            floor = self._settings.kdf_floor
            derived = await asyncio.to_thread(derive, password, wire.login, wire.kdf, floor=floor)
            keys = open_vault(wire, derived).keys
        self._standing = wire
        self._vault.adopt(keys)
        if raws[1] is not None:
            certificate = msgspec.json.decode(raws[1], type=DeviceCertificate)
            self._sealer.device = replace(self._sealer.device, certificate=certificate)
        self._hub.hold(None)
        self.moved()
        return True

    async def _sign_in(self, password: str, factor: FactorAnswer | None) -> None:
        """Begin a new session: the change of another device has ended this one's."""
        login = self._vault.login
        kdf = await self._hub.kdf(login)
        floor = self._settings.kdf_floor
        keys = await asyncio.to_thread(derive, password, login, kdf, floor=floor)
        try:
            tokens = await self._hub.login(login, keys.login_key, factor=factor)
        except InvalidCredentials:
            raise WrongPassword("the password is not the one in force") from None
        await self._hub.begin(tokens)

    # Within: what was begun

    async def _begin(self, prepared: Prepared) -> None:
        vault = self._vault
        begun = Begun(
            master_key=b64(prepared.keys.master_key),
            login_key=_text(prepared.keys.login_key),
            code=_text(prepared.code),
            at_ms=self._now_ms(),
        )

        def work(tx: Tx) -> None:
            require_known(tx)
            keep_sealed(tx, vault, BEGUN, msgspec.json.encode(begun))
            tx.set_meta(NEXT, encode_vault(prepared.vault))

        await self._replica.write(work)

    async def _read_begun(self) -> tuple[Begun, Vault] | None:
        vault = self._vault
        raw, following = await self._replica.read(
            lambda tx: (open_sealed(tx, vault, BEGUN), tx.meta(NEXT))
        )
        if raw is None:
            return None
        return msgspec.json.decode(raw, type=Begun), decode_vault(following)

    async def _after(self, error: ManaError) -> Outcome | None:
        """Find out after an error what became of the change; take it over if the hub has it."""
        outcome: Outcome | None = None
        with suppress(ManaError):
            outcome = await self._settle()
        if outcome == "standing" and not isinstance(error, _UNDECIDED):
            await self._drop()
        return outcome

    async def _settle(self) -> Outcome | None:
        """Take over or let go what was begun here, as the hub says; None: nothing was begun."""
        found = await self._read_begun()
        if found is None:
            return None
        begun, following = found
        try:
            outcome = await self._outcome(following)
        except (Unauthenticated, VaultMoved):
            if begun.login_key is None:
                raise
            # The password that was begun may be the one that signs in by now.
            login_key = unb64(begun.login_key)
            await self._hub.begin(await self._hub.login(self._vault.login, login_key))
            outcome = await self._outcome(following)
        if outcome == "taken":
            opened = open_with_master(
                following,
                unb64(begun.master_key),
                login_key=unb64(begun.login_key) if begun.login_key is not None else None,
            )
            code = unb64(begun.code) if begun.code is not None else None
            await self._adopt(following, opened.keys, code=code)
        elif outcome == "passed" or not 0 <= self._now_ms() - begun.at_ms < BEGUN_MS_MAX:
            await self._drop()
        return outcome

    async def _outcome(self, following: Vault) -> Outcome:
        found = await self._hub.vault()
        log = await self._verify(found)
        if found.revision == self._standing.revision:
            return "standing"
        first = msgspec.structs.replace(following, statement=log[0])
        return "taken" if head_of(first) == head_of(following) else "passed"

    async def _drop(self) -> None:
        def work(tx: Tx) -> None:
            tx.set_meta(BEGUN, None)
            tx.set_meta(NEXT, None)

        await self._replica.write(work)

    # Within: taking over

    async def _adopt(self, wire: Vault, keys: VaultKeys, *, code: bytes | None = None) -> None:
        """Make this vault the one that stands here: all seals of the replica in one transaction."""
        device = self._sealer.device
        if keys.identity is not self._vault.identity:
            certificate = certified_anew(device.certificate, keys.identity)
            device = replace(device, certificate=certificate)
        # A new session must not be kept under the key that goes.
        async with locked(self._replica.path.with_suffix(".session")):
            await self._write(wire, keys, device, code)
        self._standing = wire
        self._sealer.device = device
        self._hub.hold(None)
        self.moved()

    async def _write(
        self, wire: Vault, keys: VaultKeys, device: DeviceKey, code: bytes | None
    ) -> None:
        vault, before = self._vault, self._vault.keys
        head = head_of(wire)

        def work(tx: Tx) -> None:
            vault.adopt(before)
            if head_of(decode_vault(tx.meta(VAULT))) != head_of(self._standing):
                raise VaultMoved("another process of this machine has changed the vault")
            tx.set_meta(BEGUN, None)
            tx.set_meta(NEXT, None)
            if keys.master_key != before.master_key:
                masters = (before.master_key, *before.former_masters)
                seal_anew(tx, vault.account_id, masters, keys.master_key)
            keep_vault(tx, wire)
            # From here on, and in the replica's one thread: nothing is sealed in between.
            vault.adopt(keys)
            keep_head(tx, vault, head)
            tx.set_meta(CERTIFICATE, msgspec.json.encode(device.certificate).decode())
            if code is not None:
                kept = KeptCode(code=b64(code), made_at=wire.recovery_set_at or "")
                keep_sealed(tx, vault, CODE, msgspec.json.encode(kept))

        try:
            await self._replica.write(work)
        except BaseException:
            # Whether it was committed is what the replica says, not how the call ended.
            raw = await self._replica.read(lambda tx: tx.meta(VAULT))
            if head_of(decode_vault(raw)) != head:
                vault.adopt(before)
                raise
            self._standing, self._sealer.device = wire, device
            raise


def keep_head(tx: Tx, vault: OpenedVault, head: Head) -> None:
    """Keep how far this device has seen the statements of its vault."""
    raw = msgspec.json.encode({"revision": head.revision, "hash": head.hash})
    keep_sealed(tx, vault, HEAD, raw)


def kept_head(tx: Tx, vault: OpenedVault) -> Head | None:
    """Return how far this device has seen the statements; None where it has seen none."""
    raw = open_sealed(tx, vault, HEAD)
    return None if raw is None else msgspec.json.decode(raw, type=Head)


def _text(key: bytes | None) -> str | None:
    return None if key is None else b64(key)


def _nothing() -> None:
    pass
