"""Sessions, devices and second factors of an account, through the real hub."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from mana.device.app import DeviceHost
from mana.device.desk import Device
from mana.device.errors import Locked
from mana.device.kept import REMEMBERED
from mana.device.keyring import SystemKeyring
from mana.device.sessions import DeviceInUse
from mana.domain.errors import Invalid, ManaError, NotFound
from mana.hub.factors import totp
from mana.protocol.errors import (
    DeviceRevoked,
    FactorUnknown,
    TwoFactorFailed,
    TwoFactorRequired,
)
from mana.protocol.messages import FactorAnswer
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations
from tests.device.keyrings import MemoryKeyring

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def device_id(device: Device) -> str:
    return operations(device).opened.device_id


async def settled(host: DeviceHost, account_id: str) -> None:
    """Wait until an account that is being locked is locked."""
    await host._locked(account_id)


async def test_an_ended_session_comes_back_with_the_password_only(home: Household) -> None:
    """A session that was ended elsewhere is worth nothing; what waits is sent by the next one."""
    ada = await home.person(background=False)
    phone = await home.second(background=False)
    sessions = await ada.sessions.list()
    assert [one.current for one in sessions].count(True) == 1
    assert {one.device_id for one in sessions} == {device_id(ada), device_id(phone)}
    (theirs,) = [one for one in sessions if one.device_id == device_id(phone)]
    await ada.sessions.end(theirs.session_id)
    assert theirs.session_id not in [one.session_id for one in await ada.sessions.list()]
    await phone.create("notes", {"title": "Kept"})
    # The phone still knows its login key: it signs in anew, as the same device.
    assert (await phone.sync_now()).waiting == 0
    again = [one for one in await ada.sessions.list() if one.device_id == device_id(phone)]
    assert [one.session_id == theirs.session_id for one in again] == [False]
    with pytest.raises(NotFound):
        await ada.sessions.end("no-such-session")


async def test_a_revoked_device_locks_and_keeps_what_it_had(home: Household) -> None:
    """Revoked elsewhere, a device locks at the hub's word, and what it had not sent stays."""
    backend = MemoryKeyring()
    ada = await home.person(background=False)
    phone = await home.second(background=False, keyring=SystemKeyring(lambda: backend))
    host = home.places[-1].host
    await phone.keyring.remember(True)
    old = device_id(phone)
    await phone.create("notes", {"title": "Not sent"})
    await ada.sessions.revoke(old)
    views = {one.id: one for one in await ada.sessions.devices()}
    assert views[old].revoked_at is not None
    assert views[device_id(ada)].revoked_at is None
    with pytest.raises(DeviceRevoked):
        await phone.sync_now()
    with pytest.raises(Locked):
        host.device(phone.account_id)
    await settled(host, phone.account_id)
    assert host.accounts()[0].locked_because == "revoked"
    assert await host.open_remembered() == []
    again = await host.sign_in("ada", PASSWORD)
    await host._open[again.account_id].tidying
    assert backend.held == {}
    assert device_id(again) != old
    assert [view.text("title") for view in await again.list("notes")] == ["Not sent"]
    replica = operations(again).opened.book.inner().replica
    assert REMEMBERED not in await replica.read(lambda tx: tx.metas())
    assert (await again.sync_now()).waiting == 0
    await ada.sync_now()
    assert [view.text("title") for view in await ada.list("notes")] == ["Not sent"]


async def test_a_revoked_device_does_not_sign_in_by_itself(home: Household) -> None:
    """A device that holds the login key does not use it once it was revoked, renewed or not."""
    ada = await home.person(background=False)
    phone = await home.second(background=False)
    theirs = [one for one in await ada.sessions.list() if one.device_id == device_id(phone)]
    await ada.sessions.end(theirs[0].session_id)
    await phone.sync_now()
    before = len(home.places[-1].wire.seen)
    await ada.sessions.revoke(device_id(phone))
    with pytest.raises(DeviceRevoked):
        await phone.sync_now()
    paths = [path for _, path, _ in home.places[-1].wire.seen[before:]]
    assert not [path for path in paths if path.startswith("/api/v1/auth/")]
    standing = [one.device_id for one in await ada.sessions.list()]
    assert standing == [device_id(ada)]


async def test_a_revoked_device_whose_session_is_gone_gets_no_other(home: Household) -> None:
    """Signing in anew with an old device's key is refused, however its session had ended."""
    ada = await home.person(background=False)
    phone = await home.second(background=False)
    host = home.places[-1].host
    (theirs,) = [one for one in await ada.sessions.list() if one.device_id == device_id(phone)]
    await ada.sessions.end(theirs.session_id)
    await ada.sessions.revoke(device_id(phone))
    with pytest.raises(DeviceRevoked):
        await phone.sync_now()
    with pytest.raises(Locked):
        host.device(phone.account_id)
    await settled(host, phone.account_id)


async def test_a_device_does_not_revoke_itself(home: Household) -> None:
    """What waits here could no longer be sent; another device revokes it."""
    ada = await home.person(background=False)
    with pytest.raises(DeviceInUse):
        await ada.sessions.revoke(device_id(ada))
    with pytest.raises(NotFound):
        await ada.sessions.revoke("00000000-0000-4000-8000-000000000000")


async def with_totp(home: Household, device: Device) -> bytes:
    """Add an authenticator; return its secret."""
    setup = await device.sessions.begin_totp("Phone")
    assert setup.qr_svg.startswith("<svg")
    assert setup.secret not in repr(setup)
    (named,) = parse_qs(urlsplit(setup.uri).query)["secret"]
    assert named == setup.secret
    secret = base64.b32decode(named)
    await device.sessions.finish_factor(setup.factor_id, code(home, secret))
    return secret


def code(home: Household, secret: bytes) -> FactorAnswer:
    """Return what an authenticator shows at this moment."""
    step = home.served.clock.now_ms // totp.STEP_MS
    return FactorAnswer(totp=totp.code_at(secret, step))


def later(home: Household) -> None:
    """Let both clocks go on, so that another code is shown."""
    home.clock.ahead_ms += 60_000
    home.served.clock.now_ms = home.clock()


async def test_the_first_device_has_its_name(home: Household) -> None:
    """Who signs up finds the device by its name among sessions and devices, as any later one."""
    ada = await home.person(background=False, name="Laptop")
    assert [one.name for one in await ada.sessions.list()] == ["Laptop"]
    assert [one.name for one in await ada.sessions.devices()] == ["Laptop"]


async def test_a_wrong_code_is_one_attempt(home: Household) -> None:
    """A code that is refused while adding an authenticator was sent once, by the same session."""
    ada = await home.person(background=False)
    setup = await ada.sessions.begin_totp("Phone")
    before = len(home.places[-1].wire.seen)
    with pytest.raises(TwoFactorFailed):
        await ada.sessions.finish_factor(setup.factor_id, FactorAnswer(totp="000000"))
    assert len(home.places[-1].wire.seen) == before + 1


async def test_a_second_factor_is_asked_for_at_sign_in(home: Household) -> None:
    """With an authenticator a new device needs password and code, and each code counts once."""
    ada = await home.person(background=False)
    secret = await with_totp(home, ada)
    (factor,) = await ada.sessions.factors()
    assert (factor.kind, factor.name) == ("totp", "Phone")
    host = home.place(background=False).host
    with pytest.raises(TwoFactorRequired) as asked:
        await host.sign_in("ada", PASSWORD)
    assert asked.value.detail["kinds"] == ["totp"]
    assert host.accounts() == []
    with pytest.raises(TwoFactorFailed):
        await host.sign_in("ada", PASSWORD, factor=FactorAnswer(totp="000000"))
    later(home)
    answer = code(home, secret)
    opened = await host.sign_in("ada", PASSWORD, factor=answer)
    assert opened.account_id == ada.account_id
    with pytest.raises(TwoFactorFailed):
        await home.place(background=False).host.sign_in("ada", PASSWORD, factor=answer)


async def test_a_device_whose_session_ended_asks_for_the_factor(home: Household) -> None:
    """Offline the password opens it; towards the hub it needs the code, and then goes on."""
    ada = await home.person(background=False)
    phone = await home.second(background=False)
    host = home.places[-1].host
    secret = await with_totp(home, ada)
    (theirs,) = [one for one in await ada.sessions.list() if one.device_id == device_id(phone)]
    await ada.sessions.end(theirs.session_id)
    await phone.create("notes", {"title": "Kept"})
    with pytest.raises(TwoFactorRequired):
        await phone.sync_now()
    later(home)
    with pytest.raises(TwoFactorFailed):
        await host.sign_in("ada", PASSWORD, factor=FactorAnswer(totp="000000"))
    answer = code(home, secret)
    assert await host.sign_in("ada", PASSWORD, factor=answer) is phone
    assert (await phone.sync_now()).waiting == 0
    again = [one for one in await ada.sessions.list() if one.device_id == device_id(phone)]
    assert len(again) == 1


async def test_a_wrong_factor_leaves_a_locked_account_locked(home: Household) -> None:
    """A second factor that is refused opens nothing by the way."""
    ada = await home.person(background=False)
    await with_totp(home, ada)
    host = home.places[0].host
    await host.lock(ada.account_id)
    with pytest.raises(TwoFactorFailed):
        await host.sign_in("ada", PASSWORD, factor=FactorAnswer(totp="000000"))
    with pytest.raises(Locked):
        host.device(ada.account_id)
    assert await host.sign_in("ada", PASSWORD)


async def test_a_factor_is_removed_with_a_proof(home: Household) -> None:
    """Whoever has the vault open removes a factor, and is then asked for none."""
    ada = await home.person(background=False)
    await with_totp(home, ada)
    (factor,) = await ada.sessions.factors()
    await ada.sessions.remove_factor(factor.factor_id)
    assert await ada.sessions.factors() == []
    assert await home.second(background=False)
    with pytest.raises(FactorUnknown):
        await ada.sessions.remove_factor(factor.factor_id)
    for name in ("", "x" * 81):
        with pytest.raises(Invalid):
            await ada.sessions.begin_totp(name)


async def test_a_passkey_begins_with_the_browsers_options(home: Household) -> None:
    """The browser gets what it needs to make a passkey, and a factor that is not finished is none."""
    ada = await home.person(background=False)
    setup = await ada.sessions.begin_passkey("Key")
    assert {"challenge", "rp", "user", "pubKeyCredParams"} <= setup.options.keys()
    assert await ada.sessions.factors() == []
    with pytest.raises(ManaError):
        await ada.sessions.finish_factor(setup.factor_id, FactorAnswer(passkey={}))


async def test_a_device_that_the_hub_made_up_is_marked(home: Household) -> None:
    """A device that the account did not certify is shown as such, and never as one's own."""
    ada = await home.person(background=False)
    place = home.places[0]

    async def on_request(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if request.method != "GET" or not request.url.path.endswith("/me/devices"):
            return None
        answer = await under.handle_async_request(request)
        body = httpx.Response(200, content=await answer.aread()).json()
        made_up = {**body["devices"][0], "deviceId": "00000000-0000-4000-8000-000000000000"}
        return httpx.Response(200, json={**body, "devices": [*body["devices"], made_up]})

    place.wire.on_request = on_request
    views = {one.id: one.certified for one in await ada.sessions.devices()}
    assert views == {device_id(ada): True, "00000000-0000-4000-8000-000000000000": False}


async def test_an_authenticator_of_another_form_is_refused(home: Household) -> None:
    """A hub that gives an address with another secret than it says is not shown as a code."""
    ada = await home.person(background=False)
    place = home.places[0]

    async def on_request(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if not request.url.path.endswith("/me/factors"):
            return None
        answer = await under.handle_async_request(request)
        body = httpx.Response(200, content=await answer.aread()).json()
        return httpx.Response(201, json={**body, "uri": "otpauth://totp/x?secret=AAAA"})

    place.wire.on_request = on_request
    with pytest.raises(HubDistrusted):
        await ada.sessions.begin_totp("Phone")
