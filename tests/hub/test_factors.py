"""Second factors: asked for after the password, each answer good for one log-in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.domain.errors import Invalid
from mana.hub.factors import totp
from mana.hub.factors.passkeys import RelyingParty
from mana.hub.settings import HubSettings
from mana.protocol.errors import TwoFactorFailed
from mana.protocol.messages import FactorSetup, Tokens
from mana.testing.postgres import Database, connected, database_text
from tests.hub.authenticator import Authenticator
from tests.hub.client import Person, served_hub
from tests.hub.proofs import proof
from tests.hub.vaulted import until_waiting

pytest_plugins = ["mana.testing.plugin"]
pytestmark = pytest.mark.anyio

FACTORS = "/api/v1/me/factors"
RFC_SECRET = b"12345678901234567890"
STEP_MS = 30_000
MINUTE = 60_000


def code(answer: httpx.Response) -> str:
    if answer.status_code < 400:
        return str(answer.status_code)
    return f"{answer.status_code} {answer.json()['code']}"


def codes_of(setup: FactorSetup, person: Person) -> str:
    assert setup.secret is not None
    step = person.served.clock.now_ms // STEP_MS
    return totp.code_at(base64.b32decode(setup.secret), step)


async def begun(person: Person, kind: str, name: str = "telephone") -> FactorSetup:
    """Begin to add a factor, with the vault open."""
    body = {"kind": kind, "name": name}
    signed = await proof(person, "factor-begin", body)
    answer = await person.call("POST", FACTORS, {**body, "proof": msgspec.to_builtins(signed)})
    assert answer.status_code == 201, answer.text
    return msgspec.json.decode(answer.content, type=FactorSetup)


async def finish(person: Person, setup: FactorSetup, answer: dict[str, Any]) -> str:
    path = f"{FACTORS}/{setup.factor_id}/finish"
    return code(await person.call("POST", path, {"answer": answer}))


async def with_totp(person: Person) -> FactorSetup:
    """Add an authenticator, and let its first code be of a step that is over."""
    setup = await begun(person, "totp")
    assert await finish(person, setup, {"totp": codes_of(setup, person)}) == "204"
    person.served.clock.now_ms += STEP_MS
    return setup


async def with_passkey(person: Person, passkey: Authenticator) -> FactorSetup:
    """Add a passkey."""
    setup = await begun(person, "passkey", "key")
    assert setup.options is not None
    assert await finish(person, setup, {"passkey": passkey.make(setup.options)}) == "204"
    return setup


async def log_in(person: Person, factor: dict[str, Any] | None = None) -> httpx.Response:
    body: dict[str, Any] = {
        "login": person.account.login,
        "loginKey": b64(person.account.login_key),
    }
    if factor is not None:
        body["factor"] = factor
    return await person.served.call("POST", "/api/v1/auth/login", body)


async def options_of(person: Person) -> dict[str, Any]:
    """Return what a passkey is asked to sign at a log-in."""
    answer = await log_in(person)
    assert code(answer) == "401 TWO_FACTOR_REQUIRED"
    options: dict[str, Any] = answer.json()["detail"]["passkey"]
    return options


async def later(person: Person) -> None:
    """Let the attempts of before be forgotten, and the session live on."""
    person.served.clock.now_ms += 15 * MINUTE
    body = {"refreshToken": person.tokens.refresh_token}
    answer = await person.served.call("POST", "/api/v1/auth/refresh", body)
    person.tokens = msgspec.json.decode(answer.content, type=Tokens)


@contextlib.asynccontextmanager
async def together(database: Database, number: int) -> AsyncIterator[None]:
    """Hold back the last step of log-ins until so many have come to it; then let them all go."""
    async with connected(database.owner_url) as owner, owner.transaction():
        await owner.execute("select from mana.second_factors for update")
        yield
        await until_waiting(database, number)


async def lines(person: Person) -> list[tuple[str, bool]]:
    answer = await person.call("GET", "/api/v1/me/security")
    return [(event["action"], event["ok"]) for event in answer.json()["events"]]


# Codes


@pytest.mark.parametrize(
    ("at_s", "wants"),
    [
        (59, "287082"),
        (1_111_111_109, "081804"),
        (1_111_111_111, "050471"),
        (1_234_567_890, "005924"),
        (2_000_000_000, "279037"),
        (20_000_000_000, "353130"),
    ],
)
async def test_codes_are_those_of_the_standard(at_s: int, wants: str) -> None:
    """The codes are those of RFC 6238, appendix B, in six digits."""
    assert totp.code_at(RFC_SECRET, at_s // 30) == wants
    assert totp.step_of(RFC_SECRET, wants, after=0, now_ms=at_s * 1_000) == at_s // 30


async def test_one_step_either_side() -> None:
    """A code holds one step before and after its own, and neither longer nor a second time."""
    now_ms = 1_795_000_000_000
    step = now_ms // STEP_MS
    for aside in range(-3, 4):
        typed = totp.code_at(RFC_SECRET, step + aside)
        wants = step + aside if abs(aside) <= 1 else None
        assert totp.step_of(RFC_SECRET, typed, after=0, now_ms=now_ms) == wants
    typed = totp.code_at(RFC_SECRET, step)
    assert totp.step_of(RFC_SECRET, f" {typed[:3]} {typed[3:]} ", after=0, now_ms=now_ms) == step
    assert totp.step_of(RFC_SECRET, typed, after=step, now_ms=now_ms) is None
    for odd in ("", typed[:5], typed + "0", "１２３４５６", "\x00" * 6):
        assert totp.step_of(RFC_SECRET, odd, after=0, now_ms=now_ms) is None


async def test_address_names_all() -> None:
    """The address for an authenticator carries the secret and every parameter, a name escaped."""
    address = totp.address(RFC_SECRET, "ada & bob?")
    assert address == (
        "otpauth://totp/Mana:ada%20%26%20bob%3F?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
        "&issuer=Mana&algorithm=SHA1&digits=6&period=30"
    )


@pytest.mark.postgres
async def test_a_code_is_asked_for(database: Database) -> None:
    """With an authenticator the password alone signs nobody in, and a code does so once."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await with_totp(ada)
        listed = (await ada.call("GET", FACTORS)).json()["factors"]
        assert [(one["kind"], one["name"]) for one in listed] == [("totp", "telephone")]
        asked = await log_in(ada)
        assert code(asked) == "401 TWO_FACTOR_REQUIRED"
        assert asked.json()["detail"] == {"kinds": ["totp"]}
        right = codes_of(setup, ada)
        wrong = f"{(int(right) + 1) % 1_000_000:06d}"
        assert code(await log_in(ada, {"totp": wrong})) == "401 TWO_FACTOR_FAILED"
        assert code(await log_in(ada, {"totp": right})) == "200"
        assert code(await log_in(ada, {"totp": right})) == "401 TWO_FACTOR_FAILED"
        served.clock.now_ms += STEP_MS
        assert code(await log_in(ada, {"totp": codes_of(setup, ada)})) == "200"
        assert ("second-factor", False) in await lines(ada)
        assert ("second-factor", True) in await lines(ada)


@pytest.mark.postgres
async def test_a_wrong_password_says_nothing_of_factors(database: Database) -> None:
    """Whoever does not know the password does not learn whether there is a second factor."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await with_totp(ada)
        for factor in (None, {"totp": codes_of(setup, ada)}):
            body = {"login": "ada", "loginKey": b64(bytes(32)), "factor": factor}
            answer = await served.call("POST", "/api/v1/auth/login", body)
            assert code(answer) == "401 INVALID_CREDENTIALS"


@pytest.mark.postgres
async def test_one_code_for_one_log_in(database: Database) -> None:
    """Of log-ins that come together with one code, one is let in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await with_totp(ada)
        typed = codes_of(setup, ada)
        async with together(database, 3):
            tasks = [asyncio.create_task(log_in(ada, {"totp": typed})) for _ in range(3)]
        answers = await asyncio.gather(*tasks)
        assert sorted(code(one) for one in answers) == ["200", *["401 TWO_FACTOR_FAILED"] * 2]


@pytest.mark.postgres
async def test_the_first_code_counts_once_too(database: Database) -> None:
    """The code by which an authenticator was added signs nobody in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await begun(ada, "totp")
        typed = codes_of(setup, ada)
        assert await finish(ada, setup, {"totp": typed}) == "204"
        assert code(await log_in(ada, {"totp": typed})) == "401 TWO_FACTOR_FAILED"


@pytest.mark.postgres
async def test_the_database_has_no_secret(database: Database) -> None:
    """Whoever has the database, and not the hub's file of secrets, can make no code."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await with_totp(ada)
        assert setup.secret is not None
        raw = base64.b32decode(setup.secret)
        text = (await database_text(database.owner_url)).lower()
        for form in (setup.secret, raw.hex(), b64(raw), base64.urlsafe_b64encode(raw).decode()):
            assert form.lower().rstrip("=") not in text


@pytest.mark.postgres
async def test_unfinished_counts_nothing(database: Database) -> None:
    """A factor that was begun and not finished asks nobody for anything, and ends by itself."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        setup = await begun(ada, "totp")
        assert (await ada.call("GET", FACTORS)).json() == {"factors": []}
        assert code(await log_in(ada)) == "200"
        assert await finish(ada, setup, {"totp": "abcdef"}) == "401 TWO_FACTOR_FAILED"
        assert await finish(ada, setup, {}) == "401 TWO_FACTOR_FAILED"
        served.clock.now_ms += 10 * MINUTE
        typed = codes_of(setup, ada)
        assert await finish(ada, setup, {"totp": typed}) == "404 FACTOR_UNKNOWN"
        again = await begun(ada, "totp")
        assert await finish(ada, again, {"totp": codes_of(again, ada)}) == "204"
        typed = codes_of(again, ada)
        assert await finish(ada, again, {"totp": typed}) == "404 FACTOR_UNKNOWN"


@pytest.mark.postgres
async def test_a_session_alone_changes_no_factor(database: Database) -> None:
    """A stolen token adds no factor and removes none; the person reads that it was tried."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        setup = await with_totp(ada)
        body = {"kind": "totp", "name": "thief"}
        path = f"{FACTORS}/{setup.factor_id}"
        removal = {"factorId": setup.factor_id}
        forged = [
            await proof(ada, "factor-begin", body, identity=eve.account.identity),
            await proof(ada, "factor-begin", {**body, "name": "other"}),
            await proof(ada, "factor-remove", body),
        ]
        for one in forged:
            asked = {**body, "proof": msgspec.to_builtins(one)}
            assert code(await ada.call("POST", FACTORS, asked)) == "403 PROOF_REFUSED"
        stolen = await proof(ada, "factor-remove", removal, identity=eve.account.identity)
        answer = await ada.call("DELETE", path, {"proof": msgspec.to_builtins(stolen)})
        assert code(answer) == "403 PROOF_REFUSED"
        log = await lines(ada)
        assert log.count(("factor-added", False)) == 3
        assert log.count(("factor-removed", False)) == 1
        assert code(await log_in(ada)) == "401 TWO_FACTOR_REQUIRED"


@pytest.mark.postgres
async def test_a_factor_is_removed_once(database: Database) -> None:
    """With the vault open a factor is removed, nobody else's is, and a proof counts once."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        setup = await with_totp(ada)
        path = f"{FACTORS}/{setup.factor_id}"
        body = {"factorId": setup.factor_id}
        others = {"proof": msgspec.to_builtins(await proof(eve, "factor-remove", body))}
        assert code(await eve.call("DELETE", path, others)) == "404 FACTOR_UNKNOWN"
        assert code(await eve.call("POST", f"{path}/finish", {"answer": {"totp": "1"}})) == (
            "404 FACTOR_UNKNOWN"
        )
        own = {"proof": msgspec.to_builtins(await proof(ada, "factor-remove", body))}
        assert code(await ada.call("DELETE", path, own)) == "204"
        assert code(await ada.call("DELETE", path, own)) == "403 PROOF_REFUSED"
        assert code(await log_in(ada)) == "200"


@pytest.mark.postgres
async def test_factors_have_a_limit(database: Database) -> None:
    """An account fills no table: above sixteen factors, unfinished ones too, none is begun."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for number in range(16):
            await begun(ada, "totp", f"{number}")
        body = {"kind": "totp", "name": "one more"}
        signed = msgspec.to_builtins(await proof(ada, "factor-begin", body))
        answer = await ada.call("POST", FACTORS, {**body, "proof": signed})
        assert code(answer) == "400 BAD_REQUEST"


# Passkeys


@pytest.mark.postgres
async def test_a_passkey_signs_in(database: Database) -> None:
    """A passkey is an answer as good as a code, whichever the person has at hand."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        options = await options_of(ada)
        assert options["rpId"] == "localhost"
        assert len(options["allowCredentials"]) == 1
        assert code(await log_in(ada, {"passkey": passkey.sign(options)})) == "200"
        setup = await with_totp(ada)
        asked = (await log_in(ada)).json()["detail"]
        assert asked["kinds"] == ["passkey", "totp"]
        assert code(await log_in(ada, {"totp": codes_of(setup, ada)})) == "200"
        passkey.page = "http://localhost:49152"
        assert code(await log_in(ada, {"passkey": passkey.sign(await options_of(ada))})) == "200"


@pytest.mark.postgres
async def test_an_assertion_counts_once(database: Database) -> None:
    """What a passkey signed signs in once, also when it is sent twice at the same time."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        # Without a counter the challenge alone tells the second from the first.
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        signed = {"passkey": passkey.sign_as_counted(await options_of(ada))}
        answers = await asyncio.gather(*(log_in(ada, signed) for _ in range(3)))
        assert sorted(code(one) for one in answers) == ["200", *["401 TWO_FACTOR_FAILED"] * 2]
        assert code(await log_in(ada, signed)) == "401 TWO_FACTOR_FAILED"


@pytest.mark.postgres
@pytest.mark.parametrize(
    "changed",
    [
        {"page": "https://evil.test"},
        {"page": "http://localhost.evil.test:3051"},
        {"page": "http://localhost:3051/path"},
        {"page": "null"},
        {"domain": "evil.test"},
        {"crosses": True},
        {"flags": 0},
        {"credential_id": b"another one"},
        {"key": Authenticator().key},
    ],
)
async def test_an_assertion_of_elsewhere(database: Database, changed: dict[str, Any]) -> None:
    """Another page, domain, key or name, and a passkey that nobody touched, sign nobody in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        options = await options_of(ada)
        forger = Authenticator(**{**vars(passkey), **changed})
        assert code(await log_in(ada, {"passkey": forger.sign(options)})) == "401 TWO_FACTOR_FAILED"
        passkey.count += 1
        assert code(await log_in(ada, {"passkey": passkey.sign(await options_of(ada))})) == "200"


@pytest.mark.postgres
async def test_a_counter_that_went_back(database: Database) -> None:
    """A passkey that counts less than before, or the same, was copied: it signs nobody in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        passkey.count = 7
        assert code(await log_in(ada, {"passkey": passkey.sign(await options_of(ada))})) == "200"
        for count in (8, 7, 0):
            passkey.count = count
            options = await options_of(ada)
            answer = await log_in(ada, {"passkey": passkey.sign_as_counted(options)})
            assert code(answer) == "401 TWO_FACTOR_FAILED", count
            await later(ada)
        passkey.count = 8
        assert code(await log_in(ada, {"passkey": passkey.sign(await options_of(ada))})) == "200"


@pytest.mark.postgres
async def test_two_at_once_with_one_counter(database: Database) -> None:
    """Of a passkey and its copy that sign together with one counter, one is let in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        passkey.count = 3
        signed = [passkey.sign_as_counted(await options_of(ada)) for _ in range(2)]
        async with together(database, 2):
            tasks = [asyncio.create_task(log_in(ada, {"passkey": one})) for one in signed]
        answers = await asyncio.gather(*tasks)
        assert sorted(code(one) for one in answers) == ["200", "401 TWO_FACTOR_FAILED"]


@pytest.mark.postgres
async def test_challenges_end(database: Database) -> None:
    """What a passkey is asked is good for ten minutes, one account, and one purpose."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        passkey, hers = Authenticator(), Authenticator()
        await with_passkey(ada, passkey)
        await with_passkey(eve, hers)
        old, others = await options_of(ada), await options_of(eve)
        for options in (others, {"challenge": "AAAA"}, {"challenge": "é"}):
            answer = await log_in(ada, {"passkey": passkey.sign(options)})
            assert code(answer) == "401 TWO_FACTOR_FAILED"
        await later(ada)
        setup = await begun(ada, "passkey", "second")
        for options in (old, setup.options or {}):
            answer = await log_in(ada, {"passkey": passkey.sign(options)})
            assert code(answer) == "401 TWO_FACTOR_FAILED"
        login_options = await options_of(ada)
        other = Authenticator()
        assert await finish(ada, setup, {"passkey": other.make(login_options)}) == (
            "401 TWO_FACTOR_FAILED"
        )
        assert await finish(ada, setup, {"passkey": other.make(setup.options or {})}) == "204"


@pytest.mark.postgres
async def test_a_new_passkey_is_verified(database: Database) -> None:
    """A passkey is added by what was asked of this account, once, and no known one again."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        first = await begun(ada, "passkey")
        assert first.options is not None
        assert first.options["rp"]["id"] == "localhost"
        for changed in ({"page": "https://evil.test"}, {"crosses": True}):
            forger = Authenticator(**{**vars(passkey), **changed})
            made = {"passkey": forger.make(first.options)}
            assert await finish(ada, first, made) == "401 TWO_FACTOR_FAILED"
        # This one is used up by an answer that does not verify.
        wrong = Authenticator(**{**vars(passkey), "domain": "evil.test"})
        for one in (wrong, passkey):
            made = {"passkey": one.make(first.options)}
            assert await finish(ada, first, made) == "401 TWO_FACTOR_FAILED"
        await with_passkey(ada, passkey)
        second = await begun(ada, "passkey")
        assert second.options is not None
        assert len(second.options["excludeCredentials"]) == 1
        made = {"passkey": passkey.make(second.options)}
        assert await finish(ada, second, made) == "404 FACTOR_UNKNOWN"
        assert len((await ada.call("GET", FACTORS)).json()["factors"]) == 1


@pytest.mark.postgres
async def test_odd_answers_are_refused(database: Database) -> None:
    """Whatever is sent for a passkey, the hub refuses it as a wrong one and does not fail."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        passkey = Authenticator()
        await with_passkey(ada, passkey)
        good = passkey.sign(await options_of(ada))
        response = good["response"]
        odd: list[dict[str, Any]] = [
            {},
            {"id": 1},
            {**good, "response": {}},
            {**good, "rawId": "AAAA"},
            {**good, "type": "password"},
            {**good, "response": {**response, "clientDataJSON": "!"}},
            {**good, "response": {**response, "signature": "AAAA"}},
            {**good, "response": {**response, "authenticatorData": "AAAA"}},
        ]
        for one in odd:
            answer = await log_in(ada, {"passkey": one})
            assert code(answer) == "401 TWO_FACTOR_FAILED", one
            await later(ada)
        answer = await log_in(ada, {"passkey": good, "totp": "123456"})
        assert code(answer) == "401 TWO_FACTOR_FAILED"
        assert code(await log_in(ada, {})) == "401 TWO_FACTOR_REQUIRED"


@pytest.mark.parametrize(
    ("domain", "page", "holds"),
    [
        ("localhost", "http://localhost", True),
        ("localhost", "http://localhost:3051", True),
        ("localhost", "https://localhost:8443", True),
        ("localhost", "http://127.0.0.1:3051", False),
        ("localhost", "http://localhost:", False),
        ("localhost", "http://localhost:３", False),
        ("localhost", "http://localhost\n", False),
        ("localhost", "ftp://localhost", False),
        ("mana.example.org", "https://mana.example.org", True),
        ("mana.example.org", "https://mana.example.org:8443", True),
        ("mana.example.org", "http://mana.example.org", False),
        ("mana.example.org", "https://manaXexample.org", False),
        ("mana.example.org", "https://evil.mana.example.org", False),
        ("mana.example.org", "https://mana.example.org.evil.test", False),
        ("mana.example.org", "https://evil.test@mana.example.org", False),
    ],
)
async def test_pages(domain: str, page: str, holds: bool) -> None:
    """A page is any port of the one domain: over https, and over http on this machine alone."""
    passkey = Authenticator(page=page, domain=domain)
    answer = passkey.sign({"challenge": "AAAA"})
    party = RelyingParty(domain)
    if holds:
        assert party.claim(answer).origin == page
    else:
        with pytest.raises(TwoFactorFailed):
            party.claim(answer)


@pytest.mark.parametrize(
    "domain", ["", "http://localhost", "localhost:3051", "127.0.0.1", "::1", "a..b", "-a.b", "ü.de"]
)
async def test_odd_domains_are_refused(domain: str) -> None:
    """A hub that could verify no passkey does not start with its domain."""
    with pytest.raises(Invalid, match="MANA_PASSKEY_DOMAIN"):
        RelyingParty(domain)


async def test_the_domain_is_a_setting(tmp_path: Any) -> None:
    """MANA_PASSKEY_DOMAIN names the page's host; without it, it is this machine."""
    for environ, wants in (({}, "localhost"), ({"MANA_PASSKEY_DOMAIN": "Mana.Home "}, "mana.home")):
        settings = HubSettings.from_env(environ, database_url="postgresql:///x", home=tmp_path)
        assert settings.passkey_domain == wants
