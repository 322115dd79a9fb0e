"""When a mission is due again: a pure function of cadence, zone and anchor.

Never of when something finished, so every runner and device computes the same occurrences.
Wall-clock times follow the mission's own zone. A time that a spring change skips moves by the
gap; a time that an autumn change repeats is taken once, the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from mana.domain.encoding import Json
from mana.domain.errors import Invalid

_EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
CadenceKind = Literal["manual", "interval", "daily", "weekly", "cron", "onChange"]
KINDS: Final = ("manual", "interval", "daily", "weekly", "cron", "onChange")
MINUTES_MAX: Final = 366 * 24 * 60
EXPRESSION_MAX: Final = 128
DEBOUNCE_MINUTES: Final = 5
SPACING_MINUTES: Final = 60
_MEMBERS: Final[dict[str, dict[str, tuple[int, int, int | None]]]] = {
    "manual": {},
    "interval": {"everyMinutes": (1, MINUTES_MAX, None)},
    "daily": {"atHour": (0, 23, None), "atMinute": (0, 59, 0)},
    "weekly": {"dayOfWeek": (0, 6, None), "atHour": (0, 23, None), "atMinute": (0, 59, 0)},
    "cron": {},
    "onChange": {
        "debounceMinutes": (1, 24 * 60, DEBOUNCE_MINUTES),
        "spacingMinutes": (5, MINUTES_MAX, SPACING_MINUTES),
    },
}
"""By kind its whole numbers: the lowest, the highest, and what stands where there is none."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """A validated cadence. `day_of_week`: 0 is Sunday, as in the reference.

    `expression`: five fields of cron, in the mission's zone. `debounce_minutes`: how long an input
    must have rested after a change; `spacing_minutes`: how far apart two such runs are at least.
    """

    kind: CadenceKind
    every_minutes: int = 0
    day_of_week: int = 0
    at_hour: int = 0
    at_minute: int = 0
    expression: str = ""
    debounce_minutes: int = 0
    spacing_minutes: int = 0

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form, a tagged union on `kind`."""
        values: dict[str, Json] = {
            "everyMinutes": self.every_minutes,
            "dayOfWeek": self.day_of_week,
            "atHour": self.at_hour,
            "atMinute": self.at_minute,
            "debounceMinutes": self.debounce_minutes,
            "spacingMinutes": self.spacing_minutes,
        }
        wire: dict[str, Json] = {name: values[name] for name in _MEMBERS[self.kind]}
        if self.kind == "cron":
            wire["expression"] = self.expression
        return {"kind": self.kind, **wire}


MANUAL: Final = Cadence("manual")


def cadence_from_wire(value: Json) -> Cadence:
    """Return the cadence of a stored form; raise Invalid for anything malformed."""
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise Invalid("cadence kind is one of: " + ", ".join(KINDS))
    kind: CadenceKind = value["kind"]  # type: ignore[assignment]
    members = _MEMBERS[kind]
    numbers: dict[str, int] = {}
    for name, (low, high, otherwise) in members.items():
        number = value.get(name, otherwise)
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise Invalid(f"cadence {kind} needs {name} from {low} to {high}")
        numbers[name] = number
    known = {"kind", *members, *(("expression",) if kind == "cron" else ())}
    if not set(value) <= known:
        raise Invalid(f"cadence {kind} has members that are not known")
    return Cadence(
        kind,
        every_minutes=numbers.get("everyMinutes", 0),
        day_of_week=numbers.get("dayOfWeek", 0),
        at_hour=numbers.get("atHour", 0),
        at_minute=numbers.get("atMinute", 0),
        expression=_expression(value.get("expression")) if kind == "cron" else "",
        debounce_minutes=numbers.get("debounceMinutes", 0),
        spacing_minutes=numbers.get("spacingMinutes", 0),
    )


def _expression(value: Json) -> str:
    """Return a cron expression in its one form; raise Invalid for one that never comes."""
    if not isinstance(value, str) or len(value) > EXPRESSION_MAX:
        raise Invalid(f"a cron expression is a text of at most {EXPRESSION_MAX} characters")
    expression = " ".join(value.split())
    if expression.count(" ") != 4:
        raise Invalid("a cron expression has five fields: minute hour day month weekday")
    try:
        next(CronSim(expression, _EPOCH))
    except (CronSimError, StopIteration):
        raise Invalid("the cron expression is not one, or its moment never comes") from None
    return expression


def zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name; raise Invalid if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid("time zone is not an IANA name such as Europe/Berlin") from error


def next_due(cadence: Cadence, zone_name: str, *, anchor_ms: int, after_ms: int) -> int | None:
    """Return the first due moment later than `after_ms`, None where no clock says when.

    `anchor_ms` fixes the phase of an interval: occurrences are anchor + k * interval, k >= 1. A
    manual mission waits for its person, one on change for its inputs.
    """
    if cadence.kind in ("manual", "onChange"):
        return None
    if cadence.kind == "interval":
        step = cadence.every_minutes * 60_000
        passed = max(0, (after_ms - anchor_ms) // step)
        return anchor_ms + (passed + 1) * step
    where = zone(zone_name)
    local = datetime.fromtimestamp(after_ms / 1_000, tz=UTC).astimezone(where)
    if cadence.kind == "cron":
        return _next_cron(cadence.expression, local, after_ms)
    at = time(cadence.at_hour, cadence.at_minute)
    for days in range(-1, 9):
        day = local.date() + timedelta(days=days)
        if cadence.kind == "weekly" and day.isoweekday() % 7 != cadence.day_of_week:
            continue
        due_ms = round(datetime.combine(day, at, tzinfo=where).timestamp()) * 1_000
        if due_ms > after_ms:
            return due_ms
    raise Invalid("cadence has no next moment")


def _next_cron(expression: str, local: datetime, after_ms: int) -> int | None:
    """Return the first moment of a cron expression after a local time.

    Around changes of the clock as Debian's cron: what is skipped comes right after the gap, and what
    is named by the hour comes once where an hour is repeated.
    """
    for moment in islice(CronSim(expression, local), 4):
        due_ms = round(moment.timestamp()) * 1_000
        if due_ms > after_ms:
            return due_ms
    return None


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
    if cadence.kind == "cron":
        return f"at the times of “{cadence.expression}”"
    if cadence.kind == "onChange":
        return f"when an input changes, at most every {cadence.spacing_minutes} minutes"
    clock = f"{cadence.at_hour:02d}:{cadence.at_minute:02d}"
    if cadence.kind == "daily":
        return f"every day at {clock}"
    names = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    return f"every {names[cadence.day_of_week]} at {clock}"
