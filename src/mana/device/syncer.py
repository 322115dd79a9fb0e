"""Moves changes between replica and hub: pushes what waits, pulls what is new, and keeps at it.

The rules are in `mana.protocol.replication`; here are the calls, the waiting and the back-off. One
process of a machine runs this for a replica; any other can still sync once when asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

import msgspec

from mana.crypto.authority import Authority, authority_of
from mana.device.hub_client import HubClient, jittered
from mana.device.locks import FileLock
from mana.device.replica import OutboxRow, Replica, Space, Tx
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.vault import OpenedVault
from mana.device.views import LinkState, Notice, SyncStatus
from mana.domain.clock import DRIFT_MS_MAX, Stamp, next_stamp, observe, parse_stamp
from mana.domain.errors import Forbidden, Invalid, ManaError, NotFound, TooLarge, Unavailable
from mana.protocol.errors import RateLimited
from mana.protocol.messages import (
    PULL_LIMIT_MAX,
    ChangeMessage,
    DeviceCertificate,
    LoggedChange,
    PullAnswer,
    PushRequest,
    StateRecord,
)
from mana.protocol.replication import (
    HubDistrusted,
    Queued,
    Verdict,
    check_pull,
    check_state,
    newest_stamp,
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
_BACKOFF_S_MAX: Final = 15.0
_CERTIFICATES: Final = "certificates:"
_RESTAMPS_MAX: Final = 3
_FOLLOWER_S: Final = 2.0

_log = logging.getLogger("mana.device.sync")


class Syncer:
    """Sync of one unlocked account."""

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
        self._has_tried = False
        self._prepared = False
        self._seen_mark = 0
        self._authorities: dict[str, Authority] = {}

    # What the person sees

    async def status(self) -> SyncStatus:
        """Return the truth about sync."""
        (waiting, refused), synced, offset, kept = await self._replica.read(
            lambda tx: (tx.counts(), tx.meta(_SYNCED), tx.meta(CLOCK_OFFSET), tx.meta(_LINK))
        )
        link, trouble = self._link, self._trouble
        if not self._has_tried and kept is not None and self._is_led_elsewhere():
            # Another process of this machine syncs this replica; what it found holds here too.
            link, _, trouble = cast("tuple[LinkState, str, str]", kept.partition(" "))
        if not trouble and offset is not None:
            trouble = "CLOCK_AHEAD"
        return SyncStatus(
            link, int(synced) if synced is not None else None, waiting, refused, trouble
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
        found = self._authorities.get(space_id)
        if found is None:
            raise NotFound("no such space is kept here")
        return found

    # Once

    async def load(self) -> None:
        """Read what was kept: spaces and certificates. Needs no hub."""
        spaces = self._vault.spaces

        def work(tx: Tx) -> dict[str, str | None]:
            for space in spaces.values():
                if space.type in ("personal", "user"):
                    tx.add_space(space.space_id, space.type)
            self._seen_mark = tx.touched_after(0)[1]
            return {name: tx.meta(f"{_CERTIFICATES}{name}") for name in spaces}

        for space_id, kept in (await self._replica.write(work)).items():
            known = (
                msgspec.json.decode(kept, type=list[DeviceCertificate]) if kept is not None else []
            )
            self._take_certificates(space_id, known)

    async def once(self) -> None:
        """Push and pull once; raise what stands in the way."""
        async with self._one_at_a_time:
            try:
                await self._prepare()
                for space in await self._replica.read(lambda tx: tx.spaces()):
                    if space.cursor is None:
                        # A new device first learns what is there, then says what it wrote.
                        await self._pull(space.space)
                    await self._push(space.space)
                    await self._pull(space.space)
            except ManaError as error:
                await self._failed(error)
                raise
            synced = str(self._now_ms())
            await self._replica.write(lambda tx: tx.set_meta(_SYNCED, synced))
            await self._succeeded()

    async def push(self) -> None:
        """Push what waits; raise what stands in the way."""
        async with self._one_at_a_time:
            try:
                await self._prepare()
                for space in await self._replica.read(lambda tx: tx.spaces()):
                    await self._push(space.space)
            except ManaError as error:
                await self._failed(error)
                raise
            await self._succeeded()

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
                await asyncio.sleep(jittered(attempt))
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
                await self.once()
            except ManaError:
                await _first(self._retried, jittered(attempt, most_s=_BACKOFF_S_MAX))
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
            await asyncio.sleep(jittered(attempt, most_s=_BACKOFF_S_MAX))
            attempt += 1

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_s)
            if await self._replica.moved():
                await self.announce()
                self._woken.set()

    # Getting ready

    async def _prepare(self) -> None:
        """Register this device and refresh spaces and certificates, once per unlock."""
        if self._prepared:
            return
        device = self._sealer.device
        if await self._replica.read(lambda tx: tx.meta(REGISTERED)) != device.device_id:
            await self._hub.register_device(device.certificate)
            await self._replica.write(lambda tx: tx.set_meta(REGISTERED, device.device_id))
        self._vault.take_spaces(await self._hub.spaces())
        sealed = self._vault.seal(self._vault.kept_spaces(), "spaces")
        await self._replica.write(lambda tx: tx.set_meta(SPACES, sealed))
        for space in await self._replica.read(lambda tx: tx.spaces()):
            await self._refresh_certificates(space.space)
        self._prepared = True

    async def _refresh_certificates(self, space_id: str) -> None:
        found = await self._hub.space_devices(space_id)
        kept = msgspec.json.encode(found).decode()
        await self._replica.write(lambda tx: tx.set_meta(f"{_CERTIFICATES}{space_id}", kept))
        self._take_certificates(space_id, found)

    def _take_certificates(self, space_id: str, found: Iterable[DeviceCertificate]) -> None:
        log = self._vault.spaces[space_id].log
        self._authorities[space_id] = authority_of(
            space_id, log, [*found, self._sealer.device.certificate]
        )

    async def _meet(self, space_id: str, signers: Iterable[str]) -> None:
        """Fetch certificates if somebody signed whose device is not known here."""
        known = self._authorities[space_id].devices
        if any(not signer.startswith("runner:") and signer not in known for signer in signers):
            await self._refresh_certificates(space_id)

    # Pushing

    async def _push(self, space_id: str) -> None:
        units_max: int | None = None
        restamps = 0
        while True:
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
            except (Forbidden, NotFound):
                self._prepared = False
                raise
            found = verdicts(sent, answer)
            hub_ms = time_of(answer.hub_time)
            if any(verdict.fate == "restamp" for verdict in found):
                restamps += 1
                if restamps > _RESTAMPS_MAX:
                    raise HubDistrusted("the hub refuses every stamp")
                await self._set_back(hub_ms)
            await self._settle(space_id, found, hub_ms)
            await self.announce()
            self._emit(Notice("sync"))

    async def _batch(self, space_id: str, units_max: int | None) -> list[OutboxRow]:
        return await self._replica.write(lambda tx: tx.batch(space_id, units_max=units_max))

    async def _settle(self, space_id: str, found: list[Verdict], hub_ms: int) -> None:
        anew = restamper(self._sealer, hub_ms)
        await self._replica.write(
            lambda tx: tx.settle(space_id, found, now_ms=hub_ms, restamp=anew)
        )

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

    async def _take_changes(self, space: Space, answer: PullAnswer) -> None:
        hub_ms = time_of(answer.hub_time)
        newest = newest_stamp(answer.changes)

        def work(tx: Tx) -> bool:
            self._follow_hub(tx, hub_ms)
            standing = tx.space(space.space)
            if standing is None or standing.cursor != space.cursor:
                return False  # another process took this page meanwhile
            if newest is not None:
                self._observe(tx, newest, hub_ms)
            if answer.changes or answer.cursor != space.cursor:
                tx.take_changes(
                    space.space, answer.changes, answer.cursor, known=self._known.__contains__
                )
            return True

        if await self._replica.write(work) and answer.changes:
            await self.announce()
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
        hub_ms = time_of(answer.hub_time)
        # The first page's head counts: it was read before any record of the state.
        head = answer.head if space.head is None else space.head
        stamps = [entry.at for record in answer.records for entry in record.fields.values()]

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
        """Trust this machine's clock again once it is near the hub's."""
        if tx.meta(CLOCK_OFFSET) is not None and abs(hub_ms - self._now_ms()) < DRIFT_MS_MAX // 2:
            tx.set_meta(CLOCK_OFFSET, None)

    # State of the link

    async def _failed(self, error: ManaError) -> None:
        is_away = isinstance(error, Unavailable | RateLimited)
        await self._found("offline" if is_away else "refused", error.code)

    async def _succeeded(self) -> None:
        self._retried.set()
        await self._found("online", "")

    async def _found(self, link: LinkState, trouble: str) -> None:
        if (link, trouble) != (self._link, self._trouble):
            with contextlib.suppress(ManaError):
                await self._replica.write(lambda tx: tx.set_meta(_LINK, f"{link} {trouble}"))
            self._link, self._trouble = link, trouble
            self._emit(Notice("sync"))
        self._has_tried = True


async def _first(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event or for so long, and say whether it was the event."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
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


def restamper(sealer: Sealer, now_ms: int) -> Callable[[Tx, OutboxRow], ChangeMessage]:
    """Return how a change that waits is stamped and sealed anew."""

    def anew(tx: Tx, row: OutboxRow) -> ChangeMessage:
        change = row.message
        base = tx.base(row.space, change.table, change.id)
        last = tx.clock(sealer.device.device_id)
        for path in change.fields:
            entry = base.record.entries.get(path) if base is not None else None
            if entry is not None:
                last = observe(last, parse_stamp(entry.at), hub_ms=now_ms)
        stamp = next_stamp(last, now_ms=now_ms)
        held = tx.held(row.space, change.table, change.id)
        again = sealer.seal_again(row.space, change, held.record if held else None, stamp)
        tx.set_clock(stamp)
        return again

    return anew
