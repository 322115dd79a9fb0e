"""A text as a QR code, drawn on this device: what it holds goes to no service."""

from __future__ import annotations

from typing import Final

_SCALE: Final = 4


def qr_svg(text: str) -> str:
    """Return a QR code of a text as an SVG element, to be put into a page as it is."""
    import segno  # here, because only who looks at a code pays for it

    return segno.make(text, error="m", micro=False).svg_inline(scale=_SCALE)
