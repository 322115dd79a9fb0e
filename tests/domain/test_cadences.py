"""Cadences: due moments are a pure function of cadence, zone and anchor."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.cadences import (
    Cadence,
    cadence_from_wire,
    describe,
    next_due,
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


@given(CADENCES, ZONES, MOMENTS, st.integers(0, 40_000_000))
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
