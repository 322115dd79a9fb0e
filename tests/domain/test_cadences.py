"""Cadences: due moments are a pure function of cadence, zone and anchor."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.cadences import (
    Cadence,
    cadence_from_wire,
    describe,
    next_due,
    overdue,
)
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.errors import Invalid

BERLIN = "Europe/Berlin"
ZONES = st.sampled_from([BERLIN, "UTC", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata"])
CADENCES = st.one_of(
    st.builds(Cadence, st.just("interval"), every_minutes=st.integers(1, 10_000)),
    st.builds(Cadence, st.just("daily"), at_hour=st.integers(0, 23), at_minute=st.integers(0, 59)),
    st.builds(
        Cadence,
        st.just("weekly"),
        day_of_week=st.integers(0, 6),
        at_hour=st.integers(0, 23),
        at_minute=st.integers(0, 59),
    ),
)
FIELDS = [(0, 59), (0, 23), (1, 28), (1, 12), (0, 7)]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """Return a field of cron: a star, a number, a step, a range or a list."""
    number = st.integers(low, high).map(str)
    span = st.tuples(st.integers(low, high), st.integers(low, high)).map(
        lambda pair: f"{min(pair)}-{max(pair)}"
    )
    step = st.integers(1, 30).map(lambda n: f"*/{n}")
    return st.one_of(
        st.just("*"), number, span, step, st.lists(number, min_size=1, max_size=4).map(",".join)
    )


CRONS = st.builds(
    lambda parts: Cadence("cron", expression=" ".join(parts)),
    st.tuples(*(field(*span) for span in FIELDS)),
)
NIGHTS = st.sampled_from(
    [
        parse_iso_ms(f"{day}T{hour:02d}:00:00.000Z")
        for day in ("2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25", "2026-04-04")
        for hour in range(0, 24, 2)
    ]
)
"""Around changes of the clock in several zones."""
MOMENTS = st.integers(
    parse_iso_ms("2020-01-01T00:00:00.000Z"), parse_iso_ms("2040-01-01T00:00:00.000Z")
)

# Facts of the reference system (engine 4.2): Europe/Berlin, from 2026-04-14T10:00Z, a Tuesday.
FACTS = [
    ({"kind": "daily", "atHour": 18, "atMinute": 30}, "2026-04-14T16:30:00.000Z"),
    ({"kind": "daily", "atHour": 6, "atMinute": 0}, "2026-04-15T04:00:00.000Z"),
    ({"kind": "daily", "atHour": 12, "atMinute": 0}, "2026-04-15T10:00:00.000Z"),
    ({"kind": "weekly", "dayOfWeek": 5, "atHour": 9}, "2026-04-17T07:00:00.000Z"),
    ({"kind": "weekly", "dayOfWeek": 2, "atHour": 9}, "2026-04-21T07:00:00.000Z"),
    ({"kind": "weekly", "dayOfWeek": 2, "atHour": 15}, "2026-04-14T13:00:00.000Z"),
    ({"kind": "weekly", "dayOfWeek": 2, "atHour": 12}, "2026-04-21T10:00:00.000Z"),
    ({"kind": "weekly", "dayOfWeek": 1, "atHour": 9}, "2026-04-20T07:00:00.000Z"),
]


@pytest.mark.parametrize(("wire", "expected"), FACTS)
def test_next_due_agrees_with_the_reference(wire: dict[str, object], expected: str) -> None:
    """The next moment is the one that people of the reference system know."""
    from_ms = parse_iso_ms("2026-04-14T10:00:00.000Z")
    due = next_due(cadence_from_wire(wire), BERLIN, anchor_ms=from_ms, after_ms=from_ms)  # type: ignore[arg-type]
    assert due is not None
    assert iso_ms(due) == expected


@pytest.mark.parametrize(
    ("after", "hour", "minute", "expected"),
    [
        ("2026-03-28T12:00:00.000Z", 2, 30, "2026-03-29T01:30:00.000Z"),
        ("2026-10-24T12:00:00.000Z", 2, 30, "2026-10-25T00:30:00.000Z"),
        ("2026-03-28T12:00:00.000Z", 9, 0, "2026-03-29T07:00:00.000Z"),
    ],
)
def test_daylight_saving_moves_a_skipped_time_and_takes_a_repeated_one_once(
    after: str, hour: int, minute: int, expected: str
) -> None:
    """A mission at 02:30 runs once on the nights on which the clocks change."""
    cadence = Cadence("daily", at_hour=hour, at_minute=minute)
    due = next_due(cadence, BERLIN, anchor_ms=0, after_ms=parse_iso_ms(after))
    assert due is not None
    assert iso_ms(due) == expected
    following = next_due(cadence, BERLIN, anchor_ms=0, after_ms=due)
    assert following is not None
    assert following - due >= 22 * 3_600_000


@given(CADENCES | CRONS, ZONES, MOMENTS | NIGHTS, st.integers(0, 40_000_000))
def test_due_moments_do_not_depend_on_when_one_asks(
    cadence: Cadence, zone: str, after_ms: int, later_ms: int
) -> None:
    """Whoever asks between two due moments gets the same next one."""
    anchor_ms = parse_iso_ms("2020-01-01T00:00:00.000Z")
    due = next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=after_ms)
    assert due is not None
    assert due > after_ms
    asked_later = min(after_ms + later_ms, due - 1)
    assert next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=asked_later) == due


@given(CADENCES)
def test_cadences_survive_the_wire(cadence: Cadence) -> None:
    """A stored cadence is read back as it was, and has words."""
    assert cadence_from_wire(cadence.to_wire()) == cadence
    assert describe(cadence).startswith("every ")


def test_manual_is_never_due() -> None:
    """A manual mission runs only when the person says so."""
    assert next_due(Cadence("manual"), "UTC", anchor_ms=0, after_ms=0) is None


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "daily",
        {"kind": "interval", "everyMinutes": 0},
        {"kind": "interval", "everyMinutes": -5},
        {"kind": "interval", "everyMinutes": float("nan")},
        {"kind": "interval", "everyMinutes": True},
        {"kind": "interval"},
        {"kind": "daily", "atHour": 25, "atMinute": 0},
        {"kind": "weekly", "dayOfWeek": 7, "atHour": 9},
        {"kind": "manual", "everyMinutes": 5},
    ],
)
def test_cadences_that_could_run_away_are_refused(wire: object) -> None:
    """Zero, negative and impossible cadences never become a schedule."""
    with pytest.raises(Invalid):
        cadence_from_wire(wire)  # type: ignore[arg-type]


def test_the_day_of_week_is_that_of_the_zone() -> None:
    """Sunday 00:30 in Auckland is a Saturday in UTC, and still the person's Sunday."""
    cadence = Cadence("weekly", day_of_week=0, at_hour=0, at_minute=30)
    due = next_due(
        cadence, "Pacific/Auckland", anchor_ms=0, after_ms=parse_iso_ms("2026-11-20T00:00:00.000Z")
    )
    assert due is not None
    assert datetime.fromtimestamp(due / 1_000, tz=UTC).isoweekday() == 6


@given(CRONS, ZONES, MOMENTS | NIGHTS)
def test_cron_moments_follow_the_wall(cadence: Cadence, zone: str, after_ms: int) -> None:
    """Each moment of a cron is later than the one before, and on the wall as it was written."""
    where, moments = ZoneInfo(zone), [after_ms]
    for _ in range(5):
        due = next_due(cadence, zone, anchor_ms=0, after_ms=moments[-1])
        assert due is not None
        moments.append(due)
    assert moments == sorted(set(moments))
    minute, hour, *_ = cadence.expression.split()
    for due in moments[1:]:
        wall = datetime.fromtimestamp(due / 1_000, tz=UTC).astimezone(where)
        was_skipped = (wall - timedelta(minutes=1)).utcoffset() != (
            datetime.fromtimestamp(due / 1_000 - 60, tz=UTC).astimezone(where).utcoffset()
        ) or wall.utcoffset() != (
            datetime.fromtimestamp(due / 1_000 - 60, tz=UTC).astimezone(where).utcoffset()
        )
        if not was_skipped:
            assert matches(minute, wall.minute)
            assert matches(hour, wall.hour)


def matches(text: str, number: int) -> bool:
    """Say whether a field of minutes or hours names a number."""
    for part in text.split(","):
        if part == "*" or part == str(number):
            return True
        if part.startswith("*/") and number % int(part[2:]) == 0:
            return True
        low, _, high = part.partition("-")
        if high and int(low) <= number <= int(high):
            return True
    return False


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # A time that is skipped comes right after the gap, and only once.
        (BERLIN, "15,30 2 * * *", "2026-03-29T00:00:00.000Z", ["29T01:00", "30T00:15"]),
        # One that is repeated comes the first time only, also for who asks in between.
        (BERLIN, "30 2 * * *", "2026-10-24T12:00:00.000Z", ["25T00:30", "26T01:30"]),
        (BERLIN, "0-59/30 2 * * *", "2026-10-25T01:10:00.000Z", ["26T01:00", "26T01:30"]),
        # What follows the clock comes in both hours.
        (BERLIN, "*/30 * * * *", "2026-10-25T00:20:00.000Z", ["25T00:30", "25T01:00", "25T01:30"]),
        (BERLIN, "0 * * * *", "2026-03-29T00:10:00.000Z", ["29T01:00", "29T02:00"]),
        # Half an hour back: 01:30 to 02:00 comes twice.
        ("Australia/Lord_Howe", "* 2 * * *", "2026-04-04T14:50:00.000Z", ["04T15:30", "04T15:31"]),
        ("America/St_Johns", "0 9 * * 1", "2026-11-20T00:00:00.000Z", ["23T12:30", "30T12:30"]),
    ],
)
def test_cron_around_changes_of_the_clock(
    zone: str, expression: str, after: str, expected: list[str]
) -> None:
    """Around a change of the clock nothing is lost, and nothing that names its hour comes twice."""
    cadence = cadence_from_wire({"kind": "cron", "expression": expression})
    after_ms = parse_iso_ms(after)
    for wanted in expected:
        due = next_due(cadence, zone, anchor_ms=0, after_ms=after_ms)
        assert due is not None
        assert iso_ms(due)[8:16] == wanted
        after_ms = due


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "0 0 30 2 *",
        "5-1 * * * *",
        "*/0 * * * *",
        "\u0663 * * * *",
        "\u00b2L * * * *",
        "* * * * \u00b2L",
        "* * LW/2,LW/3/4 * *",
        "1/1/1/1 * * * *",
        "@daily",
        "0 0 * * MON#9",
        "99999999999999999999999999999999999999 * * * *",
        "-1 * * * *",
        "0\x00 0 * * *",
        "* * * * *" + " " * 200,
        ",".join(["0"] * 100) + " * * * *",
    ],
)
def test_hostile_cron_expressions_are_refused(expression: str) -> None:
    """What is no expression, or never comes, is refused at once and never becomes a schedule."""
    with pytest.raises(Invalid):
        cadence_from_wire({"kind": "cron", "expression": expression})


@given(
    st.lists(
        st.text("0123456789*/,-#LWlwMONmonJAN?%+.\u0663\u00b2", min_size=1, max_size=24),
        min_size=5,
        max_size=5,
    )
)
def test_any_cron_expression_is_refused_or_comes(fields: list[str]) -> None:
    """Whatever is written, it is refused, or its moments come; nothing else happens, and soon."""
    try:
        cadence = cadence_from_wire({"kind": "cron", "expression": " ".join(fields)})
    except Invalid:
        return
    after_ms = parse_iso_ms("2026-03-29T00:30:00.000Z")
    due = next_due(cadence, BERLIN, anchor_ms=0, after_ms=after_ms)
    assert due is None or due > after_ms


@given(CRONS, ZONES, MOMENTS | NIGHTS, st.integers(0, 40 * 24 * 60), st.integers(1, 12))
def test_overdue_of_cron_is_what_one_would_count(
    cadence: Cadence, zone: str, from_ms: int, minutes: int, kept: int
) -> None:
    """What passed is what one finds by going from moment to moment, of which the newest are kept."""
    due = next_due(cadence, zone, anchor_ms=0, after_ms=from_ms)
    assert due is not None
    now_ms = due + minutes * 60_000
    missed, newest = overdue(cadence, zone, anchor_ms=0, due_ms=due, now_ms=now_ms, kept=kept)
    following = next_due(cadence, zone, anchor_ms=0, after_ms=newest)
    assert newest <= now_ms
    assert following is None or following > now_ms
    moments = [*missed, newest]
    for earlier, later in itertools.pairwise(moments):
        assert next_due(cadence, zone, anchor_ms=0, after_ms=earlier) == later
    assert len(missed) == kept or moments[0] == due


@pytest.mark.parametrize("zone", ["UTC", BERLIN, "Australia/Lord_Howe"])
def test_a_year_off_line_is_counted_at_once(zone: str) -> None:
    """Half a million moments that passed cost no more than a hundred."""
    cadence = Cadence("cron", expression="* * * * *")
    now_ms = parse_iso_ms("2026-10-25T03:00:30.000Z")
    began = time.process_time()
    missed, newest = overdue(
        cadence, zone, anchor_ms=0, due_ms=now_ms - 365 * 86_400_000, now_ms=now_ms, kept=100
    )
    assert time.process_time() - began < 1
    assert (len(missed), newest) == (100, now_ms - 30_000)
    assert {later - earlier for earlier, later in itertools.pairwise(missed)} == {60_000}
