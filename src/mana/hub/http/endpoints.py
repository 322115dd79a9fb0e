"""Endpoints as declarations: path, messages, and the coroutine that answers.

Services know nothing of HTTP; an endpoint turns a `Call` into one service call. The server
and the OpenAPI document are both made from these, so that neither can forget one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from mana.domain.errors import Invalid, Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.tenants import Tenant

BODY_BYTES_MAX: Final = 256 * 1024
WHOLE_MAX: Final = 2**53 - 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Session:
    """Who is asking, by a verified access token."""

    account: AccountId
    session_id: str
    expires_ms: int

    @property
    def tenant(self) -> Tenant:
        """Return whose rows may be touched."""
        return Tenant(self.account)


@dataclass(frozen=True, slots=True)
class WholeQuery:
    """A whole number in the query string. `clamps`: outside the bounds is brought inside."""

    name: str
    described: str
    default: int = 0
    low: int = 0
    high: int = WHOLE_MAX
    clamps: bool = False

    def parse(self, text: str | None) -> int:
        """Return the number; raise Invalid for anything else."""
        if text is None:
            return self.default
        bare = text.removeprefix("-")
        if not (bare.isascii() and bare.isdigit() and len(bare) <= 16):
            raise Invalid(f"query {self.name} is not a whole number")
        number = int(text)
        if self.clamps:
            return min(max(number, self.low), self.high)
        if not self.low <= number <= self.high:
            raise Invalid(f"query {self.name} is outside {self.low} to {self.high}")
        return number


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A short text in the query string, None if absent."""

    name: str
    described: str
    length_max: int = 512

    def parse(self, text: str | None) -> str | None:
        """Return the text; raise Invalid if it is too long or not of printable ASCII."""
        if text is None:
            return None
        if len(text) > self.length_max or not (text.isascii() and text.isprintable()):
            raise Invalid(f"query {self.name} is malformed")
        return text


Query: TypeAlias = WholeQuery | TextQuery


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked: path and query by name, and the decoded body."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, int | str | None] = field(default_factory=dict)
    body: Any = None
    maybe_session: Session | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def session(self) -> Session:
        """Return who is asking."""
        if self.maybe_session is None:
            raise Unauthenticated("no access token")
        return self.maybe_session

    @property
    def tenant(self) -> Tenant:
        """Return whose rows may be touched."""
        return self.session.tenant

    def whole(self, name: str) -> int:
        """Return a declared whole number of the query."""
        value = self.query[name]
        if not isinstance(value, int):
            raise Invalid(f"query {name} is not a whole number")
        return value

    def text(self, name: str) -> str | None:
        """Return a declared text of the query, None if absent."""
        value = self.query[name]
        return value if isinstance(value, str) else None

    def message(self, shape: type[_T]) -> _T:
        """Return the body as the message that the endpoint declares."""
        if not isinstance(self.body, shape):
            raise Invalid("the body is missing")
        return self.body


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer of `text/event-stream`, already in its wire form."""

    events: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Document:
    """An answer whose bytes are made already."""

    body: bytes
    media_type: str = "application/json"


Reply: TypeAlias = "msgspec.Struct | EventStream | Document | None"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. `None` as reply is sent without a body."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    run: Callable[[Call], Awaitable[Reply]]
    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    status: int = 200
    signed_in: bool = True
    query: tuple[Query, ...] = ()
    bytes_max: int = BODY_BYTES_MAX
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()
    """Names of request headers that the endpoint reads, lower case."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names in the path, in order."""
        pieces = self.path.split("/")
        return tuple(piece[1:-1] for piece in pieces if piece.startswith("{"))
