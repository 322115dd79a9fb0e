"""The clock orders all writes, whatever the wall clocks do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.clock import (
    COUNTER_MAX,
    DRIFT_MS_MAX,
    Stamp,
    is_ahead,
    iso_ms,
    next_stamp,
    observe,
    parse_iso_ms,
    parse_stamp,
)
from mana.domain.errors import Invalid
from tests.domain.strategies import DEVICES, stamps


@given(stamps, st.integers(min_value=0, max_value=4_000_000_000_000))
def test_next_stamp_is_later_on_any_clock(last: Stamp, now_ms: int) -> None:
    """A device's next write sorts after its last one, even if its clock ran backwards."""
    assert next_stamp(last, now_ms=now_ms) > last


@given(stamps, stamps)
def test_wire_order_is_stamp_order(one: Stamp, two: Stamp) -> None:
    """Stamps compare as strings exactly as they compare as values, and have one width."""
    assert (str(one) < str(two)) == (one < two)
    assert len(str(one)) == 66


@given(stamps)
def test_stamp_survives_the_wire(stamp: Stamp) -> None:
    """Parsing a stamp's wire form gives the stamp back."""
    assert parse_stamp(str(stamp)) == stamp


@given(st.integers(min_value=-62_135_596_800_000, max_value=253_402_300_799_999))
def test_moments_survive_the_wire(wall_ms: int) -> None:
    """Every millisecond from year 1 to 9999 has one text, and it parses back."""
    assert parse_iso_ms(iso_ms(wall_ms)) == wall_ms


def test_a_full_counter_borrows_a_millisecond() -> None:
    """A wrapped counter would sort before writes the person saw happen first."""
    last = Stamp(5, COUNTER_MAX, DEVICES[0])
    assert next_stamp(last, now_ms=5) == Stamp(6, 0, DEVICES[0])


def test_a_broken_clock_does_not_spread() -> None:
    """A stamp beyond hub time plus the bound leaves this device's clock alone."""
    mine = Stamp(1_000, 0, DEVICES[0])
    far = Stamp(1_000 + DRIFT_MS_MAX + 1, 0, DEVICES[1])
    assert observe(mine, far, hub_ms=1_000) == mine
    assert is_ahead(far, hub_ms=1_000)
    near = Stamp(1_000 + DRIFT_MS_MAX, 7, DEVICES[1])
    assert observe(mine, near, hub_ms=1_000) == Stamp(near.wall_ms, 7, DEVICES[0])
    assert not is_ahead(near, hub_ms=1_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21T05:23:00Z-0000-00000000-0000-0000-0000-000000000001",
        "2026-11-21T05:23:00.123Z-00G0-00000000-0000-0000-0000-000000000001",
        "2026-13-21T05:23:00.123Z-0000-00000000-0000-0000-0000-000000000001",
        "2026-11-21T05:23:00.123Z-0000-00000000-0000-0000-0000-00000000000A",
        "2026-11-21T05:23:00.123Z-0000-00000000-0000-0000-0000-000000000001 ",
    ],
)
def test_malformed_stamps_are_refused(text: str) -> None:
    """A stamp that would not sort with the others never gets in."""
    with pytest.raises(Invalid):
        parse_stamp(text)
