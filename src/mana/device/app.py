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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final
from zoneinfo import ZoneInfo

import httpx

from mana.device import seeds
from mana.device.accounts import Accounts, system_ms
from mana.device.desk import Device
from mana.device.errors import Locked
from mana.device.opened import Opened
from mana.device.operations import Operations, runner_lock
from mana.device.records import RecordBook
from mana.device.runner import TIMEOUT_S
from mana.device.settings import DeviceSettings
from mana.domain.cadences import zone as require_zone
from mana.domain.errors import Conflict, Invalid, ManaError, NotFound, Unauthenticated
from mana.domain.missions import MISSIONS
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.models.choose import model_from_settings
from mana.models.rules import Rules
from mana.planning.ports import Model
from mana.registry.catalogue import Catalogue, load_catalogue

TOKEN_LIFE_S: Final = 15 * 60.0
TOKENS_MAX: Final = 64
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
    """An account that is kept on this device."""

    account_id: str
    login: str
    display_name: str
    demo: bool
    unlocked: bool


class DeviceHost:
    """The accounts of this device. One per process."""

    def __init__(
        self,
        settings: DeviceSettings,
        accounts: Accounts,
        catalogue: Catalogue,
        model: Model,
        *,
        model_local: bool,
        now_ms: Callable[[], int],
        run_timeout_s: float = TIMEOUT_S,
        background: bool = True,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self._accounts = accounts
        self._model = model
        self._model_local = model_local
        self._now_ms = now_ms
        self._run_timeout_s = run_timeout_s
        self._background = background
        self._open: dict[str, tuple[Device, RecordBook]] = {}
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
            )
            for known in self._accounts.known()
        ]

    def device(self, account_id: str) -> Device:
        """Return an unlocked account; raise Locked, or NotFound if it is not on this device."""
        found = self._open.get(account_id)
        if found is not None:
            return found[0]
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
        """Make an account on the hub and open it here."""
        if mode != "standard":
            raise Invalid("this version makes accounts in standard mode only")
        require_zone(zone)
        async with self._changing:
            book = await self._accounts.sign_up(
                login, password, mode=mode, demo=demo, invite=invite
            )
            device, operations = self._wire(book)
            name = display_name.strip()[:80]
            values = {"displayName": name or None, "timeZone": zone}
            await operations.records.write_settings(values)
            return await self._begin(device, book)

    async def sign_in(self, login: str, password: str) -> Device:
        """Open an account: offline where it is kept here, else from the hub's vault."""
        async with self._changing:
            known = next(
                (one for one in self._accounts.known() if one.login == login.strip()), None
            )
            if known is not None and known.account_id in self._open:
                # Already open: the password is still asked, because somebody else may be asking.
                book = await self._accounts.unlock(known.account_id, password)
                await book.lock()
                return self._open[known.account_id][0]
            book = await self._accounts.sign_in(login, password)
            device, _ = self._wire(book)
            return await self._begin(device, book, first=known is None)

    async def lock(self, account_id: str) -> None:
        """Drop an account's keys from memory; it stays on this device."""
        found = self._open.pop(account_id, None)
        if found is not None:
            device, book = found
            await device.close()
            await book.lock()

    async def sign_out(self, account_id: str, *, force: bool = False) -> None:
        """Remove an account from this device, after what waits was pushed.

        Raises ChangesWaiting if something cannot be; `force` drops it.
        """
        async with self._changing:
            found = self._open.get(account_id)
            if found is None and not force:
                raise Locked("unlock the account, so that what waits can be pushed")
            if found is not None:
                await self._push_rest(found[1], force=force)
                await self.lock(account_id)
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
                    return found[0]
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
        for account_id in list(self._open):
            await self.lock(account_id)

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
        if self._background:
            await device.start()
        self._open[book.account_id] = (device, book)
        return device

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
) -> DeviceHost:
    """Wire the device; tests give it a clock, a model and a transport of their own.

    `background` False: nothing runs by itself, neither sync nor due missions. So a command that
    lives for a second starts no mission that it would have to stop.
    """
    installed = catalogue or load_catalogue()
    chosen: Model
    if model is None:
        chosen = model_from_settings(settings.llm_url, settings.llm_key, settings.llm_model)
    else:
        chosen = model
    local = getattr(chosen, "local", None)
    accounts = Accounts(settings, installed, now_ms=now_ms, transport=transport)
    return DeviceHost(
        settings,
        accounts,
        installed,
        chosen,
        model_local=isinstance(chosen, Rules) if local is None else bool(local),
        now_ms=now_ms,
        run_timeout_s=run_timeout_s,
        background=background,
    )
