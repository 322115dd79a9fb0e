"""Where a model is: its address, the origin that grants name, and which addresses are public.

An endpoint that a person brings is called by the operator's machine. Under `public` it must not
become a way into the operator's network, whatever a name resolves to, and whenever.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias

import httpx

from mana.domain.errors import Invalid
from mana.domain.origins import USUAL_PORTS, is_host, is_origin

OwnModels: TypeAlias = Literal["off", "public", "any"]
_V4_REFUSED: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_V6_PUBLIC: Final = ipaddress.IPv6Network("2000::/3")
_V6_REFUSED: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
"""What lies outside `_V6_PUBLIC` is refused anyhow: loopback, link-local, unique local, multicast,
and the forms that carry an IPv4 address (mapped, compatible, NAT64). Of the inside, those that carry
one too (6to4, Teredo), and what is only for protocols and documents.
"""


class OwnEndpointRefused(Invalid):
    """An endpoint of a person's own is not one that this hub's runner may call."""

    code: ClassVar[str] = "OWN_ENDPOINT_REFUSED"
    advice: ClassVar[str] = (
        "Use one https address on the public internet, without a path; the operator may allow others."
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where text goes: scheme, host, port and the path in front of `/chat/completions`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Return the name that grants hold: scheme, host, and the port unless it is usual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = USUAL_PORTS[self.scheme] == self.port
        return f"{self.scheme}://{host}" if usual else f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the address of chat completions."""
        return f"{self.origin}{self.path}/chat/completions"

    @property
    def is_this_machine(self) -> bool:
        """Say whether text stays on this machine."""
        if self.host == "localhost":
            return True
        address = _address(self.host)
        return address is not None and address.is_loopback


def endpoint(base: str) -> Endpoint:
    """Return the endpoint of a base address, with or without a closing `/v1`.

    Raises Invalid for another scheme, for credentials in the address, a query or a fragment.
    """
    url: httpx.URL | None
    try:
        url = httpx.URL(base.strip())
    except (httpx.InvalidURL, ValueError):
        url = None
    if url is None:
        raise Invalid("the model's address is not a web address")
    host = url.raw_host.decode("ascii").lower()
    if url.scheme not in USUAL_PORTS or not host:
        raise Invalid("the model's address starts with http:// or https:// and names a host")
    if url.userinfo or url.query or url.fragment:
        raise Invalid("the model's address has no credentials, query or fragment")
    port = USUAL_PORTS[url.scheme] if url.port is None else url.port
    if not is_host(host) or not 0 < port < 65_536:
        raise Invalid("the model's address has a host or port that cannot be")
    path = url.path.rstrip("/")
    if not path.endswith("/v1"):
        path += "/v1"
    return Endpoint(url.scheme, host, port, path)


def check_own_origin(origin: str, allowed: OwnModels) -> None:
    """Raise OwnEndpointRefused unless a grant's header may name this origin as a person's own.

    The runner resolves the name itself later; here is refused what can be seen without that.
    """
    if allowed == "off":
        raise OwnEndpointRefused("this hub calls no endpoints of people's own")
    try:
        found = endpoint(origin) if is_origin(origin) else None
    except Invalid:
        found = None
    if found is None or found.origin != origin:
        raise OwnEndpointRefused("the endpoint is no plain origin")
    if allowed == "any":
        return
    if found.scheme != "https":
        raise OwnEndpointRefused("the endpoint is not reached by https")
    address = _address(found.host)
    if "." not in found.host if address is None else not is_public(found.host):
        raise OwnEndpointRefused("the endpoint is not on the public internet")


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet, in its own form and no other's."""
    found = _address(address)
    if found is None:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in _V4_REFUSED)
    if found.scope_id is not None or found not in _V6_PUBLIC:
        return False
    return not any(found in network for network in _V6_REFUSED)


def fits_header(key: str) -> bool:
    """Say whether a header can hold this key."""
    return key.isascii() and key.isprintable()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
