"""A model endpoint on loopback that answers as a test says: well, badly, slowly, or not at all.

It speaks the OpenAI form over real sockets, so that what is tested is what runs. An answer is a
function of what was asked; the ones here cover what endpoints do, and what hostile ones could.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mana.domain.encoding import Json
from mana.planning.ports import FunctionCall


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its head as it came, and its body."""

    head: str
    raw: bytes
    connection: int

    @property
    def body(self) -> dict[str, Any]:
        """Return the body, parsed."""
        return json.loads(self.raw)  # type: ignore[no-any-return]

    @property
    def streams(self) -> bool:
        """Say whether the reply is to come in pieces."""
        return self.body.get("stream") is True


class Line:
    """The connection that an answer is written to. `is_kept` False: it ends with this answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_kept = True

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, *fields: str, length: int | None = None) -> None:
        """Send the head of an answer; without a length the body comes in chunks."""
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        await self.write("\r\n".join((f"HTTP/1.1 {status} Said", *fields, size, "", "")).encode())

    async def chunk(self, data: bytes = b"") -> None:
        """Send one chunk; an empty one ends the answer."""
        await self.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, document: Json) -> None:
        """Send one event of a stream."""
        await self.chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    async def until_left(self) -> None:
        """Wait until the other side has gone."""
        self.is_kept = False
        await self._reader.read()

    def drop(self) -> None:
        """Cut the connection, without an end."""
        self.is_kept = False
        self._writer.transport.abort()


Answer: TypeAlias = Callable[[Asked, Line], Awaitable[None]]


@dataclass(slots=True)
class ModelServer:
    """A server that is up.

    `asked` holds its requests in order, `connections` counts what connected. `begun` is set when a
    request has come, `left` when a connection has ended.
    """

    url: str
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def model_server(
    *answers: Answer, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ModelServer]:
    """Serve these answers in turn on a free port of loopback; the last one for all that follow."""
    waiting = list(answers)
    served = ModelServer("")
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        number, line = served.connections, Line(reader, writer)
        try:
            while line.is_kept:
                asked = await _request(reader, number)
                served.asked.append(asked)
                served.begun.set()
                answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                await answer(asked, line)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            served.left.set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(talk(reader, writer))
        talks.add(task)
        task.add_done_callback(talks.discard)

    running = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    served.url = f"http{'s' if tls else ''}://127.0.0.1:{running.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        running.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """Return the address of an endpoint that is down: each connection to it is refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def deaf(scheme: str = "http") -> Iterator[str]:
    """Return the address of an endpoint that takes connections and answers nothing on them.

    By `https` it is silent while one still connects, by `http` once it was asked.
    """
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield f"{scheme}://127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def unreached() -> Iterator[str]:
    """Return the address of an endpoint to which nobody's connection comes through."""
    with contextlib.ExitStack() as held:
        full = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:
            # What waits to be taken fills the queue; from then on nobody is let in.
            one = held.enter_context(socket.socket())
            one.settimeout(0.05)
            try:
                one.connect(full.getsockname())
            except TimeoutError:
                break
        yield f"http://127.0.0.1:{full.getsockname()[1]}"


def says(
    content: str = "",
    *calls: FunctionCall,
    usage: tuple[int, int] | None = (400, 20),
    piece_chars: int = 7,
) -> Answer:
    """Return an honest answer: in pieces of so many characters where that is asked for."""
    finish = "tool_calls" if calls else "stop"

    async def answer(asked: Asked, line: Line) -> None:
        if not asked.streams:
            await whole(completion(content, *calls, usage=usage))(asked, line)
            return
        await streams(*_events(content, calls, finish, usage, piece_chars))(asked, line)

    return answer


def completion(
    content: str = "", *calls: FunctionCall, usage: tuple[int, int] | None = (400, 20)
) -> dict[str, Json]:
    """Return a whole reply as such endpoints write it."""
    message: dict[str, Json] = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    choice: Json = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if calls else "stop",
    }
    return {"choices": [choice], **_used(usage)}


def delta(*, finish: str | None = None, **members: Json) -> dict[str, Json]:
    """Return one event of a stream, with these members of a message."""
    return {"choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def whole(document: Json, *, status: int = 200) -> Answer:
    """Answer with one JSON document, however it was asked."""
    return body(json.dumps(document).encode(), status, "Content-Type: application/json")


def body(data: bytes, status: int = 200, *fields: str) -> Answer:
    """Answer with a status, header fields and a body."""

    async def answer(_asked: Asked, line: Line) -> None:
        await line.head(status, *fields, length=len(data))
        await line.write(data)

    return answer


def streams(*events: Json, done: bool = True, ends: bool = True) -> Answer:
    """Answer with these events. `done`: it says that nothing follows; `ends`: the answer ends."""

    async def answer(_asked: Asked, line: Line) -> None:
        await line.head(200, "Content-Type: text/event-stream")
        for event in events:
            await line.event(event)
        if done:
            await line.chunk(b"data: [DONE]\n\n")
        if ends:
            await line.chunk()
        else:
            await line.until_left()

    return answer


def pieces(*data: bytes) -> Answer:
    """Answer with these bytes, each a chunk of its own."""

    async def answer(_asked: Asked, line: Line) -> None:
        await line.head(200, "Content-Type: text/event-stream")
        for one in data:
            await line.chunk(one)
        await line.chunk()

    return answer


def redirects(to: str) -> Answer:
    """Send whoever asks to another place."""
    return body(b"", 307, f"Location: {to}")


def raw(data: bytes) -> Answer:
    """Answer with bytes that need be no HTTP, and end."""

    async def answer(_asked: Asked, line: Line) -> None:
        line.is_kept = False
        await line.write(data)

    return answer


def stalls(*events: Json) -> Answer:
    """Begin a stream with these events, and say nothing more."""
    return streams(*events, done=False, ends=False)


async def silent(_asked: Asked, line: Line) -> None:
    """Never say anything."""
    await line.until_left()


def drips(data: bytes, *, every_s: float = 0.01) -> Answer:
    """Send these bytes again and again, for ever."""

    async def answer(_asked: Asked, line: Line) -> None:
        line.is_kept = False
        await line.head(200, "Content-Type: text/event-stream")
        while True:
            await line.chunk(data)
            await asyncio.sleep(every_s)

    return answer


def drops(*events: Json) -> Answer:
    """Begin a stream with these events, and cut the connection."""

    async def answer(_asked: Asked, line: Line) -> None:
        await line.head(200, "Content-Type: text/event-stream")
        for event in events:
            await line.event(event)
        line.drop()

    return answer


def never_streams(then: Answer) -> Answer:
    """Refuse what is to come in pieces, as servers without streams do."""
    return unless(lambda body: body.get("stream") is True, "stream is not supported", then)


def unless(refused: Callable[[dict[str, Any]], bool], message: str, then: Answer) -> Answer:
    """Refuse some requests with a message, and answer the others."""
    problem: Json = {"error": {"message": message, "type": "invalid_request_error"}}

    async def answer(asked: Asked, line: Line) -> None:
        await (whole(problem, status=400) if refused(asked.body) else then)(asked, line)

    return answer


def late(seconds: float, then: Answer) -> Answer:
    """Answer only after a while."""

    async def answer(asked: Asked, line: Line) -> None:
        await asyncio.sleep(seconds)
        await then(asked, line)

    return answer


def _events(
    content: str,
    calls: Sequence[FunctionCall],
    finish: str,
    usage: tuple[int, int] | None,
    piece_chars: int,
) -> Iterator[Json]:
    yield delta(role="assistant", content="")
    for text in _cut(content, piece_chars):
        yield delta(content=text)
    for index, call in enumerate(calls):
        written = _call(call)
        function = written["function"]
        assert isinstance(function, dict)
        arguments, function["arguments"] = str(function["arguments"]), ""
        yield delta(tool_calls=[{"index": index, **written}])
        for text in _cut(arguments, piece_chars):
            yield delta(tool_calls=[{"index": index, "function": {"arguments": text}}])
    yield delta(finish=finish)
    if usage is not None:
        yield {"choices": [], **_used(usage)}


def _cut(text: str, chars: int) -> Iterator[str]:
    return (text[at : at + chars] for at in range(0, len(text), chars))


def _call(call: FunctionCall) -> dict[str, Json]:
    function: dict[str, Json] = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _used(usage: tuple[int, int] | None) -> dict[str, Json]:
    if usage is None:
        return {}
    prompt, reply = usage
    told: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "total_tokens": prompt + reply,
    }
    return {"usage": told}


async def _request(reader: asyncio.StreamReader, connection: int) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return Asked(head, await reader.readexactly(int(fields["content-length"])), connection)
