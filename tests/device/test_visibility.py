"""Private records of a shared space: for their author alone, whatever is done with them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import httpx
import msgspec
import pytest

from mana.device.desk import Device
from mana.device.errors import (
    ChangeRefused,
    NotYourRecord,
    Offline,
    PrivateKeyMissing,
    ReadOnlyHere,
    VisibilityFixed,
)
from mana.device.opened import InputPrivate
from mana.domain.clock import iso_ms, next_stamp, parse_stamp
from mana.domain.errors import ManaError
from mana.domain.iterations import JOURNAL
from mana.domain.missions import InputRef
from mana.domain.records import Record, Visibility
from mana.planning.ports import Model
from mana.protocol.errors import HubBehind
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    LoggedChange,
    PullAnswer,
    PushAnswer,
    PushRequest,
    PushResult,
)
from mana.protocol.replication import HubDistrusted
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import (
    Household,
    household,
    let_in,
    operations,
    shared_space,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def two(home: Household, *, model: Model | None = None) -> tuple[Device, Device]:
    """Return Ada and Bob in a team of theirs; the model is Ada's device's."""
    ada, bob = await home.person("ada", model=model), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    return ada.in_space(space), bob.in_space(space)


async def proposed(ada: Device, planner: ScriptedModel) -> tuple[str, str]:
    """Return a task, and a proposal of Ada's agent to complete it."""
    task = await ada.create("tasks", {"title": "Open"})
    agent = await ada.create_agent("Mira")
    inputs = [InputRef("todo", "tasks", task)]
    mission = await ada.create_mission("R", "L", agent_id=agent, inputs=inputs, runs_on="device")
    planner._replies += [says("", calling("complete_task", {"taskId": task})), says("Done.")]
    await ada.run_now(mission)
    (proposal,) = await ada.inbox()
    return task, proposal.step_id


async def both(*devices: Device) -> None:
    """Bring what everybody wrote to everybody."""
    for _ in range(2):
        for device in devices:
            await device.sync_now()


async def shown(device: Device) -> dict[str, str]:
    """Return the titles of the live notes by visibility and title."""
    return {view.text("title"): view.visibility for view in await device.list("notes")}


async def classes(device: Device, table: str, record_id: str) -> set[str]:
    """Return the key classes of the sealed values of a record."""
    record = await operations(device).opened.book.record(table, record_id)
    assert record is not None
    values = [entry.value for entry in record.entries.values()]
    return {value[6] for value in values if isinstance(value, str) and value.startswith("enc:2:")}


async def test_a_private_record_is_its_authors_alone(home: Household) -> None:
    """It is sealed under the author's own key from the start and reaches no other member."""
    ada, bob = await two(home)
    secret = await ada.create("notes", {"title": "Gift for Bob"}, visibility="private")
    await ada.create("notes", {"title": "Agenda"})
    await both(ada, bob)
    assert await shown(ada) == {"Gift for Bob": "private", "Agenda": "space"}
    assert await shown(bob) == {"Agenda": "space"}
    assert await classes(ada, "notes", secret) == {"p"}
    again = (await home.second("ada")).in_space(ada.space_id)
    await again.sync_now()
    assert await shown(again) == {"Gift for Bob": "private", "Agenda": "space"}


async def test_an_edit_of_a_private_record_keeps_it_private(home: Household) -> None:
    """Edits, deletion, restoring and tools of the person stay under the author's own key."""
    ada, bob = await two(home)
    task = await ada.create("tasks", {"title": "Secret"}, visibility="private")
    await ada.edit("tasks", task, {"title": "Still secret"})
    await ada.delete("tasks", task)
    await ada.restore("tasks", task)
    await ada.use_tool("complete_task", {"taskId": task})
    await both(ada, bob)
    assert await classes(ada, "tasks", task) == {"p"}
    assert (await ada.get("tasks", task)).text("title") == "Still secret"
    assert await bob.list("tasks", include_deleted=True) == []


async def test_a_flip_takes_and_gives_the_whole_record(home: Household) -> None:
    """Made private, it is gone from the others; shared again, they have all of it, edits too."""
    ada, bob = await two(home)
    note = await ada.create("notes", {"title": "Plan", "content": "one"})
    await both(ada, bob)
    await bob.edit("notes", note, {"content": "two"})
    await both(bob, ada)
    await ada.set_visibility("notes", note, "private")
    await both(ada, bob)
    assert await shown(ada) == {"Plan": "private"}
    assert await shown(bob) == {}
    assert await classes(ada, "notes", note) == {"p"}
    await ada.edit("notes", note, {"content": "three"})
    await ada.set_visibility("notes", note, "space")
    await both(ada, bob)
    assert await classes(ada, "notes", note) == {"s"}
    view = await bob.get("notes", note)
    assert (view.text("title"), view.text("content")) == ("Plan", "three")
    assert (view.author_id, view.visibility) == (ada.account_id, "space")


async def test_a_flip_is_done_again_on_what_stands_by_then(home: Household) -> None:
    """An edit that comes between reading and flipping is taken along, not lost."""
    ada, bob = await two(home)
    note = await ada.create("notes", {"title": "Plan", "content": "one"})
    await both(ada, bob)
    wire = home.places[0].wire
    before = wire.on_request
    pushes = 0

    async def overtake(request: httpx.Request, under: httpx.AsyncBaseTransport) -> object:
        nonlocal pushes
        if request.method == "POST" and request.url.path.endswith("/changes"):
            pushes += 1
            if pushes == 1:
                await bob.edit("notes", note, {"content": "two"})
                await bob.sync_now()
        return await before(request, under) if before is not None else None

    wire.on_request = overtake
    await ada.set_visibility("notes", note, "private")
    assert pushes == 2
    assert await shown(ada) == {"Plan": "private"}
    assert (await ada.get("notes", note)).text("content") == "two"
    assert await ada.refused() == []


async def test_a_flip_ends_where_others_never_stop_writing(home: Household) -> None:
    """After a few tries it says that it was refused; nothing waits, and the record is as it was."""
    ada, bob = await two(home)
    note = await ada.create("notes", {"title": "Plan", "content": "one"})
    await both(ada, bob)
    wire = home.places[0].wire
    before = wire.on_request
    pushes = 0

    async def overtake(request: httpx.Request, under: httpx.AsyncBaseTransport) -> object:
        nonlocal pushes
        if request.method == "POST" and request.url.path.endswith("/changes"):
            pushes += 1
            await bob.edit("notes", note, {"content": f"edit {pushes}"})
            await bob.sync_now()
        return await before(request, under) if before is not None else None

    wire.on_request = overtake
    with pytest.raises(ChangeRefused) as refused:
        await ada.set_visibility("notes", note, "private")
    assert refused.value.detail["reason"] == "flip-outdated"
    assert pushes == 4
    wire.on_request = before
    await both(ada, bob)
    assert await shown(ada) == await shown(bob) == {"Plan": "space"}
    assert (await ada.status()).sync.waiting == 0


async def test_only_the_author_changes_who_sees_a_record(home: Household) -> None:
    """Another member, a viewer, an offline device and a table that decides are refused."""
    ada, bob = await two(home)
    note = await ada.create("notes", {"title": "Plan"})
    await both(ada, bob)
    with pytest.raises(NotYourRecord):
        await bob.set_visibility("notes", note, "private")
    home.places[0].wire.is_cut = True
    with pytest.raises(Offline):
        await ada.set_visibility("notes", note, "private")
    home.places[0].wire.is_cut = False
    await both(ada, bob)
    assert await shown(ada) == await shown(bob) == {"Plan": "space"}
    eve = await home.person("eve")
    await let_in(ada, ada.space_id, eve, "viewer")
    watching = eve.in_space(ada.space_id)
    with pytest.raises(ReadOnlyHere):
        await watching.create("notes", {"title": "x"}, visibility="private")


async def test_nothing_is_private_where_nobody_else_is(home: Household) -> None:
    """In a space of one person private says nothing, and is refused with that word."""
    ada = await home.person("ada")
    with pytest.raises(VisibilityFixed):
        await ada.create("notes", {"title": "x"}, visibility="private")
    note = await ada.create("notes", {"title": "x"})
    with pytest.raises(VisibilityFixed):
        await ada.set_visibility("notes", note, "private")
    assert await classes(ada, "notes", note) == {"s"}


async def test_without_a_private_key_nothing_private_is_written(home: Household) -> None:
    """A member whose own key is not made yet hears so; nothing is sealed under the space's."""
    ada, bob = await two(home)
    vault = operations(bob).opened.book.inner().vault
    vault.spaces[bob.space_id] = replace(vault.space(bob.space_id), private_keys={})
    with pytest.raises(PrivateKeyMissing):
        await bob.create("notes", {"title": "x"}, visibility="private")
    assert await bob.list("notes") == []
    await bob.create("notes", {"title": "y"})
    await both(bob, ada)
    assert await shown(ada) == {"y": "space"}


async def test_the_journal_of_a_private_record_is_private(home: Household) -> None:
    """What an agent changed in a private record is journalled for its author alone, and undone."""
    planner = ScriptedModel()
    ada, bob = await two(home, model=planner)
    task, step = await proposed(ada, planner)
    await ada.set_visibility("tasks", task, "private")
    (again,) = await ada.inbox()
    assert again.moved
    await ada.approve(step)
    await both(ada, bob)
    (entry,) = await operations(ada).opened.book.views(JOURNAL.name)
    assert entry.visibility == "private"
    assert await classes(ada, JOURNAL.name, entry.id) == {"p"}
    assert await operations(bob).opened.book.views(JOURNAL.name) == []
    await ada.revert(f"step:{step}")
    await both(ada, bob)
    assert await classes(ada, "tasks", task) == {"p"}
    entries = await operations(ada).opened.book.views(JOURNAL.name)
    assert {view.visibility for view in entries} == {"private"}
    assert await operations(bob).opened.book.views(JOURNAL.name) == []


async def test_a_flip_takes_the_authors_journal_along(home: Household) -> None:
    """Before-images follow a record into privacy, and stay private when it is shared again."""
    planner = ScriptedModel()
    ada, bob = await two(home, model=planner)
    task, step = await proposed(ada, planner)
    await ada.approve(step)
    await both(ada, bob)
    (entry,) = await operations(bob).opened.book.views(JOURNAL.name)
    assert entry.visibility == "space"
    flips: tuple[Visibility, ...] = ("private", "space")
    for visibility in flips:
        await ada.set_visibility("tasks", task, visibility)
        await both(ada, bob)
        (own,) = await operations(ada).opened.book.views(JOURNAL.name)
        assert own.visibility == "private"
        assert await operations(bob).opened.book.views(JOURNAL.name) == []
    await ada.revert(f"step:{step}")
    await both(ada, bob)
    assert not (await bob.get("tasks", task)).values.get("isCompleted")


async def test_a_private_record_is_no_input_of_a_shared_mission(home: Household) -> None:
    """It is not offered, not taken, not granted, and not read by a run that had it before."""
    planner = ScriptedModel([says("Nothing."), says("Nothing.")])
    ada = await home.person("ada", model=planner)
    ada = ada.in_space(await shared_space(ada))
    open_note = await ada.create("notes", {"title": "Open", "content": "for all"})
    hidden = await ada.create("notes", {"title": "Mine", "content": "HIDDEN"}, visibility="private")
    refs = [ref.id for ref, _ in await ada.inputs()]
    assert (open_note in refs, hidden in refs) == (True, False)
    agent = await ada.create_agent("Mira")
    with pytest.raises(InputPrivate):
        await ada.create_mission(
            "R", "L", agent_id=agent, inputs=[InputRef("notes", "notes", hidden)]
        )
    mission = await ada.create_mission(
        "R", "L", agent_id=agent, inputs=[InputRef("notes", "notes", open_note)], runs_on="device"
    )
    await ada.sync_now()
    await ada.set_visibility("notes", open_note, "private")
    await ada.run_now(mission)
    assert "for all" not in str(planner.requests)
    with pytest.raises(InputPrivate):
        await ada.consent(mission)


async def test_a_grant_of_a_record_that_became_private_opens_nothing(home: Household) -> None:
    """The grant is shown as stale, and the runner ends with a reason instead of the text."""
    ada = await home.person("ada")
    ada = ada.in_space(await shared_space(ada))
    note = await ada.create("notes", {"title": "Offer", "content": "Send it by Friday"})
    agent = await ada.create_agent("Mira")
    mission = await ada.create_mission(
        "R", "L", agent_id=agent, inputs=[InputRef("notes", "notes", note)]
    )
    await ada.consent(mission)
    grant = await ada.grant(mission)
    assert (grant.state, grant.own) == ("active", True)
    await ada.set_visibility("notes", note, "private")
    (stale,) = await ada.grants()
    assert stale.state == "stale"
    assert "private" in stale.stale_reason
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    operations(ada).news.moved()
    (run,) = (await ada.mission(mission)).runs
    assert (run.state, run.reason) == ("skipped", "key-rotated")
    assert await ada.timeline() == []
    await ada.set_visibility("notes", note, "space")
    await ada.run_now(mission)
    await home.tick()
    operations(ada).news.moved()
    runs = (await ada.mission(mission)).runs
    assert [one.state for one in runs] == ["done", "skipped"]


async def test_what_waited_offline_follows_a_flip(home: Household) -> None:
    """An approval made offline, before another device made the record private, shows nothing."""
    planner = ScriptedModel()
    ada, bob = await two(home)
    away = (await home.second("ada", model=planner)).in_space(ada.space_id)
    task, step = await proposed(away, planner)
    await both(away, ada, bob)
    wire = home.places[2].wire
    wire.is_cut = True
    await away.approve(step)
    await ada.set_visibility("tasks", task, "private")
    wire.is_cut = False
    await both(away, ada, bob)
    assert (await ada.get("tasks", task)).values.get("completedAt")
    assert await classes(ada, "tasks", task) == {"p"}
    (entry,) = await operations(ada).opened.book.views(JOURNAL.name)
    assert (entry.visibility, await classes(ada, JOURNAL.name, entry.id)) == ("private", {"p"})
    assert await operations(bob).opened.book.views(JOURNAL.name) == []
    assert await bob.list("tasks") == []
    assert await away.refused() == []


async def test_the_last_word_written_offline_outlives_a_flip(home: Household) -> None:
    """Of two edits that wait, one older and one newer than the flip, the newer stands after."""
    ada, bob = await two(home)
    away = (await home.second("ada")).in_space(ada.space_id)
    note = await ada.create("notes", {"title": "Plan", "content": "Draft"})
    await both(away, ada, bob)
    wire = home.places[2].wire
    wire.is_cut = True
    await away.edit("notes", note, {"title": "First word"})
    await ada.set_visibility("notes", note, "private")
    await away.edit("notes", note, {"title": "Last word"})
    wire.is_cut = False
    await both(away, ada, bob)
    titles = [(await one.get("notes", note)).values["title"] for one in (away, ada)]
    assert titles == ["Last word", "Last word"]
    assert (await away.refused(), await bob.list("notes")) == ([], [])


# A hub that lies about who may see a record


def says_after(
    home: Household, place: int, space: str, forge: Callable[[PullAnswer], ChangeMessage | None]
) -> None:
    """Let the hub put a change of its own behind each page of a space's log for one device."""

    async def lie(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        path = request.url.path
        if path == "/api/v1/live":
            raise httpx.ConnectError("no live stream in this test", request=request)
        if request.method != "GET" or path != f"/api/v1/spaces/{space}/changes":
            return None
        answer = await under.handle_async_request(request)
        if answer.status_code != 200:
            return answer
        page = msgspec.json.decode(await answer.aread(), type=PullAnswer)
        made = forge(page)
        if made is None:
            return httpx.Response(200, content=msgspec.json.encode(page), request=request)
        seq = page.cursor + 1
        logged = LoggedChange(seq=seq, change=made, device_id=str(uuid.uuid4()))
        lied = msgspec.structs.replace(page, changes=[*page.changes, logged], cursor=seq)
        return httpx.Response(200, content=msgspec.json.encode(lied), request=request)

    home.places[place].wire.on_request = lie


def forged(record: Record, op: str, author: str, *, whole: bool) -> ChangeMessage:
    """Return a change that would show a record to everybody, later than all that stands."""
    newest = max(entry.at for entry in record.entries.values())
    at = str(next_stamp(parse_stamp(newest), now_ms=0))
    sealed = f"enc:2:s1:{'A' * 16}.{'A' * 64}"
    values = dict.fromkeys(record.entries, sealed) if whole else {"deletedAt": None}
    return ChangeMessage(
        change_id=str(uuid.uuid4()),
        table=record.table,
        id=record.id,
        op=op,
        fields={path: FieldWrite(value=value, at=at) for path, value in values.items()},
        actor={"kind": "user", "principalId": author},
        origin="user",
        author_id=author,
        visibility="space",
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("op", "by_author"), [("flip", True), ("flip", False), ("update", True), ("update", False)]
)
async def test_a_hub_shows_nobody_what_its_author_keeps(
    home: Household, op: str, by_author: bool, whole: bool
) -> None:
    """No change that the hub makes up has the author's device seal the next edit for everybody."""
    ada, bob = await two(home)
    account = {one: operations(one).opened.account_id for one in (ada, bob)}
    note = await ada.create("notes", {"title": "Gift", "isPinned": True}, visibility="private")
    await both(ada, bob)
    record = await operations(ada).opened.book.record("notes", note)
    assert record is not None
    lie = forged(record, op, account[ada if by_author else bob], whole=whole)
    told: list[str] = []

    def once(page: PullAnswer) -> ChangeMessage | None:
        told.append(lie.change_id)
        return lie if len(told) == 1 else None

    says_after(home, 0, ada.space_id, once)
    try:
        await ada.sync_now()
    except HubDistrusted:
        assert op == "flip"
    except HubBehind:
        pass  # what the device does by itself took the lie first; then the log is too short for it
    assert (await ada.get("notes", note)).visibility == "private"
    await ada.edit("notes", note, {"title": "Bigger gift", "content": "a boat"})
    record = await operations(ada).opened.book.record("notes", note)
    assert record is not None
    for path in ("title", "content"):
        assert str(record.entries[path].value).startswith("enc:2:p")


async def test_an_old_flip_that_is_shown_again_counts_for_nothing(home: Household) -> None:
    """Shared once, and private again: the signed word of then does not open what is now."""
    ada, bob = await two(home)
    note = await ada.create("notes", {"title": "Gift"}, visibility="private")
    await ada.set_visibility("notes", note, "space")
    await both(ada, bob)
    pages: list[PullAnswer] = []

    def keep(page: PullAnswer) -> ChangeMessage | None:
        pages.append(page)
        return None

    second = (await home.second("ada")).in_space(ada.space_id)
    says_after(home, 2, ada.space_id, keep)
    await ada.set_visibility("notes", note, "private")
    await ada.set_visibility("notes", note, "space")
    await both(ada, second)
    (old,) = [
        one.change
        for page in pages
        for one in page.changes
        if one.change.op == "flip" and one.change.visibility == "space"
    ]
    await ada.set_visibility("notes", note, "private")
    await both(ada, second)
    says_after(home, 2, ada.space_id, lambda page: old)
    await second.sync_now()
    assert (await second.get("notes", note)).visibility == "private"
    await second.edit("notes", note, {"title": "Bigger gift"})
    assert await classes(second, "notes", note) == {"p"}


async def test_what_waits_private_is_not_made_everybodys(home: Household) -> None:
    """A hub that says of an unsent private record that it is shared already is not believed."""
    ada, _ = await two(home)
    await ada.sync_now()
    note = await ada.create("notes", {"title": "Gift"}, visibility="private")
    record = await operations(ada).opened.book.record("notes", note)
    assert record is not None
    lie = forged(record, "insert", operations(ada).opened.account_id, whole=True)
    says_after(home, 0, ada.space_id, lambda page: lie)
    wire = home.places[0].wire
    pages = wire.on_request
    pushed: list[ChangeMessage] = []

    async def refuse(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method != "POST" or not request.url.path.endswith("/changes"):
            assert pages is not None
            answer: httpx.Response | None = await pages(request, under)
            return answer
        asked = msgspec.json.decode(await request.aread(), type=PushRequest)
        pushed.extend(asked.changes)
        said = PushAnswer(
            results=[
                PushResult(change_id=one.change_id, status="refused", code="stale-key")
                for one in asked.changes
            ],
            cursor=0,
            hub_time=iso_ms(home.clock()),
        )
        return httpx.Response(200, content=msgspec.json.encode(said), request=request)

    wire.on_request = refuse
    with pytest.raises(ManaError):
        await ada.sync_now()
    assert {one.visibility for one in pushed} == {"private"}
    assert (await ada.get("notes", note)).visibility == "private"
    await ada.edit("notes", note, {"content": "a boat"})
    record = await operations(ada).opened.book.record("notes", note)
    assert record is not None
    assert str(record.entries["content"].value).startswith("enc:2:p")
