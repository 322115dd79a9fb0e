"""Keys on the device: what the password opens, and what a dishonest hub cannot make it do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.errors import KdfTooWeak
from mana.crypto.keys import mission_key
from mana.crypto.passwords import FLOOR, KdfFloor
from mana.device.errors import Locked, WrongPassword
from mana.device.settings import DeviceSettings
from mana.domain.errors import CryptoFailed, Invalid, ManaError, NotFound
from mana.protocol.errors import InvalidCredentials
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import CHEAP, new_account
from mana.testing.postgres import Database
from tests.device.rig import Machine, Rig, note, rig_on, titles
from tests.hub.client import START_MS

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_unlocking_needs_no_hub(rig: Rig) -> None:
    """With the cached vault an account opens offline, and its records are there."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="here")
    await book.lock()
    machine.wire.is_cut = True
    again = await machine.sign_in()
    assert again.device_id == book.device_id
    assert await titles(again) == {"n1": "here"}


async def test_a_wrong_password_opens_nothing(rig: Rig) -> None:
    """The code is WRONG_PASSWORD here, and INVALID_CREDENTIALS where only the hub could tell."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.lock()
    with pytest.raises(WrongPassword) as failure:
        await machine.sign_in(password="not the password")
    assert failure.value.code == "WRONG_PASSWORD"
    with pytest.raises(InvalidCredentials):
        await rig.machine().sign_in(password="not the password")
    with pytest.raises(NotFound):
        await machine.accounts.unlock("nobody", "password")


async def test_a_short_password_makes_no_account(rig: Rig) -> None:
    """Sign-up refuses a password that can be guessed at once, before the hub hears of it."""
    machine = rig.machine()
    with pytest.raises(Invalid):
        await machine.accounts.sign_up("ada", "short")
    assert machine.wire.seen == []


async def test_weak_parameters_from_the_hub_are_refused(rig: Rig) -> None:
    """A hub that names cheaper password parameters gets no login key."""
    await rig.machine().sign_up()
    strict = rig.machine(kdf_floor=KdfFloor(t=CHEAP.t + 1, m_kib=CHEAP.m_kib, p=CHEAP.p))
    with pytest.raises(KdfTooWeak):
        await strict.sign_in()
    assert not any(path.endswith("/login") for _, path, _ in strict.wire.seen)


def test_the_floor_outside_of_tests_is_that_of_the_protocol(tmp_path: Path) -> None:
    """No setting of the environment lowers what a password costs."""
    environ = {"MANA_HOME": str(tmp_path), "MANA_KDF_FLOOR": "1"}
    assert DeviceSettings.from_env(environ).kdf_floor == FLOOR


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Every variable is read, has its default, and is named when it is wrong."""
    settings = DeviceSettings.from_env(
        {
            "MANA_HOME": str(tmp_path),
            "MANA_DEVICE_PORT": "0",
            "MANA_DEVICE_HOST": "::1",
            "MANA_HUB_URL": "https://hub.example/",
            "MANA_LLM_URL": "http://127.0.0.1:1/v1",
            "MANA_LLM_KEY": "k",
            "MANA_LLM_MODEL": "m",
        }
    )
    assert (settings.port, settings.host, settings.hub_url) == (0, "::1", "https://hub.example")
    assert settings.folder == tmp_path / "device"
    assert "llm_key" not in repr(settings)
    plain = DeviceSettings.from_env({"MANA_HOME": str(tmp_path)})
    assert (plain.port, plain.hub_url) == (5173, "http://127.0.0.1:3050")
    for name, wrong in (("MANA_DEVICE_PORT", "x"), ("MANA_HUB_URL", "ftp://x")):
        with pytest.raises(Invalid, match=name):
            DeviceSettings.from_env({name: wrong})


async def test_locking_drops_the_keys(rig: Rig) -> None:
    """After lock nothing can be read, written, signed or synced through the book."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="x")
    await book.start()
    await book.lock()
    await book.lock()
    for attempt in (
        book.views("notes"),
        book.view("notes", "n1"),
        book.record("notes", "n1"),
        note(book, "n1", title="y"),
        book.sync_now(),
        book.status(),
        book.refused(),
        book.kept("x"),
        book.drop_refused("x"),
        book.record_secret("notes", "n1"),
        book.mission_secret("m1"),
    ):
        with pytest.raises(Locked):
            await attempt
    with pytest.raises(Locked):
        book.sign("mana-test:v1", "x")
    with pytest.raises(Locked):
        book.login_key()


@pytest.mark.parametrize("lie", ["vault", "identity", "log", "swap", "hide", "keys"])
async def test_a_hub_that_lies_at_sign_in_is_found_out(rig: Rig, lie: str) -> None:
    """Another's keys, a swapped, hidden or shortened space: the sign-in fails, nothing is kept."""
    await rig.machine().sign_up("ada")
    eve = new_account("eve", now_ms=START_MS)
    machine = rig.machine()

    async def falsify(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        path = request.url.path
        if not path.endswith(("/me/vault", "/spaces")):
            return None
        response = await under.handle_async_request(request)
        body = msgspec.json.decode(await response.aread())
        if path.endswith("/vault"):
            _lie_about_vault(body, lie, eve)
        else:
            _lie_about_spaces(body, lie, eve)
        return httpx.Response(200, json=body, request=request)

    machine.wire.on_request = falsify
    with pytest.raises(ManaError) as failure:
        await machine.sign_in("ada")
    assert isinstance(failure.value, CryptoFailed | HubDistrusted | WrongPassword | Invalid)
    assert machine.accounts.known() == []


async def test_a_space_that_forgets_its_past_is_refused_later_too(rig: Rig) -> None:
    """A hub that replaces a space after the first sign-in is refused at the next sync."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.lock()
    again = await machine.sign_in()

    async def hide(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if not request.url.path.endswith("/api/v1/spaces"):
            return None
        return httpx.Response(200, json={"spaces": []}, request=request)

    machine.wire.on_request = hide
    with pytest.raises(HubDistrusted):
        await again.sync_now()
    assert (await again.status()).link == "refused"


async def test_secrets_for_a_grant_fit_the_envelopes(rig: Rig) -> None:
    """The handed-over key and class are those of the record's envelopes."""
    book = await rig.machine().sign_up()
    await note(book, "n1", title="x")
    key, opens = await book.record_secret("notes", "n1")
    record = await book.record("notes", "n1")
    assert record is not None
    assert str(record.entries["title"].value).startswith(f"enc:2:{opens}:")
    assert len(key) == 32
    parent, mission_opens = await book.mission_secret("m1")
    assert (len(parent), mission_opens) == (32, "m1")
    assert parent != (await book.mission_secret("m2"))[0]
    assert parent != mission_key(key, "m1")
    with pytest.raises(NotFound):
        await book.record_secret("notes", "none")


async def test_a_lost_session_begins_anew(rig: Rig) -> None:
    """While unlocked, a session that the hub ended is followed by a new one."""
    machine: Machine = rig.machine()
    book = await machine.sign_up()
    await book.hub.logout()
    await note(book, "n1", title="x")
    assert (await book.sync_now()).waiting == 0


def _lie_about_vault(body: dict[str, Any], lie: str, eve: Any) -> None:
    if lie == "vault":
        body["masterWrap"] = eve.request.master_wrap
    if lie == "identity":
        body["identity"]["signingKey"] = eve.request.identity.signing_key


def _lie_about_spaces(body: dict[str, Any], lie: str, eve: Any) -> None:
    spaces = body["spaces"]
    theirs = msgspec.to_builtins(eve.personal.new)
    if lie == "log":
        spaces[0]["log"][0]["entry"]["createdAt"] = "2020-01-01T00:00:00.000Z"
    if lie == "swap":
        spaces[0]["spaceId"] = eve.personal.space_id
        spaces[0]["log"] = [theirs["first"]]
        spaces[0]["wraps"] = theirs["wraps"]
    if lie == "hide":
        spaces.pop()
    if lie == "keys":
        spaces[0]["wraps"], spaces[1]["wraps"] = spaces[1]["wraps"], spaces[0]["wraps"]
