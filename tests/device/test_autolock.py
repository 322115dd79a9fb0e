"""An account that is left alone locks itself; what the device does by itself is no person."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.device.app import DeviceHost, build
from mana.device.desk import Device
from mana.device.errors import Locked
from mana.device.idling import IdleClock
from mana.device.settings import DeviceSettings
from mana.domain.errors import Invalid
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations
from tests.device.rig import HANGS_S

pytestmark = pytest.mark.anyio
MINUTE_MS = 60_000


class Even:
    """A clock that runs on evenly, as the test says; it stands still while the machine sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


@pytest.fixture
def even() -> Even:
    return Even()


async def ada_at(home: Household, even: Even, minutes: int | None = 5) -> tuple[Device, DeviceHost]:
    ada = await home.person(background=False, even_s=even)
    host = home.places[-1].host
    await host.set_auto_lock(ada.account_id, minutes)
    return ada, host


@pytest.mark.postgres
async def test_nothing_locks_by_itself_unless_it_is_chosen(home: Household, even: Even) -> None:
    """Without a choice an account stays open, for a locked device works on no mission."""
    ada, host = await ada_at(home, even, None)
    even.now_s += 30 * 86_400
    assert await host.auto_lock_minutes(ada.account_id) == 0
    assert await host.lock_idle() == []
    assert host.device(ada.account_id) is ada


@pytest.mark.postgres
async def test_an_account_left_alone_is_locked(home: Household, even: Even) -> None:
    """After the chosen time without a person keys and opened records are out of memory."""
    ada, host = await ada_at(home, even)
    await ada.create("notes", {"title": "Secret"})
    await ada.list("notes")
    book = operations(ada).opened.book
    even.now_s += 5 * 60 - 1
    assert await host.lock_idle() == []
    even.now_s += 1
    heard: list[str] = []
    host.on_lock(heard.append)
    assert await host.lock_idle() == [ada.account_id]
    assert heard == [ada.account_id]
    with pytest.raises(Locked):
        host.device(ada.account_id)
    with pytest.raises(Locked):
        await ada.list("notes")
    with pytest.raises(Locked):
        book.inner()
    assert (book._views, book._lists, book._books) == ({}, {}, {})
    (known,) = host.accounts()
    assert (known.unlocked, known.locked_because) == (False, "idle")
    again = await host.sign_in("ada", PASSWORD)
    assert [view.text("title") for view in await again.list("notes")] == ["Secret"]
    assert host.accounts()[0].locked_because == ""
    assert await host.auto_lock_minutes(again.account_id) == 5


@pytest.mark.postgres
async def test_a_person_keeps_it_open_and_the_device_does_not(home: Household, even: Even) -> None:
    """What a person does counts; sync, status and open pages do not."""
    ada, host = await ada_at(home, even)
    for _ in range(4):
        even.now_s += 4 * 60
        host.person_here(ada.account_id)
        assert await host.lock_idle() == []
    even.now_s += 4 * 60
    await ada.sync_now()
    await ada.status()
    assert host.device(ada.account_id) is ada
    even.now_s += 60
    assert await host.lock_idle() == [ada.account_id]


@pytest.mark.postgres
async def test_a_machine_that_wakes_up_shows_nothing(home: Household, even: Even) -> None:
    """Time that a machine slept counts, from the first call on, and no call brings it back."""
    ada, host = await ada_at(home, even)
    home.clock.ahead_ms += 5 * MINUTE_MS
    host.person_here(ada.account_id)
    with pytest.raises(Locked):
        host.device(ada.account_id)
    with pytest.raises(Locked):
        host.device(ada.account_id)
    opened = await host.sign_in("ada", PASSWORD)
    assert host.device(ada.account_id) is opened
    with pytest.raises(Locked):
        await ada.list("notes")


@pytest.mark.postgres
async def test_a_clock_that_is_set_back_keeps_nothing_open(home: Household, even: Even) -> None:
    """Nobody gains time by setting the machine's clock."""
    ada, host = await ada_at(home, even)
    home.clock.ahead_ms -= 600 * MINUTE_MS
    even.now_s += 5 * 60
    assert await host.lock_idle() == [ada.account_id]


@pytest.mark.postgres
async def test_what_needs_keys_stops_and_says_so(home: Household, even: Even) -> None:
    """A lock ends what the device does by itself, and tells whoever listens."""
    place = home.place(even_s=even, background=True)
    ada = await place.host.sign_up("ada", PASSWORD, display_name="Ada")
    host = home.places[-1].host
    await host.set_auto_lock(ada.account_id, 1)
    serving = operations(ada)._serving
    assert serving is not None
    stream = ada.subscribe()
    topics: list[str] = []

    async def listen() -> None:
        async for notice in stream:
            topics.append(notice.topic)

    listener = asyncio.create_task(listen())
    even.now_s += 60
    assert await host.lock_idle() == [ada.account_id]
    assert serving.done()
    await asyncio.wait_for(listener, HANGS_S)
    assert topics[-1] == "lock"


@pytest.mark.postgres
async def test_the_watch_locks_by_itself(
    home: Household, even: Even, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask: a device that serves looks by itself."""
    monkeypatch.setattr("mana.device.app.LOOK_S", 0.0)
    locked = asyncio.Event()
    host = home.place(even_s=even, background=True).host
    ada = await host.sign_up("ada", PASSWORD, display_name="Ada")
    host.on_lock(lambda account_id: locked.set())
    await host.set_auto_lock(ada.account_id, 1)
    even.now_s += 60
    await asyncio.wait_for(locked.wait(), HANGS_S)


@pytest.mark.postgres
async def test_a_choice_at_another_process_is_followed(home: Household, even: Even) -> None:
    """What the terminal chooses holds for the device that serves the same account."""
    ada, host = await ada_at(home, even, 0)
    terminal = build(
        host.settings,
        now_ms=home.clock,
        transport=lambda: home.places[-1].wire,
        background=False,
    )
    other = await terminal.sign_in("ada", PASSWORD)
    await terminal.set_auto_lock(other.account_id, 2)
    await terminal.close()
    even.now_s += 120
    assert await host.lock_idle() == [ada.account_id]


@pytest.mark.postgres
async def test_each_account_has_its_own_choice(home: Household, even: Even) -> None:
    """One person's lock does not lock another's account on the same device."""
    ada, host = await ada_at(home, even)
    bob = await host.sign_up("bob", PASSWORD, display_name="Bob")
    even.now_s += 5 * 60
    assert await host.lock_idle() == [ada.account_id]
    assert host.device(bob.account_id) is bob
    for minutes in (-1, 7 * 24 * 60 + 1, True):
        with pytest.raises(Invalid):
            await host.set_auto_lock(bob.account_id, minutes)


def test_the_environment_sets_it() -> None:
    """MANA_AUTO_LOCK_MINUTES is a number of minutes, never by default, and nothing else is taken."""
    assert DeviceSettings.from_env({}).auto_lock_minutes == 0
    assert DeviceSettings.from_env({"MANA_AUTO_LOCK_MINUTES": "15"}).auto_lock_minutes == 15
    for text in ("soon", "-1", "1.5", "10081", "²"):
        with pytest.raises(Invalid):
            DeviceSettings.from_env({"MANA_AUTO_LOCK_MINUTES": text})


def test_the_hub_learns_no_name_of_the_machine() -> None:
    """A device is called by its kind of system unless the person names it."""
    assert DeviceSettings.from_env({}).name == platform.system()
    assert DeviceSettings.from_env({"MANA_DEVICE_NAME": " Ada's laptop "}).name == "Ada's laptop"
    with pytest.raises(Invalid):
        DeviceSettings.from_env({"MANA_DEVICE_NAME": "x" * 81})


steps = st.lists(st.tuples(st.integers(-10_000_000, 10_000_000), st.integers(0, 10_000)))


@given(steps, st.integers(1, 60))
def test_the_larger_clock_counts(moves: list[tuple[int, int]], minutes: int) -> None:
    """An account is never open longer than either clock allows, however the wall's is set."""
    wall_ms, even_s = [0], [0.0]
    clock = IdleClock(lambda: wall_ms[0], lambda: even_s[0])
    for wall, passed in moves:
        wall_ms[0] += wall
        even_s[0] += passed
        assert clock.is_over(minutes) == (
            wall_ms[0] >= minutes * MINUTE_MS or even_s[0] >= minutes * 60
        )
    clock.touch()
    assert not clock.is_over(minutes)
    assert not clock.is_over(0)
