"""The edge: every error is a problem document, and the log knows no address and no text."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from litestar.types import ASGIApp

from mana.domain.errors import Conflict, Invalid, ManaError, NotFound, Unavailable
from mana.domain.ids import AccountId
from mana.hub.app import build, serve
from mana.hub.http.endpoints import Call, Document, Endpoint, Session
from mana.hub.http.problems import problem_for, status_of
from mana.hub.http.server import serve_endpoints
from mana.hub.settings import HubSettings
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.codec import check_value, decode, encode
from mana.protocol.errors import LoginTaken, RateLimited
from mana.protocol.messages import KdfRequest, Problem
from mana.protocol.problems import error_of
from mana.testing.accounts import sealed_change
from mana.testing.postgres import Database
from tests.hub.client import START_MS, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TASKS = next(table for table in TODO.tables if table.name == "tasks")


async def test_every_error_is_a_problem(database: Database) -> None:
    """A path, method or body that the hub does not take gets a problem document."""
    async with served_hub(database) as served:
        cases: list[tuple[int, str, str, object]] = [
            (404, "GET", "/", None),
            (404, "GET", "/api/v1/nothing", None),
            (404, "GET", "/api/v1/spaces/x/y/z", None),
            (405, "PUT", "/api/v1/auth/login", None),
            (405, "GET", "/api/v1/auth/login", None),
            (400, "POST", "/api/v1/auth/login", None),
            (400, "POST", "/api/v1/auth/login", {"login": "x"}),
            (400, "POST", "/api/v1/auth/kdf", {"login": "x" * 81}),
            (400, "POST", "/api/v1/auth/kdf", {"login": "\x00"}),
            (413, "POST", "/api/v1/auth/kdf", {"login": "x" * 300_000}),
            (401, "GET", "/api/v1/live", None),
        ]
        for status, method, path, body in cases:
            answer = await served.call(method, path, body)
            assert answer.status_code == status, (method, path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            problem = msgspec.json.decode(answer.content, type=Problem)
            assert problem.status == status
            assert problem.code
            assert answer.headers["cache-control"] == "no-store"
        answer = await served.call("PUT", "/api/v1/auth/login")
        assert "POST" in answer.headers["allow"]
        for method in ("OPTIONS", "PUT"):
            answer = await served.call(method, "/api/v1/me")
            allowed = set(answer.headers["allow"].replace(" ", "").split(","))
            assert allowed >= {"GET", "DELETE"}


async def test_unforeseen_failures_say_nothing(database: Database) -> None:
    """An exception that nobody foresaw leaves as INTERNAL, without a word of its message."""
    problem = problem_for(RuntimeError("select 'a secret'"))
    assert (problem.status, problem.code) == (500, "INTERNAL")
    assert "secret" not in encode(problem).decode()
    assert problem_for(ManaError("a secret")).status == 500
    assert status_of(Unavailable()) == 503
    assert status_of(RateLimited()) == 429


async def test_errors_cross_the_wire() -> None:
    """A device raises the error that the hub raised; an unknown code keeps its family."""
    sent = LoginTaken("taken", detail={"n": 1})
    back = error_of(encode(problem_for(sent)), 409)
    assert type(back) is LoginTaken
    assert (back.message, back.detail) == ("taken", {"n": 1})
    newer = Problem(code="SOMETHING_NEWER", title="x", status=409, advice="update")
    known = error_of(encode(newer), 409)
    assert isinstance(known, Conflict)
    assert (known.code, known.advice) == ("SOMETHING_NEWER", "update")
    assert isinstance(error_of(b"<html>", 404), NotFound)
    assert isinstance(error_of(b"", 502), Unavailable)


async def test_values_that_cannot_travel() -> None:
    """What one side could not write back in the same bytes is refused by the codec."""
    for value in (float("nan"), float("inf"), 2**53 + 1, -0.0, "\x00", "\ud800", {"\x00": 1}):
        with pytest.raises(Invalid):
            check_value([value])  # type: ignore[list-item]
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    with pytest.raises(Invalid):
        check_value(deep)
    check_value({"a": [1, 2.5, None, True, "ä", {"b": 2**53}]})


async def test_malformed_messages_quote_nothing() -> None:
    """The reason for a refusal names the place in the message and never what stood there."""
    with pytest.raises(Invalid) as caught:
        decode(b'{"login": {"secret": "zanzibar"}}', KdfRequest)
    assert "zanzibar" not in str(caught.value)
    assert caught.value.detail == {"at": "$.login"}


async def test_log_knows_routes_only(database: Database) -> None:
    """The access log names route, status and time; no id, cursor, token or text."""
    with structlog.testing.capture_logs() as lines:
        async with served_hub(database) as served:
            ada = await served.sign_up("ada")
            change = sealed_change(ada.account, TASKS, "t1", {"title": "milk"}, now_ms=START_MS)
            await ada.push([change])
            await ada.pull(after=0)
            await served.call("GET", "/api/v1/nothing/ada")
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["route"] for line in requests] == [
        "/api/v1/auth/signup",
        "/api/v1/spaces/{spaceId}/changes",
        "/api/v1/spaces/{spaceId}/changes",
        "-",
    ]
    text = str(lines)
    for mark in (ada.space, ada.account.account_id, "ada", ada.tokens.access_token, "after"):
        assert mark not in text


async def test_description_is_whole(database: Database) -> None:
    """The OpenAPI document names every endpoint, and each reference in it leads somewhere."""
    async with served_hub(database) as served:
        document = (await served.call("GET", "/api/v1/openapi.json")).json()
        health = (await served.call("GET", "/health")).json()
        assert health["ok"] is True
        assert health["service"] == "mana-hub"
        found = {
            (method.upper(), path) for path, item in document["paths"].items() for method in item
        }
        assert found == {(one.method, one.path) for one in served.hub.endpoints}
        assert document["openapi"].startswith("3.1")
        ids = [
            operation["operationId"]
            for item in document["paths"].values()
            for operation in item.values()
        ]
        assert len(ids) == len(set(ids))
        references = _references(document)
        assert references
        for reference in references:
            node: Any = document
            for part in reference.removeprefix("#/").split("/"):
                node = node[part]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [value for key, value in node.items() if key == "$ref"]
        return own + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []


async def test_applications_of_one_process_are_apart() -> None:
    """Two applications with the same paths each answer with what is their own, and let in whom
    they know, also when both are asked at once."""

    def served(name: str) -> ASGIApp:
        async def answer(call: Call) -> Document:
            await asyncio.sleep(0)
            return Document(f"{name} {call.path['word']} {call.session.session_id}".encode())

        return serve_endpoints(
            [Endpoint("GET", "/own/{word}", answer, "What is its own")],
            authenticate=lambda token: Session(AccountId("a"), f"{name} knows {token}", 0),
            lifespan=contextlib.nullcontext,
        )

    async def asked(app: ASGIApp, word: str) -> str:
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://own") as http:
            told = await http.get(f"/own/{word}", headers={"authorization": "Bearer t"})
        return told.text

    first, second = served("first"), served("second")
    assert await asyncio.gather(*(asked(app, "x") for app in (first, second, first))) == [
        "first x first knows t",
        "second x second knows t",
        "first x first knows t",
    ]


async def test_taken_port(database: Database, tmp_path: Any) -> None:
    """A port that is taken is an OSError before the hub opens anything."""
    hub = build(HubSettings(home=tmp_path, database_url=database.app_url))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError):
            await serve(hub, host="127.0.0.1", port=taken.getsockname()[1])


async def test_served_by_uvicorn(database: Database, tmp_path: Any) -> None:
    """On port 0 the hub says which port it took, answers there, and stops when told."""
    hub = build(HubSettings(home=tmp_path, database_url=database.app_url))
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(hub, host="127.0.0.1", port=0, ready=ready.set_result, stop=stop)
    )
    port = await ready
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.get("/health")).json()["ok"] is True
    stop.set()
    await serving
