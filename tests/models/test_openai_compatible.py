"""The adapter against servers that answer well, badly, slowly, too much, or with lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.models.addresses import endpoint
from mana.models.choose import model_from_settings, model_info
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.rules import Rules
from mana.planning.ports import FunctionCall, Message, ModelFailed, ModelRequest, Usage

SECRET = "a very private line"
TOOL: dict[str, Json] = {"type": "function", "function": {"name": "create_task"}}
REQUEST = ModelRequest(
    (
        Message("system", "Work."),
        Message("user", SECRET),
        Message("assistant", "", (FunctionCall("c1", "create_task", {"title": "x"}),)),
        Message("tool", "{}", call_id="c1"),
    ),
    (TOOL,),
    0.3,
    64,
)
Answer = Callable[[asyncio.StreamWriter, bytes, bytes], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Serve one canned answer per request on a free port; give the base address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = head.decode("latin-1").lower().split("\r\n")
            size = next(int(f.split(":")[1]) for f in fields if f.startswith("content-length"))
            body = await reader.readexactly(size)
            await answer(writer, head, body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.close()


def http(body: bytes, status: str = "200 OK") -> bytes:
    """Return an HTTP answer."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


def completion(**more: object) -> dict[str, object]:
    """Return an honest completion with one call."""
    function = {"name": "create_task", "arguments": '{"title": "Call"}'}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c9", "type": "function", "function": function}],
    }
    return {
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 9, "total_tokens": 129},
        **more,
    }


async def ask(raw: bytes, **more: object) -> object:
    """Return the reply to an HTTP answer, or the failure."""

    async def answer(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(raw)

    async with server(answer) as base:
        model = OpenAiCompatible(base, model="m", **more)  # type: ignore[arg-type]
        try:
            return await model.complete(REQUEST)
        except ModelFailed as failed:
            assert SECRET not in f"{failed} {failed.detail} {failed.__cause__}"
            return failed.kind


@pytest.mark.anyio
@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_request_has_the_known_form(suffix: str) -> None:
    """Address, key, messages, calls and tools travel as such endpoints expect."""
    seen: list[tuple[bytes, bytes]] = []

    async def answer(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        seen.append((head, body))
        writer.write(http(json.dumps(completion()).encode()))

    async with server(answer) as base:
        model = OpenAiCompatible(base + suffix, key="k-1", model="tiny")
        reply = await model.complete(REQUEST)
    [(head, body)] = seen
    sent = json.loads(body)
    assert head.startswith(b"POST /v1/chat/completions ")
    assert b"authorization: bearer k-1" in head.lower()
    assert (sent["model"], sent["max_tokens"], sent["tool_choice"]) == ("tiny", 64, "auto")
    assert sent["tools"] == [TOOL]
    assert json.loads(sent["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {
        "title": "x"
    }
    assert sent["messages"][3]["tool_call_id"] == "c1"
    assert reply.calls == (FunctionCall("c9", "create_task", {"title": "Call"}),)
    assert (reply.finish, reply.usage) == ("calls", Usage(120, 9))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status, kind",
    [
        ("401 Unauthorized", "auth"),
        ("429 Too Many Requests", "rate-limit"),
        ("500 Broken", "provider"),
        ("504 Gateway Timeout", "timeout"),
        ("400 Bad Request", "refused-reply"),
        ("302 Found\r\nLocation: http://127.0.0.1:1/elsewhere", "provider"),
    ],
)
async def test_failures_are_classed(status: str, kind: str) -> None:
    """A status becomes the class that back-off needs; a redirect is not followed."""
    assert await ask(http(SECRET.encode(), status)) == kind


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [5]}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"tool_calls": 5}}]}',
        b'{"choices": [{"message": {"tool_calls": [{}]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": 5}}]}}]}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
async def test_garbage_is_a_refused_reply(body: bytes) -> None:
    """A body that is no completion is refused, and breaks nothing."""
    assert await ask(http(body)) == "refused-reply"


@pytest.mark.anyio
async def test_bytes_that_are_no_http_fail() -> None:
    """A server that speaks something else is a provider failure."""
    assert await ask(b"\x00\x01garbage\r\n\r\n") == "provider"


@pytest.mark.anyio
async def test_an_unreachable_endpoint_fails() -> None:
    """Nobody listening is a provider failure."""
    model = OpenAiCompatible("http://127.0.0.1:1", model="m")
    with pytest.raises(ModelFailed) as failed:
        await model.complete(REQUEST)
    assert failed.value.kind == "provider"


@pytest.mark.anyio
async def test_a_stall_ends_at_the_limit() -> None:
    """A server that sends a byte now and then cannot hold the run for ever."""

    async def drip(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(drip) as base:
        model = OpenAiCompatible(base, model="m", timeout_s=0.3)
        with pytest.raises(ModelFailed) as failed:
            await model.complete(REQUEST)
    assert failed.value.kind == "timeout"


@pytest.mark.anyio
async def test_a_flood_is_cut() -> None:
    """A reply beyond the size limit is refused, not read to its end."""
    assert await ask(http(b" " * 200_000), reply_bytes_max=100_000) == "refused-reply"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": "120", "completion_tokens": 5},
        {"prompt_tokens": 10**12, "completion_tokens": 5},
        {"prompt_tokens": 0, "completion_tokens": 0},
    ],
)
async def test_a_usage_that_cannot_be_true_is_none(usage: object) -> None:
    """A usage that is missing, malformed or implausible does not lift the budget."""
    reply = await ask(http(json.dumps(completion(usage=usage)).encode()))
    assert reply.usage is None  # type: ignore[attr-defined]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "written, read",
    [("{broken", "{broken"), ("", {}), (None, {}), ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1})],
)
async def test_arguments_that_are_no_json_stay_text(written: object, read: object) -> None:
    """Malformed arguments never become an empty object."""
    call = {"id": "c", "function": {"name": "create_task", "arguments": written}}
    choice = {"message": {"tool_calls": [call]}, "finish_reason": "weird"}
    reply = await ask(http(json.dumps({"choices": [choice]}).encode()))
    assert reply.calls == (FunctionCall("c", "create_task", read),)  # type: ignore[attr-defined]
    assert reply.finish == "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "base, origin, local",
    [
        ("http://localhost:11434", "http://localhost:11434", True),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080", True),
        ("http://[::1]:8080", "http://[::1]:8080", True),
        ("https://API.Example.com/v1/", "https://api.example.com", False),
        ("https://example.com:8443/llm/v1", "https://example.com:8443", False),
    ],
)
def test_the_description_says_where_text_goes(base: str, origin: str, local: bool) -> None:
    """The name in a grant is the origin; the sentence names the host, or this machine."""
    model = OpenAiCompatible(base, model="m")
    info = model_info(model)
    assert (info.endpoint, info.local) == (origin, local)
    assert ("stays on this machine" in info.description) == local
    if not local:
        assert endpoint(base).host in info.description


@pytest.mark.parametrize(
    "base",
    ["", "example.com", "ftp://example.com", "http://", "http://u:p@example.com", "http://a?b"],
)
def test_an_address_that_is_none_is_refused(base: str) -> None:
    """What is no plain web address is refused at the start, not at the first call."""
    with pytest.raises(Invalid):
        endpoint(base)


def test_settings_choose_the_model() -> None:
    """Without an address the offline rules are at work; a key without an address is an error."""
    assert isinstance(model_from_settings(None), Rules)
    assert isinstance(model_from_settings("", "", ""), Rules)
    chosen = model_from_settings("http://localhost:1234", None, "tiny")
    assert (chosen.name, chosen.endpoint) == ("tiny", "http://localhost:1234")
    with pytest.raises(Invalid):
        model_from_settings(None, "key")
    with pytest.raises(Invalid):
        model_from_settings("http://localhost:1", "k\u00e9y", "m")
