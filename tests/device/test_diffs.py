"""Word differences say exactly what was and what would be."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mana.device.diffs import preview_diffs, word_spans

TEXTS = st.text("ab ,.\n", max_size=60)


@given(TEXTS, TEXTS)
def test_spans_give_both_texts_back(before: str, after: str) -> None:
    """Same and gone make the old text, same and new the new one."""
    spans = word_spans(before, after)
    assert "".join(text for kind, text in spans if kind != "new") == before
    assert "".join(text for kind, text in spans if kind != "gone") == after
    assert all(text for _, text in spans if before and after)


def test_large_texts_take_bounded_time() -> None:
    """Two long and wholly different texts are not compared word by word."""
    before = " ".join(f"old{number}" for number in range(20_000))
    after = " ".join(f"new{number}" for number in range(20_000))
    began = time.process_time()
    spans = word_spans(before, after)
    assert time.process_time() - began < 5
    assert "".join(text for kind, text in spans if kind != "new") == before


def test_preview_of_another_shape_is_left_out() -> None:
    """A malformed preview shows nothing rather than something else."""
    assert preview_diffs([{"table": "notes"}, 7], lambda *_: "", lambda _: None) == ()
    assert preview_diffs(None, lambda *_: "", lambda _: None) == ()
