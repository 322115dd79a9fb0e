"""Codes by RFC 6238: SHA-1, six digits, thirty seconds, one step either side. Pure."""

from __future__ import annotations

import base64
import hmac
import struct
from typing import Final
from urllib.parse import quote, urlencode

SECRET_BYTES: Final = 20
DIGITS: Final = 6
STEP_MS: Final = 30_000
STEPS_ASIDE: Final = 1
ISSUER: Final = "Mana"


def code_at(secret: bytes, step: int) -> str:
    """Return the code of one step: `step` counts thirty seconds since 1970."""
    digest = hmac.digest(secret, struct.pack(">Q", step), "sha1")
    start = digest[-1] & 0x0F
    (number,) = struct.unpack(">I", digest[start : start + 4])
    return f"{(number & 0x7FFF_FFFF) % 10**DIGITS:0{DIGITS}d}"


def step_of(secret: bytes, code: str, *, after: int, now_ms: int) -> int | None:
    """Return the step that a code is of, if it is near now and later than `after`; else None."""
    typed = "".join(code.split()).encode("utf-8", "replace")
    now = now_ms // STEP_MS
    found = None
    # Every step is looked at, so that the time tells nothing of how near a guess was.
    for step in range(now - STEPS_ASIDE, now + STEPS_ASIDE + 1):
        if hmac.compare_digest(code_at(secret, step).encode(), typed) and step > after:
            found = step
    return found


def secret_text(secret: bytes) -> str:
    """Return the secret as a person types it into an authenticator: Base32."""
    return base64.b32encode(secret).decode()


def address(secret: bytes, login: str) -> str:
    """Return the address that an authenticator reads from a QR code."""
    label = quote(f"{ISSUER}:{login}", safe=":")
    facts = {
        "secret": secret_text(secret),
        "issuer": ISSUER,
        "algorithm": "SHA1",
        "digits": DIGITS,
        "period": STEP_MS // 1_000,
    }
    return f"otpauth://totp/{label}?{urlencode(facts)}"
