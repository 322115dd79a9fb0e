"""The adapter against servers that answer well, badly, slowly, too much, or with lies."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.models.addresses import endpoint
from mana.models.choose import model_infos
from mana.models.connections import Connections
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.settings import ModelSetting, ModelSettings
from mana.planning.ports import (
    FunctionCall,
    Message,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Usage,
)
from mana.testing.endpoints import (
    Answer,
    Asked,
    Line,
    body,
    completion,
    deaf,
    delta,
    drips,
    drops,
    model_server,
    never_streams,
    nobody,
    pieces,
    raw,
    redirects,
    says,
    silent,
    stalls,
    streams,
    unless,
    unreached,
    whole,
)

pytestmark = pytest.mark.anyio

SECRET = "a very private line"
KEY = "sk-very-private"
TOOL: dict[str, Json] = {"type": "function", "function": {"name": "create_task"}}
MESSAGES = (
    Message("system", "Work."),
    Message("user", SECRET),
    Message("assistant", "", (FunctionCall("c1", "create_task", {"title": "x"}),)),
    Message("tool", "{}", call_id="c1"),
)
CALL = FunctionCall("c9", "create_task", {"title": "Call", "notes": "Ünïcode 🙂"})
REFUSED_BEFORE_WORK = (400, 401, 402, 403, 404, 405, 413, 415, 422, 429)
LATER = FunctionCall("c10", "create_note", {"content": "x" * 40})


def request(heard: Callable[[int], None] | None = None) -> ModelRequest:
    """Return a request with a person's text."""
    return ModelRequest(MESSAGES, (TOOL,), 0.3, 64, heard)


async def ask(answer: Answer, **more: object) -> ModelReply:
    """Return the reply of a server that answers so; check that a failure shows no text."""
    async with model_server(answer) as server:
        model = OpenAiCompatible(server.url, key=KEY, model="m", **more)  # type: ignore[arg-type]
        try:
            return await model.complete(request())
        except ModelFailed as failed:
            shown = f"{failed!r} {failed.detail} {model!r} {vars(failed)}"
            assert SECRET not in shown
            assert KEY not in shown
            assert failed.__context__ is None
            assert failed.__cause__ is None
            raise


async def failure(answer: Answer, **more: object) -> ModelFailed:
    """Return the failure of a call."""
    with pytest.raises(ModelFailed) as failed:
        await ask(answer, **more)
    return failed.value


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_request_has_the_known_form(suffix: str) -> None:
    """Address, key, messages, calls and tools travel as such endpoints expect."""
    async with model_server(says("Hi", CALL)) as server:
        await OpenAiCompatible(server.url + suffix, key="k-1", model="tiny").complete(request())
    [asked] = server.asked
    assert asked.head.startswith("POST /v1/chat/completions ")
    assert "authorization: bearer k-1" in asked.head.lower()
    sent = asked.body
    assert (sent["model"], sent["max_tokens"], sent["tool_choice"]) == ("tiny", 64, "auto")
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})
    assert sent["tools"] == [TOOL]
    assert json.loads(sent["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {
        "title": "x"
    }
    assert sent["messages"][3]["tool_call_id"] == "c1"


@pytest.mark.parametrize("stream", [True, False])
async def test_both_forms_give_the_same_reply(stream: bool) -> None:
    """In pieces or whole: text, calls in their order, the end and the usage are the same."""
    reply = await ask(says("Done, Änne.", CALL, LATER, usage=(400, 20)), stream=stream)
    assert reply == ModelReply("Done, Änne.", (CALL, LATER), "calls", Usage(400, 20))


async def test_a_whole_reply_is_taken_where_pieces_were_asked_for() -> None:
    """A server that does not know streams at all, and says nothing of it, is understood."""
    assert (await ask(whole(completion("Hi.")))).content == "Hi."


async def test_what_comes_is_heard() -> None:
    """While a reply comes, the number of its characters grows up to all of them."""
    heard: list[int] = []
    async with model_server(says("Fourteen chars", CALL)) as server:
        await OpenAiCompatible(server.url, model="m").complete(request(heard.append))
    assert heard == sorted(heard)
    assert len(set(heard)) > 3
    assert heard[-1] == 14 + len(json.dumps(CALL.arguments))


async def test_a_refused_stream_is_asked_for_once() -> None:
    """An endpoint without streams is asked again for a whole reply, and never again for pieces."""
    async with model_server(never_streams(says("Hi."))) as server, Connections() as connections:
        for _ in range(2):
            model = OpenAiCompatible(server.url, model="m", connections=connections)
            assert (await model.complete(request())).content == "Hi."
    assert [asked.streams for asked in server.asked] == [True, False, False]


async def test_other_refusals_are_not_asked_again() -> None:
    """A request that is refused for another reason is not sent a second time."""
    async with model_server(whole({"error": "too long"}, status=400)) as server:
        with pytest.raises(ModelFailed) as failed:
            await OpenAiCompatible(server.url, model="m").complete(request())
    assert (failed.value.kind, len(server.asked)) == ("refused-reply", 1)


async def test_a_failed_second_try_is_not_remembered() -> None:
    """Only an endpoint that gave a whole reply counts as one without streams."""
    connections = Connections(kept=0)
    async with model_server(never_streams(body(b"", 500))) as server:
        model = OpenAiCompatible(server.url, model="m", connections=connections)
        with pytest.raises(ModelFailed):
            await model.complete(request())
    assert connections.quirks(f"{server.url}/v1/chat/completions", "m") == frozenset()


async def test_an_endpoint_is_asked_as_it_wants() -> None:
    """One that names the limit of replies otherwise, or has one temperature, is learnt once."""
    picky = unless(
        lambda asked: "max_tokens" in asked,
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        unless(
            lambda asked: "temperature" in asked,
            "Unsupported value: 'temperature' does not support 0.3 with this model.",
            never_streams(says("Hi.")),
        ),
    )
    async with model_server(picky) as server, Connections() as connections:
        for _ in range(2):
            model = OpenAiCompatible(server.url, model="m", connections=connections)
            assert (await model.complete(request())).content == "Hi."
        other = OpenAiCompatible(server.url, model="n", connections=connections)
        assert (await other.complete(request())).content == "Hi."
    assert [asked.body["model"] for asked in server.asked] == ["m"] * 5 + ["n"] * 4
    last = server.asked[4].body
    assert (last["max_completion_tokens"], last["stream"]) == (64, False)
    assert not {"max_tokens", "temperature", "stream_options"} & set(last)


async def test_an_endpoint_that_always_wants_otherwise_is_left() -> None:
    """One that blames everything that it is sent is asked a few times, never for ever."""
    echo = whole({"error": "stream max_completion_tokens temperature"}, status=422)
    async with model_server(echo) as server:
        with pytest.raises(ModelFailed) as failed:
            await OpenAiCompatible(server.url, model="m").complete(request())
    assert (failed.value.kind, len(server.asked)) == ("refused-reply", 4)
    assert failed.value.__context__ is None


def _piece(index: int | None, text: Json = None, name: str = "", call_id: str = "") -> Json:
    """Return an event with a piece of a call."""
    function: dict[str, Json] = {"arguments": text, **({"name": name} if name else {})}
    place: dict[str, Json] = {} if index is None else {"index": index}
    named: dict[str, Json] = {"id": call_id} if call_id else {}
    return delta(tool_calls=[{**place, **named, "function": function}])


@pytest.mark.parametrize(
    ("events", "calls"),
    [
        (
            [_piece(1, '{"b"', "two", "c2"), _piece(0, "{}", "one", "c1"), _piece(1, ": 2}")],
            [("c1", "one", {}), ("c2", "two", {"b": 2})],
        ),
        (
            [_piece(7, "{}", "late", "c7"), _piece(3, "{}", "early", "c3")],
            [("c3", "early", {}), ("c7", "late", {})],
        ),
        (
            [_piece(0, '{"a"', "one", "c1"), _piece(0, ": 1", "one", "c1"), _piece(0, "}", "one")],
            [("c1", "one", {"a": 1})],
        ),
        ([_piece(0, "", "create_"), _piece(0, "{}", "task")], [("", "create_task", {})]),
        ([_piece(0, "", "create_"), _piece(0, "{}", "create_task")], [("", "create_task", {})]),
        ([_piece(None, "{}", "one", "c1"), _piece(None, "{}", "two", "c2")], None),
        ([_piece(0, "{}", "one", "c1"), _piece(0, "{}", "two", "c2")], None),
        (
            [_piece(None, '{"a"', "one"), _piece(None, ": 1}"), _piece(None, "{}", "one")],
            [("", "one", {"a": 1}), ("", "one", {})],
        ),
        (
            [
                _piece(None, '{"a"', "x", "c1"),
                _piece(None, "{}", "y", "c2"),
                _piece(None, ":1}", "", "c1"),
            ],
            [("c1", "x", {"a": 1}), ("c2", "y", {})],
        ),
        ([_piece(0, {"a": 1}, "one", "c1")], [("c1", "one", {"a": 1})]),
        ([_piece(0, None, "one", "c1")], [("c1", "one", {})]),
        ([_piece(0, '{"cut', "one", "c1")], [("c1", "one", '{"cut')]),
        ([_piece(0, "[1]", "one", "c1")], [("c1", "one", [1])]),
        (
            [_piece(0, '{"a": "\ud83d', "one", "c1"), _piece(0, '\ude42"}')],
            [("c1", "one", {"a": "🙂"})],
        ),
    ],
)
async def test_calls_are_put_together(
    events: list[Json], calls: list[tuple[str, str, Json]] | None
) -> None:
    """Whatever the order and form of its pieces, a call has one name and all of its arguments."""
    reply = await ask(streams(*events, delta(finish="tool_calls")))
    expected = calls or [("c1", "one", {}), ("c2", "two", {})]
    assert [(one.id, one.name, one.arguments) for one in reply.calls] == expected


@pytest.mark.parametrize(
    "event",
    [
        delta(tool_calls=5),
        delta(tool_calls=[5]),
        delta(tool_calls=[{"index": 0}]),
        delta(tool_calls=[{"index": 0, "function": {"name": 5}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
        delta(tool_calls=[{"index": n, "function": {"name": "x"}} for n in range(129)]),
        delta(tool_calls=[{"index": 0, "function": {"name": "x" * 10_001}}]),
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"delta": "x"}]},
        [],
        5,
    ],
)
async def test_pieces_of_another_form_are_refused(event: Json) -> None:
    """A stream that is none of the known ones is a refused reply, and breaks nothing."""
    assert (await failure(streams(event, delta(finish="stop")))).kind == "refused-reply"


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content-filter"),
        ("eos", "other"),
    ],
)
async def test_the_end_is_told(said: str, finish: str) -> None:
    """A reply that was cut off, or filtered, is not taken for one that ended by itself."""
    assert (await ask(streams(delta(content="Hi"), delta(finish=said)))).finish == finish
    document: Json = {"choices": [{"message": {"content": "Hi"}, "finish_reason": said}]}
    assert (await ask(whole(document))).finish == finish


@pytest.mark.parametrize(
    "data",
    [
        b'data:{"choices":[{"delta":{"content":"Hi"}}]}\n\ndata:[DONE]\n\n',
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\r\n\r\ndata: [DONE]\r\n\r\n',
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\r\rdata: [DONE]\r\r',
        b'data: {"choices":\r\ndata: [{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\r\n\r\n',
        b': ping\n\nevent: x\nid: 1\ndata: {"choices":\ndata: [{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n',
        b'\xef\xbb\xbfdata: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}',
        b'\n\n  {"choices": [{"message": {"content": [{"type": "text", "text": "Hi"}]}}]}',
        b'data: {"choices":[{"index":1,"delta":{"content":"No"}},{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\nmore',
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_every_way_to_write_lines_is_read(data: bytes, size: int) -> None:
    """Line ends, comments, events over several lines, and cuts anywhere change nothing."""
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    assert (await ask(pieces(*cut))).content == "Hi"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{",
        b'{"choices": []}',
        b'{"choices": [5]}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"tool_calls": 5}}]}',
        b'{"choices": [{"message": {"tool_calls": [{}]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": 5}}]}}]}',
        b'{"a":' * 100_000,
        b"\xff\xfe\x00",
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b"data: {broken\n\n",
        b"data: [DONE]\n\n",
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_garbage_is_a_refused_reply(data: bytes, stream: bool) -> None:
    """A body that is no completion is refused, malformed UTF-8 too, and breaks nothing."""
    assert (await failure(body(data), stream=stream)).kind == "refused-reply"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "auth"),
        (402, "auth"),
        (403, "auth"),
        (429, "rate-limit"),
        (500, "provider"),
        (503, "provider"),
        (408, "timeout"),
        (504, "timeout"),
        (400, "refused-reply"),
        (404, "refused-reply"),
        (422, "refused-reply"),
        (201, "provider"),
    ],
)
async def test_failures_are_classed(status: int, kind: str) -> None:
    """A status becomes the class that back-off needs; what the endpoint wrote is not kept."""
    assert (await failure(body(SECRET.encode(), status))).kind == kind


@pytest.mark.parametrize("code", [429, "overloaded", None])
async def test_a_failure_in_the_stream_is_one(code: Json) -> None:
    """An endpoint that gives up in its reply has failed, whatever it wrote before."""
    event: Json = {"error": {"message": SECRET, "code": code}}
    kind = (await failure(streams(delta(content="Hi"), event))).kind
    assert kind == ("rate-limit" if code == 429 else "provider")


@pytest.mark.parametrize(
    ("answer", "unbilled"),
    [
        *((body(b"", status), True) for status in REFUSED_BEFORE_WORK),
        *((body(b"", status), False) for status in (201, 307, 408, 409, 500, 501, 502, 503, 504)),
        (body(b"", 429, "Retry-After: 7"), True),
        (whole({"error": {"message": "no stream"}}, status=501), False),
        (streams({"error": {"message": "", "code": 429}}), False),
        (streams(delta(content="Hi"), done=False), False),
        (drops(), False),
        (drops(delta(content="Hi")), False),
        (raw(b""), False),
        (pieces(b"no JSON"), False),
        (body(b"", 200, "Content-Encoding: gzip"), False),
    ],
)
async def test_only_what_is_certain_costs_nothing(answer: Answer, unbilled: bool) -> None:
    """A refusal before any work bills nothing; whatever may have begun counts in full."""
    assert (await failure(answer)).unbilled is unbilled


async def test_who_is_not_reached_does_no_work() -> None:
    """A call that came to no connection bills nothing; one that was taken and not answered does."""
    found = []
    tls = Connections(kept=0, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with nobody() as down, deaf() as asked, deaf("https") as greeted, unreached() as far:
        for url, timeout_s in ((down, 9), (far, 0.4), (greeted, 0.4), (asked, 0.4)):
            with pytest.raises(ModelFailed) as failed:
                model = OpenAiCompatible(url, model="m", timeout_s=timeout_s, connections=tls)
                await model.complete(request())
            found.append((failed.value.kind, failed.value.unbilled))
    assert found == [("provider", True), ("timeout", True), ("timeout", True), ("timeout", False)]


async def test_a_name_that_is_not_known_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no address is found nothing was sent."""

    def unknown(*_asked: object, **_more: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ModelFailed) as failed:
        await OpenAiCompatible("http://models.example.org", model="m").complete(request())
    assert (failed.value.kind, failed.value.unbilled) == ("provider", True)


@pytest.mark.parametrize("status", [400, 501])
async def test_a_second_try_does_not_hide_the_first(status: int) -> None:
    """A call that is asked once more bills nothing only where no try of it can have done work."""
    async with model_server(whole({"error": "no stream"}, status=status), body(b"", 401)) as server:
        with pytest.raises(ModelFailed) as failed:
            await OpenAiCompatible(server.url, model="m").complete(request())
    assert (len(server.asked), failed.value.unbilled) == (2, status == 400)


@pytest.mark.parametrize(
    ("told", "wait_ms"),
    [
        ("7", 7_000),
        ("1.5", 1_500),
        ("0", None),
        ("-3", None),
        ("3601", None),
        ("9" * 500, None),
        ("soon", None),
        ("٣", None),
    ],
)
async def test_the_time_to_wait_is_told_on(told: str, wait_ms: int | None) -> None:
    """How long the endpoint asks to be left alone is known, up to an hour; nonsense is not."""
    field = f"Retry-After: {told}".encode().decode("latin-1")
    field = field if field.isascii() else "Retry-After: x"
    assert (await failure(body(b"", 429, field))).retry_after_ms == wait_ms


async def test_a_date_to_wait_for_is_told_on() -> None:
    """A moment is as good as a number of seconds."""
    field = f"Retry-After: {formatdate(time.time() + 60, usegmt=True)}"
    wait_ms = (await failure(body(b"", 429, field))).retry_after_ms
    assert wait_ms is not None
    assert 50_000 < wait_ms <= 60_000


async def test_a_redirect_is_not_followed() -> None:
    """Text never goes to a place that the endpoint names: no grant names it."""
    async with model_server(says("Thanks!")) as other:
        failed = await failure(redirects(f"{other.url}/v1/chat/completions"))
    assert failed.kind == "provider"
    assert other.asked == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text goes to the endpoint itself, whatever the environment says of proxies."""
    async with model_server(says("Thanks!")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await ask(says("Hi."))).content == "Hi."
    assert proxy.asked == []


async def test_nothing_is_logged_that_a_person_wrote(caplog: pytest.LogCaptureFixture) -> None:
    """The log of a call, at its most talkative, has no text, no reply and no key."""
    caplog.set_level(logging.DEBUG)
    await ask(says(f"About {SECRET}", CALL))
    await failure(streams({"error": {"message": SECRET}}))
    assert SECRET not in caplog.text
    assert KEY not in caplog.text


async def test_bytes_that_are_no_http_fail() -> None:
    """A server that speaks something else is a provider failure."""
    assert (await failure(raw(b"\x00\x01garbage\r\n\r\n"))).kind == "provider"


async def test_a_head_without_an_end_is_cut() -> None:
    """A head that goes on and on is not kept."""
    endless = b"HTTP/1.1 200 OK\r\n" + b"X-Field: " + b"x" * 300_000
    assert (await failure(raw(endless))).kind == "provider"


async def test_an_unreachable_endpoint_fails() -> None:
    """Nobody listening is a provider failure."""
    model = OpenAiCompatible("http://127.0.0.1:1", model="m")
    with pytest.raises(ModelFailed) as failed:
        await model.complete(request())
    assert failed.value.kind == "provider"
    assert failed.value.__context__ is None


async def test_no_answer_ends_at_the_limit() -> None:
    """A server that takes a request and never answers is given up."""
    assert (await failure(silent, timeout_s=0.3)).kind == "timeout"


@pytest.mark.parametrize("data", [b" ", b": still here\n\n"])
async def test_a_drip_ends_at_the_limit(data: bytes) -> None:
    """A server that sends a byte now and then cannot hold the run for ever."""
    assert (await failure(drips(data), timeout_s=0.3)).kind == "timeout"


async def test_silence_ends_a_reply_that_has_begun() -> None:
    """Once a reply comes, a longer pause is its end; before, a model may think."""
    began = time.monotonic()
    failed = await failure(stalls(delta(content="Hi")), silence_s=0.1, timeout_s=60)
    assert failed.kind == "timeout"
    assert time.monotonic() - began < 30


async def test_thinking_is_no_silence() -> None:
    """Before the reply begins, only the limit of the whole call counts."""

    async def thinks(_asked: Asked, line: Line) -> None:
        await line.head()
        await line.chunk(b": thinking\n\n")
        await asyncio.sleep(0.3)
        await line.event(delta(content="Hi", finish="stop"))
        await line.chunk()

    assert (await ask(thinks, silence_s=0.05)).content == "Hi"


@pytest.mark.parametrize("ends", [stalls, drops])
async def test_a_reply_that_is_whole_needs_no_end(ends: Callable[..., Answer]) -> None:
    """A server that says how its reply ended, and then nothing, has given a reply."""
    answer = ends(delta(content="Hi"), delta(finish="stop"))
    assert (await ask(answer, timeout_s=60)).content == "Hi"


@pytest.mark.parametrize(
    "answer",
    [drops(), drops(delta(content="Half")), streams(delta(content="Half"), done=False)],
)
async def test_half_a_reply_is_none(answer: Answer) -> None:
    """A connection that is cut, or a stream that ends too early, is a provider failure."""
    assert (await failure(answer)).kind == "provider"


@pytest.mark.parametrize("data", [b" " * 200_000, b"data: " + b"x" * 200_000, b"x\n" * 100_000])
async def test_a_flood_is_cut(data: bytes) -> None:
    """A reply beyond the size limit is refused, not read to its end."""
    failed = await failure(body(data), reply_bytes_max=100_000)
    assert (failed.kind, failed.message) == ("refused-reply", "the model's reply is too large")


async def test_an_endless_line_is_cut() -> None:
    """A line that does not end is refused, long before the reply is too large."""
    failed = await failure(drips(b"x" * 100_000, every_s=0), reply_bytes_max=10**12, timeout_s=60)
    assert failed.kind == "refused-reply"


async def test_what_is_compressed_is_not_unpacked() -> None:
    """A small body that would become a huge one is refused as it is; none is asked for."""
    bomb = gzip.compress(b" " * 50_000_000)
    failed = await failure(body(bomb, 200, "Content-Encoding: gzip"))
    assert (failed.kind, failed.message) == ("refused-reply", "the model's reply is compressed")
    async with model_server(says("Hi")) as server:
        await OpenAiCompatible(server.url, model="m").complete(request())
    assert "accept-encoding: identity" in server.asked[0].head.lower()


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
        {"prompt_tokens": 120, "completion_tokens": 0},
        {"prompt_tokens": 120, "completion_tokens": 257},
        {"prompt_tokens": 120, "completion_tokens": 10**30},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_usage_that_cannot_be_true_is_none(usage: Json, stream: bool) -> None:
    """A usage that is missing, malformed or implausible, either way, is not believed."""
    text = "a reply of more than forty bytes, so at least one token"
    events = (delta(content=text), delta(finish="stop"), {"choices": [], "usage": usage})
    answer = streams(*events) if stream else whole({**completion(text), "usage": usage})
    assert (await ask(answer, stream=stream)).usage is None


@pytest.mark.parametrize(
    ("written", "read"),
    [("{broken", "{broken"), ("", {}), (None, {}), ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1})],
)
async def test_arguments_that_are_no_json_stay_text(written: Json, read: Json) -> None:
    """Malformed arguments never become an empty object."""
    call: Json = {"id": "c", "function": {"name": "create_task", "arguments": written}}
    choice: Json = {"message": {"tool_calls": [call]}, "finish_reason": "weird"}
    reply = await ask(whole({"choices": [choice]}))
    assert reply.calls == (FunctionCall("c", "create_task", read),)
    assert reply.finish == "other"


@pytest.mark.parametrize(
    "answer", [silent, stalls(), stalls(delta(content="Hi")), drips(b": x\n\n")]
)
async def test_to_cancel_closes_the_connection(answer: Answer) -> None:
    """A run that is stopped is cut off at the endpoint too, so that it need not go on."""
    async with model_server(answer) as server, Connections() as connections:
        model = OpenAiCompatible(server.url, model="m", connections=connections)
        call = asyncio.create_task(model.complete(request()))
        await server.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_connections_are_kept_alive() -> None:
    """Calls of one process after another need one connection, also by models made anew."""
    async with model_server(says("Hi", CALL), whole(completion("Hi"))) as server:
        async with Connections() as connections:
            for _ in range(3):
                model = OpenAiCompatible(server.url, model="m", connections=connections)
                await model.complete(request())
        assert (len(server.asked), server.connections) == (3, 1)


async def test_a_model_alone_keeps_no_connection() -> None:
    """Without shared connections each call closes its own."""
    async with model_server(says("Hi")) as server:
        model = OpenAiCompatible(server.url, model="m")
        for _ in range(2):
            await model.complete(request())
        assert server.connections == 2


@pytest.mark.parametrize(
    ("base", "origin", "local"),
    [
        ("http://localhost:11434", "http://localhost:11434", True),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080", True),
        ("http://[::1]:8080", "http://[::1]:8080", True),
        ("https://API.Example.com/v1/", "https://api.example.com", False),
        ("https://bücher.example", "https://xn--bcher-kva.example", False),
        ("https://example.com:8443/llm/v1", "https://example.com:8443", False),
        ("https://example.com:443", "https://example.com", False),
    ],
)
def test_the_description_says_where_text_goes(base: str, origin: str, local: bool) -> None:
    """The name in a grant is the origin; the sentence names the host, or the machine that asks."""
    [info] = model_infos(ModelSettings((ModelSetting("a", base, "m"),)))
    assert (info.endpoint, info.local) == (origin, local)
    assert ("stays on the machine that asks it" in info.description) == local
    if not local:
        assert endpoint(base).host in info.description


@pytest.mark.parametrize(
    "base",
    [
        "",
        "example.com",
        "ftp://example.com",
        "http://",
        "http://u:p@example.com",
        "http://a?b",
        "http://a#b",
        "http://a..b",
        "http://a.",
        "http://a:0",
        "http://" + "a" * 64 + ".example",
        "unix:///run/model.sock",
        "http+unix://%2Frun%2Fmodel.sock",
    ],
)
def test_an_address_that_is_none_is_refused(base: str) -> None:
    """What is no plain web address is refused at the start, not at the first call."""
    with pytest.raises(Invalid):
        endpoint(base)
