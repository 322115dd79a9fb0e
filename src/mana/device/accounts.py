"""The accounts of this device: signing up, signing in, unlocking, and forgetting.

The list of accounts holds login and account id, nothing a person wrote otherwise. Everything else
of an account lies in its own database, sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec

from mana.crypto.passwords import PasswordKeys
from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey
from mana.device.ends import CLOCK_OFFSET
from mana.device.errors import AccountKnown, ReplicaBroken
from mana.device.hub_client import HubClient
from mana.device.known_spaces import SPACES
from mana.device.locks import locked
from mana.device.records import RecordBook
from mana.device.renewals import restamper
from mana.device.replica import CopyState, Replica, Tx, certify_place, inspect_place
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.syncer import REGISTERED
from mana.device.vault import (
    DeviceKey,
    OpenedVault,
    derive,
    folded_login,
    new_account,
    new_device,
    new_kdf,
    open_vault,
    random_id,
)
from mana.domain.errors import Invalid, NotFound
from mana.domain.ids import DeviceId
from mana.protocol.messages import DeviceCertificate, KdfParameters, Tokens, Vault
from mana.protocol.replication import Guarded, HubDistrusted
from mana.registry.catalogue import Catalogue

LOGIN_MAX: Final = 80
PASSWORD_MIN: Final = 8
_VAULT: Final = "vault"
_CERTIFICATE: Final = "certificate"
_DEVICE_KEY: Final = "deviceKey"
_REFRESH: Final = "refreshToken"
_MARKER: Final = "marker"


class KnownAccount(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An account that is kept on this device."""

    account_id: str
    login: str
    demo: bool = False


def system_ms() -> int:
    """Return this machine's time in ms since 1970."""
    return time.time_ns() // 1_000_000


class Accounts:
    """The way to the record book of an account."""

    def __init__(
        self,
        settings: DeviceSettings,
        catalogue: Catalogue,
        *,
        now_ms: Callable[[], int] = system_ms,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        random_id: Callable[[], str] = random_id,
    ) -> None:
        self._random_id = random_id
        self._settings = settings
        self._catalogue = catalogue
        self._now_ms = now_ms
        self._transport = transport
        self._list = _AccountList(settings.folder)

    def known(self) -> list[KnownAccount]:
        """Return the accounts of this device, in the order they came."""
        return self._list.read()

    def find(self, login: str) -> KnownAccount | None:
        """Return the account of this device with a login name, however its letters are written."""
        wanted = folded_login(login)
        return next((one for one in self.known() if folded_login(one.login) == wanted), None)

    async def sign_up(
        self,
        login: str,
        password: str,
        *,
        mode: str = "standard",
        demo: bool = False,
        invite: str | None = None,
    ) -> RecordBook:
        """Make an account on the hub and keep it here, unlocked."""
        name = _login(login)
        if len(password) < PASSWORD_MIN:
            raise Invalid(f"a password has at least {PASSWORD_MIN} characters")
        kdf = new_kdf(self._settings.kdf_floor)
        keys = await self._derive(password, name, kdf)
        made = new_account(
            name,
            keys,
            kdf,
            mode=mode,
            demo=demo,
            invite=invite,
            now_ms=self._now_ms(),
            new_id=self._random_id,
        )
        hub = self._hub(None)
        try:
            tokens = await hub.sign_up(made.request)
        finally:
            await hub.close()
        if tokens.account_id != made.vault.account_id:
            raise HubDistrusted("the hub made another account than was asked for")
        return await self._install(
            made.vault, made.wire, made.device, tokens, demo=demo, registered=True
        )

    async def sign_in(self, login: str, password: str) -> RecordBook:
        """Open an account: the one kept here, offline too; else fetch its vault from the hub."""
        name = _login(login)
        known = self.find(name)
        if known is not None:
            return await self.unlock(known.account_id, password)
        hub = self._hub(None)
        try:
            kdf = await hub.kdf(name)
            keys = await self._derive(password, name, kdf)
            tokens = await hub.login(name, keys.login_key)
        finally:
            await hub.close()
        hub = self._hub(_OneSession(tokens))
        hub.use(tokens)
        try:
            wire = await hub.vault()
            if wire.account_id != tokens.account_id:
                raise HubDistrusted("the hub gave the vault of another account")
            if any(one.account_id == wire.account_id for one in self.known()):
                raise AccountKnown("this account is on this device already")
            vault = open_vault(msgspec.structs.replace(wire, login=name, kdf=kdf), keys)
            vault.take_spaces(await hub.spaces())
            device = new_device(vault, now_ms=self._now_ms(), new_id=self._random_id)
            await hub.register_device(device.certificate)
        finally:
            await hub.close()
        kept = msgspec.structs.replace(wire, login=name, kdf=kdf)
        return await self._install(vault, kept, device, tokens, demo=False, registered=True)

    async def unlock(self, account_id: str, password: str) -> RecordBook:
        """Open an account that is kept here, without the hub; raise WrongPassword."""
        known = self._account(account_id)
        replica = Replica(self._path(account_id), guarded=self._guarded())
        await replica.open()
        try:
            # One process at a time, or one would take the other's new mark for that of a copy.
            async with locked(replica.path.with_suffix(".opening")):
                return await self._open(known, password, replica)
        except BaseException:
            await replica.close()
            raise

    def forget(self, account_id: str) -> None:
        """Remove everything of an account from this device. It must be locked."""
        self._account(account_id)
        self._list.remove(account_id)
        path = self._path(account_id)
        for suffix in (".db", ".db-wal", ".db-shm", ".place", ".sync", ".session", ".opening"):
            path.with_suffix(suffix).unlink(missing_ok=True)

    async def remove(self, account_id: str, password: str) -> None:
        """Remove an account from the hub, for ever, and from this device."""
        book = await self.unlock(account_id, password)
        try:
            await book.hub.delete_account(book.login_key())
        finally:
            await book.lock()
        self.forget(account_id)

    # Within

    async def _open(self, known: KnownAccount, password: str, replica: Replica) -> RecordBook:
        names = (_VAULT, SPACES, _CERTIFICATE, _DEVICE_KEY, _MARKER)
        facts = await replica.read(lambda tx: {name: tx.meta(name) for name in names})
        wire_raw, spaces_raw = facts[_VAULT], facts[SPACES]
        certificate_raw, key_raw = facts[_CERTIFICATE], facts[_DEVICE_KEY]
        if wire_raw is None or spaces_raw is None or certificate_raw is None or key_raw is None:
            raise ReplicaBroken("the replica lacks the account's vault")
        wire = msgspec.json.decode(wire_raw, type=Vault)
        if wire.account_id != known.account_id:
            raise ReplicaBroken("the replica is of another account")
        keys = await self._derive(password, wire.login, wire.kdf)
        vault = open_vault(wire, keys)
        vault.restore_spaces(vault.open(spaces_raw, "spaces"))
        certificate = msgspec.json.decode(certificate_raw, type=DeviceCertificate)
        raw = vault.open(key_raw, "device-key", certificate.device_id)
        device = DeviceKey(DeviceId(certificate.device_id), SigningKey(raw), certificate)
        if b64(device.key.public().to_bytes()) != certificate.public_key:
            raise ReplicaBroken("the device's key is not the certified one")
        is_copy = inspect_place(replica.path, facts[_MARKER]) is CopyState.COPY
        if is_copy:
            device = new_device(vault, now_ms=self._now_ms(), new_id=self._random_id)
        book = self._book(vault, device, replica, demo=known.demo)
        if is_copy:
            await self._take_new_place(vault, device, replica)
        else:
            await self._mark_anew(replica)
        await replica.write(lambda tx: tx.take_aside(self._is_known))
        await book.load()
        return book

    async def _mark_anew(self, replica: Replica) -> None:
        """Give this replica another mark each time it is opened.

        So an older copy that is put back into this very file is known for one, too.
        """
        marker = secrets.token_hex(16)
        await replica.write(lambda tx: tx.set_meta(_MARKER, marker))
        certify_place(replica.path, marker)

    async def _take_new_place(
        self, vault: OpenedVault, device: DeviceKey, replica: Replica
    ) -> None:
        """Give a copied replica a device id and a session of its own."""
        marker = secrets.token_hex(16)
        now_ms = self._now_ms()
        sealer = Sealer(vault, self._catalogue, device)

        def work(tx: Tx) -> None:
            _write_device(tx, vault, device, marker)
            tx.set_meta(REGISTERED, None)
            # The original goes on with this session; used twice, it would end for both.
            tx.set_meta(_REFRESH, None)
            offset = tx.meta(CLOCK_OFFSET)
            at_ms = now_ms + (int(offset) if offset is not None else 0)
            tx.restamp(tx.unacknowledged(), restamper(sealer, at_ms), now_ms=now_ms)

        await replica.write(work)
        certify_place(replica.path, marker)

    async def _install(
        self,
        vault: OpenedVault,
        wire: Vault,
        device: DeviceKey,
        tokens: Tokens,
        *,
        demo: bool,
        registered: bool,
    ) -> RecordBook:
        """Write a new account's database, then name it in the list."""
        path = self._path(vault.account_id)
        for suffix in (".db", ".db-wal", ".db-shm", ".place"):
            path.with_suffix(suffix).unlink(missing_ok=True)  # of a sign-in that did not finish
        replica = Replica(path, guarded=self._guarded())
        await replica.open()
        try:
            marker = secrets.token_hex(16)

            def work(tx: Tx) -> None:
                tx.set_meta(_VAULT, msgspec.json.encode(wire).decode())
                tx.set_meta(SPACES, vault.seal(vault.kept_spaces(), "spaces"))
                tx.set_meta(_REFRESH, vault.seal(tokens.refresh_token.encode(), "refresh-token"))
                _write_device(tx, vault, device, marker)
                if registered:
                    tx.set_meta(REGISTERED, device.device_id)

            await replica.write(work)
            certify_place(path, marker)
            self._list.add(KnownAccount(vault.account_id, vault.login, demo))
            book = self._book(vault, device, replica, demo=demo)
            await book.load()
        except BaseException:
            await replica.close()
            raise
        book.hub.use(tokens)
        return book

    def _book(
        self, vault: OpenedVault, device: DeviceKey, replica: Replica, *, demo: bool
    ) -> RecordBook:
        return RecordBook(
            settings=self._settings,
            catalogue=self._catalogue,
            vault=vault,
            sealer=Sealer(vault, self._catalogue, device),
            replica=replica,
            hub=self._hub(_StoredSession(replica, vault)),
            demo=demo,
            now_ms=self._now_ms,
            new_id=self._random_id,
        )

    def _hub(self, session: _OneSession | _StoredSession | None) -> HubClient:
        transport = self._transport() if self._transport is not None else None
        return HubClient(self._settings.hub_url, session=session, transport=transport)

    async def _derive(self, password: str, login: str, kdf: KdfParameters) -> PasswordKeys:
        floor = self._settings.kdf_floor
        return await asyncio.to_thread(derive, password, login, kdf, floor=floor)

    def _account(self, account_id: str) -> KnownAccount:
        for account in self.known():
            if account.account_id == account_id:
                return account
        raise NotFound("no such account is on this device")

    def _path(self, account_id: str) -> Path:
        return self._settings.folder / f"{account_id}.db"

    def _guarded(self) -> Guarded:
        paths = frozenset(
            (table.name, declared.name)
            for table in self._catalogue.tables
            for declared in table.fields
            if declared.guarded
        )
        return lambda table, path: (table, path) in paths

    def _is_known(self, table: str) -> bool:
        return any(one.name == table for one in self._catalogue.tables)


class _StoredSession:
    """A session whose refresh token is kept in the replica, sealed."""

    def __init__(self, replica: Replica, vault: OpenedVault) -> None:
        self._replica = replica
        self._vault = vault

    def exclusively(self) -> AbstractAsyncContextManager[None]:
        """Keep every other process of this machine from refreshing meanwhile."""
        return locked(self._replica.path.with_suffix(".session"))

    async def refresh_token(self) -> str | None:
        """Return the newest refresh token that was kept."""
        sealed = await self._replica.read(lambda tx: tx.meta(_REFRESH))
        return None if sealed is None else self._vault.open(sealed, "refresh-token").decode()

    async def keep(self, tokens: Tokens) -> None:
        """Keep the refresh token of a new pair, durably."""
        if tokens.account_id != self._vault.account_id:
            raise HubDistrusted("the hub gave a session of another account")
        sealed = self._vault.seal(tokens.refresh_token.encode(), "refresh-token")
        await self._replica.write(lambda tx: tx.set_meta(_REFRESH, sealed))

    def credentials(self) -> tuple[str, bytes] | None:
        """Return login name and login key; None where the account was opened without a password."""
        login_key = self._vault.login_key
        return None if login_key is None else (self._vault.login, login_key)


@dataclass
class _OneSession:
    """The first session of a sign-in, before there is a replica to keep it in."""

    tokens: Tokens

    def exclusively(self) -> AbstractAsyncContextManager[None]:
        """Nobody else knows this session."""
        return contextlib.nullcontext()

    async def refresh_token(self) -> str | None:
        """Return the token of the newest pair."""
        return self.tokens.refresh_token

    async def keep(self, tokens: Tokens) -> None:
        """Take the new pair."""
        self.tokens = tokens

    def credentials(self) -> tuple[str, bytes] | None:
        """Return nothing: the sign-in begins again instead."""
        return None


class _AccountList:
    """The file that names the accounts of this device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "accounts.json"

    def read(self) -> list[KnownAccount]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return msgspec.json.decode(raw, type=list[KnownAccount])
        except msgspec.MsgspecError:
            raise ReplicaBroken("the list of accounts is damaged") from None

    def add(self, account: KnownAccount) -> None:
        kept = [one for one in self.read() if one.account_id != account.account_id]
        self._write([*kept, account])

    def remove(self, account_id: str) -> None:
        self._write([one for one in self.read() if one.account_id != account_id])

    def _write(self, accounts: list[KnownAccount]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f"accounts.{secrets.token_hex(4)}.new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(accounts))
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o600)
        draft.replace(self._path)


def _write_device(tx: Tx, vault: OpenedVault, device: DeviceKey, marker: str) -> None:
    sealed = vault.seal(device.key.to_bytes(), "device-key", device.device_id)
    tx.set_meta(_CERTIFICATE, msgspec.json.encode(device.certificate).decode())
    tx.set_meta(_DEVICE_KEY, sealed)
    tx.set_meta(_MARKER, marker)


def _login(login: str) -> str:
    name = login.strip()
    if not 0 < len(name) <= LOGIN_MAX:
        raise Invalid(f"a login name has 1 to {LOGIN_MAX} characters")
    return name
