"""A space that is read anew: a way out where a hub was set back or lied, by which nothing goes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.device.opened import Opened
from mana.device.records import RecordBook
from mana.device.spaces import Spaces
from mana.device.writing import Flip
from mana.domain.changes import ChangeKind
from mana.protocol.errors import HubBehind
from mana.protocol.messages import PullAnswer
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected
from tests.device import shared
from tests.device.rig import Machine, Rig, note, rig_on, titles, write

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TABLES = ("sync_changes", "records", "hidden_records", "space_heads")


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def back_up(database: Database) -> None:
    """Keep what the hub holds of all logs as it is now."""
    async with connected(database.owner_url) as owner:
        for table in TABLES:
            await owner.execute(f"drop table if exists kept_{table}")
            await owner.execute(f"create table kept_{table} as select * from mana.{table}")


async def set_back(database: Database) -> None:
    """Set the hub back to what was kept."""
    async with connected(database.owner_url) as owner:
        await owner.execute("set session_replication_role = replica")
        for table in TABLES:
            await owner.execute(f"delete from mana.{table}")
        for table in TABLES[::-1]:
            await owner.execute(f"insert into mana.{table} select * from kept_{table}")


async def reread(book: RecordBook) -> None:
    await book.inner().syncer.reread([book.space])


async def held_only(book: RecordBook) -> list[tuple[str, str]]:
    return await book.held_only([book.space])


def names_a_place_that_is_none(machine: Machine) -> None:
    """Let the hub name a cursor far beyond its log."""

    async def lie(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        if request.method != "GET" or not request.url.path.endswith("/changes"):
            return None
        answer = await under.handle_async_request(request)
        body = await answer.aread()
        if answer.status_code != httpx.codes.OK:
            return httpx.Response(answer.status_code, content=body, request=request)
        page = msgspec.json.decode(body, type=PullAnswer)
        lied = msgspec.structs.replace(page, cursor=page.cursor + 50)
        return httpx.Response(200, content=msgspec.json.encode(lied), request=request)

    machine.wire.on_request = lie


async def test_a_cursor_that_was_a_lie_holds_a_space_up_no_longer(rig: Rig) -> None:
    """After the person had the space read anew, it is pushed and pulled as before."""
    machine, second = rig.machine(), rig.machine()
    book = await machine.sign_up()
    other = await second.sign_in()
    await note(book, "n1", title="first")
    names_a_place_that_is_none(machine)
    with pytest.raises(HubBehind):
        await book.sync_now()
    machine.wire.on_request = None
    await note(book, "n2", title="waits")
    with pytest.raises(HubBehind):
        await book.sync_now()
    await book.inner().syncer.reread([book.space, book.user_space])
    assert await titles(book) == {"n1": "first", "n2": "waits"}
    status = await book.status()
    assert (status.link, status.waiting, status.refused) == ("online", 0, 0)
    assert await held_only(book) == []
    await other.sync_now()
    assert await titles(other) == {"n1": "first", "n2": "waits"}
    await note(other, "n3", title="goes on")
    await other.sync_now()
    await book.sync_now()
    assert await titles(book) == {"n1": "first", "n2": "waits", "n3": "goes on"}


async def test_own_edits_that_the_hub_lost_are_sent_again(rig: Rig, database: Database) -> None:
    """What this device wrote and a hub that was set back lacks is on the hub again afterwards."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="first", content="stays")
    await note(book, "n2", title="deleted later")
    await book.sync_now()
    await back_up(database)
    await note(book, "n1", title="second")
    await note(book, "n3", title="new")
    await book.commit([write(book, "notes", "n2", {"deletedAt": "2026-11-21T05:23:00.000Z"})])
    await book.sync_now()
    before = await book.record("notes", "n1")
    await set_back(database)
    await note(book, "n4", title="waits")
    with pytest.raises(HubBehind):
        await book.sync_now()
    await reread(book)
    assert await titles(book) == {"n1": "second", "n3": "new", "n4": "waits"}
    assert await book.record("notes", "n1") == before
    status = await book.status()
    assert (status.waiting, status.refused, status.troubles) == (0, 0, {})
    assert await held_only(book) == []
    fresh = await rig.machine().sign_in()
    await fresh.sync_now()
    assert await titles(fresh) == {"n1": "second", "n3": "new", "n4": "waits"}


async def test_what_others_wrote_and_the_hub_lost_stays_and_is_named(
    rig: Rig, database: Database
) -> None:
    """It is held here only, until a device that wrote it brings it again."""
    book = await rig.machine().sign_up()
    other = await rig.machine().sign_in()
    await note(book, "n1", title="first")
    await book.sync_now()
    await back_up(database)
    await other.sync_now()
    await note(other, "n1", title="by the other device")
    await note(other, "n2", title="new there")
    await other.sync_now()
    await book.sync_now()
    await set_back(database)
    await reread(book)
    both = {"n1": "by the other device", "n2": "new there"}
    assert await titles(book) == both
    assert await held_only(book) == [("notes", "n1"), ("notes", "n2")]
    assert (await book.status()).refused == 0
    await reread(other)
    await book.sync_now()
    assert await titles(book) == await titles(other) == both
    assert await held_only(book) == []


async def test_a_hub_that_is_set_back_shows_nothing_that_was_made_private(
    rig: Rig, database: Database
) -> None:
    """A flip that the hub lost is made again; the record is private here all the time."""
    ada = await rig.machine().sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    await note(ours, "n1", title="ours")
    await ada.sync_now()
    await bob.sync_now()
    await back_up(database)
    await ours.commit([Flip("notes", "n1", "private")])
    await note(ours, "n1", title="mine alone")
    await ada.sync_now()
    await bob.sync_now()
    assert await titles(theirs) == {}
    await set_back(database)
    await reread(ours)
    (view,) = await ours.views("notes")
    assert (view.text("title"), view.visibility) == ("mine alone", "private")
    assert (await ours.status()).refused == 0
    await reread(theirs)
    fresh = (await rig.machine().sign_in("bob")).in_space
    assert await titles(fresh(ours.space)) == {}
    record = await theirs.record("notes", "n1")
    assert record is None


async def test_nobody_speaks_for_the_author_of_a_record_that_the_hub_lacks(
    rig: Rig, database: Database
) -> None:
    """An edit of another's record, which they may hide by now, waits here until they bring it."""
    ada = await rig.machine().sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    await ada.sync_now()
    await bob.sync_now()
    await back_up(database)
    await note(ours, "n1", title="by ada")
    await ada.sync_now()
    await bob.sync_now()
    await note(theirs, "n1", title="by bob")
    await bob.sync_now()
    await set_back(database)
    await reread(theirs)
    status = await theirs.status()
    assert (status.waiting, status.refused) == (0, 0)
    assert await titles(theirs) == {"n1": "by bob"}
    assert await held_only(theirs) == [("notes", "n1")]
    await reread(ours)
    await reread(theirs)
    await ada.sync_now()
    assert await titles(ours) == await titles(theirs) == {"n1": "by bob"}
    assert await held_only(theirs) == []


async def test_what_the_hub_took_and_never_showed_is_sent_again(
    rig: Rig, database: Database
) -> None:
    """A change that was acknowledged before the hub was set back is not lost with its place."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    await back_up(database)
    await note(book, "n1", title="taken")
    await book.inner().syncer.push()
    assert (await book.status()).waiting == 0
    await set_back(database)
    await reread(book)
    fresh = await rig.machine().sign_in()
    await fresh.sync_now()
    assert await titles(fresh) == await titles(book) == {"n1": "taken"}


async def test_reading_anew_waits_for_the_hub(rig: Rig, database: Database) -> None:
    """Where the hub goes away in the middle, all is still here, and the next sync goes on."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="first")
    await book.sync_now()
    machine.wire.is_cut = True
    with pytest.raises(Exception, match="hub"):
        await reread(book)
    assert await titles(book) == {"n1": "first"}
    machine.wire.is_cut = False
    await book.sync_now()
    assert await titles(book) == {"n1": "first"}
    assert await held_only(book) == []


async def test_a_guarded_value_is_not_undone_by_an_old_state(rig: Rig, database: Database) -> None:
    """Of two values of a guarded field the later one stands, and is decided again on the hub."""
    book = await rig.machine().sign_up()
    step = f"{uuid.uuid4()}-0"
    values = {"missionId": str(uuid.uuid4()), "iterationId": str(uuid.uuid4()), "status": "staged"}
    made = write(book, "aiSteps", step, values, kind=ChangeKind.CREATE, guards={"status": None})
    await book.commit([made])
    await book.sync_now()
    await back_up(database)
    decided = write(book, "aiSteps", step, {"status": "rejected"}, guards={"status": "staged"})
    await book.commit([decided])
    await book.sync_now()
    await set_back(database)
    await reread(book)
    fresh = await rig.machine().sign_in()
    await fresh.sync_now()
    for one in (book, fresh):
        view = await one.view("aiSteps", step)
        assert view is not None
        assert view.text("status") == "rejected"
    assert (await book.status()).refused == 0


async def test_the_settings_go_with_the_own_space(rig: Rig) -> None:
    """The user scope, which no page names, is read anew with the personal space."""
    machine = rig.machine()
    book = await machine.sign_up()
    names_a_place_that_is_none(machine)
    with pytest.raises(HubBehind):
        await book.sync_now()
    machine.wire.on_request = None
    with pytest.raises(HubBehind):
        await book.sync_now()
    opened = Opened(
        book=book,
        hub=book.hub,
        catalogue=book.catalogue,
        model=ScriptedModel([]),
        model_local=True,
        now_ms=machine.clock,
        new_id=book.new_id,
    )
    await Spaces(opened).reread(book.space)
    assert (await book.status()).troubles == {}
