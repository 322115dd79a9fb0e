"""When a mission is due again: a pure function of cadence, zone and anchor.

Never of when something finished, so every runner and device computes the same occurrences.
Wall-clock times follow the mission's own zone. A time that a spring change skips moves by the
gap; a time that an autumn change repeats is taken once, the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mana.domain.encoding import Json
from mana.domain.errors import Invalid

CadenceKind = Literal["manual", "interval", "daily", "weekly", "cron", "onChange"]
KINDS: Final = ("manual", "interval", "daily", "weekly", "cron", "onChange")
MINUTES_MAX: Final = 366 * 24 * 60
_MEMBERS: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "manual": {},
    "interval": {"everyMinutes": (1, MINUTES_MAX)},
    "daily": {"atHour": (0, 23), "atMinute": (0, 59)},
    "weekly": {"dayOfWeek": (0, 6), "atHour": (0, 23), "atMinute": (0, 59)},
}


class CadenceUnsupported(Invalid):
    """A cadence that is named in the format, and that this version does not run."""

    code = "CADENCE_UNSUPPORTED"
    advice = "Choose manual, interval, daily or weekly."


@dataclass(frozen=True, slots=True)
class Cadence:
    """A validated cadence. `day_of_week`: 0 is Sunday, as in the reference."""

    kind: CadenceKind
    every_minutes: int = 0
    day_of_week: int = 0
    at_hour: int = 0
    at_minute: int = 0

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form, a tagged union on `kind`."""
        values: dict[str, Json] = {
            "everyMinutes": self.every_minutes,
            "dayOfWeek": self.day_of_week,
            "atHour": self.at_hour,
            "atMinute": self.at_minute,
        }
        return {"kind": self.kind, **{name: values[name] for name in _MEMBERS[self.kind]}}


MANUAL: Final = Cadence("manual")


def cadence_from_wire(value: Json) -> Cadence:
    """Return the cadence of a stored form.

    Raises CadenceUnsupported for `cron` and `onChange`, Invalid for anything malformed.
    """
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise Invalid("cadence kind is one of: " + ", ".join(KINDS))
    kind: CadenceKind = value["kind"]  # type: ignore[assignment]
    members = _MEMBERS.get(kind)
    if members is None:
        raise CadenceUnsupported(f"cadence {kind} is not run by this version")
    numbers: dict[str, int] = {}
    for name, (low, high) in members.items():
        number = value.get(name, 0 if name == "atMinute" else None)
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise Invalid(f"cadence {kind} needs {name} from {low} to {high}")
        numbers[name] = number
    if not set(value) <= {"kind", *members}:
        raise Invalid(f"cadence {kind} has members that are not known")
    return Cadence(
        kind,
        every_minutes=numbers.get("everyMinutes", 0),
        day_of_week=numbers.get("dayOfWeek", 0),
        at_hour=numbers.get("atHour", 0),
        at_minute=numbers.get("atMinute", 0),
    )


def zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name; raise Invalid if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid("time zone is not an IANA name such as Europe/Berlin") from error


def next_due(cadence: Cadence, zone_name: str, *, anchor_ms: int, after_ms: int) -> int | None:
    """Return the first due moment later than `after_ms`, or None for a manual cadence.

    `anchor_ms` fixes the phase of an interval: occurrences are anchor + k * interval, k >= 1.
    """
    if cadence.kind == "manual":
        return None
    if cadence.kind == "interval":
        step = cadence.every_minutes * 60_000
        passed = max(0, (after_ms - anchor_ms) // step)
        return anchor_ms + (passed + 1) * step
    where = zone(zone_name)
    local = datetime.fromtimestamp(after_ms / 1_000, tz=UTC).astimezone(where)
    at = time(cadence.at_hour, cadence.at_minute)
    for days in range(-1, 9):
        day = local.date() + timedelta(days=days)
        if cadence.kind == "weekly" and day.isoweekday() % 7 != cadence.day_of_week:
            continue
        due_ms = round(datetime.combine(day, at, tzinfo=where).timestamp()) * 1_000
        if due_ms > after_ms:
            return due_ms
    raise Invalid("cadence has no next moment")


def describe(cadence: Cadence) -> str:
    """Return the cadence in words, for sentences on the page and in the terminal."""
    if cadence.kind == "manual":
        return "when you say so"
    if cadence.kind == "interval":
        if cadence.every_minutes % 60 == 0:
            hours = cadence.every_minutes // 60
            return "every hour" if hours == 1 else f"every {hours} hours"
        minutes = cadence.every_minutes
        return "every minute" if minutes == 1 else f"every {minutes} minutes"
    clock = f"{cadence.at_hour:02d}:{cadence.at_minute:02d}"
    if cadence.kind == "daily":
        return f"every day at {clock}"
    names = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    return f"every {names[cadence.day_of_week]} at {clock}"
