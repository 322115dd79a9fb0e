"""Times and texts as people say them."""

from __future__ import annotations

from datetime import date

import pytest
from markupsafe import Markup

from mana.device.views import Cited, ModelView
from mana.web.doors import cookie_name, is_ours, is_same_site
from mana.web.showing import described, field_words, hue, line, named_first, told
from mana.web.words import DAY_MS, HOUR_MS, MINUTE_MS, ago, day_words, left, t

NOW = 1_790_000_000_000


@pytest.mark.parametrize(
    ("apart_ms", "words"),
    [
        (0, "just now"),
        (-20_000, "20 s ago"),
        (20_000, "in 20 s"),
        (-MINUTE_MS, "1 minute ago"),
        (5 * MINUTE_MS, "in 5 minutes"),
        (-HOUR_MS, "1 hour ago"),
        (2 * HOUR_MS, "in 2 hours"),
    ],
)
def test_moments_near_now_are_told_by_distance(apart_ms: int, words: str) -> None:
    """A person reads how long ago or how soon, not a number."""
    assert ago(NOW + apart_ms, NOW) == words


@pytest.mark.parametrize(
    ("left_ms", "words"),
    [
        (-1, "ended"),
        (10_000, "1 minute left"),
        (3 * HOUR_MS, "3 hours left"),
        (7 * DAY_MS, "7 days left"),
        (7 * DAY_MS - 9_000, "7 days left"),
        (7 * DAY_MS - 11 * HOUR_MS, "6 days left"),
        (2 * DAY_MS - 2 * MINUTE_MS, "47 hours left"),
        (89 * MINUTE_MS, "90 minutes left"),
        (1, "1 minute left"),
    ],
)
def test_time_left_is_told(left_ms: int, words: str) -> None:
    """A grant's sign says how long it still holds."""
    assert left(NOW + left_ms, NOW) == words


def test_days_near_today_have_names() -> None:
    """Today, tomorrow and the days of this week are not dates."""
    today = date(2026, 11, 21)
    days = [date(2026, 11, 21), date(2026, 11, 22), date(2026, 11, 20), date(2026, 11, 27)]
    assert [day_words(day, today) for day in days] == ["today", "tomorrow", "yesterday", "Friday"]
    assert day_words(date(2027, 3, 3), today) == "3 March 2027"


def test_values_in_texts_are_escaped() -> None:
    """A value that is put into a text of the page cannot bring markup."""
    assert t("Hello {name}", name="<b>") == Markup("Hello &lt;b&gt;")
    assert told("Add task “<i>”, due soon <b>") == Markup(
        "Add task <strong>&lt;i&gt;</strong>, due soon &lt;b&gt;"
    )
    assert field_words("<u>") == Markup("&lt;u&gt;")


def test_a_hue_follows_from_the_id() -> None:
    """An agent has the same hue on every device."""
    assert hue("agent-1") == hue("agent-1")
    assert 0 <= hue("agent-2") < 12


def test_long_first_lines_are_cut() -> None:
    """A list shows the start of a text in one line."""
    assert line("\n one\ntwo") == "one"
    assert len(line("x" * 500)) == 80


def test_names_of_hosts_are_compared_whole() -> None:
    """A name that only starts or ends like ours is foreign."""
    assert is_ours("LOCALHOST:1", ())
    assert not is_ours("notlocalhost", ())
    assert not is_ours("127.0.0.1@evil.example", ())
    assert is_ours("desk.home", {"desk.home"})
    assert cookie_name("127.0.0.1:5173") == "mana_5173"
    assert not is_same_site("127.0.0.1:1", origin="null", fetched_from=None)


def test_a_card_shows_the_inputs_that_its_reason_names() -> None:
    """An input that is named by its quoted title or its id is shown; without any, all are."""
    offer, garden = Cited("notes", "n1", "The offer"), Cited("notes", "n2", "Garden")
    assert named_first([garden, offer], "“The offer” says so.") == ([offer], [garden])
    assert named_first([garden, offer], "See notes:n2.") == ([garden], [offer])
    assert named_first([garden, offer], "The garden says so.") == ([garden, offer], [])


def test_a_model_is_told_once() -> None:
    """A description that begins with the model's name does not repeat it beside the name."""
    text = "rules (offline): finds dates; not a language model"
    model = ModelView("rules:offline", "rules (offline)", text, True)
    assert described(model) == "Finds dates; not a language model."
