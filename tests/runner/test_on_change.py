"""Missions that wait for a change: started by what a person writes, and by nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mana.domain.actors import agent_at_work
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.protocol.messages import OccurrenceInfo
from mana.testing.accounts import sealed_change
from mana.testing.postgres import Database, connected
from mana.testing.spaces import invitation, shared_space
from tests.hub.client import codes, served_hub
from tests.runner.world import CANARY, NOTE, World, leave_runner_key, now_ms, world
from tests.tenancy.household import Household, founded

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

DEBOUNCE, SPACING = 10, 60
CADENCE: Json = {"kind": "onChange", "debounceMinutes": DEBOUNCE, "spacingMinutes": SPACING}
MINUTE_MS = 60_000
SLACK_MS = 20_000
"""How long the machine may take between two calls of a test."""


@contextlib.asynccontextmanager
async def waiting(database: Database) -> AsyncIterator[World]:
    """Lend a world in which a mission waits for a change of one of two notes."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.note("note-2")
        await made.mission(cadence=CADENCE)
        await made.grant()
        yield made


async def queued(made: World, mission: str = "mission-1") -> list[OccurrenceInfo]:
    return [one for one in (await made.status(mission)).occurrences if one.state == "queued"]


async def write(made: World, note: str = "note-1", **options: Any) -> None:
    await made.push(made.change(NOTE, note, {"title": f"Other {CANARY}"}, op="update", **options))


async def sql(database: Database, statement: str) -> None:
    async with connected(database.owner_url) as owner:
        await owner.execute(statement)


def minutes(line: OccurrenceInfo) -> float:
    """Return how many minutes from now an occurrence is due."""
    assert line.due_at is not None
    return (parse_iso_ms(line.due_at) - now_ms()) / MINUTE_MS


async def test_a_change_queues_one_run(database: Database) -> None:
    """A person's change of an input queues one run, which waits until the input has rested."""
    async with waiting(database) as made:
        assert await queued(made) == []
        await write(made)
        [line] = await queued(made)
        assert line.kind == "change"
        assert abs(parse_iso_ms(line.scheduled_for) - now_ms()) < SLACK_MS
        assert abs(minutes(line) - DEBOUNCE) < SLACK_MS / MINUTE_MS


async def test_what_is_not_an_input_starts_nothing(database: Database) -> None:
    """A change of a record that the grant does not name queues nothing."""
    async with waiting(database) as made:
        await write(made, "note-2")
        assert await queued(made) == []


async def test_later_changes_put_it_off_for_a_while(database: Database) -> None:
    """Each further change waits for rest again, but no longer than four times that in all."""
    async with waiting(database) as made:
        await write(made)
        [first] = await queued(made)
        await sql(
            database,
            f"update mana_ai.occurrences set scheduled_for = scheduled_for - interval '35 min',"
            f" due_at = due_at - interval '{DEBOUNCE - 1} min'",
        )
        await write(made)
        [second] = await queued(made)
        assert second.occurrence_id == first.occurrence_id
        assert abs(minutes(second) - 5) < SLACK_MS / MINUTE_MS


async def test_runs_on_change_keep_their_distance(database: Database) -> None:
    """After a run on change the next one comes no sooner than the person allows."""
    async with waiting(database) as made:
        await write(made)
        await sql(
            database,
            "update mana_ai.occurrences set state = 'done', started_at = now() - interval '20 min'",
        )
        await write(made)
        [line] = await queued(made)
        assert abs(minutes(line) - (SPACING - 20)) < SLACK_MS / MINUTE_MS


async def test_a_change_during_the_run_counts(database: Database) -> None:
    """What is changed while a run works on the input before is not lost: another run follows."""
    async with waiting(database) as made:
        await write(made)
        await sql(
            database,
            "update mana_ai.occurrences set state = 'leased', lease_until = now() + interval '1 h',"
            " started_at = now()",
        )
        await write(made)
        assert len(await queued(made)) == 1


async def test_no_retry_is_hurried(database: Database) -> None:
    """A run that waits for another try is not moved forward by a change."""
    async with waiting(database) as made:
        await write(made)
        await sql(
            database,
            "update mana_ai.occurrences set tries = 1, due_at = now() + interval '50 min'",
        )
        await write(made)
        [line] = await queued(made)
        assert minutes(line) > 49


async def test_what_agents_write_starts_nothing(database: Database) -> None:
    """No mission is started by an agent's effects, so no two start each other."""
    async with waiting(database) as made:
        agent = agent_at_work("agent-1", "mission-2", "run-1")
        await write(made, actor=agent)
        assert await queued(made) == []
        await write(made)
        assert len(await queued(made)) == 1


CHANGED = "select mana_ai.changed($1, $2, $3, $4, $5, $6, $7)"


def columns(**values: str) -> list[str]:
    """Return the columns of one logged change of the input, as the push hands them over."""
    given = {
        "tables": "notes",
        "records": "note-1",
        "visibilities": "space",
        "ops": "update",
        "origins": "user",
        "groups": "",
    }
    for name, value in values.items():
        given["visibilities" if name == "visibility" else f"{name}s"] = value
    return list(given.values())


@pytest.mark.parametrize(
    ("values", "starts"),
    [
        ({}, True),
        ({"op": "insert"}, True),
        ({"op": "delete"}, True),
        ({"op": "reseal"}, False),
        ({"op": "flip"}, False),
        ({"visibility": "private"}, False),
        ({"origin": "agent"}, False),
        ({"origin": "system"}, False),
        ({"origin": "migration"}, False),
        ({"record": "note-2"}, False),
        ({"table": "tasks"}, False),
    ],
)
async def test_only_a_persons_change_of_content_starts(
    database: Database, values: dict[str, str], starts: bool
) -> None:
    """New keys, changes of who sees a record, private records and other hands start nothing."""
    async with waiting(database) as made:
        async with connected(database.owner_url) as owner:
            await owner.execute(CHANGED, made.ada.space, *columns(**values))
        assert bool(await queued(made)) == starts


@pytest.mark.parametrize(("origins", "starts"), [("user\x1fuser", True), ("user\x1fagent", False)])
async def test_an_approved_group_starts_nothing(
    database: Database, origins: str, starts: bool
) -> None:
    """A group in which an agent's effect stands is what somebody approved, not what they wrote."""
    async with waiting(database) as made:
        async with connected(database.owner_url) as owner:
            two = ["notes\x1ftodos", "note-1\x1ft", "space\x1fspace", "update\x1finsert"]
            await owner.execute(CHANGED, made.ada.space, *two, origins, "g\x1fg")
        assert bool(await queued(made)) == starts


@pytest.mark.parametrize(
    "edit",
    [
        {"state": "paused"},
        {"deletedAt": "2026-11-21T05:23:00.123Z"},
        {"runsOn": "device:00000000-0000-4000-8000-000000000001"},
        {"cadence": {"kind": "manual"}},
    ],
)
async def test_watched_only_while_it_may_run(database: Database, edit: dict[str, Json]) -> None:
    """A mission that is paused, deleted, moved or has another cadence waits for nothing more."""
    async with waiting(database) as made:
        await write(made)
        await made.edit_mission(**edit)
        await write(made)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana_ai.occurrences") == 0
            assert await owner.fetchval("select count(*) from mana_ai.watched") == 0


async def test_watched_only_under_a_grant(database: Database) -> None:
    """Without a grant nothing is watched; with a new one the mission waits again."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission(cadence=CADENCE)
        await write(made)
        assert await queued(made) == []
        header = await made.grant()
        await made.revoke(header)
        await write(made)
        assert await queued(made) == []
        await made.grant()
        await write(made)
        assert len(await queued(made)) == 1


async def test_watched_from_the_edit_on(database: Database) -> None:
    """A granted mission that is set to wait for changes does so from that edit on."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission()
        await made.grant()
        await made.edit_mission(cadence=CADENCE)
        await write(made)
        assert len(await queued(made)) == 1


async def test_a_held_mission_waits_for_its_person(database: Database) -> None:
    """A mission that failed too often is not started by changes."""
    async with waiting(database) as made:
        await sql(database, "update mana_ai.mission_snapshots set hold = 'errored'")
        await write(made)
        assert await queued(made) == []


async def test_members_start_each_others_missions(database: Database, tmp_path: Path) -> None:
    """In a shared space a member's change starts another's mission, under that other's account."""
    async with served_hub(database, home=tmp_path) as served:
        served.clock.now_ms = now_ms()
        people = {name: await served.sign_up(name) for name in ("ada", "bob", "vic")}
        ada_id = people["ada"].account.account_id
        space = shared_space(people["ada"].account, "team", now_ms=served.clock.now_ms)
        answer = await people["ada"].call("POST", "/api/v1/spaces", space.founded.new)
        assert answer.status_code == 201, answer.text
        open_ = invitation(space, "member", now_ms=1)
        made = Household(database, served, tmp_path, people, space, open_, "", "")
        await made.join("bob", "member")
        await made.join("vic", "viewer")
        ada = made.in_space("ada")
        leave_runner_key(ada.settings())
        await ada.agent()
        await ada.note("note-1")
        await ada.mission(cadence=CADENCE)
        await ada.complete(await ada.header(space_id=made.space.space_id))
        for name, started in (("vic", []), ("bob", [ada_id])):
            change = sealed_change(
                people[name].account,
                NOTE,
                "note-1",
                {"title": "other"},
                op="update",
                now_ms=now_ms(),
                space=founded(made.space),
                author_id=ada_id,
            )
            answer_ = await people[name].push([change], space=made.space.space_id)
            assert (codes(answer_) == ["accepted"]) == bool(started)
            async with connected(database.owner_url) as owner:
                rows = await owner.fetch(
                    "select account_id from mana_ai.occurrences where kind = 'change'"
                )
            assert [row["account_id"] for row in rows] == started
