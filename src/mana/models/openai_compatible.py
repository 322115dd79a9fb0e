"""Any endpoint that speaks the OpenAI form of chat completions, with native function calls.

The whole answer has a time limit and a size limit. Nothing of a request or a reply is logged
or put into an error: both hold text of a person.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.planning.ports import (
    FailureKind,
    Finish,
    FunctionCall,
    Message,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Usage,
)

TIMEOUT_S: Final = 120.0
CONNECT_S: Final = 10.0
REPLY_BYTES_MAX: Final = 4 * 1024 * 1024
CALLS_MAX: Final = 128
_BYTES_PER_TOKEN_MAX: Final = 40
_TOKENS_MAX: Final = 100_000_000
_PORTS: Final = {"http": 80, "https": 443}
_FINISH: Final[Mapping[str, Finish]] = {
    "stop": "stop",
    "tool_calls": "calls",
    "function_call": "calls",
    "length": "length",
    "content_filter": "content-filter",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where text goes: scheme, host, port and the path in front of `/chat/completions`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Return the name that grants hold: scheme, host, and the port unless it is usual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = _PORTS[self.scheme] == self.port
        return f"{self.scheme}://{host}" if usual else f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the address of chat completions."""
        return f"{self.origin}{self.path}/chat/completions"

    @property
    def is_this_machine(self) -> bool:
        """Say whether text stays on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def endpoint(base: str) -> Endpoint:
    """Return the endpoint of a base address, with or without a closing `/v1`.

    Raises Invalid for another scheme, for credentials in the address, a query or a fragment.
    """
    try:
        url = httpx.URL(base.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise Invalid("the model's address is not a web address") from error
    if url.scheme not in _PORTS or not url.host:
        raise Invalid("the model's address starts with http:// or https:// and names a host")
    if url.userinfo or url.query or url.fragment:
        raise Invalid("the model's address has no credentials, query or fragment")
    path = url.path.rstrip("/")
    if not path.endswith("/v1"):
        path += "/v1"
    return Endpoint(url.scheme, url.host.lower(), url.port or _PORTS[url.scheme], path)


class OpenAiCompatible:
    """A model behind an endpoint of the OpenAI form.

    `transport` is for tests; `timeout_s` is the limit of a whole call, from connecting to the
    last byte.
    """

    def __init__(
        self,
        base: str,
        *,
        key: str = "",
        model: str,
        timeout_s: float = TIMEOUT_S,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model.strip():
            raise Invalid("the model's name is missing")
        if not key.isascii() or not key.isprintable():
            raise Invalid("the model's key has characters that a header cannot hold")
        self._endpoint = endpoint(base)
        self._key = key
        self._model = model
        self._timeout_s = timeout_s
        self._reply_bytes_max = reply_bytes_max
        self._transport = transport

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
        if self.local:
            return f"{self._model}: text stays on this machine ({self._endpoint.origin})"
        sealed = "" if self._endpoint.scheme == "https" else ", unencrypted on the way"
        return f"{self._model}: text goes to {self._endpoint.host}{sealed}"

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the model's answer; raise ModelFailed if there is none that can be used."""
        body = self._body(request)
        try:
            async with asyncio.timeout(self._timeout_s):
                status, raw = await self._post(body)
        except (TimeoutError, httpx.TimeoutException):
            # No cause is kept: errors of the transport hold the request, and so what was sent.
            raise ModelFailed("timeout") from None
        except (httpx.HTTPError, httpx.StreamError):
            raise ModelFailed("provider", "the model's endpoint is not reachable") from None
        if status != httpx.codes.OK:
            raise ModelFailed(_failure(status), f"the model's endpoint answered {status}")
        return _reply(raw, sent_bytes=len(body))

    def _body(self, request: ModelRequest) -> bytes:
        """Return the request as the endpoint reads it."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_message(message) for message in request.messages],
            "temperature": request.temperature,
            "max_tokens": request.completion_tokens_max,
            "stream": False,
        }
        if request.tools:
            body["tools"] = list(request.tools)
            body["tool_choice"] = "auto"
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body; a body beyond the limit is not read to its end."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s))
        # A redirect would send granted text to a host that the grant does not name.
        async with (
            httpx.AsyncClient(
                timeout=limits,
                follow_redirects=False,
                trust_env=False,
                transport=self._transport,
            ) as client,
            client.stream("POST", self._endpoint.url, content=body, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                return response.status_code, b""
            raw = bytearray()
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > self._reply_bytes_max:
                    raise ModelFailed("refused-reply", "the model's reply is too large")
            return response.status_code, bytes(raw)


def _failure(status: int) -> FailureKind:
    """Return the class of failure of an answer's status."""
    if status in (401, 402, 403):
        return "auth"
    if status == 429:
        return "rate-limit"
    if status in (408, 504):
        return "timeout"
    if status in (400, 404, 405, 413, 422):
        return "refused-reply"
    return "provider"


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


def _reply(raw: bytes, *, sent_bytes: int) -> ModelReply:
    """Return the reply of a body; raise ModelFailed where it has none of the known form."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise ModelFailed("refused-reply", "the model's reply is not JSON") from None
    choice = _first(document)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ModelFailed("refused-reply", "the model's reply has no message")
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    calls = _calls(message.get("tool_calls"))
    finish = _FINISH.get(str(choice.get("finish_reason")), "other")
    usage = _usage(document.get("usage"), sent_bytes=sent_bytes)
    return ModelReply(text, calls, finish, usage)


def _first(document: Any) -> dict[str, Any]:
    """Return the first choice of a reply."""
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ModelFailed("refused-reply", "the model's reply has no choice")
    return choices[0]


def _calls(raw: Any) -> tuple[FunctionCall, ...]:
    """Return the calls of a message; one of another form is a refused reply."""
    if raw is None:
        return ()
    if not isinstance(raw, list) or len(raw) > CALLS_MAX:
        raise ModelFailed("refused-reply", "the model's calls are malformed")
    found: list[FunctionCall] = []
    for item in raw:
        function = item.get("function") if isinstance(item, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise ModelFailed("refused-reply", "the model's calls are malformed")
        call_id = item.get("id")
        arguments = _arguments(function.get("arguments"))
        found.append(FunctionCall(call_id if isinstance(call_id, str) else "", name, arguments))
    return tuple(found)


def _arguments(raw: Any) -> Json:
    """Return parsed arguments; what is not JSON stays a string, and the loop refuses it."""
    if raw is None or raw == "":
        return {}
    if not isinstance(raw, str):
        return raw  # type: ignore[no-any-return]  # JSON already, as some endpoints write it
    try:
        return json.loads(raw)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        return raw


def _usage(raw: Any, *, sent_bytes: int) -> Usage | None:
    """Return the usage, or None where it is missing or cannot be true.

    An endpoint that says it read far fewer tokens than any tokeniser makes of what was sent
    would otherwise lift the agent's budget.
    """
    if not isinstance(raw, dict):
        return None
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    if prompt is None or completion is None or prompt < sent_bytes // _BYTES_PER_TOKEN_MAX:
        return None
    return Usage(prompt, completion)


def _count(raw: Any) -> int | None:
    """Return a number of tokens, or None where this is none."""
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _TOKENS_MAX:
        return None
    return raw
