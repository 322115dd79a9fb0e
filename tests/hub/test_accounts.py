"""Accounts: made whole or not at all, and silent about who has one."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Any

import msgspec
import pytest
from joserfc import jwt

from mana.crypto.keys import unwrap_master_key
from mana.crypto.passwords import FLOOR
from mana.crypto.primitives import b64
from mana.domain.errors import Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.accounts.tokens import _REGISTRY, TokenIssuer, TokenVerifier
from mana.hub.db import AccessRefused, Tenancy, migrate
from mana.hub.db.urls import url_as
from mana.hub.secrets import load_or_create
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.messages import KdfParameters, Tokens
from mana.testing.accounts import NewAccount, found_space, new_account, new_device, sealed_change
from mana.testing.postgres import (
    Cluster,
    Database,
    connected,
    database_text,
    security_definer_functions,
)
from tests.hub.client import START_MS, Served, served_hub
from tests.hub.vaulted import until_waiting

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TASKS = next(table for table in TODO.tables if table.name == "tasks")
MINUTE = 60_000


def code(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return f"{answer.status_code} {answer.json()['code']}"


async def sign_up(served: Served, account: NewAccount, **changed: Any) -> Any:
    request = msgspec.structs.replace(account.request, **changed)
    return await served.call("POST", "/api/v1/auth/signup", request)


async def test_first_day(database: Database) -> None:
    """Signing up makes an account that can log in, with a personal space and a user scope."""
    async with served_hub(database) as served:
        ada = await served.sign_up("Ada")
        me = (await ada.call("GET", "/api/v1/me")).json()
        assert (me["login"], me["role"], me["mode"]) == ("Ada", "administrator", "standard")
        spaces = (await ada.call("GET", "/api/v1/spaces")).json()["spaces"]
        assert sorted(space["type"] for space in spaces) == ["personal", "user"]
        personal = next(space for space in spaces if space["type"] == "personal")
        assert personal["spaceId"] == ada.account.personal.space_id
        assert personal["log"] == [msgspec.to_builtins(ada.account.personal.new.first)]
        assert len(personal["wraps"]) == 2
        vault = (await ada.call("GET", "/api/v1/me/vault")).json()
        assert vault["masterWrap"] == ada.account.request.master_wrap
        assert (await ada.log_in()).status_code == 200


async def test_master_key_is_wrapped(database: Database) -> None:
    """In standard mode the hub keeps the master key under its KEK only, and can recover it."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        secrets = load_or_create(served.hub.settings.secrets_dir)
        async with connected(database.owner_url) as owner:
            wrapped = await owner.fetchval("select kek_wrap from mana.accounts")
        opened = unwrap_master_key(
            wrapped, secrets.kek, "kek", ada.account.account_id, secrets.kek_id
        )
        assert opened == ada.account.master_key
        text = await database_text(database.owner_url)
        assert b64(ada.account.master_key) not in text
        assert b64(ada.account.login_key) not in text
        assert ada.tokens.refresh_token not in text


async def test_zero_knowledge_sends_no_master_key(database: Database) -> None:
    """In zero-knowledge mode the hub never gets the master key, and keeps no wrap of it."""
    async with served_hub(database) as served:
        account = new_account("ada", now_ms=START_MS)
        answer = await sign_up(served, account, mode="zero-knowledge", master_key=None)
        assert answer.status_code == 201
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select kek_wrap from mana.accounts") is None


async def test_one_administrator(database: Database) -> None:
    """Of accounts that sign up together exactly one administers, and a demo never does."""
    async with served_hub(database) as served:
        demo = await served.sign_up("demo", demo=True)
        people = await asyncio.gather(*(served.sign_up(f"person-{n}") for n in range(4)))
        roles = [(await one.call("GET", "/api/v1/me")).json()["role"] for one in [demo, *people]]
        assert roles[0] == "member"
        assert sorted(roles[1:]) == ["administrator", "member", "member", "member"]


async def test_login_is_taken_once(database: Database) -> None:
    """Two people who choose one login, in whatever letters, do not both get it."""
    async with served_hub(database) as served:
        both = await asyncio.gather(
            sign_up(served, new_account("Ada", now_ms=START_MS)),
            sign_up(served, new_account("ADA", now_ms=START_MS)),
        )
        assert sorted(answer.status_code for answer in both) == [201, 409]
        assert code(next(one for one in both if one.status_code == 409)) == "409 LOGIN_TAKEN"


async def test_ids_are_taken_once(database: Database) -> None:
    """An account id, device or space of somebody else cannot be signed up again."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        again = msgspec.structs.replace(ada.account.request, login="eve")
        assert code(await served.call("POST", "/api/v1/auth/signup", again)) == (
            "409 ACCOUNT_EXISTS"
        )
        answer = await ada.call("POST", "/api/v1/me/devices", ada.account.certificate)
        assert answer.status_code == 201
        bob = await served.sign_up("bob")
        stolen = msgspec.structs.replace(bob.account.certificate, device_id=ada.account.device_id)
        assert (await bob.call("POST", "/api/v1/me/devices", stolen)).status_code == 400


async def test_parts_must_fit(database: Database) -> None:
    """A sign-up whose parts do not belong together stores nothing."""
    async with served_hub(database) as served:
        ada, eve = (new_account(name, now_ms=START_MS) for name in ("ada", "eve"))
        third = found_space(ada.identity, "personal", now_ms=START_MS)
        request = ada.request
        forged = msgspec.structs.replace(
            request.spaces[0].first, signature=eve.request.spaces[0].first.signature
        )
        bad: list[dict[str, Any]] = [
            {"device": eve.request.device},
            {"spaces": eve.request.spaces},
            {"spaces": request.spaces[:1]},
            {"spaces": [*request.spaces, third.new]},
            {"spaces": [request.spaces[0], request.spaces[0]]},
            {
                "spaces": [
                    msgspec.structs.replace(request.spaces[0], first=forged),
                    request.spaces[1],
                ]
            },
            {"spaces": [msgspec.structs.replace(request.spaces[0], wraps=[]), request.spaces[1]]},
            {"account_id": str(uuid.uuid4())},
            {"account_id": "ada"},
            {"identity": eve.request.identity},
            {"master_key": None},
            {"master_key": "short"},
            {"mode": "zero-knowledge"},
            {"mode": "standard\n"},
            {"login": " ada"},
            {"login": "a\x00b"},
            {"login_key": "AAAA"},
            {"master_wrap": "plain text"},
            {"master_check": "?"},
            {"kdf": KdfParameters(salt="AAAA", t=1, m_kib=8, p=1)},
        ]
        for changed in bad:
            answer = await sign_up(served, ada, **changed)
            assert answer.status_code == 400, changed
            assert answer.headers["content-type"] == "application/problem+json"
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana.accounts") == 0


async def test_kdf_floor(database: Database) -> None:
    """With the real floor, password parameters that are too cheap are refused."""
    async with served_hub(database, kdf_floor=FLOOR) as served:
        answer = await sign_up(served, new_account("ada", now_ms=START_MS))
        assert code(answer) == "400 KDF_TOO_WEAK"


async def test_sign_up_modes(database: Database) -> None:
    """A closed hub takes nobody; one by invitation takes the first, then one per invitation."""
    async with served_hub(database, sign_ups="closed") as served:
        answer = await sign_up(served, new_account("ada", now_ms=START_MS))
        assert code(answer) == "403 SIGNUP_CLOSED"
    async with served_hub(database, sign_ups="invite") as served:
        ada = await served.sign_up("ada")
        assert code(await sign_up(served, new_account("bob", now_ms=START_MS))) == (
            "403 INVITE_NEEDED"
        )
        invite = (await ada.call("POST", "/api/v1/auth/invites")).json()["invite"]
        both = await asyncio.gather(
            *(sign_up(served, new_account(n, now_ms=START_MS), invite=invite) for n in "bc")
        )
        assert sorted(answer.status_code for answer in both) == [201, 403]
        member = msgspec.json.decode(
            next(one for one in both if one.status_code == 201).content, type=Tokens
        )
        answer = await served.call("POST", "/api/v1/auth/invites", token=member.access_token)
        assert code(answer) == "403 FORBIDDEN"


async def test_unknown_logins_look_alike(database: Database) -> None:
    """Nothing that the hub answers tells an unknown login from a wrong password."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")

        async def kdf(login: str) -> Any:
            return (await served.call("POST", "/api/v1/auth/kdf", {"login": login})).json()

        assert await kdf("ADA") == msgspec.to_builtins(ada.account.request.kdf)
        invented = await kdf("nobody")
        assert invented == await kdf("NoBody")
        assert invented != await kdf("somebody")
        assert set(invented) == {"salt", "t", "mKib", "p"}
        assert len(base64.b64decode(invented["salt"])) == 16
        wrong = b64(bytes(32))
        answers = [
            await served.call("POST", "/api/v1/auth/login", {"login": login, "loginKey": wrong})
            for login in ("ada", "nobody")
        ]
        assert answers[0].content == answers[1].content
        assert code(answers[0]) == "401 INVALID_CREDENTIALS"


@pytest.mark.parametrize("login", ["ada", "nobody"])
async def test_five_failures(database: Database, login: str) -> None:
    """After five failures a login is closed for a while, even to parallel guesses."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        body = {"login": login, "loginKey": b64(bytes(32))}

        async def attempt() -> Any:
            return await served.call("POST", "/api/v1/auth/login", body)

        answers = await asyncio.gather(*(attempt() for _ in range(8)))
        assert sorted(one.status_code for one in answers) == [401] * 5 + [429] * 3
        late = await attempt()
        assert code(late) == "429 RATE_LIMITED"
        assert late.headers["retry-after"] == "900"
        if login == "ada":
            assert code(await ada.log_in()) == "429 RATE_LIMITED"
        served.clock.now_ms += 15 * MINUTE
        assert code(await attempt()) == "401 INVALID_CREDENTIALS"
        assert (await ada.log_in()).status_code == 200


async def test_success_forgets_failures(database: Database) -> None:
    """Whoever logs in at last starts with a clean slate."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for _ in range(3):
            body = {"login": "ada", "loginKey": b64(bytes(32))}
            for _ in range(4):
                answer = await served.call("POST", "/api/v1/auth/login", body)
                assert answer.status_code == 401
            assert (await ada.log_in()).status_code == 200


async def refreshed(served: Served, token: str) -> Any:
    return await served.call("POST", "/api/v1/auth/refresh", {"refreshToken": token})


async def test_refresh_token_is_used_once(database: Database) -> None:
    """A refresh token that comes back late ends its session for everybody who holds it."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        first = ada.tokens.refresh_token
        second = (await refreshed(served, first)).json()["refreshToken"]
        served.clock.now_ms += 31_000
        assert code(await refreshed(served, first)) == "401 SESSION_ENDED"
        assert code(await refreshed(served, second)) == "401 SESSION_ENDED"
        assert (await ada.log_in()).status_code == 200


async def test_lost_answer(database: Database) -> None:
    """A device that lost the answer may ask again within 30 s; the lost token is then void."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        first = ada.tokens.refresh_token
        lost = (await refreshed(served, first)).json()["refreshToken"]
        served.clock.now_ms += 29_000
        again = await refreshed(served, first)
        assert again.status_code == 200
        third = again.json()["refreshToken"]
        assert (await refreshed(served, third)).status_code == 200
        assert code(await refreshed(served, lost)) == "401 SESSION_ENDED"


async def test_reuse_after_the_next(database: Database) -> None:
    """Even within 30 s a token ends its session once the token after it was used."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        first = ada.tokens.refresh_token
        second = (await refreshed(served, first)).json()["refreshToken"]
        third = (await refreshed(served, second)).json()["refreshToken"]
        assert code(await refreshed(served, first)) == "401 SESSION_ENDED"
        assert code(await refreshed(served, third)) == "401 SESSION_ENDED"


async def test_racing_refreshes(database: Database) -> None:
    """Of one token sent several times at once, one line of tokens survives or none."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        answers = await asyncio.gather(
            *(refreshed(served, ada.tokens.refresh_token) for _ in range(4))
        )
        tokens = [one.json()["refreshToken"] for one in answers if one.status_code == 200]
        again = [await refreshed(served, token) for token in tokens]
        assert sum(one.status_code == 200 for one in again) <= 1


async def test_old_refresh_token(database: Database) -> None:
    """A refresh token that nobody used for two months is worth nothing."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        served.clock.now_ms += 61 * 24 * 60 * MINUTE
        assert code(await refreshed(served, ada.tokens.refresh_token)) == "401 SESSION_ENDED"
        assert code(await refreshed(served, "no such token")) == "401 SESSION_ENDED"


async def test_log_out(database: Database) -> None:
    """After logging out the refresh token is worth nothing, and other sessions live on."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        other = msgspec.json.decode((await ada.log_in()).content, type=Tokens)
        assert (await ada.call("POST", "/api/v1/auth/logout")).status_code == 204
        assert code(await refreshed(served, ada.tokens.refresh_token)) == "401 SESSION_ENDED"
        assert (await refreshed(served, other.refresh_token)).status_code == 200


async def test_access_tokens(database: Database) -> None:
    """An access token holds for 15 minutes, for its hub, and unchanged."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        token = ada.tokens.access_token
        head, claims, signature = token.split(".")
        other = TokenIssuer(ada.account.device_key, issuer="mana").issue(
            AccountId(ada.account.account_id), "s", now_ms=START_MS
        )
        unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        bad = [
            "",
            "x",
            "a.b.c",
            f"{head}.{claims}.",
            f"{head}.{claims}.{signature[:-4]}AAAA",
            f"{unsigned}.{claims}.",
            other,
            "é" * 40,
            "A" * 10_000,
        ]
        for text in bad:
            header = {"authorization": f"Bearer {text}".encode()}
            answer = await served.http.get("/api/v1/me", headers=header)
            assert code(answer) == "401 UNAUTHENTICATED", text
        assert code(await served.call("GET", "/api/v1/me")) == "401 UNAUTHENTICATED"
        assert (await ada.call("GET", "/api/v1/me")).status_code == 200
        served.clock.now_ms += 15 * MINUTE
        assert code(await ada.call("GET", "/api/v1/me")) == "401 UNAUTHENTICATED"


async def test_tokens_verify_elsewhere(database: Database) -> None:
    """The key set that the hub publishes verifies its tokens, and no other issuer's."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        secrets = load_or_create(served.hub.settings.secrets_dir)
        verifier = TokenVerifier(secrets.token_key.public(), issuer="mana")
        assert (await served.call("GET", "/api/v1/auth/jwks")).json() == verifier.jwks()
        session = verifier.verify(ada.tokens.access_token, now_ms=START_MS)
        assert session.account == ada.account.account_id
        key = TokenIssuer(secrets.token_key, issuer="mana")
        claims = {"sub": session.account, "sid": "s", "iss": "mana", "aud": "mana", "iat": 0}
        endless = jwt.encode(
            {"alg": "EdDSA", "kid": key._kid},
            {**claims, "exp": float("inf")},
            key._key,
            registry=_REGISTRY,
        )
        with pytest.raises(Unauthenticated):
            verifier.verify(endless, now_ms=START_MS)
        elsewhere = TokenVerifier(secrets.token_key.public(), issuer="other")
        with pytest.raises(Unauthenticated):
            elsewhere.verify(ada.tokens.access_token, now_ms=START_MS)


async def test_devices(database: Database) -> None:
    """Only a device that the account's identity certified is registered, once."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        _, _, certificate = new_device(ada.account.identity, now_ms=START_MS)
        served.clock.now_ms += 1
        for _ in range(2):
            answer = await ada.call("POST", "/api/v1/me/devices", certificate)
            assert answer.status_code == 201
        listed = (await ada.call("GET", "/api/v1/me/devices")).json()["devices"]
        assert sorted(one["deviceId"] for one in listed) == sorted(
            [ada.account.device_id, certificate.device_id]
        )
        answer = await eve.call("POST", "/api/v1/me/devices", certificate)
        assert answer.status_code == 400
        other = msgspec.structs.replace(certificate, created_at="2026-01-01T00:00:00.000Z")
        assert (await ada.call("POST", "/api/v1/me/devices", other)).status_code == 400
        in_space = (await ada.call("GET", f"/api/v1/spaces/{ada.space}/devices")).json()
        assert in_space["devices"] == listed


async def test_deletion_leaves_nothing(database: Database) -> None:
    """After an account is deleted no table holds a row of it, and others keep theirs."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        for person in (ada, bob):
            change = sealed_change(person.account, TASKS, "t1", {"title": "milk"}, now_ms=START_MS)
            await person.push([change])
            await person.call("POST", "/api/v1/auth/invites")
        wrong = await ada.call("DELETE", "/api/v1/me", {"loginKey": b64(bytes(32))})
        assert code(wrong) == "401 INVALID_CREDENTIALS"
        body = {"loginKey": b64(ada.account.login_key)}
        assert (await ada.call("DELETE", "/api/v1/me", body)).status_code == 204
        text = await database_text(database.owner_url)
        account = ada.account
        for mark in (
            account.account_id,
            account.device_id,
            account.personal.space_id,
            account.user.space_id,
            account.request.master_wrap,
        ):
            assert mark not in text
        assert bob.account.personal.space_id in text
        for path in ("/api/v1/me", f"/api/v1/spaces/{ada.space}/records"):
            assert code(await ada.call("GET", path)) == "401 UNAUTHENTICATED"
        assert code(await ada.log_in()) == "401 INVALID_CREDENTIALS"
        assert len((await bob.state()).records) == 1
        again = new_account("ada", now_ms=START_MS)
        assert (await sign_up(served, again)).status_code == 201


async def test_a_password_of_before_deletes_nothing(database: Database) -> None:
    """An account stays whose password was changed while the one before was checked for its end."""
    async with served_hub(database) as served, connected(database.owner_url) as owner:
        ada = await served.sign_up("ada")
        async with owner.transaction():
            await owner.execute("update mana.accounts set login_hash = 'another'")
            body = {"loginKey": b64(ada.account.login_key)}
            ending = asyncio.create_task(ada.call("DELETE", "/api/v1/me", body))
            await until_waiting(database)
        assert code(await ending) == "401 INVALID_CREDENTIALS"
        assert (await ada.call("GET", "/api/v1/me")).status_code == 200


async def test_owner_needs_no_superuser(postgres: Cluster) -> None:
    """Under an owner that row-level security holds too, the doors open and nothing else does."""
    async with connected(postgres.instance.url()) as root:
        await root.execute("create role plain_owner login createrole")
        await root.execute("create database plain owner plain_owner")
    plain = Database("plain", url_as(postgres.instance.url("plain"), "plain_owner"))
    try:
        await migrate(plain.owner_url)
        async with served_hub(plain) as served:
            ada = await served.sign_up("ada")
            assert (await ada.log_in()).status_code == 200
            assert (await refreshed(served, ada.tokens.refresh_token)).status_code == 200
            body = {"loginKey": b64(ada.account.login_key)}
            async with connected(plain.owner_url) as owner:
                assert await owner.fetchval("select count(*) from mana.accounts") == 0
            assert (await ada.call("DELETE", "/api/v1/me", body)).status_code == 204
            assert code(await ada.log_in()) == "401 INVALID_CREDENTIALS"
    finally:
        postgres.drop(plain)
        async with connected(postgres.instance.url()) as root:
            await root.execute("drop role plain_owner")


async def test_doors_are_known(database: Database, tenancy: Tenancy) -> None:
    """The functions with their owner's rights are these, and rows stay shut without them."""
    async with served_hub(database) as served:
        await served.sign_up("ada")
    async with connected(database.owner_url) as owner:
        assert await security_definer_functions(owner) == [
            "mana.admit_sign_up(p_demo boolean, p_invite bytea, p_invites_only boolean)",
            "mana.clear_attempts(p_login_mac bytea)",
            "mana.count_attempt(p_login_mac bytea, p_now timestamp with time zone, p_window interval, p_attempts_max integer)",
            "mana.count_code(p_place bytea, p_codes_max integer)",
            "mana.end_code(p_account text, p_code text)",
            "mana.end_letter(p_account text, p_sent boolean, p_place bytea)",
            "mana.former_devices(p_space text)",
            "mana.kek_batch(p_kek_id text, p_limit integer)",
            "mana.kek_left(p_kek_id text)",
            "mana.login_facts(p_login_key text)",
            "mana.next_letter()",
            "mana.open_reset(p_token_hash bytea, p_login_key text, p_now timestamp with time zone, p_expires timestamp with time zone)",
            "mana.recovery_facts(p_login_key text)",
            "mana.reset_account(p_token_hash bytea, p_login_key text, p_now timestamp with time zone)",
            "mana.rotate_token(p_old bytea, p_new bytea, p_now timestamp with time zone, p_grace interval, p_life interval)",
            "mana.set_kek_wrap(p_account text, p_wrap text, p_kek_id text)",
            "mana.sweep_waiting(p_now timestamp with time zone)",
            "mana.take_letters(p_limit integer)",
            "mana.touch_attempts(p_login_mac bytea)",
            "mana_ai.agent_moved()",
            "mana_ai.end_grants()",
            "mana_ai.grant_moved()",
            "mana_ai.hold_spaces(p_after text, p_limit integer)",
            "mana_ai.keep_moved_turn()",
            "mana_ai.keep_turn()",
            "mana_ai.mission_moved()",
            "mana_ai.plain_agents(p_spaces text[], p_after text, p_limit integer)",
            "mana_ai.plain_missions(p_spaces text[], p_after text, p_limit integer)",
            (
                "mana_ai.put_agents(p_spaces text[], p_ids text[], p_accounts text[], p_states text[],"
                " p_tokens bigint[], p_costs bigint[], p_concurrent integer[], p_deleted boolean[])"
            ),
            (
                "mana_ai.put_missions(p_spaces text[], p_ids text[], p_accounts text[],"
                " p_states text[], p_cadences text[], p_zones text[], p_agents text[],"
                " p_places text[], p_anchors bigint[], p_deleted boolean[],"
                " p_next timestamp with time zone[], p_holds text[], p_missed text[],"
                " p_tokens bigint[], p_costs bigint[], p_failures integer[], p_failed text[],"
                " p_due timestamp with time zone[])"
            ),
            "mana_ai.put_turns()",
            "mana_ai.sweep_old(p_account text, p_space text, p_mission text, p_places integer, p_rows integer)",
        ]
    async with tenancy.door() as tx:
        await tx.execute("set local app.door = 'open'")
        assert await tx.value("select count(*) from mana.accounts") == 0
        assert await tx.value("select count(*) from mana.sessions") == 0
    for table in ("login_attempts", "refresh_tokens", "invites"):
        with pytest.raises(AccessRefused):
            async with tenancy.door() as tx:
                await tx.value(f"select count(*) from mana.{table}")
