"""Background re-sealing: every record comes under the newest key, and nothing else moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.device.errors import Offline
from mana.device.resealing import Resealing
from mana.domain.actors import agent_at_work
from mana.domain.changes import Change, ChangeKind
from mana.domain.ids import RecordId
from mana.protocol.messages import PushRequest
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import Rig, Write, note, rig_on, titles, write

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_all_of_a_space_comes_under_the_new_key(rig: Rig) -> None:
    """Values of several writers are sealed anew with their stamps; verified records stay so."""
    ada = await rig.machine().sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    for number in range(3):
        await note(ours, f"n{number}", title=f"t{number}", content="ada's")
    await ours.commit([write(ours, "agents", "a1", {"name": "Mira", "state": "active"})])
    await ours.commit([write(ours, "notes", "p1", {"title": "private"}, visibility="private")])
    await ours.commit([write(ours, "tasks", "t1", {"title": "T", "subtasks": ["a", "b"]})])
    await ada.sync_now()
    await bob.sync_now()
    await note(theirs, "n0", title="bob's")
    change = Change("notes", RecordId("n1"), ChangeKind.UPDATE, {"content": "an agent's"})
    agent = agent_at_work("a1", "m1", "i1")
    await theirs.commit([Write(change, agent)])
    await bob.sync_now()
    await ada.sync_now()
    before = {name: await ours.record("notes", name) for name in ("n0", "n1", "n2")}
    await shared.rotate(ours)
    await ada.sync_now()
    resealing = Resealing(ada)
    progress = await resealing.progress(ours.space)
    assert (progress.version, dict(progress.shared), dict(progress.private)) == (
        2,
        {1: 5},
        {1: 1},
    )
    assert progress.share(1) == 1.0
    done = await resealing.once()
    assert done == 5
    await ada.sync_now()
    assert dict((await resealing.progress(ours.space)).shared) == {2: 5}
    assert await resealing.once() == 0
    await bob.sync_now()
    for book in (ours, theirs):
        for name, old in before.items():
            new = await book.record("notes", name)
            assert old is not None
            assert new is not None
            for path, entry in old.entries.items():
                now = new.entries[path]
                assert (now.at, now.actor, now.origin) == (entry.at, entry.actor, entry.origin)
        assert (await titles(book))["n0"] == "bob's"
        assert await book.is_verified("agents", "a1")
        view = await book.view("tasks", "t1")
        assert view is not None
        assert view.values["subtasks"] == ["a", "b"]


async def test_a_reseal_never_beats_an_edit(rig: Rig) -> None:
    """An edit that came in between stands; the re-seal is forgotten and nothing is parked."""
    ada = await rig.machine().sign_up("ada")
    bob = await rig.machine().sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    await note(ours, "n1", title="old")
    await ada.sync_now()
    await bob.sync_now()
    await shared.rotate(ours)
    await bob.sync_now()
    await note(theirs, "n1", title="newer")
    await bob.sync_now()
    resealing = Resealing(ada)
    assert await resealing.once() == 0
    status = await ada.sync_now()
    assert (status.refused, await titles(ours)) == (0, {"n1": "newer"})
    assert dict((await resealing.progress(ours.space)).shared) == {2: 1}


async def test_it_goes_on_where_it_stopped(rig: Rig) -> None:
    """Cut off in the middle, it finds what is left by the records alone, and ends complete."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    ours = await shared.found(ada)
    for start in range(0, 260, 130):
        await ours.commit(
            [write(ours, "notes", f"n{start + n:03}", {"title": "t"}) for n in range(130)]
        )
    await ada.sync_now()
    await shared.rotate(ours)
    await ada.sync_now()
    pushes = 0

    async def cut(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        nonlocal pushes
        if request.method == "POST" and request.url.path.endswith("/changes"):
            pushes += 1
            if pushes == 2:
                raise httpx.ConnectError("cut", request=request)
        return None

    machine.wire.on_request = cut
    with pytest.raises(Offline):
        await Resealing(ada).once()
    machine.wire.on_request = None
    await ada.lock()
    again = await machine.sign_in("ada")
    await again.sync_now()
    resealing = Resealing(again)
    assert (await resealing.progress(ours.space)).shared == {1: 60, 2: 200}
    assert await resealing.once() == 60
    await again.sync_now()
    assert (await resealing.progress(ours.space)).shared == {2: 260}


async def test_records_of_many_writers_fit_their_batches(rig: Rig) -> None:
    """A record takes a re-seal per writer, and no batch holds more than the hub takes."""
    ada = await rig.machine().sign_up("ada")
    ours = await shared.found(ada)
    for path in ("title", "content", "color"):
        kind, agent = ChangeKind.UPDATE, agent_at_work(path, "m1", "i1")
        notes = [RecordId(f"n{number:03}") for number in range(190)]
        await ours.commit([Write(Change("notes", one, kind, {path: "t"}), agent) for one in notes])
    await ada.sync_now()
    await shared.rotate(ours)
    await ada.sync_now()
    assert await Resealing(ada).once() == 190
    await ada.sync_now()
    assert (await Resealing(ada).progress(ours.space)).shared == {2: 190}


async def test_what_the_hub_refuses_for_good_is_not_asked_again(rig: Rig) -> None:
    """A record that the hub does not take sealed anew is left until it changes."""
    machine = rig.machine()
    ada = await machine.sign_up("ada")
    ours = await shared.found(ada)
    await note(ours, "n1", title="t")
    await ada.sync_now()
    await shared.rotate(ours)
    await ada.sync_now()
    asked = 0

    async def refuse(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        nonlocal asked
        if request.method != "POST" or not request.url.path.endswith("/changes"):
            return None
        asked += 1
        sent = msgspec.json.decode(request.content, type=PushRequest)
        body = {
            "results": [
                {"changeId": one.change_id, "status": "refused", "code": "immutable"}
                for one in sent.changes
            ],
            "cursor": 0,
            "hubTime": "2026-11-18T11:06:40.000Z",
        }
        return httpx.Response(200, json=body, request=request)

    machine.wire.on_request = refuse
    resealing = Resealing(ada)
    assert [await resealing.once() for _ in range(3)] == [0, 0, 0]
    assert asked == 1


async def test_a_viewer_and_a_former_member_seal_nothing_anew(rig: Rig) -> None:
    """Who may not write pushes no re-seal."""
    ada = await rig.machine().sign_up("ada")
    machine = rig.machine()
    bob = await machine.sign_up("bob")
    ours = await shared.found(ada)
    await note(ours, "n1", title="t")
    await ada.sync_now()
    await shared.join(ours, bob, "viewer")
    await bob.sync_now()
    await shared.rotate(ours)
    await bob.sync_now()
    machine.wire.seen.clear()
    assert await Resealing(bob).once() == 0
    assert not [path for method, path, _ in machine.wire.seen if method == "POST"]
