"""Every endpoint, with somebody else's things: what is not yours is not there.

A new endpoint fails here until it is declared below. Where a path names a thing, the declaration
says what each of five people gets; who is no member gets exactly the answer for a thing that does
not exist, so that no answer tells what exists.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.identity import revoke_device
from mana.crypto.primitives import b64
from mana.protocol.messages import (
    AcceptInvitation,
    CloseSpace,
    DeviceRevocation,
    PrivateKeys,
    PushAnswer,
    PushRequest,
)
from mana.testing.postgres import Cluster, Database
from mana.testing.spaces import closing, invitation, member_of, reroling
from mana.testing.spaces import private_keys as signed_private_keys
from tests.hub.client import codes
from tests.runner.world import now_ms
from tests.tenancy.household import (
    AGENT,
    MISSION,
    NAMES,
    PRIVATE_TASK,
    SHARED_TASK,
    UNKNOWN,
    Household,
    household,
    secrets_of,
)

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

SPACE = "/api/v1/spaces/{spaceId}"
GRANT = "/api/v1/me/ai-mission-grant"
Body = Callable[..., Any]
"""From the household, the person, and a name of the path if the body repeats one."""
OWNERS = ("204", "404 NOT_FOUND", "404 NOT_FOUND")
LINKED = "404 LINK_ENDED"


@dataclass(frozen=True)
class Named:
    """An endpoint whose path names a thing. `wants`: by person the status and code.

    `body` makes what a person of good standing would send. `path` gives the names in the path.
    """

    body: Body | None = None
    wants: tuple[str, str, str] = ("200", "200", "200")
    """For the owner, the member and the viewer of the space."""
    others: str = "404 NOT_FOUND"
    """For who left and for the outsider."""
    repeats: str = ""
    """The name of the path that the body says once more, and that `body` is given then."""
    last: bool = False


def push(made: Household, name: str) -> PushRequest:
    device = made.people[name].account.device_id
    return PushRequest(device_id=device, changes=[made.task(name, f"by-{name}-now")])


def append(made: Household, name: str) -> Any:
    """Make oneself an owner."""
    account = made.people[name].account
    if name in ("rem", "out"):
        own = member_of(account, "owner")
        step = reroling(made.space, account, account, "owner", now_ms=now_ms())
        entry = dict(step.append.entry.entry)
        entry["members"] = [*entry["members"], own.to_wire()]
        signed = msgspec.structs.replace(step.append.entry, entry=entry)
        return msgspec.structs.replace(step.append, entry=signed)
    bob = made.people["bob"].account
    return reroling(made.space, account, bob, "admin", now_ms=now_ms()).append


def private_keys(made: Household, name: str) -> PrivateKeys:
    # A founder brings the first version along; who joined makes it on first sight.
    version = 2 if name == "ada" else 1
    return signed_private_keys(made.space, made.people[name].account, version)


def invite(made: Household, _name: str) -> Any:
    return invitation(made.space, "viewer", now_ms=now_ms()).new


def wrong_token(made: Household, name: str) -> AcceptInvitation:
    accepted = made.invitation.accepted_by(made.people[name].account)
    return msgspec.structs.replace(accepted, token=b64(bytes(32)))


def close(made: Household, name: str) -> CloseSpace:
    return CloseSpace(entry=closing(made.space, made.people[name].account, now_ms=now_ms()))


def completion(_made: Household, _name: str) -> Any:
    return {
        "wrappedKey": b64(bytes(1168)),
        "sealedKeys": "gk:2:",
        "signature": {"signer": UNKNOWN, "value": b64(bytes(64))},
    }


def revocation(_made: Household, _name: str) -> Any:
    return {"signature": {"signer": UNKNOWN, "value": b64(bytes(64))}}


def device_word(made: Household, name: str, device_id: str) -> DeviceRevocation:
    account = made.people[name].account
    key = account.identity.signing_key
    word = revoke_device(key, account.account_id, device_id, "2026-11-21T05:00:00.000Z")
    return DeviceRevocation(account.account_id, device_id, word.revoked_at, b64(word.signature))


def proven(_made: Household, _name: str) -> Any:
    """Return a proof by nobody."""
    return {"proof": {"challenge": b64(bytes(32)), "signature": b64(bytes(64))}}


def allowing(made: Household, name: str) -> Any:
    certificate = msgspec.to_builtins(made.people[name].account.certificate)
    return {**proven(made, name), "wrapped": b64(bytes(1168)), "certificate": certificate}


NAMED: dict[str, Named] = {
    "DELETE /api/v1/me/sessions/{sessionId}": Named(None, OWNERS),
    "POST /api/v1/me/devices/{deviceId}/revoke": Named(device_word, OWNERS, repeats="deviceId"),
    "POST /api/v1/me/factors/{factorId}/finish": Named(
        lambda *_: {"answer": {"totp": "no code"}},
        ("401 TWO_FACTOR_FAILED", "404 FACTOR_UNKNOWN", "404 FACTOR_UNKNOWN"),
        others="404 FACTOR_UNKNOWN",
    ),
    # Whose factor it is counts only once the vault is open: tests/hub/test_factors.py.
    "DELETE /api/v1/me/factors/{factorId}": Named(
        proven, ("403 PROOF_REFUSED",) * 3, others="403 PROOF_REFUSED"
    ),
    "POST /api/v1/me/links/{linkId}/answer": Named(
        lambda *_: {"nonce": b64(bytes(32))}, ("204", LINKED, LINKED), others=LINKED
    ),
    "POST /api/v1/me/links/{linkId}/approve": Named(allowing, (LINKED,) * 3, others=LINKED),
    "POST /api/v1/me/links/{linkId}/refuse": Named(None, ("204", LINKED, LINKED), others=LINKED),
    f"GET {SPACE}/changes": Named(),
    f"POST {SPACE}/changes": Named(push),
    f"GET {SPACE}/records": Named(),
    f"GET {SPACE}/records/{{table}}/{{recordId}}": Named(),
    f"GET {SPACE}/devices": Named(),
    f"POST {SPACE}/keys": Named(private_keys, ("204", "204", "204")),
    # It is the newest one, so a member is told that it is in use.
    f"DELETE {SPACE}/keys/{{key}}": Named(None, ("409 KEY_IN_USE",) * 3),
    f"POST {SPACE}/invitations": Named(invite, ("201", "403 FORBIDDEN", "403 FORBIDDEN")),
    f"GET {SPACE}/invitations": Named(None, ("200", "403 FORBIDDEN", "403 FORBIDDEN")),
    f"DELETE {SPACE}/invitations/{{invitationId}}": Named(
        None, ("204", "403 FORBIDDEN", "403 FORBIDDEN")
    ),
    # Whoever holds the link accepts; without it the invitation is not there for anybody.
    "POST /api/v1/invitations/{invitationId}": Named(wrong_token, ("404 NOT_FOUND",) * 3),
    f"POST {SPACE}/missions/{{missionId}}/run": Named(None, ("202", "202", "403 FORBIDDEN")),
    f"POST {SPACE}/missions/{{missionId}}/stop": Named(None, ("200", "200", "403 FORBIDDEN")),
    f"POST {SPACE}/missions/{{missionId}}/resume": Named(None, ("200", "200", "403 FORBIDDEN")),
    f"POST {SPACE}/missions/{{missionId}}/reservations": Named(
        lambda *_: {"agentId": AGENT, "tokens": 10, "tokensMin": 0},
        ("201", "201", "403 FORBIDDEN"),
    ),
    # A reservation concerns nobody but whose device made it.
    f"POST {SPACE}/missions/{{missionId}}/reservations/{{reservationId}}/settle": Named(
        lambda *_: {"promptTokens": 1, "completionTokens": 1},
        ("204", "404 NOT_FOUND", "404 NOT_FOUND"),
    ),
    # Another member's grant that is not finished concerns nobody but its maker.
    f"POST {GRANT}/{{grantId}}/complete": Named(
        completion, ("400 GRANT_REFUSED", "404 NOT_FOUND", "404 NOT_FOUND")
    ),
    f"POST {GRANT}/{{grantId}}/revoke": Named(
        revocation, ("400 GRANT_REFUSED", "403 FORBIDDEN", "403 FORBIDDEN")
    ),
    f"DELETE {GRANT}/{{grantId}}": Named(None, ("204", "403 FORBIDDEN", "403 FORBIDDEN")),
    f"POST {SPACE}/members": Named(
        append, ("200", "403 MEMBERSHIP_REFUSED", "403 MEMBERSHIP_REFUSED"), last=True
    ),
    f"DELETE {SPACE}": Named(
        close, ("204", "403 MEMBERSHIP_REFUSED", "403 MEMBERSHIP_REFUSED"), last=True
    ),
}
OWN = frozenset(
    f"GET /api/v1/{path}"
    for path in (
        "me",
        "me/vault",
        "me/vault/log",
        "me/devices",
        "me/sessions",
        "me/security",
        "me/factors",
        "me/links",
        "me/missions",
        "me/ai-mission-grants",
        "me/ai-audit",
        "me/ai-usage",
        "me/ai-work",
        "me/notifications",
        "me/invitations",
        "spaces",
        "runner",
    )
)
"""What says something of the account that asks, and names nothing."""
STREAMS = frozenset({"GET /api/v1/live", "GET /api/v1/live/socket"})
"""Live notices: tests/hub/test_live.py asks who hears what."""
TICKETS = frozenset(f"POST /api/v1/auth/links/{{linkId}}/{step}" for step in ("poll", "reveal"))
"""What a ticket opens, and no session: tests/hub/test_links.py asks who gets what."""
ELSEWHERE = frozenset(
    {
        "POST /api/v1/auth/links",
        "POST /api/v1/me/factors",
        *(f"POST /api/v1/auth/{path}" for path in ("signup", "kdf", "login", "refresh", "logout")),
        *(f"POST /api/v1/auth/{path}" for path in ("recover", "reset")),
        "PUT /api/v1/me/ai-work",
        "PUT /api/v1/me/notifications",
        "PUT /api/v1/me/vault",
        "POST /api/v1/auth/invites",
        "DELETE /api/v1/me",
        "POST /api/v1/me/devices",
        "POST /api/v1/spaces",
        f"POST {GRANT}",
        "GET /api/v1/auth/jwks",
        "GET /health",
        "GET /api/v1/openapi.json",
        "GET /join",
    }
)
"""What makes something of one's own, or says the same to everybody. Where the body of one of
these names a thing (a space, a device, records), a test below sends somebody else's."""


@pytest.fixture(scope="module")
async def made(
    postgres: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Household]:
    """Lend one household to all tests here; what they do to it leaves it as it is."""
    with postgres.database() as database:
        async with household(database, tmp_path_factory.mktemp("hub")) as lent:
            yield lent


def said(answer: httpx.Response) -> str:
    """Return what a call came to in short: the status, with the code of a refusal."""
    if answer.status_code < 400:
        return str(answer.status_code)
    return f"{answer.status_code} {answer.json()['code']}"


def path_of(template: str, made: Household, **other: str) -> str:
    """Return a path with the names of things that stand."""
    return template.format_map(names_of(template, made, **other))


def names_of(template: str, made: Household, **other: str) -> dict[str, str]:
    """Return what stands, by the names that paths have for it; `other` instead of some."""
    grant = made.pending_id if template.endswith("complete") else made.grant_id
    return {
        "spaceId": made.space.space_id,
        "missionId": MISSION,
        "grantId": grant,
        "invitationId": made.invitation.new.invitation_id,
        "table": "tasks",
        "recordId": SHARED_TASK,
        "sessionId": made.session_id,
        "deviceId": made.device_id,
        "factorId": made.factor_id,
        "linkId": made.link_id,
        "reservationId": made.reservation_id,
        "key": "s1",
        **other,
    }


async def asked(
    made: Household, name: str, operation: str, declared: Named | None = None, **other: str
) -> httpx.Response:
    method, _, template = operation.partition(" ")
    body = None
    if declared is not None and declared.body:
        said_again = (
            [names_of(template, made, **other)[declared.repeats]] if declared.repeats else []
        )
        body = declared.body(made, name, *said_again)
    return await made.people[name].call(method, path_of(template, made, **other), body)


async def test_every_endpoint_is_declared(made: Household) -> None:
    """No endpoint is served of which nobody has said who gets what."""
    served = {f"{one.method} {one.path}" for one in made.served.hub.endpoints}
    assert served == set(NAMED) | OWN | STREAMS | TICKETS | ELSEWHERE
    document = (await made.people["out"].call("GET", "/api/v1/openapi.json")).json()
    described = {
        f"{method.upper()} {path}" for path, one in document["paths"].items() for method in one
    }
    assert described == served
    for operation in OWN | STREAMS | ELSEWHERE:
        assert "{" not in operation, operation


async def test_nothing_is_open(made: Household) -> None:
    """Without a token nothing answers but what must: signing in, and what is everybody's."""
    for one in made.served.hub.endpoints:
        operation = f"{one.method} {one.path}"
        if one.signed_in:
            answer = await made.served.call(one.method, path_of(one.path, made), {})
            assert said(answer) == "401 UNAUTHENTICATED", operation
        else:
            assert operation in ELSEWHERE | STREAMS | TICKETS, operation


async def test_others_things_are_not_there(made: Household) -> None:
    """Who is no member gets, byte for byte, the answer for a thing that does not exist."""
    nothing = {
        "spaceId": "0" * 64,
        "missionId": "none",
        "grantId": UNKNOWN,
        "invitationId": UNKNOWN,
        "recordId": "none",
        "key": "s1",
        "sessionId": UNKNOWN,
        "deviceId": UNKNOWN,
        "factorId": UNKNOWN,
        "linkId": "0" * 32,
        "reservationId": UNKNOWN,
    }
    for operation, declared in NAMED.items():
        for name in ("rem", "out"):
            answer = await asked(made, name, operation, declared)
            absent = await asked(made, name, operation, declared, **nothing)
            assert said(answer) == declared.others, (operation, name, answer.text)
            assert answer.content == absent.content, (operation, name)


async def test_each_role_gets_what_is_declared(database: Database, tmp_path: Path) -> None:
    """Owner, member and viewer get what the declaration says, and nobody an error of the hub."""
    async with household(database, tmp_path) as made:
        await each_role(made)


async def each_role(made: Household) -> None:
    order = sorted(NAMED.items(), key=lambda item: item[1].last)
    for operation, declared in order:
        for name, wants in reversed(list(zip(("ada", "bob", "vic"), declared.wants, strict=True))):
            answer = await asked(made, name, operation, declared)
            assert said(answer) == wants, (operation, name, answer.text)
            if operation == f"POST {SPACE}/changes":
                results = codes(msgspec.json.decode(answer.content, type=PushAnswer))
                assert results == (["role"] if name == "vic" else ["accepted"]), name
            if operation == f"POST {SPACE}/members" and name == "ada":
                # What is closed below is the space as it is now.
                bob = made.people["bob"].account
                log = msgspec.json.decode(answer.content)["log"]
                made.space = made.space.grown(msgspec.convert(log[-1], type(made.space.log[-1])))
                assert made.space.newest.member(bob.account_id).role == "admin"


@pytest.mark.parametrize("name", NAMES)
async def test_answers_name_nobody_else(made: Household, name: str) -> None:
    """What an account asks about itself holds no id, name or ciphertext that is another's."""
    secrets = await secrets_of(made, name)
    members = [made.people[one].account for one in ("ada", "bob", "vic", "rem")]
    if name != "out":
        # The log of the space says who was in it while they were; its id is the log's first hash.
        secrets -= {made.space.space_id, *(one.account_id for one in members)}
    if name in ("ada", "bob", "vic"):
        secrets -= {SHARED_TASK, "by-rem", made.grant_id, *(one.device_id for one in members)}
    assert len(secrets) > 20
    for operation in sorted(OWN):
        answer = await asked(made, name, operation)
        assert answer.status_code == 200, (operation, answer.text)
        leaked = {one for one in secrets if one in answer.text}
        assert leaked == set(), (operation, leaked)


async def test_private_records_are_not_there(made: Household) -> None:
    """Another member's private record is neither in the log, the state, nor under its own name."""
    for name in ("bob", "vic"):
        for operation in (
            f"GET {SPACE}/changes",
            f"GET {SPACE}/records",
            f"GET {SPACE}/records/{{table}}/{{recordId}}",
        ):
            answer = await asked(made, name, operation, recordId=PRIVATE_TASK)
            assert answer.status_code == 200
            assert PRIVATE_TASK not in answer.text, operation
    own = await asked(made, "ada", f"GET {SPACE}/records")
    assert PRIVATE_TASK in own.text


async def test_bodies_that_name_others_things(made: Household) -> None:
    """A grant over another's mission or space, or a device of another account, is not there."""
    space = made.space.space_id
    for name in ("rem", "out"):
        person = made.people[name]
        request = {
            "missionId": MISSION,
            "tables": ["notes"],
            "recordIds": ["notes:note-1"],
            "endpoints": ["rules:offline"],
            "spaceId": space,
        }
        asked_for = await person.call("POST", GRANT, request)
        absent = await person.call("POST", GRANT, {**request, "spaceId": "0" * 64})
        assert said(asked_for) == "404 NOT_FOUND"
        assert asked_for.content == absent.content
        path = f"/api/v1/spaces/{person.space}/changes"
        stolen = PushRequest(
            device_id=made.people["ada"].account.device_id, changes=[made.task(name, "t")]
        )
        unknown = msgspec.structs.replace(stolen, device_id=UNKNOWN)
        answers = [await person.call("POST", path, one) for one in (stolen, unknown)]
        assert {said(one) for one in answers} == {"403 DEVICE_UNKNOWN"}
        assert answers[0].content == answers[1].content
        certificate = made.people["ada"].account.certificate
        taken = await person.call("POST", "/api/v1/me/devices", certificate)
        assert 400 <= taken.status_code < 500
    viewer = made.people["vic"]
    answer = await viewer.call(
        "POST",
        GRANT,
        {
            "missionId": MISSION,
            "tables": ["notes"],
            "recordIds": ["notes:note-1"],
            "endpoints": ["rules:offline"],
            "spaceId": space,
        },
    )
    assert said(answer) == "403 FORBIDDEN"


@pytest.mark.parametrize(
    "field",
    [
        "spaceId",
        "missionId",
        "grantId",
        "invitationId",
        "recordId",
        "sessionId",
        "deviceId",
        "factorId",
        "linkId",
    ],
)
async def test_odd_names_are_refused(made: Household, field: str) -> None:
    """A name that no thing can bear is refused as such or not there, and never fails the hub."""
    odd = ["%00", "a b", "x" * 300, "'; drop schema mana; --", "ü", "%2e%2e%2f", "0", "-1"]
    for operation, declared in NAMED.items():
        if "{" + field + "}" not in operation:
            continue
        for text in odd:
            answer = await asked(made, "ada", operation, declared, **{field: text})
            is_refused = answer.status_code in (200, 400, 404, 405)
            assert is_refused or said(answer) == declared.others, (operation, text, answer.text)
            if answer.status_code == 200:
                assert answer.json()["records"] == []


RUNNERS = {
    "GET /health": "200",
    "GET /metrics": "200",
    "POST /internal/tick": "401 UNAUTHENTICATED",
    "GET /internal/missions/{userId}": "401 UNAUTHENTICATED",
    "GET /api/v1/me/ai-audit": "200",
}
"""The runner's own endpoints, and what an account gets that has no service key."""


@pytest.mark.parametrize("name", NAMES)
async def test_the_runner_shows_nobody_elses_rows(made: Household, name: str) -> None:
    """What the runner serves by itself names, like the hub, nothing that is another's."""
    secrets = await secrets_of(made, name)
    if name != "out":
        secrets -= {made.space.space_id}
    person = made.people[name]
    async with made.in_space("ada").runner() as runner:
        assert {f"{one.method} {one.path}" for one in runner.endpoints} == set(RUNNERS)
        transport = httpx.ASGITransport(app=runner.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://runner.test") as http:
            for operation, wants in RUNNERS.items():
                method, _, path = operation.partition(" ")
                headers = {"authorization": f"Bearer {person.tokens.access_token}"}
                answer = await http.request(method, path, headers=headers)
                assert said(answer) == wants, operation
                assert {one for one in secrets if one in answer.text} == set(), operation
            rows = (await http.get("/api/v1/me/ai-audit", headers=headers)).json()["rows"]
            assert bool(rows) == (name == "ada")
