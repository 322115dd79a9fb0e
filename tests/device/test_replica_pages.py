"""What a page of the log does to a replica: hidden records, old tombstones, overwritten edits."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.device.errors import ReplicaBroken, SpaceLeft, StorageFull
from mana.device.replica import Outbox, OutboxRow, Replica, Tx, Watch
from mana.device.replica.overwritten import OVERWRITTEN_MAX
from mana.device.replica.rows import decode_row, encode_row, held_of, read_row, row_after, write_row
from mana.device.replica.state import TOMBSTONE_MS
from mana.domain.clock import Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import DeviceId
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    HiddenRecord,
    LoggedChange,
    Signature,
    StateField,
    StateRecord,
)
from mana.protocol.replication import Held, HubDistrusted, Verdict, apply_change

pytestmark = pytest.mark.anyio

ADA = "00000000-0000-4000-8000-000000000001"
BOB = "00000000-0000-4000-8000-000000000002"
HERE = DeviceId("00000000-0000-4000-8000-0000000000d1")
THERE = DeviceId("00000000-0000-4000-8000-0000000000d2")
SPACE = "a" * 64
MS = 1_795_000_000_000
KEY = ("notes", "n1")


def at(number: int, device: DeviceId = THERE) -> str:
    return str(Stamp(MS + number, 0, device))


def change(
    number: int,
    values: dict[str, Json],
    *,
    device: DeviceId = THERE,
    record: str = "n1",
    author: str = ADA,
    name: str | None = None,
    **more: Any,
) -> ChangeMessage:
    return ChangeMessage(
        change_id=name or f"c{number}-{device[-2:]}-{record}",
        table="notes",
        id=record,
        op=more.pop("op", "update"),
        fields={
            path: FieldWrite(value=value, at=at(number, device)) for path, value in values.items()
        },
        actor=more.pop("actor", {"kind": "user", "principalId": author}),
        origin=more.pop("origin", "user"),
        author_id=author,
        **more,
    )


def logged(seq: int, message: ChangeMessage, device: DeviceId = THERE) -> LoggedChange:
    return LoggedChange(seq=seq, change=message, device_id=device)


def watch(hub_ms: int = MS, **more: Any) -> Watch:
    differ: Callable[..., bool] = more.get(
        "differ",
        lambda table, before, after, path: before.entries[path].value != after.entries[path].value,
    )
    return Watch(ADA, HERE, hub_ms, differ)


def known(table: str) -> bool:
    return table != "unknown"


def guarded(table: str, path: str) -> bool:
    return path == "status"


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    made = await opened(tmp_path / "a.db")
    yield made
    await made.close()


async def opened(path: Path, **options: Any) -> Replica:
    replica = Replica(path, guarded=guarded, **options)
    await replica.open()

    def begin(tx: Tx) -> None:
        if tx.space(SPACE) is None:
            tx.add_space(SPACE, "team")
            tx.take_state(SPACE, [], head=0, page=None, known=known, **STATE)

    await replica.write(begin)
    return replica


async def take(
    replica: Replica, *changes: LoggedChange, hidden: tuple[HiddenRecord, ...] = (), **more: Any
) -> bool:
    seqs = [one.seq for one in (*changes, *hidden)]
    options: Any = {"watch": watch(), "anew": as_it_is, "restamp": as_it_is, **more}
    return await replica.write(
        lambda tx: tx.take_changes(SPACE, changes, max(seqs), known=known, hidden=hidden, **options)
    )


def as_it_is(tx: Outbox, row: OutboxRow) -> ChangeMessage:
    return row.message


STATE: dict[str, Any] = {
    "resend": lambda tx, space, record, shown, left: [],
    "hub_ms": 0,
    "account_id": ADA,
}


async def shown(replica: Replica, record: str = "n1") -> dict[str, Json] | None:
    held = await replica.read(lambda tx: tx.held(SPACE, "notes", record))
    return None if held is None else {p: e.value for p, e in held.record.entries.items()}


# The shape of a row


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["title", "content", "status"]),
            st.one_of(
                st.none(), st.text(max_size=3), st.sampled_from(["enc:2:s1:x", "enc:2:s2:x"])
            ),
            st.integers(0, 4),
            st.integers(1, 6),
            st.booleans(),
            st.sampled_from(["space", "private"]),
        ),
        max_size=8,
    )
)
def test_the_short_way_through_a_page_is_the_rule(writes: list[Any]) -> None:
    """What is merged without reading entries is what `apply_change` makes of it, always."""
    row, held = None, None
    for number, (path, value, wall, seq, signed, visibility) in enumerate(writes):
        message = change(wall, {path: value}, name=f"c{number}", visibility=visibility)
        if signed:
            signature = Signature(signer="d", value="x" * 88)
            message = change(
                wall, {path: value}, name=f"c{number}", visibility=visibility, signature=signature
            )
        row = row_after(row, logged(seq, message), guarded)
        held = apply_change(held, message, seq=seq, guarded=guarded)
        assert held_of("notes", "n1", decode_row(encode_row(row))) == held
        assert read_row("notes", "n1", write_row(held)) == held


# Hidden records


async def test_a_hidden_record_leaves_nothing_behind(replica: Replica) -> None:
    """A record that became private to another goes with its values; own edits are parked."""
    await take(replica, logged(1, change(1, {"title": "x"}, author=BOB)))
    await replica.write(lambda tx: tx.add(SPACE, change(5, {"title": "mine"}, device=HERE)))
    await take(replica, hidden=(HiddenRecord(seq=2, table="notes", id="n1"),))
    assert await shown(replica) is None
    (row,) = await replica.read(lambda tx: tx.refused())
    assert row.code == "hidden"
    assert (await replica.read(lambda tx: tx.space(SPACE))).cursor == 2  # type: ignore[union-attr]


async def test_a_marker_counts_at_its_place_in_the_log(replica: Replica) -> None:
    """A record that was hidden and came back in one page is the one that came back."""
    await take(replica, logged(1, change(1, {"title": "old", "color": "red"}, author=BOB)))
    back = change(9, {"title": "new"}, author=BOB, op="flip")
    await take(replica, logged(3, back), hidden=(HiddenRecord(seq=2, table="notes", id="n1"),))
    assert await shown(replica) == {"title": "new"}


async def test_nobody_hides_a_record_from_its_author(replica: Replica) -> None:
    """A marker for a record of one's own is refused with its whole page."""
    await take(replica, logged(1, change(1, {"title": "mine"})))
    with pytest.raises(HubDistrusted):
        await take(
            replica,
            logged(3, change(3, {"title": "x"}, record="n2")),
            hidden=(HiddenRecord(seq=2, table="notes", id="n1"),),
        )
    assert await shown(replica) == {"title": "mine"}
    assert await shown(replica, "n2") is None


async def test_what_is_set_aside_is_hidden_too(replica: Replica) -> None:
    """A record of a table that this version does not know does not outlast its hiding."""
    strange = ChangeMessage(
        change_id="s1",
        table="unknown",
        id="n1",
        op="update",
        fields={"x": FieldWrite(value="x", at=at(1))},
        actor={"kind": "user", "principalId": BOB},
        origin="user",
        author_id=BOB,
    )
    await take(replica, logged(1, strange))
    await take(replica, hidden=(HiddenRecord(seq=2, table="unknown", id="n1"),))
    rows = await replica.read(lambda tx: tx._sql("select count(*) from aside").fetchone())
    assert rows == (0,)


async def test_the_newest_place_in_the_log_decides_who_sees(replica: Replica) -> None:
    """Visibility follows the log's order, not the stamps, and an own flip lies over it."""
    await take(
        replica,
        logged(1, change(9, {"title": "x"})),
        logged(2, change(10, {"title": "x"}, op="flip", visibility="private")),
        logged(3, change(5, {"color": "red"}, visibility="private")),
    )
    held = await replica.read(lambda tx: tx.held(SPACE, *KEY))
    assert held is not None
    assert held.record.visibility == "private"
    state = StateRecord(table="notes", id="n1", author_id=ADA, visibility="space", seq=2, fields={})
    await replica.write(
        lambda tx: tx.take_state(SPACE, [state], head=3, page=None, known=known, **STATE)
    )
    held = await replica.read(lambda tx: tx.held(SPACE, *KEY))
    assert held is not None
    assert held.record.visibility == "private"
    own = change(20, {"title": "x"}, device=HERE, op="flip")
    await replica.write(lambda tx: tx.add(SPACE, own))
    held = await replica.read(lambda tx: tx.held(SPACE, *KEY))
    assert held is not None
    assert held.record.visibility == "space"
    base = await replica.read(lambda tx: tx.base(SPACE, *KEY))
    assert base is not None
    assert base.record.visibility == "private"


# Re-seals


async def test_a_reseal_is_nobodys_news(replica: Replica) -> None:
    """A re-seal replaces the envelope, moves no mark, raises no notice, and never beats an edit."""
    await take(replica, logged(1, change(1, {"title": "enc:2:s1:a"}, device=HERE), HERE))
    before = await replica.read(lambda tx: (tx.mark(SPACE, *KEY), tx.touched_after(0)))
    again = ChangeMessage(
        change_id="r1",
        table="notes",
        id="n1",
        op="reseal",
        fields={"title": FieldWrite(value="enc:2:s2:b", at=at(1, HERE))},
        actor={"kind": "user", "principalId": ADA},
        origin="user",
        author_id=ADA,
    )
    assert await take(replica, logged(2, again)) is False
    assert await shown(replica) == {"title": "enc:2:s2:b"}
    assert await replica.read(lambda tx: (tx.mark(SPACE, *KEY), tx.touched_after(0))) == before
    await take(replica, logged(3, change(2, {"title": "enc:2:s1:edit"})))
    assert await shown(replica) == {"title": "enc:2:s1:edit"}


# What was overwritten


async def overwritten(replica: Replica) -> list[tuple[str, dict[str, Json], dict[str, Json]]]:
    rows = await replica.read(lambda tx: tx.overwritten())
    return [
        (
            row.record_id,
            {path: entry.value for path, entry in row.was.items()},
            {path: entry.value for path, entry in row.now.items()},
        )
        for row in rows
    ]


async def test_what_a_person_wrote_here_and_lost_is_kept(replica: Replica) -> None:
    """A strictly newer entry of another device over an own one is kept, first was, newest now."""
    mine = change(1, {"title": "mine", "content": "mine"}, device=HERE)
    await take(replica, logged(1, mine, HERE))
    assert await take(replica, logged(2, change(2, {"title": "theirs"})))
    assert await take(
        replica,
        logged(3, change(3, {"content": "theirs"})),
    )
    await take(replica, logged(4, change(4, {"title": "newest"})))
    assert await overwritten(replica) == [
        (
            "n1",
            {"title": "mine", "content": "mine"},
            {"title": "theirs", "content": "theirs"},
        )
    ]


async def test_the_first_of_two_lost_values_is_kept(replica: Replica) -> None:
    """Whoever lost a field twice is offered what they had first, and loses nothing by a third."""
    await take(replica, logged(1, change(1, {"title": "first"}, device=HERE), HERE))
    await take(replica, logged(2, change(2, {"title": "theirs"})))
    await take(replica, logged(3, change(3, {"title": "second"}, device=HERE), HERE))
    await take(replica, logged(4, change(4, {"title": "newest"})))
    assert await overwritten(replica) == [("n1", {"title": "first"}, {"title": "newest"})]


async def test_an_own_newer_edit_in_the_same_page_is_no_loss(replica: Replica) -> None:
    """Where this device has the last word by the end of a page, nothing was overwritten."""
    await take(replica, logged(1, change(1, {"title": "mine"}, device=HERE), HERE))
    theirs = logged(2, change(2, {"title": "theirs"}))
    assert not await take(
        replica, theirs, logged(3, change(3, {"title": "again mine"}, device=HERE), HERE)
    )
    assert await overwritten(replica) == []


BY_BOB: dict[str, Any] = {"author": BOB}
BY_AGENT: dict[str, Any] = {
    "origin": "agent",
    "actor": {"kind": "ai", "principalId": "a", "missionId": "m", "iterationId": "i"},
}


@pytest.mark.parametrize("by", [{}, BY_BOB, BY_AGENT], ids=["self", "member", "agent"])
@pytest.mark.parametrize(
    ("seen", "is_told"),
    [(None, True), (0, True), (3, True), (4, False), (6, False), (7, True), (2**53, True)],
)
async def test_only_who_did_not_know_overwrites(
    replica: Replica, by: dict[str, Any], seen: int | None, is_told: bool
) -> None:
    """A person is told if whoever overwrote them had not read as far as their edit, or says none.

    What says that it read beyond its own place in the log is believed nothing.
    """
    await take(replica, logged(4, change(1, {"title": "mine"}, device=HERE), HERE))
    await take(replica, logged(5, change(2, {"content": "other"})))
    theirs = change(3, {"title": "theirs"}, seen=seen, **by)
    assert await take(replica, logged(7, theirs)) is is_told
    assert len(await overwritten(replica)) == is_told


async def test_what_waited_was_known_to_nobody(replica: Replica) -> None:
    """An own edit that is not in the log yet was overwritten unseen, however far they had read."""
    await take(replica, logged(1, change(0, {"title": "plan"})))
    await replica.write(lambda tx: tx.add(SPACE, change(1, {"title": "mine"}, device=HERE)))
    assert await take(replica, logged(5, change(2, {"title": "theirs"}, seen=4)))


async def test_an_own_edit_of_the_same_page_has_its_place(replica: Replica) -> None:
    """Where the page brings the own edit too, its place in the log decides, either way."""
    await take(replica, logged(1, change(0, {"title": "plan"}), THERE))
    mine = change(1, {"title": "mine"}, device=HERE)
    await replica.write(lambda tx: tx.add(SPACE, mine))
    knowing = logged(3, change(2, {"title": "theirs"}, seen=2))
    assert not await take(replica, logged(2, mine, HERE), knowing)
    again = change(3, {"title": "again"}, device=HERE)
    await replica.write(lambda tx: tx.add(SPACE, again))
    blind = logged(5, change(4, {"title": "theirs too"}, seen=3))
    assert await take(replica, logged(4, again, HERE), blind)


async def test_a_blind_edit_counts_though_a_knowing_one_followed(replica: Replica) -> None:
    """Who replaced an unseen overwrite never saw what it replaced; one that lost replaced nothing."""
    await take(replica, logged(1, change(2, {"title": "mine"}, device=HERE), HERE))
    lost = logged(2, change(1, {"title": "too old"}, seen=0))
    knowing = logged(3, change(3, {"title": "knowing"}, seen=2))
    assert not await take(replica, lost, knowing)
    await take(replica, logged(4, change(4, {"title": "mine again"}, device=HERE), HERE))
    blind = logged(5, change(5, {"title": "blind"}, seen=3))
    knowing = logged(6, change(6, {"title": "of the blind"}, seen=5))
    assert await take(replica, blind, knowing)
    ((_, was, now),) = await overwritten(replica)
    assert (was, now) == ({"title": "mine again"}, {"title": "of the blind"})


async def test_an_offline_edit_that_lost_is_kept(replica: Replica) -> None:
    """An edit that still waits here and is older than what the page brings counts as well."""
    await replica.write(lambda tx: tx.add(SPACE, change(1, {"title": "mine"}, device=HERE)))
    assert await take(replica, logged(1, change(2, {"title": "theirs"})))
    assert await overwritten(replica) == [("n1", {"title": "mine"}, {"title": "theirs"})]


@pytest.mark.parametrize(
    ("mine", "theirs", "device"),
    [
        (change(1, {"title": None}, device=HERE), change(2, {"title": "x"}), THERE),
        (change(1, {"title": "x"}, device=HERE), change(2, {"title": None}), THERE),
        (change(1, {"title": "x"}, device=HERE), change(2, {"title": "x"}), THERE),
        (change(3, {"title": "x"}, device=HERE), change(2, {"title": "y"}), THERE),
        (change(1, {"title": "x"}, device=HERE), change(2, {"title": "y"}, device=HERE), HERE),
        (change(1, {"title": "x"}), change(2, {"title": "y"}), THERE),
        (
            change(
                1,
                {"title": "x"},
                device=HERE,
                origin="agent",
                actor={
                    "kind": "ai",
                    "principalId": "a",
                    "missionId": "m",
                    "iterationId": "i",
                },
            ),
            change(2, {"title": "y"}),
            THERE,
        ),
    ],
    ids=["no-was", "no-now", "equal", "tie-or-older", "own", "not-written-here", "agent"],
)
async def test_what_is_no_conflict_is_not_shown(
    replica: Replica, mine: ChangeMessage, theirs: ChangeMessage, device: DeviceId
) -> None:
    """Nulls, equal values, older ones, own ones and those of agents raise nothing."""
    await take(replica, logged(1, mine, HERE))
    await take(replica, logged(2, theirs, device))
    assert await overwritten(replica) == []


async def test_state_and_replays_raise_no_conflict(replica: Replica) -> None:
    """The first state says nothing about what was lost, nor does a page that is seen again."""
    await take(replica, logged(1, change(1, {"title": "mine"}, device=HERE), HERE))
    theirs = StateField(
        value="theirs",
        at=at(2),
        actor={"kind": "user", "principalId": BOB},
        origin="user",
        change_id="c9",
    )
    state = StateRecord(
        table="notes",
        id="n1",
        author_id=ADA,
        visibility="space",
        seq=2,
        fields={"title": theirs},
    )
    await replica.write(
        lambda tx: tx.take_state(SPACE, [state], head=2, page=None, known=known, **STATE)
    )
    for _ in range(10):
        await take(replica, logged(2, change(2, {"title": "theirs"}, name="c9")))
    assert await overwritten(replica) == []


async def test_conflicts_are_bounded(replica: Replica) -> None:
    """At most 200 are kept, and none for more than 30 days; the newest stay."""
    late = watch(MS + TOMBSTONE_MS * 2)
    old = change(1, {"title": "mine"}, device=HERE, record="old")
    await take(replica, logged(1, old, HERE))
    await take(replica, logged(2, change(2, {"title": "theirs"}, record="old")))
    seq = 2
    for number in range(OVERWRITTEN_MAX + 5):
        name = f"r{number}"
        mine = change(1, {"title": "mine"}, device=HERE, record=name)
        theirs = change(2, {"title": "theirs"}, record=name)
        await take(replica, logged(seq + 1, mine, HERE), watch=late)
        await take(replica, logged(seq + 2, theirs), watch=late)
        seq += 2
    names = {row[0] for row in await overwritten(replica)}
    assert len(names) == OVERWRITTEN_MAX
    assert "old" not in names
    assert f"r{OVERWRITTEN_MAX + 4}" in names


# Old tombstones


async def bury(replica: Replica, *, days: int = 31) -> int:
    """Delete n1 on the hub, and look at it so many days later."""
    await take(replica, logged(1, change(1, {"title": "x", "deletedAt": iso_ms(MS)})))
    return await replica.write(lambda tx: tx.let_go(MS + days * 86_400_000))


async def test_old_tombstones_go_and_late_edits_raise_no_ghost(replica: Replica) -> None:
    """A record deleted long ago goes; a late edit of another device makes no half record of it."""
    assert await bury(replica, days=29) == 0
    assert await shown(replica) is not None
    assert await replica.write(lambda tx: tx.let_go(MS + 31 * 86_400_000)) == 1
    assert await shown(replica) is None
    await take(replica, logged(2, change(5, {"title": "late"})))
    assert await shown(replica) is None
    assert await replica.read(lambda tx: tx.wanted(SPACE)) == []


async def test_a_restored_record_is_asked_for_as_a_whole(replica: Replica) -> None:
    """A late restore shows nothing until the whole record was fetched, and then all of it."""
    await bury(replica)
    await take(replica, logged(2, change(5, {"deletedAt": None})))
    assert await shown(replica) is None
    assert await replica.read(lambda tx: tx.wanted(SPACE)) == [KEY]
    entry = StateField(
        value="x",
        at=at(1),
        actor={"kind": "user", "principalId": ADA},
        origin="user",
        change_id="c1",
    )
    state = StateRecord(
        table="notes", id="n1", author_id=ADA, visibility="space", seq=2, fields={"title": entry}
    )
    await replica.write(lambda tx: tx.take_record(SPACE, KEY, state, hub_ms=MS))
    assert await shown(replica) == {"title": "x"}
    assert await replica.read(lambda tx: tx.wanted(SPACE)) == []
    await take(replica, logged(3, change(6, {"title": "on"})))
    assert await shown(replica) == {"title": "on"}


async def test_what_a_waiting_change_touches_stays(replica: Replica) -> None:
    """A tombstone over which a change waits, or is parked, is kept."""
    await take(replica, logged(1, change(1, {"title": "x", "deletedAt": iso_ms(MS)})))
    mine = change(5, {"title": "mine"}, device=HERE)
    await replica.write(lambda tx: tx.add(SPACE, mine))
    assert await replica.write(lambda tx: tx.let_go(MS + 31 * 86_400_000)) == 0
    row = (await replica.read(lambda tx: tx.unacknowledged()))[0]
    await replica.write(lambda tx: tx.park([row], "role", now_ms=MS))
    assert await replica.write(lambda tx: tx.let_go(MS + 31 * 86_400_000)) == 0


async def test_a_record_that_lives_again_is_no_tombstone(replica: Replica) -> None:
    """Restored in time, and deleted again: the thirty days begin anew."""
    await take(replica, logged(1, change(1, {"title": "x", "deletedAt": iso_ms(MS)})))
    await take(replica, logged(2, change(2, {"deletedAt": None})))
    assert await replica.write(lambda tx: tx.let_go(MS + 31 * 86_400_000)) == 0
    later = watch(MS + 31 * 86_400_000)
    await take(replica, logged(3, change(3, {"deletedAt": iso_ms(MS)})), watch=later)
    assert await replica.write(lambda tx: tx.let_go(MS + 32 * 86_400_000)) == 0
    # An edit of what is deleted does not make it live, and begins nothing anew.
    edited = watch(MS + 50 * 86_400_000)
    await take(replica, logged(4, change(4, {"title": "y"})), watch=edited)
    assert await replica.write(lambda tx: tx.let_go(MS + 62 * 86_400_000)) == 1


# Spaces


async def test_a_left_space_takes_nothing_and_shows_all(replica: Replica) -> None:
    """What waits is parked, what is here stays, nothing new is taken; forgotten, it is gone."""
    await take(replica, logged(1, change(1, {"title": "x"})))
    await replica.write(lambda tx: tx.add(SPACE, change(5, {"title": "y"}, device=HERE)))
    await replica.write(lambda tx: tx.leave_space(SPACE, now_ms=MS))
    assert await shown(replica) == {"title": "x"}
    assert [row.code for row in await replica.read(lambda tx: tx.refused())] == ["not-a-member"]
    (parked,) = await replica.read(lambda tx: tx.refused())
    with pytest.raises(SpaceLeft):
        await replica.write(lambda tx: tx.replace(parked, parked.message))
    assert len(await replica.read(lambda tx: tx.refused())) == 1
    with pytest.raises(SpaceLeft):
        await replica.write(lambda tx: tx.add(SPACE, change(6, {"title": "z"}, device=HERE)))
    await replica.write(lambda tx: tx.forget_space(SPACE))

    def left(tx: Tx) -> list[int]:
        names = ("records", "outbox", "aside", "gone", "overwritten", "spaces")
        return [tx._sql(f"select count(*) from {name}").fetchone()[0] for name in names]

    assert await replica.read(left) == [0] * 6


# Groups


async def test_a_group_that_cannot_be_made_anew_is_parked_as_a_whole(replica: Replica) -> None:
    """If one member cannot be sealed any more, none of the group is sent without it."""

    def fill(tx: Tx) -> None:
        tx.add(SPACE, change(1, {"title": "a"}, device=HERE, group="g"))
        tx.add(SPACE, change(2, {"title": "b"}, device=HERE, record="n2", group="g"))
        tx.add(SPACE, change(3, {"title": "c"}, device=HERE, record="n3"))
        tx.add(SPACE, change(4, {"title": "d"}, device=HERE, record="n4", group="g"))

    def anew(tx: Tx, row: Any) -> ChangeMessage:
        if row.message.id == "n2":
            raise Invalid("no key")
        return msgspec.structs.replace(row.message)

    await replica.write(fill)
    await replica.write(lambda tx: tx.reseal(SPACE, anew, now_ms=MS))
    rows = await replica.read(lambda tx: tx.refused())
    assert sorted((row.message.id, row.code) for row in rows) == [
        ("n1", "group-refused"),
        ("n2", "stale-key"),
        ("n4", "group-refused"),
    ]
    assert [row.message.id for row in await replica.read(lambda tx: tx.unacknowledged())] == ["n3"]


# A full disk


async def test_a_full_disk_is_named_and_half_of_nothing_is_written(tmp_path: Path) -> None:
    """A write that finds no room is not made at all, and says so; once there is room it works."""
    replica = await opened(tmp_path / "a.db")
    pages = await replica.read(lambda tx: tx._sql("pragma page_count").fetchone()[0])
    await replica.read(lambda tx: tx._sql(f"pragma max_page_count = {pages + 4}").fetchone())
    whole = change(1, {"title": "x" * 3_000}, device=HERE)
    await replica.write(lambda tx: tx.add(SPACE, whole))

    def much(tx: Tx) -> None:
        for number in range(20):
            message = change(number, {"title": "x" * 3_000}, device=HERE, record=f"m{number}")
            tx.add(SPACE, message)

    with pytest.raises(StorageFull) as failure:
        await replica.write(much)
    assert failure.value.code == "STORAGE_FULL"
    assert (await replica.read(lambda tx: tx.counts()))[0] == 1
    assert await shown(replica, "m0") is None
    await replica.read(lambda tx: tx._sql("pragma max_page_count = 100000").fetchone())
    await replica.write(much)
    assert (await replica.read(lambda tx: tx.counts()))[0] == 21
    await replica.close()


async def test_old_tombstones_make_room_on_a_full_disk(tmp_path: Path) -> None:
    """Before a full disk is named, what may go goes, and the write is made after all."""
    replica = await opened(tmp_path / "a.db")
    dead = [
        logged(number + 1, change(1, {"title": "x" * 3_000, "deletedAt": "d"}, record=f"d{number}"))
        for number in range(40)
    ]
    await take(replica, *dead)
    await replica.write(lambda tx: tx.set_meta("hubMs", str(MS + 40 * 86_400_000)))
    pages = await replica.read(lambda tx: tx._sql("pragma page_count").fetchone()[0])
    await replica.read(lambda tx: tx._sql(f"pragma max_page_count = {pages}").fetchone())

    def much(tx: Tx) -> None:
        for number in range(6):
            message = change(number, {"title": "x" * 3_000}, device=HERE, record=f"m{number}")
            tx.add(SPACE, message)

    await replica.write(much)
    assert await shown(replica, "m5") is not None
    assert await shown(replica, "d0") is None
    await replica.close()


# A process that dies between two statements


async def test_a_state_that_is_read_anew_twice_drops_nothing(replica: Replica) -> None:
    """Where the hub forgets the page in the middle, what was held before is still held after."""
    await take(replica, logged(1, change(1, {"title": "a"})))
    await take(replica, logged(2, change(2, {"title": "b"}, record="n2")))

    def work(tx: Tx) -> None:
        tx.read_anew(SPACE)
        tx.take_state(SPACE, [], head=1, page="notes~n1", known=known, **STATE)
        tx.restart_state(SPACE)
        tx.take_state(SPACE, [], head=1, page=None, known=known, **STATE)

    await replica.write(work)
    found = await replica.read(lambda tx: tx.all_held(SPACE, "notes"))
    assert {name: held.record.entries["title"].value for name, held in found.items()} == {
        "n1": "a",
        "n2": "b",
    }
    assert await replica.read(lambda tx: tx.held_only(SPACE)) == [("notes", "n1"), ("notes", "n2")]


async def test_what_is_held_only_goes_where_its_author_hides_it(replica: Replica) -> None:
    """A marker of the new log takes what was kept through a reading anew, and the note of it."""
    await take(replica, logged(4, change(1, {"title": "a"}, author=BOB)))

    def work(tx: Tx) -> None:
        tx.read_anew(SPACE)
        tx.take_state(SPACE, [], head=1, page=None, known=known, **STATE)

    await replica.write(work)
    await take(replica, hidden=(HiddenRecord(seq=2, table="notes", id="n1"),))
    assert await replica.read(lambda tx: tx.all_held(SPACE, "notes")) == {}
    assert await replica.read(lambda tx: tx.held_only(SPACE)) == []


async def test_a_new_log_decides_guarded_fields_whatever_the_old_places(replica: Replica) -> None:
    """After a reading anew, what the hub decides next stands, though its log is shorter by then."""
    await take(replica, logged(9, change(1, {"status": "old"})))
    await replica.write(lambda tx: tx.read_anew(SPACE))
    await replica.write(
        lambda tx: tx.take_state(SPACE, [], head=1, page=None, known=known, **STATE)
    )
    await take(replica, logged(2, change(2, {"status": "new"})))
    held = await replica.read(lambda tx: tx.held(SPACE, "notes", "n1"))
    assert held is not None
    assert held.record.entries["status"].value == "new"


class Dying(sqlite3.Connection):
    """Dies before the statement that is named; what follows does not happen either."""

    left: int | None = None

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._tick(sql)
        return super().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._tick(sql)
        return super().executemany(sql, *values)

    def _tick(self, sql: str) -> None:
        if Dying.left is None or sql == "rollback":
            return
        Dying.left -= 1
        if Dying.left < 0:
            raise sqlite3.OperationalError("died")


def _filled(tx: Tx) -> None:
    tx.add(SPACE, change(1, {"title": "a"}, device=HERE))
    tx.add(SPACE, change(2, {"title": "b"}, device=HERE, record="n2", group="g"))
    tx.add(SPACE, change(3, {"title": "c"}, device=HERE, record="n3", group="g"))
    tx.add(SPACE, change(4, {"content": "d"}, device=HERE))


def _settled(tx: Tx) -> None:
    fates: list[Any] = ["acknowledged", "restamp", "restamp", "rename"]
    rows = tx.unacknowledged()
    found = [
        Verdict(row.message.change_id, fate, seq=5, code="x")
        for row, fate in zip(rows, fates, strict=True)
    ]
    renamed = change(4, {"content": "d"}, device=HERE, name="c4-again")
    tx.settle(
        SPACE,
        found,
        now_ms=MS,
        restamp=lambda tx, row: row.message,
        rename=lambda tx, row: renamed,
        account_id=ADA,
    )


def _pulled(tx: Tx) -> None:
    tx.take_changes(
        SPACE,
        [
            logged(5, change(1, {"title": "a"}, device=HERE), HERE),
            logged(6, change(9, {"title": "theirs"})),
            logged(8, change(9, {"deletedAt": "d"}, record="n9")),
        ],
        8,
        known=known,
        hidden=[HiddenRecord(seq=7, table="notes", id="n2")],
        watch=watch(),
        anew=as_it_is,
        restamp=as_it_is,
    )


def _read_on(tx: Tx) -> None:
    entry = StateField(
        value="x",
        at=at(1),
        actor={"kind": "user", "principalId": ADA},
        origin="user",
        change_id="c1",
    )
    records = [
        StateRecord(
            table="notes",
            id=name,
            author_id=ADA,
            visibility="space",
            seq=9,
            fields={"title": entry},
        )
        for name in ("n1", "n3", "n7")
    ]
    tx.take_state(SPACE, records, head=9, page=None, known=known, **STATE)


STEPS: list[tuple[str, Callable[[Tx], object]]] = [
    ("add", _filled),
    ("batch", lambda tx: tx.batch(SPACE)),
    ("settle", _settled),
    ("pull", _pulled),
    ("state", _read_on),
    ("read anew", lambda tx: tx.read_anew(SPACE)),
    ("state anew", _read_on),
    ("reseal", lambda tx: tx.reseal(SPACE, lambda tx, row: row.message, now_ms=MS)),
    ("let-go", lambda tx: tx.let_go(MS + 40 * 86_400_000)),
    ("leave", lambda tx: tx.leave_space(SPACE, now_ms=MS)),
    ("forget", lambda tx: tx.forget_space(SPACE)),
]


def _dump(tx: Tx) -> dict[str, list[Any]]:
    names = [
        name
        for (name,) in tx._sql("select name from sqlite_master where type = 'table'").fetchall()
    ]
    return {name: tx._sql(f"select * from {name}").fetchall() for name in names}


async def test_a_death_between_any_two_statements_is_as_if_nothing_had_begun(
    tmp_path: Path,
) -> None:
    """Whatever was going on, the file is as before or as after, and the next try ends the same."""
    path = tmp_path / "a.db"
    deaths = 0
    Dying.left = None
    await (await opened(path)).close()
    for name, step in STEPS:
        number = 0
        while True:
            replica = await opened(path, factory=Dying)
            before = await replica.read(_dump)
            Dying.left = number
            try:
                await replica.write(step)
            except ReplicaBroken:
                deaths += 1
            else:
                Dying.left = None
                await replica.close()
                break
            finally:
                Dying.left = None
            await replica.close()
            again = await opened(path)
            assert await again.read(_dump) == before, (name, number)
            await again.close()
            number += 1
    assert deaths > 60


def test_held_is_what_lies_in_a_row() -> None:
    """A row keeps visibility, places and proofs."""
    held: Held = apply_change(
        None, change(1, {"status": "x"}, visibility="private"), seq=7, guarded=guarded
    )
    assert read_row("notes", "n1", write_row(held)) == held
    assert (held.seq, held.seqs) == (7, {"status": 7})


async def test_nothing_waits_in_a_space_that_is_not_kept(replica: Replica) -> None:
    """A space that another process removed from this device takes no change: none would send it."""
    await replica.write(lambda tx: tx.forget_space(SPACE))
    with pytest.raises(SpaceLeft):
        await replica.write(lambda tx: tx.add(SPACE, change(1, {"title": "lost"}, device=HERE)))
    assert await replica.read(lambda tx: tx.counts()) == (0, 0)


async def test_reading_a_state_anew_touches_what_it_drops(replica: Replica) -> None:
    """Whoever keeps a list in memory hears that its records went, until they are read again."""
    await take(replica, logged(1, change(1, {"title": "x"})))
    before = await replica.read(lambda tx: tx.touched("notes"))
    await replica.write(lambda tx: tx.restart_state(SPACE))
    assert await shown(replica) is None
    assert await replica.read(lambda tx: tx.touched("notes")) > before
