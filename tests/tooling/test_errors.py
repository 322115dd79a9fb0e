"""The list of error codes is the code's own, and no code means two things."""

from __future__ import annotations

import re
from collections import defaultdict

from mana.domain.errors import ManaError
from tools import errors

SHARED = {"PORT_TAKEN"}
"""Codes that two programs give to the same fact."""


def test_the_page_lists_what_the_code_has() -> None:
    """Whoever reads docs/protocol/errors.md reads every code, and none that does not exist."""
    assert errors.PAGE.read_text("utf-8") == errors.page(), "run: python tools/errors.py"


def test_a_code_has_one_meaning() -> None:
    """No two errors share a code, except where two programs name one fact."""
    by_code: defaultdict[str, list[type[ManaError]]] = defaultdict(list)
    for error in errors.errors():
        by_code[error.code].append(error)
    assert {code for code, found in by_code.items() if len(found) > 1} <= SHARED
    assert len(by_code) > 100


def test_every_code_says_what_it_means() -> None:
    """Each code is UPPER_SNAKE, and comes with a sentence on what happened."""
    for error in errors.errors():
        assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", error.code), error
        assert errors.meaning(error).endswith((".", "`")), error
