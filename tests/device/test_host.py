"""The host: accounts that come, lock and go, and the demo that can be removed."""

from __future__ import annotations

import stat
import uuid
from collections.abc import AsyncIterator

import pytest

from mana.device.app import ChangesWaiting, LinkSpent
from mana.device.errors import Locked, Offline, WrongPassword
from mana.domain.errors import Invalid, NotFound
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import Household, household

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def test_account_locks_and_unlocks_offline(home: Household) -> None:
    """A locked account answers nothing; the right password opens it without the hub."""
    ada = await home.person()
    place = home.places[0]
    await ada.create("notes", {"title": "One", "content": "text"})
    (known,) = place.host.accounts()
    assert (known.login, known.display_name, known.unlocked) == ("ada", "Ada", True)
    await place.host.lock(known.account_id)
    with pytest.raises(Locked):
        place.host.device(known.account_id)
    with pytest.raises(Locked):
        await ada.list("notes")
    place.wire.is_cut = True
    with pytest.raises(WrongPassword):
        await place.host.sign_in("ada", "not the password")
    opened = await place.host.sign_in("ada", PASSWORD)
    assert [view.text("title") for view in await opened.list("notes")] == ["One"]
    assert place.host.device(known.account_id) is opened
    assert (await opened.status()).sync.waiting >= 1
    with pytest.raises(Offline):
        await opened.sync_now()
    with pytest.raises(WrongPassword):
        await place.host.sign_in("ada", "not the password")
    with pytest.raises(NotFound):
        place.host.device("00000000-0000-4000-8000-000000000000")


async def test_second_device_sees_what_the_first_wrote(home: Household) -> None:
    """Signing in on a new device brings records, agents and missions along."""
    ada = await home.person()
    await ada.create("notes", {"title": "One", "content": "text"})
    await ada.create_agent("Mira")
    await ada.sync_now()
    phone = await home.second()
    assert [view.text("title") for view in await phone.list("notes")] == ["One"]
    assert [one.name for one in await phone.agents()] == ["Mira"]
    assert (await phone.status()).display_name == "Ada"


async def test_what_a_person_makes_has_an_id_of_its_time(home: Household) -> None:
    """Records, agents and missions of a person bear UUIDs of version 7, as sync.md says."""
    before = home.clock()
    ada = await home.person()
    note = await ada.create("notes", {"title": "One"})
    agent = await ada.create_agent("Mira")
    mission = await ada.create_mission("Plans", "Do", agent_id=agent)
    after = home.clock()
    for made in (uuid.UUID(note), uuid.UUID(agent), uuid.UUID(mission)):
        assert (made.version, made.variant) == (7, uuid.RFC_4122)
        assert before <= made.int >> 80 <= after


async def test_sign_out_loses_nothing_unless_forced(home: Household) -> None:
    """What has not reached the hub keeps the account here, unless it is dropped on purpose."""
    ada = await home.person()
    place = home.places[0]
    await ada.create("notes", {"title": "One", "content": "text"})
    place.wire.is_cut = True
    await ada.create("notes", {"title": "Two", "content": "text"})
    with pytest.raises(ChangesWaiting):
        await place.host.sign_out(ada.account_id)
    assert place.host.device(ada.account_id) is ada
    place.wire.is_cut = False
    await place.host.sign_out(ada.account_id)
    assert place.host.accounts() == []
    again = await place.host.sign_in("ada", PASSWORD)
    assert {view.text("title") for view in await again.list("notes")} == {"One", "Two"}
    place.wire.is_cut = True
    await again.create("notes", {"title": "Three", "content": "text"})
    await place.host.sign_out(ada.account_id, force=True)
    assert place.host.accounts() == []


async def test_removed_account_is_gone_on_the_hub(home: Household) -> None:
    """Removing an account needs the password and leaves nothing to sign in to."""
    ada = await home.person()
    host = home.places[0].host
    with pytest.raises(WrongPassword):
        await host.remove_account(ada.account_id, "not the password")
    await host.remove_account(ada.account_id, PASSWORD)
    assert host.accounts() == []
    assert await home.person() is not None


async def test_demo_is_seeded_once_and_removed(home: Household) -> None:
    """The demo has its agent, mission, notes and tasks, opens by a one-time link, and goes."""
    place = home.place()
    demo = await place.host.start_demo()
    (mission,) = await demo.missions()
    assert (mission.title, mission.agent_name) == ("Weekly review", "Mira")
    assert mission.cadence_words == "every Sunday at 10:00"
    assert [one.table for one in mission.input_titles] == [
        "notes",
        "notes",
        "tasks",
        "tasks",
        "tasks",
    ]
    assert mission.grant is None
    assert (len(await demo.list("notes")), len(await demo.list("tasks"))) == (3, 5)
    assert sum("- [ ]" in view.text("content") for view in await demo.list("notes")) >= 2
    assert await place.host.start_demo() is demo
    secret = place.host.settings.home / "secrets" / "demo"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    await place.host.lock(demo.account_id)
    token = place.host.demo_link_token()
    again = await place.host.redeem_demo_token(token)
    assert again.account_id == demo.account_id
    assert len(await again.missions()) == 1
    with pytest.raises(LinkSpent):
        await place.host.redeem_demo_token(token)
    assert (await again.status()).demo
    await place.host.remove_demo()
    assert place.host.accounts() == []
    assert not secret.exists()
    await place.host.remove_demo()


async def test_a_lost_password_is_set_anew_by_the_code(home: Household) -> None:
    """The recovery code opens an account here and elsewhere; what stood open is opened anew."""
    ada = await home.person(background=False)
    host = home.places[0].host
    await ada.create("notes", {"title": "One"})
    await ada.sync_now()
    kit = await ada.security.new_recovery_code()
    again = await host.recover("ada", kit.code, "a second password")
    assert again is not ada
    with pytest.raises(Locked):
        await ada.list("notes")
    assert [view.text("title") for view in await again.list("notes")] == ["One"]
    other = home.place(background=False).host
    there = await other.recover("ada", kit.code, "a third password")
    assert [view.text("title") for view in await there.list("notes")] == ["One"]
    await other.lock(there.account_id)
    assert await other.sign_in("ada", "a third password")


async def test_a_mode_that_does_not_exist_is_refused(home: Household) -> None:
    """Nobody gets a weaker account than the one that they asked for."""
    with pytest.raises(Invalid):
        await home.place().host.sign_up("ada", PASSWORD, display_name="Ada", mode="open")
