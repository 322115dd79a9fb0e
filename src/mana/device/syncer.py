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

from mana.crypto.authority import Authority, authority_among, facts_of
from mana.crypto.primitives import unb64
from mana.crypto.signatures import verify_change
from mana.device.errors import ReplicaBroken
from mana.device.hub_client import HubClient, jittered
from mana.device.locks import FileLock
from mana.device.renewals import differs, renamer, resealer, restamper
from mana.device.replica import HUB_TIME, OutboxRow, Replica, Space, Tx, Watch
from mana.device.resending import resender
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.vault import OpenedVault, SpaceKeys, random_id
from mana.device.views import LinkState, Notice, SyncStatus
from mana.domain.clock import DRIFT_MS_MAX, Stamp, observe, parse_stamp
from mana.domain.encoding import sha256
from mana.domain.errors import (
    Conflict,
    CryptoFailed,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mana.domain.spaces import can_manage, rotation_due
from mana.protocol.errors import RateLimited
from mana.protocol.messages import (
    PULL_LIMIT_MAX,
    ChangeMessage,
    DeviceCertificate,
    LoggedChange,
    PullAnswer,
    PushRequest,
    SpacesAnswer,
    StateRecord,
)
from mana.protocol.replication import (
    HubDistrusted,
    Queued,
    Verdict,
    check_authors,
    check_pull,
    check_state,
    newest_stamp,
    own_flips,
    time_of,
    units,
    verdicts,
)
from mana.registry.catalogue import Catalogue

CLOCK_OFFSET: Final = "clockOffsetMs"
REGISTERED: Final = "registeredDevice"
SPACES: Final = "spaces"
_SYNCED: Final = "syncedMs"
_LINK: Final = "link"
_TROUBLES: Final = "troubles"
_TIDIED: Final = "tidiedMs"
_TIDY_MS: Final = 24 * 3_600 * 1_000
_HUB_TIME_STEP_MS: Final = 60_000
_SPACES_MS: Final = 10 * 60 * 1_000
"""How old what is known of the spaces may be although no notice came."""
_ROUNDS_MAX: Final = 3
_ASKED_MAX: Final = 3
_EVERYWHERE: Final = (Unavailable, RateLimited, Unauthenticated, ReplicaBroken)
"""What stands in the way of every space, so that there is no use in trying the next."""
_BACKOFF_S_MAX: Final = 15.0
_CERTIFICATES: Final = "certificates:"
_RESTAMPS_MAX: Final = 3
_FOLLOWER_S: Final = 2.0

_log = logging.getLogger("mana.device.sync")


class Syncer:
    """Sync of all spaces of one unlocked account.

    `after_spaces` is called, without any lock, after a round in which the spaces were read: it
    does what memberships and invitations ask for, and says whether it changed any. It may be
    called again for the same. `chance` gives numbers from 0 to 1, for waits between attempts.
    """

    after_spaces: Callable[[], Awaitable[bool]] | None = None

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
        self._known = frozenset(table.name for table in catalogue.tables)
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
        self._new_id = new_id
        self._chance = chance
        self._registered = False
        self._are_spaces_stale = True
        self._spaces_ms = 0
        self._spaces_seen = b""
        self._is_hook_due = False
        self._defers = False
        self._has_deferred = False
        self._kept = b""
        self._kept_sealed: str | None = None
        self._seen_mark = 0
        self._sealed_for: dict[str, tuple[int, int]] = {}
        self._certificates: dict[str, list[DeviceCertificate]] = {}
        self._certified: set[str] = set()
        self._authorities: dict[str, tuple[int, Authority]] = {}

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
        space = self._vault.spaces.get(space_id)
        if space is None:
            raise NotFound("no such space is kept here")
        length, found = self._authorities.get(space_id, (0, None))
        if found is None or length != len(space.log):
            known = [*self._certificates.get(space_id, []), self._sealer.device.certificate]
            found = authority_among(space_id, space.members, known)
            self._authorities[space_id] = (len(space.log), found)
        return found

    # Once

    async def load(self) -> None:
        """Read what was kept: spaces and certificates. Needs no hub."""
        spaces = self._vault.spaces

        def work(tx: Tx) -> dict[str, str | None]:
            self._keep_rows(tx)
            self._seen_mark = tx.touched_after(0)[1]
            self._kept_sealed = tx.meta(SPACES)
            return {name: tx.meta(f"{_CERTIFICATES}{name}") for name in spaces}

        for space_id, kept in (await self._replica.write(work)).items():
            known = (
                msgspec.json.decode(kept, type=list[DeviceCertificate]) if kept is not None else []
            )
            self._take_certificates(space_id, known)

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
            self._are_spaces_stale = True
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
            error = await self._each(work, spaces=not self._spaces_seen)
        if error is not None:
            raise error

    async def refresh_spaces(self) -> None:
        """Read from the hub which spaces there are, and take it."""
        async with self._one_at_a_time:
            await self._read_spaces()
        await self.announce()

    def spaces_moved(self) -> None:
        """Say that memberships or invitations moved: the next round reads them, and comes soon."""
        self._are_spaces_stale = True
        self._woken.set()
        self._retried.set()

    async def keep_spaces(self) -> None:
        """Keep what the vault knows of the spaces, durably; begin new ones, end left ones.

        Called after the vault took an answer of the hub about one.
        """
        kept = self._vault.kept_spaces()
        digest = sha256(kept)
        if digest == self._kept:
            return
        sealed = self._vault.seal(kept, "spaces")

        def work(tx: Tx) -> None:
            tx.set_meta(SPACES, sealed)
            self._keep_rows(tx)

        await self._replica.write(work)
        self._kept, self._kept_sealed = digest, sealed
        for space_id in [name for name in self._certified if name not in self._vault.spaces]:
            self._certified.discard(space_id)
        self._emit(Notice("spaces"))
        await self.announce()

    def _keep_rows(self, tx: Tx) -> None:
        rows = {row.space: row for row in tx.spaces()}
        for space in self._vault.spaces.values():
            row = rows.get(space.space_id)
            if not space.former and (row is None or row.state != "active"):
                tx.add_space(space.space_id, space.type)
            elif space.former and row is not None and row.state == "active":
                tx.leave_space(space.space_id, now_ms=self._now_ms())

    async def forget_space(self, space_id: str) -> None:
        """Remove everything of a space that was left from this device; SpaceStillHeld else."""
        async with self._one_at_a_time:
            self._vault.forget_space(space_id)

            def work(tx: Tx) -> None:
                tx.forget_space(space_id)
                tx.set_meta(f"{_CERTIFICATES}{space_id}", None)

            await self._replica.write(work)
            await self.keep_spaces()
        for known in (self._certificates, self._authorities, self._troubles):
            known.pop(space_id, None)
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
                await self._pull(space.space)
            await self._push(space.space)
            await self._pull(space.space)
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
            await self._register()
            if spaces or self._are_spaces_stale or not self._spaces_seen:
                await self._try("", self._read_spaces, failed)
            for space in await self._active():
                await self._try(space.space, partial(self._in, space, work), failed)
            moved = [name for name, error in failed.items() if _is_moved(error)]
            if moved:
                # Perhaps it is a space no more, or this account's role in it is another.
                failed.pop("", None)
                await self._try("", self._read_spaces, failed)
                for name in moved:
                    failed.pop(name, None)
                again = [space for space in await self._active() if space.space in moved]
                for space in again:
                    await self._try(space.space, partial(self._in, space, work), failed)
        except ManaError as error:
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
        if space.space not in self._certified:
            await self._refresh_certificates(space.space)
        await work(space)

    async def _active(self) -> list[Space]:
        rows = await self._replica.read(lambda tx: tx.spaces())
        return [row for row in rows if row.state == "active" and row.space in self._vault.spaces]

    async def _follow_spaces(self) -> bool:
        """Do what the spaces ask for after they were read; say whether they were changed by it."""
        if not self._is_hook_due or self.after_spaces is None:
            return False
        self._is_hook_due = False
        try:
            return await self.after_spaces()
        except ManaError as error:
            # It is tried again with the next round; sync itself has done its work.
            self._is_hook_due = True
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
                old = self._now_ms() - self._spaces_ms >= _SPACES_MS
                await self.once(spaces=old or self._is_hook_due)
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
                await self._take_kept_spaces()
                await self.announce()
                self._woken.set()

    # Getting ready

    async def _register(self) -> None:
        """Register this device, once per unlock."""
        if self._registered:
            return
        device = self._sealer.device
        if await self._replica.read(lambda tx: tx.meta(REGISTERED)) != device.device_id:
            await self._hub.register_device(device.certificate)
            await self._replica.write(lambda tx: tx.set_meta(REGISTERED, device.device_id))
        self._registered = True

    async def _read_spaces(self) -> None:
        """Take which spaces there are, their logs and keys; nothing if any of it is wrong."""
        self._are_spaces_stale = False
        try:
            answer = await self._ask_spaces()
            digest = sha256(msgspec.json.encode(answer))
            if digest != self._spaces_seen:
                before = self._lengths()
                self._vault.take_spaces(answer)
                for name, one in self._vault.spaces.items():
                    if before.get(name) != len(one.log):
                        self._certified.discard(name)
                self._spaces_seen = digest
            await self.keep_spaces()
        except BaseException:
            self._are_spaces_stale = True
            raise
        self._spaces_ms = self._now_ms()
        self._is_hook_due = True

    async def _ask_spaces(self) -> SpacesAnswer:
        """Return an answer during which nothing else was learned of the spaces.

        What this or another process learned meanwhile is newer than the answer, which would look
        like one that forgets.
        """
        for _ in range(_ASKED_MAX):
            await self._take_kept_spaces()
            before = self._lengths()
            answer = await self._hub.spaces()
            await self._take_kept_spaces()
            if self._lengths() == before:
                return answer
        raise Conflict("the spaces move faster than they are read")

    def _lengths(self) -> dict[str, int]:
        return {name: len(space.log) for name, space in self._vault.spaces.items()}

    async def _take_kept_spaces(self) -> None:
        """Take what another process of this machine has learned of the spaces."""
        kept = await self._replica.read(lambda tx: tx.meta(SPACES))
        if kept is None or kept == self._kept_sealed:
            return
        self._vault.restore_spaces(self._vault.open(kept, "spaces"))
        self._kept_sealed = kept
        self._emit(Notice("spaces"))

    async def _refresh_certificates(self, space_id: str) -> None:
        found = await self._hub.space_devices(space_id)
        kept = msgspec.json.encode(found).decode()
        await self._replica.write(lambda tx: tx.set_meta(f"{_CERTIFICATES}{space_id}", kept))
        self._take_certificates(space_id, found)
        self._certified.add(space_id)

    def _take_certificates(self, space_id: str, found: list[DeviceCertificate]) -> None:
        self._certificates[space_id] = found
        self._authorities.pop(space_id, None)

    async def _meet(self, space_id: str, signers: Iterable[str]) -> None:
        """Fetch certificates if somebody signed whose device is not known here."""
        known = self.authority(space_id).devices
        if any(not signer.startswith("runner:") and signer not in known for signer in signers):
            await self._refresh_certificates(space_id)

    # Pushing

    async def _push(self, space_id: str) -> None:
        units_max: int | None = None
        restamps = 0
        if self._defers and _is_key_to_change(self._vault.space(space_id)):
            # This device changes the key first: who left would read what is sealed under it.
            self._has_deferred = True
            return
        await self._reseal_waiting(space_id)
        while not self._vault.space(space_id).spoiled:
            rows = await self._batch(space_id, units_max)
            if not rows:
                return
            sent = [row.message for row in rows]
            try:
                answer = await self._hub.push(space_id, await self._request(space_id, sent))
            except Invalid as error:
                if error.code not in ("BAD_REQUEST", "TOO_LARGE"):
                    raise
                if len(_units(rows)) > 1:
                    # One change is at fault: the others must not wait for it.
                    units_max = 1
                    await self._replica.write(lambda tx: tx.unsend(space_id))
                    continue
                await self._park(rows, error.code.lower().replace("_", "-"))
                continue
            found = verdicts(sent, answer)
            hub_ms = time_of(answer.hub_time)
            if any(verdict.fate == "restamp" for verdict in found):
                restamps += 1
                if restamps > _RESTAMPS_MAX:
                    raise HubDistrusted("the hub refuses every stamp")
                await self._set_back(hub_ms)
            await self._settle(space_id, found, hub_ms)
            if any(verdict.again and verdict.code == "stale-key" for verdict in found):
                await self._renew(space_id, hub_ms)
            await self.announce()
            self._emit(Notice("sync"))

    async def _reseal_waiting(self, space_id: str) -> None:
        """Bring what waits under keys that are new here before it is sent.

        Sent as it is, an older change would be refused where a newer one of the same record is
        taken, and would come after it in the log.
        """
        space = self._vault.space(space_id)
        if space.spoiled:
            return
        versions = (space.version, max(space.private_keys, default=0))
        if self._sealed_for.get(space_id) == versions:
            return
        await self._reseal(space_id, self._now_ms())
        self._sealed_for[space_id] = versions

    async def _batch(self, space_id: str, units_max: int | None) -> list[OutboxRow]:
        return await self._replica.write(lambda tx: tx.batch(space_id, units_max=units_max))

    async def _settle(self, space_id: str, found: list[Verdict], hub_ms: int) -> None:
        anew = restamper(self._sealer, hub_ms)
        rename = renamer(self._sealer, self._new_id)
        await self._replica.write(
            lambda tx: tx.settle(
                space_id,
                found,
                now_ms=hub_ms,
                restamp=anew,
                rename=rename,
                account_id=self._vault.account_id,
            )
        )

    async def _renew(self, space_id: str, hub_ms: int) -> None:
        """Seal what waits under the keys and for the visibilities that stand by now."""
        await self._read_spaces()
        await self._pull(space_id)
        if not self._vault.space(space_id).spoiled:
            await self._reseal(space_id, hub_ms)

    async def _reseal(self, space_id: str, now_ms: int) -> None:
        anew = resealer(self._sealer)
        await self._replica.write(lambda tx: tx.reseal(space_id, anew, now_ms=now_ms))

    async def _request(self, space_id: str, sent: list[ChangeMessage]) -> PushRequest:
        space = await self._replica.read(lambda tx: tx.space(space_id))
        heads = {space_id: space.cursor} if space is not None and space.cursor is not None else {}
        return PushRequest(device_id=self._sealer.device.device_id, changes=sent, heads=heads)

    async def _park(self, rows: list[OutboxRow], code: str) -> None:
        now_ms = self._now_ms()
        await self._replica.write(lambda tx: tx.park(rows, code, now_ms=now_ms))
        await self.announce()
        self._emit(Notice("sync"))

    async def _set_back(self, hub_ms: int) -> None:
        """Follow the hub's time from now on, because this machine's clock is ahead."""
        offset = str(hub_ms - self._now_ms())
        stamp = Stamp(hub_ms, 0, self._sealer.device.device_id)

        def work(tx: Tx) -> None:
            tx.set_meta(CLOCK_OFFSET, offset)
            tx.set_clock(stamp)

        await self._replica.write(work)

    # Pulling

    async def _pull(self, space_id: str) -> None:
        while True:
            space = await self._replica.read(lambda tx: tx.space(space_id))
            if space is None or space.cursor is not None:
                break
            await self._pull_state(space)
        limit = PULL_LIMIT_MAX
        more = True
        while more:
            space = await self._replica.read(lambda tx: tx.space(space_id))
            if space is None or space.cursor is None:
                return
            try:
                answer = await self._hub.pull(space_id, space.cursor, limit)
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            check_pull(
                answer,
                after=space.cursor,
                limit=limit,
                space_type=space.type,
                now_ms=self._now_ms(),
            )
            await self._take_changes(space, answer)
            more = answer.more
        await self._fetch_wanted(space_id)

    async def _fetch_wanted(self, space_id: str) -> None:
        """Ask for the whole of records that were restored after this device let go of them."""
        keys = await self._replica.read(lambda tx: tx.wanted(space_id))
        for key in keys:
            space = await self._replica.read(lambda tx: tx.space(space_id))
            if space is None:
                return
            answer = await self._hub.record_state(space_id, *key)
            check_state(answer, space_type=space.type, now_ms=self._now_ms())
            check_authors(answer.records, account_id=self._vault.account_id)
            if [(one.table, one.id) for one in answer.records] not in ([], [key]):
                raise HubDistrusted("the hub answered another record than was asked for")
            found = answer.records[0] if answer.records else None
            hub_ms = time_of(answer.hub_time)
            await self._replica.write(
                lambda tx, key=key, found=found, hub_ms=hub_ms: tx.take_record(  # type: ignore[misc]
                    space_id, key, found, hub_ms=hub_ms
                )
            )
        if keys:
            await self.announce()

    async def _verify_flips(self, space_id: str, flips: list[ChangeMessage]) -> None:
        """Raise HubDistrusted unless devices of this account signed these flips of its records.

        A hub that could show a private record as shared would have its author's own device seal
        the next edit for everybody.
        """
        signers = {flip.signature.signer for flip in flips if flip.signature is not None}
        await self._meet(space_id, signers)
        devices = self.authority(space_id).devices
        for flip in flips:
            signature = flip.signature
            account, key = devices.get(signature.signer, ("", None)) if signature else ("", None)
            if signature is None or key is None or account != self._vault.account_id:
                raise HubDistrusted("a record of one's own is shown to others by nobody's word")
            try:
                verify_change(key, facts_of(space_id, flip), unb64(signature.value))
            except CryptoFailed:
                raise HubDistrusted("the signature of a flip does not hold") from None

    async def _take_changes(self, space: Space, answer: PullAnswer) -> None:
        flips = own_flips(answer.changes, account_id=self._vault.account_id)
        if flips:
            await self._verify_flips(space.space, flips)
        hub_ms = time_of(answer.hub_time)
        newest = newest_stamp(answer.changes)
        watch = Watch(
            self._vault.account_id,
            self._sealer.device.device_id,
            hub_ms,
            differs(self._sealer, space.space),
        )
        anew, restamp = resealer(self._sealer), restamper(self._sealer, hub_ms)

        def work(tx: Tx) -> bool | None:
            self._follow_hub(tx, hub_ms)
            standing = tx.space(space.space)
            if standing is None or standing.cursor != space.cursor:
                return None  # another process took this page meanwhile
            if newest is not None:
                self._observe(tx, newest, hub_ms)
            if answer.cursor == space.cursor:
                return None
            return tx.take_changes(
                space.space,
                answer.changes,
                answer.cursor,
                known=self._known.__contains__,
                hidden=answer.hidden,
                watch=watch,
                anew=anew,
                restamp=restamp,
            )

        overwrote = await self._replica.write(work)
        if overwrote is None:
            return
        await self.announce()
        if overwrote:
            self._emit(Notice("conflicts"))
        await self._meet(space.space, _signers_of_changes(answer.changes))

    async def _pull_state(self, space: Space) -> None:
        try:
            answer = await self._hub.state(space.space, space.page)
        except Invalid:
            if space.page is None:
                raise
            # The hub does not know this page any more: read the state from its beginning.
            await self._replica.write(lambda tx: tx.restart_state(space.space))
            return
        check_state(answer, space_type=space.type, now_ms=self._now_ms())
        check_authors(answer.records, account_id=self._vault.account_id)
        hub_ms = time_of(answer.hub_time)
        # The first page's head counts: it was read before any record of the state.
        head = answer.head if space.head is None else space.head
        stamps = [entry.at for record in answer.records for entry in record.fields.values()]
        resend = resender(self._sealer, self._new_id, hub_ms)

        def work(tx: Tx) -> bool:
            if tx.space(space.space) != space:
                return False
            if stamps:
                self._observe(tx, parse_stamp(max(stamps)), hub_ms)
            tx.take_state(
                space.space,
                answer.records,
                head=head,
                page=answer.next,
                known=self._known.__contains__,
                resend=resend,
                hub_ms=hub_ms,
                account_id=self._vault.account_id,
            )
            return True

        if await self._replica.write(work) and answer.records:
            await self.announce()
            await self._meet(space.space, _signers_of_state(answer.records))

    def _observe(self, tx: Tx, seen: Stamp, hub_ms: int) -> None:
        last = tx.clock(self._sealer.device.device_id)
        after = observe(last, seen, hub_ms=hub_ms)
        if after != last:
            tx.set_clock(after)

    def _follow_hub(self, tx: Tx, hub_ms: int) -> None:
        """Note the hub's time, and trust this machine's clock again once it is near it."""
        # Each write is a synchronisation of the disk, so a little behind is near enough.
        if hub_ms - int(tx.meta(HUB_TIME) or 0) >= _HUB_TIME_STEP_MS:
            tx.set_meta(HUB_TIME, str(hub_ms))
        if tx.meta(CLOCK_OFFSET) is not None and abs(hub_ms - self._now_ms()) < DRIFT_MS_MAX // 2:
            tx.set_meta(CLOCK_OFFSET, None)

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


def _units(rows: list[OutboxRow]) -> list[list[Queued]]:
    return units(Queued(row.position, 0, row.message.group) for row in rows)


def _signers_of_changes(changes: Iterable[LoggedChange]) -> set[str]:
    return {
        logged.change.signature.signer for logged in changes if logged.change.signature is not None
    }


def _signers_of_state(records: Iterable[StateRecord]) -> set[str]:
    return {proof.signature.signer for record in records for proof in record.proofs.values()}


def _is_moved(error: ManaError) -> bool:
    """Say whether this may be because of who is in the space, or as what, by now."""
    return isinstance(error, Forbidden | NotFound) and not isinstance(error, HubDistrusted)
