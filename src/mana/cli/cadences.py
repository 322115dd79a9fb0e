"""A cadence as a person types it: `manual`, `30m`, `2h`, `daily 07:00`, `weekly sunday 10:00`,
`cron 0 7 * * mon-fri`, `on-change`, `on-change 2h` (at most so often), `on-change 2h after 10m`
(when what it looks at has rested so long).
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Final

from mana.domain.cadences import (
    MANUAL,
    Cadence,
    CadenceKind,
    cadence_from_wire,
)
from mana.domain.encoding import Json
from mana.domain.errors import Invalid

DAYS: Final = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_INTERVAL: Final = re.compile(r"(\d{1,6})\s*(m|min|minutes?|h|hours?|d|days?)")
_MINUTES: Final = {"m": 1, "h": 60, "d": 24 * 60}
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d\d)")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


class UnknownCadence(Invalid):
    """The words name no cadence."""

    code = "UNKNOWN_CADENCE"
    advice = (
        'Write manual, 30m, 2h, "daily 07:00", "weekly sunday 10:00", "cron 0 7 * * mon-fri" '
        'or "on-change 2h".'
    )


class OnChangeOutOfRange(Invalid):
    """How often a mission on change may run, or how long its inputs rest before, is out of range."""

    code = "ON_CHANGE_OUT_OF_RANGE"
    advice = (
        "It runs every 5 minutes at most, or as seldom as once in 366 days, after its inputs rested "
        'for 1 minute to a day. Write "on-change 30m", or "on-change 2h after 10m".'
    )


class UnknownDay(Invalid):
    """The words name no day."""

    code = "UNKNOWN_DAY"
    advice = "Write a day such as 2026-11-27, today, tomorrow or friday."


def cadence_from_words(text: str) -> Cadence:
    """Return the cadence of a person's words; raise UnknownCadence, or Invalid for bad values."""
    words = text.casefold().split()
    joined = " ".join(words)
    if joined in ("manual", "manually", "never"):
        return MANUAL
    if _INTERVAL.fullmatch(joined.removeprefix("every ")):
        minutes = _minutes(joined.removeprefix("every "))
        return cadence_from_wire({"kind": "interval", "everyMinutes": minutes})
    if len(words) == 2 and words[0] == "daily":
        return _at("daily", words[1])
    if len(words) == 3 and words[0] == "weekly":
        day = _day_of_week(words[1])
        if day is None:
            raise UnknownCadence("the day of a weekly cadence is a weekday's name")
        return _at("weekly", words[2], day=day)
    if len(words) > 1 and words[0] == "cron":
        # Its names of days and months are written in capitals.
        expression = " ".join(words[1:]).upper()
        return cadence_from_wire({"kind": "cron", "expression": expression})
    if words and words[0] in ("on-change", "onchange"):
        spacing, after, rest = " ".join(words[1:]).partition("after ")
        wire: dict[str, Json] = {"kind": "onChange"}
        if spacing:
            wire["spacingMinutes"] = _minutes(spacing.strip())
        if after:
            wire["debounceMinutes"] = _minutes(rest)
        try:
            return cadence_from_wire(wire)
        except Invalid:
            raise OnChangeOutOfRange(
                "a mission on change runs not so often, or not so late"
            ) from None
    raise UnknownCadence("the cadence is not one that Mana knows")


def day_from_words(text: str, *, today: date) -> str:
    """Return a day as `YYYY-MM-DD`; a weekday is the next one, today included."""
    word = text.casefold().strip()
    if _DAY.fullmatch(word):
        try:
            return date.fromisoformat(word).isoformat()
        except ValueError as error:
            raise UnknownDay("there is no such day") from error
    if word in ("today", "tomorrow"):
        return (today + timedelta(days=int(word == "tomorrow"))).isoformat()
    day = _day_of_week(word)
    if day is None:
        raise UnknownDay("the day is not one that Mana knows")
    ahead = (day - today.isoweekday() % 7) % 7
    return (today + timedelta(days=ahead)).isoformat()


def _minutes(text: str) -> int:
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise UnknownCadence("a time between two runs is written 30m or 2h")
    return int(found[1]) * _MINUTES[found[2][0]]


def _at(kind: CadenceKind, clock: str, *, day: int | None = None) -> Cadence:
    found = _CLOCK.fullmatch(clock)
    if found is None:
        raise UnknownCadence("the time of a cadence is written 07:00")
    wire: dict[str, Json] = {"kind": kind, "atHour": int(found[1]), "atMinute": int(found[2])}
    if day is not None:
        wire["dayOfWeek"] = day
    return cadence_from_wire(wire)


def _day_of_week(word: str) -> int | None:
    """Return 0 for Sunday to 6; None unless the word is a weekday or its first letters."""
    found = [day for day, name in enumerate(DAYS) if len(word) >= 3 and name.startswith(word)]
    return found[0] if found else None
