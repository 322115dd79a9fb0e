"""What grows has an end: every table is listed with it, and what is said to go goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from mana.hub.sweeping.store import OldRows
from mana.testing.postgres import Database, Tenancy, connected
from tests.tenancy.rows import seed, tables

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
PAGE: Final = Path(__file__).parents[2] / "docs" / "operating.md"
AGES: Final[Mapping[str, tuple[str, ...]]] = {
    "mana.invites": ("expires_at",),
    "mana.security_events": ("at",),
    "mana.sessions": ("created_at", "seen_at"),
    "mana_ai.hub_spend": ("hour",),
    "mana_ai.occurrences": ("scheduled_for",),
    "mana_ai.spend": ("hour",),
    "mana_ai.token_usage": ("ts",),
}
"""By table that is kept for 400 days: what tells its age."""
ROWS_MAX: Final = 3
DAY_S: Final = 24 * 60 * 60


def listed() -> dict[str, str]:
    """Return what the page says of each table: what ends its rows."""
    rows = re.findall(r"^\| `(mana\w*\.\w+)` \|.*\| (.+) \|$", PAGE.read_text("utf-8"), re.M)
    assert len(rows) == len(dict(rows))
    return dict(rows)


async def fill(owner: asyncpg.Connection) -> None:
    """Put rows of everybody into every table, and some of the hub's hours."""
    await seed(owner, await tables(owner))
    await owner.execute(
        "insert into mana_ai.hub_spend (hour) select now() from generate_series(1, 5)"
    )
    await owner.execute("update mana_ai.occurrences set state = 'done'")
    # Of each mission a run by hand, and by its schedule two that ended, and the newest one waits.
    await owner.execute(
        "insert into mana_ai.occurrences (space_id, mission_id, account_id, scheduled_for, kind,"
        " state, due_at) select space_id, mission_id, account_id,"
        " scheduled_for + k.days * interval '1 day', 'scheduled', k.state, due_at"
        " from mana_ai.occurrences, (values (1, 'done'), (2, 'skipped'), (3, 'queued')) k (days, state)"
    )


async def grow_old(owner: asyncpg.Connection, days: int) -> None:
    """Make every row of the tables that are swept so old."""
    for table, columns in AGES.items():
        times = (
            "row_number() over (order by scheduled_for)" if table == "mana_ai.occurrences" else "0"
        )
        moved = ", ".join(f"{column} = aged.at" for column in columns)
        await owner.execute(
            f"update {table} t set {moved} from (select ctid as place, now() - interval '{days} days'"
            f" + ({times}) * interval '1 second' as at from {table}) aged where t.ctid = aged.place"
        )


async def counts(owner: asyncpg.Connection, names: Iterable[str] = ()) -> dict[str, int]:
    """Return how many rows there are, by table."""
    some = ", ".join(f"'{name}', (select count(*) from {name})" for name in names or listed())
    found: dict[str, int] = json.loads(await owner.fetchval(f"select json_build_object({some})"))
    return found


async def sweep(tenancy: Tenancy, owner: asyncpg.Connection) -> None:
    """Sweep until everybody's turn came, a page at a time; no pass removes more than allowed."""
    old = OldRows(tenancy, places=4, rows_max=ROWS_MAX)
    now = await counts(owner, AGES)
    for _ in range(60):
        before = now
        await old.sweep()
        now = await counts(owner, AGES)
        assert all(before[table] - now[table] <= ROWS_MAX for table in AGES)


async def test_every_table_is_listed(database: Database) -> None:
    """The page for operators says of each table what ends its rows."""
    async with connected(database.owner_url) as owner:
        assert set(listed()) == set(await tables(owner))
    assert {table for table, ends in listed().items() if "400 days" in ends} == set(AGES)


async def test_what_is_old_goes_and_nothing_else(database: Database, tenancy: Tenancy) -> None:
    """Rows of 399 days stay; those of 401 go a bounded part at a time, of accounts too that do
    nothing; what waits, and the newest run of each kind that ended, stays whatever its age."""
    async with connected(database.owner_url) as owner:
        await fill(owner)
        await owner.execute("delete from mana.resets; delete from mana.letter_places")
        await grow_old(owner, 399)
        young = await counts(owner)
        await sweep(tenancy, owner)
        assert await counts(owner) == young
        await grow_old(owner, 401)
        await sweep(tenancy, owner)
        left = await counts(owner)
        gone = {table for table in left if left[table] != young[table]}
        assert gone == {*AGES, "mana.refresh_tokens"}
        assert [left[table] for table in AGES if table != "mana_ai.occurrences"] == [0] * 6
        missions = await owner.fetchval(
            "select count(distinct (space_id, mission_id)) from mana_ai.occurrences"
        )
        states = await owner.fetch(
            "select kind, state, count(*) from mana_ai.occurrences group by 1, 2 order by 1, 2"
        )
        assert [tuple(row) for row in states] == [
            ("manual", "done", missions),
            ("scheduled", "queued", missions),
            ("scheduled", "skipped", missions),
        ]


async def test_a_clock_that_jumped_removes_nothing(database: Database, tenancy: Tenancy) -> None:
    """While the database's clock is further than time went everything stays; once it is right again
    what is old goes."""
    passed = [50.0 * DAY_S]
    old = OldRows(tenancy, passed_s=lambda: passed[0])
    await old.sweep()
    async with connected(database.owner_url) as owner:
        await fill(owner)
        await grow_old(owner, 401)
        for days in (19, 81):
            passed[0] = days * DAY_S
            for _ in range(3):
                await old.sweep()
            assert (await counts(owner, ["mana_ai.spend"]))["mana_ai.spend"] > 0
        passed[0] = 70 * DAY_S
        for _ in range(3):
            await old.sweep()
        assert (await counts(owner, ["mana_ai.spend"]))["mana_ai.spend"] == 0


async def test_what_is_over_goes(database: Database, tenancy: Tenancy) -> None:
    """What is good for an hour or a day is gone soon after."""
    async with connected(database.owner_url) as owner:
        await fill(owner)
        await owner.execute(
            "update mana.resets set expires_at = now();"
            " update mana.letter_places set codes_since = now() - interval '25 hours',"
            " letter_at = now() - interval '2 hours' where codes = 1;"
            " update mana.letter_places set codes_since = now() - interval '25 hours',"
            " letter_at = now() - interval '25 hours' where codes > 1"
        )
        for _ in range(3):
            await OldRows(tenancy, rows_max=ROWS_MAX).sweep()
        left = await counts(owner)
        assert (left["mana.resets"], left["mana.letter_places"]) == (0, 1)
