"""Snapshots made anew in pages, whatever their size and wherever a page ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mana.domain.cadences import Cadence
from mana.domain.clock import Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.hub.runner.projection import MergedFacts, project
from mana.hub.runner.rebuilding import Rebuilt, rebuild_all
from mana.hub.tenants import Tenant
from mana.protocol.messages import StateField
from mana.testing.postgres import Database, opened_tenancy
from tests.runner.queued import Queued, account_id, queued, space_id

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

ANCHOR_MS = 1_790_000_000_000
_MOMENTS = (
    "(select space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at"
    " from mana_ai.occurrences)"
)
MISSIONS = {1: 5, 2: 0, 3: 1, 4: 2}
"""How many missions there are, by space."""


def values_of(table: str, number: int) -> dict[str, Json]:
    if table == "agents":
        return {"state": "paused", "maxTokensPerDay": number, "maxConcurrentMissions": 3}
    cadence = Cadence("daily", at_hour=number, at_minute=30)
    return {
        "cadence": cadence.to_wire(),
        "title": "enc:2:s1:" + "x" * 3_000,
        "agentId": "a",
        "timeZone": "Europe/Berlin",
        "maxCostPerDay": number,
        "deletedAt": iso_ms(ANCHOR_MS) if number == 4 else None,
    }


async def pushed(made: Queued, table: str, space: int, number: int) -> None:
    """Let a record stand as after a push: merged, and projected."""
    account, name = AccountId(account_id(space)), f"{table}-{number}"
    entries = {
        path: StateField(value, str(Stamp(ANCHOR_MS, 0, DeviceId(account_id(9)))), {}, "user", "c")
        for path, value in values_of(table, number).items()
    }
    async with opened_tenancy(made.database) as app, app.transaction(Tenant(account)) as tx:
        await project(tx, SpaceId(space_id(space)), [MergedFacts(table, name, account, entries)])
    await made.owner.execute(
        "insert into mana.records (space_id, table_name, record_id, author_id, visibility, fields,"
        " proofs, seq, deleted) values ($1, $2, $3, $4, 'space', $5, '{}', 1, false)",
        space_id(space),
        table,
        name,
        account,
        json.dumps({path: {"value": one.value, "at": one.at} for path, one in entries.items()}),
    )


async def standing(made: Queued) -> list[Any]:
    """Return every snapshot and every moment, as rows."""
    return [
        tuple(row)
        for table in (
            "mana_ai.mission_snapshots",
            "mana_ai.agent_snapshots",
            _MOMENTS,
        )
        for row in await made.owner.fetch(f"select * from {table} x order by 1, 2")
    ]


async def test_a_page_may_end_anywhere(database: Database) -> None:
    """Snapshots made anew are those of the pushes, however many records are read at a time."""
    async with queued(database) as made:
        await made.accounts(list(MISSIONS))
        for space, missions in MISSIONS.items():
            await made.owner.execute(
                "insert into mana.space_heads (space_id, seq) values ($1, 1)", space_id(space)
            )
            for number in range(missions):
                await pushed(made, "aiMissions", space, number)
            await pushed(made, "agents", space, space)
        before = await standing(made)
        assert len(before) == 8 + 4 + 7
        for page in (1, 2, 3, 100):
            await made.owner.execute(
                "delete from mana_ai.mission_snapshots; delete from mana_ai.agent_snapshots;"
                "delete from mana_ai.occurrences"
            )
            async with opened_tenancy(database) as app:
                assert await rebuild_all(app, page=page) == Rebuilt(missions=8, agents=4)
            assert await standing(made) == before


async def test_what_stands_right_is_not_written(database: Database) -> None:
    """Making anew what is right already changes no row, and what is wrong is put right."""
    async with queued(database) as made:
        await made.accounts([1])
        await made.owner.execute(
            "insert into mana.space_heads (space_id, seq) values ($1, 1)", space_id(1)
        )
        for number in range(2):
            await pushed(made, "aiMissions", 1, number)
        await pushed(made, "agents", 1, 0)
        before = await standing(made)
        await made.owner.execute(
            "update mana_ai.mission_snapshots set state = 'archived', max_cost_per_day = null"
            " where mission_id = 'aiMissions-1'"
        )
        marks = "select ctid::text from mana_ai.mission_snapshots order by mission_id"
        untouched, wrong = [row["ctid"] for row in await made.owner.fetch(marks)]
        async with opened_tenancy(database) as app:
            await rebuild_all(app)
        assert await standing(made) == before
        found = [row["ctid"] for row in await made.owner.fetch(marks)]
        assert found[0] == untouched
        assert found[1] != wrong
