"""PEM armour (RFC 7468) with one strict reader for all of our key files and settings."""

from __future__ import annotations

import re
from typing import Final

from mana.crypto.errors import Malformed
from mana.crypto.primitives import b64, unb64

_ARMOUR: Final = re.compile(
    r"\s*-----BEGIN ([A-Z0-9 -]+)-----\s([A-Za-z0-9+/=\s]+)-----END \1-----\s*"
)


def to_pem(label: str, data: bytes) -> str:
    """Return `data` between the lines that name `label`, 64 characters a line."""
    text = b64(data)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def from_pem(text: str) -> tuple[str, bytes]:
    r"""Return label and bytes of exactly one block.

    A setting often comes with `\n` written out, because an environment file holds one line.
    """
    match = _ARMOUR.fullmatch(text.replace("\\n", "\n"))
    if match is None:
        raise Malformed("not one PEM block")
    return match[1], unb64("".join(match[2].split()))
