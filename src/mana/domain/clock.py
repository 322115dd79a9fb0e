"""Hybrid logical clock: one total order for writes made on many devices.

Pure: nobody here reads the time. Callers pass `now_ms`, so a test can replay a clock that
runs backwards. On the wire a stamp has one width and is ordered as a string:
`2026-11-21T05:23:00.123Z-0000-<device id>`, the counter in 4 hex digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.ids import DeviceId

DRIFT_MS_MAX: Final = 5 * 60 * 1_000
COUNTER_MAX: Final = 0xFFFF
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_HERE: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - its zone is written after it
_MS: Final = timedelta(milliseconds=1)
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d\.\d{3}Z", re.ASCII)
_STAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)-([0-9a-f]{4})"
    r"-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
)


def iso_ms(wall_ms: int) -> str:
    """Return milliseconds since 1970 as `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    try:
        moment = _EPOCH_HERE + timedelta(milliseconds=wall_ms)
    except OverflowError as error:
        raise Invalid("moment is outside the years that can be written") from error
    return moment.isoformat(timespec="milliseconds") + "Z"


def parse_iso_ms(text: str) -> int:
    """Return the milliseconds of an ISO moment with exactly three fraction digits and Z."""
    if _ISO.fullmatch(text) is None:
        raise Invalid("moment is not of the form 2026-11-21T05:23:00.123Z")
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MS
    except ValueError as error:
        raise Invalid("moment is not a day or time that exists") from error


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """When and where one field was written. Greater means later."""

    wall_ms: int
    counter: int
    device: DeviceId

    def __str__(self) -> str:
        """Return the wire form; strings compare as the stamps do."""
        return f"{iso_ms(self.wall_ms)}-{self.counter:04x}-{self.device}"


def parse_stamp(text: str) -> Stamp:
    """Return the stamp of a wire form; raise Invalid for any other text."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise Invalid("stamp is malformed")
    return Stamp(parse_iso_ms(match[1]), int(match[2], 16), DeviceId(match[3]))


def next_stamp(last: Stamp, *, now_ms: int) -> Stamp:
    """Return a stamp later than `last`, for a write made on this device."""
    if now_ms > last.wall_ms:
        return Stamp(now_ms, 0, last.device)
    if last.counter < COUNTER_MAX:
        return Stamp(last.wall_ms, last.counter + 1, last.device)
    # The counter is full: borrow a millisecond rather than wrap, because a wrapped stamp
    # would sort before writes the person saw happen first.
    return Stamp(last.wall_ms + 1, 0, last.device)


def observe(last: Stamp, seen: Stamp, *, hub_ms: int) -> Stamp:
    """Return this device's clock after it saw a stamp of another device.

    A stamp beyond hub time plus the bound does not drag this clock along: one broken clock
    must not spread.
    """
    if seen.wall_ms > hub_ms + DRIFT_MS_MAX or (seen.wall_ms, seen.counter) <= (
        last.wall_ms,
        last.counter,
    ):
        return last
    return Stamp(seen.wall_ms, seen.counter, last.device)


def is_ahead(stamp: Stamp, *, hub_ms: int) -> bool:
    """Say whether the hub must refuse this stamp as `clock-ahead`."""
    return stamp.wall_ms > hub_ms + DRIFT_MS_MAX
