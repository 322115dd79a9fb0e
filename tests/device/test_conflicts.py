"""Edits that something newer overwrote: kept sealed, shown to the person, and given back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mana.device.conflicts import ConflictGone, Conflicts, label_of
from mana.device.records import RecordBook
from mana.device.views import Notice
from mana.domain.encoding import Json
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import Machine, Rig, note, rig_on, titles, write

pytestmark = pytest.mark.anyio
SECRET = "Zugspitze-Zwetschge-9471"
LATER_MS = 60_000


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def two(rig: Rig) -> tuple[Machine, RecordBook, RecordBook]:
    """Return a person's device, its book, and that of their other one; both hold note n1."""
    machine = rig.machine()
    here = await machine.sign_up()
    await note(here, "n1", title="plan", content="same")
    await here.sync_now()
    other = rig.machine()
    other.clock.now_ms += LATER_MS
    there = await other.sign_in()
    await there.sync_now()
    return machine, here, there


async def lose(here: RecordBook, there: RecordBook, **values: Json) -> None:
    """Let the other device overwrite these fields of n1 before it hears of what is written here."""
    await note(there, "n1", **values)
    await here.sync_now()
    await there.sync_now()
    await here.sync_now()


async def test_what_was_lost_is_shown_and_restored(rig: Rig) -> None:
    """The person sees both values, writes theirs again with one call, and every device agrees.

    The other device is not told: whoever restored it had both values in front of them.
    """
    _, here, there = await two(rig)
    heard: list[Notice] = []
    here.on_change(heard.append)
    await note(here, "n1", title="mine", content="mine")
    await lose(here, there, title="theirs")
    assert "conflicts" in {notice.topic for notice in heard}
    conflicts = Conflicts(here)
    (found,) = await conflicts.list()
    assert (found.record_id, found.title, found.by) == ("n1", "theirs", "you, on another device")
    assert [(one.label, one.was, one.now) for one in found.fields] == [("Title", "mine", "theirs")]
    await lose(here, there, title="newest")
    (found,) = await conflicts.list()
    assert [(one.was, one.now) for one in found.fields] == [("mine", "newest")]
    await conflicts.restore(found.conflict_id)
    assert await conflicts.list() == []
    await here.sync_now()
    await there.sync_now()
    assert await titles(here) == await titles(there) == {"n1": "mine"}
    assert await Conflicts(there).list() == []
    with pytest.raises(ConflictGone):
        await conflicts.restore(found.conflict_id)


async def test_an_edit_made_knowingly_is_no_conflict(rig: Rig) -> None:
    """Whoever had this device's edit before them, and wrote another, overwrote nothing unseen."""
    _, here, there = await two(rig)
    await note(here, "n1", title="mine")
    await here.sync_now()
    await there.sync_now()
    await note(there, "n1", title="theirs")
    await there.sync_now()
    await here.sync_now()
    assert await titles(here) == {"n1": "theirs"}
    assert await Conflicts(here).list() == []
    # Neither is there once this device did not know of theirs.
    await note(there, "n1", title="more")
    await note(here, "n1", title="blind")
    await there.sync_now()
    await here.sync_now()
    await there.sync_now()
    standing = (await titles(here))["n1"]
    assert await titles(there) == {"n1": standing}
    loser = here if standing == "more" else there
    assert len(await Conflicts(loser).list()) == 1


async def test_the_same_words_are_no_conflict(rig: Rig) -> None:
    """Two people who wrote the same under other seals have lost nothing."""
    _, here, there = await two(rig)
    await note(here, "n1", title="equal")
    await note(there, "n1", title="equal")
    await lose(here, there, title="equal")
    assert await here.inner().replica.read(lambda tx: tx.overwritten()) == []
    assert await Conflicts(here).list() == []


async def test_a_conflict_can_be_dismissed(rig: Rig) -> None:
    """A dismissed one is gone and nothing is written."""
    _, here, there = await two(rig)
    await note(here, "n1", title="mine")
    await lose(here, there, title="theirs")
    conflicts = Conflicts(here)
    (found,) = await conflicts.list()
    await conflicts.dismiss(found.conflict_id)
    assert await conflicts.list() == []
    assert await titles(here) == {"n1": "theirs"}
    with pytest.raises(ConflictGone):
        await conflicts.dismiss(found.conflict_id)


async def test_who_writes_it_anew_needs_no_notice(rig: Rig) -> None:
    """Once the person wrote the field again here, the notice is forgotten."""
    _, here, there = await two(rig)
    await note(here, "n1", title="mine")
    await lose(here, there, title="theirs")
    await note(here, "n1", title="decided")
    assert await Conflicts(here).list() == []
    assert await here.inner().replica.read(lambda tx: tx.overwritten()) == []


async def test_nothing_overwritten_lies_on_the_disk_in_plain(rig: Rig) -> None:
    """Both values of a conflict are kept as envelopes."""
    machine, here, there = await two(rig)
    await note(here, "n1", title=SECRET)
    await lose(here, there, title=f"{SECRET} too")
    (found,) = await Conflicts(here).list()
    assert found.fields[0].was == SECRET
    assert SECRET.encode() not in machine.files()


async def test_a_member_is_named_and_old_keys_still_open(rig: Rig) -> None:
    """In a shared space the other is called by their name, also after the key was replaced."""
    ada = await rig.machine().sign_up("ada")
    later = rig.machine()
    later.clock.now_ms += LATER_MS
    bob = await later.sign_up("bob")
    ours = await shared.found(ada)
    theirs = await shared.join(ours, bob)
    name = write(theirs, "spaceMembers", bob.account_id, {"displayName": "Bob B."})
    await theirs.commit([name])
    await note(ours, "n1", title="plan")
    await ada.sync_now()
    await bob.sync_now()
    await note(ours, "n1", title="mine")
    await ada.sync_now()
    await note(theirs, "n1", title="theirs")
    await bob.sync_now()
    await ada.sync_now()
    await shared.rotate(ours)
    await ada.sync_now()
    (found,) = await Conflicts(ada).list()
    assert (found.space_id, found.by) == (ours.space, "Bob B.")
    await Conflicts(ada).restore(found.conflict_id)
    await ada.sync_now()
    await bob.sync_now()
    assert await titles(theirs) == {"n1": "mine"}
    assert await titles(ada) == {}


def test_fields_are_named_as_people_do() -> None:
    """A field's name on the wire becomes words."""
    assert [label_of(name) for name in ("title", "dueDate", "tokensPerDayMax")] == [
        "Title",
        "Due date",
        "Tokens per day max",
    ]
