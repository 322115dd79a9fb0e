"""A shared space as the pure rules see it: two members, a log, records, and what each may see."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from mana.crypto.authority import facts_of
from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey, sign_change, sign_reseal
from mana.domain.actors import Actor, origin_of, person
from mana.domain.clock import Stamp, next_stamp, parse_stamp
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.domain.tables import (
    Choice,
    Field,
    Sealing,
    Shape,
    Table,
    Text,
    Whole,
    guarded,
    plain,
    sealed,
)
from mana.hub.sync.apply import Logged, MergedRecord, RecordRef, apply_batch, ref_of
from mana.hub.sync.validate import Place, Writer, WriterKind
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    HiddenRecord,
    LoggedChange,
    Signature,
)

NOW_MS = 1_795_000_000_000
SPACE = SpaceId("0" * 64)
WHY = "a test must read it"
MEMOS = Table(
    name="memos",
    app_id="todo",
    fields=(
        sealed("title", Text(80)),
        sealed("body", Text(80)),
        sealed("labels", Text(80), shape=Shape.SET),
        sealed("lines", Text(80), shape=Shape.LIST),
        Field("count", Whole(0, 99), because=WHY, shape=Shape.COUNTER),
        plain("size", Whole(0, 9), because=WHY),
        plain("kind", Whole(0, 9), because=WHY, fixed=True),
        guarded("status", Choice(("open", "done", "gone")), because=WHY),
    ),
)
RULINGS = Table(
    name="rulings",
    app_id="ai",
    authority=True,
    fields=(
        sealed("goal", Text(80)),
        sealed("memory", Text(80)),
        plain("state", Whole(0, 9), because=WHY),
    ),
)
MIRRORS = Table(
    name="mirrors",
    app_id="ai",
    sealing=Sealing.TARGET,
    fields=(sealed("before", Text(80)),),
)
TABLES: Mapping[str, Table] = {table.name: table for table in (MEMOS, RULINGS, MIRRORS)}


@dataclass(frozen=True)
class Someone:
    """A member with one device."""

    account: AccountId
    device: DeviceId
    key: SigningKey

    @property
    def writer(self) -> Writer:
        return Writer(WriterKind.DEVICE, self.account, self.device)


def someone(number: int) -> Someone:
    return Someone(
        AccountId(str(uuid.UUID(int=number + 0xA0))),
        DeviceId(str(uuid.UUID(int=number + 0xD0))),
        SigningKey(bytes([number]) * 32),
    )


ADA, BOB, EVE = someone(1), someone(2), someone(3)


def envelope(cls: str, version: int, number: int, *, size: int = 32) -> str:
    """Return the form of a sealed value; nobody here opens it."""
    return f"enc:2:{cls}{version}:{b64(bytes([number]) * 12)}.{b64(bytes([number]) * (size + 16))}"


def stamp(who: Someone, moment: int = 0) -> str:
    return str(Stamp(NOW_MS + moment, 0, who.device))


def change(
    who: Someone,
    values: Mapping[str, Any],
    record: str = "m1",
    *,
    table: Table = MEMOS,
    at: str | Mapping[str, str] | None = None,
    moment: int = 0,
    op: str = "update",
    author: Someone | None = None,
    actor: Actor | None = None,
    visibility: str = "space",
    group: str | None = None,
    guards: Mapping[str, Any] | None = None,
    change_id: str | None = None,
) -> ChangeMessage:
    """Return a change of `who`; `at` is the stamp, or one by path."""
    by = actor or person(who.account)
    stamps = at if isinstance(at, Mapping) else dict.fromkeys(values, at or stamp(who, moment))
    made = ChangeMessage(
        change_id=change_id or str(uuid.uuid4()),
        table=table.name,
        id=record,
        op=op,
        fields={path: FieldWrite(value=value, at=stamps[path]) for path, value in values.items()},
        actor={name: str(part) for name, part in by.to_wire().items()},
        origin=origin_of(by),
        author_id=(author or who).account,
        visibility=visibility,
        group=group,
        guards=dict(guards or {}),
    )
    return signed(who, made) if table.authority or op == "flip" else made


def signed(
    who: Someone, made: ChangeMessage, sign: Callable[..., bytes] | None = None
) -> ChangeMessage:
    """Return the change with this device's signature, for the purpose that its `op` asks."""
    sign = sign or (sign_reseal if made.op == "reseal" else sign_change)
    value = b64(sign(who.key, facts_of(SPACE, made)))
    return msgspec.structs.replace(made, signature=Signature(signer=who.device, value=value))


@dataclass
class SharedSpace:
    """What a hub keeps of a space, and what it shows to whom."""

    type: str = "team"
    key_version: int = 1
    now_ms: int = NOW_MS
    roles: dict[AccountId, str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=lambda: TABLES)
    records: dict[RecordRef, MergedRecord] = field(default_factory=dict)
    log: list[tuple[AccountId, LoggedChange]] = field(default_factory=list)
    hidden: dict[RecordRef, tuple[int, str]] = field(default_factory=dict)

    def place(self, who: Someone) -> Place:
        role: Any = self.roles.get(who.account, "member")
        key = who.key.public()
        return Place(SPACE, self.type, self.key_version, role, key, self.now_ms)

    def push(
        self, who: Someone, *changes: ChangeMessage, writer: Writer | None = None
    ) -> list[str]:
        """Take a batch; return per change the code, or the status where it was not refused."""
        known: dict[str, Logged] = {}
        for account, logged in self.log:
            own, ref = account == who.account, ref_of(logged.change)
            if own or (self._shows(who, logged.change) and logged.change.change_id not in known):
                known[logged.change.change_id] = Logged(logged.seq, ref, own)
        seen = {ref: one for ref, one in self.records.items() if self._sees(who, one)}
        done = apply_batch(
            changes,
            tables=self.tables,
            writer=writer or who.writer,
            place=self.place(who),
            head=len(self.log),
            known=known,
            standing={ref: replace(one, flipped=0) for ref, one in seen.items()},
            taken=frozenset(self.records.keys() - seen.keys()),
        )
        self.log += [
            (who.account, LoggedChange(one.seq, one.change, who.device)) for one in done.accepted
        ]
        self.records.update(done.records)
        for ref, one in done.records.items():
            if one.flipped:
                self.hidden.pop(ref, None)
            if one.flipped and one.record.visibility == "private":
                self.hidden[ref] = (one.flipped, one.record.author_id)
        return [result.code or result.status for result in done.results]

    def pull(self, who: Someone, after: int) -> tuple[list[LoggedChange], list[HiddenRecord]]:
        """Return what a member is shown of the log after a cursor."""
        changes = [logged for _, logged in self.log[after:] if self._shows(who, logged.change)]
        hidden = [
            HiddenRecord(seq, *ref)
            for ref, (seq, author) in self.hidden.items()
            if seq > after and author != who.account
        ]
        return changes, sorted(hidden, key=lambda one: one.seq)

    def seen_by(self, who: Someone) -> dict[RecordRef, MergedRecord]:
        """Return the state that a member is shown."""
        return {ref: one for ref, one in self.records.items() if self._sees(who, one)}

    def flip(self, who: Someone, ref: RecordRef, visibility: str, **options: Any) -> ChangeMessage:
        """Return the change that writes a whole record anew under another visibility."""
        record = self.records[ref].record
        table = self.tables[record.table]
        newest = parse_stamp(max(entry.at for entry in record.entries.values()))
        at = str(next_stamp(replace(newest, device=who.device), now_ms=NOW_MS))
        cls = "p" if visibility == "private" else "s"
        version = 1 if cls == "p" else self.key_version
        values = {
            path: envelope(cls, version, 99)
            if table.field_at(path).sealed and entry.value is not None
            else entry.value
            for path, entry in record.entries.items()
        }
        guards = {path: values[path] for path in values if table.field_at(path).guarded}
        options = {"op": "flip", "guards": guards, "at": at, "visibility": visibility, **options}
        return change(who, values, record.id, table=table, **options)

    def reseal(
        self, who: Someone, ref: RecordRef, *paths: str, version: int | None = None
    ) -> ChangeMessage:
        """Return the change that brings standing values under a newer key."""
        held = self.records[ref].record
        entries = {path: held.entries[path] for path in paths}
        first = entries[paths[0]]
        cls = "p" if held.visibility == "private" else "s"
        made = change(
            who,
            {path: envelope(cls, version or self.key_version, 50) for path in paths},
            held.id,
            table=self.tables[held.table],
            at={path: entry.at for path, entry in entries.items()},
            op="reseal",
            actor=first.actor,
            visibility=held.visibility,
        )
        made = msgspec.structs.replace(made, author_id=held.author_id)
        return signed(who, made) if self.tables[held.table].authority else made

    def _sees(self, who: Someone, one: MergedRecord) -> bool:
        return one.record.visibility == "space" or one.record.author_id == who.account

    def _shows(self, who: Someone, made: ChangeMessage) -> bool:
        hidden = self.hidden.get(ref_of(made))
        if hidden is not None and hidden[1] != who.account:
            return False
        return made.visibility == "space" or made.author_id == who.account
