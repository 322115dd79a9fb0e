"""The threat model names a test for each thing that an attacker cannot do, and each test is there."""

from __future__ import annotations

import re

from tests.docs.naming import NAMED, missing_tests
from tests.docs.test_pages import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
MODEL = PAGE[PAGE.index("## Threat model") : PAGE.index("## Shared spaces")]
SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| (?!cannot|---)(.+?) \| (.+) \|$", re.MULTILINE)


def test_every_attacker_is_named() -> None:
    """Whoever is thought of as an attacker has a section that says what they can."""
    titles = SECTION.findall(MODEL)
    for who in ("database", "operator", "member", "removed", "runner key", "device", "model"):
        assert any(who in title.lower() for title in titles), who
    for section in MODEL.split("\n### ")[1:]:
        assert "- **Can**" in section, section.splitlines()[0]


def test_what_they_cannot_is_tested() -> None:
    """Each line of what an attacker cannot do names at least one test that exists."""
    rows = ROW.findall(MODEL)
    assert len(rows) > 35
    assert [what for what, tests in rows if not NAMED.search(tests)] == []
    assert len(NAMED.findall(MODEL)) == MODEL.count("::")
    assert missing_tests(MODEL) == []
