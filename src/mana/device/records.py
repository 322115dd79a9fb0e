"""The records of one unlocked account: opened for reading, stamped and sealed for writing.

A write is durable when `commit` returns: records and outbox are one transaction, and the syncer
takes it from there. Change ids are made before that transaction, so a write that is tried again
after a crash is the same one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from mana.crypto.authority import verify_record
from mana.crypto.envelope import parse_json
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPublicKey
from mana.crypto.signatures import SigningKey
from mana.device.authority import reason_of, uncommented, verify_run
from mana.device.ends import CLOCK_OFFSET
from mana.device.errors import (
    ChangeRefused,
    Locked,
    ManagersOnly,
    ModuleNotHeld,
    PasswordAsked,
    ReadOnlyHere,
    SpaceLeft,
)
from mana.device.hub_client import HubClient
from mana.device.keeper import VaultKeeper
from mana.device.kept import keep_sealed, meta_of, open_sealed
from mana.device.refused import drop, refused_changes, retry
from mana.device.replica import OutboxRow, Replica, Tx
from mana.device.sealing import Sealer
from mana.device.settings import DeviceSettings
from mana.device.syncer import Syncer
from mana.device.vault import OpenedVault, SpaceKeys, random_id
from mana.device.views import Notice, RefusedChange, SyncStatus
from mana.device.writing import Flip, Write, flip_of, message_of
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import ManaError, NotFound, TooLarge
from mana.domain.grants import GrantHeader
from mana.domain.ids import SpaceId, require_uuid
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import Record, View
from mana.domain.settings import USER_TABLES
from mana.domain.spaces import can_manage, can_write, holds
from mana.domain.tables import Table
from mana.protocol.messages import BATCH_CHANGES_MAX, Proof, Signature, Vault
from mana.protocol.replication import Held
from mana.registry.catalogue import Catalogue

GROUP_BYTES_MAX: Final = 3 * 1024 * 1024
VIEWS_MAX: Final = 50_000
"""Opened records that are kept in memory; the oldest go first."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Inner:
    """What holds the keys of one unlocked account."""

    replica: Replica
    vault: OpenedVault
    sealer: Sealer
    syncer: Syncer
    hub: HubClient
    keeper: VaultKeeper


@dataclass(slots=True)
class _Ring:
    """The inner parts while the account is unlocked, shared by its books: one place to drop."""

    inner: Inner | None = None


class RecordBook:
    """The records of one space of one unlocked account; raises Locked once it is locked.

    Tables of the user scope are read and written in the account's user space, whatever `space`
    is. `in_space` gives the book of another space of the account: they share one vault, one
    replica, one syncer and their callbacks.
    """

    def __init__(
        self,
        *,
        settings: DeviceSettings,
        catalogue: Catalogue,
        vault: OpenedVault,
        sealer: Sealer,
        replica: Replica,
        hub: HubClient,
        standing: Vault,
        demo: bool,
        now_ms: Callable[[], int],
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.settings: Final = settings
        self.catalogue: Final = catalogue
        self.hub: Final = hub
        self.demo: Final = demo
        self.account_id: Final[str] = vault.account_id
        self.login: Final = vault.login
        self.device_id: Final[str] = sealer.device.device_id
        self.personal_space: Final[SpaceId] = vault.space_of_type("personal").space_id
        self.user_space: Final[SpaceId] = vault.space_of_type("user").space_id
        self.space: SpaceId = self.personal_space
        self._now_ms = now_ms
        self.new_id: Final = new_id
        self._replica = replica
        self._views: dict[tuple[str, str, str], tuple[int, View]] = {}
        self._lists: dict[tuple[str, str], tuple[int, list[View]]] = {}
        self._callbacks: list[Callable[[Notice], None]] = []
        self._books: dict[str, RecordBook] = {self.space: self}
        self._ring = _Ring()
        syncer = Syncer(
            replica=replica,
            vault=vault,
            sealer=sealer,
            hub=hub,
            catalogue=catalogue,
            settings=settings,
            now_ms=now_ms,
            emit=self._emit,
            lock_path=replica.path.with_suffix(".sync"),
            new_id=new_id,
        )
        keeper = VaultKeeper(
            replica=replica,
            vault=vault,
            sealer=sealer,
            hub=hub,
            settings=settings,
            standing=standing,
            now_ms=now_ms,
        )
        syncer.check_vault, keeper.moved = keeper.check, syncer.spaces_moved
        self._ring.inner = Inner(replica, vault, sealer, syncer, hub, keeper)

    def in_space(self, space_id: str) -> RecordBook:
        """Return the book of a space of this account, the same one each time; raise NotFound.

        Spaces that the account is no longer in can be read.
        """
        space = self._vault().space(space_id)
        found = self._books.get(space_id)
        if found is None:
            found = copy.copy(self)
            found.space = space.space_id
            self._books[space_id] = found
        return found

    def let_go(self, space_id: str) -> None:
        """Drop what is in memory of a space that this device no longer keeps."""
        self._books.pop(space_id, None)
        for key in [key for key in list(self._views) if key[0] == space_id]:
            self._views.pop(key, None)
        for listed in [listed for listed in list(self._lists) if listed[0] == space_id]:
            self._lists.pop(listed, None)

    def inner(self) -> Inner:
        """Return what holds the keys; raise Locked."""
        if self._ring.inner is None:
            raise Locked("the account is locked")
        return self._ring.inner

    @property
    def mode(self) -> str:
        """Return the account's mode: standard or zero-knowledge."""
        return self._vault().mode

    def spaces(self) -> list[SpaceKeys]:
        """Return the account's spaces with their keys and logs, former ones too."""
        return list(self._vault().spaces.values())

    @property
    def keys(self) -> SpaceKeys:
        """Return the keys and the log of this book's space."""
        return self._vault().space(self.space)

    @property
    def may_write(self) -> bool:
        """Say whether the account may write records in this space."""
        role = self.keys.role
        return role is not None and can_write(role)

    def holds(self, app_id: str) -> bool:
        """Say whether this type of space takes records of a sync app."""
        return holds(self.keys.type, app_id)

    def space_of(self, table: str) -> SpaceId:
        """Return the space in which this book reads and writes a table."""
        return self.user_space if table in USER_TABLES else self.space

    def require_writable(self, table: Table, record_id: str) -> SpaceKeys:
        """Return the keys of the space that takes this record.

        Raises for what the hub would refuse, before anything is written: SpaceLeft,
        ReadOnlyHere, ModuleNotHeld or ManagersOnly.
        """
        keys = self._vault().space(self.space_of(table.name))
        if keys.role is None:
            raise SpaceLeft("the account is no longer in this space")
        if not can_write(keys.role):
            raise ReadOnlyHere("a viewer writes nothing in a space")
        if not holds(keys.type, table.app_id):
            raise ModuleNotHeld(f"a space of type {keys.type} does not hold {table.app_id}")
        if table.written_by == "managers" and not can_manage(keys.role):
            raise ManagersOnly("this is for owners and admins of the space")
        if table.written_by == "self" and record_id != self.account_id:
            raise ManagersOnly("a member writes their own record here, and nobody else's")
        return keys

    # Reading

    async def views(self, table: str, *, include_deleted: bool = False) -> list[View]:
        """Return the records of a table, newest written first."""
        sealer = self._sealer()
        space = self.space_of(self.catalogue.table(table).name)

        def work(tx: Tx) -> list[View]:
            touched = tx.touched(table)
            listed = self._lists.get((space, table))
            if listed is not None and listed[0] == touched:
                return listed[1]
            marks = tx.marks(space, table)
            views: dict[str, View] = {}
            for record_id, mark in marks.items():
                known = self._views.get((space, table, record_id))
                if known is not None and known[0] == mark:
                    views[record_id] = known[1]
            missing = [record_id for record_id in marks if record_id not in views]
            # Asking for each by its id is worth it only where most are known.
            ids = missing if len(missing) * 2 < len(marks) else None
            held = tx.all_held(space, table, ids) if missing else {}
            for record_id in missing:
                views[record_id] = sealer.view(space, held[record_id].record)
                self._remember(space, views[record_id], marks[record_id])
            found = sorted(
                views.values(), key=lambda view: (view.written_at, view.id), reverse=True
            )
            self._remember_list(space, table, touched, found)
            return found

        found = await self._replica.read(work)
        self._sealer()
        return [view for view in found if include_deleted or not view.deleted]

    async def view(self, table: str, record_id: str) -> View | None:
        """Return one record, also a deleted one; None if there is none."""
        sealer = self._sealer()
        space = self.space_of(self.catalogue.table(table).name)

        def work(tx: Tx) -> View | None:
            mark = tx.mark(space, table, record_id)
            if mark is None:
                return None
            known = self._views.get((space, table, record_id))
            if known is not None and known[0] == mark:
                return known[1]
            held = tx.held(space, table, record_id)
            if held is None:
                return None
            view = sealer.view(space, held.record)
            self._remember(space, view, mark)
            return view

        return await self._replica.read(work)

    async def record(self, table: str, record_id: str) -> Record | None:
        """Return one record as it is stored, with its sealed entries."""
        held = await self._held(table, record_id)
        return held.record if held is not None else None

    async def opened_paths(self, table: str, record_id: str) -> dict[str, Json]:
        """Return a record's opened values by path, without those that do not open."""
        held = await self._held(table, record_id)
        if held is None:
            return {}
        return self._sealer().opened_paths(self.space_of(table), held.record)

    def _remember(self, space: str, view: View, mark: int) -> None:
        """Keep an opened record until it is touched; one that does not open is tried again."""
        key = (space, view.table, str(view.id))
        self._views.pop(key, None)
        if not view.sealed_fields:
            self._views[key] = (mark, view)
        while len(self._views) > VIEWS_MAX:
            del self._views[next(iter(self._views))]

    def _remember_list(self, space: str, table: str, touched: int, views: list[View]) -> None:
        """Keep a list in its order until its table is touched, if all of it opened."""
        self._lists.pop((space, table), None)
        if not any(view.sealed_fields for view in views):
            self._lists[space, table] = (touched, views)
        while sum(len(kept) for _, kept in self._lists.values()) > VIEWS_MAX:
            del self._lists[next(iter(self._lists))]

    # Writing

    async def commit(
        self, writes: Sequence[Write | Flip], *, group: str | None = None, wait: bool = False
    ) -> list[str]:
        """Write, in one transaction, and return the change ids.

        Values are by path; a field's name alone also takes the whole value of a set, list or
        counter. A write whose change id was made before is left out. `wait`: push at once;
        raise ChangeRefused if the hub refuses one (the writes are then undone here and not
        parked), or Offline if it cannot be asked (they then stay and are sent later).
        """
        self._sealer()
        if not writes:
            return []
        if len(writes) > BATCH_CHANGES_MAX:
            raise TooLarge(f"at most {BATCH_CHANGES_MAX} changes are written at once")
        named = [write.change_id for write in writes if isinstance(write, Write)]
        for given in (group, *named):
            if given is not None:
                require_uuid(given, "the id of a change or group")
        change_ids = [
            "" if isinstance(write, Flip) else write.change_id or self.new_id() for write in writes
        ]
        now_ms = self._now_ms()

        spaces: set[str] = set()

        def work(tx: Tx) -> None:
            offset = tx.meta(CLOCK_OFFSET)
            at_ms = now_ms + (int(offset) if offset is not None else 0)
            spaces.clear()
            size = 0
            for place, write in enumerate(writes):
                if isinstance(write, Flip) or not tx.was_made(change_ids[place]):
                    if isinstance(write, Flip):
                        space, message = flip_of(self, self._sealer(), tx, write, group, at_ms)
                        change_ids[place] = message.change_id
                    else:
                        space, message = message_of(
                            self, self._sealer(), tx, write, change_ids[place], group, at_ms
                        )
                    spaces.add(space)
                    size += len(msgspec.json.encode(message))
                    tx.add(space, message)
            if group is not None and (len(spaces) > 1 or size > GROUP_BYTES_MAX):
                raise TooLarge("a group lies in one space and fits into one batch")

        await self._replica.write(work)
        await self._syncer().announce()
        if wait:
            await self._push_now(change_ids, spaces)
        self._syncer().wake()
        return change_ids

    async def _push_now(self, change_ids: Sequence[str], spaces: Collection[str]) -> None:
        await self._syncer().push(spaces)

        def work(tx: Tx) -> list[tuple[str, str]]:
            refused = [
                (change_id, code)
                for change_id, (state, code) in tx.states(change_ids).items()
                if state == "refused"
            ]
            for change_id, _ in refused:
                tx.drop(tx.refused_with(change_id))
            return refused

        refused = await self._replica.write(work)
        if refused:
            await self._syncer().announce()
            fault = next((one for one in refused if one[1] != "group-refused"), refused[0])
            raise ChangeRefused(
                "the hub refused the change", detail={"changeId": fault[0], "reason": fault[1]}
            )

    async def marks(self, keys: Sequence[tuple[str, str]]) -> tuple[int | None, ...]:
        """Return when each of these records, by table and id, was last touched here."""
        places = [(self.space_of(table), table, record_id) for table, record_id in keys]
        return await self._replica.read(lambda tx: tuple(tx.mark(*place) for place in places))

    async def waits(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Say whether a change of one of these records, by table and id, is not at the hub yet."""
        places = [(self.space_of(table), table, record_id) for table, record_id in keys]
        return await self._replica.read(lambda tx: any(tx.waits(*place) for place in places))

    async def untaken(self, table: str, record_id: str) -> list[OutboxRow]:
        """Return the changes of a record that the hub has not taken: they wait, or are parked."""
        space = self.space_of(table)
        return await self._replica.read(lambda tx: tx.untaken(space, table, record_id))

    async def is_read(self, table: str) -> bool:
        """Sync, and say whether all that the hub shows of the space of a table is here by now."""
        space_id = self.space_of(table)
        with contextlib.suppress(ManaError):
            await self.sync_now()
        status = await self._syncer().status()
        space = await self._replica.read(lambda tx: tx.space(space_id))
        # What stands in the way of every space is no trouble of one of them.
        reached = status.link == "online" or status.trouble in status.troubles.values()
        is_whole = space is not None and space.cursor is not None
        return is_whole and reached and space_id not in status.troubles

    # Authority

    async def proofs(self, table: str, record_id: str) -> dict[str, Proof]:
        """Return, by change id, the signatures that stand behind a record."""
        held = await self._held(table, record_id)
        return dict(held.proofs) if held is not None else {}

    async def is_verified(self, table: str, record_id: str) -> bool:
        """Say whether every path stems from a change that a member's device signed."""
        held = await self._held(table, record_id)
        if held is None:
            return False
        authority = self._syncer().authority(self.space_of(table))
        try:
            verify_record(authority, held, self.catalogue.table(table))
        except ManaError:
            return False
        return True

    async def iteration_verified(
        self,
        iteration_id: str,
        *,
        headers: Mapping[str, GrantHeader],
        runners: Mapping[str, RunnerPublicKey],
    ) -> tuple[bool, str]:
        """Say whether an iteration is to be obeyed, and the reason if not.

        `headers`: by grant id, those that this account's devices signed. `runners`: by key id.
        A run of a device needs neither: its records carry the device's signature.
        """
        iteration = await self._held(ITERATIONS.name, iteration_id)
        if iteration is None:
            return False, "missing"
        iteration = uncommented(iteration)
        entries = iteration.record.entries
        named = entries["stepIds"].value if "stepIds" in entries else None
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            return False, "steps-unknown"
        steps = [await self._held(STEPS.name, str(name)) for name in named]
        present = [step for step in steps if step is not None]
        if len(present) != len(named):
            return False, "record-withheld"
        authority = self._syncer().authority(self.space)
        source = entries["source"].value if "source" in entries else None
        try:
            if source == "device":
                verify_record(authority, iteration, ITERATIONS)
                for step in present:
                    verify_record(authority, step, STEPS)
                return True, ""
            proof = entries["proof"].value if "proof" in entries else None
            if not isinstance(proof, dict):
                return False, "proof-missing"
            header = headers.get(str(proof.get("grantId")))
            runner = runners.get(str(proof.get("keyId")))
            if header is None or runner is None:
                return False, "no-grant" if header is None else "runner-unknown"
            verify_run(authority, iteration, present, header=header, runner=runner)
        except ManaError as error:
            return False, reason_of(error)
        return True, ""

    # Keys

    async def record_secret(self, table: str, record_id: str) -> tuple[bytes, str]:
        """Return the record's key and the class and version that it opens, such as `s1`."""
        sealer = self._sealer()
        held = await self._held(table, record_id)
        if held is None:
            raise NotFound("there is no such record here")
        record = held.record
        place = sealer.place(
            self.catalogue.table(table), record_id, record.visibility, record.entries, {}
        )
        keys = sealer.keys(self.space_of(table))
        version = sealer.version(keys, place)
        return sealer.record_key(keys, place, version).to_bytes(), f"{place.cls}{version}"

    async def mission_secret(self, mission_id: str) -> tuple[bytes, str]:
        """Return the parent key of a mission's runs and its class and version, such as `m1`."""
        vault = self._vault()
        version = vault.space(self.space).version
        return vault.parent_key(self.space, "m", version, mission_id), f"m{version}"

    def sign(self, purpose: str, *parts: str | bytes) -> Signature:
        """Sign a statement with this device's key."""
        value = self._sealer().device.key.sign(purpose, *parts)
        return Signature(signer=self.device_id, value=b64(value))

    def signing_key(self) -> SigningKey:
        """Return this device's signing key, for a grant."""
        return self._sealer().device.key

    def login_key(self) -> bytes:
        """Return the login key, which proves to the hub that it is the person.

        Raises PasswordAsked where the account was opened without the password.
        """
        login_key = self._vault().login_key
        if login_key is None:
            raise PasswordAsked("the account was opened without the password")
        return login_key

    # What stays on this device

    async def keep(self, name: str, value: Json) -> None:
        """Keep a value on this device only, sealed; None forgets it."""
        vault = self._vault()
        raw = None if value is None else canonical_json(value)
        await self._replica.write(lambda tx: keep_sealed(tx, vault, meta_of("kept", name), raw))

    async def kept(self, name: str) -> Json:
        """Return what was kept under a name, or None."""
        vault = self._vault()
        raw = await self._replica.read(lambda tx: open_sealed(tx, vault, meta_of("kept", name)))
        return None if raw is None else parse_json(raw)

    async def keep_changed(self, name: str, change: Callable[[Json], tuple[Json, _T]]) -> _T:
        """Change what is kept under a name in one transaction, which other processes wait for.

        `change` gets what is kept, or None, and returns what is kept from then on and an answer
        for the caller. It does nothing else: it may be called again.
        """
        vault, meta = self._vault(), meta_of("kept", name)

        def work(tx: Tx) -> _T:
            raw = open_sealed(tx, vault, meta)
            before = None if raw is None else parse_json(raw)
            after, answer = change(before)
            if after != before:
                keep_sealed(tx, vault, meta, None if after is None else canonical_json(after))
            return answer

        return await self._replica.write(work)

    # Sync

    def on_change(self, callback: Callable[[Notice], None]) -> Callable[[], None]:
        """Call back after local commits, pulls and refusals; return what ends it."""
        self._callbacks.append(callback)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return end

    async def status(self) -> SyncStatus:
        """Return the truth about sync."""
        return await self._syncer().status()

    async def sync_now(self) -> SyncStatus:
        """Push and pull once; raise Offline when the hub cannot be reached."""
        self._sealer()
        await self._syncer().once()
        return await self._syncer().status()

    async def held_only(self, space_ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return table and id of what is held of these spaces and the hub did not show."""
        return await self._replica.read(
            lambda tx: [key for space_id in space_ids for key in tx.held_only(space_id)]
        )

    async def refused(self) -> list[RefusedChange]:
        """Return the changes that the hub refused, newest first."""
        return await refused_changes(self, self._replica, self._sealer())

    async def retry_refused(self, change_id: str) -> None:
        """Send a refused change again, with its group."""
        inner = self.inner()
        await retry(
            self, inner.sealer, inner.syncer, self._replica, change_id, now_ms=self._now_ms()
        )

    async def drop_refused(self, change_id: str) -> None:
        """Forget a refused change, with its group."""
        await drop(self._syncer(), self._replica, change_id)

    # Life

    async def load(self) -> None:
        """Read what was kept. Called once, before anything else."""
        await self._syncer().load()

    async def start(self) -> None:
        """Start live sync."""
        self._sealer()
        await self._syncer().start()

    async def lock(self) -> None:
        """Stop sync, drop every key from memory and close the replica."""
        inner, self._ring.inner = self._ring.inner, None
        if inner is None:
            return
        await inner.syncer.close()
        await self.hub.close()
        await self._replica.close()
        self._views.clear()
        self._lists.clear()
        self._books.clear()
        self._emit(Notice("lock"))
        self._callbacks.clear()

    # Within

    def _vault(self) -> OpenedVault:
        return self.inner().vault

    def _sealer(self) -> Sealer:
        return self.inner().sealer

    def _syncer(self) -> Syncer:
        return self.inner().syncer

    async def _held(self, table: str, record_id: str) -> Held | None:
        space = self.space_of(self.catalogue.table(table).name)
        return await self._replica.read(lambda tx: tx.held(space, table, record_id))

    def _emit(self, notice: Notice) -> None:
        for callback in tuple(self._callbacks):
            callback(notice)
