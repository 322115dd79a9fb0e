"""Documents point at files that exist."""

from __future__ import annotations

import re

from tests.tooling.files import ROOT, tracked_files

LINK = re.compile(r"\]\((?P<target>[^)\s#]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def test_relative_links_resolve() -> None:
    """A reader who follows a link inside the project arrives."""
    dead = []
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        for match in LINK.finditer(FENCE.sub("", path.read_text("utf-8"))):
            target = match["target"]
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert dead == []
