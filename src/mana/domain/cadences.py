"""When a mission is due again: a pure function of cadence, zone and anchor.

Never of when something finished, so every runner and device computes the same occurrences.
Wall-clock times follow the mission's own zone. A time that a spring change skips moves by the
gap; a time that an autumn change repeats is taken once, the first.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from heapq import heappop, heappush
from itertools import islice
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from mana.domain.encoding import Json
from mana.domain.errors import Invalid

_EPOCH: Final = datetime(2024, 1, 1)  # noqa: DTZ001 - a time on the wall, of any zone
_MS: Final = timedelta(milliseconds=1)
_SHIFT: Final = timedelta(hours=3)
"""More than any clock is put forward or back by."""
_FIELD: Final = re.compile(r"[0-9A-Za-z*/,#-]+")
_DAY_MS: Final = 24 * 60 * 60 * 1_000
_PERIOD_MS: Final = {"daily": _DAY_MS, "weekly": 7 * _DAY_MS}
_LOST_MAX: Final = 180
"""Moments of a cron expression that a change of the clock may leave out: one for each minute."""
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
    fields = value.split()
    if len(fields) != 5:
        raise Invalid("a cron expression has five fields: minute hour day month weekday")
    expression = " ".join(fields)
    try:
        # The library means only ASCII, and tells some of what it does not know by an assertion.
        if not all(_FIELD.fullmatch(field) for field in fields):
            raise CronSimError
        next(CronSim(expression, _EPOCH))
    except (CronSimError, StopIteration, AssertionError, ValueError, OverflowError):
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
    if cadence.kind == "cron":
        return _next_cron(cadence.expression, where, after_ms)
    local = _instant(after_ms).astimezone(where)
    at = time(cadence.at_hour, cadence.at_minute)
    for days in range(-1, 9):
        day = local.date() + timedelta(days=days)
        if cadence.kind == "weekly" and day.isoweekday() % 7 != cadence.day_of_week:
            continue
        due_ms = round(datetime.combine(day, at, tzinfo=where).timestamp()) * 1_000
        if due_ms > after_ms:
            return due_ms
    raise Invalid("cadence has no next moment")


def overdue(
    cadence: Cadence, zone_name: str, *, anchor_ms: int, due_ms: int, now_ms: int, kept: int
) -> tuple[tuple[int, ...], int]:
    """Return the due moments that passed since `due_ms`, oldest first, and the newest of all.

    The newest `kept` of those before it are named, at a cost that does not grow with the time that
    passed: a year off line is half a million moments of a mission that is due every minute.
    """
    if cadence.kind == "interval":
        step = cadence.every_minutes * 60_000
        newest = due_ms + max(0, (now_ms - due_ms) // step) * step
        first = max(due_ms, newest - kept * step)
        return tuple(range(first, newest, step)), newest
    if cadence.kind in ("manual", "onChange"):
        return (), due_ms
    moments = deque([due_ms], maxlen=kept + 1)
    if cadence.kind == "cron":
        where = zone(zone_name)
        after_ms = _reach_of_cron(cadence.expression, where, due_ms, now_ms, kept)
        for found in _cron_moments(cadence.expression, where, _instant(after_ms)):
            if (moment_ms := (found - _instant(0)) // _MS) > now_ms:
                break
            moments.append(moment_ms)
        *passed, newest = moments
        return tuple(passed), newest
    after_ms = max(due_ms, now_ms - (kept + 2) * _PERIOD_MS[cadence.kind])
    while (
        moment := next_due(cadence, zone_name, anchor_ms=anchor_ms, after_ms=after_ms)
    ) is not None and moment <= now_ms:
        moments.append(moment)
        after_ms = moment
    *passed, newest = moments
    return tuple(passed), newest


def _next_cron(expression: str, where: ZoneInfo, after_ms: int) -> int | None:
    """Return the first moment of a cron expression after a moment.

    Around changes of the clock as Debian's cron: what names its hour comes right after a gap that
    skips it, and once where the hour is repeated; what comes every minute or hour follows the clock.

    The library is only asked for times on the wall: what it makes of a zone depends on where it
    starts. Nearly always one time is the answer; near a change of the clock all times that could be
    are looked at.
    """
    after = _instant(after_ms)
    wall = after.astimezone(where).replace(tzinfo=None)
    found = next(CronSim(expression, wall), None)
    if found is None:
        return None
    if _is_steady(where, after):
        moment = found.replace(tzinfo=where).astimezone(UTC)
        if _is_steady(where, moment):
            return (moment - _instant(0)) // _MS
    first = next(_cron_moments(expression, where, after), None)
    return None if first is None else (first - _instant(0)) // _MS


def _cron_moments(expression: str, where: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Yield the moments of a cron expression after a moment, each once, in their order."""
    wall = after.astimezone(where).replace(tzinfo=None)
    newest, waiting = after, list[datetime]()
    for due in CronSim(expression, wall - _SHIFT):
        # Whatever follows on the wall is not earlier than this, however the clock is changed.
        settled = due.replace(tzinfo=where).astimezone(UTC) - _SHIFT
        while waiting and waiting[0] < settled:
            if (moment := heappop(waiting)) > newest:
                newest = moment
                yield moment
        for moment in _moments_of(expression, due, where):
            heappush(waiting, moment)
    yield from (moment for moment in sorted({*waiting}) if moment > newest)


def _moments_of(expression: str, wall: datetime, where: ZoneInfo) -> Iterator[datetime]:
    """Yield the moments (UTC) at which a time on the wall of a cron expression is due."""
    minute, hour, *_ = expression.split()
    follows_clock = minute.startswith("*") or hour.startswith("*")
    first = wall.replace(tzinfo=where)
    moment = first.astimezone(UTC)
    if moment.astimezone(where).replace(tzinfo=None) != wall:
        # A time that was skipped. By the offset before the gap it is past it, by the one after it
        # is before it; in between, to the minute, the gap ends.
        if not follows_clock:
            low, high = first.replace(fold=1).astimezone(UTC), moment
            before = low.astimezone(where).utcoffset()
            while high - low > timedelta(minutes=1):
                middle = low + (high - low) / 2
                if middle.astimezone(where).utcoffset() == before:
                    low = middle
                else:
                    high = middle
            yield high.replace(second=0, microsecond=0)
        return
    yield moment
    again = first.replace(fold=1).astimezone(UTC)
    if follows_clock and again != moment:
        yield again


def _reach_of_cron(expression: str, where: ZoneInfo, due_ms: int, now_ms: int, kept: int) -> int:
    """Return a moment from `due_ms` on, after which at least `kept` moments of a cron passed."""
    wall = _instant(now_ms).astimezone(where).replace(tzinfo=None)
    first = _instant(due_ms).astimezone(where).replace(tzinfo=None)
    reached = wall
    for reached in islice(CronSim(expression, wall, reverse=True), kept + _LOST_MAX):
        if reached <= first:
            break
    moment = (reached - _SHIFT).replace(tzinfo=where).astimezone(UTC)
    return max(due_ms, (moment - _instant(0)) // _MS)


def _is_steady(where: ZoneInfo, moment: datetime) -> bool:
    """Say whether no change of the clock is near a moment."""
    offsets = {
        (moment + distance).astimezone(where).utcoffset()
        for distance in (-_SHIFT, timedelta(), _SHIFT)
    }
    return len(offsets) == 1


def _instant(wall_ms: int) -> datetime:
    """Return the moment of these milliseconds since 1970, exactly."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=wall_ms)


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
