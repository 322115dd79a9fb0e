"""Calls to the hub: errors come back as they are, sessions are not lost, answers are bounded."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from mana.device.errors import Offline
from mana.device.hub_client import HubClient, LiveEvent, jittered
from mana.domain.errors import (
    Conflict,
    Forbidden,
    ManaError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mana.domain.spaces import MembershipRefused
from mana.protocol.errors import (
    AlreadyMember,
    MembershipMoved,
    RateLimited,
    SessionEnded,
    SpaceUndeletable,
)
from mana.protocol.messages import (
    AcceptInvitation,
    MembershipAppend,
    NewInvitation,
    NewSpace,
    PrivateKeys,
    SignedEntry,
    Tokens,
)
from mana.protocol.replication import HubDistrusted

pytestmark = pytest.mark.anyio
ACCOUNT = {"accountId": "a", "login": "ada", "mode": "standard", "role": "owner", "createdAt": "x"}


@dataclass
class Session:
    """A session in memory that notes what was kept, in order."""

    token: str | None = "r1"
    kept: list[str] = field(default_factory=list)
    is_full: bool = False
    key: tuple[str, bytes] | None = None

    def exclusively(self) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def refresh_token(self) -> str | None:
        return self.token

    async def keep(self, tokens: Tokens) -> None:
        if self.is_full:
            raise OSError("no space left")
        self.token = tokens.refresh_token
        self.kept.append(tokens.refresh_token)

    def credentials(self) -> tuple[str, bytes] | None:
        return self.key


class Hub:
    """A hub of tokens: each refresh gives the next pair, each access token works once told."""

    def __init__(self) -> None:
        self.number = 1
        self.asked: list[str] = []
        self.valid: set[str] = set()
        self.refuses_refresh = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(path)
        if path.endswith(("/refresh", "/login")):
            if path.endswith("/refresh") and self.refuses_refresh:
                return problem(401, "SESSION_ENDED")
            self.number += 1
            self.valid = {f"a{self.number}"}
            pair = {
                "accountId": "a",
                "accessToken": f"a{self.number}",
                "refreshToken": f"r{self.number}",
                "expiresIn": 900,
            }
            return httpx.Response(200, json=pair)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.valid:
            return problem(401, "UNAUTHENTICATED")
        return httpx.Response(200, json=ACCOUNT)


def problem(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "title": "no", "status": status})


@contextlib.asynccontextmanager
async def client(
    handler: Callable[[httpx.Request], httpx.Response], session: Any = None, **options: Any
) -> AsyncIterator[HubClient]:
    made = HubClient(
        "http://hub.test", session=session, transport=httpx.MockTransport(handler), **options
    )
    try:
        yield made
    finally:
        await made.close()


async def test_a_new_pair_is_kept_before_it_is_used() -> None:
    """The refresh token is durable before the access token is sent for the first time."""
    hub, session = Hub(), Session()
    async with client(hub, session) as asking:
        await asking.account()
        assert session.kept == ["r2"]
        hub.valid.clear()
        await asking.account()
        assert session.kept == ["r2", "r3"]


async def test_a_pair_that_cannot_be_kept_is_not_used() -> None:
    """If keeping fails, nothing is asked with the new token."""
    hub, session = Hub(), Session(is_full=True)
    async with client(hub, session) as asking:
        with pytest.raises(OSError, match="space"):
            await asking.account()
    assert hub.asked == ["/api/v1/auth/refresh"]


@pytest.mark.parametrize("token", ["é", "a\nx-other: 1"])
async def test_a_token_that_no_header_holds_is_the_hubs_fault(token: str) -> None:
    """A hub that hands out another thing than a token is not believed, and breaks nothing."""
    pair = {"accountId": "a", "accessToken": token, "refreshToken": "r2", "expiresIn": 900}
    async with client(lambda _: httpx.Response(200, json=pair), Session()) as asking:
        with pytest.raises(HubDistrusted):
            await asking.account()


async def test_an_ended_session_begins_anew_only_with_the_login_key() -> None:
    """With the key in memory it logs in again; without, it says that the session ended."""
    hub, session = Hub(), Session(key=("ada", b"k" * 32))
    hub.refuses_refresh = True
    async with client(hub, session) as asking:
        await asking.account()
    assert hub.asked[:2] == ["/api/v1/auth/refresh", "/api/v1/auth/login"]
    async with client(hub, Session()) as asking:
        with pytest.raises(SessionEnded):
            await asking.account()
    async with client(hub) as asking:
        with pytest.raises(Unauthenticated):
            await asking.account()


async def test_a_limit_is_heeded_by_what_goes_on_by_itself() -> None:
    """While the hub limits log-ins, the device sends none of its own: they would prolong it."""
    now_s, asked = 1_000.0, 0

    def limiting(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if request.url.path.endswith("/refresh"):
            return problem(401, "SESSION_ENDED")
        asked += request.url.path.endswith("/login")
        body = {"code": "RATE_LIMITED", "title": "no", "status": 429, "detail": {"retryAfterS": 90}}
        return httpx.Response(429, json=body)

    session = Session(key=("ada", b"k" * 32))
    async with client(limiting, session, monotonic=lambda: now_s) as asking:
        for _ in range(5):
            with pytest.raises(RateLimited):
                await asking.account()
        assert asked == 1
        now_s += 91
        with pytest.raises(RateLimited):
            await asking.account()
        assert asked == 2


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NOT_FOUND", NotFound),
        (403, "FORBIDDEN", Forbidden),
        (409, "ZK_ACTIVE", Conflict),
        (429, "RATE_LIMITED", RateLimited),
        (503, "GRANT_NOT_CONFIGURED", Unavailable),
    ],
)
async def test_problems_come_back_as_errors(status: int, code: str, kind: type[ManaError]) -> None:
    """The hub's code survives the way, also one that this version does not know."""
    async with client(lambda request: problem(status, code)) as asking:
        with pytest.raises(kind) as failure:
            await asking.kdf("ada")
    assert failure.value.code == code


async def test_an_answer_has_a_form_and_a_size() -> None:
    """Something else than the promised message, or too much of it, is refused."""
    async with client(lambda request: httpx.Response(200, json={"salt": 1})) as asking:
        with pytest.raises(HubDistrusted):
            await asking.kdf("ada")
    big = httpx.Response(200, content=b"x" * 2_000)
    async with client(lambda request: big, answer_bytes_max=1_000) as asking:
        with pytest.raises(TooLarge):
            await asking.kdf("ada")


async def test_no_hub_is_offline() -> None:
    """Every failure of the connection is the one error that the person can do something about."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with client(refuse) as asking:
        with pytest.raises(Offline) as failure:
            await asking.kdf("ada")
    assert failure.value.code == "OFFLINE"


async def test_live_events_are_read_as_they_come() -> None:
    """Comments are skipped, unknown events passed on, and `bye` ends the stream."""
    hub, session = Hub(), Session()
    stream = (
        b"event: hello\n\n: still here\n\n"
        b'event: space\ndata: {"spaceId":"s","seq":3}\n\n'
        b'event: mission\r\ndata: {"missionId":"m"}\r\n\r\n'
        b"event: bye\n\nevent: space\n\n"
    )

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/live":
            return httpx.Response(200, content=stream)
        return hub(request)

    async with client(answer, session) as asking, asking.live() as events:
        heard = [event async for event in events]
    assert heard == [
        LiveEvent("hello", {}),
        LiveEvent("space", {"spaceId": "s", "seq": 3}),
        LiveEvent("mission", {"missionId": "m"}),
        LiveEvent("bye", {}),
    ]


async def test_a_live_stream_that_is_no_stream_is_refused() -> None:
    """Broken JSON and endless lines end the stream with an error."""
    hub = Hub()
    for content in (b"event: space\ndata: {\n\n", b"data: " + b"x" * 100_000 + b"\n\n"):

        def answer(request: httpx.Request, content: bytes = content) -> httpx.Response:
            if request.url.path == "/api/v1/live":
                return httpx.Response(200, content=content)
            return hub(request)

        async with client(answer, Session()) as asking, asking.live() as events:
            with pytest.raises(HubDistrusted):
                [event async for event in events]


async def test_waiting_grows_and_is_bounded() -> None:
    """Back-off doubles up to its limit, with a part of chance."""
    assert all(0.25 <= jittered(0) <= 0.5 for _ in range(50))
    assert all(7.5 <= jittered(50, most_s=15) <= 15 for _ in range(50))


async def test_calls_of_spaces_go_where_they_are_said_to() -> None:
    """Each call of spaces has its method and path, and nothing of an id leaves its place in it."""
    info = {"spaceId": "s", "type": "team", "role": "owner", "log": [], "wraps": []}
    invitation = {
        "invitationId": "i",
        "spaceId": "s",
        "role": "member",
        "state": "open",
        "createdBy": "a",
        "expiresAt": "2026-11-21T05:23:00.000Z",
    }
    answers: dict[str, object] = {
        "GET /api/v1/spaces": {"spaces": [info], "departed": [{"spaceId": "t", "log": []}]},
        "POST /api/v1/spaces": info,
        "DELETE /api/v1/spaces/s": None,
        "POST /api/v1/spaces/s/members": info,
        "POST /api/v1/spaces/s/keys": None,
        "POST /api/v1/spaces/s/invitations": invitation,
        "GET /api/v1/spaces/s/invitations": {"invitations": [invitation]},
        "DELETE /api/v1/spaces/s/invitations/i%2F..": None,
        "POST /api/v1/invitations/i": invitation,
        "GET /api/v1/me/invitations": {"invitations": [invitation]},
        "GET /api/v1/spaces/s/records/notes/n%2F1": {
            "records": [],
            "head": 3,
            "hubTime": "2026-11-21T05:23:00.000Z",
        },
    }
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/refresh"):
            pair = {"accountId": "a", "accessToken": "t", "refreshToken": "r", "expiresIn": 900}
            return httpx.Response(200, json=pair)
        asked.append(f"{request.method} {request.url.raw_path.decode()}")
        given = answers[asked[-1]]
        return httpx.Response(204) if given is None else httpx.Response(200, json=given)

    signed = SignedEntry(entry={}, signature="x")
    async with client(answer, Session()) as hub:
        known = await hub.spaces()
        assert [one.space_id for one in known.departed] == ["t"]
        assert (await hub.create_space(NewSpace(first=signed, wraps=[]))).space_id == "s"
        await hub.close_space("s", signed)
        await hub.append_member("s", MembershipAppend(entry=signed))
        await hub.add_private_keys("s", PrivateKeys(wraps=[], signature="x"))
        made = NewInvitation(
            invitation_id="i", role="member", token_hash="0" * 64, expires_at="later"
        )
        await hub.create_invitation("s", made)
        assert [one.state for one in await hub.invitations("s")] == ["open"]
        await hub.withdraw_invitation("s", "i/..")
        await hub.accept_invitation("i", AcceptInvitation(space_id="s", token="t", mac="m"))
        await hub.my_invitations()
        assert (await hub.record_state("s", "notes", "n/1")).head == 3
    assert set(asked) == set(answers)


@pytest.mark.parametrize(
    "lie", [{}, {"spaces": None}, {"spaces": [{"spaceId": "s"}]}, {"spaces": [], "departed": [1]}]
)
async def test_an_answer_of_another_shape_is_not_believed(lie: dict[str, object]) -> None:
    """A list of spaces that is none is the hub's fault, and is not read as an empty one."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/refresh"):
            pair = {"accountId": "a", "accessToken": "t", "refreshToken": "r", "expiresIn": 900}
            return httpx.Response(200, json=pair)
        return httpx.Response(200, json=lie)

    async with client(answer, Session()) as hub:
        with pytest.raises(HubDistrusted):
            await hub.spaces()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (409, "MEMBERSHIP_MOVED", MembershipMoved),
        (403, "MEMBERSHIP_REFUSED", MembershipRefused),
        (409, "ALREADY_MEMBER", AlreadyMember),
        (403, "SPACE_PERSONAL_UNDELETABLE", SpaceUndeletable),
    ],
)
async def test_what_a_hub_refuses_about_members_has_its_class(
    status: int, code: str, error: type[Exception]
) -> None:
    """A refusal comes back as the class that the hub raised, so that it can be told apart."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/refresh"):
            pair = {"accountId": "a", "accessToken": "t", "refreshToken": "r", "expiresIn": 900}
            return httpx.Response(200, json=pair)
        return problem(status, code)

    append = MembershipAppend(entry=SignedEntry(entry={}, signature="x"))
    async with client(answer, Session()) as hub:
        with pytest.raises(error):
            await hub.append_member("s", append)
