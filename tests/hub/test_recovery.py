"""A lost password: the recovery code, the operator's token, and what neither of them can do."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from mana.crypto.keys import unwrap_master_key
from mana.crypto.primitives import b64, unb64
from mana.crypto.vaults import recovery_keys
from mana.hub.accounts.store import AccountStore
from mana.hub.app import operator
from mana.hub.db import Transaction
from mana.hub.operating.service import LoginUnknown
from mana.hub.secrets import SecretsUnusable
from mana.protocol.errors import ZeroKnowledgeActive
from mana.protocol.messages import ResetAnswer
from mana.testing.postgres import Database, connected, database_text
from tests.hub.client import Served, served_hub
from tests.hub.test_accounts import MINUTE, code
from tests.hub.vaulted import (
    Vaulted,
    in_zero_knowledge,
    new_password,
    recovery_key,
    session_of,
    signed_up,
)

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

DAY = 24 * 60 * MINUTE
WRONG = b64(bytes(32))


async def recover(served: Served, login: str, key: str) -> Any:
    return await served.call("POST", "/api/v1/auth/recover", {"login": login, "recoveryKey": key})


async def reset(served: Served, login: str, token: str) -> Any:
    body = {"login": login, "token": token, "deviceName": "desk"}
    return await served.call("POST", "/api/v1/auth/reset", body)


async def token_for(served: Served, login: str) -> str:
    async with operator(served.hub.settings, clock=served.clock) as made:
        return await made.reset(login)


@pytest.mark.parametrize("mode", ["standard", "zero-knowledge"])
async def test_a_code_opens_everything(database: Database, mode: str) -> None:
    """With the recovery code alone a person is signed in, opens the master key, and sets a
    password that works from then on; the old one does not."""
    async with served_hub(database) as served:
        if mode == "standard":
            ada = await signed_up(served)
            await ada.changed(code=True)
        else:
            ada = await in_zero_knowledge(served)
        assert ada.code is not None
        answer = await recover(served, "Ada", recovery_key(ada.code, "ada"))
        assert answer.status_code == 200, answer.text
        person = session_of(served, ada.person, answer)
        again = Vaulted(person, ada.keys, b"")
        vault = await again.vault()
        assert vault.recovery is not None
        opened = unwrap_master_key(
            vault.recovery.wrapped,
            recovery_keys(ada.code, "ada").wrap_key,
            "recovery",
            vault.account_id,
            vault.recovery.key_id,
        )
        assert opened == ada.keys.master_key
        password = new_password("ada", "a new one")
        await again.changed(password=password)
        assert code(await ada.person.log_in()) == "401 INVALID_CREDENTIALS"
        body = {"login": "ada", "loginKey": b64(password.keys.login_key)}
        assert (await served.call("POST", "/api/v1/auth/login", body)).status_code == 200
        assert ("recover", True, "") in await again.events()


async def test_codes_end(database: Database) -> None:
    """A newer code ends the older one, another master key ends both, and one that was removed is
    worth nothing."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        for ended in ({"code": True}, {"code": False}, {"master": True}):
            await ada.changed(code=True)
            assert ada.code is not None
            key = recovery_key(ada.code, "ada")
            assert (await recover(served, "ada", key)).status_code == 200
            await ada.changed(**ended)
            assert code(await recover(served, "ada", key)) == "401 INVALID_CREDENTIALS"


async def test_nothing_tells_who_has_a_code(database: Database) -> None:
    """A wrong code, an account without one and an unknown login get one answer; guesses are
    counted with those of the password, and the person reads of theirs (K9)."""
    async with served_hub(database) as served:
        ada, bob = await signed_up(served), await signed_up(served, "bob")
        await ada.changed(code=True)
        answers = [await recover(served, login, WRONG) for login in ("ada", "bob", "nobody")]
        assert len({one.content for one in answers}) == 1
        assert code(answers[0]) == "401 INVALID_CREDENTIALS"
        for person in (ada, bob):
            assert (await person.events())[-1] == ("recover", False, "INVALID_CREDENTIALS")
        for login in ("ada", "nobody"):
            guesses = await asyncio.gather(*(recover(served, login, WRONG) for _ in range(6)))
            assert sorted(one.status_code for one in guesses) == [401] * 4 + [429] * 2
        assert code(await ada.person.log_in()) == "429 RATE_LIMITED"
        assert ada.code is not None
        key = recovery_key(ada.code, "ada")
        assert code(await recover(served, "ada", key)) == "429 RATE_LIMITED"
        served.clock.now_ms += 15 * MINUTE
        assert (await recover(served, "ada", key)).status_code == 200
        assert (await ada.person.log_in()).status_code == 200


async def test_malformed_recoveries(database: Database) -> None:
    """What cannot be a key is refused as such, and the name of a device is text."""
    async with served_hub(database) as served:
        await signed_up(served)
        assert (await recover(served, "ada", "AAAA")).status_code == 400
        for path, member, name in (
            ("recover", "recoveryKey", "a\x00"),
            ("reset", "token", "\n\x00"),
            ("login", "loginKey", "x" * 81),
        ):
            body = {"login": "ada", member: WRONG, "deviceName": name}
            answer = await served.call("POST", f"/api/v1/auth/{path}", body)
            assert answer.status_code == 400, path


async def test_a_code_that_ends_while_it_is_used(database: Database, monkeypatch: Any) -> None:
    """A code that was replaced between the look at it and the session begins no session."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        await ada.changed(code=True)
        assert ada.code is not None
        key = recovery_key(ada.code, "ada")
        begin = AccountStore.begin_session

        async def late(self: AccountStore, *args: Any, **options: Any) -> None:
            monkeypatch.setattr(AccountStore, "begin_session", begin)
            await ada.changed(code=True)
            await begin(self, *args, **options)

        monkeypatch.setattr(AccountStore, "begin_session", late)
        assert code(await recover(served, "ada", key)) == "401 INVALID_CREDENTIALS"


async def test_the_operators_token(database: Database) -> None:
    """The operator's token signs in once and gives the master key, with which a new password is
    set; the person reads of it, and no table holds the token."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        token = await token_for(served, "Ada")
        assert token not in await database_text(database.owner_url)
        answers = await asyncio.gather(*(reset(served, "ada", token) for _ in range(3)))
        assert sorted(one.status_code for one in answers) == [200, 401, 401]
        done = next(one for one in answers if one.status_code == 200)
        given = msgspec.json.decode(done.content, type=ResetAnswer)
        assert unb64(given.master_key) == ada.keys.master_key
        again = Vaulted(session_of(served, ada.person, done), ada.keys, b"")
        await again.changed(password=new_password("ada", "a new one"))
        events = await again.events()
        assert ("reset", True, "token") in events
        assert ("reset", True, "") in events
        assert events.count(("reset", False, "INVALID_CREDENTIALS")) == 2
        sessions = (await again.person.call("GET", "/api/v1/me/sessions")).json()["sessions"]
        assert [one["name"] for one in sessions] == ["desk"]


async def test_tokens_end(database: Database) -> None:
    """A token is for one login, for a day, and ends with the next change of keys."""
    async with served_hub(database) as served:
        ada, _ = await signed_up(served), await signed_up(served, "bob")
        token = await token_for(served, "ada")
        assert code(await reset(served, "bob", token)) == "401 INVALID_CREDENTIALS"
        assert code(await reset(served, "nobody", token)) == "401 INVALID_CREDENTIALS"
        assert code(await reset(served, "ada", "no such token")) == "401 INVALID_CREDENTIALS"
        served.clock.now_ms += DAY
        assert code(await reset(served, "ada", token)) == "401 INVALID_CREDENTIALS"
        token = await token_for(served, "ada")
        served.clock.now_ms -= DAY
        await ada.changed(password=new_password("ada", "another"))
        served.clock.now_ms += DAY
        assert code(await reset(served, "ada", token)) == "401 INVALID_CREDENTIALS"


async def test_no_token_in_zero_knowledge(database: Database) -> None:
    """In zero-knowledge mode the operator can help nobody: no token is made, and one from before
    opens nothing."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        token = await token_for(served, "ada")
        await ada.changed(mode="zero-knowledge", master=True, identity=True, code=True)
        assert code(await reset(served, "ada", token)) == "409 ZK_ACTIVE"
        with pytest.raises(ZeroKnowledgeActive):
            await token_for(served, "ada")
        assert ("reset", False, "ZK_ACTIVE") in await ada.events()
        await ada.changed(mode="standard")
        assert code(await reset(served, "ada", token)) == "401 INVALID_CREDENTIALS"


async def test_unknown_login_of_a_reset(database: Database) -> None:
    """The operator is told that there is no such login."""
    async with served_hub(database) as served:
        with pytest.raises(LoginUnknown):
            await token_for(served, "nobody")


async def test_a_token_is_kept_when_nothing_opens(database: Database) -> None:
    """If the hub cannot open what it keeps, the token is not used up, and no session begins."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        token = await token_for(served, "ada")
        async with connected(database.owner_url) as owner:
            kept = await owner.fetchval("select kek_wrap from mana.accounts")
            await owner.execute("update mana.accounts set kek_wrap = 'mk:1:broken.'")
            answer = await reset(served, "ada", token)
            assert code(answer) == f"503 {SecretsUnusable.code}"
            await owner.execute("update mana.accounts set kek_wrap = $1", kept)
        assert (await reset(served, "ada", token)).status_code == 200
        assert ("reset", False, SecretsUnusable.code) in await ada.events()


async def test_log_ins_are_told(database: Database) -> None:
    """A log-in is on the person's log, a wrong password too; its session has the device's name
    and is seen when it is used (K9)."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        body = {"login": "ada", "loginKey": WRONG}
        for login in ("ada", "nobody"):
            answer = await served.call("POST", "/api/v1/auth/login", {**body, "login": login})
            assert code(answer) == "401 INVALID_CREDENTIALS"
        body = {
            "login": "ada",
            "loginKey": b64(ada.person.account.login_key),
            "deviceName": " the kitchen ",
        }
        answer = await served.call("POST", "/api/v1/auth/login", body)
        other = session_of(served, ada.person, answer)
        served.clock.now_ms += MINUTE
        refreshed = {"refreshToken": other.tokens.refresh_token}
        assert (await served.call("POST", "/api/v1/auth/refresh", refreshed)).status_code == 200
        listed = (await ada.person.call("GET", "/api/v1/me/sessions")).json()["sessions"]
        [found] = [one for one in listed if not one["current"]]
        assert found["name"] == "the kitchen"
        assert found["seenAt"] > found["createdAt"]
        await other.call("POST", "/api/v1/me/devices", ada.person.account.certificate)
        listed = (await ada.person.call("GET", "/api/v1/me/sessions")).json()["sessions"]
        device = ada.person.account.device_id
        assert [one.get("deviceId") for one in listed] == [device, device]
        assert await ada.events() == [
            ("sign-up", True, ""),
            ("log-in", False, "INVALID_CREDENTIALS"),
            ("log-in", True, ""),
        ]


@pytest.mark.parametrize(("path", "member"), [("login", "loginKey"), ("recover", "recoveryKey")])
async def test_refusals_cost_the_same(
    database: Database, monkeypatch: Any, path: str, member: str
) -> None:
    """A refused attempt asks the database as often for an unknown login as for one that is known,
    and writes as often: how long it takes tells nothing."""
    async with served_hub(database) as served:
        await signed_up(served)
        held, statements = Transaction._run, 0

        async def counted(self: Transaction, method: str, *args: Any) -> Any:
            nonlocal statements
            statements += 1
            return await held(self, method, *args)

        monkeypatch.setattr(Transaction, "_run", counted)
        counts = []
        for login in ("nobody", "ada"):
            statements = 0
            answer = await served.call(
                "POST", f"/api/v1/auth/{path}", {"login": login, member: WRONG}
            )
            assert code(answer) == "401 INVALID_CREDENTIALS"
            counts.append(statements)
        assert counts[0] == counts[1] > 2
