"""Text in data that reads like an instruction to a model: found, told, and never obeyed.

A mark is a flag for the person and a reminder for the model. It decides nothing: what keeps an
attacker out is policy, and text without any mark is no safer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mana.domain.encoding import Json

SCANNED_MIN: Final = 16
"""Shorter texts are left out: nothing of these fits in them."""

_PATTERNS: Final = (
    (
        "previous",
        re.compile(
            r"ignore\s{1,8}(?:(?:all|the|any|your)\s{1,8}){0,3}previous\s{1,8}(?:instructions|messages)"
        ),
    ),
    ("you are now", re.compile(r"you are now\b.{0,40}?\b(?:assistant|gpt|claude|gemini)")),
    ("system", re.compile(r"<\s{0,8}system\b|```\s{0,8}system\b")),
    ("{{", re.compile(r"\{\{[^{}]{0,200}\}\}")),
)
"""Each with a word that is always in it: to look for words in all texts at once is much cheaper, and
most have none."""


def is_marked(value: Json) -> bool:
    """Say whether any text within a value bears a mark of an injected instruction, in any case."""
    texts = [text for text in _texts(value) if len(text) >= SCANNED_MIN]
    together = "\n".join(texts).lower()
    patterns = [pattern for word, pattern in _PATTERNS if word in together]
    return any(pattern.search(text.lower()) for pattern in patterns for text in texts)


def _texts(value: Json) -> Iterator[str]:
    """Give every text of a value, names of members too, however deep it stands."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += [*one, *one.values()]
