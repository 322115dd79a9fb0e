"""Connections to models: kept alive for one process, and where asked, to public addresses only.

No proxy of the environment is used, no redirect followed, no cookie kept: text goes to the host that
was named and to no other. One object belongs to one event loop, once it was used.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Final, TypeAlias

import httpx

from mana.models.addresses import Endpoint, is_public

CONNECT_S: Final = 10.0
KEPT_MAX: Final = 8
KEPT_S: Final = 4.0
"""Less than the five seconds after which common servers close: a call must not meet that moment."""
ADDRESSES_MAX: Final = 4
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


class Quirk(StrEnum):
    """What an endpoint does not take as others do; the value is the word by which it says so."""

    REPLY_LIMIT = "max_completion_tokens"
    TEMPERATURE = "temperature"
    STREAM = "stream"


class AddressRefused(httpx.ConnectError):
    """No address of a host is one that may be called."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, as the system's resolver gives them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


@functools.cache
def authorities() -> ssl.SSLContext:
    """Return whose certificates are believed. Made once: it takes as long as some ten calls.

    A process that is forked from one that called this has it already.
    """
    return httpx.create_ssl_context()


def warm_up() -> None:
    """Load what the first call would load: some fifty milliseconds of work.

    A process that is forked from one that called this has it already. Reaches nobody.
    """
    authorities()
    asyncio.run(_call_nobody())


async def _call_nobody() -> None:
    nobody = httpx.AsyncHTTPTransport(
        uds=os.devnull, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    with contextlib.suppress(httpx.ConnectError):
        await nobody.handle_async_request(httpx.Request("GET", "http://localhost/"))
    await nobody.aclose()


class Connections:
    """Pools of connections, one for each endpoint, and what is known of how endpoints answer.

    `kept` is how many idle ones stay open for each; with 0 there is nothing to close. `resolve`,
    `is_allowed` and `tls` are for tests.
    """

    def __init__(
        self,
        *,
        kept: int = KEPT_MAX,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=kept, keepalive_expiry=KEPT_S
        )
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._tls = tls
        self._pools: dict[tuple[str, bool], httpx.AsyncBaseTransport] = {}
        self._quirks: dict[tuple[str, str], frozenset[Quirk]] = {}

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all that is open; the object may be used again."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    def pool(self, place: Endpoint, *, public_only: bool) -> httpx.AsyncBaseTransport:
        """Return the pool of an endpoint. `public_only`: it connects to public addresses only."""
        key = (place.origin, public_only)
        found = self._pools.get(key)
        if found is None:
            found = httpx.AsyncHTTPTransport(
                verify=self._context(place.scheme), limits=self._limits
            )
            if public_only:
                found = _Checked(found, self._resolve, self._is_allowed)
            self._pools[key] = found
        return found

    def quirks(self, url: str, model: str) -> frozenset[Quirk]:
        """Return what is known of how a model wants to be asked."""
        return self._quirks.get((url, model), frozenset())

    def remember(self, url: str, model: str, quirks: frozenset[Quirk]) -> None:
        """Remember how a model wanted to be asked, while the process lasts."""
        self._quirks[url, model] = quirks

    def _context(self, scheme: str) -> ssl.SSLContext:
        """Return how certificates are judged."""
        if scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and trusts nobody
        return self._tls or authorities()


class _Checked(httpx.AsyncBaseTransport):
    """Resolves a name itself and connects to an address that it checked.

    The name is resolved once for each call and never again behind the check; the certificate and
    the header are still those of the name.
    """

    def __init__(
        self,
        pool: httpx.AsyncBaseTransport,
        resolve: Resolve,
        is_allowed: Callable[[str], bool],
    ) -> None:
        self._pool = pool
        self._resolve = resolve
        self._is_allowed = is_allowed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to the first checked address that takes a connection."""
        addresses = await self._addresses(request.url)
        for address in addresses[:-1]:
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._pool.handle_async_request(_pinned(request, address))
        return await self._pool.handle_async_request(_pinned(request, addresses[-1]))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _addresses(self, url: httpx.URL) -> list[str]:
        host = url.raw_host.decode("ascii")
        port = url.port or 443
        found: Sequence[str] = ()
        with contextlib.suppress(OSError, UnicodeError):
            async with asyncio.timeout(CONNECT_S):
                found = await self._resolve(host, port)
        allowed = [one for one in dict.fromkeys(found) if self._is_allowed(one)]
        if not allowed:
            raise AddressRefused("no address of the host may be called")
        return allowed[:ADDRESSES_MAX]


def _pinned(request: httpx.Request, address: str) -> httpx.Request:
    """Return the same request to an address, with the name for the certificate and the header."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )
