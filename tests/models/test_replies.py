"""However an endpoint cuts its bytes, the reply is the same; whatever it writes, nothing breaks."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mana.domain.encoding import Json
from mana.models.replies import Phase, Reading
from mana.planning.ports import FunctionCall, ModelFailed, ModelReply
from mana.testing.endpoints import completion, delta

TEXT = st.text(max_size=40)
NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
ARGUMENTS: st.SearchStrategy[Any] = st.dictionaries(
    TEXT, st.one_of(TEXT, st.integers(), st.lists(TEXT, max_size=2)), max_size=3
)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), max_size=4).map(
    lambda made: [FunctionCall(f"c{n}", *one) for n, one in enumerate(made)]
)


def read(data: bytes, cuts: list[int]) -> ModelReply:
    """Read these bytes, cut at these places."""
    reading = Reading()
    last = 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        reading.feed(data[last:cut])
        last = cut
    return reading.reply(sent_bytes=1_000, asked_tokens=1_000)


def written(*events: Json, end: str) -> bytes:
    """Return a stream of these events as bytes."""
    lines = [f"data: {json.dumps(event)}{end}{end}" for event in events]
    return "".join([*lines, f"data: [DONE]{end}{end}"]).encode()


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Return a text in pieces, its surrogates apart as JSON allows."""
    units = text.encode("utf-16-le")
    places = sorted({2 * min(cut, len(units) // 2) for cut in cuts} | {0, len(units)})
    parts = (units[a:b] for a, b in itertools.pairwise(places))
    return [part.decode("utf-16-le", "surrogatepass") for part in parts]


@given(
    content=TEXT,
    calls=CALLS,
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 2_000), max_size=12),
    inner=st.lists(st.integers(0, 60), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_cuts_change_nothing(
    content: str,
    calls: list[FunctionCall],
    ends: str,
    cuts: list[int],
    inner: list[int],
    order: object,
) -> None:
    """Text and calls, cut anywhere by line, event, character or call, are put together again."""
    events = [delta(content=piece) for piece in pieces(content, inner)]
    queues: list[list[Json]] = []
    for index, call in enumerate(calls):
        parts = pieces(json.dumps(call.arguments, ensure_ascii=False), inner)
        queue: list[Json] = [{"index": index, "id": call.id, "function": {"name": call.name}}]
        queue += [{"index": index, "function": {"arguments": part}} for part in parts]
        queues.append(queue)
    while queues:
        queue = order.choice(queues)  # type: ignore[attr-defined]
        events.append(delta(tool_calls=[queue.pop(0)]))
        queues = [one for one in queues if one]
    events.append(delta(finish="tool_calls" if calls else "stop"))
    reply = read(written(*events, end=ends), cuts)
    assert reply.content == content
    assert reply.calls == tuple(calls)


@given(content=TEXT, calls=CALLS, cuts=st.lists(st.integers(0, 500), max_size=6))
def test_a_whole_reply_may_be_cut_too(
    content: str, calls: list[FunctionCall], cuts: list[int]
) -> None:
    """One document, cut anywhere, is the same document."""
    reply = read(json.dumps(completion(content, *calls)).encode(), cuts)
    assert (reply.content, reply.calls) == (content, tuple(calls))


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"data: ",
                    b"\n",
                    b"\r",
                    b"{",
                    b"}",
                    b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{}}]}}]}',
                    b'{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}',
                    b'{"usage":{"prompt_tokens":1e99}}',
                    b"[DONE]",
                    b"\xff",
                    b"\xef\xbb\xbf",
                    b":",
                    b"null",
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_bytes_are_a_reply_or_refused(data: bytes, cuts: list[int]) -> None:
    """No bytes raise anything but a failure of the model, and cuts do not change which."""

    def outcome(places: list[int]) -> object:
        try:
            return read(data, places)
        except ModelFailed as failed:
            return failed.kind

    assert outcome(cuts) == outcome([])


def test_phases_follow_each_other() -> None:
    """Signs of life are no reply; an end is an end."""
    reading, seen = Reading(), []
    for event in (delta(role="assistant", content=""), delta(content="x"), delta(finish="stop")):
        reading.feed(b": ping\n\n" + f"data: {json.dumps(event)}\n\n".encode())
        seen.append(reading.phase)
    reading.feed(b"data: [DONE]\n\n")
    assert [*seen, reading.phase] == [Phase.WAITING, Phase.COMING, Phase.ENDING, Phase.DONE]
