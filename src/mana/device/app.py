"""The device of a person or household: its accounts, wired in one place.

Nothing here opens a socket of its own or keeps a password, except the demo's: that account holds
nothing of anybody, and its password is drawn at random and kept in a file for the owner alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, TypeAlias
from zoneinfo import ZoneInfo

import httpx

from mana.device import seeds
from mana.device.accounts import Accounts, system_ms
from mana.device.desk import Device
from mana.device.errors import AccountKnown, Locked, Offline, WrongPassword
from mana.device.idling import IdleClock, auto_lock_minutes, choose_auto_lock
from mana.device.kept import REMEMBERED, REVOKED_HERE
from mana.device.keyring import NotRemembered, SystemKeyring, tidy
from mana.device.links import Handover, PendingLink, begin_link
from mana.device.opened import Opened
from mana.device.operations import Operations, runner_lock
from mana.device.records import RecordBook
from mana.device.replica import Tx
from mana.device.runner import TIMEOUT_S
from mana.device.security import MODES
from mana.device.settings import DeviceSettings
from mana.device.vaults import ZERO_KNOWLEDGE
from mana.domain.cadences import zone as require_zone
from mana.domain.errors import Conflict, Invalid, ManaError, NotFound, Unauthenticated
from mana.domain.missions import MISSIONS
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.models.choose import candidates
from mana.models.connections import Connections
from mana.models.rules import Rules
from mana.models.settings import ModelSettings, load_models
from mana.planning.ports import Model
from mana.protocol.messages import FactorAnswer
from mana.registry.catalogue import Catalogue, load_catalogue

TOKEN_LIFE_S: Final = 15 * 60.0
TOKENS_MAX: Final = 64
LOOK_S: Final = 15.0
"""How often it is looked whether an account was left alone for too long."""
IDLE: Final = "idle"
REVOKED: Final = "revoked"
Enter: TypeAlias = Callable[[str, str, str], Awaitable[RecordBook]]
"""Opens an account by login name and a secret that is not its password, and sets that anew."""
_log: Final = logging.getLogger("mana.device")


class ChangesWaiting(Conflict):
    """Something written here has not reached the hub, and would be lost."""

    code: ClassVar[str] = "CHANGES_WAITING"
    advice: ClassVar[str] = "Connect to the hub first, or force it and lose what waits."


class LinkSpent(Unauthenticated):
    """The one-time link was used before, or its time has passed."""

    code: ClassVar[str] = "LINK_SPENT"
    advice: ClassVar[str] = "Start the demo again; each start prints a new link."


@dataclass(frozen=True, slots=True)
class KnownAccount:
    """An account that is kept on this device.

    `locked_because`: `idle` if nobody was there for too long, `revoked` if another device of the
    account revoked this one; empty for all else.
    """

    account_id: str
    login: str
    display_name: str
    demo: bool
    unlocked: bool
    locked_because: str = ""


@dataclass(slots=True)
class _Open:
    """An account whose keys are in memory. `minutes`: after how long alone it locks; 0: never.

    `tidying` removes from the system's keyring what opens nothing any more.
    """

    device: Device
    book: RecordBook
    idle: IdleClock
    minutes: int
    tidying: asyncio.Task[None]


class DeviceHost:
    """The accounts of this device. One per process."""

    def __init__(
        self,
        settings: DeviceSettings,
        accounts: Accounts,
        catalogue: Catalogue,
        model: Model,
        *,
        listed: ModelSettings | None,
        model_local: bool,
        now_ms: Callable[[], int],
        run_timeout_s: float = TIMEOUT_S,
        background: bool = True,
        keyring: SystemKeyring | None = None,
        even_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self._accounts = accounts
        self._model = model
        self._listed = listed
        self._connections = Connections()
        self._model_local = model_local
        self._now_ms = now_ms
        self._run_timeout_s = run_timeout_s
        self._background = background
        self._keyring = keyring or SystemKeyring()
        self._even_s = even_s
        self._open: dict[str, _Open] = {}
        self._locking: dict[str, asyncio.Task[None]] = {}
        self._because: dict[str, str] = {}
        self._on_lock: list[Callable[[str], None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._names: dict[str, str] = {}
        self._tokens: dict[str, float] = {}
        self._changing = asyncio.Lock()

    def accounts(self) -> list[KnownAccount]:
        """Return the accounts of this device, in the order they came."""
        return [
            KnownAccount(
                account_id=known.account_id,
                login=known.login,
                display_name=self._names.get(known.account_id, ""),
                demo=known.demo,
                unlocked=known.account_id in self._open,
                locked_because=self._because.get(known.account_id, ""),
            )
            for known in self._accounts.known()
        ]

    def device(self, account_id: str) -> Device:
        """Return an unlocked account; raise Locked, or NotFound if it is not on this device.

        It does not count as a person's doing: `person_here` says that.
        """
        found = self._open.get(account_id)
        if found is not None and found.idle.is_over(found.minutes):
            # A machine that wakes up shows nothing before the watch has looked.
            self._lock_soon(account_id, IDLE)
        elif found is not None:
            return found.device
        if all(known.account_id != account_id for known in self._accounts.known()):
            raise NotFound("no such account is on this device")
        raise Locked("the account is locked")

    async def sign_up(
        self,
        login: str,
        password: str,
        *,
        display_name: str,
        mode: str = "standard",
        demo: bool = False,
        invite: str | None = None,
        zone: str = "UTC",
    ) -> Device:
        """Make an account on the hub and open it here.

        In zero-knowledge mode its first recovery code is made too, and waits to be seen
        (`Security.waiting_kit`); if the hub went away in between, there is none yet.
        """
        if mode not in MODES:
            raise Invalid(f"a mode is one of: {', '.join(MODES)}")
        require_zone(zone)
        async with self._changing:
            book = await self._accounts.sign_up(
                login, password, mode=mode, demo=demo, invite=invite
            )
            device, operations = self._wire(book)
            name = display_name.strip()[:80]
            values = {"displayName": name or None, "timeZone": zone}
            await operations.records.write_settings(values)
            await self._begin(device, book)
            if mode == ZERO_KNOWLEDGE:
                with contextlib.suppress(ManaError):
                    await device.security.new_recovery_code()
            return device

    async def sign_in(
        self, login: str, password: str, *, factor: FactorAnswer | None = None
    ) -> Device:
        """Open an account: offline where it is kept here, else from the hub's vault.

        Raises TwoFactorRequired where the hub asks for a second factor; then again, with
        `factor`. For an account that is kept here a factor begins a new session.
        """
        async with self._changing:
            known = self._accounts.find(login)
            if known is not None:
                await self._locked(known.account_id)
            found = self._open.get(known.account_id) if known is not None else None
            if known is not None and found is not None:
                # Already open: the password is still asked, because somebody else may be asking.
                await self._ask_again(found.book, password, factor)
                self.person_here(known.account_id)
                return found.device
            book = await self._accounts.sign_in(login, password, factor=factor)
            try:
                if factor is not None and not book.hub.is_signed_in:
                    await _begin_session(book, factor)
                device, _ = self._wire(book)
                return await self._begin(device, book, first=known is None)
            except BaseException:
                await book.lock()
                raise

    async def _ask_again(
        self, book: RecordBook, password: str, factor: FactorAnswer | None
    ) -> None:
        """Take the password of an account that is open, also one that was set elsewhere."""
        try:
            checked = await self._accounts.unlock(book.account_id, password)
        except WrongPassword as error:
            try:
                await book.inner().keeper.follow(password, factor=factor)
            except Offline:
                raise error from None
            return
        typed = checked.inner().vault.typed
        login_key = checked.inner().vault.login_key
        await checked.lock()
        vault = book.inner().vault
        if login_key is not None:
            vault.adopt(replace(vault.keys, login_key=login_key))
        if factor is not None:
            await _begin_session(book, factor)
        # If the master key is another by now, the next sync follows with what was typed.
        vault.typed = typed
        book.inner().syncer.spaces_moved()

    async def recover(self, login: str, code: str, new_password: str) -> Device:
        """Open an account by its recovery code, here or anew, with a new password from now on.

        Raises RecoveryCodeMalformed, InvalidCredentials and Offline.
        """
        return await self._enter(self._accounts.recover, login, code, new_password)

    async def reset(self, login: str, token: str, new_password: str) -> Device:
        """Open an account by a token of the hub's operator, with a new password from now on.

        Raises ZeroKnowledgeActive, InvalidCredentials and Offline.
        """
        return await self._enter(self._accounts.reset, login, token, new_password)

    async def begin_link(self, login: str, name: str) -> PendingLink[Device]:
        """Ask another device of an account to unlock it here; raise AccountKnown, Offline.

        `name`: what this device calls itself. The link is the caller's to close.
        """
        if self._accounts.find(login) is not None:
            raise AccountKnown("this account is on this device already")

        async def install(handover: Handover) -> Device:
            async with self._changing:
                book = await self._accounts.take_link(handover)
                device, _ = self._wire(book)
                return await self._begin(device, book, first=True)

        hub = self._accounts.hub()
        try:
            return await begin_link(hub, login, name, install)
        except BaseException:
            await hub.close()
            raise

    async def lock(self, account_id: str) -> None:
        """Drop an account's keys from memory; it stays on this device."""
        self._lock_soon(account_id, "")
        await self._locked(account_id)

    def on_lock(self, callback: Callable[[str], None]) -> None:
        """Call back with an account's id when it locks, before any other call is answered."""
        self._on_lock.append(callback)

    # Who is there

    def person_here(self, account_id: str) -> None:
        """Note that a person just did something with an account; what pages ask by themselves
        is none of that.
        """
        found = self._open.get(account_id)
        if found is not None and not found.idle.is_over(found.minutes):
            found.idle.touch()

    async def auto_lock_minutes(self, account_id: str) -> int:
        """Return after how many minutes alone an unlocked account locks here; 0: never."""
        self.device(account_id)
        return await auto_lock_minutes(self._open[account_id].book)

    async def set_auto_lock(self, account_id: str, minutes: int | None) -> None:
        """Choose after how many minutes alone an account locks here; None: as MANA_AUTO_LOCK_MINUTES
        has it.
        """
        self.device(account_id)
        found = self._open[account_id]
        await choose_auto_lock(found.book, minutes)
        found.minutes = await auto_lock_minutes(found.book)

    async def lock_idle(self) -> list[str]:
        """Lock the accounts that were left alone for too long, and return their ids."""
        for found in self._open.values():
            with contextlib.suppress(ManaError):
                # Another process of this machine may have chosen.
                found.minutes = await auto_lock_minutes(found.book)
        over = [key for key, found in self._open.items() if found.idle.is_over(found.minutes)]
        for account_id in over:
            self._lock_soon(account_id, IDLE)
            await self._locked(account_id)
        return over

    # Without the password

    async def open_remembered(self) -> list[Device]:
        """Open the accounts that the person lets open by this system's keyring.

        Those that do not open wait for their password, as ever. Raises KeyringUnavailable if
        one of them should have opened and no keyring answers.
        """
        opened = []
        for known in self._accounts.known():
            if known.account_id in self._open:
                continue
            with contextlib.suppress(NotRemembered, NotFound):
                # The keyring may ask the person: nobody else waits for that.
                secret = await self._accounts.remembered_secret(known.account_id, self._keyring)
                async with self._changing:
                    await self._locked(known.account_id)
                    if known.account_id in self._open:
                        continue
                    book = await self._accounts.unlock_remembered(known.account_id, secret)
                    device, _ = self._wire(book)
                    opened.append(await self._begin(device, book))
        return opened

    async def sign_out(self, account_id: str, *, force: bool = False) -> None:
        """Remove an account from this device, after what waits was pushed.

        Raises ChangesWaiting if something cannot be; `force` drops it.
        """
        async with self._changing:
            found = self._open.get(account_id)
            if found is None and not force:
                raise Locked("unlock the account, so that what waits can be pushed")
            if found is not None:
                await self._push_rest(found.book, force=force)
                await self.lock(account_id)
            await self._accounts.forget_remembered(account_id, self._keyring)
            self._accounts.forget(account_id)
            self._clear(account_id)

    async def remove_account(self, account_id: str, password: str) -> None:
        """Remove an account for ever: on the hub and here."""
        async with self._changing:
            await self.lock(account_id)
            await self._accounts.remove(account_id, password)
            self._clear(account_id)

    # The demo

    async def start_demo(self) -> Device:
        """Return the demo account, made with its seeds at the first call."""
        async with self._changing:
            kept = self._read_demo()
            known = {one.login: one for one in self._accounts.known() if one.demo}
            if kept is not None and kept[0] in known:
                found = self._open.get(known[kept[0]].account_id)
                if found is not None:
                    return found.device
                book = await self._accounts.unlock(known[kept[0]].account_id, kept[1])
                device, operations = self._wire(book)
                if not await book.views(MISSIONS.name):
                    # A start that was cut off after sign-up: the seeds are still missing.
                    await seeds.plant(operations, zone=local_zone())
                return await self._begin(device, book)
            login, password = f"demo-{secrets.token_hex(3)}", secrets.token_urlsafe(18)
            self._write_demo(login, password)
            book = await self._accounts.sign_up(login, password, demo=True)
            device, operations = self._wire(book)
            await seeds.plant(operations, zone=local_zone())
            return await self._begin(device, book)

    async def remove_demo(self) -> None:
        """Remove the demo account on the hub and here; nothing happens if there is none."""
        async with self._changing:
            kept = self._read_demo()
            for known in [one for one in self._accounts.known() if one.demo]:
                await self.lock(known.account_id)
                if kept is not None and kept[0] == known.login:
                    await self._accounts.remove(known.account_id, kept[1])
                else:
                    self._accounts.forget(known.account_id)
                self._clear(known.account_id)
            self._demo_path.unlink(missing_ok=True)
            self._tokens.clear()

    def demo_link_token(self) -> str:
        """Return a token that opens the demo once, within 15 minutes."""
        self._forget_spent()
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.monotonic() + TOKEN_LIFE_S
        for old in list(self._tokens)[:-TOKENS_MAX]:
            del self._tokens[old]
        return token

    async def redeem_demo_token(self, token: str) -> Device:
        """Return the demo account for a token, which is spent by this; raise LinkSpent."""
        self._forget_spent()
        found = [one for one in self._tokens if secrets.compare_digest(one, token)]
        if not found:
            raise LinkSpent("the link was used before, or is too old")
        del self._tokens[found[0]]
        return await self.start_demo()

    async def close(self) -> None:
        """Lock every account and stop."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for account_id in [*self._open, *self._locking]:
            await self.lock(account_id)
        await self._connections.aclose()

    # Within

    def _wire(self, book: RecordBook) -> tuple[Device, Operations]:
        opened = Opened(
            book=book,
            hub=book.hub,
            catalogue=self.catalogue,
            model=self._model,
            model_local=self._model_local,
            now_ms=self._now_ms,
            new_id=new_id,
            keyring=self._keyring,
            listed=self._listed,
            connections=self._connections,
        )
        operations = Operations(opened, timeout_s=self._run_timeout_s)
        return Device(operations), operations

    async def _begin(self, device: Device, book: RecordBook, *, first: bool = False) -> Device:
        """Start what runs by itself. A new device first takes what the hub has."""
        if first:
            with contextlib.suppress(ManaError):
                await book.sync_now()
        settings = await book.view(SETTINGS.name, SETTINGS_ID)
        self._names[book.account_id] = settings.text("displayName") if settings is not None else ""
        minutes = await auto_lock_minutes(book)
        book.hub.on_revoked = lambda: self._revoked(book)
        if self._background:
            await device.start()
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
        idle = IdleClock(self._now_ms, self._even_s)
        tidying = asyncio.create_task(self._tidy(book))
        self._open[book.account_id] = _Open(device, book, idle, minutes, tidying)
        self._because.pop(book.account_id, None)
        return device

    async def _enter(self, enter: Enter, login: str, secret: str, new_password: str) -> Device:
        """Open an account whose password is lost; if it stood open here, it is opened anew."""
        async with self._changing:
            known = self._accounts.find(login)
            book = await enter(login, secret, new_password)
            if known is not None:
                await self.lock(known.account_id)
            device, _ = self._wire(book)
            return await self._begin(device, book, first=known is None)

    def _lock_soon(self, account_id: str, because: str) -> None:
        """Take an account out of reach at once, and its keys out of memory as soon as can be."""
        found = self._open.pop(account_id, None)
        if found is None:
            return
        self._because[account_id] = because
        for callback in self._on_lock:
            callback(account_id)
        if because:
            _log.info("an account was locked (%s); what it does by itself waits", because)
        self._locking[account_id] = asyncio.create_task(self._let_go(account_id, found, because))

    async def _let_go(self, account_id: str, found: _Open, because: str) -> None:
        found.tidying.cancel()
        await asyncio.gather(found.tidying, return_exceptions=True)
        try:
            if because == REVOKED:
                await found.book.inner().replica.write(_note_revoked)
            await found.device.close()
        finally:
            await found.book.lock()
            self._locking.pop(account_id, None)

    async def _tidy(self, book: RecordBook) -> None:
        with contextlib.suppress(ManaError):
            await tidy(book.inner().replica, self._keyring)

    async def _locked(self, account_id: str) -> None:
        """Wait until an account that is being locked is locked."""
        task = self._locking.get(account_id)
        if task is not None:
            await asyncio.shield(task)

    def _revoked(self, book: RecordBook) -> None:
        """Lock an account on the hub's word that this device counts no more; nothing is lost."""
        found = self._open.get(book.account_id)
        if found is not None and found.book is book:
            self._lock_soon(book.account_id, REVOKED)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.lock_idle()

    async def _push_rest(self, book: RecordBook, *, force: bool) -> None:
        try:
            status = await book.sync_now()
        except ManaError as error:
            _log.info("sign-out without the hub: %s", error.code)
            status = await book.status()
        if status.waiting and not force:
            raise ChangesWaiting(
                "changes of this device have not reached the hub",
                detail={"waiting": status.waiting},
            )
        with contextlib.suppress(ManaError):
            await book.hub.logout()

    def _clear(self, account_id: str) -> None:
        """Remove what the host itself kept of an account."""
        self._names.pop(account_id, None)
        runner_lock(self.settings.folder, account_id).unlink(missing_ok=True)

    @property
    def _demo_path(self) -> Path:
        return self.settings.home / "secrets" / "demo"

    def _read_demo(self) -> tuple[str, str] | None:
        try:
            kept = json.loads(self._demo_path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        match kept:
            case {"login": str(login), "password": str(password)}:
                return login, password
        return None

    def _write_demo(self, login: str, password: str) -> None:
        folder = self._demo_path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f"demo.{secrets.token_hex(4)}.new"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"login": login, "password": password}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._demo_path)

    def _forget_spent(self) -> None:
        now = time.monotonic()
        for token in [token for token, ends in self._tokens.items() if ends <= now]:
            del self._tokens[token]


def _note_revoked(tx: Tx) -> None:
    """Keep that this device was revoked; the password is asked for from now on."""
    tx.set_meta(REVOKED_HERE, "1")
    tx.set_meta(REMEMBERED, None)


async def _begin_session(book: RecordBook, factor: FactorAnswer) -> None:
    """Begin a new session of an account that was opened here, with a second factor."""
    tokens = await book.hub.login(book.login, book.login_key(), factor=factor)
    await book.hub.begin(tokens)


def new_id() -> str:
    """Return a fresh UUIDv7: it begins with the millisecond in which it was made."""
    stamp_ms = time.time_ns() // 1_000_000
    raw = bytearray(stamp_ms.to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6] = (raw[6] & 0x0F) | 0x70
    raw[8] = (raw[8] & 0x3F) | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))


def local_zone() -> str:
    """Return this machine's time zone by its IANA name; UTC where it has none."""
    named = os.environ.get("TZ", "").strip().removeprefix(":")
    with contextlib.suppress(OSError):
        target = str(Path("/etc/localtime").resolve())
        named = named or target.partition("/zoneinfo/")[2]
    try:
        return ZoneInfo(named).key if named else "UTC"
    except (KeyError, ValueError, OSError):
        return "UTC"


def build(
    settings: DeviceSettings,
    *,
    catalogue: Catalogue | None = None,
    model: Model | None = None,
    now_ms: Callable[[], int] = system_ms,
    transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    run_timeout_s: float = TIMEOUT_S,
    background: bool = True,
    keyring: SystemKeyring | None = None,
    even_s: Callable[[], float] = time.monotonic,
) -> DeviceHost:
    """Wire the device; tests give it a clock, a model and a transport of their own.

    `background` False: nothing runs by itself, neither sync nor due missions. So a command that
    lives for a second starts no mission that it would have to stop.
    """
    installed = catalogue or load_catalogue()
    listed = None
    if model is None:
        # What a person sets up on their own machine may stand anywhere.
        listed = load_models(settings.home, settings.environ, own_models="any")
        model = candidates(listed, "", None)[0].model
    chosen = model
    local = getattr(chosen, "local", None)
    accounts = Accounts(settings, installed, now_ms=now_ms, transport=transport)
    return DeviceHost(
        settings,
        accounts,
        installed,
        chosen,
        listed=listed,
        model_local=isinstance(chosen, Rules) if local is None else bool(local),
        now_ms=now_ms,
        run_timeout_s=run_timeout_s,
        background=background,
        keyring=keyring,
        even_s=even_s,
    )
