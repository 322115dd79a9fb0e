"""The page's words: one place where text is chosen, and times as people say them.

`t` looks a text up by its English form, so a second language is one more catalogue, and fills
named places with escaped values. Pure, apart from the clocks by which a request shows moments: those
of the account's time zone, and of this machine where nobody is signed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from markupsafe import Markup

from mana.domain.cadences import zone
from mana.domain.errors import Invalid

CATALOGUES: Final[Mapping[str, Mapping[str, str]]] = {"en": {}}
"""By language, the text for each English one; a text that is missing stays English."""

LANGUAGE: Final = "en"
_CLOCKS: Final[ContextVar[ZoneInfo | None]] = ContextVar("clocks", default=None)
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def t(text: str, /, *, language: str = LANGUAGE, **values: object) -> Markup:
    """Return the text in the person's language, with each `{name}` filled and escaped."""
    chosen = CATALOGUES.get(language, {}).get(text, text)
    trusted = Markup(chosen)  # noqa: S704 - a text of the page, never of a person
    return trusted.format(**values) if values else trusted


def counted(number: int, one: str, many: str) -> Markup:
    """Return the number with its noun; both forms are texts of the catalogue."""
    return t(one if number == 1 else many, n=f"{number:,}")


def set_clocks(zone_name: str) -> None:
    """Show moments by the clocks of a time zone from here on, in this request; by UTC if unknown."""
    try:
        _CLOCKS.set(zone(zone_name))
    except Invalid:
        _CLOCKS.set(zone("UTC"))


def clocks() -> str:
    """Return the time zone by whose clocks moments are shown; empty for this machine's."""
    where = _CLOCKS.get()
    return "" if where is None else where.key


def local(ms: int) -> datetime:
    """Return the moment on the wall clocks by which it is shown."""
    return datetime.fromtimestamp(ms / 1_000, tz=UTC).astimezone(_CLOCKS.get())


def iso(ms: int) -> str:
    """Return the moment for a `datetime` attribute."""
    return local(ms).isoformat(timespec="seconds")


def exact(ms: int) -> str:
    """Return the moment in full, for whoever hovers over it."""
    at = local(ms)
    return f"{t(DAYS[at.weekday()])} {day_name(at.date())}, {at:%H:%M:%S %Z}"


def clock(ms: int) -> str:
    """Return the time of day."""
    return f"{local(ms):%H:%M}"


def is_clock_here(zone_name: str, ms: int) -> bool:
    """Say whether the clocks of a time zone show a moment as the page does."""
    where = zone(zone_name) if zone_name else None
    return where is None or local(ms).utcoffset() == local(ms).astimezone(where).utcoffset()


def day_name(day: date) -> str:
    """Return `3 March 2026`."""
    return f"{day.day} {t(MONTHS[day.month - 1])} {day.year}"


def day_words(day: date, today: date) -> Markup:
    """Return a day as people say it: today, tomorrow, Friday, 3 March."""
    apart = (day - today).days
    near = {0: "today", 1: "tomorrow", -1: "yesterday"}
    if apart in near:
        return t(near[apart])
    if 1 < apart < 7:
        return t(DAYS[day.weekday()])
    if day.year == today.year:
        return t("{day} {month}", day=day.day, month=t(MONTHS[day.month - 1]))
    return t("{day}", day=day_name(day))


def ago(ms: int, now_ms: int) -> Markup:
    """Return how far the moment is from now, in words, in either direction."""
    apart = abs(ms - now_ms)
    past = ms <= now_ms
    if apart < 5_000:
        return t("just now") if past else t("now")
    if apart < MINUTE_MS:
        number, one, many = apart // 1_000, "{n} s ago", "{n} s ago"
        if not past:
            one = many = "in {n} s"
    elif apart < HOUR_MS:
        number, one, many = round(apart / MINUTE_MS), "1 minute ago", "{n} minutes ago"
        if not past:
            one, many = "in 1 minute", "in {n} minutes"
    elif apart < 12 * HOUR_MS:
        number, one, many = round(apart / HOUR_MS), "1 hour ago", "{n} hours ago"
        if not past:
            one, many = "in 1 hour", "in {n} hours"
    else:
        at, now = local(ms), local(now_ms)
        named = day_words(at.date(), now.date())
        return t("{day} at {time}", day=named, time=f"{at:%H:%M}")
    return t(one if number == 1 else many, n=number)


def moment(ms: int, now_ms: int) -> Markup:
    """Return when something is, by the clock: at 07:05, tomorrow at 07:05."""
    at = local(ms)
    if at.date() == local(now_ms).date():
        return t("at {time}", time=f"{at:%H:%M}")
    return t("{day} at {time}", day=day_words(at.date(), local(now_ms).date()), time=f"{at:%H:%M}")


def left(ms: int, now_ms: int) -> Markup:
    """Return how much time is left until the moment, as the terminal has it."""
    apart = ms - now_ms
    if apart <= 0:
        return t("ended")
    # Seven days are told as seven a few seconds later, and nothing is told a minute too long.
    apart += MINUTE_MS
    if apart >= 2 * DAY_MS:
        return t("{n} days left", n=apart // DAY_MS)
    if apart >= 2 * HOUR_MS:
        return t("{n} hours left", n=apart // HOUR_MS)
    return counted(apart // MINUTE_MS, "1 minute left", "{n} minutes left")


def heading(ms: int, now_ms: int) -> Markup:
    """Return the day of a moment as a heading: Today, Yesterday, Friday 20 November."""
    day, today = local(ms).date(), local(now_ms).date()
    if day == today:
        return t("Today")
    if day == today - timedelta(days=1):
        return t("Yesterday")
    name = t(
        "{weekday} {day} {month}",
        weekday=t(DAYS[day.weekday()]),
        day=day.day,
        month=t(MONTHS[day.month - 1]),
    )
    return name if day.year == today.year else t("{day} {year}", day=name, year=day.year)
