"""Which tests a page names, and whether they are there."""

from __future__ import annotations

import ast
import functools
import re

from tests.docs.test_pages import ROOT

NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`")


@functools.cache
def names_in(path: str) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def missing_tests(page: str) -> list[str]:
    """Return the tests that a page names and that are not there."""
    return sorted(
        f"{path}::{name}"
        for path, name in set(NAMED.findall(page))
        if not (ROOT / path).is_file() or name not in names_in(path)
    )
