"""The security pages over a real device and a real hub, as a browser without scripts sees them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from mana.device.app import DeviceHost
from mana.device.desk import Device
from mana.domain.errors import ManaError
from mana.hub.factors.totp import code_at
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from mana.web.app import build
from tests.device.household import Household, household
from tests.web.test_requests import post, visitor

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

NEW = "another long password"
ZERO_KNOWLEDGE = "zero-knowledge"


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    """Lend a household: one hub, and devices of its own for whoever comes."""
    async with household(database) as made:
        yield made


def browser(host: DeviceHost):  # type: ignore[no-untyped-def]
    """Return a browser at the page of a device."""
    return visitor(build(host, host.settings))


def host_of(home: Household) -> DeviceHost:
    """Return a new device process."""
    return home.place().host


async def signed_up(
    client: httpx.AsyncClient, host: DeviceHost, *, mode: str = "standard"
) -> Device:
    """Make an account by the page; its device does nothing by itself."""
    answer = await post(
        client, "/sign-up", login="ada", password=PASSWORD, display_name="Ada", mode=mode
    )
    assert answer.status_code == 303, answer.text
    (known,) = host.accounts()
    return host.device(known.account_id)


async def signed_in(client: httpx.AsyncClient, password: str = PASSWORD, **more: str) -> str:
    """Sign in by the page, and return where it leads."""
    answer = await post(client, "/sign-in", login="ada", password=password, **more)
    return answer.headers.get("location", answer.text)


def text_of(answer: httpx.Response) -> str:
    """Return what stands on a page."""
    assert answer.status_code == 200, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def code_on(answer: httpx.Response) -> str:
    """Return the recovery code that a page shows."""
    groups = re.search(r'<ol class="groups.*?</ol>', answer.text)
    assert groups is not None, answer.text
    return "-".join(re.findall(r"<li>(\w{4})</li>", groups[0]))


async def confirmed(client: httpx.AsyncClient, code: str) -> httpx.Response:
    """Type the two groups that the kit asks for."""
    page = (await client.get("/security/kit")).text
    asked = [int(one) for one in re.findall(r"Group (\d+)<", page)]
    groups = code.split("-")
    first, second = (groups[one - 1] for one in asked)
    return await post(client, "/security/kit", first=first.lower(), second=second)


async def test_a_sign_up_in_zero_knowledge_mode_goes_to_the_kit(home: Household) -> None:
    """The code comes first, is shown until it is confirmed, and the hub never held the key."""
    host = host_of(home)
    async with browser(host) as client:
        await signed_up(client, host, mode=ZERO_KNOWLEDGE)
        kit = await client.get("/security/kit")
        assert kit.headers["cache-control"] == "no-store"
        code = code_on(kit)
        assert re.fullmatch(r"([0-9A-F]{4}-){15}[0-9A-F]{4}", code)
        assert "http://hub.test" in kit.text
        assert "<svg" in kit.text
        wrong = await post(client, "/security/kit", first="0000", second="zzzz")
        assert wrong.status_code == 400
        assert code_on(await client.get("/security/kit")) == code
        assert (await confirmed(client, code)).headers["location"] == "/security"
        assert code not in (await client.get("/security/kit")).text
        shown = text_of(await client.get("/security"))
        assert "Mode: Zero-knowledge" in shown
    sent = [body for method, path, body in home.places[0].wire.seen if path.endswith("/accounts")]
    assert sent == [] or b'"masterKey":null' in sent[0] or b"masterKey" not in sent[0]


async def test_a_lost_password_is_set_anew_by_the_code(home: Household) -> None:
    """Login, code and a new password open the account on a new device; the old one is worthless."""
    first = host_of(home)
    async with browser(first) as client:
        device = await signed_up(client, first)
        await device.create("notes", {"title": "Kept"})
        await device.sync_now()
        assert (await post(client, "/security/recovery")).headers["location"] == "/security/kit"
        code = code_on(await client.get("/security/kit"))
    second = host_of(home)
    async with browser(second) as client:
        form = {"login": "ada", "new_password": NEW, "again": NEW}
        other = await post(client, "/sign-in/lost/code", **{**form, "again": "x", "code": code})
        assert "not the same" in other.text
        wrong = await post(client, "/sign-in/lost/code", **{**form, "code": code[:-4] + "ZZZZ"})
        assert wrong.status_code == 400
        done = await post(client, "/sign-in/lost/code", **form, code=code)
        assert done.status_code == 303, done.text
        assert "Kept" in text_of(await client.get("/notes"))
    third = host_of(home)
    async with browser(third) as client:
        assert "WRONG" in await signed_in(client) or "INVALID" in await signed_in(client)
        assert await signed_in(client, NEW) == "/"


async def test_a_second_factor_is_asked_for_at_the_door(home: Household) -> None:
    """Password alone leads to the question; a wrong code stays there; the right one opens."""
    first = host_of(home)
    async with browser(first) as client:
        await signed_up(client, first)
        secret = await with_authenticator(home, client)
        assert "Telephone" in text_of(await client.get("/security"))
    second = host_of(home)
    async with browser(second) as client:
        assert await signed_in(client) == "/sign-in/factor"
        asked = await client.get("/sign-in/factor")
        assert PASSWORD not in asked.text
        assert (await client.get("/notes")).status_code == 303
        wrong = await post(client, "/sign-in/factor", code="000000")
        assert "TWO_FACTOR_FAILED" in wrong.text
        assert second.accounts() == []
        done = await post(client, "/sign-in/factor", code=now_code(home, secret, 1))
        assert done.headers["location"] == "/", done.text
        assert (await client.get("/notes")).status_code == 200


async def with_authenticator(home: Household, client: httpx.AsyncClient) -> str:
    """Add an authenticator by the page, and return its secret."""
    begun = await post(client, "/security/factors/add/totp", name="Telephone")
    assert begun.headers["location"] == "/security/factors/new"
    shown = await client.get("/security/factors/new")
    found = re.search(r'id="totp-secret">([A-Z2-7 ]+)<', shown.text)
    assert found is not None
    secret = found[1].replace(" ", "")
    done = await post(client, "/security/factors/new/finish", code=now_code(home, secret, 0))
    assert done.status_code == 303, done.text
    return secret


def now_code(home: Household, secret: str, ahead: int) -> str:
    """Return the code of an authenticator, `ahead` steps from now."""
    step = home.served.clock.now_ms // 30_000 + ahead
    return code_at(base64.b32decode(secret + "=" * (-len(secret) % 8)), step)


async def test_a_new_device_is_let_in_by_digits(home: Household) -> None:
    """Both pages show the same digits; after both said so, the new one has the account."""
    old, new = host_of(home), host_of(home)
    async with browser(old) as at_old, browser(new) as at_new:
        device = await signed_up(at_old, old)
        await device.create("notes", {"title": "Kept"})
        await device.sync_now()
        begun = await post(at_new, "/sign-in/device", login="ada", name="Laptop")
        assert begun.headers["location"] == "/sign-in/device", begun.text
        assert "Waiting" in text_of(await at_new.get("/sign-in/device"))
        assert "Laptop" in text_of(await at_old.get("/security/knock"))
        devices = await at_old.get("/security/devices")
        found = re.search(r'href="(/security/links/[0-9a-f]+)"', devices.text)
        assert found is not None
        path = found[1]
        early = await post(at_old, f"{path}/approve")
        assert early.status_code == 409
        await post(at_old, f"{path}/answer")
        assert "digits" not in (await at_old.get(path)).text.replace("show the digits", "")
        shown_new = digits(await at_new.get("/sign-in/device"))
        assert shown_new == digits(await at_old.get(path))
        assert (await post(at_new, "/sign-in/device/finish")).status_code == 409
        assert (await post(at_old, f"{path}/approve")).status_code == 303
        assert "let you in" in text_of(await at_new.get("/sign-in/device"))
        assert (await post(at_new, "/sign-in/device/finish")).headers["location"] == "/"
        assert "Kept" in text_of(await at_new.get("/notes"))
        shown = text_of(await at_old.get("/security/devices"))
        assert "this one" in shown


def digits(answer: httpx.Response) -> str:
    """Return the digits that a page shows."""
    found = re.search(r'id="digits">([\d ]+)<', answer.text)
    assert found is not None, answer.text
    return found[1]


async def test_password_mode_and_keys_are_changed(home: Household) -> None:
    """Each change of the page is one of the vault: revision by revision, with its proof."""
    host = host_of(home)
    async with browser(host) as client:
        device = await signed_up(client, host)
        wrong = await post(
            client, "/security/password", password="no no no no", new_password=NEW, again=NEW
        )
        assert "WRONG_PASSWORD" in wrong.text
        done = await post(
            client, "/security/password", password=PASSWORD, new_password=NEW, again=NEW
        )
        assert done.status_code == 303, done.text
        before = (await device.security.status()).fingerprint
        assert (await post(client, "/security/rotate/identity")).status_code == 303
        assert (await device.security.status()).fingerprint != before
        moving = await post(client, "/security/rotate/identity")
        assert "IDENTITY_MOVING" in moving.text
        await device.sync_now()
        done = await post(client, "/security/mode", mode=ZERO_KNOWLEDGE, password=NEW)
        assert done.headers["location"] == "/security/kit", done.text
        code = code_on(await client.get("/security/kit"))
        done = await post(client, "/security/rotate/master", password=NEW)
        assert done.headers["location"] == "/security/kit", done.text
        other = code_on(await client.get("/security/kit"))
        assert other != code
        await confirmed(client, other)
        shown = text_of(await client.get("/security"))
        assert "Mode: Zero-knowledge" in shown
        space = re.search(r'<option value="([0-9a-f]{64})">', (await client.get("/security")).text)
        assert space is not None
        assert (await post(client, "/security/rotate/space", space=space[1])).status_code == 303
        refused = await post(client, "/security/recovery/remove")
        assert "RECOVERY_WRAP_MISSING" in refused.text
        happened = text_of(await client.get("/security/log"))
        for words in ("The mode was switched", "The password was changed", "master key"):
            assert words in happened


async def test_devices_and_sessions_are_ended(home: Household) -> None:
    """A session that is ended and a device that is revoked say so on the page."""
    first, second = host_of(home), host_of(home)
    async with browser(first) as client, browser(second) as other:
        device = await signed_up(client, first)
        assert await signed_in(other) == "/"
        (known,) = second.accounts()
        away = second.device(known.account_id)
        await away.sync_now()
        ends = re.findall(
            r'action="(/security/sessions/[^"]+/end)"', (await client.get("/security/devices")).text
        )
        assert len(ends) == 1
        assert (await post(client, ends[0])).status_code == 303
        revokes = re.findall(
            r'action="(/security/devices/[^"]+/revoke)"',
            (await client.get("/security/devices")).text,
        )
        assert len(revokes) == 1
        assert (await post(client, revokes[0])).status_code == 303
        assert "revoked" in text_of(await client.get("/security/devices"))
        views = {one.current: one.revoked_at for one in await device.sessions.devices()}
        assert views[True] is None
        assert views[False] is not None


async def test_a_device_that_was_overtaken_follows(home: Household) -> None:
    """After a new password elsewhere the page asks for it, and goes on."""
    first, second = host_of(home), host_of(home)
    async with browser(first) as client, browser(second) as other:
        device = await signed_up(client, first)
        await signed_in(other)
        (known,) = second.accounts()
        away = second.device(known.account_id)
        await device.security.rotate_master(PASSWORD)
        with pytest.raises(ManaError):
            await away.sync_now()
        shown = await other.get("/security")
        assert 'id="follow"' in shown.text or 'id="session"' in shown.text, text_of(shown)
        assert (await post(other, "/security/follow", password=PASSWORD)).status_code == 303
        shown = await other.get("/security")
        assert 'id="follow"' not in shown.text


async def test_an_ended_session_asks_for_password_and_factor(home: Household) -> None:
    """A device whose session was ended says so, and comes back by both; nothing is lost."""
    first, second = host_of(home), host_of(home)
    async with browser(first) as client, browser(second) as other:
        await signed_up(client, first)
        assert await signed_in(other) == "/"
        (known,) = second.accounts()
        away = second.device(known.account_id)
        await away.sync_now()
        secret = await with_authenticator(home, client)
        page = (await client.get("/security/devices")).text
        (ends,) = re.findall(r'action="(/security/sessions/[^"]+/end)"', page)
        await post(client, ends)
        await away.create("notes", {"title": "Written meanwhile"})
        with pytest.raises(ManaError):
            await away.sync_now()
        assert 'id="session"' in (await other.get("/security")).text
        asked = await post(other, "/security/session", password=PASSWORD)
        assert asked.status_code == 303, asked.text
        assert asked.headers["location"] == "/sign-in/factor"
        done = await post(other, "/sign-in/factor", code=now_code(home, secret, 1))
        assert done.status_code == 303, done.text
        assert done.headers["location"] == "/security"
        assert (await away.sync_now()).waiting == 0
        assert 'id="session"' not in (await other.get("/security")).text


async def test_pages_without_the_hub_say_so(home: Household) -> None:
    """Offline each page stands, says what it lacks, and loses nothing."""
    host = host_of(home)
    async with browser(host) as client:
        await signed_up(client, host)
        home.places[0].wire.is_cut = True
        for path in ("/security", "/security/devices", "/security/grants", "/security/log"):
            assert (await client.get(path)).status_code == 200, path
        assert "The hub keeps this" in text_of(await client.get("/security/devices"))
        assert (await client.get("/security/knock")).status_code == 200
        refused = await post(client, "/security/recovery")
        assert "OFFLINE" in refused.text


async def test_this_device_locks_as_chosen(home: Household) -> None:
    """The choice of the page is what the device does; a locked account shows no page of it."""
    host = host_of(home)
    async with browser(host) as client:
        device = await signed_up(client, host)
        await post(client, "/security/auto-lock", minutes="15")
        assert await host.auto_lock_minutes(device.account_id) == 15
        assert (await post(client, "/security/auto-lock", minutes="x")).status_code == 400
        await host.lock(device.account_id)
        for path in ("/security", "/security/kit", "/security/log", "/security/knock"):
            assert (await client.get(path)).status_code == 423, path
