"""What agents may do in a space without asking: by whose word, and never by the hub's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from mana.crypto.authority import Authority
from mana.crypto.policies import managed_at, space_policy_of
from mana.device.desk import Device
from mana.device.errors import ManagersOnly
from mana.device.executing import Executing
from mana.device.operations import Operations
from mana.device.policies import NotAcknowledged, NotLiftable
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import DeviceId, RecordId
from mana.domain.policy import Policy
from mana.domain.spaces import (
    SPACE_POLICY,
    SPACE_POLICY_AUDIT,
    SPACE_POLICY_ID,
    Member,
    MembershipEntry,
)
from mana.protocol.replication import Held
from mana.registry.catalogue import UnknownTool
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import (
    Household,
    household,
    let_in,
    operations,
    planned_mission,
    shared_space,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
TOOL = "update_note"
BY_ITSELF = Policy({"read": "auto", "write": "auto", "destructive": "auto", "external": "auto"})


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def lifted(device: Device) -> set[str]:
    return {one.tool for one in (await device.space_policy()).lifted}


async def policy_of(of: Operations) -> Held:
    """Return the record of a space's policy as it is held, with its proofs."""
    held = await of.opened.book._held(SPACE_POLICY.name, SPACE_POLICY_ID)
    assert held is not None
    return held


def authority_of(of: Operations) -> Authority:
    return of.opened.book.inner().syncer.authority(of.opened.space)


async def team(home: Household, role: str = "admin") -> tuple[Device, Device]:
    """Return the space of a team, as its owner and another member have it."""
    ada, bob = await home.person(), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob, role)  # type: ignore[arg-type]
    await ada.sync_now()
    return ada.in_space(space), bob.in_space(space)


async def test_what_is_lifted_runs_by_itself_until_it_is_taken_back(home: Household) -> None:
    """A destructive tool asks, unless the space and the agent both let it; taken back, it asks."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    agent = (await ada.agents())[0].agent_id
    await ada.edit_agent(agent, policy=BY_ITSELF)
    of = operations(ada)
    made = ScriptedModel(
        [
            one
            for title in ("One", "Two", "Three")
            for one in (
                says("", calling(TOOL, {"noteId": notes[0], "title": title})),
                says("Done."),
            )
        ]
    )
    object.__setattr__(of.opened, "model", made)
    await ada.run_now(mission)
    (waiting,) = await ada.inbox()
    await ada.reject(waiting.step_id)
    await ada.lift(TOOL, acknowledged=True)
    await ada.run_now(mission)
    assert await ada.inbox() == []
    assert (await ada.get("notes", notes[0])).text("title") == "Two"
    await ada.unlift(TOOL)
    await ada.run_now(mission)
    assert len(await ada.inbox()) == 1
    assert (await ada.get("notes", notes[0])).text("title") == "Two"


async def nothing_done(executing: Executing) -> list[str]:
    """Stand for a device that ended before its steps were done."""
    return []


async def test_a_step_that_waits_asks_again_where_the_space_took_it_back(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was planned while a tool was lifted is a proposal once it is not."""
    ada = await home.person(model=ScriptedModel([]))
    mission, notes, _ = await planned_mission(ada, runs_on="device")
    await ada.edit_agent((await ada.agents())[0].agent_id, policy=BY_ITSELF)
    await ada.lift(TOOL, acknowledged=True)
    of = operations(ada)
    call = calling(TOOL, {"noteId": notes[0], "title": "One"})
    object.__setattr__(of.opened, "model", ScriptedModel([says("", call), says("Done.")]))
    with monkeypatch.context() as patched:
        patched.setattr(Executing, "run_planned", nothing_done)
        await ada.run_now(mission)
    assert await ada.inbox() == []
    await ada.unlift(TOOL)
    assert await of.runner.run_planned() == []
    (waiting,) = await ada.inbox()
    assert waiting.state == "staged"
    assert (await ada.get("notes", notes[0])).text("title") == "Offer"


async def test_a_lift_is_an_owners_word_that_they_mean(home: Household) -> None:
    """Only destructive and external tools are lifted, by people who manage the space, knowingly."""
    ada, bob = await team(home, "member")
    with pytest.raises(NotAcknowledged):
        await ada.lift(TOOL, acknowledged=False)
    for tool in ("create_task", "list_tasks", "propose_memory"):
        with pytest.raises(NotLiftable):
            await ada.lift(tool, acknowledged=True)
    with pytest.raises(UnknownTool):
        await ada.lift("drop_everything", acknowledged=True)
    with pytest.raises(ManagersOnly):
        await bob.lift(TOOL, acknowledged=True)
    assert await lifted(ada) == await lifted(bob) == set()
    await ada.lift(TOOL, acknowledged=True)
    await ada.lift(TOOL, acknowledged=True)
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
    await bob.sync_now()
    with pytest.raises(ManagersOnly):
        await bob.unlift(TOOL)
    found = await bob.space_policy()
    (one,) = found.lifted
    assert (one.tool, one.effect, one.account_id) == (TOOL, "destructive", ada.account_id)
    assert (found.may_change, (await ada.space_policy()).may_change) == (False, True)
    assert TOOL in found.liftable
    assert [(change.action, change.account_id) for change in found.history] == [
        ("added", ada.account_id)
    ]


async def test_two_who_manage_a_space_share_its_policy(home: Household) -> None:
    """What one lifted another takes back, for everybody, and both are in the record."""
    ada, bob = await team(home)
    await ada.lift(TOOL, acknowledged=True)
    await ada.sync_now()
    await bob.sync_now()
    assert await lifted(bob) == {TOOL}
    await bob.unlift(TOOL)
    await bob.unlift(TOOL)
    await bob.sync_now()
    await ada.sync_now()
    assert await lifted(ada) == await lifted(bob) == set()
    history = (await ada.space_policy()).history
    assert [(one.action, one.account_id) for one in history] == [
        ("removed", bob.account_id),
        ("added", ada.account_id),
    ]
    await ada.lift(TOOL, acknowledged=True)
    assert await lifted(ada) == {TOOL}
    assert (await ada.sync_now()).refused == 0


async def test_who_is_no_admin_any_more_takes_their_lifts_along(home: Household) -> None:
    """A tool stays lifted only as long as the one who lifted it manages the space."""
    ada, bob = await team(home)
    await bob.lift(TOOL, acknowledged=True)
    await bob.sync_now()
    await ada.sync_now()
    assert await lifted(ada) == {TOOL}
    await ada.set_role(bob.account_id, "member")
    assert await lifted(ada) == set()
    of = operations(ada)
    assert space_policy_of(authority_of(of), await policy_of(of)).lifted == frozenset()


async def test_a_member_lifts_nothing_in_advance(home: Household) -> None:
    """What somebody signed before they were an admin does not count from that day on."""
    ada, bob = await team(home, "member")
    of = operations(bob)
    held_before = authority_of(of)
    early = str(Stamp(home.clock() - 60 * 60 * 1_000, 0, DeviceId(of.opened.device_id)))
    late = str(Stamp(home.clock() + 60 * 60 * 1_000, 0, DeviceId(of.opened.device_id)))
    assert not managed_at(held_before, bob.account_id, late)
    await ada.set_role(bob.account_id, "admin")
    await bob.sync_now()
    now = authority_of(of)
    assert managed_at(now, bob.account_id, late)
    # The entries are of the last seconds: an hour ago the space had its founder alone.
    assert not managed_at(now, bob.account_id, early)
    assert managed_at(now, ada.account_id, early)


def test_who_manages_is_read_off_the_log_in_its_order() -> None:
    """At each time counts the newest entry that was written by then; a clock may be 5 minutes off."""

    def entry(role: str, at_ms: int) -> MembershipEntry:
        member = Member("bob", role, "k", "h")  # type: ignore[arg-type]
        return MembershipEntry("", "team", (member,), 1, "", iso_ms(at_ms), "ada", "n")

    log = (entry("member", 0), entry("admin", 10_000_000), entry("member", 20_000_000))
    authority = Authority("s", {}, {}, entries=log)
    device = DeviceId("00000000-0000-4000-8000-000000000001")
    managed = {
        at: managed_at(authority, "bob", str(Stamp(at, 0, device)))
        for at in (1, 9_600_000, 9_800_000, 15_000_000, 19_800_000, 30_000_000)
    }
    assert list(managed.values()) == [False, False, True, True, False, False]
    assert not managed_at(replace(authority, entries=()), "bob", str(Stamp(1, 0, device)))


async def write(of: Operations, *changes: Change) -> None:
    await of.opened.book.commit([Write(one, of.opened.person) for one in changes])


def policy_change(values: dict[str, Json]) -> Change:
    return Change(SPACE_POLICY.name, RecordId(SPACE_POLICY_ID), ChangeKind.UPDATE, values)


async def test_a_forged_or_hidden_record_lifts_nothing(home: Household) -> None:
    """What the hub changes, moves or leaves out of a policy and its records lifts no tool."""
    ada = await home.person()
    await ada.lift(TOOL, acknowledged=True)
    of = operations(ada)
    authority, held = authority_of(of), await policy_of(of)
    (path,) = [name for name, entry in held.record.entries.items() if entry.value == TOOL]
    entry = held.record.entries[path]
    assert space_policy_of(authority, held).lifted == {TOOL}
    other = f"{path[:-2]}AA"
    assert other != path

    def with_entries(**entries: object) -> Held:
        return replace(held, record=replace(held.record, entries=entries))  # type: ignore[arg-type]

    forged = [
        with_entries(**{path: replace(entry, value="send_mail")}),
        with_entries(**{other: entry}),
        with_entries(**{path: replace(entry, at=entry.at.replace("20", "21", 1))}),
        with_entries(**{path: replace(entry, actor=replace(entry.actor, principal_id="x"))}),
        with_entries(**{path: replace(entry, change_id="another")}),
        replace(held, proofs={}),
        replace(
            held,
            proofs={
                name: msgspec.structs.replace(proof, reseal=True)
                for name, proof in held.proofs.items()
            },
        ),
        replace(held, record=replace(held.record, id=RecordId("another"))),
        None,
    ]
    for one in forged:
        assert space_policy_of(authority, one).lifted == frozenset()
    # Who manages it no more, by the newest entry, lifts nothing, whatever they were then.
    members = {name: replace(one, role="member") for name, one in authority.members.items()}
    for changed in (
        replace(authority, members={}),
        replace(authority, members=members),
        replace(authority, devices={}),
        replace(authority, entries=()),
    ):
        assert space_policy_of(changed, held).lifted == frozenset()


async def test_without_its_record_a_lift_does_not_count_here(home: Household) -> None:
    """A lift whose audit record is missing, or older than it, lifts nothing on a device."""
    ada = await home.person()
    of = operations(ada)
    await write(of, policy_change({"lifted/x": TOOL}))
    assert space_policy_of(authority_of(of), await policy_of(of)).lifted == {TOOL}
    assert await lifted(ada) == set()
    said: dict[str, Json] = {"tool": TOOL, "action": "added", "at": of.opened.now_iso()}
    audit = Change(SPACE_POLICY_AUDIT.name, RecordId("a1"), ChangeKind.CREATE, said)
    await write(of, audit)
    assert await lifted(ada) == {TOOL}


async def test_a_record_that_it_was_taken_back_is_enough(home: Household) -> None:
    """A hub that shows that a tool was taken back, and hides the change itself, lifts nothing."""
    ada = await home.person()
    of = operations(ada)
    await ada.lift(TOOL, acknowledged=True)
    assert await lifted(ada) == {TOOL}
    said: dict[str, Json] = {"tool": TOOL, "action": "removed", "at": of.opened.now_iso()}
    audit = Change(SPACE_POLICY_AUDIT.name, RecordId("a2"), ChangeKind.CREATE, said)
    await write(of, audit)
    assert space_policy_of(authority_of(of), await policy_of(of)).lifted == {TOOL}
    assert await lifted(ada) == set()


async def test_a_deleted_policy_lifts_nothing(home: Household) -> None:
    """Where the whole record was deleted, nothing of it counts; a later lift brings back only itself."""
    ada = await home.person()
    of = operations(ada)
    await ada.lift(TOOL, acknowledged=True)
    gone = policy_change({"deletedAt": of.opened.now_iso()})
    await write(of, replace(gone, kind=ChangeKind.DELETE))
    assert await lifted(ada) == set()


async def test_too_many_steps_by_themselves_become_proposals(home: Household) -> None:
    """Above 30 of one tool in a minute an agent's steps wait for the person; a minute later not."""
    ada = await home.person(model=ScriptedModel([]))
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    of = operations(ada)

    async def run(count: int) -> None:
        calls = [
            calling("create_task", {"title": f"Task {number}"}, id=str(number))
            for number in range(count)
        ]
        replies = [says("", *calls[first : first + 4]) for first in range(0, len(calls), 4)]
        object.__setattr__(of.opened, "model", ScriptedModel([*replies, says("Done.")]))
        await ada.run_now(mission)

    home.clock.held_ms = home.clock()  # However long it takes, it is within the same minute.
    for _ in range(4):
        home.clock.held_ms += 1_000
        await run(10)
    done = [view for view in await ada.list("tasks") if view.text("title").startswith("Task")]
    waiting = await ada.inbox()
    assert (len(done), len(waiting)) == (30, 10)
    assert waiting[0].note.startswith("It came too soon")
    assert (await ada.approve(waiting[0].step_id)).state == "approved"
    home.clock.held_ms += 61_000
    await run(1)
    assert len(await ada.inbox()) == 9


@pytest.mark.parametrize("gone", ["mission", "agent"])
async def test_nothing_runs_by_itself_for_what_is_not_at_work(home: Household, gone: str) -> None:
    """Steps of a mission that was paused since, or of an agent that is, wait for the person."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, preset="aggressive")
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    before = len(await ada.list("tasks"))
    if gone == "mission":
        await ada.edit_mission(mission, state="paused")
    else:
        await ada.edit_agent((await ada.agents())[0].agent_id, state="paused")
    of = operations(ada)
    assert await of.runner.run_planned() == []
    assert len(await ada.list("tasks")) == before
    waiting = await ada.inbox()
    assert waiting
    assert (await ada.approve(waiting[0].step_id)).state == "approved"
