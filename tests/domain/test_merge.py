"""Merge laws: replicas agree, whatever came first, how often and in which grouping."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from mana.domain.actors import Actor
from mana.domain.clock import Stamp
from mana.domain.merge import merge_entries
from mana.domain.records import Entry
from tests.domain.strategies import DEVICES, entries, entry_maps

Entries = dict[str, Entry]


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


@given(entries)
def test_reseal_replaces_the_old_envelope_and_never_an_edit(entry: Entry) -> None:
    """Re-sealing keeps the stamp and wins by key version; any later edit beats it."""
    old = replace(entry, value="enc:2:s2:zzzz.zzzz")
    resealed = replace(entry, value="enc:2:s10:aaaa.aaaa")
    assert merge_entries({"f": old}, {"f": resealed})["f"] == resealed
    edit = Entry("enc:2:s2:b.b", str(Stamp(2_000, 0, DEVICES[0])), Actor("user", "u"), "user", "c")
    assert merge_entries({"f": resealed}, {"f": edit})["f"] == edit


def test_an_edit_newer_than_the_tombstone_is_kept() -> None:
    """Deleting loses no later edit: it is there to be restored."""
    from mana.domain.ids import RecordId
    from mana.domain.records import Record

    actor = Actor("user", "u")
    dead = Entry("1970-01-01T00:00:01.000Z", str(Stamp(1_000, 0, DEVICES[0])), actor, "user", "a")
    edit = Entry("enc:2:s1:x.y", str(Stamp(1_001, 0, DEVICES[1])), actor, "user", "b")
    record = Record(
        "notes", RecordId("n"), "u", "space", merge_entries({"deletedAt": dead}, {"title": edit})
    )
    assert record.deleted
    assert record.edited_after_delete
    assert record.entries["title"] == edit
