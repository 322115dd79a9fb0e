"""Sync between devices and a real hub: nothing lost, nothing doubled, nothing blocked."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.device import syncer as syncing
from mana.device.errors import ChangeRefused, Offline, ReplicaBroken
from mana.device.replica import Replica
from mana.device.views import Notice
from mana.domain.clock import iso_ms
from mana.domain.errors import NotFound
from mana.protocol.errors import HubBehind
from mana.protocol.messages import PullAnswer, PushAnswer, PushRequest, PushResult
from mana.protocol.replication import HubDistrusted
from mana.registry.catalogue import build_catalogue
from mana.testing.postgres import Database, connected
from tests.device.rig import HANGS_S, Rig, note, rig_on, titles, write
from tests.device.test_replica_pages import Dying
from tests.hub.client import START_MS

C1 = "00000000-0000-4000-8000-0000000000c1"
G1 = "00000000-0000-4000-8000-0000000000a1"

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_two_devices_of_an_account_converge(rig: Rig) -> None:
    """Edits of different fields on two devices both stand on both, whatever the order."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    await note(here, "n1", title="plan", content="a")
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    assert await titles(there) == {"n1": "plan"}
    await note(here, "n1", title="plan B")
    await note(there, "n1", content="b")
    for book in (there, here, there):
        await book.sync_now()
    for book in (here, there):
        view = await book.view("notes", "n1")
        assert view is not None
        assert (view.text("title"), view.text("content")) == ("plan B", "b")
    ours, theirs = await here.record("notes", "n1"), await there.record("notes", "n1")
    assert ours == theirs
    assert (await here.status()).waiting == 0


async def test_a_new_device_reads_state_then_deltas(rig: Rig) -> None:
    """A device that comes later holds the same records, verified ones included."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    for number in range(5):
        await note(here, f"n{number}", title=f"t{number}")
    await here.commit([write(here, "agents", "a1", {"name": "Mira", "state": "active"})])
    await here.commit([write(here, "userSettings", "settings-global", {"displayName": "Ada"})])
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    assert await titles(there) == await titles(here)
    assert await there.is_verified("agents", "a1")
    settings = await there.view("userSettings", "settings-global")
    assert settings is not None
    assert settings.text("displayName") == "Ada"


async def test_a_lost_answer_doubles_nothing(rig: Rig) -> None:
    """A batch whose answer was lost is sent again byte for byte, and stands once."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    await note(book, "n1", title="once")

    async def lose(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method == "POST" and request.url.path.endswith("/changes"):
            await under.handle_async_request(request)
            raise httpx.ReadError("lost", request=request)
        return None

    machine.wire.on_request = lose
    with pytest.raises(Offline):
        await book.sync_now()
    assert (await book.status()).waiting == 1
    machine.wire.on_request = None
    await book.lock()
    again = await machine.sign_in()
    await note(again, "n2", title="later")
    await again.sync_now()
    pushed = [
        msgspec.json.decode(body, type=PushRequest).changes
        for method, path, body in machine.wire.seen
        if method == "POST" and path.endswith("/changes")
    ]
    assert pushed[0] == pushed[1]
    assert (await again.status()).waiting == 0
    assert await titles(again) == {"n1": "once", "n2": "later"}


async def test_a_hub_that_was_rolled_back_is_shown(rig: Rig, database: Database) -> None:
    """A hub that forgot what this device has seen is named so, and what waits here is kept."""
    book = await rig.machine().sign_up()
    await note(book, "n1", title="first")
    await note(book, "n2", title="second")
    await book.sync_now()
    async with connected(database.owner_url) as owner:
        await owner.execute("delete from mana.sync_changes where seq > 1")
        await owner.execute("delete from mana.records where seq > 1")
        await owner.execute("update mana.space_heads set seq = least(seq, 1)")
    for waiting in (0, 1):
        if waiting:
            await note(book, "n3", title="third")
        with pytest.raises(HubBehind):
            await book.sync_now()
        status = await book.status()
        assert (status.link, status.trouble) == ("refused", "HUB_BEHIND")
        assert (status.waiting, status.refused) == (waiting, 0)
    assert await titles(book) == {"n1": "first", "n2": "second", "n3": "third"}


async def test_a_crash_before_the_push_loses_nothing(rig: Rig) -> None:
    """What was committed when the process died is pushed by the next one."""
    machine, second = rig.machine(), rig.machine()
    book = await machine.sign_up()
    machine.wire.is_cut = True
    await note(book, "n1", title="kept")
    await book.lock()
    machine.wire.is_cut = False
    again = await machine.sign_in()
    await again.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    assert await titles(there) == {"n1": "kept"}


async def test_a_process_that_dies_anywhere_sends_everything_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two statements of push and pull, again and again: all stands, once."""
    monkeypatch.setattr("mana.device.accounts.Replica", functools.partial(Replica, factory=Dying))
    monkeypatch.setattr(Dying, "left", None)
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    made: list[str] = []
    for number in range(4):
        made += await note(book, f"n{number % 2}", title=f"t{number}", color="red")
    grouped = [write(book, "notes", name, {"title": name}) for name in ("g1", "g2")]
    made += await book.commit(grouped, group=G1)
    deaths, number = 0, 0
    while True:
        Dying.left = number
        try:
            await book.sync_now()
        except ReplicaBroken:
            deaths += 1
        else:
            break
        finally:
            Dying.left = None
        await book.lock()
        book = await machine.sign_in()
        number += 1
    assert deaths > 10
    assert (await book.status()).waiting == 0
    there = await rig.machine().sign_in()
    await there.sync_now()
    assert await titles(there) == await titles(book)
    assert await titles(there) == {"n0": "t2", "n1": "t3", "g1": "g1", "g2": "g2"}
    log = await there.hub.pull(there.space, 0, 1_000)
    assert [one.change.change_id for one in log.changes] == made


async def test_offline_writes_wait_and_say_so(rig: Rig) -> None:
    """Without a hub, writing works, the status tells how much waits, and reconnecting sends it."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    machine.wire.is_cut = True
    await note(book, "n1", title="offline")
    with pytest.raises(Offline):
        await book.sync_now()
    status = await book.status()
    assert (status.link, status.waiting, status.trouble) == ("offline", 1, "OFFLINE")
    machine.wire.is_cut = False
    status = await book.sync_now()
    assert (status.link, status.waiting, status.trouble) == ("online", 0, "")


async def test_a_refused_change_is_undone_where_it_still_stands(rig: Rig) -> None:
    """The hub's no takes back only the refused values; a later edit and the rest stay."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="old", content="old", color="red")
    await book.sync_now()
    (refused_id,) = await note(book, "n1", title="refused", content="refused")
    await note(book, "n1", content="later")
    machine.wire.on_request = _refusing(refused_id, "role")
    await book.sync_now()
    view = await book.view("notes", "n1")
    assert view is not None
    assert (view.text("title"), view.text("content")) == ("old", "later")
    (parked,) = await book.refused()
    assert (parked.change_id, parked.code, parked.title) == (refused_id, "role", "old")
    assert (await book.status()).refused == 1
    machine.wire.on_request = None
    await book.retry_refused(refused_id)
    await book.sync_now()
    view = await book.view("notes", "n1")
    assert view is not None
    assert (view.text("title"), view.text("content")) == ("refused", "later")
    assert await book.refused() == []


async def test_a_refused_new_record_vanishes(rig: Rig) -> None:
    """A record that the hub never took is gone once its change is parked, and after dropping."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    (change_id,) = await note(book, "n1", title="nowhere")
    machine.wire.on_request = _refusing(change_id, "role")
    await book.sync_now()
    assert await book.view("notes", "n1") is None
    (parked,) = await book.refused()
    assert parked.title == "nowhere"
    await book.drop_refused(change_id)
    assert await book.refused() == []
    with pytest.raises(NotFound):
        await book.drop_refused(change_id)


async def test_a_waiting_caller_hears_the_refusal(rig: Rig) -> None:
    """`wait` raises with the hub's reason, and leaves neither the write nor a parked change."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    planned = write(book, "notes", "n1", {"title": "x"}, change_id=C1)
    machine.wire.on_request = _refusing(C1, "role")
    with pytest.raises(ChangeRefused) as failure:
        await book.commit([planned], wait=True)
    assert failure.value.detail["reason"] == "role"
    assert await book.view("notes", "n1") is None
    assert await book.refused() == []
    machine.wire.on_request = None
    await book.commit([planned], wait=True)
    assert await titles(book) == {"n1": "x"}


async def test_a_change_id_counts_once(rig: Rig) -> None:
    """Committing a change id again does nothing, here and on another device that saw it."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    await here.commit([write(here, "notes", "n1", {"title": "one"}, change_id=C1)])
    await here.commit([write(here, "notes", "n1", {"title": "two"}, change_id=C1)])
    assert await titles(here) == {"n1": "one"}
    there = await second.sign_in()
    await there.sync_now()
    await here.sync_now()
    await there.sync_now()
    await there.commit([write(there, "notes", "n1", {"title": "three"}, change_id=C1)])
    assert await titles(there) == {"n1": "one"}
    assert (await there.status()).waiting == 0


async def test_the_first_of_two_equal_change_ids_wins(rig: Rig) -> None:
    """Two devices that made the same decision offline converge on the one the hub took."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    await here.commit([write(here, "notes", "n1", {"title": "here"}, change_id=C1)])
    await there.commit([write(there, "notes", "n1", {"title": "there"}, change_id=C1)])
    for book in (here, there, here):
        await book.sync_now()
    assert await titles(here) == await titles(there) == {"n1": "here"}


async def test_a_clock_ahead_is_corrected_and_told(rig: Rig) -> None:
    """A change stamped in the future is stamped anew by the hub's time and accepted."""
    machine, second = rig.machine(), rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    machine.clock.now_ms = START_MS + 3_600_000
    await note(book, "n1", title="ahead")
    await book.commit([write(book, "agents", "a1", {"name": "Mira"})])
    status = await book.sync_now()
    assert (status.waiting, status.refused, status.trouble) == (0, 0, "CLOCK_AHEAD")
    view = await book.view("notes", "n1")
    assert view is not None
    assert view.text("title") == "ahead"
    assert view.written_at < "2026-11-18T12:00"
    assert await book.is_verified("agents", "a1")
    await note(book, "n1", title="again")
    assert (await book.sync_now()).waiting == 0
    there = await second.sign_in()
    await there.sync_now()
    assert await titles(there) == {"n1": "again"}
    machine.clock.now_ms = START_MS + 1_000
    assert (await book.sync_now()).trouble == ""


async def test_a_new_stamp_comes_after_what_the_hub_has_just_taken(rig: Rig) -> None:
    """An edit that is stamped anew stays later than one that was ahead by less than is allowed."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="draft")
    await book.sync_now()
    machine.clock.now_ms = START_MS + 200_000
    await note(book, "n1", title="first")
    machine.clock.now_ms = START_MS + 3_600_000
    await note(book, "n1", title="last")
    await book.sync_now()
    assert await titles(book) == {"n1": "last"}
    second = await rig.machine().sign_in()
    await second.sync_now()
    assert await titles(second) == {"n1": "last"}


async def test_one_bad_change_does_not_hold_up_the_others(rig: Rig) -> None:
    """If the hub takes nothing of a batch, the change at fault is parked and the rest goes on."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    await note(book, "n1", title="a")
    (bad,) = await note(book, "n2", title="b")
    await note(book, "n3", title="c")

    async def choke(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method == "POST" and bad.encode() in request.content:
            body = {"code": "BAD_REQUEST", "title": "no", "status": 400}
            return httpx.Response(400, json=body, request=request)
        return None

    machine.wire.on_request = choke
    await book.sync_now()
    assert await titles(book) == {"n1": "a", "n3": "c"}
    assert [one.change_id for one in await book.refused()] == [bad]


@pytest.mark.parametrize("fault", ["backwards", "ahead", "table", "cursor", "stamp"])
async def test_a_hostile_page_leaves_no_trace(rig: Rig, fault: str) -> None:
    """A page that no honest hub sends is refused whole; the next honest one is taken."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    there = await second.sign_in()
    await there.sync_now()
    await note(here, "n1", title="one")
    await note(here, "n2", title="two")
    await here.sync_now()

    async def falsify(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method != "GET" or not request.url.path.endswith("/changes"):
            return None
        response = await under.handle_async_request(request)
        page = msgspec.json.decode(await response.aread())
        if page["changes"]:
            _spoil(page, fault)
        return httpx.Response(200, json=page, request=request)

    second.wire.on_request = falsify
    with pytest.raises(HubDistrusted):
        await there.sync_now()
    status = await there.status()
    assert (status.link, status.trouble) == ("refused", "HUB_DISTRUSTED")
    assert await titles(there) == {}
    second.wire.on_request = None
    await there.sync_now()
    assert await titles(there) == {"n1": "one", "n2": "two"}
    await note(there, "n3", title="three")
    assert (await there.sync_now()).trouble == ""


async def test_unknown_tables_are_kept_until_their_module_comes(rig: Rig) -> None:
    """Changes of a table that this version does not know are not lost, and sync goes on."""
    old = build_catalogue([module for module in rig.catalogue.modules if module.id != "todo"])
    first, second = rig.machine(), rig.machine(catalogue=old)
    here = await first.sign_up()
    await here.commit([write(here, "tasks", "t1", {"title": "first"})])
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    await here.commit([write(here, "tasks", "t1", {"title": "second"})])
    await note(here, "n1", title="known")
    await here.sync_now()
    await there.sync_now()
    assert await titles(there) == {"n1": "known"}
    await there.lock()
    updated = rig.machine(second.home)
    again = await updated.sign_in()
    view = await again.view("tasks", "t1")
    assert view is not None
    assert view.text("title") == "second"


async def test_a_group_is_taken_or_refused_as_a_whole(rig: Rig) -> None:
    """A refused member takes its whole group back, and all of it is shown."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.sync_now()
    await book.commit(
        [
            write(book, "notes", "n1", {"title": "a"}),
            write(book, "aiMissions", "m1", {"title": "b", "cadence": {"kind": "cron"}}),
        ],
        group=G1,
    )
    await book.sync_now()
    assert await titles(book) == {}
    assert sorted(one.code for one in await book.refused()) == [
        "cadence-refused",
        "group-refused",
    ]


async def test_another_process_is_seen(rig: Rig) -> None:
    """What another process of this machine wrote shows up here, with a notice."""
    machine = rig.machine(watch_s=0.02)
    book = await machine.sign_up()
    await book.start()
    other_process = rig.machine(machine.home, clock=machine.clock)
    other = await other_process.sign_in()
    heard: asyncio.Queue[Notice] = asyncio.Queue()
    book.on_change(heard.put_nowait)
    await note(other, "n1", title="from there")
    async with asyncio.timeout(HANGS_S):
        while "notes" not in (await heard.get()).tables:
            pass
    assert await titles(book) == {"n1": "from there"}


async def test_one_process_syncs_for_all(rig: Rig) -> None:
    """What one process of a machine wrote is pushed by the one that leads, which both report."""
    machine = rig.machine(watch_s=0.02)
    leader = await machine.sign_up()
    heard: asyncio.Queue[Notice] = asyncio.Queue()
    leader.on_change(heard.put_nowait)
    await leader.start()
    follower_machine = rig.machine(machine.home, clock=machine.clock, watch_s=0.02)
    follower = await follower_machine.sign_in()
    await follower.start()
    await note(follower, "n1", title="pushed by the other")
    async with asyncio.timeout(HANGS_S):
        while (await follower.status()).waiting or (await leader.status()).link != "online":
            await heard.get()
    assert (await follower.status()).link == "online"
    assert follower_machine.wire.seen == []
    await leader.lock()
    assert (await follower.status()).link == "offline"


async def test_sessions_survive_two_processes(rig: Rig) -> None:
    """Two processes that refresh one session take turns, and neither is signed out."""
    machine = rig.machine()
    book = await machine.sign_up()
    other = await rig.machine(machine.home, clock=machine.clock).sign_in()
    for _ in range(3):
        rig.served.clock.now_ms += 16 * 60 * 1_000
        await asyncio.gather(book.sync_now(), other.sync_now())
    assert (await book.status()).link == (await other.status()).link == "online"
    logins = [path for _, path, _ in machine.wire.seen if path.endswith("/login")]
    assert logins == []


async def test_live_notices_bring_changes_at_once(rig: Rig) -> None:
    """A device that is connected hears of another's change without waiting for its poll."""
    from mana.hub.app import serve

    stop, ready = asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(
        serve(rig.served.hub, host="127.0.0.1", port=0, ready=ready.put_nowait, stop=stop)
    )
    url = f"http://127.0.0.1:{await ready.get()}"
    first = rig.machine(hub_url=url, poll_s=600)
    second = rig.machine(hub_url=url, poll_s=600)
    for machine in (first, second):
        machine.wire.under = httpx.AsyncHTTPTransport()
    try:
        here, there = await first.sign_up(), None
        there = await second.sign_in()
        await there.sync_now()
        heard: asyncio.Queue[Notice] = asyncio.Queue()
        there.on_change(heard.put_nowait)
        await there.start()
        await here.start()
        await asyncio.sleep(0)
        await note(here, "n1", title="live")
        async with asyncio.timeout(HANGS_S):
            while (await titles(there)) != {"n1": "live"}:
                await heard.get()
        await here.lock()
        await there.lock()
    finally:
        stop.set()
        await serving
        for machine in (first, second):
            await machine.wire.under.aclose()


def _refusing(change_id: str, code: str):
    async def handle(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method != "POST" or not request.url.path.endswith("/changes"):
            return None
        sent = msgspec.json.decode(request.content, type=PushRequest)
        kept = [change for change in sent.changes if change.change_id != change_id]
        if len(kept) == len(sent.changes):
            return None
        inner = httpx.Request(
            "POST",
            request.url,
            headers={
                name: value
                for name, value in request.headers.items()
                if name.lower() != "content-length"
            },
            content=msgspec.json.encode(msgspec.structs.replace(sent, changes=kept)),
        )
        response = await under.handle_async_request(inner)
        answer = msgspec.json.decode(await response.aread(), type=PushAnswer)
        found = {result.change_id: msgspec.to_builtins(result) for result in answer.results}
        found[change_id] = {"changeId": change_id, "status": "refused", "code": code}
        body = {
            "results": [found[change.change_id] for change in sent.changes],
            "cursor": answer.cursor,
            "hubTime": answer.hub_time,
        }
        return httpx.Response(200, json=body, request=request)

    return handle


@pytest.mark.parametrize("status", ["accepted", "duplicate"])
@pytest.mark.parametrize("is_new", [False, True])
async def test_what_the_hub_claims_to_have_is_kept_until_it_shows_it(
    rig: Rig, status: str, is_new: bool
) -> None:
    """An edit that the hub says it took, and never brings in the log, is not lost by its word."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="old")
    await book.sync_now()

    async def lie(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        if not request.url.path.endswith("/changes"):
            return None
        if request.method == "POST":
            sent = msgspec.json.decode(await request.aread(), type=PushRequest)
            seen = max((sent.heads or {"": 0}).values())
            first = 1 if status == "duplicate" else seen + 1
            results = [
                PushResult(change_id=change.change_id, status=status, seq=first + place)
                for place, change in enumerate(sent.changes)
            ]
            said = PushAnswer(results=results, cursor=seen, hub_time=iso_ms(START_MS))
            return httpx.Response(200, content=msgspec.json.encode(said), request=request)
        after = int(request.url.params["after"])
        empty = PullAnswer(changes=[], cursor=after + 1, hub_time=iso_ms(START_MS))
        return httpx.Response(200, content=msgspec.json.encode(empty), request=request)

    machine.wire.on_request = lie
    name = "n2" if is_new else "n1"
    await note(book, name, title="new")
    for _ in range(10):
        await book.sync_now()
    (refused,) = await book.refused()
    assert (refused.code, refused.record_id) == ("unconfirmed", name)
    assert (await book.status()).waiting == 0
    await book.retry_refused(refused.change_id)
    assert (await titles(book))[name] == "new"


def _spoil(page: dict, fault: str) -> None:
    change = page["changes"][0]["change"]
    if fault == "backwards":
        page["changes"].reverse()
    elif fault == "ahead":
        page["changes"][0]["seq"] = 0
    elif fault == "table":
        change["table"] = "userSettings"
    elif fault == "cursor":
        page["cursor"] = 0
        page["changes"] = page["changes"]
    else:
        for write_ in change["fields"].values():
            write_["at"] = "2099-" + write_["at"][5:]


@pytest.mark.parametrize("turns", range(5))
async def test_a_stop_is_never_lost(turns: int) -> None:
    """Stopping in the very moment in which sync is woken still stops it, so that nothing waits."""
    event = asyncio.Event()
    task = asyncio.create_task(syncing._first(event, 60))
    await asyncio.sleep(0)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():
        with pytest.raises(asyncio.CancelledError):
            await task
