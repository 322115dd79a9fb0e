"""Sync of many spaces: each by itself, and each under the keys that stand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.device.views import Notice
from mana.domain.changes import ChangeKind
from mana.domain.errors import ManaError, NotFound
from mana.hub.app import serve
from mana.protocol.messages import PushRequest
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import HANGS_S, Rig, note, rig_on, titles, write
from tests.hub.client import START_MS

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_a_shared_space_is_synced_beside_the_own_ones(rig: Rig) -> None:
    """What one member writes in a shared space another reads, and nothing of the own space."""
    ada = await rig.machine().sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    await note(ours, "n1", title="before bob")
    await note(ada, "n2", title="ada's own")
    await ada.sync_now()
    theirs = await shared.join(ours, bob)
    await bob.sync_now()
    assert await titles(theirs) == {"n1": "before bob"}
    await note(theirs, "n3", title="by bob")
    await bob.sync_now()
    await ada.sync_now()
    assert await titles(ours) == {"n1": "before bob", "n3": "by bob"}
    assert await titles(ada) == {"n2": "ada's own"}
    assert await titles(bob) == {}


async def test_a_space_that_fails_does_not_stop_the_others(rig: Rig) -> None:
    """A refused space is named with its trouble; every other one is pushed and pulled."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    ours = await shared.found(ada)
    await ada.sync_now()
    await note(ours, "n1", title="stuck")
    await note(ada, "n2", title="goes on")
    await ada.commit([write(ada, "userSettings", "settings-global", {"displayName": "Ada"})])

    async def broken(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if ours.space in request.url.path and request.url.path.endswith("/changes"):
            body = {"code": "HUB_BEHIND", "title": "no", "status": 409}
            return httpx.Response(409, json=body, request=request)
        return None

    machine.wire.on_request = broken
    with pytest.raises(ManaError) as failure:
        await ada.sync_now()
    assert failure.value.code == "HUB_BEHIND"
    status = await ada.status()
    assert (status.waiting, status.troubles) == (1, {ours.space: "HUB_BEHIND"})
    machine.wire.on_request = None
    assert (await ada.sync_now()).troubles == {}
    assert (await ada.status()).waiting == 0


async def test_a_spaces_answer_that_is_not_believed_stops_no_space(rig: Rig) -> None:
    """A hub that hides a space is shown as distrusted; what is verified is synced on."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    ours = await shared.found(ada)
    await ada.sync_now()
    await note(ours, "n1", title="goes on")

    async def hide(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method != "GET" or request.url.path != "/api/v1/spaces":
            return None
        response = await under.handle_async_request(request)
        body = msgspec.json.decode(await response.aread())
        body["spaces"] = [one for one in body["spaces"] if one["spaceId"] != ours.space]
        return httpx.Response(200, json=body, request=request)

    machine.wire.on_request = hide
    with pytest.raises(ManaError) as failure:
        await ada.sync_now()
    assert failure.value.code == "HUB_DISTRUSTED"
    status = await ada.status()
    assert (status.waiting, status.trouble) == (0, "HUB_DISTRUSTED")
    assert ours.space in ada.inner().vault.spaces


async def test_what_waits_for_a_space_that_was_left_is_parked(rig: Rig) -> None:
    """Removed in the middle of writing: it is shown as parked, what was here stays readable."""
    ada = await rig.machine().sign_up("ada")
    bob_machine = rig.machine()
    bob = await bob_machine.sign_up("bob")
    ours = await shared.found(ada)
    await note(ours, "n1", title="shared")
    await ada.sync_now()
    theirs = await shared.join(ours, bob)
    await bob.sync_now()
    await note(theirs, "n1", title="too late")
    await shared.remove(ours, bob.account_id)
    status = await bob.sync_now()
    assert (status.waiting, status.refused, status.troubles) == (0, 1, {})
    assert [one.code for one in await bob.refused()] == ["not-a-member"]
    assert await titles(theirs) == {"n1": "shared"}
    with pytest.raises(ManaError):
        await note(theirs, "n2", title="no")
    await bob.lock()
    again = await bob_machine.sign_in("bob")
    assert await titles(again.in_space(ours.space)) == {"n1": "shared"}
    await again.inner().syncer.forget_space(ours.space)
    with pytest.raises(NotFound):
        again.in_space(ours.space)
    assert await again.refused() == []
    await again.lock()
    last = await bob_machine.sign_in("bob")
    assert ours.space not in last.inner().vault.spaces
    assert (await last.sync_now()).troubles == {}


async def test_what_waits_under_an_old_key_is_sealed_anew(rig: Rig) -> None:
    """After a rotation an offline edit is re-sealed with its stamp, and stands; nothing is parked."""
    ada = await rig.machine().sign_up("ada")
    machine = rig.machine()
    bob = await machine.sign_up("bob")
    ours = await shared.found(ada)
    await note(ours, "n1", title="one", content="one")
    await ada.sync_now()
    theirs = await shared.join(ours, bob)
    await bob.sync_now()
    await note(theirs, "n1", title="offline")
    await theirs.commit([write(theirs, "agents", "a1", {"name": "Mira", "state": "active"})])
    before = await theirs.record("notes", "n1")
    await shared.rotate(ours)
    status = await bob.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    after = await theirs.record("notes", "n1")
    assert before is not None
    assert after is not None
    assert after.entries["title"].at == before.entries["title"].at
    assert str(after.entries["title"].value).startswith("enc:2:s2:")
    pushes = [path for method, path, _ in machine.wire.seen if method == "POST"]
    assert len([path for path in pushes if path.endswith(f"{ours.space}/changes")]) == 1
    await ada.sync_now()
    assert await titles(ours) == {"n1": "offline"}
    assert await ours.is_verified("agents", "a1")


async def test_a_key_that_passes_while_a_change_is_under_way(rig: Rig) -> None:
    """Rotated between reading the spaces and the push: refused once, sealed anew, in its order."""
    ada = await rig.machine().sign_up("ada")
    machine = rig.machine()
    bob = await machine.sign_up("bob")
    ours = await shared.found(ada)
    await note(ours, "n1", title="one")
    await ada.sync_now()
    theirs = await shared.join(ours, bob)
    await bob.sync_now()
    await note(theirs, "n1", title="first")
    await note(theirs, "n1", title="second")
    await theirs.commit([write(theirs, "agents", "a1", {"name": "Mira", "state": "active"})])
    pushes: list[list[str]] = []

    async def rotate(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method == "POST" and request.url.path.endswith(f"{ours.space}/changes"):
            if not pushes:
                await shared.rotate(ours)
            sent = msgspec.json.decode(request.content, type=PushRequest)
            pushes.append([one.change_id for one in sent.changes])
        return None

    machine.wire.on_request = rotate
    status = await bob.sync_now()
    assert (status.waiting, status.refused, status.troubles) == (0, 0, {})
    assert len(pushes) == 2
    assert pushes[0] == pushes[1]
    await ada.sync_now()
    assert await titles(ours) == {"n1": "second"}
    assert await ours.is_verified("agents", "a1")


async def test_an_answer_that_was_overtaken_is_asked_for_again(rig: Rig) -> None:
    """What this process learned of a space while the hub answered is no sign of a forgetful hub."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    ours = await shared.found(ada)
    await ada.sync_now()
    asked = 0

    async def overtake(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        nonlocal asked
        if request.method == "GET" and request.url.path == "/api/v1/spaces":
            asked += 1
            if asked == 1:
                answer = await under.handle_async_request(request)
                body = await answer.aread()
                await shared.rotate(ours)
                return httpx.Response(200, content=body, request=request)
        return None

    machine.wire.on_request = overtake
    status = await ada.sync_now()
    assert (asked, status.trouble) == (2, "")
    assert ours.keys.version == 2


async def test_what_cannot_be_sealed_anew_is_parked_in_the_end(rig: Rig) -> None:
    """A hub that calls every key stale is asked a few times, then the change is shown as parked."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    await ada.sync_now()
    pushed = 0

    async def stale(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        nonlocal pushed
        if request.method != "POST" or not request.url.path.endswith("/changes"):
            return None
        pushed += 1
        sent = msgspec.json.decode(request.content, type=PushRequest)
        body = {
            "results": [
                {"changeId": one.change_id, "status": "refused", "code": "stale-key"}
                for one in sent.changes
            ],
            "cursor": 0,
            "hubTime": "2026-11-18T11:06:40.000Z",
        }
        return httpx.Response(200, json=body, request=request)

    machine.wire.on_request = stale
    await note(ada, "n1", title="x")
    status = await ada.sync_now()
    assert (status.waiting, status.refused, pushed) == (0, 1, 6)
    assert [one.code for one in await ada.refused()] == ["stale-key"]


async def test_an_id_that_another_account_used_is_changed(rig: Rig) -> None:
    """A change whose id is taken goes again under another, once, and stands."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    taken = "00000000-0000-4000-8000-0000000000c1"
    await theirs.commit([write(theirs, "notes", "n1", {"title": "bob"}, change_id=taken)])
    await bob.sync_now()
    await ours.commit([write(ours, "agents", "a1", {"name": "Mira"}, change_id=taken)])
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    await bob.sync_now()
    view = await theirs.view("agents", "a1")
    assert view is not None
    assert view.text("name") == "Mira"
    assert await theirs.is_verified("agents", "a1")


async def test_another_members_change_of_the_same_id_loses_nothing(rig: Rig) -> None:
    """A pulled change acknowledges a waiting one of its id only if this device pushed it."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    await ada.sync_now()
    taken = "00000000-0000-4000-8000-0000000000c2"
    await ours.commit([write(ours, "notes", "n1", {"title": "ada"}, change_id=taken)])
    await theirs.commit([write(theirs, "notes", "n1", {"title": "bob"}, change_id=taken)])
    await bob.sync_now()
    async with ada.inner().syncer._one_at_a_time:
        await ada.inner().syncer._pulling.pull(ours.space)
    assert (await ada.status()).waiting == 1
    assert (await ada.sync_now()).waiting == 0
    record = await ours.record("notes", "n1")
    assert record is not None
    await bob.sync_now()
    assert await titles(ours) == await titles(theirs)


async def test_a_token_that_ends_between_two_pages_is_renewed(rig: Rig) -> None:
    """A long pull outlives its access token, and misses and doubles nothing."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    there = await second.sign_in()
    await there.sync_now()
    for start in range(0, 1_200, 400):
        await here.commit(
            [
                write(here, "notes", f"n{number}", {"color": "red"})
                for number in range(start, start + 400)
            ]
        )
        await here.sync_now()

    asked: set[str] = set()

    async def age(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        if request.method == "GET" and str(request.url) not in asked:
            asked.add(str(request.url))
            rig.served.clock.now_ms += 16 * 60 * 1_000
        return None

    second.wire.on_request = age
    await there.sync_now()
    assert len(await there.views("notes")) == 1_200


async def test_a_page_that_is_too_large_is_asked_for_in_parts(rig: Rig) -> None:
    """A hub that cannot answer so many changes at once is asked for fewer, down to one."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    there = await second.sign_in()
    await there.sync_now()
    for number in range(9):
        await note(here, f"n{number}", title=f"t{number}")
    await here.sync_now()

    async def choke(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        is_pull = request.method == "GET" and request.url.path.endswith("/changes")
        if is_pull and int(request.url.params["limit"]) > 4:
            body = {"code": "TOO_LARGE", "title": "no", "status": 413}
            return httpx.Response(413, json=body, request=request)
        return None

    second.wire.on_request = choke
    await there.sync_now()
    assert len(await titles(there)) == 9


async def test_spaces_are_followed_by_the_hook(rig: Rig) -> None:
    """What memberships ask for is done after the spaces were read, without the syncer's lock."""
    ada = await rig.machine().sign_up("ada")
    syncer = ada.inner().syncer
    calls = 0

    async def hook() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            ours = await shared.found(ada)
            await note(ours, "n1", title="by the hook")
            return True
        return False

    syncer.after_spaces = hook
    status = await ada.sync_now()
    assert (calls, status.waiting) == (2, 0)

    async def fails() -> bool:
        raise NotFound("not yet")

    syncer.after_spaces = fails
    assert (await ada.sync_now()).link == "online"


async def test_a_private_record_goes_and_comes_back(rig: Rig) -> None:
    """A record that its author hides leaves the others' devices, and is whole when it returns."""
    ada = await rig.machine().sign_up("ada")
    bob_machine = rig.machine()
    bob = await bob_machine.sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    await note(ours, "n1", title="Zugspitze", color="red")
    await note(ours, "n2", title="stays")
    await ada.sync_now()
    await bob.sync_now()
    await note(theirs, "n1", title="bob waits")
    await flip(ours, "n1", "private")
    await ada.sync_now()
    await bob.sync_now()
    assert await titles(theirs) == {"n2": "stays"}
    assert (await bob.status()).refused == 1
    await flip(ours, "n1", "space")
    await ada.sync_now()
    await bob.sync_now()
    assert await titles(theirs) == {"n1": "Zugspitze", "n2": "stays"}
    assert await theirs.record("notes", "n1") == await ours.record("notes", "n1")


@pytest.mark.parametrize("is_pulled_first", [False, True])
async def test_an_edit_follows_its_record_into_privacy(rig: Rig, is_pulled_first: bool) -> None:
    """The author's edit that waits while another device of theirs flips is sealed for the flip,
    and not beaten by it.
    """
    ada = await rig.machine().sign_up("ada")
    ours = await shared.found(ada)
    other = await rig.machine().sign_in("ada")
    await note(ours, "n1", title="one", content="one")
    await ada.sync_now()
    await other.sync_now()
    there = other.in_space(ours.space)
    await note(there, "n1", title="edited offline")
    await flip(ours, "n1", "private")
    await ada.sync_now()
    if is_pulled_first:
        syncer = other.inner().syncer
        async with syncer._one_at_a_time:
            await syncer._pulling.pull(ours.space)
        (row,) = await other.inner().replica.read(lambda tx: tx.unacknowledged())
        assert row.message.visibility == "private"
        assert str(row.message.fields["title"].value).startswith("enc:2:p")
    status = await other.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    await ada.sync_now()
    assert await titles(ours) == await titles(there) == {"n1": "edited offline"}
    record = await ours.record("notes", "n1")
    assert record == await there.record("notes", "n1")
    assert record is not None
    assert record.visibility == "private"
    for path in ("title", "content"):
        assert str(record.entries[path].value).startswith("enc:2:p")
    assert (await titles(ours)).keys() == {"n1"}


async def flip(book, record_id: str, visibility: str) -> None:
    """Write a whole note anew for another visibility, by the wire's rules."""
    inner = book.inner()
    table = inner.sealer.catalogue.table("notes")

    def work(tx) -> None:
        from mana.domain.clock import next_stamp, parse_stamp
        from mana.protocol.messages import ChangeMessage

        held = tx.held(book.space, "notes", record_id)
        record = held.record
        opened = inner.sealer.opened_paths(book.space, record)
        values = {path: opened[path] for path in record.entries}
        place = inner.sealer.place(table, record_id, visibility, record.entries, values)
        last = tx.clock(inner.sealer.device.device_id)
        newest = max(parse_stamp(entry.at).wall_ms for entry in record.entries.values())
        # Later than what others write offline meanwhile.
        stamp = next_stamp(last, now_ms=max(newest, last.wall_ms) + 30_000)
        tx.set_clock(stamp)
        draft = ChangeMessage(
            change_id=str(uuid.uuid4()),
            table="notes",
            id=record_id,
            op="flip",
            fields={},
            actor={"kind": "user", "principalId": book.account_id},
            origin="user",
            author_id=record.author_id,
            visibility=visibility,
        )
        tx.add(book.space, inner.sealer.seal(book.space, draft, place, values, stamp))

    await inner.replica.write(work)


async def test_deleting_leaves_the_other_spaces_alone(rig: Rig) -> None:
    """One id in two spaces is two records."""
    ada = await rig.machine().sign_up("ada")
    ours = await shared.found(ada)
    await note(ada, "n1", title="own")
    await note(ours, "n1", title="shared")
    await ours.commit(
        [
            write(
                ours,
                "notes",
                "n1",
                {"deletedAt": "2026-11-21T05:23:00.123Z"},
                kind=ChangeKind.DELETE,
            )
        ]
    )
    await ada.sync_now()
    assert await titles(ada) == {"n1": "own"}
    assert await titles(ours) == {}


async def test_a_record_let_go_of_comes_back_whole(rig: Rig) -> None:
    """Restored by a device that was away for long: shown with all its fields, or not at all."""
    here = await rig.machine().sign_up()
    await note(here, "n1", title="old", content="whole", color="red")
    await here.sync_now()
    there = await rig.machine().sign_in()
    await there.sync_now()
    moment = "2026-11-18T11:06:41.000Z"
    await here.commit([write(here, "notes", "n1", {"deletedAt": moment}, kind=ChangeKind.DELETE)])
    await here.sync_now()
    await there.sync_now()
    late = START_MS + 40 * 86_400_000
    replica = here.inner().replica
    await replica.write(lambda tx: tx.set_meta("hubMs", str(late)))
    assert await here.inner().syncer.tidy() == 1
    assert await here.inner().syncer.tidy() == 0
    assert await here.view("notes", "n1") is None
    await note(there, "n1", title="late edit")
    await there.sync_now()
    await here.sync_now()
    assert await here.view("notes", "n1") is None
    await there.commit([write(there, "notes", "n1", {"deletedAt": None})])
    await there.sync_now()
    await here.sync_now()
    view = await here.view("notes", "n1")
    assert view is not None
    assert (view.text("title"), view.text("content")) == ("late edit", "whole")
    assert await here.record("notes", "n1") == await there.record("notes", "n1")


async def test_tombstones_are_looked_at_once_a_day(rig: Rig) -> None:
    """Clean-up is not done again within a day of the hub's time."""
    here = await rig.machine().sign_up()
    await here.sync_now()
    syncer, replica = here.inner().syncer, here.inner().replica
    await syncer.tidy()
    first = await replica.read(lambda tx: tx.meta("tidiedMs"))
    rig.served.clock.now_ms += 3_600_000
    await here.sync_now()
    await syncer.tidy()
    assert await replica.read(lambda tx: tx.meta("tidiedMs")) == first
    rig.served.clock.now_ms += 24 * 3_600_000
    await here.sync_now()
    await syncer.tidy()
    assert await replica.read(lambda tx: tx.meta("tidiedMs")) != first


async def test_a_membership_is_heard_of_live(rig: Rig) -> None:
    """Who is let into a space sees it without waiting for a poll."""
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
        ada, bob = await first.sign_up("ada"), await second.sign_up("bob")
        ours = await shared.found(ada)
        await note(ours, "n1", title="shared")
        await ada.sync_now()
        heard: asyncio.Queue[Notice] = asyncio.Queue()
        bob.on_change(heard.put_nowait)
        await bob.start()
        while (await bob.status()).link != "online":
            await heard.get()
        invited = asyncio.create_task(shared.join(ours, bob))
        async with asyncio.timeout(HANGS_S):
            theirs = await invited
            while (await titles(theirs)) != {"n1": "shared"}:
                await heard.get()
        await shared.remove(ours, bob.account_id)
        async with asyncio.timeout(HANGS_S):
            while not theirs.keys.former:
                await heard.get()
        assert await titles(theirs) == {"n1": "shared"}
        await ada.lock()
        await bob.lock()
    finally:
        stop.set()
        await serving
        for machine in (first, second):
            await machine.wire.under.aclose()
