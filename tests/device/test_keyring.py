"""An account that opens by the system's keyring: only where it was asked for, and never by half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import keyring.backends.fail
import keyring.backends.null
import pytest
from keyring.backend import KeyringBackend

from mana.crypto.primitives import unb64
from mana.device.app import DeviceHost, build
from mana.device.desk import Device
from mana.device.errors import Locked, PasswordAsked, WrongPassword
from mana.device.kept import KEYRING_SLOT, REMEMBERED
from mana.device.keyring import KeyringUnavailable, SystemKeyring
from mana.device.vault import derive, new_kdf
from mana.device.vaults import NewPassword, Wish
from mana.protocol.messages import Vault
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Database
from tests.device.household import Household, Place, household, operations
from tests.device.keyrings import (
    ForgetfulKeyring,
    LockedKeyring,
    MemoryKeyring,
    SilentKeyring,
    SlowKeyring,
    WeakKeyring,
)
from tests.device.rig import HANGS_S

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def kept_by(backend: KeyringBackend, patience_s: float = 5.0) -> SystemKeyring:
    return SystemKeyring(lambda: backend, patience_s=patience_s)


async def restarted(home: Household, place: Place, system: SystemKeyring) -> DeviceHost:
    """End a device process, and start it again on its folder."""
    await place.host.close()
    place.host = build(
        place.host.settings,
        now_ms=home.clock,
        transport=lambda: place.wire,
        background=False,
        keyring=system,
    )
    return place.host


async def metas(device: Device) -> dict[str, str]:
    replica = operations(device).opened.book.inner().replica
    return await replica.read(lambda tx: tx.metas())


async def test_a_remembered_account_opens_without_its_password(home: Household) -> None:
    """After a restart it is open, reads and writes offline and syncs; without it, it is locked."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    place = home.places[0]
    await ada.create("notes", {"title": "One"})
    host = await restarted(home, place, kept_by(backend))
    assert await host.open_remembered() == []
    with pytest.raises(Locked):
        host.device(ada.account_id)
    opened = await host.sign_in("ada", PASSWORD)
    assert not await opened.keyring.is_on()
    await opened.keyring.remember(True)
    host = await restarted(home, place, kept_by(backend))
    place.wire.is_cut = True
    (again,) = await host.open_remembered()
    assert await again.keyring.is_on()
    assert [view.text("title") for view in await again.list("notes")] == ["One"]
    await again.create("notes", {"title": "Two"})
    place.wire.is_cut = False
    assert (await again.sync_now()).waiting == 0
    assert await host.open_remembered() == []
    with pytest.raises(PasswordAsked):
        operations(again).opened.book.login_key()
    with pytest.raises(WrongPassword):
        await host.sign_in("ada", "not the password")
    assert await host.sign_in("ada", PASSWORD) is again
    assert operations(again).opened.book.login_key()


async def test_neither_half_opens_anything(home: Household) -> None:
    """The replica holds no master key in the open, and another secret than its own opens nothing."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    place = home.places[0]
    await ada.keyring.remember(True)
    master_key = operations(ada).opened.book.inner().vault.master_key
    ((key, text),) = backend.held.items()
    secret = unb64(text)
    assert secret != master_key
    host = await restarted(home, place, kept_by(backend))
    raw = b"".join(path.read_bytes() for path in host.settings.home.rglob("*") if path.is_file())
    assert master_key not in raw
    assert secret not in raw
    assert text.encode() not in raw
    for held in ({}, {key: text[::-1]}, {key: "AAAA" + text[4:]}, {("mana", "other"): text}):
        backend.held = dict(held)
        assert await host.open_remembered() == []
    backend.held = {key: text}
    assert len(await host.open_remembered()) == 1


@pytest.mark.parametrize(
    "made",
    [
        keyring.backends.fail.Keyring,
        keyring.backends.null.Keyring,
        WeakKeyring,
        ForgetfulKeyring,
        LockedKeyring,
        SilentKeyring,
    ],
)
async def test_a_system_without_a_keyring_says_so(
    home: Household, made: Callable[[], KeyringBackend], caplog: pytest.LogCaptureFixture
) -> None:
    """Where no keyring keeps a secret the person is told what to do, and nothing is kept."""
    backend = made()
    ada = await home.person(background=False, keyring=kept_by(backend, 0.2))
    with pytest.raises(KeyringUnavailable) as refused:
        await ada.keyring.remember(True)
    assert refused.value.code == "KEYRING_UNAVAILABLE"
    assert "password" in refused.value.advice
    assert "hunter2" not in f"{refused.value} {caplog.text}"
    assert not await ada.keyring.is_on()
    assert REMEMBERED not in await metas(ada)
    host = await restarted(home, home.places[0], kept_by(backend, 0.2))
    assert await host.open_remembered() == []
    assert await host.sign_in("ada", PASSWORD)
    if isinstance(backend, SilentKeyring):
        backend.asked.set()


async def test_a_keyring_that_went_away_is_said_at_the_start(home: Household) -> None:
    """An account that should open and cannot is no silent failure; its password opens it."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    await ada.keyring.remember(True)
    host = await restarted(home, home.places[0], kept_by(LockedKeyring()))
    with pytest.raises(KeyringUnavailable):
        await host.open_remembered()
    assert await host.sign_in("ada", PASSWORD)


async def test_what_is_switched_off_is_gone(home: Household) -> None:
    """Once it is switched off the password is asked for, and the keyring holds nothing."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    await ada.keyring.remember(True)
    await ada.keyring.remember(True)
    assert len(backend.held) == 1
    await ada.keyring.remember(False)
    assert backend.held == {}
    assert {REMEMBERED, KEYRING_SLOT} & (await metas(ada)).keys() == set()
    host = await restarted(home, home.places[0], kept_by(backend))
    assert await host.open_remembered() == []


async def test_signing_out_removes_both_halves(home: Household) -> None:
    """A device that an account left keeps no secret of it, also where it was locked."""
    for locked in (False, True):
        backend, login = MemoryKeyring(), f"ada{locked}".lower()
        ada = await home.person(login, background=False, keyring=kept_by(backend))
        host = home.places[-1].host
        await ada.keyring.remember(True)
        assert backend.held
        if locked:
            await host.lock(ada.account_id)
        await host.sign_out(ada.account_id, force=locked)
        assert backend.held == {}


async def test_another_password_ends_it(home: Household) -> None:
    """Whoever changes the password is asked for it from then on; the old secret opens nothing."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    await ada.keyring.remember(True)
    await ada.sync_now()
    kdf = new_kdf(CHEAP)
    keys = derive("another good password", "ada", kdf, floor=CHEAP)

    async def wish(standing: Vault) -> Wish:
        return Wish(password=NewPassword(kdf, keys))

    await operations(ada).opened.book.inner().keeper.change(wish)
    assert not await ada.keyring.is_on()
    host = await restarted(home, home.places[0], kept_by(backend))
    assert await host.open_remembered() == []
    opened = await host.sign_in("ada", "another good password")
    await host._open[opened.account_id].tidying
    assert backend.held == {}


async def test_a_secret_that_could_not_be_removed_goes_later(home: Household) -> None:
    """If the keyring is closed when it is switched off, the secret goes at the next opening."""
    backend = MemoryKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    await ada.keyring.remember(True)
    host = await restarted(home, home.places[0], kept_by(LockedKeyring()))
    opened = await host.sign_in("ada", PASSWORD)
    await opened.keyring.remember(False)
    assert backend.held
    host = await restarted(home, home.places[0], kept_by(backend))
    assert await host.open_remembered() == []
    opened = await host.sign_in("ada", PASSWORD)
    await host._open[opened.account_id].tidying
    assert backend.held == {}


async def test_nobody_is_asked_unless_the_person_wanted_it(home: Household) -> None:
    """A device on which nothing is remembered never touches the system's keyring."""

    asked: list[str] = []

    def found() -> KeyringBackend:
        asked.append("here")
        return MemoryKeyring()

    ada = await home.person(background=False, keyring=SystemKeyring(found))
    host = home.places[0].host
    await host._open[ada.account_id].tidying
    await host.lock(ada.account_id)
    assert await host.open_remembered() == []
    await host.sign_in("ada", PASSWORD)
    await host.sign_out(ada.account_id)
    assert asked == []


async def test_a_keyring_that_waits_holds_nobody_up(home: Household) -> None:
    """While the system asks about one account, its password opens it all the same."""
    backend = SlowKeyring()
    ada = await home.person(background=False, keyring=kept_by(backend))
    await ada.keyring.remember(True)
    host = await restarted(home, home.places[0], kept_by(backend))
    backend.answers.clear()
    opening = asyncio.create_task(host.open_remembered())
    assert await asyncio.to_thread(backend.asked.wait, 10)
    opened = await asyncio.wait_for(host.sign_in("ada", PASSWORD), HANGS_S)
    backend.answers.set()
    assert await opening == []
    assert host.device(ada.account_id) is opened
