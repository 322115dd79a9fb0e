"""Every test says what would be false if it failed."""

from __future__ import annotations

import ast

from tests.tooling.files import ROOT, tracked_files


def test_every_test_has_a_promise() -> None:
    """A test without a docstring proves nothing that anybody can name."""
    silent = []
    for path in tracked_files():
        if not (path.is_relative_to(ROOT / "tests") and path.name.startswith("test_")):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_test and node.name.startswith("test_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}::{node.name}")
    assert silent == []
