"""Live notices: which space moved, to whoever is in it. Hints only; the cursor is the truth.

One LISTEN connection serves a hub process, whichever process or runner wrote. Payloads of the
channel: `<space>:<seq>`, `{"spaceId", "missionId"}`, `member:<account>` (its spaces changed).
Which spaces a stream may hear of is read when it opens, and again for such a notice and
whenever notices may have been lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import msgspec

from mana.domain.clock import iso_ms
from mana.domain.errors import ManaError, Unavailable
from mana.domain.ids import SpaceId
from mana.hub.http.endpoints import Session
from mana.hub.sync.store import CHANNEL
from mana.hub.tenants import Tenant
from mana.protocol.codec import encode

STREAMS_MAX: Final = 50
"""Streams of one account in one process; a device needs one."""


class MissionMoved(msgspec.Struct, frozen=True, rename="camel"):
    """The payload that says that the ledger of a mission moved."""

    space_id: str
    mission_id: str


class Subscribed(Protocol):
    """A running subscription to a channel."""

    async def close(self) -> None:
        """End it."""


Listen = Callable[[str, Callable[[str], None]], Awaitable[Subscribed]]
Heads = Callable[[Tenant], Awaitable[dict[SpaceId, int]]]


class _Stream:
    """One open connection: what it may hear of, and what it has yet to say."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.spaces: set[str] = set()
        self.moved: dict[str, int] = {}
        self.missions: dict[str, None] = {}
        self.stale = True
        self.woken = asyncio.Event()


class LiveHub:
    """Turns notices of the database into events for the streams of this process."""

    def __init__(
        self, heads: Heads, *, now_ms: Callable[[], int], heartbeat_s: float = 15.0
    ) -> None:
        self._heads = heads
        self._now_ms = now_ms
        self._heartbeat_s = heartbeat_s
        self._streams: dict[str, set[_Stream]] = {}
        self._subscription: Subscribed | None = None
        self._stopped = False

    async def start(self, listen: Listen) -> None:
        """Begin to listen."""
        self._stopped = False
        self._subscription = await listen(CHANNEL, self.notice)

    def stop(self) -> None:
        """Let every stream say goodbye and end. Called before the server waits for them."""
        self._stopped = True
        for stream in self._all():
            stream.woken.set()

    async def close(self) -> None:
        """End the streams and the subscription."""
        self.stop()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    def notice(self, payload: str) -> None:
        """Take in a notice; an empty one says that some may have been lost."""
        kind, _, rest = payload.partition(":")
        if not payload:
            for stream in self._all():
                _mark_stale(stream)
        elif kind == "member":
            for stream in self._streams.get(rest, ()):
                _mark_stale(stream)
        elif payload.startswith("{"):
            moved = _mission_moved(payload)
            for stream in self._all():
                if moved is not None and moved.space_id in stream.spaces:
                    stream.missions[moved.mission_id] = None
                    stream.woken.set()
        elif rest.isdigit():
            for stream in self._all():
                if kind in stream.spaces:
                    stream.moved[kind] = max(int(rest), stream.moved.get(kind, 0))
                    stream.woken.set()

    async def events(self, session: Session) -> AsyncIterator[bytes]:
        """Yield the events of one connection until its token expires or the hub stops."""
        streams = self._streams.setdefault(session.account, set())
        if len(streams) >= STREAMS_MAX:
            raise Unavailable("the account has too many live connections to this hub")
        stream = _Stream(session)
        streams.add(stream)
        try:
            known = await self._heads(session.tenant)
            stream.spaces, stream.stale = set(known), False
            yield event("hello", {"hubTime": iso_ms(self._now_ms())})
            async for piece in self._talk(stream):
                yield piece
        finally:
            streams.discard(stream)
            if not streams and self._streams.get(session.account) is streams:
                del self._streams[session.account]

    async def _talk(self, stream: _Stream) -> AsyncIterator[bytes]:
        expires_ms = stream.session.expires_ms
        while True:
            left_s = (expires_ms - self._now_ms()) / 1_000
            if self._stopped or left_s <= 0:
                yield event("bye", {"reason": "stopped" if self._stopped else "expired"})
                return
            is_woken = await _wait(stream.woken, min(left_s, self._heartbeat_s))
            stream.woken.clear()
            if stream.stale:
                await self._look_again(stream)
            moved, stream.moved = stream.moved, {}
            missions, stream.missions = stream.missions, {}
            for space, seq in moved.items():
                if space in stream.spaces:
                    yield event("space", {"spaceId": space, "seq": seq})
            for mission in missions:
                yield event("mission", {"missionId": mission})
            if not is_woken:
                yield b": still here\n\n"

    async def _look_again(self, stream: _Stream) -> None:
        stream.stale = False
        try:
            known = await self._heads(stream.session.tenant)
        except ManaError:
            # The database is away; the listener says so again when it is back.
            stream.stale = True
            return
        stream.spaces = set(known)
        for space, seq in known.items():
            stream.moved[space] = seq

    def _all(self) -> list[_Stream]:
        return [stream for streams in self._streams.values() for stream in streams]


def event(name: str, data: dict[str, object]) -> bytes:
    """Return one event in the form of `text/event-stream`."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + encode(data) + b"\n\n"


def _mission_moved(payload: str) -> MissionMoved | None:
    try:
        return msgspec.json.decode(payload, type=MissionMoved)
    except msgspec.MsgspecError:
        return None


def _mark_stale(stream: _Stream) -> None:
    stream.stale = True
    stream.woken.set()


async def _wait(woken: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    return True
