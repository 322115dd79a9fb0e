"""Any endpoint that speaks the OpenAI form of chat completions, with native function calls.

A reply comes in pieces where the endpoint can do so. The whole answer, the silence between its
pieces, and its bytes are limited. Nothing of a request or a reply is logged or put into an error:
both hold text of a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from mana.domain.errors import Invalid
from mana.domain.occurrences import RETRY_ASKED_MS_MAX
from mana.models.addresses import Endpoint, endpoint, fits_header
from mana.models.connections import CONNECT_S, AddressRefused, Connections, Quirk
from mana.models.replies import REPLY_BYTES_MAX, Phase, Reading, bills_nothing, failure_of
from mana.planning.ports import Message, ModelFailed, ModelReply, ModelRequest

TIMEOUT_S: Final = 120.0
SILENCE_S: Final = 30.0
"""How long nothing may come once a reply has begun. Before, a model may think as long as it may
take in all."""
ENDING_S: Final = 2.0
"""How long an endpoint that said how its reply ended may take to say what it used."""
DRAIN_S: Final = 0.25
ERROR_BYTES_MAX: Final = 16_384
_HEADERS: Final = {
    "User-Agent": "mana",
    "Content-Type": "application/json",
    "Accept": "text/event-stream, application/json",
    # What is not compressed cannot be larger than it looks.
    "Accept-Encoding": "identity",
}
_MAY_BE_QUIRKS: Final = (400, 415, 422, 501)
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""What is raised before a byte of a request is sent: no name, no address that may be called, nobody
there, a certificate that does not hold, or no answer to any of these. Where the time of the whole
call runs out nobody knows how far it was.
"""


class OpenAiCompatible:
    """A model behind an endpoint of the OpenAI form.

    `timeout_s` is the limit of a whole call, from connecting to the last byte. `stream` False: the
    reply is asked for whole. `connections` None: each call has a connection of its own.
    `public_only`: it connects to addresses of the public internet only.
    """

    def __init__(
        self,
        base: str,
        *,
        key: str = "",
        model: str,
        stream: bool = True,
        timeout_s: float = TIMEOUT_S,
        silence_s: float = SILENCE_S,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        connections: Connections | None = None,
        public_only: bool = False,
    ) -> None:
        if not model.strip():
            raise Invalid("the model's name is missing")
        if not fits_header(key):
            raise Invalid("the model's key has characters that a header cannot hold")
        self._endpoint = endpoint(base)
        self._headers = {**_HEADERS, **({"Authorization": f"Bearer {key}"} if key else {})}
        self._model = model
        self._quirks: frozenset[Quirk] = frozenset() if stream else frozenset({Quirk.STREAM})
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._reply_bytes_max = reply_bytes_max
        self._connections = connections or Connections(kept=0)
        self._public_only = public_only

    @property
    def endpoint(self) -> str:
        """Return the origin, as grants name it."""
        return self._endpoint.origin

    @property
    def name(self) -> str:
        """Return the model's name at the endpoint."""
        return self._model

    @property
    def local(self) -> bool:
        """Say whether text stays on this machine."""
        return self._endpoint.is_this_machine

    @property
    def metered(self) -> bool:
        """Say that its tokens count against budgets."""
        return True

    @property
    def description(self) -> str:
        """Return what this is and where text goes, in one sentence."""
        return description(self._endpoint, self._model)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the model's answer; raise ModelFailed if there is none that can be used.

        To cancel the task that waits for it closes the connection.
        """
        refused: list[int] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._complete(request, refused)
        except ModelFailed as error:
            failed = error
        except (TimeoutError, httpx.TimeoutException) as error:
            failed = ModelFailed("timeout", unbilled=isinstance(error, _NOT_CONNECTED))
        except AddressRefused:
            words = "the model's endpoint is not on the public internet"
            failed = ModelFailed("provider", words, unbilled=True)
        except (httpx.HTTPError, httpx.StreamError) as error:
            words = "the model's endpoint is not reachable"
            failed = ModelFailed("provider", words, unbilled=isinstance(error, _NOT_CONNECTED))
        # A model may have worked at an earlier try of the same call.
        failed.unbilled = failed.unbilled and all(map(bills_nothing, refused))
        # Raised here, it has no other error behind it: those of the transport hold the request.
        raise failed

    async def _complete(self, request: ModelRequest, refused: list[int]) -> ModelReply:
        """Ask, and once more for each thing that the endpoint wants otherwise.

        `refused` takes the statuses by which it said so.
        """
        url = self._endpoint.url
        known = quirks = self._connections.quirks(url, self._model) | self._quirks
        while True:
            try:
                reply = await self._ask(request, quirks)
            except _Unsupported as found:
                quirks |= {found.quirk}
                refused.append(found.status)
            else:
                if quirks != known:
                    self._connections.remember(url, self._model, quirks)
                return reply

    async def _ask(self, request: ModelRequest, quirks: frozenset[Quirk]) -> ModelReply:
        """Return the reply; raise _Unsupported where the endpoint wants to be asked otherwise."""
        body = _body(request, self._model, quirks)
        limits = httpx.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s / 2))
        # Straight to the pool: a client would heed proxies of the environment and keep cookies.
        pool = self._connections.pool(self._endpoint, public_only=self._public_only)
        response = await pool.handle_async_request(
            httpx.Request(
                "POST",
                self._endpoint.url,
                headers=self._headers,
                content=body,
                extensions={"timeout": limits.as_dict()},
            )
        )
        try:
            if response.status_code != httpx.codes.OK:
                found = await _quirk_of(response, quirks)
                if found is not None:
                    raise _Unsupported(found, response.status_code)
                # A redirect too: it would send granted text to a host that no grant names.
                raise _refusal(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ModelFailed("refused-reply", "the model's reply is compressed")
            reading = Reading(bytes_max=self._reply_bytes_max)
            await self._read(response, reading, request.heard or _nobody)
        finally:
            await response.aclose()
        reply = reading.reply(sent_bytes=len(body), asked_tokens=request.completion_tokens_max)
        (request.heard or _nobody)(reading.chars)
        return reply

    async def _read(
        self, response: httpx.Response, reading: Reading, heard: Callable[[int], None]
    ) -> None:
        """Read to the end of an answer, or to where nothing more of it is needed."""
        now = asyncio.get_running_loop().time
        # While the reply comes each piece buys new time, its end and what follows do so once.
        wait_s = {Phase.COMING: self._silence_s, Phase.ENDING: ENDING_S, Phase.DONE: DRAIN_S}
        told, phase = 0, Phase.WAITING
        try:
            async with asyncio.timeout(None) as silence:
                async for piece in response.aiter_raw():
                    reading.feed(piece)
                    if reading.chars != told:
                        told = reading.chars
                        heard(told)
                    if reading.phase is Phase.COMING or reading.phase > phase:
                        phase = reading.phase
                        silence.reschedule(now() + wait_s[phase])
        except (TimeoutError, httpx.HTTPError, httpx.StreamError):
            if reading.phase < Phase.ENDING:
                raise


class _Unsupported(Exception):
    """The endpoint refuses a part of the request that others need."""

    def __init__(self, quirk: Quirk, status: int) -> None:
        super().__init__(quirk)
        self.quirk = quirk
        self.status = status


def description(place: Endpoint, model: str) -> str:
    """Return what a model is and where text goes, in one sentence."""
    if place.is_this_machine:
        return f"{model}: text stays on the machine that asks it ({place.origin})"
    sealed = "" if place.scheme == "https" else ", unencrypted on the way"
    return f"{model}: text goes to {place.host}{sealed}"


def _nobody(_chars: int) -> None:
    """Hear of a reply for nobody."""


async def _quirk_of(response: httpx.Response, known: frozenset[Quirk]) -> Quirk | None:
    """Return what an endpoint refused the request for, None where it is nothing that is new."""
    if response.status_code not in _MAY_BE_QUIRKS:
        return None
    said = bytearray()
    async for piece in response.aiter_raw():
        said += piece
        if len(said) > ERROR_BYTES_MAX:
            break
    words = bytes(said[:ERROR_BYTES_MAX]).lower()
    return next((one for one in Quirk if one not in known and one.encode() in words), None)


def _refusal(response: httpx.Response) -> ModelFailed:
    status = response.status_code
    return ModelFailed(
        failure_of(status),
        f"the model's endpoint answered {status}",
        retry_after_ms=_retry_after_ms(response.headers),
        unbilled=bills_nothing(status),
    )


def _retry_after_ms(headers: httpx.Headers) -> int | None:
    """Return how long the endpoint asks to be left alone, None where that is not said, or absurd."""
    said = headers.get("retry-after", "")[:40].strip()
    wait_ms: float = -1
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if said.replace(".", "", 1).isdigit():
            wait_ms = float(said) * 1_000
        elif said:
            wait_ms = (parsedate_to_datetime(said).timestamp() - time.time()) * 1_000
    return int(wait_ms) if 0 < wait_ms <= RETRY_ASKED_MS_MAX else None


def _body(request: ModelRequest, model: str, quirks: frozenset[Quirk]) -> bytes:
    """Return the request as the endpoint reads it."""
    limit = "max_completion_tokens" if Quirk.REPLY_LIMIT in quirks else "max_tokens"
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        limit: request.completion_tokens_max,
        "stream": Quirk.STREAM not in quirks,
    }
    if Quirk.TEMPERATURE not in quirks:
        body["temperature"] = request.temperature
    if Quirk.STREAM not in quirks:
        body["stream_options"] = {"include_usage": True}
    if request.tools:
        body["tools"] = list(request.tools)
        body["tool_choice"] = "auto"
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _message(message: Message) -> dict[str, Any]:
    """Return a message in the endpoint's form."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        out["content"] = message.content or None
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        out["tool_call_id"] = message.call_id
    return out
