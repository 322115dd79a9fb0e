"""The two byte forms that keys, seals and signatures rest on.

Canonical JSON: sorted keys, no spaces, UTF-8, NaN and infinities refused.
Length prefix: each part as 4 bytes big-endian length, then its bytes, so that
`["a", "bc"]` and `["ab", "c"]` never meet. Normative: docs/protocol/crypto.md.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final, TypeAlias

from mana.domain.errors import Invalid

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# Made once: a run and a page of changes ask a hundred times. What holds itself ends as too deep.
_CANONICAL: Final = json.JSONEncoder(
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,
)


def canonical_json(value: object) -> bytes:
    """Return the one byte form of a JSON value.

    Raises Invalid for NaN, infinities, lone surrogates and anything that JSON cannot hold.
    """
    try:
        return _CANONICAL.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid("not a JSON value that can be written in canonical form") from error


def length_prefixed(*parts: str | bytes) -> bytes:
    """Join parts so that no two different sequences give the same bytes.

    Raises Invalid for text with a lone surrogate, which has no UTF-8 form.
    """
    out: list[bytes] = []
    try:
        for part in parts:
            raw = part.encode() if isinstance(part, str) else part
            out += (len(raw).to_bytes(4, "big"), raw)
    except UnicodeEncodeError as error:
        raise Invalid("not text that can be written in UTF-8") from error
    return b"".join(out)


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 digest."""
    return hashlib.sha256(data).digest()
