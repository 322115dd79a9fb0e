"""A reply, put together from the pieces of a stream or from one document. Pure.

An endpoint writes what it likes: every form that is in use is read, everything else is refused, and
never is more kept than the limits say. No error here holds a word of the reply.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from mana.domain.encoding import Json
from mana.planning.budget import BYTES_PER_TOKEN_MAX, REPLY_TIMES_MAX, TOKENS_BESIDE
from mana.planning.ports import FailureKind, Finish, FunctionCall, ModelFailed, ModelReply, Usage

REPLY_BYTES_MAX: Final = 4 * 1024 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024
CALLS_MAX: Final = 128
NAME_CHARS_MAX: Final = 10_000
_FINISH: Final[Mapping[str, Finish]] = {
    "stop": "stop",
    "tool_calls": "calls",
    "function_call": "calls",
    "length": "length",
    "content_filter": "content-filter",
}
_BILL_NOTHING: Final = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422, 429})
_BROKEN: Final = object()


def failure_of(status: int) -> FailureKind:
    """Return the class of failure of an answer's status."""
    if status in (401, 402, 403):
        return "auth"
    if status == 429:
        return "rate-limit"
    if status in (408, 504):
        return "timeout"
    if status in (400, 404, 405, 413, 415, 422):
        return "refused-reply"
    return "provider"


def bills_nothing(status: int) -> bool:
    """Say whether an endpoint that answers with this status has let no model work.

    It refused the request, its key or its rate before that. Whatever else it answered, a model may
    have worked: a failure of a server says nothing of what went before it.
    """
    return status in _BILL_NOTHING


class Phase(IntEnum):
    """How far a reply is.

    WAITING: nothing of it has come, but perhaps signs of life. COMING: it has begun. ENDING: it is
    whole, and what it used may follow. DONE: nothing follows.
    """

    WAITING = 0
    COMING = 1
    ENDING = 2
    DONE = 3


class Reading:
    """What came of an answer so far. `feed` it bytes, then ask for the `reply`.

    The first byte says what the answer is: `{` begins one document, anything else lines of events.
    """

    def __init__(self, *, bytes_max: int = REPLY_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._is_document: bool | None = None
        self._rest = bytearray()
        self._event: list[bytes] = []
        self._parts = _Parts()
        self._is_done = False

    @property
    def chars(self) -> int:
        """Return how many characters of the reply have come."""
        return self._parts.chars

    @property
    def phase(self) -> Phase:
        """Return how far the reply is."""
        if self._is_done:
            return Phase.DONE
        if self._parts.finish:
            return Phase.ENDING
        return Phase.COMING if self._is_document or self._parts.chars else Phase.WAITING

    def feed(self, piece: bytes) -> None:
        """Take the next bytes; raise ModelFailed for what cannot be part of a reply."""
        self._bytes += len(piece)
        if self._bytes > self._bytes_max:
            raise ModelFailed("refused-reply", "the model's reply is too large")
        if self._is_done:
            return
        self._rest += piece
        if self._is_document is None:
            begin = bytes(self._rest).lstrip(b"\xef\xbb\xbf \t\r\n")
            if not begin:
                return
            self._is_document = begin.startswith(b"{")
        if not self._is_document:
            self._lines(has_end=b"\n" in piece or b"\r" in piece)

    def reply(self, *, sent_bytes: int, asked_tokens: int) -> ModelReply:
        """Return the reply when the answer has ended; raise ModelFailed where there is none.

        `sent_bytes` and `asked_tokens` (the longest reply that was allowed) bound what is believed
        of the usage.
        """
        if self._is_document:
            self._take(_parsed(bytes(self._rest).lstrip(b"\xef\xbb\xbf")), whole=True)
            self._is_done = True
        elif not self._is_done:
            # The last event may lack its empty line.
            self._line(bytes(self._rest))
            self._line(b"")
        if not self._parts.has_choice:
            raise ModelFailed("refused-reply", "the model's reply has no choice")
        if self.phase < Phase.ENDING:
            raise ModelFailed("provider", "the model's reply broke off")
        return self._parts.reply(sent_bytes=sent_bytes, asked_tokens=asked_tokens)

    def _lines(self, *, has_end: bool) -> None:
        """Read all whole lines of what has come."""
        if has_end:
            rest = bytes(self._rest)
            # A line that ends in \r may end in \r\n: what follows is still to come.
            held = rest[-1:] == b"\r"
            lines = rest[: -1 if held else None].splitlines(keepends=True)
            last = b"" if not lines or lines[-1].endswith((b"\n", b"\r")) else lines.pop()
            self._rest = bytearray(last + (b"\r" if held else b""))
            for line in lines:
                if self._is_done:
                    break
                self._line(line.rstrip(b"\r\n"))
        if len(self._rest) > LINE_BYTES_MAX:
            raise ModelFailed("refused-reply", "the model's reply has a line without an end")

    def _line(self, line: bytes) -> None:
        """Take one line of an event stream; an empty one ends the event."""
        line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._event.append(value.removeprefix(b" "))
            return
        data, self._event = b"\n".join(self._event), []
        if not data.strip():
            return
        if data.strip() == b"[DONE]":
            self._is_done = True
            return
        self._take(_parsed(data), whole=False)

    def _take(self, document: Any, *, whole: bool) -> None:
        if document is _BROKEN:
            raise ModelFailed("refused-reply", "the model's reply is not JSON")
        if not isinstance(document, dict):
            raise ModelFailed("refused-reply", "the model's reply is no object")
        self._parts.take(document, member="message" if whole else "delta")


@dataclass(slots=True)
class _Call:
    """A tool call that is coming, and its place among the others.

    `given` holds arguments that came as JSON, not as text.
    """

    place: tuple[int, int]
    id: str = ""
    name: str = ""
    text: list[str] = field(default_factory=list)
    given: Json = None

    def take(self, call_id: str, name: str, arguments: Json) -> None:
        """Take a piece: a name may come in pieces, or whole with each of them."""
        self.id = self.id or call_id
        self.name = name if name.startswith(self.name) else self.name + name
        if len(self.name) > NAME_CHARS_MAX:
            raise _malformed()
        if isinstance(arguments, str):
            self.text.append(arguments)
        elif arguments is not None:
            self.given = arguments

    @property
    def looks_whole(self) -> bool:
        """Say whether its arguments may be complete, by their last character alone."""
        return self.given is not None or (bool(self.text) and self.text[-1].rstrip()[-1:] == "}")

    def arguments(self) -> Json:
        """Return parsed arguments; what is not JSON stays text, and the loop refuses it."""
        if self.given is not None:
            return self.given
        text = _joined(self.text)
        parsed = _parsed(text) if text else {}
        return text if parsed is _BROKEN else parsed


class _Parts:
    """The parts of a reply, whatever the order they come in."""

    def __init__(self) -> None:
        self.chars = 0
        self.finish = ""
        self.has_choice = False
        self._content: list[str] = []
        self._calls: list[_Call] = []
        self._open: dict[int, _Call] = {}
        self._usage: object = None

    def take(self, document: dict[str, Any], *, member: str) -> None:
        """Take one document: the whole reply, or a piece of it."""
        error = document.get("error")
        if error:
            code = error.get("code") if isinstance(error, dict) else None
            kind = failure_of(code) if isinstance(code, int) else "provider"
            raise ModelFailed(kind, "the model's endpoint gave up in its reply")
        if isinstance(document.get("usage"), dict):
            self._usage = document["usage"]
        choices = document.get("choices")
        if choices is None:
            return
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise ModelFailed("refused-reply", "the model's reply has no choice")
        for choice in choices:
            # Only one answer was asked for.
            if choice.get("index", 0) in (0, None):
                self._choice(choice, member)

    def reply(self, *, sent_bytes: int, asked_tokens: int) -> ModelReply:
        """Return the reply; raise ModelFailed where a call has no name."""
        ordered = sorted(self._calls, key=lambda call: call.place)
        if not all(call.name for call in ordered):
            raise _malformed()
        content = _joined(self._content)
        pieces = (content, *(piece for call in ordered for piece in call.text))
        got = sum(len(piece.encode("utf-8", "replace")) for piece in pieces)
        return ModelReply(
            content,
            tuple(FunctionCall(call.id, call.name, call.arguments()) for call in ordered),
            _FINISH.get(self.finish, "other"),
            _usage(self._usage, sent=sent_bytes, got=got, asked=asked_tokens),
        )

    def _choice(self, choice: dict[str, Any], member: str) -> None:
        message = choice.get(member)
        if message is None and member == "delta":
            message = {}
        if not isinstance(message, dict):
            raise ModelFailed("refused-reply", "the model's reply has no message")
        self.has_choice = True
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            self.finish = finish
        for text in _texts(message.get("content")):
            self._content.append(text)
            self.chars += len(text)
        items = message.get("tool_calls")
        if items is None:
            return
        if not isinstance(items, list):
            raise _malformed()
        for place, item in enumerate(items):
            self._piece(item, place if member == "message" else None)

    def _piece(self, item: object, place: int | None) -> None:
        """Take a call, or a piece of one. `place`: where it stands in a whole message."""
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(function, dict):
            raise _malformed()
        name, call_id = function.get("name"), item.get("id")
        if name is not None and not isinstance(name, str):
            raise _malformed()
        name, call_id = name or "", call_id if isinstance(call_id, str) else ""
        index = item.get("index") if place is None else place
        arguments = function.get("arguments")
        if isinstance(index, int) and not isinstance(index, bool):
            call = self._at(index, call_id, name)
        else:
            call = self._after_last(call_id, name)
        call.take(call_id, name, arguments)
        self.chars += len(arguments) if isinstance(arguments, str) else 0

    def _at(self, index: int, call_id: str, name: str) -> _Call:
        """Return the call of an index. Some endpoints give all of their calls the same one."""
        call = self._open.get(index)
        if call is not None:
            is_other = bool(name and call_id and call.id and call_id != call.id)
            if not (is_other and call.looks_whole):
                return call
        call = self._open[index] = self._new(index)
        return call

    def _after_last(self, call_id: str, name: str) -> _Call:
        """Return the call of a piece without an index: by its id, or the one that came last."""
        for call in self._calls:
            if call_id and call.id == call_id:
                return call
        last = self._calls[-1] if self._calls else None
        is_more = last is not None and not call_id and (not name or not last.looks_whole)
        return last if last is not None and is_more else self._new(len(self._calls))

    def _new(self, index: int) -> _Call:
        if len(self._calls) >= CALLS_MAX:
            raise ModelFailed("refused-reply", "the model makes too many calls")
        call = _Call((index, len(self._calls)))
        self._calls.append(call)
        return call


def _malformed() -> ModelFailed:
    return ModelFailed("refused-reply", "the model's calls are malformed")


def _texts(content: object) -> list[str]:
    """Return the text of a content: itself, or that of its parts."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]


def _joined(pieces: Sequence[str]) -> str:
    """Return one text. A character that was cut between two pieces is whole again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parsed(raw: bytes | str) -> Any:
    """Return parsed JSON or `_BROKEN`; an error of the parser would hold the text."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(raw)
    return _BROKEN


def _usage(raw: object, *, sent: int, got: int, asked: int) -> Usage | None:
    """Return the usage, or None where it is missing or cannot be true.

    An endpoint that says it read far fewer tokens than any tokeniser makes of what was sent
    would otherwise lift the caps; one that says far more would use them up.
    """
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    is_read = sent // BYTES_PER_TOKEN_MAX <= prompt <= sent + TOKENS_BESIDE
    is_written = got // BYTES_PER_TOKEN_MAX <= completion <= REPLY_TIMES_MAX * asked
    return Usage(prompt, completion) if is_read and is_written else None


def _count(raw: object) -> int | None:
    """Return a number of tokens, or None where this is none."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) else None
