"""Revert: exactly what still stems from the agent is restored, everything else is reported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.device.journal import (
    Chain,
    JournalEntry,
    NothingToRevert,
    PathNow,
    RecordNow,
    chains,
    journal_id,
    plan,
    revert_change_id,
)
from mana.domain.actors import agent_at_work, person
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import derived_id
from mana.domain.iterations import JOURNAL, PathImage
from mana.domain.tables import DELETED_AT
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission

ME = "00000000-0000-4000-8000-000000000001"
PATHS = ("title", "content", "dueDate")
RECORDS = ("r0", "r1")


@dataclass
class Tiny:
    """Records and a journal in memory, written as a device writes them."""

    paths: dict[str, dict[str, PathNow]] = field(default_factory=dict)
    entries: list[JournalEntry] = field(default_factory=list)
    writes: int = 0

    def at(self) -> str:
        self.writes += 1
        return f"{self.writes:06d}"

    def write(self, record: str, values: dict[str, Json], change: str, *, ai: bool) -> None:
        actor = agent_at_work("mira", "m", "i") if ai else person(ME)
        at = self.at()
        for path, value in values.items():
            self.paths.setdefault(record, {})[path] = PathNow(value, at, change, actor)

    def step(self, record: str, values: dict[str, Json]) -> None:
        """Let a step of the agent write, and journal it."""
        number = len(self.entries)
        step = f"i-{number}"
        created = record not in self.paths
        known = self.paths.get(record, {})
        before = {
            path: PathImage(known[path].value, known[path].at)
            if path in known
            else PathImage(None, None)
            for path in values
        }
        entry = JournalEntry(
            id=journal_id(step, "notes", record),
            table="notes",
            record_id=record,
            mission_id="m",
            iteration_id="i",
            step_id=step,
            revert_of=None,
            reverted_at=None,
            before=before,
            after={path: PathImage(value, None) for path, value in values.items()},
            created=created,
            sentence="",
            at=f"{self.writes:06d}",
        )
        self.write(record, values, entry.write_id, ai=True)
        self.entries.append(entry)

    def edit(self, record: str, values: dict[str, Json]) -> None:
        """Let the person write; a record that is not there is made by them."""
        self.write(record, values, f"edit-{self.writes}", ai=False)

    def plan(self, targets: list[Chain]) -> Any:
        records = {
            ("notes", record): RecordNow(record, dict(paths))
            for record, paths in self.paths.items()
        }
        return plan(targets, records, now_iso="2026-11-21T00:00:00.000Z", account_id=ME)

    def revert(self, targets: list[Chain], moment: str) -> Any:
        """Apply a plan as the journal does."""
        made = self.plan(targets)
        for restoration in made.restorations:
            entry = restoration.entry
            self.write(
                entry.record_id, dict(restoration.values), revert_change_id(entry.id), ai=False
            )
            self.entries.append(
                JournalEntry(
                    id=derived_id("journal", entry.id, entry.table, entry.record_id),
                    table=entry.table,
                    record_id=entry.record_id,
                    mission_id="m",
                    iteration_id="i",
                    step_id=entry.step_id,
                    revert_of=entry.id,
                    reverted_at=None,
                    before=restoration.before,
                    after={p: PathImage(v, None) for p, v in restoration.values.items()},
                    created=False,
                    sentence="",
                    at=f"{self.writes:06d}",
                )
            )
            position = next(i for i, one in enumerate(self.entries) if one.id == entry.id)
            self.entries[position] = JournalEntry(
                **{
                    **{name: getattr(entry, name) for name in JournalEntry.__dataclass_fields__},
                    "reverted_at": moment,
                }
            )
        return made

    def values(self) -> dict[tuple[str, str], Json]:
        return {
            (record, path): now.value
            for record, paths in self.paths.items()
            for path, now in paths.items()
        }


VALUES = st.dictionaries(st.sampled_from(PATHS), st.text("abc", max_size=2), min_size=1, max_size=3)
ACTS = st.lists(
    st.tuples(st.sampled_from(("step", "edit", "delete")), st.sampled_from(RECORDS), VALUES),
    max_size=12,
)


def played(acts: list[tuple[str, str, dict[str, str]]]) -> Tiny:
    tiny = Tiny()
    for kind, record, values in acts:
        deleted = tiny.paths.get(record, {}).get(DELETED_AT)
        gone = deleted is not None and deleted.value is not None
        if kind == "step" and not gone:
            tiny.step(record, dict(values))
        elif kind == "edit":
            tiny.edit(record, dict(values))
        elif kind == "delete" and record in tiny.paths:
            tiny.edit(record, {DELETED_AT: "2026-11-20T00:00:00.000Z"})
    return tiny


@given(ACTS)
def test_whole_revert_restores_what_is_the_agents_and_reports_the_rest(
    acts: list[tuple[str, str, dict[str, str]]],
) -> None:
    """Reverting a mission leaves no value of the agent except where a conflict says so."""
    tiny = played(acts)
    theirs = {key for key in tiny.values() if tiny.paths[key[0]][key[1]].actor.kind == "user"}
    kept = {key: tiny.values()[key] for key in theirs}
    found = chains(tiny.entries)
    made = tiny.revert(found, "t1")
    reported = {(one.record_id, one.field) for one in made.conflicts}
    records = {one.record_id for one in made.conflicts if one.field == DELETED_AT}
    for (record, path), now in [
        ((record, path), now) for record, paths in tiny.paths.items() for path, now in paths.items()
    ]:
        if now.actor.kind != "ai":
            continue
        tombstone = tiny.paths[record].get(DELETED_AT)
        gone = tombstone is not None and tombstone.value is not None
        assert gone or (record, path) in reported or record in records
    for key, value in kept.items():
        # What the person wrote stands, whatever was reverted around it.
        assert tiny.values()[key] == value


@given(ACTS)
def test_steps_without_edits_leave_no_trace(
    acts: list[tuple[str, str, dict[str, str]]],
) -> None:
    """Where nobody else wrote after the first step, a revert brings back exactly what was."""
    tiny = Tiny()
    for _, record, values in acts[:2]:
        tiny.edit(record, {**values})
    before = {key: value for key, value in tiny.values().items() if value is not None}
    mine = set(tiny.paths)
    for _, record, values in acts[2:]:
        tiny.step(record, dict(values))
    made = tiny.revert(chains(tiny.entries), "t1")
    assert made.conflicts == ()
    after = {
        key: value for key, value in tiny.values().items() if value is not None and key[0] in mine
    }
    assert after == before
    for record in set(tiny.paths) - mine:
        assert tiny.paths[record][DELETED_AT].value is not None


@given(ACTS, st.integers(1, 4))
def test_redo_is_the_revert_of_the_revert(
    acts: list[tuple[str, str, dict[str, str]]], times: int
) -> None:
    """Revert and redo without edits in between come back to the same values, again and again."""
    tiny = Tiny()
    for _, record, values in acts:
        tiny.step(record, dict(values))

    def live() -> dict[tuple[str, str], Json]:
        return {key: value for key, value in tiny.values().items() if value is not None}

    before = live()
    for turn in range(times):
        tiny.revert([one for one in chains(tiny.entries) if not one.reverted], f"a{turn}")
        undone = chains(tiny.entries)
        assert all(one.reverted for one in undone)
        made = tiny.revert(list(reversed(undone)), f"b{turn}")
        assert made.conflicts == ()
        assert live() == before


@given(ACTS)
def test_preview_is_the_revert(acts: list[tuple[str, str, dict[str, str]]]) -> None:
    """Planning twice says the same, and planning changes nothing."""
    tiny = played(acts)
    before = tiny.values()
    found = chains(tiny.entries)
    assert tiny.plan(found) == tiny.plan(found)
    assert tiny.values() == before


@given(ACTS)
def test_second_revert_finds_nothing_of_the_first(
    acts: list[tuple[str, str, dict[str, str]]],
) -> None:
    """A revert that is repeated restores nothing again."""
    tiny = played(acts)
    tiny.revert(chains(tiny.entries), "t1")
    left = [one for one in chains(tiny.entries) if not one.reverted]
    assert tiny.plan(left).restorations == ()


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


@pytest.mark.anyio
@pytest.mark.postgres
async def test_revert_redo_and_conflict_on_real_records(home: Household) -> None:
    """On a device and a hub: revert, redo, and a field that the person edited since stays."""
    ada = await home.person(model=ScriptedModel([]))
    of = operations(ada)
    mission, notes, tasks = await planned_mission(ada, runs_on="device", preset="aggressive")
    planner = ScriptedModel(
        [
            says(
                "",
                calling("append_to_note", {"noteId": notes[0], "content": "Asked Bo."}),
                calling("complete_task", {"taskId": tasks[0]}),
                calling("create_task", {"title": "Call Bo"}),
            ),
            says("Done."),
        ]
    )
    object.__setattr__(of.opened, "model", planner)
    content = (await ada.get("notes", notes[0])).text("content")
    await ada.run_now(mission)
    assert (await ada.get("notes", notes[0])).text("content").endswith("Asked Bo.")
    (bucket,) = await ada.timeline()
    target = f"iteration:{bucket.iteration_id}"
    await ada.edit("notes", notes[0], {"content": "My own words."})
    preview = await ada.revert_preview(target)
    assert [one.reason for one in preview.conflicts] == ["You changed it since."]
    assert {one.op for one in preview.restored} == {"update", "delete"}
    (changed,) = [line for line in (await ada.timeline())[0].lines if line.state == "changed"]
    assert changed.note == "Changed since by you."
    assert await ada.revert(target) == preview
    assert (await ada.get("notes", notes[0])).text("content") == "My own words."
    assert (await ada.get("tasks", tasks[0])).values["isCompleted"] is not True
    assert len(await ada.list("tasks")) == 2
    assert content
    with pytest.raises(Invalid):
        await ada.revert("everything")
    states = {line.state for line in (await ada.timeline())[0].lines}
    assert states == {"changed", "reverted"}
    done = next(line for line in (await ada.timeline())[0].lines if line.state == "reverted")
    redone = await ada.revert(f"revert:{done.journal_ids[0]}")
    assert redone.conflicts == ()
    assert (await ada.get("tasks", tasks[0])).values["isCompleted"] is True
    assert len(await ada.list("tasks")) == 3
    await ada.revert(f"mission:{mission}")
    assert len(await ada.list("tasks")) == 2
    with pytest.raises(NothingToRevert):
        await ada.revert(f"step:{done.step_id}")
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)


@pytest.mark.anyio
@pytest.mark.postgres
async def test_two_devices_that_revert_apart_agree(home: Household) -> None:
    """The same revert from two devices is one, and both end with the same records."""
    ada = await home.person(
        model=ScriptedModel([says("", calling("create_task", {"title": "Call Bo"})), says("")])
    )
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    await ada.run_now(mission)
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    home.places[1].wire.is_cut = True
    await phone.revert(f"mission:{mission}")
    await ada.revert(f"mission:{mission}")
    home.places[1].wire.is_cut = False
    await ada.sync_now()
    for device in (phone, ada, phone):
        await device.sync_now()
    assert len(await ada.list("tasks")) == len(await phone.list("tasks")) == 2
    ours = await operations(ada).opened.book.views(JOURNAL.name)
    theirs = await operations(phone).opened.book.views(JOURNAL.name)
    assert {view.id: dict(view.stamps) for view in ours} == {
        view.id: dict(view.stamps) for view in theirs
    }
    assert len(ours) == 2
    await phone.revert(f"revert:{ours[0].id}")
    assert len(await phone.list("tasks")) == 3


@pytest.mark.anyio
@pytest.mark.postgres
async def test_created_record_that_was_edited_is_kept(home: Household) -> None:
    """A record that the agent created and the person edited is not deleted by a revert."""
    ada = await home.person(
        model=ScriptedModel([says("", calling("create_task", {"title": "Call Bo"})), says("")])
    )
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    await ada.run_now(mission)
    made = next(view for view in await ada.list("tasks") if view.text("title") == "Call Bo")
    await ada.edit("tasks", made.id, {"description": "His number is on the fridge."})
    preview = await ada.revert(f"mission:{mission}")
    assert preview.restored == ()
    assert [one.reason for one in preview.conflicts] == ["You changed it since. It stays."]
    assert not (await ada.get("tasks", made.id)).deleted
