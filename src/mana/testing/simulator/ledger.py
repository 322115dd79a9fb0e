"""What the simulated world may rely on: every message of the hub, checked as it passes.

The ledger stands at the hub's door. From what devices push and the hub answers it keeps a log and
a merged state of its own, by a merge that is written here a second time, and compares: what the
hub accepts, what it answers whom, and in the end what each device holds. A broken promise raises
`Broken` with the name of the invariant.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from mana.crypto.primitives import unb64
from mana.crypto.signatures import entry_hash
from mana.domain.clock import DRIFT_MS_MAX, parse_stamp
from mana.domain.encoding import Json, canonical_json
from mana.domain.settings import USER_TABLES
from mana.domain.spaces import MembershipEntry, Role, can_write, entry_from_wire
from mana.domain.tables import Shape, Table
from mana.protocol.messages import (
    ChangeMessage,
    CloseSpace,
    MembershipAppend,
    NewSpace,
    PullAnswer,
    PushAnswer,
    PushRequest,
    SignUpRequest,
    SpacesAnswer,
    StateAnswer,
    StateRecord,
    Tokens,
)
from mana.testing.simulator.network import Backend, HubAnswer, HubRequest

Ref = tuple[str, str]
SECRET: Final = "Geheimwort"
"""Stands in every sealed text that the simulator writes; the hub must never see it."""
_ENVELOPE: Final = re.compile(rb'"enc:2:([spm])([0-9]+):[A-Za-z0-9+/=]+\.[A-Za-z0-9+/=]+"')
_VERSION: Final = re.compile(r"enc:2:([spm])([1-9][0-9]*):")


class Broken(Exception):
    """A promise was broken. `invariant` names it in a word or two."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Standing:
    """One path of a record as it must stand."""

    value: Json
    at: str
    actor: Mapping[str, str]
    origin: str
    change_id: str
    seq: int


@dataclass(slots=True)
class Expected:
    """A record as the log makes it."""

    author: str
    visibility: str
    entries: dict[str, Standing] = field(default_factory=dict)
    hidden_seq: int = 0
    """The place of the flip that hid it from the others; 0 if they never saw it, or see it."""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log as it was accepted."""

    seq: int
    change: ChangeMessage
    device: str
    account: str


@dataclass(slots=True)
class SpaceFacts:
    """What is known of a space."""

    space_id: str
    type: str
    entries: list[MembershipEntry]
    head_hash: str
    rows: list[Row] = field(default_factory=list)
    records: dict[Ref, Expected] = field(default_factory=dict)
    closed: bool = False

    def role(self, account: str) -> Role | None:
        """Return the account's role, None for who is no member."""
        member = None if self.closed else self.entries[-1].member(account)
        return None if member is None else member.role

    def sees(self, account: str, ref: Ref) -> bool:
        """Say whether a member may see this record as it stands."""
        record = self.records[ref]
        return record.visibility == "space" or record.author == account


@dataclass(slots=True)
class Written:
    """A change as the person meant it."""

    change_id: str
    machine: str
    account: str
    space: str
    table: str
    record: str
    values: Mapping[str, Json]
    group: str | None
    order: int
    durable: bool = False
    retried: bool = False
    """Whether it was refused once, so that later ones may have overtaken it."""
    excused: str = ""
    """Why it may be gone: the device was set back, or the person dropped it."""


class Ledger:
    """Watches a hub."""

    def __init__(
        self,
        backend: Backend,
        tables: Mapping[str, Table],
        now_ms: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self._backend = backend
        self._tables = tables
        self._now_ms = now_ms
        self._say = say
        self.spaces: dict[str, SpaceFacts] = {}
        self.written: dict[str, Written] = {}
        self.acknowledged: dict[str, int] = {}
        self.place_by_change: dict[str, tuple[str, int]] = {}
        self._account_by_token: dict[str, str] = {}
        self._envelopes: dict[bytes, tuple[str, str]] = {}
        self.requests = 0
        self.broken: Broken | None = None

    def handle(self, request: HubRequest, *, crash: bool = False) -> HubAnswer | None:
        """Let the hub answer, and look at both. The first broken promise is kept in `broken`."""
        self.requests += 1
        try:
            return self._handle(request, crash)
        except Broken as broken:
            self.broken = self.broken or broken
        except Exception as error:
            self.broken = self.broken or crash_of("hub failed", error)
        return None

    def _handle(self, request: HubRequest, crash: bool) -> HubAnswer | None:
        if SECRET.encode() in request.body:
            raise Broken("plaintext", f"a sealed text left the device in {request.target}")
        answer = self._backend.handle(request, crash=crash)
        if answer is None:
            return None
        if answer.status >= 500:
            raise Broken("hub failed", f"{request.method} {request.target}: {answer.status}")
        url = urlsplit(request.target)
        path = [unquote(part) for part in url.path.split("/")[3:]]
        account = self._account_by_token.get(request.token, "")
        if answer.status < 300:
            self._take(request, path, parse_qs(url.query), account, answer)
        self._check_envelopes(account, answer)
        return answer

    def member_spaces(self, account: str) -> list[SpaceFacts]:
        """Return the spaces that an account is in."""
        return [one for one in self.spaces.values() if one.role(account) is not None]

    # What passes

    def _take(
        self,
        request: HubRequest,
        path: list[str],
        query: Mapping[str, list[str]],
        account: str,
        answer: HubAnswer,
    ) -> None:
        match request.method, *path:
            case "POST", "auth", step:
                self._take_tokens(step, request, answer)
            case "POST", "spaces":
                self._found(msgspec.json.decode(request.body, type=NewSpace))
            case "POST", "spaces", space, "members":
                append = msgspec.json.decode(request.body, type=MembershipAppend)
                self._append(self._of(space), append.entry.entry, append.entry.signature)
            case "DELETE", "spaces", space:
                closing = msgspec.json.decode(request.body, type=CloseSpace).entry
                self._append(self._of(space), closing.entry, closing.signature)
                self._of(space).closed = True
            case "POST", "spaces", space, "changes":
                self._pushed(
                    self._member(space, account),
                    account,
                    msgspec.json.decode(request.body, type=PushRequest),
                    msgspec.json.decode(answer.body, type=PushAnswer),
                )
            case "GET", "spaces", space, "changes":
                self._pulled(
                    self._member(space, account),
                    account,
                    int(query["after"][0]),
                    msgspec.json.decode(answer.body, type=PullAnswer),
                )
            case "GET", "spaces", space, "records", *_:
                self._stated(
                    self._member(space, account),
                    account,
                    msgspec.json.decode(answer.body, type=StateAnswer),
                )
            case "GET", "spaces":
                self._listed(account, msgspec.json.decode(answer.body, type=SpacesAnswer))
            case _, "spaces", space, *_:
                self._member(space, account)

    def _take_tokens(self, step: str, request: HubRequest, answer: HubAnswer) -> None:
        if step == "signup":
            made = msgspec.json.decode(request.body, type=SignUpRequest)
            for new in made.spaces:
                self._found(new)
        if step in ("signup", "login", "refresh"):
            tokens = msgspec.json.decode(answer.body, type=Tokens)
            self._account_by_token[tokens.access_token] = tokens.account_id

    def _of(self, space: str) -> SpaceFacts:
        if space not in self.spaces:
            raise Broken("space", f"the hub answered about {space[:6]}, which does not exist")
        return self.spaces[space]

    def _member(self, space: str, account: str) -> SpaceFacts:
        facts = self._of(space)
        if facts.role(account) is None:
            raise Broken("leak", f"the hub answered {account[:6]}, who is not in {space[:6]}")
        return facts

    def _found(self, new: NewSpace) -> None:
        space_id = entry_hash(new.first.entry, unb64(new.first.signature))
        entry = entry_from_wire(new.first.entry)
        if space_id not in self.spaces:
            self.spaces[space_id] = SpaceFacts(space_id, entry.space_type, [entry], space_id)

    def _append(self, facts: SpaceFacts, entry: dict[str, Json], signature: str) -> None:
        found = entry_hash(entry, unb64(signature))
        if found == facts.head_hash:
            return  # the same entry again
        if entry["previous"] != facts.head_hash:
            raise Broken("membership", "the hub took an entry that follows another head")
        facts.entries.append(entry_from_wire(entry))
        facts.head_hash = found

    def _listed(self, account: str, answer: SpacesAnswer) -> None:
        named = {info.space_id for info in answer.spaces}
        expected = {facts.space_id for facts in self.member_spaces(account)}
        if named != expected:
            raise Broken("membership", f"the hub lists other spaces than {account[:6]} is in")

    # Pushes

    def _pushed(
        self, facts: SpaceFacts, account: str, request: PushRequest, answer: PushAnswer
    ) -> None:
        if [result.change_id for result in answer.results] != [
            change.change_id for change in request.changes
        ]:
            raise Broken("answers", "the hub answered other changes than were pushed")
        accepted: set[str] = set()
        for change, result in zip(request.changes, answer.results, strict=True):
            if result.status == "accepted":
                accepted.add(change.change_id)
                self._accepted(facts, Row(result.seq or 0, change, request.device_id, account))
            if result.status == "refused" and change.change_id in self.written:
                self.written[change.change_id].retried = True
            known = self.place_by_change.get(change.change_id)
            if result.status == "duplicate" and known != (facts.space_id, result.seq):
                raise Broken("acknowledged", f"{change.change_id} is no duplicate")
        groups: dict[str, set[bool]] = {}
        for change, result in zip(request.changes, answer.results, strict=True):
            if change.group is not None:
                groups.setdefault(change.group, set()).add(result.status != "refused")
        for group, fates in groups.items():
            if len(fates) > 1:
                raise Broken("group", f"a part of group {group} was accepted, a part refused")

    def _accepted(self, facts: SpaceFacts, row: Row) -> None:
        change, ref = row.change, (row.change.table, row.change.id)
        if row.seq != len(facts.rows) + 1:
            raise Broken("gap", f"place {row.seq} follows {len(facts.rows)} in the log")
        if change.change_id in self.place_by_change:
            raise Broken("once", f"change {change.change_id} was applied twice")
        role = facts.role(row.account)
        if role is None or not can_write(role):
            raise Broken("role", f"a change of {row.account[:6]}, whose role is {role}")
        if (change.table in USER_TABLES) != (facts.type == "user"):
            raise Broken("space", f"a record of {change.table} in a space of type {facts.type}")
        self._check_stamps(row)
        self._check_seals(facts, change)
        held = facts.records.get(ref)
        if held is None:
            if change.author_id != row.account or change.op in ("reseal", "flip"):
                raise Broken("author", "a record begins with a change that cannot begin it")
            held = Expected(change.author_id, change.visibility)
            facts.records[ref] = held
        self._check_place(row, held)
        self._apply(row, held)
        facts.rows.append(row)
        self.place_by_change[change.change_id] = (facts.space_id, row.seq)
        for path, write in change.fields.items():
            if isinstance(write.value, str) and write.value.startswith("enc:2:"):
                self._envelopes[write.value.encode()] = (
                    facts.space_id,
                    change.author_id if change.visibility == "private" else "",
                )
            elif self._tables[change.table].field_at(path).sealed and write.value is not None:
                raise Broken("plaintext", f"{change.table}.{path} is not sealed")

    def _check_stamps(self, row: Row) -> None:
        if row.change.op == "reseal":
            return
        for write in row.change.fields.values():
            stamp = parse_stamp(write.at)
            if stamp.wall_ms > self._now_ms() + DRIFT_MS_MAX:
                raise Broken("clock", f"the hub accepted the stamp {write.at}")
            if stamp.device != row.device:
                raise Broken("forged", f"a stamp of {stamp.device}, pushed by {row.device}")

    def _check_seals(self, facts: SpaceFacts, change: ChangeMessage) -> None:
        current = facts.entries[-1].key_version
        for write in change.fields.values():
            found = _VERSION.match(write.value) if isinstance(write.value, str) else None
            if found is not None and found[1] != "p" and int(found[2]) != current:
                raise Broken("key", f"sealed under version {found[2]}, the space has {current}")
            if found is not None and (found[1] == "p") != (change.visibility == "private"):
                raise Broken("key", f"class {found[1]} in a change that is {change.visibility}")

    def _check_place(self, row: Row, held: Expected) -> None:
        change = row.change
        if change.author_id != held.author:
            raise Broken("author", "the hub accepted another author of a record")
        is_flip = change.visibility != held.visibility
        if is_flip and (row.account != held.author or change.op not in ("flip", "update")):
            raise Broken("visibility", "a flip that the author did not make")
        if change.visibility == "private" and row.account != held.author:
            raise Broken("visibility", "a private record of another was written")
        for path, value in change.guards.items():
            standing = held.entries.get(path)
            found = None if standing is None else standing.value
            if canonical_json(found) != canonical_json(value):
                raise Broken("guard", f"{path} stood at {found!r}, the change says {value!r}")
        if change.op == "reseal":
            for path, write in change.fields.items():
                before = held.entries.get(path)
                if (
                    before is None
                    or before.at != write.at
                    or version_of(before.value) >= version_of(write.value)
                ):
                    raise Broken("reseal", f"a re-seal of {path} that is none")

    def _apply(self, row: Row, held: Expected) -> None:
        change = row.change
        if change.visibility != held.visibility:
            held.hidden_seq = row.seq if change.visibility == "private" else 0
            held.visibility = change.visibility
        held.seq = row.seq
        for path, write in change.fields.items():
            new = Standing(
                write.value, write.at, dict(change.actor), change.origin, change.change_id, row.seq
            )
            old = held.entries.get(path)
            decided = self._tables[change.table].field_at(path).guarded
            if old is None or decided or _rank(new) > _rank(old):
                held.entries[path] = new

    # Answers

    def _pulled(self, facts: SpaceFacts, account: str, after: int, answer: PullAnswer) -> None:
        head = len(facts.rows)
        if not after <= answer.cursor <= head or (not answer.more and answer.cursor != head):
            raise Broken("cursor", f"from {after} to {answer.cursor}, the log ends at {head}")
        expected = [
            row for row in facts.rows[after : answer.cursor] if self._is_shown(facts, account, row)
        ]
        given = [(logged.seq, logged.device_id, logged.change) for logged in answer.changes]
        for seq, _, change in given:
            row = facts.rows[seq - 1] if 0 < seq <= head else None
            if row is None or row.change.change_id != change.change_id:
                raise Broken("space", f"a pull of {facts.space_id[:6]} brings what is not in it")
            if not self._is_shown(facts, account, row):
                raise Broken("leak", f"{account[:6]} was sent a change of a hidden record")
        if given != [(row.seq, row.device, row.change) for row in expected]:
            raise Broken("gap", f"a pull after {after} leaves out a change up to {answer.cursor}")
        told = {(one.table, one.id): one.seq for one in answer.hidden}
        for ref, record in facts.records.items():
            is_due = after < record.hidden_seq <= answer.cursor and record.author != account
            if is_due and told.get(ref) != record.hidden_seq:
                raise Broken("hidden", f"a pull does not tell that {ref[1]} became private")
            if ref in told and not is_due:
                raise Broken(
                    "hidden", f"a pull says that {ref[1]} became private, which it did not"
                )
        if not set(told) <= set(facts.records):
            raise Broken("hidden", "a pull names a record that does not exist")

    def _is_shown(self, facts: SpaceFacts, account: str, row: Row) -> bool:
        change = row.change
        if change.visibility == "private" and change.author_id != account:
            return False
        return facts.sees(account, (change.table, change.id))

    def _stated(self, facts: SpaceFacts, account: str, answer: StateAnswer) -> None:
        if answer.head > len(facts.rows):
            raise Broken("cursor", "a state has a head beyond the log")
        for record in answer.records:
            ref = (record.table, record.id)
            if ref not in facts.records:
                raise Broken("space", f"a state of {facts.space_id[:6]} brings what is not in it")
            if not facts.sees(account, ref):
                raise Broken("leak", f"{account[:6]} was sent the state of a hidden record")
            expected = facts.records[ref]
            if entries_of(record) != {
                path: replace(entry, seq=0) for path, entry in expected.entries.items()
            }:
                raise Broken("merge", f"the state of {ref} is not what the log makes of it")
            if (record.author_id, record.visibility) != (expected.author, expected.visibility):
                raise Broken("merge", f"the state of {ref} has another author or visibility")

    def _check_envelopes(self, account: str, answer: HubAnswer) -> None:
        """Look at every byte: no sealed value reaches whom it is not for."""
        for found in _ENVELOPE.finditer(answer.body):
            known = self._envelopes.get(found[0][1:-1])
            if known is None:
                raise Broken("forged", "the hub answered a sealed value that nobody pushed")
            space, owner = known
            if self.spaces[space].role(account) is None or owner not in ("", account):
                raise Broken("leak", f"{account[:6]} was sent a sealed value of another")


def crash_of(invariant: str, error: Exception) -> Broken:
    """Return what an exception that nobody foresaw breaks, with the places that it came by."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return Broken(invariant, f"{type(error).__name__}: {error} at {place}")


def version_of(value: Json) -> int:
    """Return the key version that a wire value names, 0 for a plain one."""
    found = _VERSION.match(value) if isinstance(value, str) else None
    return int(found[2]) if found is not None else 0


def entries_of(record: StateRecord) -> dict[str, Standing]:
    """Return a record's entries in the ledger's form."""
    return {
        path: Standing(found.value, found.at, dict(found.actor), found.origin, found.change_id, 0)
        for path, found in record.fields.items()
    }


def _rank(entry: Standing) -> tuple[str, int, bytes, bytes, str, str]:
    """Order entries as sync.md, 2 says. Written a second time, on purpose."""
    return (
        entry.at,
        version_of(entry.value),
        canonical_json(entry.value),
        canonical_json(dict(entry.actor)),
        entry.origin,
        entry.change_id,
    )


def paths_of(
    written: Written, table: Table, values: Mapping[str, Any]
) -> Iterator[tuple[str, Json]]:
    """Yield path and value of what a change brought that does not fit what was meant."""
    for path, value in values.items():
        name = path.partition("/")[0]
        declared = table.by_name[name]
        meant = written.values.get(name, written.values.get(path))
        elements = meant if isinstance(meant, list) else []
        fits = False
        match declared.shape:
            case Shape.VALUE:
                fits = value == meant
            case Shape.COUNTER:
                fits = isinstance(value, int | float)
            case Shape.SET:
                fits = value is None or value in elements
            case Shape.LIST:
                fits = value is None or (isinstance(value, dict) and value["value"] in elements)
        if not fits:
            yield path, value
