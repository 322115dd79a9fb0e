"""Text on its way to a terminal: made harmless, and times as people say them.

What a person, an agent or another member wrote may hold escape sequences that would retitle,
repaint or drive the terminal, and marks that show a line in another order than it has. None of
them leaves this process as it is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import Final

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
# Control characters except line feed and tab, marks of direction that reorder what follows,
# line separators that a terminal or a log may take for a new line, and halves of pairs.
_HARMFUL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)
_IN_JSON: Final = re.compile("[\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")
_LINE_ENDS: Final = re.compile(r"\r\n?")


def harmless(text: str) -> str:
    """Return the text with every character that a terminal would obey shown as a sign."""
    return _HARMFUL.sub(_sign, _LINE_ENDS.sub("\n", text))


def one_line(text: str, width_max: int | None = None) -> str:
    """Return harmless text on one line, cut with an ellipsis at `width_max` characters."""
    line = " ".join(harmless(text).split())
    if width_max is None or len(line) <= width_max:
        return line
    return line[: max(1, width_max) - 1] + "…"


def harmless_json(encoded: str) -> str:
    """Return a JSON text in which such characters are escaped; it means the same."""
    return _IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded)


def when(at_ms: int | None, *, now_ms: int, zone: tzinfo | None = None) -> str:
    """Return a moment as people say it: `3 min ago`, `today 07:02`, `in 2 hours`, `3 Mar 2026`.

    `zone` None: the machine's own.
    """
    if at_ms is None:
        return "never"
    apart_ms = at_ms - now_ms
    if -MINUTE_MS < apart_ms < MINUTE_MS:
        return "now" if apart_ms >= 0 else "just now"
    if -HOUR_MS < apart_ms < HOUR_MS:
        minutes = abs(apart_ms) // MINUTE_MS
        return f"in {minutes} min" if apart_ms > 0 else f"{minutes} min ago"
    at, now = _local(at_ms, zone), _local(now_ms, zone)
    clock = at.strftime("%H:%M")
    days = (at.date() - now.date()).days
    if days in (-1, 0, 1):
        return f"{('yesterday', 'today', 'tomorrow')[days + 1]} {clock}"
    if 1 < days < 7:
        return f"{at.strftime('%A')} {clock}"
    if at.year == now.year:
        return f"{at.day} {at.strftime('%b')} {clock}"
    return f"{at.day} {at.strftime('%b')} {at.year}"


def left(until_ms: int, *, now_ms: int) -> str:
    """Return how long it is until a moment: `6 days left`, `40 minutes left`, `over`."""
    apart_ms = until_ms - now_ms
    if apart_ms <= 0:
        return "over"
    # A grant of seven days is said to have them still a few seconds later.
    apart_ms += MINUTE_MS
    for size_ms, word in ((24 * HOUR_MS, "day"), (HOUR_MS, "hour"), (MINUTE_MS, "minute")):
        # From two of a unit on it is told in that unit, so that nothing is rounded to "1 day".
        if apart_ms >= 2 * size_ms:
            return f"{apart_ms // size_ms} {word}s left"
    return "1 minute left"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 change`, `3 changes`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def bar(part: int, whole: int, width: int) -> str:
    """Return a share as a bar of at most `width` cells; anything at all shows."""
    return "█" * min(width, -(-part * width // whole)) if part > 0 and whole > 0 else ""


def agent_words(name: str, avatar: str) -> str:
    """Return an agent's name, after its avatar where that is a sign and no letter."""
    sign = avatar.strip()
    shown = f"{sign} {name}" if sign and not sign.isalnum() else name
    return one_line(shown, 80) or "An agent"


def _local(at_ms: int, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(at_ms / 1_000, tz=UTC).astimezone(zone)


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
