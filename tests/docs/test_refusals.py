"""What the protocol says of refused changes, a person reads in words."""

from __future__ import annotations

import re

from mana.device.words import REFUSED_CHANGES
from tests.docs.test_pages import ROOT

PAGE = (ROOT / "docs" / "protocol" / "sync.md").read_text("utf-8")
CODE = re.compile(r"`([a-z]+(?:-[a-z]+)*)`")
OF_THE_DEVICE = {"hidden", "not-a-member", "unconfirmed"}
"""Codes under which a device parks a change by itself (sync.md, 6 and 8)."""


def test_every_refusal_has_its_words() -> None:
    """Each code under which a change can be parked is told in a sentence of its own, and no other."""
    push = PAGE[PAGE.index("## 4.") : PAGE.index("## 5.")]
    rows = [line.split("|")[1] for line in push.splitlines() if line.startswith("| `")]
    codes = {code for row in rows for code in CODE.findall(row)}
    assert len(codes) > 20
    assert all(f"`{code}`" in PAGE for code in OF_THE_DEVICE)
    assert set(REFUSED_CHANGES) == codes | OF_THE_DEVICE
