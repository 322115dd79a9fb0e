"""Characters that show nothing, made visible: what a person decides on is what they see.

A model can hide words in signs that no page and no terminal draws, or turn the order of those that
stand beside them. Joiners that scripts and emoji are written with stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

from mana.domain.encoding import Json

_TAG_BASE: Final = 0xE0000
# Marks of direction, joiners, fillers, selectors of variants and tags: none of them is drawn.
_UNSEEN: Final = (
    "\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_RUN: Final = re.compile(f"[{_UNSEEN}]+")
_FLAG: Final = re.compile("[\U000e0061-\U000e007a\U000e0030-\U000e0039]{2,6}\U000e007f")
_BLACK_FLAG: Final = "\U0001f3f4"
_JOINERS: Final = frozenset("\u200c\u200d")
_AS_PICTURE: Final = "\ufe0f"


def visible(text: str) -> str:
    """Return text in which whatever is not drawn is said: `⟦3 hidden signs⟧`, `⟦hidden: words⟧`."""
    if text.isascii() and text.isprintable():
        return text
    return _RUN.sub(_said, text)


def visible_json(value: Json) -> Json:
    """Return a value whose texts are visible; names of members too."""
    match value:
        case str():
            return visible(value)
        case list():
            return [visible_json(one) for one in value]
        case dict():
            return {visible(name): visible_json(one) for name, one in value.items()}
        case _:
            return value


def _said(found: re.Match[str]) -> str:
    run, text = found[0], found.string
    before = text[found.start() - 1] if found.start() else ""
    after = text[found.end()] if found.end() < len(text) else ""
    if _belongs(run, before, after):
        return run
    words = "".join(chr(ord(sign) - _TAG_BASE) for sign in run if 0 <= ord(sign) - _TAG_BASE < 0x80)
    if words.strip() and words.isprintable():
        return f"⟦hidden: {words}⟧"
    return f"⟦{len(run)} hidden sign{'s' if len(run) > 1 else ''}⟧"


def _belongs(run: str, before: str, after: str) -> bool:
    """Say whether the writing of what stands around needs these signs."""
    if before == _BLACK_FLAG:
        return _FLAG.fullmatch(run) is not None
    if run == _AS_PICTURE:
        return bool(before) and not before.isspace() and not before.isalpha()
    joins = run.removeprefix(_AS_PICTURE)
    return joins in _JOINERS and _is_joined(before) and _is_joined(after)


def _is_joined(sign: str) -> bool:
    """Say whether a sign is of those that joiners stand between: no Latin letter, digit or space."""
    return bool(sign) and ord(sign) > 0x300 and not sign.isspace()
