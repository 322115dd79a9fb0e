"""Laws of the device's side of sync: batches, verdicts, and the order of guarded values."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.device.elements import between
from mana.domain.clock import DRIFT_MS_MAX, Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import DeviceId
from mana.protocol.messages import (
    BATCH_BYTES_MAX,
    BATCH_CHANGES_MAX,
    ChangeMessage,
    FieldWrite,
    HiddenRecord,
    LoggedChange,
    PullAnswer,
    PushAnswer,
    PushResult,
    StateAnswer,
    StateField,
    StateRecord,
)
from mana.protocol.replication import (
    Held,
    HubDistrusted,
    Queued,
    apply_change,
    check_pull,
    check_state,
    next_batch,
    overlay,
    units,
    verdicts,
)

ACCOUNT = "00000000-0000-4000-8000-000000000001"
DEVICES = [DeviceId(f"00000000-0000-4000-8000-0000000000d{number}") for number in range(3)]
NOW = iso_ms(1_795_000_000_000)


def change(
    number: int,
    path: str,
    value: Json,
    *,
    wall_ms: int = 1_795_000_000_000,
    device: int = 0,
    group: str | None = None,
) -> ChangeMessage:
    at = str(Stamp(wall_ms, number, DEVICES[device]))
    return ChangeMessage(
        change_id=f"c{number}",
        table="notes",
        id="n1",
        op="update",
        fields={path: FieldWrite(value=value, at=at)},
        actor={"kind": "user", "principalId": ACCOUNT},
        origin="user",
        author_id=ACCOUNT,
        group=group,
    )


def is_guarded(table: str, path: str) -> bool:
    return path == "status"


queues = st.lists(
    st.tuples(
        st.integers(min_value=1, max_value=600_000),
        st.one_of(st.none(), st.sampled_from(["a", "b", "c"])),
    ),
    max_size=40,
).map(lambda found: [Queued(place, size, group) for place, (size, group) in enumerate(found)])


@given(queues)
def test_batches_take_everything_once_and_split_no_group(queue: list[Queued]) -> None:
    """Batch after batch, each change travels once, groups stay whole, and limits are kept."""
    sent: list[int] = []
    left = list(queue)
    while left:
        batch = next_batch(left)
        assert batch
        taken = [one for one in left if one.position in batch]
        if len(units(taken)) > 1:
            assert len(taken) <= BATCH_CHANGES_MAX
            assert sum(one.size for one in taken) < BATCH_BYTES_MAX
        left = [one for one in left if one.position not in batch]
        groups = {one.group for one in taken if one.group is not None}
        assert not groups & {one.group for one in left}
        sent += batch
    assert sorted(sent) == [one.position for one in queue]


def test_a_batch_holds_at_most_what_the_hub_takes() -> None:
    """501 small changes go in two batches, and none of them is lost."""
    queue = [Queued(place, 10, None) for place in range(BATCH_CHANGES_MAX + 1)]
    assert len(next_batch(queue)) == BATCH_CHANGES_MAX
    assert len(next_batch(queue, units_max=1)) == 1


@given(st.permutations(range(6)))
def test_the_order_of_unguarded_changes_does_not_matter(order: list[int]) -> None:
    """Whatever order changes come in, the same values stand."""
    changes = [change(number, f"p{number % 2}", number, device=number % 3) for number in range(6)]
    found: Held | None = None
    for number in order:
        found = apply_change(found, changes[number], seq=number + 1, guarded=is_guarded)
    assert found is not None
    assert {path: entry.value for path, entry in found.record.entries.items()} == {
        "p0": 4,
        "p1": 5,
    }


@given(st.permutations(range(4)), st.lists(st.integers(0, 1_000), min_size=4, max_size=4))
def test_guarded_values_follow_the_log_not_the_clock(order: list[int], walls: list[int]) -> None:
    """The newest place in the log stands, in whatever order and with whatever stamps."""
    changes = [
        change(number, "status", f"s{number}", wall_ms=1_795_000_000_000 + walls[number])
        for number in range(4)
    ]
    found: Held | None = None
    for number in itertools.chain(order, order):
        found = apply_change(found, changes[number], seq=number + 1, guarded=is_guarded)
    assert found is not None
    assert found.record.entries["status"].value == "s3"


def test_an_own_guarded_write_shows_until_the_log_says_otherwise() -> None:
    """What waits lies over the hub's value and leaves it as it was."""
    base = apply_change(None, change(1, "status", "staged"), seq=1, guarded=is_guarded)
    shown = overlay(base, [change(0, "status", "approved")], guarded=is_guarded)
    assert shown is not None
    assert shown.record.entries["status"].value == "approved"
    assert base.record.entries["status"].value == "staged"
    assert overlay(base, [], guarded=is_guarded) is base


def test_a_group_with_a_clock_ahead_is_stamped_anew_as_a_whole() -> None:
    """Members of a group that fell only for a clock are sent again together."""
    sent = [change(1, "a", 1, group="g"), change(2, "b", 1, group="g"), change(3, "c", 1)]
    answer = PushAnswer(
        results=[
            PushResult(change_id="c1", status="refused", code="clock-ahead"),
            PushResult(change_id="c2", status="refused", code="group-refused"),
            PushResult(change_id="c3", status="accepted", seq=4),
        ],
        cursor=4,
        hub_time=NOW,
    )
    assert [verdict.fate for verdict in verdicts(sent, answer)] == [
        "restamp",
        "restamp",
        "acknowledged",
    ]
    faulty = [
        PushResult(change_id="c1", status="refused", code="clock-ahead"),
        PushResult(change_id="c2", status="refused", code="role"),
        PushResult(change_id="c3", status="duplicate", seq=2),
    ]
    again = PushAnswer(results=faulty, cursor=4, hub_time=NOW)
    assert [verdict.fate for verdict in verdicts(sent, again)] == [
        "parked",
        "parked",
        "acknowledged",
    ]


@pytest.mark.parametrize(
    ("codes", "fates"),
    [
        (("stale-key", None), ("reseal", "acknowledged")),
        (("id-taken", None), ("rename", "acknowledged")),
        (("reseal-outdated", None), ("forgotten", "acknowledged")),
        (("flip-outdated", None), ("parked", "acknowledged")),
        (("stale-key", "group-refused"), ("reseal", "reseal")),
        (("id-taken", "group-refused"), ("rename", "reseal")),
        (("stale-key", "clock-ahead"), ("reseal", "restamp")),
        (("group-refused", "clock-ahead"), ("restamp", "restamp")),
        (("stale-key", "role"), ("parked", "parked")),
        (("group-refused", "group-refused"), ("parked", "parked")),
    ],
)
def test_what_a_refusal_means_for_a_group(
    codes: tuple[str, str | None], fates: tuple[str, str]
) -> None:
    """What can be made anew goes again, with its whole group or not at all; the rest is parked."""
    group = "g" if codes[1] is not None else None
    sent = [change(1, "a", 1, group=group), change(2, "b", 1, group=group)]
    results = [
        PushResult(change_id=f"c{number}", status="refused", code=code)
        if code is not None
        else PushResult(change_id=f"c{number}", status="accepted", seq=3)
        for number, code in enumerate(codes, start=1)
    ]
    found = verdicts(sent, PushAnswer(results=results, cursor=4, hub_time=NOW))
    assert tuple(verdict.fate for verdict in found) == fates


@pytest.mark.parametrize(
    ("seqs", "fine"),
    [
        ([], True),
        ([3, 5], True),
        ([6], True),
        ([2], False),
        ([5, 3], False),
        ([3, 3], False),
        ([4], False),
        ([7], False),
    ],
)
def test_markers_of_hidden_records_lie_in_their_page(seqs: list[int], fine: bool) -> None:
    """A marker outside (after, cursor], out of order, or in the place of a change is refused."""
    answer = PullAnswer(
        changes=[LoggedChange(seq=4, change=change(1, "a", 1), device_id=DEVICES[0])],
        cursor=6,
        hub_time=NOW,
        hidden=[HiddenRecord(seq=seq, table="notes", id=f"n{seq}") for seq in seqs],
    )

    def look() -> None:
        check_pull(answer, after=2, limit=9, space_type="team", now_ms=1_795_000_000_000)

    if fine:
        look()
        return
    with pytest.raises(HubDistrusted):
        look()


FINE = StateField(
    value="x",
    at=str(Stamp(1_795_000_000_000, 0, DEVICES[0])),
    actor={"kind": "user", "principalId": ACCOUNT},
    origin="user",
    change_id="c1",
)
AHEAD = str(Stamp(1_795_000_000_000 + 2 * DRIFT_MS_MAX, 0, DEVICES[0]))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    "wrong",
    [
        {"at": AHEAD},
        {"at": FINE.at[:-1]},
        {"actor": {"kind": "user"}},
        {"origin": "nobody"},
        {"change_id": ""},
        {"value": "\x00"},
        {"value": "enc:2:p1:x"},
    ],
    ids=str,
)
def test_every_value_of_a_page_is_looked_at(place: int, wrong: dict[str, Any]) -> None:
    """One malformed value makes the page a lie, wherever among fine ones of its record it is."""
    fields = {f"f{number}": FINE for number in range(4)}

    def look(found: dict[str, StateField]) -> None:
        record = StateRecord("notes", "n1", ACCOUNT, "space", 1, found)
        answer = StateAnswer(records=[record], head=1, hub_time=NOW)
        check_state(answer, space_type="team", now_ms=1_795_000_000_000)

    look(fields)
    with pytest.raises(HubDistrusted):
        look({**fields, f"f{place}": msgspec.structs.replace(FINE, **wrong)})
    if wrong.keys() <= {"at", "value"}:
        written = {
            path: FieldWrite(value=one.value, at=one.at)
            for path, one in {
                **fields,
                f"f{place}": msgspec.structs.replace(FINE, **wrong),
            }.items()
        }
        one = msgspec.structs.replace(change(1, "a", 1), fields=written)
        logged = LoggedChange(seq=1, change=one, device_id="d")
        with pytest.raises(HubDistrusted):
            check_pull(
                PullAnswer(changes=[logged], cursor=1, hub_time=NOW),
                after=0,
                limit=9,
                space_type="team",
                now_ms=1_795_000_000_000,
            )


@pytest.mark.parametrize("at", ["2026-02-30", "2026-13-01", "0000-01-01", "2026-1x-01"])
def test_a_stamp_of_no_day_is_refused(at: str) -> None:
    """A stamp that names no moment, or no device, is not taken from a page."""
    one = change(1, "a", 1)
    stamp = one.fields["a"].at
    for text in (at + stamp[10:], stamp[:-1] + "g", stamp.replace("T", "t"), stamp + "0"):
        wrong = msgspec.structs.replace(one, fields={"a": FieldWrite(value=1, at=text)})
        answer = PullAnswer(
            changes=[LoggedChange(seq=1, change=wrong, device_id="d")], cursor=1, hub_time=NOW
        )
        with pytest.raises(HubDistrusted):
            check_pull(answer, after=0, limit=9, space_type="team", now_ms=1_795_000_000_000)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [PushResult(change_id="c2", status="accepted", seq=1)],
        [PushResult(change_id="c1", status="accepted")],
        [PushResult(change_id="c1", status="maybe", seq=1)],
    ],
)
def test_an_answer_that_does_not_fit_settles_nothing(results: list[PushResult]) -> None:
    """Missing, foreign, placeless or unknown results are refused."""
    answer = PushAnswer(results=results, cursor=1, hub_time=NOW)
    with pytest.raises(HubDistrusted):
        verdicts([change(1, "a", 1)], answer)


@given(st.lists(st.booleans(), max_size=40))
def test_there_is_always_a_position_between(turns: list[bool]) -> None:
    """However often something is put between two elements, it lies strictly between."""
    low, high = "", "V"
    for is_low in turns:
        middle = between(low, high)
        assert low < middle < high
        low, high = (middle, high) if is_low else (low, middle)
    assert between(high, None) > high
