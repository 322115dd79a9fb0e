"""Every weakness that is known has its line, and every test that a line names exists."""

from __future__ import annotations

import re

from tests.docs.naming import NAMED, missing_tests
from tests.docs.test_pages import ROOT

PAGE = (ROOT / "docs" / "weaknesses.md").read_text("utf-8")
ROW = re.compile(r"^\| ([SCKWB]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
KNOWN = [
    *(f"S{number}" for number in range(1, 16)),
    *(f"C{number}" for number in range(1, 16)),
    *(f"K{number}" for number in range(1, 12)),
    "W8",
    "W29",
    "W33",
    *(f"B{number}" for number in range(1, 8)),
    *(f"W{number}" for number in range(1, 41) if number not in (8, 29, 33)),
]
NOT_YET = {"W17", "W38"}
"""Of parts that Mana does not have: there is nothing to test."""


def test_every_weakness_has_a_line() -> None:
    """Each known weakness stands on the page once, with what would catch it."""
    assert [match[1] for match in ROW.finditer(PAGE)] == KNOWN
    assert all(match[2].strip() and match[3].strip() for match in ROW.finditer(PAGE))


def test_named_tests_exist() -> None:
    """The page names no test that is not there; a test that goes or is renamed fails here."""
    assert len(NAMED.findall(PAGE)) == PAGE.count("::") > 150
    assert missing_tests(PAGE) == []


def test_named_tests_promise_something() -> None:
    """Every weakness of what is there, S, C and W, is caught by at least one test."""
    for number, _, caught in ROW.findall(PAGE):
        if number[0] in "SCW" and number not in NOT_YET:
            assert NAMED.search(caught), number
