"""Icons, inlined from the vendored set, so that a page needs no request for them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from markupsafe import Markup

FOLDER: Final = Path(__file__).parent / "static" / "vendor" / "icons"
_SHAPES: Final = re.compile(r"<svg[^>]*>(.*)</svg>", re.DOTALL)


@cache
def icon(name: str) -> Markup:
    """Return the drawing of an icon; decoration beside a word, so readers of screens skip it."""
    found = _SHAPES.search((FOLDER / f"{name}.svg").read_text("utf-8"))
    shapes = " ".join(found[1].split()) if found else ""
    return Markup(
        '<svg class="icon" viewBox="0 0 24 24" width="16" height="16" fill="none" '
        'stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" '
        'aria-hidden="true" focusable="false">{}</svg>'
    ).format(Markup(shapes))  # noqa: S704 - our own file
