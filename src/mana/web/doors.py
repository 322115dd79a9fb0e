"""What every request must pass before a route sees it, and what every answer carries.

A page on this machine can be asked for by any site that the person visits. So: only names that
are ours (a foreign name that resolves to 127.0.0.1 is refused), only posts that come from our
own pages, and nothing that loads, frames or remembers a page elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([0-9]{1,5}))?")

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
NOT_KEPT: Final = "no-store"


def split_host(header: str) -> tuple[str, str] | None:
    """Return name and port of a Host header, or None if it is malformed."""
    found = _HOST.fullmatch(header.strip().lower())
    return None if found is None else (found[1].rstrip("."), found[2] or "")


def is_ours(header: str, names: Collection[str]) -> bool:
    """Say whether a Host header names this machine or the configured host."""
    parts = split_host(header)
    return parts is not None and (parts[0] in LOOPBACK or parts[0] in names)


def is_same_site(host: str, *, origin: str | None, fetched_from: str | None) -> bool:
    """Say whether a post comes from our own page, as far as the browser tells.

    Browsers send one of the two headers; a client that sends neither still needs the token.
    """
    if fetched_from is not None and fetched_from not in ("same-origin", "none"):
        return False
    if origin is None or (origin == "null" and fetched_from == "same-origin"):
        # "null" is what a plain form sends where no page may be named.
        return True
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def cookie_name(host: str) -> str:
    """Return the session cookie's name: cookies know no ports, and machines hold many devices."""
    parts = split_host(host)
    return f"mana_{parts[1] if parts else ''}".rstrip("_")
