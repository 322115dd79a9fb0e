"""Moves changes between replica and hub: pushes what waits, pulls what is new, and keeps at it.

The rules are in `mana.protocol.replication`; here are the calls, the waiting and the back-off. One
process of a machine runs this for a replica; any other can still sync once when asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final, cast

import msgspec

from mana.crypto.authority import Authority
from mana.device.ends import CLOCK_OFFSET, Ends
from mana.device.errors import ReplicaBroken
from mana.device.hub_client import HubClient, jittered
from mana.device.known_spaces import KnownSpaces
from mana.device.locks import FileLock
from mana.device.pulling import Pulling
from mana.device.pushing import Pushing
from mana.device.replica import HUB_TIME, Replica, Space, Tx
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.vault import OpenedVault, SpaceKeys, random_id
from mana.device.views import LinkState, Notice, SyncStatus
from mana.domain.errors import Forbidden, ManaError, NotFound, Unauthenticated, Unavailable
from mana.domain.spaces import can_manage, rotation_due
from mana.protocol.errors import InvalidCredentials, RateLimited
from mana.protocol.replication import HubDistrusted
from mana.registry.catalogue import Catalogue

REGISTERED: Final = "registeredDevice"
_SYNCED: Final = "syncedMs"
_LINK: Final = "link"
_TROUBLES: Final = "troubles"
_TIDIED: Final = "tidiedMs"
_TIDY_MS: Final = 24 * 3_600 * 1_000
_SPACES_MS: Final = 10 * 60 * 1_000
"""How old what is known of the spaces may be although no notice came."""
_ROUNDS_MAX: Final = 3
_EVERYWHERE: Final = (Unavailable, RateLimited, Unauthenticated, ReplicaBroken)
"""What stands in the way of every space, so that there is no use in trying the next."""
_BACKOFF_S_MAX: Final = 15.0
_FOLLOWER_S: Final = 2.0

_log = logging.getLogger("mana.device.sync")


class Syncer:
    """Sync of all spaces of one unlocked account.

    `after_spaces` is called, without any lock, after a round in which the spaces were read: it
    does what memberships and invitations ask for, and says whether it changed any. It may be
    called again for the same. `check_vault` is called before the spaces are read: a device that
    does not have the keys in force sends nothing. `chance` gives numbers from 0 to 1, for waits between attempts.
    """

    after_spaces: Callable[[], Awaitable[bool]] | None = None
    check_vault: Callable[[], Awaitable[None]] | None = None

    def __init__(
        self,
        *,
        replica: Replica,
        vault: OpenedVault,
        sealer: Sealer,
        hub: HubClient,
        catalogue: Catalogue,
        settings: DeviceSettings,
        now_ms: Callable[[], int],
        emit: Callable[[Notice], None],
        lock_path: Path,
        new_id: Callable[[], str] = random_id,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._replica = replica
        self._vault = vault
        self._sealer = sealer
        self._hub = hub
        self._settings = settings
        self._now_ms = now_ms
        self._emit = emit
        self._leadership = FileLock(lock_path)
        self._one_at_a_time = asyncio.Lock()
        self._woken = asyncio.Event()
        self._retried = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._link: LinkState = "offline"
        self._trouble = ""
        self._troubles: dict[str, str] = {}
        self._said = ("offline", "", "{}")
        self._has_tried = False
        self._chance = chance
        self._registered = False
        self._defers = False
        self._has_deferred = False
        self._seen_mark = 0
        ends = Ends(replica, vault, sealer, hub, now_ms, new_id, emit, self.announce)
        self._spaces = KnownSpaces(ends)
        known = frozenset(table.name for table in catalogue.tables)
        self._pulling = Pulling(ends, self._spaces, known)
        self._pushing = Pushing(ends, self._read_on)

    # What the person sees

    async def status(self) -> SyncStatus:
        """Return the truth about sync."""
        (waiting, refused), synced, offset, kept, stuck = await self._replica.read(
            lambda tx: (
                tx.counts(),
                tx.meta(_SYNCED),
                tx.meta(CLOCK_OFFSET),
                tx.meta(_LINK),
                tx.meta(_TROUBLES),
            )
        )
        link, trouble, troubles = self._link, self._trouble, dict(self._troubles)
        if not self._has_tried and kept is not None and self._is_led_elsewhere():
            # Another process of this machine syncs this replica; what it found holds here too.
            link, _, trouble = cast("tuple[LinkState, str, str]", kept.partition(" "))
            troubles = msgspec.json.decode(stuck, type=dict[str, str]) if stuck else {}
        if not trouble and offset is not None:
            trouble = "CLOCK_AHEAD"
        return SyncStatus(
            link, int(synced) if synced is not None else None, waiting, refused, trouble, troubles
        )

    def _is_led_elsewhere(self) -> bool:
        if self._leadership.held:
            return False
        if self._leadership.acquire():
            self._leadership.release()
            return False
        return True

    def authority(self, space_id: str) -> Authority:
        """Return who may decide in a space, as far as certificates are known here."""
        return self._spaces.authority(space_id)

    async def meet(self, space_id: str, signers: Iterable[str]) -> None:
        """Fetch certificates if one of these devices is not known here; raise without the hub."""
        await self._spaces.meet(space_id, signers)

    # Once

    async def load(self) -> None:
        """Read what was kept: spaces and certificates. Needs no hub."""
        await self._spaces.load()
        self._seen_mark = await self._replica.read(lambda tx: tx.touched_after(0)[1])

    async def once(self, *, spaces: bool = True) -> None:
        """Push and pull every space once; raise what stands in the way of the first that failed.

        A space that fails does not stop the others. `spaces`: read also which spaces there are,
        which is done anyway if there is a reason to.
        """
        error: ManaError | None = None
        for number in range(_ROUNDS_MAX):
            async with self._one_at_a_time:
                # Once: what keeps the key from being changed must not keep edits here for ever.
                self._defers = number == 0 and self.after_spaces is not None
                self._has_deferred = False
                try:
                    error = await self._round(spaces=spaces)
                finally:
                    self._defers = False
            if isinstance(error, _EVERYWHERE):
                break
            if not await self._follow_spaces() and not self._has_deferred:
                break
            self._spaces.is_stale = True
        if error is not None:
            raise error

    async def push(self, space_ids: Iterable[str] | None = None) -> None:
        """Push what waits, in all spaces or these; raise what stands in the way."""
        wanted = None if space_ids is None else set(space_ids)

        async def work(space: Space) -> None:
            if wanted is None or space.space in wanted:
                await self._push(space.space)
                _ = self._vault.space(space.space).current_version

        async with self._one_at_a_time:
            error = await self._each(work, spaces=not self._spaces.are_read)
        if error is not None:
            raise error

    async def refresh_spaces(self) -> None:
        """Read from the hub which spaces there are, and take it."""
        async with self._one_at_a_time:
            await self._spaces.read()
        await self.announce()

    def spaces_moved(self) -> None:
        """Say that memberships or invitations moved: the next round reads them, and comes soon."""
        self._spaces.is_stale = True
        self._spaces.devices_moved()
        self._woken.set()
        self._retried.set()

    async def keep_spaces(self) -> None:
        """Keep what the vault knows of the spaces, durably; begin new ones, end left ones.

        Called after the vault took an answer of the hub about one.
        """
        await self._spaces.keep()

    async def forget_space(self, space_id: str) -> None:
        """Remove everything of a space that was left from this device; SpaceStillHeld else."""
        async with self._one_at_a_time:
            await self._spaces.forget(space_id)
        self._troubles.pop(space_id, None)
        await self.announce()

    async def reread(self, space_ids: Iterable[str]) -> None:
        """Read the state of these spaces anew, over what is held, then sync once.

        Nothing that is held goes. Raises what stands in the way; it goes on with a later sync.
        """
        async with self._one_at_a_time:

            def work(tx: Tx) -> None:
                for space_id in space_ids:
                    tx.read_anew(space_id)

            await self._replica.write(work)
        await self.announce()
        await self.once()

    async def tidy(self) -> int:
        """Let go of old tombstones, at most once a day; return how many."""

        def work(tx: Tx) -> int:
            hub_ms = int(tx.meta(HUB_TIME) or 0)
            if hub_ms - int(tx.meta(_TIDIED) or 0) < _TIDY_MS:
                return 0
            tx.set_meta(_TIDIED, str(hub_ms))
            return tx.let_go(hub_ms)

        return await self._replica.write(work)

    async def _round(self, *, spaces: bool) -> ManaError | None:
        async def work(space: Space) -> None:
            if space.cursor is None:
                # A new device first learns what is there, then says what it wrote.
                await self._pulling.pull(space.space)
            await self._push(space.space)
            await self._pulling.pull(space.space)
            # Without the key in use it is read as far as it opens, and what waits goes on waiting.
            _ = self._vault.space(space.space).current_version

        error = await self._each(work, spaces=spaces)
        if error is None:
            synced = str(self._now_ms())
            await self._replica.write(lambda tx: tx.set_meta(_SYNCED, synced))
        return error

    async def _each(
        self, work: Callable[[Space], Awaitable[None]], *, spaces: bool
    ) -> ManaError | None:
        """Do this in every space; return what stood in the way of the first that failed."""
        failed: dict[str, ManaError] = {}
        try:
            reads = spaces or self._spaces.is_stale or not self._spaces.are_read
            if reads and self.check_vault is not None:
                await self.check_vault()
            await self._register()
            if reads:
                await self._try("", self._spaces.read, failed)
            for space in await self._active():
                await self._try(space.space, partial(self._in, space, work), failed)
            moved = [name for name, error in failed.items() if _is_moved(error)]
            if moved:
                # Perhaps it is a space no more, or this account's role in it is another.
                for name in {"", *moved}:
                    failed.pop(name, None)
                await self._try("", self._spaces.read, failed)
                again = [space for space in await self._active() if space.space in moved]
                for space in again:
                    await self._try(space.space, partial(self._in, space, work), failed)
        except ManaError as error:
            if isinstance(error, InvalidCredentials):
                self._spaces.is_stale = True  # the next round says what has moved
            await self._failed(error)
            return error
        self._troubles = {name: error.code for name, error in failed.items() if name}
        if failed:
            first = next(iter(failed.values()))
            await self._failed(first)
            return first
        await self._succeeded()
        return None

    async def _try(
        self, name: str, work: Callable[[], Awaitable[None]], failed: dict[str, ManaError]
    ) -> None:
        try:
            await work()
        except _EVERYWHERE:
            raise
        except ManaError as error:
            failed[name] = error

    async def _in(self, space: Space, work: Callable[[Space], Awaitable[None]]) -> None:
        await self._spaces.certify(space.space)
        await work(space)

    async def _active(self) -> list[Space]:
        rows = await self._replica.read(lambda tx: tx.spaces())
        return [row for row in rows if row.state == "active" and row.space in self._vault.spaces]

    async def _follow_spaces(self) -> bool:
        """Do what the spaces ask for after they were read; say whether they were changed by it."""
        if not self._spaces.is_hook_due or self.after_spaces is None:
            return False
        self._spaces.is_hook_due = False
        try:
            return await self.after_spaces()
        except ManaError as error:
            # It is tried again with the next round; sync itself has done its work.
            self._spaces.is_hook_due = True
            _log.warning("spaces wait", extra={"code": error.code})
            return False

    def say(self, notice: Notice) -> None:
        """Tell subscribers."""
        self._emit(notice)

    async def announce(self) -> None:
        """Tell subscribers which tables were touched since the last time."""
        mark = self._seen_mark
        tables, newest = await self._replica.read(lambda tx: tx.touched_after(mark))
        self._seen_mark = max(self._seen_mark, newest)
        if tables:
            self._emit(Notice("records", tables))

    async def _push(self, space_id: str) -> None:
        if self._defers and _is_key_to_change(self._vault.space(space_id)):
            # This device changes the key first: who left would read what is sealed under it.
            self._has_deferred = True
            return
        await self._pushing.push(space_id)

    async def _read_on(self, space_id: str) -> None:
        await self._spaces.read()
        await self._pulling.pull(space_id)

    # For as long as the account is unlocked

    async def start(self) -> None:
        """Start to push, pull, listen and watch by itself."""
        if not self._tasks:
            self._woken.set()
            self._tasks = [
                asyncio.create_task(self._guarded(work), name=f"sync-{name}")
                for name, work in (
                    ("move", self._move),
                    ("listen", self._listen),
                    ("watch", self._watch),
                )
            ]

    async def close(self) -> None:
        """Stop, and wait until everything has stopped."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._leadership.release()

    def wake(self) -> None:
        """Say that something waits."""
        self._woken.set()

    async def _guarded(self, work: Callable[[], object]) -> None:
        """Begin again after what nobody foresaw, and show it rather than fall silent."""
        attempt = 0
        while True:
            try:
                await work()  # type: ignore[misc]
            except Exception as error:
                # Its message may hold anything, so only its kind is written down.
                _log.error("sync failed", extra={"kind": type(error).__name__})
                self._link, self._trouble = "refused", "INTERNAL"
                self._emit(Notice("sync"))
                await asyncio.sleep(jittered(attempt, chance=self._chance))
                attempt += 1

    async def _move(self) -> None:
        attempt = 0
        while True:
            if not self._leadership.acquire():
                await asyncio.sleep(_FOLLOWER_S)
                continue
            self._woken.clear()
            self._retried.clear()
            try:
                old = self._now_ms() - self._spaces.read_ms >= _SPACES_MS
                if old:
                    self._spaces.devices_moved()
                await self.once(spaces=old or self._spaces.is_hook_due)
                await self.tidy()
            except ManaError:
                await _first(self._retried, self._back_off(attempt))
                attempt += 1
                continue
            attempt = 0
            if await _first(self._woken, self._settings.poll_s):
                await asyncio.sleep(self._settings.debounce_s)

    async def _listen(self) -> None:
        attempt = 0
        while True:
            if not self._leadership.held:
                await asyncio.sleep(self._settings.watch_s)
                continue
            with contextlib.suppress(ManaError):
                async with self._hub.live() as events:
                    async for event in events:
                        attempt = 0
                        if event.name in ("hello", "space"):
                            self._woken.set()
                            self._retried.set()
                        elif event.name == "mission":
                            self._emit(Notice("missions"))
                        if event.name in ("hello", "spaces"):
                            # While there was no stream, the notice was missed.
                            self.spaces_moved()
            await asyncio.sleep(self._back_off(attempt))
            attempt += 1

    def _back_off(self, attempt: int) -> float:
        return jittered(attempt, most_s=_BACKOFF_S_MAX, chance=self._chance)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_s)
            if await self._replica.moved():
                await self._spaces.take_kept()
                await self.announce()
                self._woken.set()

    async def _register(self) -> None:
        """Register this device, once per unlock."""
        if self._registered:
            return
        device = self._sealer.device
        if await self._replica.read(lambda tx: tx.meta(REGISTERED)) != device.device_id:
            await self._hub.register_device(device.certificate)
            await self._replica.write(lambda tx: tx.set_meta(REGISTERED, device.device_id))
        self._registered = True

    # State of the link

    async def _failed(self, error: ManaError) -> None:
        is_away = isinstance(error, Unavailable | RateLimited)
        if isinstance(error, _EVERYWHERE):
            self._troubles = {}
        await self._found("offline" if is_away else "refused", error.code)

    async def _succeeded(self) -> None:
        self._retried.set()
        await self._found("online", "")

    async def _found(self, link: LinkState, trouble: str) -> None:
        said = (link, trouble, msgspec.json.encode(self._troubles).decode())
        if said != self._said:

            def work(tx: Tx) -> None:
                tx.set_meta(_LINK, f"{link} {trouble}")
                tx.set_meta(_TROUBLES, said[2])

            with contextlib.suppress(ManaError):
                await self._replica.write(work)
            self._link, self._trouble, self._said = link, trouble, said
            self._emit(Notice("sync"))
        self._has_tried = True


def _is_key_to_change(space: SpaceKeys) -> bool:
    """Say whether somebody who left knows the key in use, and this account may change it."""
    return (
        space.shared
        and space.role is not None
        and can_manage(space.role)
        and rotation_due(space.entries)
    )


async def _first(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event or for so long, and say whether it was the event."""
    # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with the event.
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _is_moved(error: ManaError) -> bool:
    """Say whether this may be because of who is in the space, or as what, by now."""
    return isinstance(error, Forbidden | NotFound) and not isinstance(error, HubDistrusted)
