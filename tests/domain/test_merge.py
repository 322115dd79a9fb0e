"""Merge laws: replicas agree, whatever came first, how often and in which grouping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

from hypothesis import assume, given
from hypothesis import strategies as st

from mana.domain.actors import Actor
from mana.domain.clock import Stamp
from mana.domain.ids import RecordId
from mana.domain.merge import later, merge_entries, rank
from mana.domain.records import Entry, Record, assemble
from mana.domain.tables import DELETED_AT, Field, Shape, Table, Text, Whole
from tests.domain.strategies import DEVICES, close_stamps, entries, entry_maps

Entries = dict[str, Entry]
ACTOR = Actor("user", "u")
SHAPED = Table(
    name="lists",
    app_id="lists",
    fields=(
        Field("labels", Text(8), shape=Shape.SET),
        Field("lines", Text(8), shape=Shape.LIST),
        Field("count", Whole(0, 99), shape=Shape.COUNTER),
    ),
)
versions = st.integers(1, 12)
stamps = close_stamps.map(str)


def sealed(version: int, text: str = "a.b") -> str:
    return f"enc:2:s{version}:{text}"


@given(entry_maps, entry_maps)
def test_merge_ignores_order(ours: Entries, theirs: Entries) -> None:
    """Two replicas that saw the same writes agree, whatever came first."""
    assert merge_entries(ours, theirs) == merge_entries(theirs, ours)


@given(entry_maps, entry_maps, entry_maps)
def test_merge_ignores_grouping(one: Entries, two: Entries, three: Entries) -> None:
    """Relays may batch writes as they like."""
    left = merge_entries(merge_entries(one, two), three)
    assert left == merge_entries(one, merge_entries(two, three))


@given(entry_maps, entry_maps)
def test_merge_ignores_resends(ours: Entries, theirs: Entries) -> None:
    """A write that arrives twice changes nothing the second time."""
    once = merge_entries(ours, theirs)
    assert merge_entries(once, theirs) == once
    assert merge_entries(once, once) == once


@given(st.lists(entry_maps, min_size=1, max_size=8), st.data())
def test_any_delivery_gives_one_state(writes: list[Entries], data: st.DataObject) -> None:
    """Any order, any batches and any repetition of the same writes end in one state."""
    again = data.draw(st.lists(st.sampled_from(writes), max_size=6))
    delivered = data.draw(st.permutations([*writes, *again]))
    size = data.draw(st.integers(1, 4))
    batches = [delivered[at : at + size] for at in range(0, len(delivered), size)]
    assert merged(merged(batch) for batch in batches) == merged(writes)


def merged(maps: Iterable[Entries]) -> Entries:
    return reduce(merge_entries, maps, {})


@given(entries, entries)
def test_a_tie_is_settled_by_what_is_written(one: Entry, two: Entry) -> None:
    """Two entries of one stamp have one winner on every replica, and a winner is one of them."""
    two = replace(two, at=one.at)
    assert later(one, two) == later(two, one)
    assert later(one, two) in (one, two)
    assert (rank(one) == rank(two)) == (repr(one) == repr(two))


@given(entries, versions, versions)
def test_a_reseal_beats_every_older_envelope(entry: Entry, old: int, grown: int) -> None:
    """The newer key wins at one stamp, whatever the bytes, in any order, as often as it comes."""
    before = replace(entry, value=sealed(old, "zzzz.zzzz"), change_id="z")
    newer = replace(entry, value=sealed(old + grown, "aaaa.aaaa"), change_id="a")
    newest = replace(entry, value=sealed(old + grown + 1, "0.0"), change_id="0")
    assert later(before, newer) == newer
    assert later(newer, before) == newer
    assert merged([{"f": newest}, {"f": before}, {"f": newer}]) == {"f": newest}


@given(entries, entries, versions, versions)
def test_a_reseal_never_beats_an_edit(entry: Entry, edit: Entry, old: int, new: int) -> None:
    """An edit with a later stamp stands against a re-seal of what it replaced, under any key."""
    assume(edit.at > entry.at)
    before = replace(entry, value=sealed(old))
    resealed = replace(entry, value=sealed(old + new))
    for order in ((before, resealed, edit), (edit, resealed, before), (resealed, edit, before)):
        assert merged([{"f": one} for one in order]) == {"f": edit}


def written(value: object, at: str) -> Entry:
    return Entry(value, at, ACTOR, "user", "c")  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.booleans(), stamps), max_size=6), entry_maps)
def test_the_newest_tombstone_decides(marks: list[tuple[bool, str]], values: Entries) -> None:
    """Delete and restore are writes like others: the newest one says whether a record is there."""
    moment = "1970-01-01T00:00:01.000Z"
    writes = [{DELETED_AT: written(moment if dead else None, at)} for dead, at in marks]
    entries_now = merged([values, *writes])
    record = Record("lists", RecordId("n"), "u", "space", entries_now)
    newest = max((at for _, at in marks), default="")
    said = {dead for dead, at in marks if at == newest}
    assert record.deleted in said | ({False} if not marks else set())
    assert {path: entries_now[path] for path in values} == values
    kept = record.deleted and any(entry.at > newest for entry in values.values())
    assert record.edited_after_delete == kept


def test_an_edit_newer_than_the_tombstone_is_kept() -> None:
    """Deleting loses no later edit: it is there to be restored, and a restore brings it."""
    dead = written("1970-01-01T00:00:01.000Z", str(Stamp(1_000, 0, DEVICES[0])))
    edit = written("enc:2:s1:x.y", str(Stamp(1_001, 0, DEVICES[1])))
    found = merge_entries({DELETED_AT: dead}, {"title": edit})
    record = Record("notes", RecordId("n"), "u", "space", found)
    assert record.deleted
    assert record.edited_after_delete
    restored = merge_entries(found, {DELETED_AT: written(None, str(Stamp(1_002, 0, DEVICES[2])))})
    again = replace(record, entries=restored)
    assert not again.deleted
    assert again.entries["title"] == edit


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["labels", "lines", "count"]),
            st.sampled_from("xyz"),
            st.integers(0, 5) | st.none(),
            st.integers(0, 50),
        ),
        max_size=12,
        unique_by=lambda write: write[3],
    ),
    st.data(),
)
def test_elements_are_paths_of_their_own(
    writes: list[tuple[str, str, int | None, int]], data: st.DataObject
) -> None:
    """Whatever the order of arrival, each element is its newest write, and no other's loss."""

    def value(field: str, number: int | None) -> object:
        if number is None or field == "count":
            return number
        return (
            f"v{number}" if field == "labels" else {"position": f"{number}", "value": f"v{number}"}
        )

    def entry(write: tuple[str, str, int | None, int]) -> Entries:
        field, element, number, moment = write
        stamp = str(Stamp(moment, 0, DEVICES[0]))
        return {f"{field}/{element}": written(value(field, number), stamp)}

    delivered = data.draw(st.permutations(writes))
    found = assemble(
        SHAPED, {path: one.value for path, one in merged([entry(one) for one in delivered]).items()}
    )
    newest = {
        (field, element): number
        for field, element, number, _ in sorted(writes, key=lambda write: write[3])
    }

    def standing(name: str) -> list[int]:
        return [
            number
            for (field, _), number in sorted(newest.items())
            if field == name and number is not None
        ]

    assert found.get("labels", []) == sorted({f"v{number}" for number in standing("labels")})
    assert found.get("lines", []) == [f"v{number}" for number in sorted(standing("lines"))]
    assert found.get("count", 0) == sum(standing("count"))
