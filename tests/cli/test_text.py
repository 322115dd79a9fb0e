"""Nothing that somebody wrote drives the terminal, and times read as people say them."""

from __future__ import annotations

import json
from datetime import UTC, date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.cli.cadences import UnknownCadence, UnknownDay, cadence_from_words, day_from_words
from mana.cli.naming import NameAmbiguous, NameUnknown, resolve, resolve_step, short_step, shorts
from mana.cli.output import encode
from mana.cli.text import harmless, left, one_line, when
from mana.domain.cadences import Cadence
from tests.cli.fake_host import NOW_MS

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
anything = st.text(st.characters(codec=None, exclude_categories=()))


@given(anything)
def test_text_is_harmless(text: str) -> None:
    """No control character but line feed and tab, and no mark of direction, is printed."""
    shown = harmless(text)
    shown.encode("utf-8")
    for character in shown:
        code = ord(character)
        assert character in "\n\t" or (code >= 0x20 and not 0x7F <= code <= 0x9F)
        assert not 0x202A <= code <= 0x202E
        assert not 0x2066 <= code <= 0x2069
    assert "\n" not in one_line(text)


@given(st.dictionaries(anything, anything))
def test_json_is_harmless_and_means_the_same(document: dict[str, str]) -> None:
    """A JSON document has no character that a terminal obeys, and loses nothing."""
    encoded = encode(document)
    encoded.encode("utf-8")
    assert harmless(encoded) == encoded
    assert json.loads(encoded) == json.loads(json.dumps(document))


@pytest.mark.parametrize(
    ("apart_ms", "words"),
    [
        (0, "now"),
        (-30_000, "just now"),
        (-3 * MINUTE, "3 min ago"),
        (20 * MINUTE, "in 20 min"),
        (-2 * HOUR, "today 05:03"),
        (-DAY, "yesterday 07:03"),
        (DAY, "tomorrow 07:03"),
        (3 * DAY, "Tuesday 07:03"),
        (-10 * DAY, "11 Nov 07:03"),
        (100 * DAY, "1 Mar 2027"),
    ],
)
def test_times_read_as_people_say_them(apart_ms: int, words: str) -> None:
    """A moment near now is told by its distance, a far one by its date."""
    assert when(NOW_MS + apart_ms, now_ms=NOW_MS, zone=UTC) == words


def test_time_left_is_told_to_the_minute() -> None:
    """What is left of a grant is not told longer than it is, by more than a minute."""
    assert left(NOW_MS + 7 * DAY - 9_000, now_ms=NOW_MS) == "7 days left"
    assert left(NOW_MS + 2 * DAY - 2 * MINUTE, now_ms=NOW_MS) == "47 hours left"
    assert left(NOW_MS + 89 * MINUTE, now_ms=NOW_MS) == "90 minutes left"
    assert left(NOW_MS + 1, now_ms=NOW_MS) == "1 minute left"
    assert left(NOW_MS, now_ms=NOW_MS) == "over"


@pytest.mark.parametrize(
    ("words", "cadence"),
    [
        ("manual", Cadence("manual")),
        ("30m", Cadence("interval", every_minutes=30)),
        ("every 2 hours", Cadence("interval", every_minutes=120)),
        ("daily 07:00", Cadence("daily", at_hour=7)),
        ("Weekly Sunday 10:30", Cadence("weekly", day_of_week=0, at_hour=10, at_minute=30)),
        ("weekly sat 9:05", Cadence("weekly", day_of_week=6, at_hour=9, at_minute=5)),
    ],
)
def test_cadences_are_read(words: str, cadence: Cadence) -> None:
    """A cadence is what its words say."""
    assert cadence_from_words(words) == cadence


@pytest.mark.parametrize("words", ["", "sometimes", "daily", "daily 7", "weekly s 10:00"])
def test_unknown_cadences_are_refused(words: str) -> None:
    """Words that name no cadence are not guessed at."""
    with pytest.raises(UnknownCadence):
        cadence_from_words(words)


def test_cron_and_changes_are_written_in_words() -> None:
    """Five fields of cron, and how often a change may start a run, are read as they are typed."""
    assert cadence_from_words("cron 0 7 * * mon-fri").expression == "0 7 * * MON-FRI"
    assert cadence_from_words("on-change").spacing_minutes == 60
    assert cadence_from_words("on-change 2h").spacing_minutes == 120


def test_days_are_read() -> None:
    """A weekday is the next one, today included."""
    saturday = date(2026, 11, 21)
    assert day_from_words("today", today=saturday) == "2026-11-21"
    assert day_from_words("Saturday", today=saturday) == "2026-11-21"
    assert day_from_words("fri", today=saturday) == "2026-11-27"
    assert day_from_words("2026-12-01", today=saturday) == "2026-12-01"
    for word in ("2026-02-30", "someday", "s"):
        with pytest.raises(UnknownDay):
            day_from_words(word, today=saturday)


@given(st.sets(st.uuids().map(str), min_size=1, max_size=12))
def test_a_shown_id_names_its_thing(ids: set[str]) -> None:
    """What a list shows of an id is enough to name it in the next command."""
    for ident, short in shorts(ids).items():
        assert resolve(short, [(one, "") for one in ids], "note") == ident


def test_an_ambiguous_name_lists_the_candidates() -> None:
    """Of several things with a name none is chosen; their ids are told."""
    pairs = [("aaaa-1", "Diary"), ("aaaa-2", "diary"), ("bbbb-3", "Shopping")]
    with pytest.raises(NameAmbiguous) as raised:
        resolve("Diary", pairs, "note")
    assert raised.value.detail["ids"] == ["aaaa-1", "aaaa-2"]
    assert resolve("bbbb", pairs, "note") == "bbbb-3"
    assert resolve("shop", pairs, "note") == "bbbb-3"
    for unknown in ("zz", "aaa", ""):
        with pytest.raises(NameUnknown):
            resolve(unknown, pairs, "note")


def test_a_step_is_named_by_what_the_inbox_shows() -> None:
    """The shortened id of a step names it, also where an iteration has ten steps or more."""
    one, other = "0a1b2c3d-0000-8000-8000-000000000001", "0a1b2c3e-0000-8000-8000-000000000001"
    steps = [f"{one}-{index}" for index in range(12)] + [f"{other}-0"]
    for step in steps:
        assert resolve_step(short_step(step, steps), steps) == step
        assert resolve_step(f"step:{step}", steps) == step
    assert resolve_step("0a1b2c3e", steps) == f"{other}-0"
    with pytest.raises(NameAmbiguous):
        resolve_step("0a1b2c3d", steps)
    with pytest.raises(NameUnknown):
        resolve_step("ffffffff-0", steps)
