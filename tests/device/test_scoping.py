"""One account in many spaces: each thing in its space, each space by its own rules and keys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from mana.crypto.keys import SpaceKeyName, new_key, wrap_space_key
from mana.crypto.primitives import b64
from mana.device import membership
from mana.device.desk import Device
from mana.device.errors import (
    Locked,
    ManagersOnly,
    ModuleNotHeld,
    NotYourRecord,
    ReadOnlyHere,
    SpaceKeyMissing,
    SpaceLeft,
)
from mana.device.inbox import ProposalForOthers
from mana.device.missions import InputNotThere
from mana.device.opened import AgentNotFound, MissionNotFound
from mana.device.runner import NotRunHere
from mana.device.vault import OpenedVault, SpaceKeys, SpaceStillHeld
from mana.device.writing import Write
from mana.domain.cadences import Cadence
from mana.domain.changes import Change, ChangeKind
from mana.domain.errors import ManaError, NotFound
from mana.domain.ids import RecordId
from mana.domain.missions import InputRef
from mana.domain.spaces import MEMBER_NAMES, PROFILE, PROFILE_ID
from mana.protocol.messages import KeyWrap, MembershipAppend, SpaceInfo, SpacesAnswer
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import PASSWORD
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import (
    Household,
    change_members,
    household,
    let_in,
    operations,
    shared_space,
)

pytestmark = pytest.mark.anyio

HOURLY = Cadence("interval", every_minutes=60)


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def both(*devices: Device) -> None:
    """Bring what everybody wrote to everybody."""
    for _ in range(2):
        for device in devices:
            await device.sync_now()


async def titles(device: Device, table: str = "notes") -> set[str]:
    return {view.text("title") for view in await device.list(table)}


def vault_of(device: Device) -> OpenedVault:
    return operations(device).opened.book.inner().vault


async def answer_of(device: Device) -> SpacesAnswer:
    """Return what the hub says of the account's spaces."""
    return await operations(device).opened.hub.spaces()


# Each thing in its space


async def test_records_stay_in_their_space(home: Household) -> None:
    """What is written in one space is in no other, under the same account and the same id."""
    ada, bob = await home.person("ada"), await home.person("bob")
    team = ada.in_space(await shared_space(ada))
    club = ada.in_space(await shared_space(ada, "club"))
    await let_in(ada, team.space_id, bob)
    mine = await ada.create("notes", {"title": "Mine"})
    ours = await team.create("notes", {"title": "Ours"})
    await club.create("notes", {"title": "Theirs"})
    await both(ada, bob)
    assert await titles(ada) == {"Mine"}
    assert await titles(team) == {"Ours"}
    assert await titles(club) == {"Theirs"}
    assert await titles(bob) == set()
    assert await titles(bob.in_space(team.space_id)) == {"Ours"}
    for device, foreign in ((team, mine), (ada, ours), (club, ours)):
        with pytest.raises(NotFound):
            await device.get("notes", foreign)
        with pytest.raises(NotFound):
            await device.edit("notes", foreign, {"title": "x"})
        with pytest.raises(NotFound):
            await device.delete("notes", foreign)
    # The same id in two spaces names two records.
    for device, title in ((ada, "one"), (team, "two")):
        change = Change("notes", RecordId("n1"), ChangeKind.CREATE, {"title": title})
        of = operations(device).opened
        await of.book.commit([Write(change, of.person)])
    assert (await ada.get("notes", "n1")).text("title") == "one"
    assert (await team.get("notes", "n1")).text("title") == "two"


async def test_a_space_has_one_device_object(home: Household) -> None:
    """Asked again it is the same; a space that is not the account's is not found."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    assert ada.in_space(space) is ada.in_space(space).in_space(space)
    assert ada.in_space(space).in_space(ada.space_id) is ada
    for unknown in ("0" * 64, bob.space_id, ""):
        with pytest.raises(NotFound):
            ada.in_space(unknown)
    with pytest.raises(NotFound):
        bob.in_space(space)
    await ada.in_space(space).close()
    await home.places[0].host.lock(ada.account_id)
    with pytest.raises(Locked):
        ada.in_space(space)


async def test_settings_are_the_persons_in_every_space(home: Household) -> None:
    """Tables of the user scope are the same from each space, and lie in no shared one."""
    ada = await home.person("ada")
    team = ada.in_space(await shared_space(ada))
    await team.set_display_name("Ada L.")
    assert (await ada.status()).display_name == (await team.status()).display_name == "Ada L."
    book = operations(team).opened.book
    replica = book.inner().replica
    held = await replica.read(lambda tx: tx.marks(team.space_id, "userSettings"))
    assert held == {}


async def test_missions_and_agents_belong_to_one_space(home: Household) -> None:
    """An id of another space is not found, and the inputs offered are those of the space."""
    ada = await home.person("ada")
    team = ada.in_space(await shared_space(ada))
    agent = await ada.create_agent("Mira")
    note = await ada.create("notes", {"title": "Mine"})
    ref = InputRef("notes", "notes", note)
    mission = await ada.create_mission("R", "L", agent_id=agent, inputs=[ref], runs_on="device")
    assert ref in [one for one, _ in await ada.inputs()]
    assert await team.inputs() == []
    assert (await team.agents(), await team.missions()) == ([], [])
    with pytest.raises(AgentNotFound):
        await team.agent(agent)
    with pytest.raises(AgentNotFound):
        await team.create_mission("R", "L", agent_id=agent)
    for call in (team.mission, team.run_now, team.delete_mission, team.consent, team.grant):
        with pytest.raises(MissionNotFound):
            await call(mission)
    with pytest.raises(InputNotThere):
        await team.create_mission("R", "L", agent_id=await team.create_agent("B"), inputs=[ref])


async def test_decisions_wait_in_each_space_and_are_counted_together(home: Household) -> None:
    """The status says how many proposals wait, in all and by space; each inbox shows its own."""
    planner = ScriptedModel()
    ada = await home.person("ada", model=planner)
    team = ada.in_space(await shared_space(ada))
    for device in (ada, team):
        planner._replies += [says("", calling("create_task", {"title": "One"})), says("Done.")]
        agent = await device.create_agent("Mira")
        mission = await device.create_mission("R", "L", agent_id=agent, runs_on="device")
        await device.run_now(mission)
    status = await ada.status()
    assert status.to_decide == 2
    assert status.to_decide_by_space == {ada.space_id: 1, team.space_id: 1}
    (mine,), (ours,) = await ada.inbox(), await team.inbox()
    with pytest.raises(NotFound):
        await ada.approve(ours.step_id)
    await team.approve(ours.step_id)
    assert (await titles(team, "tasks"), await titles(ada, "tasks")) == ({"One"}, set())
    assert (await team.status()).to_decide == 1
    assert [one.step_id for one in await ada.inbox()] == [mine.step_id]
    assert len(await team.timeline()) == len(await ada.timeline()) == 1
    await team.revert(f"step:{ours.step_id}")
    assert await titles(team, "tasks") == set()


async def test_one_worker_serves_every_space(home: Household) -> None:
    """Missions that are due in a shared space run here too, one after the other."""
    planner = ScriptedModel()
    ada = await home.person("ada", model=planner)
    team = ada.in_space(await shared_space(ada))
    for device in (ada, team):
        planner._replies += [says("Nothing to do.")]
        agent = await device.create_agent("Mira")
        await device.create_mission(
            "R",
            "L",
            agent_id=agent,
            runs_on="device",
            cadence=HOURLY,
        )
    home.clock.ahead_ms += 2 * 60 * 60 * 1_000
    for each in operations(ada).everywhere():
        await each.runner.run_due()
    assert [len(await device.timeline()) for device in (ada, team)] == [1, 1]


# Roles, types, managers


async def test_a_viewer_hears_no_before_anything_is_written(home: Household) -> None:
    """Each write of a viewer raises with advice; nothing waits, nothing is refused later."""
    ada, vic = await home.person("ada"), await home.person("vic")
    team = ada.in_space(await shared_space(ada))
    note = await team.create("notes", {"title": "Ours"})
    agent = await team.create_agent("Mira")
    mission = await team.create_mission(
        "R", "L", agent_id=agent, inputs=[InputRef("notes", "notes", note)]
    )
    await ada.sync_now()
    await let_in(ada, team.space_id, vic, "viewer")
    watching = vic.in_space(team.space_id)
    assert await titles(watching) == {"Ours"}
    attempts = (
        watching.create("notes", {"title": "x"}),
        watching.edit("notes", note, {"title": "x"}),
        watching.delete("notes", note),
        watching.use_tool("create_task", {"title": "x"}),
        watching.create_agent("X"),
        watching.edit_mission(mission, title="x"),
        watching.delete_mission(mission),
        watching.consent(mission),
        watching.grant(mission),
        watching.run_now(mission),
    )
    before = len(home.places[1].wire.seen)
    for attempt in attempts:
        with pytest.raises(ReadOnlyHere) as refused:
            await attempt
        assert refused.value.advice
    sync = (await watching.status()).sync
    assert (sync.waiting, sync.refused) == (0, 0)
    asked = {(m, p) for m, p, _ in home.places[1].wire.seen[before:]}
    assert not [one for one in asked if one[0] != "GET"]
    await change_members(
        ada, team.space_id, lambda s, hand: membership.set_role(s, hand, vic.account_id, "member")
    )
    await operations(vic).opened.book.inner().syncer.refresh_spaces()
    await watching.edit("notes", note, {"title": "Now I may"})
    await both(vic, ada)
    assert await titles(team) == {"Now I may"}


async def test_a_space_holds_its_modules_alone(home: Household) -> None:
    """A record of a module that the type does not hold is refused here, not by the hub."""
    ada = await home.person("ada")
    team = ada.in_space(await shared_space(ada))
    book = operations(team).opened.book
    table = replace(book.catalogue.table("notes"), app_id="recipes")
    with pytest.raises(ModuleNotHeld):
        book.require_writable(table, "r1")
    assert operations(ada).opened.book.require_writable(table, "r1").type == "personal"
    assert (book.holds("recipes"), book.holds("notes")) == (False, True)


async def test_the_name_of_a_space_is_for_managers(home: Household) -> None:
    """A member writes neither the space's profile nor another member's name."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    theirs = operations(bob.in_space(space)).opened.book
    with pytest.raises(ManagersOnly):
        theirs.require_writable(PROFILE, PROFILE_ID)
    with pytest.raises(ManagersOnly):
        theirs.require_writable(MEMBER_NAMES, ada.account_id)
    theirs.require_writable(MEMBER_NAMES, bob.account_id)
    operations(ada.in_space(space)).opened.book.require_writable(PROFILE, PROFILE_ID)


# What other members may make this device do


async def test_nobody_else_puts_a_mission_on_this_device(home: Household) -> None:
    """A member who writes another's device as the place spends neither its model nor its time."""
    planner = ScriptedModel([says("Spent.")])
    ada, bob = await home.person("ada", model=planner), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    theirs, ours = bob.in_space(space), ada.in_space(space)
    agent = await theirs.create_agent("Mira")
    mission = await theirs.create_mission(
        "R", "L", agent_id=agent, runs_on=operations(ada).opened.place, cadence=HOURLY
    )
    await both(bob, ada)
    home.clock.ahead_ms += 2 * 60 * 60 * 1_000
    await operations(ours).runner.work(expire=False)
    with pytest.raises(NotRunHere):
        await ours.run_now(mission)
    assert planner.requests == []
    await ours.edit_mission(mission, runs_on="hub")
    await ours.edit_mission(mission, runs_on="device")
    await ours.run_now(mission)
    assert len(planner.requests) == 1


async def test_a_run_under_another_members_grant_is_theirs_to_decide(home: Household) -> None:
    """It is verified by the grantor's signature, offered to the grantor, and counts for nobody
    else; who manages the space may decide too."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    ours, theirs = ada.in_space(space), bob.in_space(space)
    note = await ours.create("notes", {"title": "Offer", "content": "- [ ] Send it"})
    agent = await ours.create_agent("Mira")
    mission = await ours.create_mission(
        "R", "L", agent_id=agent, inputs=[InputRef("notes", "notes", note)]
    )
    lines = (await ours.consent(mission)).lines
    assert "What it writes about them, every member of this space can read." in lines
    await ours.grant(mission)
    await ours.run_now(mission)
    await home.tick()
    await both(ada, bob)
    proposals = await theirs.inbox()
    assert proposals
    assert all(one.verified and one.for_others for one in proposals)
    assert (await bob.status()).to_decide == 0
    assert (await ada.status()).to_decide == len(proposals)
    for decide in (theirs.approve, theirs.reject):
        with pytest.raises(ProposalForOthers):
            await decide(proposals[0].step_id)
    (seen,) = await theirs.grants()
    assert (seen.own, seen.account_id, seen.state) == (False, ada.account_id, "active")
    assert await bob.grants() == []
    assert all(one.verified for one in await ours.inbox())
    await ours.approve(proposals[0].step_id)
    await both(ada, bob)
    assert await titles(theirs, "tasks") == await titles(ours, "tasks") != set()
    access = await bob.data_access()
    assert (access.readings, access.chain_ok) == ((), True)
    readings = (await ada.data_access()).readings
    assert any("“Offer”" in one.sentence for one in readings)


async def test_members_decide_on_runs_of_each_others_devices(home: Household) -> None:
    """A proposal that a member's device signed is verified and decided by any other member."""
    planner = ScriptedModel([says("", calling("create_task", {"title": "One"})), says("Done.")])
    ada, bob = await home.person("ada", model=planner), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    ours, theirs = ada.in_space(space), bob.in_space(space)
    agent = await ours.create_agent("Mira")
    mission = await ours.create_mission("R", "L", agent_id=agent, runs_on="device")
    await ours.run_now(mission)
    await both(ada, bob)
    (proposal,) = await theirs.inbox()
    assert proposal.verified
    assert proposal.reach == "Stays in this space; its members see it."
    await theirs.approve(proposal.step_id)
    await both(bob, ada)
    assert await titles(ours, "tasks") == {"One"}
    await ours.revert(f"step:{proposal.step_id}")
    await both(ada, bob)
    assert await titles(theirs, "tasks") == set()


async def test_the_author_of_a_record_stays(home: Household) -> None:
    """Whoever edits, the author and the space of a record are those of its first change."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    ours, theirs = ada.in_space(space), bob.in_space(space)
    note = await ours.create("notes", {"title": "One"})
    await both(ada, bob)
    await theirs.edit("notes", note, {"title": "Two"})
    assert (await theirs.get("notes", note)).author_id == ada.account_id
    await both(bob, ada)
    assert (await ours.get("notes", note)).author_id == ada.account_id
    with pytest.raises(NotYourRecord):
        await theirs.set_visibility("notes", note, "private")
    sent = [
        change
        for _, path, body in home.places[1].wire.seen
        if path.endswith(f"{space}/changes") and body
        for change in msgspec.json.decode(body)["changes"]
        if change["id"] == note
    ]
    assert sent
    assert {change["authorId"] for change in sent} == {ada.account_id}


async def test_a_write_in_the_middle_of_a_pull_is_whole(home: Household) -> None:
    """What is written while other changes are taken has its author, its stamps and its way out."""
    ada = await home.person("ada")
    team = ada.in_space(await shared_space(ada))
    for number in range(20):
        await team.create("notes", {"title": f"first {number}"})
    await ada.sync_now()
    second = (await home.second("ada")).in_space(team.space_id)
    writes = [second.create("notes", {"title": f"second {number}"}) for number in range(20)]
    made = (await asyncio.gather(second.sync_now(), *writes))[1:]
    await both(second, ada)
    assert (await second.status()).sync.waiting == 0
    assert len(await titles(team)) == len(await titles(second)) == 40
    for record_id in made:
        view = await team.get("notes", str(record_id))
        assert view.author_id == ada.account_id
        assert view.stamps["title"].endswith(operations(second).opened.device_id)


# What the hub may say of spaces


async def test_a_space_that_is_missing_is_withheld(home: Household) -> None:
    """Neither at once nor after a restart does a device believe that a space is merely gone."""
    ada = await home.person("ada")
    space = await shared_space(ada)
    answer = await answer_of(ada)
    without = SpacesAnswer(spaces=[one for one in answer.spaces if one.space_id != space])
    with pytest.raises(HubDistrusted):
        vault_of(ada).take_spaces(without)
    ada = await _restarted(home, ada)
    with pytest.raises(HubDistrusted):
        vault_of(ada).take_spaces(without)
    vault_of(ada).take_spaces(answer)


async def test_a_departure_counts_by_the_signed_log_alone(home: Household) -> None:
    """The hub's word is not enough; the entry that names the members without one is."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    team = bob.in_space(space)
    await team.create("notes", {"title": "Bob's"})
    await bob.create("notes", {"title": "Own"})
    await both(bob, ada)
    answer = await answer_of(bob)
    log = list(vault_of(bob).space(space).log)
    own = [one for one in answer.spaces if one.space_id != space]
    for lie in (log, log[:1]):
        said = msgspec.convert(
            {"spaces": [], "departed": [{"spaceId": space, "log": msgspec.to_builtins(lie)}]},
            SpacesAnswer,
        )
        with pytest.raises(ManaError) as found:
            vault_of(bob).take_spaces(msgspec.structs.replace(said, spaces=own))
        assert isinstance(found.value, HubDistrusted)
    assert not vault_of(bob).space(space).former
    await change_members(ada, space, lambda s, h: membership.remove(s, h, bob.account_id))
    await bob.sync_now()
    keys = vault_of(bob).space(space)
    assert (keys.former, keys.closed, keys.role) == (True, False, None)
    bob = await _restarted(home, bob)
    team = bob.in_space(space)
    assert vault_of(bob).space(space).former
    assert await titles(team) == {"Bob's"}
    assert (await bob.status()).to_decide_by_space == {bob.space_id: 0}
    assert await titles(bob) == {"Own"}
    with pytest.raises(SpaceLeft):
        await team.create("notes", {"title": "x"})
    with pytest.raises(SpaceStillHeld):
        vault_of(bob).forget_space(bob.space_id)
    await team.forget_space()
    with pytest.raises(NotFound):
        bob.in_space(space)
    await bob.sync_now()
    assert await titles(bob) == {"Own"}


async def test_a_rejoin_goes_on_where_the_log_was(home: Household) -> None:
    """Whoever comes back reads old and new, their own private records too, by a longer log."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    team = bob.in_space(space)
    await team.create("notes", {"title": "Secret"}, visibility="private")
    await both(bob, ada)
    length = len(vault_of(bob).space(space).log)
    await change_members(ada, space, lambda s, h: membership.remove(s, h, bob.account_id))
    await bob.sync_now()
    await ada.in_space(space).create("notes", {"title": "Meanwhile"})
    await ada.sync_now()
    await let_in(ada, space, bob)
    keys = vault_of(bob).space(space)
    assert (keys.former, keys.role, len(keys.log)) == (False, "member", length + 2)
    assert (set(keys.space_keys), set(keys.private_keys)) == ({1, 2}, {1})
    assert await titles(bob.in_space(space)) == {"Secret", "Meanwhile"}
    await bob.in_space(space).create("notes", {"title": "Back"})
    await both(bob, ada)
    assert await titles(ada.in_space(space)) == {"Meanwhile", "Back"}


async def test_a_rotation_between_answers_leaves_no_former_space_closed(home: Household) -> None:
    """Who was put out under a key that they never saw still unlocks, and reads what they had."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    await bob.in_space(space).create("notes", {"title": "Bob's"})
    await both(bob, ada)
    await change_members(ada, space, membership.rotate)
    await change_members(ada, space, lambda s, h: membership.remove(s, h, bob.account_id))
    await bob.sync_now()
    bob = await _restarted(home, bob)
    keys = vault_of(bob).space(space)
    assert (keys.former, set(keys.space_keys)) == (True, {1})
    assert await titles(bob.in_space(space)) == {"Bob's"}


async def test_a_log_never_forgets(home: Household) -> None:
    """A log that ends before what was seen is refused, at once and after a restart."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    answer = await answer_of(ada)
    (info,) = [one for one in answer.spaces if one.space_id == space]
    shorter = _with(answer, msgspec.structs.replace(info, log=info.log[:1]))
    for _ in ("at once", "after a restart"):
        with pytest.raises(HubDistrusted):
            vault_of(ada).take_spaces(shorter)
        assert len(vault_of(ada).space(space).members) == 2
        ada = await _restarted(home, ada)
    # What another process of this machine kept earlier does not shorten it either.
    kept = msgspec.json.encode({"spaces": msgspec.to_builtins(shorter.spaces)})
    vault_of(ada).restore_spaces(kept)
    assert len(vault_of(ada).space(space).members) == 2


@pytest.mark.parametrize("lie", ["foreign private key", "foreign space key"])
async def test_a_key_that_the_account_did_not_make_is_refused(home: Household, lie: str) -> None:
    """The hub can wrap any key to a public one; none of its own is ever sealed under."""
    ada = await home.person("ada")
    space = await shared_space(ada)
    await change_members(ada, space, membership.rotate)
    again = await home.second("ada")
    vault = vault_of(again)
    answer = await answer_of(again)
    (info,) = [one for one in answer.spaces if one.space_id == space]
    kind = "p" if lie == "foreign private key" else "s"
    name = SpaceKeyName("p" if kind == "p" else "s", space, 3, vault.account_id)
    wrapped = wrap_space_key(new_key(), vault.identity.public().hpke_key, name)
    extra = KeyWrap(kind=kind, version=3, wrapped=wrapped)
    forged = msgspec.structs.replace(info, wraps=[*info.wraps, extra])
    before = dict(vault.spaces)
    with pytest.raises(HubDistrusted):
        vault.take_spaces(_with(answer, forged))
    assert vault.spaces == before
    # A device that never saw the account's spaces is not taken in either.
    if lie == "foreign private key":
        vault.spaces.clear()
        with pytest.raises(HubDistrusted):
            vault.take_spaces(_with(answer, forged))


async def test_a_manager_who_spoils_a_key_stops_one_space_only(home: Household) -> None:
    """Whom a new key is kept from loses nothing, syncs all else, signs in, and puts it right."""
    ada, bob, cyd = [await home.person(name) for name in ("ada", "bob", "cyd")]
    space, other = await shared_space(ada), await shared_space(cyd)
    await let_in(ada, space, bob, "admin")
    await let_in(cyd, other, ada)
    await bob.sync_now()

    def spoiled(keys: SpaceKeys, hand: membership.Hand) -> MembershipAppend:
        made = membership.rotate(keys, hand)
        wraps = [
            one
            if one.account_id == bob.account_id
            else msgspec.structs.replace(one, wrapped=b64(os.urandom(1168)))
            for one in made.wraps
        ]
        return msgspec.structs.replace(made, wraps=wraps)

    team = ada.in_space(space)
    await team.create("notes", {"title": "Waits"})
    await change_members(bob, space, spoiled)
    await change_members(cyd, other, membership.rotate)
    await bob.in_space(space).create("notes", {"title": "Under the new key"})
    await bob.sync_now()
    with pytest.raises(SpaceKeyMissing):
        await ada.sync_now()
    status = (await ada.status()).sync
    assert (status.waiting, status.refused) == (1, 0)
    assert status.troubles == {space: "SPACE_KEY_MISSING"}
    assert vault_of(ada).space(other).version == 2
    assert len(await team.list("notes")) == 2
    with pytest.raises(SpaceKeyMissing):
        await team.create("notes", {"title": "No"})
    second = await home.second("ada")
    with pytest.raises(SpaceKeyMissing):
        await second.sync_now()
    await team.remove_member(bob.account_id)
    await ada.sync_now()
    status = (await ada.status()).sync
    assert (status.waiting, status.refused, status.troubles) == (0, 0, {})
    await team.create("notes", {"title": "Yes"})
    await ada.sync_now()
    assert "Yes" in await titles(team)


async def test_the_key_is_changed_before_anything_is_sent_under_it(home: Household) -> None:
    """What a manager wrote after somebody left is never sent under the key that they know."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    await ada.sync_now()
    await bob.in_space(space).leave()
    note = await ada.in_space(space).create("notes", {"title": "Said when Bob was out"})
    wire = home.places[0].wire
    wire.seen.clear()
    await ada.sync_now()
    pushed = [body for method, path, body in wire.seen if path.endswith(f"{space}/changes")]
    assert any(note.encode() in body and b'"enc:2:s2:' in body for body in pushed)
    assert not any(b'"enc:2:s1:' in body for body in pushed)
    assert (await ada.status()).sync.waiting == 0


async def test_a_mission_of_a_space_that_was_left_has_no_next_run(home: Household) -> None:
    """Nobody tells who left whether it still runs, so no moment is promised."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    theirs = bob.in_space(space)
    agent = await theirs.create_agent("Mira")
    await theirs.create_mission("R", "L", agent_id=agent, cadence=HOURLY, runs_on="device")
    assert [bool(one.next_ms) for one in await theirs.missions()] == [True]
    await theirs.sync_now()
    await theirs.leave()
    assert [bool(one.next_ms) for one in await theirs.missions()] == [False]


async def test_what_was_kept_before_spaces_were_shared_still_opens(home: Household) -> None:
    """A list of spaces, as earlier versions kept them, is read."""
    ada = await home.person("ada")
    answer = await answer_of(ada)
    vault = vault_of(ada)
    spaces, vault.spaces = vault.spaces, {}
    vault.restore_spaces(msgspec.json.encode(answer.spaces))
    assert vault.spaces == spaces


# Two accounts on one device


async def test_accounts_of_one_device_share_nothing(home: Household) -> None:
    """Under one account nothing of the other is read, sent or kept, whichever is unlocked."""
    place = home.place()
    ada = await place.host.sign_up("ada", PASSWORD, display_name="Ada")
    team = ada.in_space(await shared_space(ada))
    await team.create("notes", {"title": "ADA-SHARED"})
    await ada.create("notes", {"title": "ADA-OWN"})
    await ada.sync_now()
    place.wire.is_cut = True
    waiting = await ada.create("tasks", {"title": "ADA-WAITS"})
    await place.host.lock(ada.account_id)
    place.wire.is_cut = False
    sent_before = len(place.wire.seen)
    bob = await place.host.sign_up("bob", PASSWORD, display_name="Bob")
    await bob.create("notes", {"title": "BOB-OWN"})
    await bob.sync_now()
    with pytest.raises(Locked):
        await ada.list("notes")
    with pytest.raises(Locked):
        place.host.device(ada.account_id)
    with pytest.raises(NotFound):
        bob.in_space(team.space_id)
    assert await titles(bob) == {"BOB-OWN"}
    marks = [ada.account_id, ada.space_id, team.space_id, waiting, "ADA-"]
    sent = b"".join(path.encode() + body for _, path, body in place.wire.seen[sent_before:])
    kept = _files(home, bob)
    assert kept
    for mark in marks:
        assert mark.encode() not in sent
        assert mark.encode() not in kept
    # Switching back, each finds its own, and what waited is sent under its own account.
    await place.host.lock(bob.account_id)
    seen = len(place.wire.seen)
    again = await place.host.sign_in("ada", PASSWORD)
    await again.sync_now()
    assert await titles(again.in_space(team.space_id)) == {"ADA-SHARED"}
    sent = b"".join(path.encode() + body for _, path, body in place.wire.seen[seen:])
    assert waiting.encode() in sent
    assert bob.space_id.encode() not in sent
    assert bob.account_id.encode() not in sent
    # Both unlocked: they have no space in common.
    bob = await place.host.sign_in("bob", PASSWORD)
    assert not set(vault_of(bob).spaces) & set(vault_of(again).spaces)


async def test_signing_out_removes_everything_of_the_account(home: Household) -> None:
    """Files, keys, session and what waited are gone; the other account goes on."""
    place = home.place()
    ada = await place.host.sign_up("ada", PASSWORD, display_name="Ada")
    bob = await place.host.sign_up("bob", PASSWORD, display_name="Bob")
    for device in (ada, bob):
        await device.create("notes", {"title": device.login})
    team = ada.in_space(await shared_space(ada))
    await team.create("notes", {"title": "x"})
    await place.host.sign_out(ada.account_id)
    folder = place.host.settings.folder
    assert [path.name for path in folder.iterdir() if ada.account_id in path.name] == []
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for mark in (ada.account_id, ada.space_id, team.space_id):
        assert mark.encode() not in everything
    with pytest.raises(NotFound):
        place.host.device(ada.account_id)
    for call in (ada.list("notes"), team.list("notes"), ada.sync_now()):
        with pytest.raises(Locked):
            await call
    assert await titles(bob) == {"bob"}
    assert (await bob.sync_now()).waiting == 0


# Help


def _with(answer: SpacesAnswer, forged: SpaceInfo) -> SpacesAnswer:
    others = [one for one in answer.spaces if one.space_id != forged.space_id]
    return SpacesAnswer(spaces=[*others, forged])


def _files(home: Household, device: Device) -> bytes:
    """Return every byte that the device keeps for an account."""
    folder = operations(device).opened.book.settings.folder
    return b"".join(path.read_bytes() for path in folder.glob(f"{device.account_id}*"))


async def _restarted(home: Household, device: Device) -> Device:
    """Lock a person's device and unlock it again."""
    (place,) = [one for one in home.places if device.account_id in one.host._open]
    await place.host.lock(device.account_id)
    return await place.host.sign_in(device.login, PASSWORD)
