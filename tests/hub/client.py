"""A hub in this process, and a small client that speaks to it as a device does."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from mana.crypto.passwords import HashCost
from mana.crypto.primitives import b64
from mana.domain.ids import SpaceId
from mana.hub.app import Hub, build
from mana.hub.settings import HubSettings
from mana.protocol.messages import (
    ChangeMessage,
    PullAnswer,
    PushAnswer,
    PushRequest,
    StateAnswer,
    Tokens,
)
from mana.testing.accounts import CHEAP, NewAccount, new_account
from mana.testing.postgres import Database

START_MS = 1_795_000_000_000


class Clock:
    """The hub's clock, set by the test."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class Served:
    """A running hub with its clock and an HTTP client."""

    hub: Hub
    clock: Clock
    http: httpx.AsyncClient

    async def call(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        content = None if body is None else msgspec.json.encode(body)
        return await self.http.request(method, path, content=content, headers=headers)

    async def sign_up(self, login: str, **options: Any) -> Person:
        account = new_account(login, now_ms=self.clock.now_ms, **options)
        answer = await self.call("POST", "/api/v1/auth/signup", account.request)
        assert answer.status_code == 201, answer.text
        return Person(self, account, msgspec.json.decode(answer.content, type=Tokens))


@dataclass
class Person:
    """Someone who is signed in."""

    served: Served
    account: NewAccount
    tokens: Tokens

    @property
    def space(self) -> SpaceId:
        return self.account.personal.space_id

    @property
    def session_id(self) -> str:
        claims = self.tokens.access_token.split(".")[1]
        return str(msgspec.json.decode(base64.urlsafe_b64decode(claims + "=="))["sid"])

    async def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        return await self.served.call(method, path, body, token=self.tokens.access_token)

    async def log_in(self) -> httpx.Response:
        body = {"login": self.account.login, "loginKey": b64(self.account.login_key)}
        return await self.served.call("POST", "/api/v1/auth/login", body)

    async def push(
        self, changes: Sequence[ChangeMessage], *, space: str | None = None
    ) -> PushAnswer:
        answer = await self.send(changes, space=space)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=PushAnswer)

    async def send(
        self, changes: Sequence[ChangeMessage], *, space: str | None = None
    ) -> httpx.Response:
        request = PushRequest(device_id=self.account.device_id, changes=list(changes))
        return await self.call("POST", f"/api/v1/spaces/{space or self.space}/changes", request)

    async def pull(self, after: int = 0, limit: int = 1_000) -> PullAnswer:
        path = f"/api/v1/spaces/{self.space}/changes?after={after}&limit={limit}"
        answer = await self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=PullAnswer)

    async def state(self, page: str | None = None, space: str | None = None) -> StateAnswer:
        query = "" if page is None else f"?page={page}"
        answer = await self.call("GET", f"/api/v1/spaces/{space or self.space}/records{query}")
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=StateAnswer)


@contextlib.asynccontextmanager
async def served_hub(database: Database, **options: Any) -> AsyncIterator[Served]:
    """Lend a running hub on a database."""
    with tempfile.TemporaryDirectory(prefix="mana-hub-") as home:
        settings = HubSettings(
            home=Path(home),
            database_url=database.app_url,
            kdf_floor=CHEAP,
            hash_cost=HashCost(t=1, m_kib=8, p=1),
            pool_size=4,
        )
        clock = Clock()
        hub = build(replace(settings, **options), clock=clock)
        transport = httpx.ASGITransport(app=hub.asgi)
        async with (
            running(hub),
            httpx.AsyncClient(transport=transport, base_url="http://hub.test") as http,
        ):
            yield Served(hub, clock, http)


@contextlib.asynccontextmanager
async def running(hub: Hub) -> AsyncIterator[None]:
    """Enter the lifespan of a hub, as a server does."""
    async with hub.opened():
        yield


def codes(answer: PushAnswer) -> list[str | None]:
    """Return per change the refusal code, or the status where it was not refused."""
    return [result.code or result.status for result in answer.results]
