"""Laws of a batch: order, grouping and repetition change nothing that they should not."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mana.crypto.signatures import SigningKey
from mana.domain.actors import person
from mana.domain.clock import Stamp
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.domain.tables import Choice, Document, Field, Shape, Table, Whole, guarded, plain
from mana.hub.sync.apply import Batch, Logged, MergedRecord, RecordRef, apply_batch, ref_of
from mana.hub.sync.rows import (
    LOG_COLUMNS,
    RECORD_COLUMNS,
    StoredRecord,
    columns_of,
    logged_of,
    merged_of,
    row_of,
)
from mana.hub.sync.rows import log_row_of as log_row
from mana.hub.sync.validate import Place, Writer, WriterKind
from mana.protocol.codec import encode
from mana.protocol.messages import ChangeMessage, FieldWrite

NOW_MS = 1_795_000_000_000
ACCOUNT = AccountId("00000000-0000-4000-8000-00000000000a")
DEVICE = DeviceId("00000000-0000-4000-8000-0000000000d1")
WHY = "a test must read it"
TABLE = Table(
    name="things",
    app_id="things",
    fields=(
        plain("size", Whole(0, 9), because=WHY),
        plain("owner", Whole(0, 9), because=WHY, fixed=True),
        guarded("status", Choice(("open", "done", "gone")), because=WHY),
        plain("body", Document(256), because=WHY),
    ),
)
TABLES = {TABLE.name: TABLE}
WRITER = Writer(WriterKind.DEVICE, ACCOUNT, DEVICE)
PLACE = Place(SpaceId("0" * 64), "personal", 1, "owner", SigningKey(bytes(32)).public(), NOW_MS)


def change(
    record: str,
    values: dict[str, Any],
    *,
    moment: int = 0,
    group: str | None = None,
    guards: dict[str, Any] | None = None,
) -> ChangeMessage:
    at = str(Stamp(NOW_MS + moment, 0, DEVICE))
    return ChangeMessage(
        change_id=str(uuid.uuid4()),
        table=TABLE.name,
        id=record,
        op="update",
        fields={path: FieldWrite(value=value, at=at) for path, value in values.items()},
        actor={"kind": person(ACCOUNT).kind, "principalId": ACCOUNT},
        origin="user",
        author_id=ACCOUNT,
        group=group,
        guards=guards or {},
    )


def apply(
    changes: Sequence[ChangeMessage],
    standing: dict[RecordRef, MergedRecord] | None = None,
    known: dict[str, Logged] | None = None,
    head: int = 0,
) -> Batch:
    return apply_batch(
        changes,
        tables=TABLES,
        writer=WRITER,
        place=PLACE,
        head=head,
        known=known or {},
        standing=standing or {},
    )


free_changes = st.builds(
    change,
    st.sampled_from("abc"),
    st.dictionaries(st.sampled_from(["size", "body"]), st.integers(0, 9) | st.none(), min_size=1),
    moment=st.integers(0, 3),
)


def pushed(batches: Sequence[Sequence[ChangeMessage]]) -> dict[RecordRef, Any]:
    standing: dict[RecordRef, MergedRecord] = {}
    known: dict[str, Logged] = {}
    head = 0
    for batch in batches:
        done = apply(batch, standing, known, head)
        standing.update(done.records)
        known.update(
            {
                one.change.change_id: Logged(one.seq, ref_of(one.change), own=True)
                for one in done.accepted
            }
        )
        head = done.head
    return {ref: merged.record.entries for ref, merged in standing.items()}


@given(st.lists(free_changes, max_size=12), st.data())
def test_any_order_and_grouping(changes: list[ChangeMessage], data: st.DataObject) -> None:
    """The same changes in any order, cut into any batches, with resends, give one state."""
    shuffled = data.draw(st.permutations(changes))
    size = data.draw(st.integers(1, 5))
    batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    resent = [batch for batch in batches for _ in range(data.draw(st.integers(1, 2)))]
    assert pushed([changes]) == pushed(resent)


@given(st.lists(free_changes, max_size=10), st.lists(st.booleans(), min_size=10, max_size=10))
def test_groups_are_all_or_nothing(changes: list[ChangeMessage], joined: list[bool]) -> None:
    """A group with one bad member leaves the state as if it had never been pushed."""
    group = str(uuid.uuid4())
    bad = change("z", {"size": 10}, group=group)
    mixed = [
        msgspec.structs.replace(one, group=group) if join else one
        for one, join in zip(changes, joined, strict=False)
    ]
    done = apply([*mixed, bad])
    alone = [one for one in mixed if one.group is None]
    assert {ref: one.record.entries for ref, one in done.records.items()} == pushed([alone])
    by_id = {result.change_id: result for result in done.results}
    assert by_id[bad.change_id].code == "bad-value"
    for one in mixed:
        expected = "group-refused" if one.group else None
        assert by_id[one.change_id].code == expected
    assert [one.seq for one in done.accepted] == list(range(1, len(alone) + 1))


@given(st.lists(st.sampled_from(["open", "done", "gone"]), min_size=1, max_size=6), st.data())
def test_guards_are_a_chain(wanted: list[str], data: st.DataObject) -> None:
    """Guarded fields follow the hub's order: each accepted change named what stood before it."""
    standing: str | None = None
    changes, expected = [], []
    for value in wanted:
        named = data.draw(st.sampled_from([None, "open", "done", "gone"]))
        moment = data.draw(st.integers(0, 3))
        changes.append(change("a", {"status": value}, moment=moment, guards={"status": named}))
        expected.append("accepted" if named == standing else "guard-failed")
        if named == standing:
            standing = value
    done = apply(changes)
    assert [result.code or result.status for result in done.results] == expected
    if ("things", "a") in done.records:
        assert done.records["things", "a"].record.entries["status"].value == standing


def read(names: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Return the one row of some columns, as PostgreSQL gives it back."""
    read = dict(zip(names, columns, strict=True))
    json_ = {"data", "field_meta", "actor", "guards", "signature", "fields", "proofs", "seen"}
    return {
        name: msgspec.json.decode(text) if name in json_ and text else text or None
        for name, text in read.items()
    }


@given(st.lists(free_changes, min_size=1, max_size=8))
def test_rows_lose_nothing(changes: list[ChangeMessage]) -> None:
    """A record and a change survive the way into a row and back."""
    done = apply(changes)
    for merged in done.records.values():
        row = read(RECORD_COLUMNS, columns_of([row_of(merged)]))
        raw = encode({**row, "seq": int(row["seq"]), "deleted": row["deleted"] == "true"})
        back = merged_of(msgspec.json.decode(raw, type=StoredRecord))
        assert (back.record, back.proofs, back.seq) == (merged.record, merged.proofs, merged.seq)
    for accepted in done.accepted:
        row = read(LOG_COLUMNS, columns_of([log_row(accepted, TABLE)]))
        logged = logged_of({**row, "seq": accepted.seq, "client_id": DEVICE})
        assert logged.change == accepted.change


def test_fixed_until_it_is_set() -> None:
    """A fixed field takes its first value, the same again, and no other."""
    batch = [change("a", {"owner": 1}), change("a", {"owner": 1}), change("a", {"owner": 2})]
    results = apply(batch).results
    assert [one.code or one.status for one in results] == ["accepted", "accepted", "fixed-field"]


def test_shapes_merge_by_element() -> None:
    """Elements of a collection are paths of their own and never overwrite each other."""
    shaped = Table(
        name="lists",
        app_id="lists",
        fields=(Field("count", Whole(0, 99), because=WHY, shape=Shape.COUNTER),),
    )
    one = msgspec.structs.replace(change("a", {"count/d1": 1}), table="lists")
    two = msgspec.structs.replace(change("a", {"count/d2": 2}), table="lists")
    done = apply_batch(
        [one, two],
        tables={"lists": shaped},
        writer=WRITER,
        place=PLACE,
        head=0,
        known={},
        standing={},
    )
    entries = done.records["lists", "a"].record.entries
    assert {path: entry.value for path, entry in entries.items()} == {"count/d1": 1, "count/d2": 2}
