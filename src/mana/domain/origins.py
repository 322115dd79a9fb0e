"""Where text goes, as a grant names it: a plain origin, or a word of the hub's own.

A name is shown to a person, signed, stored and put into audit lines between spaces, so it holds
nothing that could be read as two names, or as another one than it is.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from mana.domain.errors import Invalid

HOST_CHARS_MAX: Final = 253
USUAL_PORTS: Final = {"http": 80, "https": 443}
_LABELS: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}(?::[a-z0-9._-]{0,40})?")


def is_host(host: str) -> bool:
    """Say whether a resolver can be asked for this name, and a certificate can bear it.

    In lower case and ASCII; an IPv6 address without its brackets.
    """
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).scope_id is None
        except ValueError:
            return False
    return len(host) <= HOST_CHARS_MAX and _LABELS.fullmatch(host) is not None


def is_origin(text: str) -> bool:
    """Say whether this is a scheme and a host, with a port unless it is usual, and nothing else."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    scheme, host, port = found[1], found[2], int(found[3] or 0)
    bare = host[1:-1] if host.startswith("[") else host
    return is_host(bare) and port < 65_536 and port != USUAL_PORTS[scheme]


def require_endpoint(text: str) -> str:
    """Return what a grant's header may name: an origin, or a word such as `rules:offline`.

    Raises Invalid, which does not repeat the text.
    """
    is_web = text.startswith(("http:", "https:"))
    if not (is_origin(text) if is_web else _WORD.fullmatch(text)):
        raise Invalid("an endpoint in a grant is an origin such as https://models.example")
    return text
