"""Sessions and devices: what was ended is ended everywhere, and the log says what was tried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.identity import PrivateIdentity, revoke_device
from mana.crypto.primitives import b64
from mana.domain.clock import iso_ms
from mana.domain.errors import ManaError, Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.http.endpoints import Session
from mana.hub.security.gate import SessionGate
from mana.hub.security.store import SecurityStore
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.errors import DeviceRevoked, SessionEnded
from mana.protocol.messages import DeviceRevocation, SecurityEvents, Tokens
from mana.testing.accounts import NewAccount, new_device, sealed_change
from mana.testing.postgres import Database, connected
from tests.hub.client import START_MS, Person, Served, served_hub
from tests.hub.proofs import proof
from tests.hub.vaulted import signed_up, until_waiting

pytest_plugins = ["mana.testing.plugin"]
pytestmark = pytest.mark.anyio

SESSIONS, LOG = "/api/v1/me/sessions", "/api/v1/me/security"
TASKS = next(table for table in TODO.tables if table.name == "tasks")
MINUTE, DAY = 60_000, 24 * 60 * 60_000


def code(answer: httpx.Response) -> str:
    if answer.status_code < 400:
        return str(answer.status_code)
    return f"{answer.status_code} {answer.json()['code']}"


async def another(person: Person, name: str = "") -> Person:
    """Return the same person in one more session."""
    account = person.account
    body = {"login": account.login, "loginKey": b64(account.login_key), "deviceName": name}
    answer = await person.served.call("POST", "/api/v1/auth/login", body)
    return Person(person.served, account, msgspec.json.decode(answer.content, type=Tokens))


async def me(person: Person) -> str:
    return code(await person.call("GET", "/api/v1/me"))


async def refresh(person: Person) -> str:
    body = {"refreshToken": person.tokens.refresh_token}
    return code(await person.served.call("POST", "/api/v1/auth/refresh", body))


async def until(person: Person, wants: str) -> None:
    """Wait for another process to say so, which hears of it a moment later."""
    said = ""
    while said != wants:
        said = await me(person)


def revocation(
    account: NewAccount,
    device_id: str,
    *,
    at_ms: int = START_MS,
    identity: PrivateIdentity | None = None,
) -> DeviceRevocation:
    """Return the word of an account's identity that a device counts no more."""
    key = (identity or account.identity).signing_key
    made = revoke_device(key, account.account_id, device_id, iso_ms(at_ms))
    return DeviceRevocation(
        account_id=made.account_id,
        device_id=made.device_id,
        revoked_at=made.revoked_at,
        signature=b64(made.signature),
    )


async def revoked(person: Person, device_id: str, **options: Any) -> str:
    path = f"/api/v1/me/devices/{device_id}/revoke"
    return code(await person.call("POST", path, revocation(person.account, device_id, **options)))


async def with_device(person: Person) -> tuple[Person, str]:
    """Return the person in a session of a second device, and its id."""
    there = await another(person, "second")
    device_id, _, certificate = new_device(person.account.identity, now_ms=START_MS)
    assert code(await there.call("POST", "/api/v1/me/devices", certificate)) == "201"
    return there, device_id


@contextlib.asynccontextmanager
async def two_hubs(database: Database, home: Path) -> AsyncIterator[tuple[Served, Served]]:
    """Lend two processes of one hub: two applications with nothing shared but database and keys."""
    async with served_hub(database, home=home) as one, served_hub(database, home=home) as two:
        yield one, two


def at(served: Served, person: Person) -> Person:
    """Return a person as they speak to another process of the hub."""
    return Person(served, person.account, person.tokens)


# Sessions


@pytest.mark.postgres
async def test_sessions_are_listed(database: Database) -> None:
    """A person sees each session that stands, newest first, and which one they are in."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        served.clock.now_ms += MINUTE
        there = await another(ada, "telephone")
        served.clock.now_ms += MINUTE
        assert await refresh(ada) == "200"
        listed = (await there.call("GET", SESSIONS)).json()["sessions"]
        assert [(one.get("name", ""), one["current"]) for one in listed] == [
            ("telephone", True),
            ("", False),
        ]
        assert [one["sessionId"] for one in listed] == [there.session_id, ada.session_id]
        assert listed[1]["deviceId"] == ada.account.device_id
        assert listed[1]["createdAt"] == iso_ms(START_MS)
        assert listed[1]["seenAt"] == iso_ms(START_MS + 2 * MINUTE)
        assert len((await eve.call("GET", SESSIONS)).json()["sessions"]) == 1
        served.clock.now_ms += 61 * DAY
        fresh = await another(ada)
        listed = (await fresh.call("GET", SESSIONS)).json()["sessions"]
        assert [one["sessionId"] for one in listed] == [fresh.session_id]


@pytest.mark.postgres
async def test_an_ended_session_is_refused_at_once(database: Database) -> None:
    """From the answer on, neither token of an ended session is worth anything; others are."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there = await another(ada)
        assert await me(there) == "200"
        path = f"{SESSIONS}/{there.session_id}"
        assert code(await ada.call("DELETE", path)) == "204"
        assert await me(there) == "401 SESSION_ENDED"
        assert await refresh(there) == "401 SESSION_ENDED"
        assert await me(ada) == "200"
        listed = (await ada.call("GET", SESSIONS)).json()["sessions"]
        assert [one["sessionId"] for one in listed] == [ada.session_id]
        assert code(await ada.call("DELETE", path)) == "204"
        own = f"{SESSIONS}/{ada.session_id}"
        assert code(await ada.call("DELETE", own)) == "204"
        assert await me(ada) == "401 SESSION_ENDED"


@pytest.mark.postgres
@pytest.mark.parametrize("how", ["ended", "revoked"])
async def test_what_waited_while_its_session_ended_is_refused(database: Database, how: str) -> None:
    """A call that was let in and then waits for the account's row changes nothing if its session
    ends meanwhile: no vault, no second factor, no device; the account stays."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        here, thief = ada.person, await another(ada.person)
        _, _, certificate = new_device(here.account.identity, now_ms=START_MS)
        assert code(await thief.call("POST", "/api/v1/me/devices", certificate)) == "201"
        made = await ada.prepared(code=True)
        body = {"kind": "totp", "name": "theirs"}
        factor = {**body, "proof": await proof(here, "factor-begin", body)}
        _, _, more = new_device(here.account.identity, now_ms=START_MS)
        before = await ada.vault()
        for method, path, sent in (
            ("PUT", "/api/v1/me/vault", made.change),
            ("POST", "/api/v1/me/factors", factor),
            ("POST", "/api/v1/me/devices", more),
            ("DELETE", "/api/v1/me", {"loginKey": b64(here.account.login_key)}),
        ):
            end = {"ended": "ended_at = now()", "revoked": "revoked = true, ended_at = now()"}[how]
            async with connected(database.owner_url) as owner:
                async with owner.transaction():
                    await owner.execute("select from mana.accounts for update")
                    waits = asyncio.create_task(thief.call(method, path, sent))
                    await until_waiting(database)
                    await owner.execute(
                        f"update mana.sessions set {end} where session_id = $1", thief.session_id
                    )
                wanted = {"ended": "401 SESSION_ENDED", "revoked": "401 DEVICE_REVOKED"}[how]
                assert code(await waits) == wanted
                await owner.execute(
                    "update mana.sessions set revoked = false, ended_at = null"
                    " where session_id = $1",
                    thief.session_id,
                )
        assert await ada.vault() == before
        devices = (await here.call("GET", "/api/v1/me/devices")).json()["devices"]
        assert len(devices) == 2


async def test_nobody_elses_session(database: Database) -> None:
    """Another account's session is not there, and stays as it is."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        for ended in (eve.session_id, "none", "00000000-0000-4000-8000-000000000000"):
            assert code(await ada.call("DELETE", f"{SESSIONS}/{ended}")) == "404 NOT_FOUND"
        assert await me(eve) == "200"


@pytest.mark.postgres
@pytest.mark.parametrize("how", ["ended", "log-out", "reuse", "deletion"])
async def test_every_process_refuses(database: Database, tmp_path: Path, how: str) -> None:
    """However a session ends, and in whichever process, all of them refuse its token."""
    async with two_hubs(database, tmp_path) as (one, two):
        ada = await one.sign_up("ada")
        there = await another(ada)
        assert await me(at(two, there)) == "200"
        if how == "ended":
            path = f"{SESSIONS}/{there.session_id}"
            assert code(await ada.call("DELETE", path)) == "204"
        elif how == "log-out":
            assert code(await there.call("POST", "/api/v1/auth/logout")) == "204"
        elif how == "reuse":
            assert await refresh(there) == "200"
            one.clock.now_ms += MINUTE
            assert await refresh(there) == "401 SESSION_ENDED"
        else:
            body = {"loginKey": b64(ada.account.login_key)}
            assert code(await ada.call("DELETE", "/api/v1/me", body)) == "204"
        gone = "401 UNAUTHENTICATED" if how == "deletion" else "401 SESSION_ENDED"
        await until(at(two, there), gone)
        await until(there, gone)
        if how != "deletion":
            assert await me(at(two, ada)) == "200"


@pytest.mark.postgres
async def test_what_was_not_heard(database: Database, tmp_path: Path) -> None:
    """A process whose listening was cut takes nothing for granted that it knew before."""
    async with two_hubs(database, tmp_path) as (one, two):
        ada = await one.sign_up("ada")
        there = at(two, await another(ada))
        assert await me(there) == "200"
        async with connected(database.owner_url) as owner:
            await owner.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and query ilike 'listen%'"
            )
            await owner.execute("alter table mana.sessions disable trigger tell_ended")
            await owner.execute(
                "update mana.sessions set ended_at = now() where session_id = $1", there.session_id
            )
        await until(there, "401 SESSION_ENDED")
        assert await me(at(two, ada)) == "200"


class Rows(SecurityStore):
    """What a gate reads, and how often; the test says how sessions stand."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.reads = 0
        self.before_answer: list[Any] = []

    async def state_of(self, session: Session) -> str | None:
        self.reads += 1
        state = self.states.get(session.session_id)
        for call in self.before_answer:
            call()
        return state


class Hearing:
    """A subscription that hears, until it does not."""

    is_listening = True


def gate_of(**states: str) -> tuple[SessionGate, Rows, Hearing]:
    rows, hearing = Rows(), Hearing()
    rows.states.update(states)
    gate = SessionGate(rows)
    gate.follow(hearing)
    return gate, rows, hearing


def session(session_id: str) -> Session:
    return Session(AccountId("00000000-0000-4000-8000-00000000000a"), session_id, START_MS)


async def test_a_session_is_looked_up_once() -> None:
    """A session that stands costs one look, until a notice says that it may not stand."""
    gate, rows, _ = gate_of(a="standing", b="standing")
    for _ in range(3):
        await gate.admit(session("a"))
        await gate.admit(session("b"))
    assert rows.reads == 2
    rows.states["a"] = "ended"
    gate.notice("ended:a")
    with pytest.raises(SessionEnded):
        await gate.admit(session("a"))
    await gate.admit(session("b"))
    assert rows.reads == 3
    rows.states["b"] = "revoked"
    gate.notice("revoked:b")
    with pytest.raises(DeviceRevoked):
        await gate.admit(session("b"))
    with pytest.raises(Unauthenticated):
        await gate.admit(session("never there"))
    gate.notice("member:a")
    gate.notice("x:1")


async def test_who_does_not_hear_looks_each_time() -> None:
    """Without a connection to hear by nothing is remembered; a new one forgets what was known."""
    gate, rows, hearing = gate_of(a="standing")
    await gate.admit(session("a"))
    hearing.is_listening = False
    await gate.admit(session("a"))
    rows.states["a"] = "ended"
    with pytest.raises(SessionEnded):
        await gate.admit(session("a"))
    rows.states["a"] = "standing"
    hearing.is_listening = True
    gate.notice("")
    before = rows.reads
    await gate.admit(session("a"))
    await gate.admit(session("a"))
    assert rows.reads == before + 1


@pytest.mark.parametrize("notice", ["ended:a", ""])
async def test_what_ends_while_it_is_looked_up(notice: str) -> None:
    """What was read before a notice came is not remembered after it."""
    gate, rows, _ = gate_of(a="standing")
    rows.before_answer.append(lambda: gate.notice(notice))
    await gate.admit(session("a"))
    rows.before_answer.clear()
    rows.states["a"] = "ended"
    with pytest.raises(SessionEnded):
        await gate.admit(session("a"))


async def test_a_database_that_is_away_admits_nobody() -> None:
    """A session that cannot be looked up is not let in for lack of an answer."""
    gate, rows, hearing = gate_of(a="standing")
    await gate.admit(session("a"))
    hearing.is_listening = False

    def away() -> None:
        raise ManaError("no database")

    rows.before_answer.append(away)
    with pytest.raises(ManaError):
        await gate.admit(session("a"))


@pytest.mark.postgres
async def test_streams_end_with_their_session(database: Database) -> None:
    """A live stream of a session that was ended says goodbye; the others hear on."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there = await another(ada)
        live = served.hub.live
        async with (
            contextlib.aclosing(live.events(_session_of(there))) as ended,
            contextlib.aclosing(live.events(_session_of(ada))) as kept,
        ):
            for events in (ended, kept):
                assert b"hello" in await anext(events)
            path = f"{SESSIONS}/{there.session_id}"
            assert code(await ada.call("DELETE", path)) == "204"
            assert await anext(ended) == b'event: bye\ndata: {"reason":"expired"}\n\n'
            await ada.push(
                [sealed_change(ada.account, TASKS, "t", {"title": "x"}, now_ms=START_MS)]
            )
            assert b"event: space" in await anext(kept)
        async with contextlib.aclosing(live.events(_session_of(there))) as late:
            assert b"bye" in await anext(late)


def _session_of(person: Person) -> Session:
    account = AccountId(person.account.account_id)
    return Session(account, person.session_id, person.served.clock.now_ms + 15 * MINUTE)


# Devices


@pytest.mark.postgres
async def test_a_revoked_device_is_out(database: Database) -> None:
    """A device that was revoked signs in by no token, sends nothing, and is not registered again."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there, device_id = await with_device(ada)
        third = await another(ada)
        at_ms = START_MS + MINUTE
        assert await revoked(ada, device_id, at_ms=at_ms) == "204"
        assert await me(there) == "401 DEVICE_REVOKED"
        assert await refresh(there) == "401 DEVICE_REVOKED"
        assert (await me(ada), await me(third)) == ("200", "200")
        answer = (await ada.call("GET", "/api/v1/me/devices")).json()
        said = msgspec.to_builtins(revocation(ada.account, device_id, at_ms=at_ms))
        assert answer["revoked"] == [said]
        certificate = next(one for one in answer["devices"] if one["deviceId"] == device_id)
        # With the password it can begin a session, and is told in it.
        again = await third.call("POST", "/api/v1/me/devices", certificate)
        assert code(again) == "401 DEVICE_REVOKED"
        change = sealed_change(ada.account, TASKS, "t", {"title": "x"}, now_ms=START_MS)
        body = {"deviceId": device_id, "changes": [msgspec.to_builtins(change)]}
        pushed = await third.call("POST", f"/api/v1/spaces/{ada.space}/changes", body)
        assert code(pushed) == "403 DEVICE_UNKNOWN"
        members = await ada.call("GET", f"/api/v1/spaces/{ada.space}/devices")
        assert members.json()["revoked"] == [said]


@pytest.mark.postgres
async def test_a_session_keeps_its_device(database: Database) -> None:
    """A session does not slip out of a revocation by naming another device as its own."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there, device_id = await with_device(ada)
        answer = await there.call("POST", "/api/v1/me/devices", ada.account.certificate)
        assert code(answer) == "201"
        assert await revoked(ada, device_id) == "204"
        assert await me(there) == "401 DEVICE_REVOKED"
        assert await me(ada) == "200"


@pytest.mark.postgres
async def test_an_ended_session_learns_why(database: Database) -> None:
    """A device whose session was over when it was revoked learns that it was revoked."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there, device_id = await with_device(ada)
        assert code(await there.call("POST", "/api/v1/auth/logout")) == "204"
        assert await refresh(there) == "401 SESSION_ENDED"
        assert await revoked(ada, device_id) == "204"
        assert await refresh(there) == "401 DEVICE_REVOKED"


@pytest.mark.postgres
async def test_only_the_identity_revokes(database: Database) -> None:
    """A token alone revokes no device, of oneself or others; what is refused is in the log."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        there, device_id = await with_device(ada)
        path = f"/api/v1/me/devices/{device_id}/revoke"
        good = revocation(ada.account, device_id)
        spoilt: list[tuple[DeviceRevocation, str]] = [
            (
                revocation(ada.account, device_id, identity=eve.account.identity),
                "403 PROOF_REFUSED",
            ),
            (revocation(eve.account, device_id), "403 PROOF_REFUSED"),
            (msgspec.structs.replace(good, revoked_at=iso_ms(START_MS - 1)), "403 PROOF_REFUSED"),
            (msgspec.structs.replace(good, signature="?"), "403 PROOF_REFUSED"),
            (revocation(ada.account, ada.account.device_id), "400 BAD_REQUEST"),
            (revocation(ada.account, device_id, at_ms=START_MS + 6 * MINUTE), "400 BAD_REQUEST"),
            (msgspec.structs.replace(good, revoked_at="yesterday"), "400 BAD_REQUEST"),
            (msgspec.structs.replace(good, version="v2"), "400 BAD_REQUEST"),
        ]
        for sent, wants in spoilt:
            assert code(await ada.call("POST", path, sent)) == wants, sent
        assert await me(there) == "200"
        assert await revoked(eve, device_id) == "404 NOT_FOUND"
        assert await revoked(eve, ada.account.device_id) == "404 NOT_FOUND"
        events = await lines(ada)
        assert [one for one in events if one[0] == "device-revoked"] == [
            ("device-revoked", False)
        ] * 4


@pytest.mark.postgres
async def test_the_first_revocation_stands(database: Database) -> None:
    """A device is revoked once: a later word moves nothing, and neither do two at once."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        _, device_id = await with_device(ada)
        answers = await asyncio.gather(
            *(revoked(ada, device_id, at_ms=START_MS - n) for n in range(3))
        )
        assert answers == ["204"] * 3
        (first,) = (await ada.call("GET", "/api/v1/me/devices")).json()["revoked"]
        for at_ms in (START_MS + MINUTE, START_MS - DAY):
            assert await revoked(ada, device_id, at_ms=at_ms) == "204"
        assert (await ada.call("GET", "/api/v1/me/devices")).json()["revoked"] == [first]
        assert (await lines(ada)).count(("device-revoked", True)) == 1


@pytest.mark.postgres
async def test_revoked_in_every_process(database: Database, tmp_path: Path) -> None:
    """Another process of the hub refuses the revoked device's token, and says why."""
    async with two_hubs(database, tmp_path) as (one, two):
        ada = await one.sign_up("ada")
        there, device_id = await with_device(ada)
        assert await me(at(two, there)) == "200"
        assert await revoked(ada, device_id) == "204"
        await until(at(two, there), "401 DEVICE_REVOKED")


# The log


async def lines(person: Person) -> list[tuple[str, bool]]:
    found = await events(person, "?limit=200")
    return [(one.action, one.ok) for one in found.events]


async def events(person: Person, query: str = "") -> SecurityEvents:
    answer = await person.call("GET", LOG + query)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=SecurityEvents)


@pytest.mark.postgres
async def test_the_log_tells(database: Database) -> None:
    """A person reads what was done to their account, and what was tried, newest first."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        served.clock.now_ms += MINUTE
        wrong = {"login": "ada", "loginKey": b64(bytes(32))}
        answer = await served.call("POST", "/api/v1/auth/login", wrong)
        assert code(answer) == "401 INVALID_CREDENTIALS"
        served.clock.now_ms += MINUTE
        there = await another(ada)
        served.clock.now_ms += MINUTE
        assert code(await ada.call("DELETE", f"{SESSIONS}/{there.session_id}")) == "204"
        found = (await events(ada)).events
        assert [(one.action, one.ok) for one in found] == [
            ("session-ended", True),
            ("log-in", True),
            ("log-in", False),
            ("sign-up", True),
        ]
        assert (found[0].session_id, found[0].detail) == (ada.session_id, there.session_id)
        assert found[0].at == iso_ms(served.clock.now_ms)
        assert [one.action for one in (await events(eve)).events] == ["sign-up"]


@pytest.mark.postgres
async def test_the_log_tells_how_sessions_end(database: Database) -> None:
    """A log-out, a refresh token that two had, and a revoked device that asks are in the log."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        there, copied = await another(ada), await another(ada)
        assert code(await there.call("POST", "/api/v1/auth/logout")) == "204"
        assert await refresh(copied) == "200"
        served.clock.now_ms += MINUTE
        assert await refresh(copied) == "401 SESSION_ENDED"
        found = (await events(ada)).events
        ended = [
            (one.session_id, one.ok, one.detail) for one in found if one.action == "session-ended"
        ]
        assert ended == [(copied.session_id, False, "reused"), (there.session_id, True, "log-out")]
        _, device_id = await with_device(ada)
        assert await revoked(ada, device_id) == "204"
        fresh = await another(ada)
        certificates = (await ada.call("GET", "/api/v1/me/devices")).json()["devices"]
        certificate = next(one for one in certificates if one["deviceId"] == device_id)
        answer = await fresh.call("POST", "/api/v1/me/devices", certificate)
        assert code(answer) == "401 DEVICE_REVOKED"
        assert (await lines(ada))[0] == ("device-added", False)


@pytest.mark.postgres
async def test_refusals_do_not_fill_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of refusals of one kind by who is signed in the log tells so many in a day; another kind, the
    next day's, attempts to log in and what is done are told all the same."""
    monkeypatch.setattr("mana.hub.security.store.REFUSED_MAX", 3)
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        _, device_id = await with_device(ada)
        _, _, others = new_device(eve.account.identity, now_ms=START_MS)
        wrong = {"login": "ada", "loginKey": b64(bytes(32))}
        for _ in range(5):
            said = await revoked(ada, device_id, identity=eve.account.identity)
            assert said == "403 PROOF_REFUSED"
        for _ in range(4):
            await served.call("POST", "/api/v1/auth/login", wrong)
        await ada.call("POST", "/api/v1/me/devices", others)
        assert [action for action, ok in await lines(ada) if not ok] == [
            "device-added",
            *["log-in"] * 4,
            *["device-revoked"] * 3,
        ]
        served.clock.now_ms += 24 * 60 * MINUTE
        ada = await another(ada)
        await revoked(ada, device_id, identity=eve.account.identity)
        assert await revoked(ada, device_id) == "204"
        told = [("device-revoked", True), ("device-revoked", False), ("log-in", True)]
        assert (await lines(ada))[:3] == told


@pytest.mark.postgres
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_hold_every_line_once(database: Database, limit: int) -> None:
    """Page by page the log shows every line once, in whatever milliseconds they were written."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        made = [0, 0, 0, 1, 2, 2, 5, 5]
        async with connected(database.owner_url) as owner:
            await owner.execute("delete from mana.security_events")
            for number, aside in enumerate(made):
                await owner.execute(
                    "insert into mana.security_events (account_id, at, action, ok, detail)"
                    " values ($1, to_timestamp($2::bigint / 1000.0), 'log-in', true, $3)",
                    ada.account.account_id,
                    START_MS + aside,
                    str(number),
                )
        seen: list[str] = []
        more = True
        query = f"?limit={limit}"
        for _ in made:
            page = await events(ada, query)
            seen += [one.detail for one in page.events]
            more = page.more
            if not more:
                break
            query = f"?limit={limit}&before={page.events[-1].at}"
        assert not more
        assert seen == [str(number) for number in reversed(range(len(made)))]


@pytest.mark.postgres
async def test_odd_pages(database: Database) -> None:
    """What cannot be a page is refused as such; a huge one is cut, a page before all is empty."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for query in ("?before=yesterday", "?before=", "?limit=x", "?page=1"):
            assert code(await ada.call("GET", LOG + query)) == "400 BAD_REQUEST"
        assert len((await events(ada, "?limit=0")).events) == 1
        assert len((await events(ada, "?limit=999999")).events) == 1
        early = await events(ada, "?before=0001-01-01T00:00:00.000Z")
        assert (early.events, early.more) == ([], False)


@pytest.mark.postgres
async def test_lines_stay(database: Database) -> None:
    """Neither the person nor the hub's own role can change or remove a line."""
    async with served_hub(database) as served:
        await served.sign_up("ada")
    async with connected(database.owner_url) as owner:
        for right in ("update", "delete", "truncate"):
            query = f"select has_table_privilege('mana_app', 'mana.security_events', '{right}')"
            assert await owner.fetchval(query) is False
