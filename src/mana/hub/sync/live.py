"""Live notices: which space moved, to whoever is in it. Hints only; the cursor is the truth.

One LISTEN connection serves a hub process, whichever process or runner wrote. Payloads of the
channel: `<space>:<seq>`, `{"spaceId", "missionId"}`, `member:<account>` (its spaces or its
invitations changed), `ended:<session>` and `revoked:<session>` (its streams end). Which spaces a stream may hear of is read when it opens, and again, before
anything else is said, for such a notice and whenever notices may have been lost.

A stream keeps one line for each space and mission that moved, not each move: a client that does
not read costs no more than its spaces, and one that falls too far behind is sent away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import msgspec

from mana.domain.clock import iso_ms
from mana.domain.errors import ManaError, Unauthenticated, Unavailable
from mana.domain.ids import SpaceId
from mana.hub.http.endpoints import Session
from mana.hub.http.sockets import (
    BROKEN_RULE,
    DONE,
    TRY_LATER,
    NotText,
    Socket,
    SocketGone,
    token_of,
)
from mana.hub.security.gate import ended_session
from mana.hub.sync.store import CHANNEL
from mana.hub.tenants import Tenant
from mana.protocol.codec import encode

STREAMS_MAX: Final = 50
"""Streams of one account in one process; a device needs one."""
UNKNOWN_MAX: Final = 100
"""Sockets of one process that have not yet said whose they are."""
BEHIND_MAX: Final = 2_000
"""Spaces and missions that a stream may have yet to tell of."""


class MissionMoved(msgspec.Struct, frozen=True, rename="camel"):
    """The payload that says that the ledger of a mission moved."""

    space_id: str
    mission_id: str


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may say on a socket: `{type: auth, token}` first, then `{type: ping}`."""

    type: str
    token: str | None = None


class Subscribed(Protocol):
    """A running subscription to a channel."""

    async def close(self) -> None:
        """End it."""


Listen = Callable[[str, Callable[[str], None]], Awaitable[Subscribed]]
Heads = Callable[[Tenant], Awaitable[dict[SpaceId, int]]]
Authenticate = Callable[[str], Session]
Admit = Callable[[Session], Awaitable[None]]
Message: TypeAlias = tuple[str, dict[str, object]]
"""The name of an event and its members."""


class _Stream:
    """One open connection: what it may hear of, and what it has yet to be told."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.spaces: set[str] = set()
        self.looking = True
        """The spaces are being read: what moves meanwhile may be in one of them."""
        self.moved: dict[str, int] = {}
        self.missions: dict[str, str] = {}
        self.spaces_moved = False
        self.pongs = 0
        self.stale = False
        """The spaces have to be read again before anything is said."""
        self.lost = False
        """Notices may have been lost: tell where every space stands."""
        self.ended: str | None = None
        """Why it ends: `behind`, `expired`, or without a goodbye `gone` or `broken`."""
        self.woken = asyncio.Event()

    def look_again(self, *, lost: bool) -> None:
        """Read the spaces again, since they changed or notices of them may be lost."""
        self.stale = self.spaces_moved = True
        self.lost = self.lost or lost
        self.woken.set()

    def space_moved(self, space: str, seq: int) -> None:
        """Take note of a commit."""
        if space in self.spaces or self.looking:
            self.moved[space] = max(seq, self.moved.get(space, 0))
            self._moved()

    def mission_moved(self, space: str, mission: str) -> None:
        """Take note of a move in a mission's ledger."""
        if space in self.spaces or self.looking:
            self.missions[mission] = space
            self._moved()

    def _moved(self) -> None:
        if len(self.moved) + len(self.missions) > BEHIND_MAX:
            self.moved.clear()
            self.missions.clear()
            self.ended = "behind"
        self.woken.set()

    def end(self, why: str) -> None:
        """Let it end."""
        self.ended = self.ended or why
        self.woken.set()

    def next(self) -> Message | None:
        """Return the next thing to say; None when there is none, or the spaces are in doubt."""
        if self.pongs:
            self.pongs -= 1
            return "pong", {}
        if self.stale or self.ended:
            return None
        if self.spaces_moved:
            self.spaces_moved = False
            return "spaces", {}
        while self.moved:
            space = next(iter(self.moved))
            seq = self.moved.pop(space)
            if space in self.spaces:
                return "space", {"spaceId": space, "seq": seq}
        while self.missions:
            mission = next(iter(self.missions))
            if self.missions.pop(mission) in self.spaces:
                return "mission", {"missionId": mission}
        return None


class LiveHub:
    """Turns notices of the database into events for the streams of this process."""

    def __init__(
        self,
        heads: Heads,
        *,
        authenticate: Authenticate,
        admit: Admit,
        now_ms: Callable[[], int],
        heartbeat_s: float = 15.0,
        auth_s: float = 10.0,
    ) -> None:
        self._heads = heads
        self._authenticate = authenticate
        self._admit = admit
        self._now_ms = now_ms
        self._heartbeat_s = heartbeat_s
        self._auth_s = auth_s
        self._streams: dict[str, set[_Stream]] = {}
        self._unknown = 0
        self._subscription: Subscribed | None = None
        self._stopped = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def start(self, listen: Listen) -> None:
        """Begin to listen."""
        self._stopped = False
        self._subscription = await listen(CHANNEL, self.notice)

    def stop(self) -> None:
        """Let every stream say goodbye and end. Called before the server waits for them."""
        self._stopped = True
        for stream in self._all():
            stream.woken.set()

    async def quiet(self, seconds: float) -> None:
        """Wait until every stream has ended, but no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()

    async def close(self) -> None:
        """End the streams and the subscription."""
        self.stop()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    def notice(self, payload: str) -> None:
        """Take in a notice; an empty one says that some may have been lost."""
        kind, _, rest = payload.partition(":")
        ended = ended_session(payload)
        if ended is not None:
            for stream in self._all():
                if stream.session.session_id == ended:
                    stream.end("expired")
        elif not payload:
            for stream in self._all():
                stream.look_again(lost=True)
        elif kind == "member":
            for stream in self._streams.get(rest, ()):
                stream.look_again(lost=False)
        elif payload.startswith("{"):
            moved = _mission_moved(payload)
            for stream in self._all():
                if moved is not None:
                    stream.mission_moved(moved.space_id, moved.mission_id)
        elif rest.isdigit():
            for stream in self._all():
                stream.space_moved(kind, int(rest))

    def require_room(self, session: Session) -> None:
        """Raise Unavailable if the account has as many streams as it may have."""
        if len(self._streams.get(session.account, ())) >= STREAMS_MAX:
            raise Unavailable("the account has too many live connections to this hub")

    async def events(self, session: Session) -> AsyncIterator[bytes]:
        """Yield the events of one connection until its token expires or the hub stops."""
        async with self._opened(session) as stream:
            async with contextlib.aclosing(self._talk(stream)) as said:
                async for message in said:
                    yield b": still here\n\n" if message is None else event(*message)

    async def socket(self, socket: Socket) -> None:
        """Serve a WebSocket: the same events, each as a JSON text with its name as `type`."""
        token = token_of(socket)
        session = None if token is None else self._authenticate(token)
        if session is not None:
            await self._admit(session)
        if session is None and self._unknown >= UNKNOWN_MAX:
            raise Unavailable("too many connections have not said whose they are")
        await socket.accept()
        if session is None:
            session = await self._introduced(socket)
        if session is None:
            await socket.close(BROKEN_RULE)
            return
        try:
            async with self._opened(session) as stream:
                await self._converse(socket, stream)
        except ManaError:
            # Too many streams, or no database: nothing that the client did wrong.
            await socket.close(TRY_LATER)

    async def _introduced(self, socket: Socket) -> Session | None:
        """Return whose socket it is by its first message; None if it does not say in time."""
        self._unknown += 1
        try:
            async with asyncio.timeout(self._auth_s):
                said = _said(await socket.text())
            if said is None or said.type != "auth" or said.token is None:
                return None
            session = self._authenticate(said.token)
            await self._admit(session)
            return session
        except (TimeoutError, NotText, Unauthenticated):
            return None
        finally:
            self._unknown -= 1

    async def _converse(self, socket: Socket, stream: _Stream) -> None:
        listening = asyncio.create_task(_hear(socket, stream), name="live-socket")
        try:
            async with contextlib.aclosing(self._talk(stream)) as said:
                async for message in said:
                    if message is not None:
                        name, members = message
                        await socket.say(encode({"type": name, **members}).decode())
            if stream.ended != "gone":
                await socket.close(BROKEN_RULE if stream.ended == "broken" else DONE)
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    @contextlib.asynccontextmanager
    async def _opened(self, session: Session) -> AsyncIterator[_Stream]:
        """Count a stream in, so that it hears, until it ends; raise Unavailable if too many."""
        self.require_room(session)
        stream = _Stream(session)
        streams = self._streams.setdefault(session.account, set())
        streams.add(stream)
        self._quiet.clear()
        try:
            yield stream
        finally:
            streams.discard(stream)
            if not streams and self._streams.get(session.account) is streams:
                del self._streams[session.account]
            if not self._streams:
                self._quiet.set()

    async def _talk(self, stream: _Stream) -> AsyncGenerator[Message | None, None]:
        """Yield what is to be said; None where nothing was for a while."""
        try:
            # Once more, since it could have ended before there was a stream to hear of it.
            await self._admit(stream.session)
        except Unauthenticated:
            yield "bye", {"reason": "expired"}
            return
        stream.spaces = set(await self._heads(stream.session.tenant))
        stream.looking = False
        yield "hello", {"hubTime": iso_ms(self._now_ms())}
        while True:
            left_s = (stream.session.expires_ms - self._now_ms()) / 1_000
            if stream.ended in ("gone", "broken"):
                return
            if self._stopped or left_s <= 0 or stream.ended:
                reason = stream.ended or ("stopped" if self._stopped else "expired")
                yield "bye", {"reason": reason}
                return
            is_woken = await _wait(stream.woken, min(left_s, self._heartbeat_s))
            stream.woken.clear()
            if stream.stale:
                await self._look_again(stream)
            while not self._is_over(stream) and (message := stream.next()) is not None:
                yield message
            if not is_woken:
                yield None

    def _is_over(self, stream: _Stream) -> bool:
        return self._stopped or stream.session.expires_ms <= self._now_ms()

    async def _look_again(self, stream: _Stream) -> None:
        lost, stream.lost, stream.stale, stream.looking = stream.lost, False, False, True
        try:
            if lost:
                await self._admit(stream.session)
            known = await self._heads(stream.session.tenant)
        except Unauthenticated:
            stream.end("expired")
            return
        except ManaError:
            # The database is away; the listener says so again when it is back.
            stream.stale, stream.lost = True, lost or stream.lost
            return
        finally:
            stream.looking = False
        before, stream.spaces = stream.spaces, set(known)
        for space, seq in known.items():
            if lost or space not in before:
                stream.moved[space] = max(seq, stream.moved.get(space, 0))

    def _all(self) -> list[_Stream]:
        return [stream for streams in self._streams.values() for stream in streams]


async def _hear(socket: Socket, stream: _Stream) -> None:
    """Answer pings; end the stream when the client goes, or says anything else."""
    try:
        while (said := _said(await socket.text())) is not None and said == _Said("ping"):
            stream.pongs += 1
            stream.woken.set()
        stream.end("broken")
    except NotText:
        stream.end("broken")
    except SocketGone:
        stream.end("gone")


def event(name: str, data: dict[str, object]) -> bytes:
    """Return one event in the form of `text/event-stream`."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + encode(data) + b"\n\n"


def _said(text: str) -> _Said | None:
    try:
        return msgspec.json.decode(text, type=_Said)
    except msgspec.MsgspecError:
        return None


def _mission_moved(payload: str) -> MissionMoved | None:
    try:
        return msgspec.json.decode(payload, type=MissionMoved)
    except msgspec.MsgspecError:
        return None


async def _wait(woken: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return False
    return True
