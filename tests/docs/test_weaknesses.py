"""Every weakness that is known has its line, and every test that a line names exists."""

from __future__ import annotations

import ast
import functools
import re

from tests.docs.test_pages import ROOT

PAGE = (ROOT / "docs" / "weaknesses.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`")
ROW = re.compile(r"^\| ([SCKB]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
KNOWN = [
    *(f"S{number}" for number in range(1, 16)),
    *(f"C{number}" for number in range(1, 16)),
    *(f"K{number}" for number in range(1, 12)),
    *(f"B{number}" for number in range(1, 8)),
]


@functools.cache
def names_in(path: str) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_weakness_has_a_line() -> None:
    """Each known weakness stands on the page once, with what would catch it."""
    assert [match[1] for match in ROW.finditer(PAGE)] == KNOWN
    assert all(match[2].strip() and match[3].strip() for match in ROW.finditer(PAGE))


def test_named_tests_exist() -> None:
    """The page names no test that is not there; a test that goes or is renamed fails here."""
    named = NAMED.findall(PAGE)
    assert len(named) == PAGE.count("::") > 60
    missing = sorted(
        f"{path}::{name}"
        for path, name in set(named)
        if not (ROOT / path).is_file() or name not in names_in(path)
    )
    assert missing == []


def test_named_tests_promise_something() -> None:
    """Every weakness of this layer, S and C, is caught by at least one test."""
    for number, _, caught in ROW.findall(PAGE):
        if number[0] in "SC":
            assert NAMED.search(caught), number
