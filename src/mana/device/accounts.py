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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import httpx
import msgspec

from mana.crypto.identity import DeviceCertificate as Certificate
from mana.crypto.identity import verify_certificate
from mana.crypto.keys import key_check, unwrap_master_key
from mana.crypto.passwords import PasswordKeys
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import SigningKey
from mana.crypto.vaults import parse_recovery_code, recovery_keys
from mana.device.ends import CLOCK_OFFSET
from mana.device.errors import AccountKnown, Offline, ReplicaBroken, WrongPassword
from mana.device.hub_client import HubClient
from mana.device.keeper import keep_head, kept_head
from mana.device.kept import (
    CERTIFICATE,
    DEVICE_KEY,
    NEXT,
    REFRESH,
    REVOKED_HERE,
    SPACES,
    VAULT,
    decode_vault,
    keep_sealed,
    keep_vault,
    open_sealed,
)
from mana.device.keyring import SystemKeyring, forget, open_remembered, remembered_secret
from mana.device.links import Handover
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
    VaultKeys,
    derive,
    folded_login,
    new_account,
    new_device,
    new_kdf,
    open_vault,
    open_with_master,
    random_id,
)
from mana.device.vaults import Head, NewPassword, Wish, head_of, require_alone
from mana.domain.errors import CryptoFailed, Invalid, NotFound
from mana.domain.ids import DeviceId
from mana.protocol.errors import InvalidCredentials
from mana.protocol.messages import (
    DeviceCertificate,
    FactorAnswer,
    KdfParameters,
    RecoverRequest,
    ResetRequest,
    Tokens,
    Vault,
)
from mana.protocol.replication import Guarded, HubDistrusted
from mana.registry.catalogue import Catalogue

LOGIN_MAX: Final = 80
PASSWORD_MIN: Final = 8
_MARKER: Final = "marker"
_FILES: Final = (".db", ".db-wal", ".db-shm", ".place")
Unlocked: TypeAlias = Callable[[Vault, Vault | None, Replica], Awaitable[OpenedVault]]
"""Opens the vault that a replica stands under; the second is one that was being set here."""


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
        require_password(password)
        kdf = new_kdf(self._settings.kdf_floor)
        keys = await self._derive(password, name, kdf)
        made = new_account(
            name,
            keys,
            kdf,
            mode=mode,
            demo=demo,
            invite=invite,
            device_name=self._settings.name,
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

    async def sign_in(
        self,
        login: str,
        password: str,
        *,
        factor: FactorAnswer | None = None,
        device_name: str = "",
    ) -> RecordBook:
        """Open an account: the one kept here, offline too; else fetch its vault from the hub.

        The one kept here also opens with a password that was set on another device, if the hub
        can be asked.
        """
        name = _login(login)
        known = self.find(name)
        if known is not None:
            try:
                return await self.unlock(known.account_id, password)
            except WrongPassword as error:
                try:
                    return await self._sign_in_again(known, password, factor, device_name)
                except (Offline, InvalidCredentials):
                    raise error from None
        kdf, keys, tokens = await self._begin_session(name, password, factor, device_name)
        async with self._with_session(tokens) as hub:
            found = await self._fetch(hub, name, tokens)
            if found.kdf != kdf:
                raise HubDistrusted("the hub names other password parameters than its vault")
            self._require_unknown(found)
            vault = open_vault(found, keys)
            return await self._add(hub, vault, found, tokens)

    async def recover(
        self, login: str, code: str, new_password: str, *, device_name: str = ""
    ) -> RecordBook:
        """Open an account with its recovery code, and give it a new password.

        Raises RecoveryCodeMalformed, InvalidCredentials, HubDistrusted and Offline.
        """
        name, secret = _login(login), parse_recovery_code(code)
        require_password(new_password)
        keys = recovery_keys(secret, name)
        request = RecoverRequest(
            login=name,
            recovery_key=b64(keys.login_key),
            device_name=device_name or self._settings.name,
        )
        hub = self._hub(None)
        try:
            tokens = await hub.recover(request)
        finally:
            await hub.close()

        def master_key(found: Vault) -> bytes:
            wrap = found.recovery
            if wrap is None or wrap.key_id != keys.key_id:
                raise HubDistrusted("the hub keeps another recovery code than the one it took")
            return unwrap_master_key(
                wrap.wrapped, keys.wrap_key, "recovery", found.account_id, keys.key_id
            )

        return await self._enter(name, tokens, master_key, new_password)

    async def reset(
        self, login: str, token: str, new_password: str, *, device_name: str = ""
    ) -> RecordBook:
        """Open an account with a token of the hub's operator, and give it a new password.

        In standard mode only: ZeroKnowledgeActive else. Raises InvalidCredentials as well.
        """
        name = _login(login)
        require_password(new_password)
        hub = self._hub(None)
        try:
            name_here = device_name or self._settings.name
            request = ResetRequest(login=name, token=token.strip(), device_name=name_here)
            answer = await hub.reset(request)
        finally:
            await hub.close()
        return await self._enter(
            name, answer.tokens, lambda found: unb64(answer.master_key), new_password
        )

    async def unlock(self, account_id: str, password: str) -> RecordBook:
        """Open an account that is kept here, without the hub; raise WrongPassword.

        A password that was being set here when the device stopped opens it, too.
        """

        async def unlocked(
            standing: Vault, following: Vault | None, replica: Replica
        ) -> OpenedVault:
            try:
                return open_vault(
                    standing, await self._derive(password, standing.login, standing.kdf)
                )
            except WrongPassword:
                if following is None:
                    raise
            keys = await self._derive(password, following.login, following.kdf)
            # Whether it signs in is not known until the hub has said what became of it.
            return _standing_under(
                standing, replace(open_vault(following, keys).keys, login_key=None)
            )

        return await self._open_known(self._account(account_id), unlocked)

    async def remembered_secret(self, account_id: str, keyring: SystemKeyring) -> bytes:
        """Return what the system's keyring holds for an account; it may ask the person.

        Raises NotRemembered, and KeyringUnavailable.
        """
        async with self._looking_at(account_id) as replica:
            return await remembered_secret(replica, keyring)

    async def unlock_remembered(self, account_id: str, secret: bytes) -> RecordBook:
        """Open an account that is kept here without its password; raise NotRemembered."""

        async def unlocked(
            standing: Vault, following: Vault | None, replica: Replica
        ) -> OpenedVault:
            return await open_remembered(replica, standing, secret)

        return await self._open_known(self._account(account_id), unlocked)

    async def forget_remembered(self, account_id: str, keyring: SystemKeyring) -> None:
        """Ask for the password of an account from now on, also where it is locked."""
        async with self._looking_at(account_id) as replica:
            await forget(replica, keyring)

    async def take_link(self, handover: Handover) -> RecordBook:
        """Keep an account that another device handed over, unlocked; its password is not known.

        Raises HubDistrusted unless vault, master key and this device's certificate belong
        together.
        """
        tokens, device = handover.tokens, handover.device
        if tokens.account_id != handover.account_id:
            raise HubDistrusted("the hub gave a session of another account")
        async with self._with_session(tokens) as hub:
            found = await self._fetch(hub, handover.login, tokens)
            self._require_unknown(found)
            vault = open_with_master(found, handover.master_key)
            _require_certified(vault, device.certificate)
            return await self._add(hub, vault, found, tokens, device)

    def hub(self) -> HubClient:
        """Return the hub without a session; the caller closes it."""
        return self._hub(None)

    def forget(self, account_id: str) -> None:
        """Remove everything of an account from this device. It must be locked."""
        self._account(account_id)
        self._list.remove(account_id)
        path = self._path(account_id)
        for suffix in (*_FILES, ".sync", ".session", ".opening", ".vault"):
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

    @contextlib.asynccontextmanager
    async def _looking_at(self, account_id: str) -> AsyncIterator[Replica]:
        """Lend the replica of an account, which is not opened by this."""
        self._account(account_id)
        replica = Replica(self._path(account_id), guarded=self._guarded())
        await replica.open()
        try:
            yield replica
        finally:
            await replica.close()

    async def _begin_session(
        self, name: str, password: str, factor: FactorAnswer | None, device_name: str
    ) -> tuple[KdfParameters, PasswordKeys, Tokens]:
        hub = self._hub(None)
        try:
            kdf = await hub.kdf(name)
            keys = await self._derive(password, name, kdf)
            tokens = await hub.login(name, keys.login_key, factor=factor, device_name=device_name)
        finally:
            await hub.close()
        return kdf, keys, tokens

    @contextlib.asynccontextmanager
    async def _with_session(self, tokens: Tokens) -> AsyncIterator[HubClient]:
        """Lend the hub in a session that has no replica yet."""
        hub = self._hub(_OneSession(tokens))
        hub.use(tokens)
        try:
            yield hub
        finally:
            await hub.close()

    async def _fetch(self, hub: HubClient, name: str, tokens: Tokens) -> Vault:
        """Return the account's vault, whose statements hold among themselves."""
        wire = await hub.vault()
        if wire.account_id != tokens.account_id:
            raise HubDistrusted("the hub gave the vault of another account")
        require_alone(wire, await hub.vault_log(0, wire.revision))
        return msgspec.structs.replace(wire, login=name)

    def _require_unknown(self, found: Vault) -> None:
        if any(one.account_id == found.account_id for one in self.known()):
            raise AccountKnown("this account is on this device already")

    async def _add(
        self,
        hub: HubClient,
        vault: OpenedVault,
        found: Vault,
        tokens: Tokens,
        device: DeviceKey | None = None,
    ) -> RecordBook:
        """Make this device one of an account's that is not kept here yet."""
        vault.take_spaces(await hub.spaces())
        if device is None:
            device = new_device(vault, now_ms=self._now_ms(), new_id=self._random_id)
        await hub.register_device(device.certificate)
        return await self._install(vault, found, device, tokens, demo=False, registered=True)

    async def _sign_in_again(
        self, known: KnownAccount, password: str, factor: FactorAnswer | None, device_name: str
    ) -> RecordBook:
        """Open an account that is kept here with a password that was set elsewhere."""
        begun = await self._begin_session(known.login, password, factor, device_name)
        _, keys, tokens = begun
        async with self._with_session(tokens) as hub:
            found = await self._fetch(hub, known.login, tokens)
            opened = open_vault(found, keys)
        return await self._take_in(known, found, opened, tokens)

    async def _enter(
        self,
        name: str,
        tokens: Tokens,
        master_key: Callable[[Vault], bytes],
        new_password: str,
    ) -> RecordBook:
        """Open an account whose password is lost, here or anew, and set the new one."""
        known = self.find(name)
        async with self._with_session(tokens) as hub:
            found = await self._fetch(hub, name, tokens)
            vault = open_with_master(found, master_key(found))
            if known is None:
                self._require_unknown(found)
                book = await self._add(hub, vault, found, tokens)
            else:
                book = await self._take_in(known, found, vault, tokens)
        try:
            kdf = new_kdf(self._settings.kdf_floor)
            keys = await self._derive(new_password, name, kdf)

            async def wish(standing: Vault) -> Wish:
                return Wish(password=NewPassword(kdf, keys))

            await book.inner().keeper.change(wish)
        except BaseException:
            await book.lock()
            if known is None:
                self.forget(found.account_id)  # Only the lost password would open it.
            raise
        return book

    async def _take_in(
        self, known: KnownAccount, found: Vault, opened: OpenedVault, tokens: Tokens
    ) -> RecordBook:
        """Open what is kept of an account under the vault that is in force by now."""
        if found.account_id != known.account_id:
            raise HubDistrusted("the login name is that of another account by now")

        async def unlocked(
            standing: Vault, following: Vault | None, replica: Replica
        ) -> OpenedVault:
            return _standing_under(standing, opened.keys)

        book = await self._open_known(known, unlocked)
        try:
            await book.hub.begin(tokens)
            await book.inner().keeper.enter(found, opened.keys)
        except BaseException:
            await book.lock()
            raise
        return book

    async def _open_known(self, known: KnownAccount, unlocked: Unlocked) -> RecordBook:
        replica = Replica(self._path(known.account_id), guarded=self._guarded())
        await replica.open()
        try:
            # One process at a time, or one would take the other's new mark for that of a copy.
            async with locked(replica.path.with_suffix(".opening")):
                return await self._open(known, unlocked, replica)
        except BaseException:
            await replica.close()
            raise

    async def _open(self, known: KnownAccount, unlocked: Unlocked, replica: Replica) -> RecordBook:
        names = (VAULT, NEXT, SPACES, CERTIFICATE, DEVICE_KEY, REVOKED_HERE, _MARKER)
        facts = await replica.read(lambda tx: {name: tx.meta(name) for name in names})
        if any(facts[name] is None for name in (VAULT, SPACES, CERTIFICATE, DEVICE_KEY)):
            raise ReplicaBroken("the replica lacks the account's vault")
        wire = decode_vault(facts[VAULT])
        if wire.account_id != known.account_id:
            raise ReplicaBroken("the replica is of another account")
        following = decode_vault(facts[NEXT]) if facts[NEXT] is not None else None
        vault = await unlocked(wire, following, replica)
        device = await replica.read(lambda tx: _read_kept(tx, vault, wire))
        is_copy = inspect_place(replica.path, facts[_MARKER]) is CopyState.COPY
        # A device that was revoked comes back as another one, with what it had not sent.
        is_new = is_copy or facts[REVOKED_HERE] is not None
        if is_new:
            device = new_device(vault, now_ms=self._now_ms(), new_id=self._random_id)
        book = self._book(vault, wire, device, replica, demo=known.demo)
        if is_new:
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
            tx.set_meta(REVOKED_HERE, None)
            # The original goes on with this session; used twice, it would end for both.
            tx.set_meta(REFRESH, None)
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
        for suffix in _FILES:
            path.with_suffix(suffix).unlink(missing_ok=True)  # of a sign-in that did not finish
        replica = Replica(path, guarded=self._guarded())
        await replica.open()
        try:
            marker = secrets.token_hex(16)

            def work(tx: Tx) -> None:
                keep_vault(tx, wire)
                keep_head(tx, vault, head_of(wire))
                keep_sealed(tx, vault, SPACES, vault.kept_spaces())
                keep_sealed(tx, vault, REFRESH, tokens.refresh_token.encode())
                _write_device(tx, vault, device, marker)
                if registered:
                    tx.set_meta(REGISTERED, device.device_id)

            await replica.write(work)
            certify_place(path, marker)
            self._list.add(KnownAccount(vault.account_id, vault.login, demo))
            book = self._book(vault, wire, device, replica, demo=demo)
            await book.load()
        except BaseException:
            await replica.close()
            raise
        book.hub.use(tokens)
        return book

    def _book(
        self,
        vault: OpenedVault,
        standing: Vault,
        device: DeviceKey,
        replica: Replica,
        *,
        demo: bool,
    ) -> RecordBook:
        hub = self._hub(_StoredSession(replica, vault))
        sealer = Sealer(vault, self._catalogue, device)
        hub.certificate = lambda: sealer.device.certificate
        return RecordBook(
            settings=self._settings,
            catalogue=self._catalogue,
            vault=vault,
            sealer=sealer,
            replica=replica,
            hub=hub,
            standing=standing,
            demo=demo,
            now_ms=self._now_ms,
            new_id=self._random_id,
        )

    def _hub(self, session: _OneSession | _StoredSession | None) -> HubClient:
        transport = self._transport() if self._transport is not None else None
        return HubClient(
            self._settings.hub_url,
            session=session,
            transport=transport,
            device_name=self._settings.name,
        )

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
        kept = await self._replica.read(lambda tx: open_sealed(tx, self._vault, REFRESH))
        return None if kept is None else kept.decode()

    async def keep(self, tokens: Tokens) -> None:
        """Keep the refresh token of a new pair, durably."""
        if tokens.account_id != self._vault.account_id:
            raise HubDistrusted("the hub gave a session of another account")
        kept = tokens.refresh_token.encode()
        await self._replica.write(lambda tx: keep_sealed(tx, self._vault, REFRESH, kept))

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
    tx.set_meta(CERTIFICATE, msgspec.json.encode(device.certificate).decode())
    keep_sealed(tx, vault, DEVICE_KEY, device.key.to_bytes())
    tx.set_meta(_MARKER, marker)


def _read_kept(tx: Tx, vault: OpenedVault, standing: Vault) -> DeviceKey:
    """Take the spaces that are kept into the vault, and return this device's key.

    Raises ReplicaBroken if the vault in the replica is not the one that was seen last.
    """
    head = head_of(standing)
    if (kept_head(tx, vault) or Head(0, "")) != head:
        raise ReplicaBroken("the replica holds another vault than it has seen")
    spaces, key = open_sealed(tx, vault, SPACES), open_sealed(tx, vault, DEVICE_KEY)
    raw = tx.meta(CERTIFICATE)
    if spaces is None or key is None or raw is None:
        raise ReplicaBroken("the replica lacks the account's vault")
    vault.restore_spaces(spaces)
    certificate = msgspec.json.decode(raw, type=DeviceCertificate)
    device = DeviceKey(DeviceId(certificate.device_id), SigningKey(key), certificate)
    if b64(device.key.public().to_bytes()) != certificate.public_key:
        raise ReplicaBroken("the device's key is not the certified one")
    return device


def _standing_under(standing: Vault, keys: VaultKeys) -> OpenedVault:
    """Open the vault of before with what a later one knows; raise WrongPassword if it cannot."""
    for master_key in (keys.master_key, *keys.former_masters):
        if key_check(master_key, standing.account_id, 1) == standing.master_check:
            login_key = keys.login_key if master_key == keys.master_key else None
            return open_with_master(standing, master_key, login_key=login_key)
    raise WrongPassword("what is kept here is older than what this password leads to")


def require_password(password: str) -> None:
    """Raise Invalid for a password that is too short."""
    if len(password) < PASSWORD_MIN:
        raise Invalid(f"a password has at least {PASSWORD_MIN} characters")


def _require_certified(vault: OpenedVault, certificate: DeviceCertificate) -> None:
    """Raise HubDistrusted unless the account's identity certified this device."""
    try:
        read = Certificate.from_wire(msgspec.to_builtins(certificate))
        key = vault.identity.signing_key.public()
        verify_certificate(read, key, vault.account_id)
    except CryptoFailed:
        raise HubDistrusted("the account has not certified this device") from None


def _login(login: str) -> str:
    name = login.strip()
    if not 0 < len(name) <= LOGIN_MAX:
        raise Invalid(f"a login name has 1 to {LOGIN_MAX} characters")
    return name
