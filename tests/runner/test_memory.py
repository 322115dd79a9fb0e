"""An older copy of the database brings nothing back: no grant, no mission record, no audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mana.domain.grants import LIFE_MS_MAX
from mana.hub.runner.memory import KEPT_MS, MEMORY_FILE, SLACK_MS, MemoryUnusable, RunnerMemory
from mana.hub.runner.settings import RunnerSettings
from mana.testing.postgres import Database, connected
from tests.runner.world import InlineWorkers, World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio]

RESTORED = (
    "mana.records",
    "mana.sync_changes",
    "mana_ai.grants",
    "mana_ai.mission_snapshots",
    "mana_ai.decrypt_audit",
    "mana_ai.audit_heads",
)
"""What an older copy of the database brings back, of what the runner reads."""


async def dump(database: Database) -> dict[str, list[str]]:
    """Return the rows of these tables, as a copy of the database holds them."""
    async with connected(database.owner_url) as owner:
        return {
            table: [row[0] for row in await owner.fetch(f"select to_jsonb(t)::text from {table} t")]
            for table in RESTORED
        }


async def restore(database: Database, rows: dict[str, list[str]]) -> None:
    """Put an older copy of these tables in the place of what is there, past every guard."""
    async with connected(database.owner_url) as owner, owner.transaction():
        await owner.execute("set local session_replication_role = replica")
        for table in RESTORED:
            await owner.execute(f"delete from {table}")
            for row in rows[table]:
                await owner.execute(
                    f"insert into {table} select * from jsonb_populate_record(null::{table}, $1)",
                    row,
                )


async def tick(made: World) -> None:
    async with made.runner() as runner:
        assert (await runner.scheduler.tick()).errors == []


async def last(made: World) -> tuple[str, str | None]:
    """Return state and reason of the newest occurrence."""
    line = (await made.status()).occurrences[0]
    return line.state, line.reason


@pytest.mark.postgres
async def test_revoked_grant_stays_so(database: Database, opened: list[str]) -> None:
    """A grant that ended between two runs does not open after an older database was put back."""
    async with world(database) as made:
        header = await made.ready()
        older = await dump(database)
        await made.revoke(header)
        await tick(made)  # Nothing is due: the runner hears of the end, and remembers it.
        await restore(database, older)
        await made.run_now()
        await tick(made)
        assert await last(made) == ("skipped", "revoked")
    assert opened == []


@pytest.mark.postgres
async def test_replaced_grant_stays_so(database: Database, opened: list[str]) -> None:
    """A grant that another one replaced does not open after an older database was put back."""
    async with world(database) as made:
        await made.ready()
        older = await dump(database)
        await made.grant()
        await tick(made)
        await restore(database, older)
        await made.run_now()
        await tick(made)
        assert await last(made) == ("skipped", "revoked")
    assert opened == []


@pytest.mark.postgres
async def test_older_mission_record_names_nothing(database: Database, opened: list[str]) -> None:
    """A runner that saw a newer word of a mission on its grant obeys no older one, even where it
    never saw the grant end."""
    async with world(database) as made:
        await made.ready()
        older = await dump(database)
        await made.grant()
        await made.run_now()
        await tick(made)
        assert await last(made) == ("done", None)
        opened.clear()
        forget(made, "ended")
        now = await dump(database)
        chain = {name: now[name] for name in ("mana_ai.decrypt_audit", "mana_ai.audit_heads")}
        await restore(database, {**older, **chain})
        await made.run_now()
        await tick(made)
        assert await last(made) == ("skipped", "set-back")
    assert opened == []


def forget(made: World, part: str) -> None:
    """Remove a part of the runner's memory, to see that another part keeps it too."""
    path = made.home / "secrets" / MEMORY_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), part: {}}))


@pytest.mark.postgres
async def test_only_the_named_grant_opens(database: Database, opened: list[str]) -> None:
    """A grant that the mission's signed record does not name opens no input, active or not."""
    async with world(database) as made:
        header = await made.ready()
        for named, reason in ((None, "no-grant"), (header.mission_id, "scope-mismatch")):
            await made.edit_mission(grantId=named)
            await made.run_now()
            await tick(made)
            assert await last(made) == ("skipped", reason)
        assert "notes:note-1" not in opened
        await made.edit_mission(grantId=header.grant_id)
        await made.run_now()
        await tick(made)
        assert await last(made) == ("done", None)


@pytest.mark.postgres
@pytest.mark.parametrize("longer", [False, True])
async def test_shorter_audit_opens_nothing(
    database: Database, opened: list[str], longer: bool
) -> None:
    """An audit that lacks what the runner wrote is not written on, nor another in its place."""
    async with world(database) as made:
        await made.ready()
        older = await dump(database)
        await made.run_now()
        await tick(made)
        opened.clear()
        await restore(database, {**await dump(database), **only_audit(older)})
        if longer:
            # Somebody else's runner wrote a chain of its own, longer than ours was.
            path = made.home / "secrets" / MEMORY_FILE
            kept = path.read_text()
            path.unlink()
            for _ in range(2):
                await made.run_now()
                await tick(made)
            opened.clear()
            path.write_text(kept)
        before = (await made.audit()).head_seq
        await made.run_now()
        await tick(made)
        assert await last(made) == ("skipped", "set-back")
        assert (await made.audit()).head_seq == before
    assert opened == []


def only_audit(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: rows[name] for name in ("mana_ai.decrypt_audit", "mana_ai.audit_heads")}


@pytest.mark.postgres
async def test_nothing_opens_that_cannot_be_remembered(
    database: Database, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory cannot be written, the run breaks off before the first record is opened."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()

        def full(*_args: object) -> None:
            raise OSError("no space left on device")

        async with made.runner(workers=InlineWorkers()) as runner:
            monkeypatch.setattr("mana.hub.runner.memory.write_secret", full)
            stats = await runner.scheduler.tick()
        assert "RUNNER_MEMORY_UNUSABLE" in " ".join(stats.errors)
        assert (await made.status()).occurrences[0].state == "queued"
    assert opened == []


def memory(home: Path, clock: list[int]) -> RunnerMemory:
    settings = RunnerSettings(home=home, database_url="")
    return RunnerMemory(settings, now_ms=lambda: clock[0])


async def test_runners_of_one_machine_share_it(tmp_path: Path) -> None:
    """What one runner remembers another one of the same folder knows at once; nothing is undone
    by who knows less."""
    clock = [now_ms()]
    one, two = memory(tmp_path, clock), memory(tmp_path, clock)
    await one.saw_end({"grant-1": clock[0] + 1})
    await two.saw_end({"grant-2": clock[0] + 1})
    for seq, at, teller in ((2, "b", two), (1, "a", one)):
        await teller.saw("ada", space_id="s", mission_id="m", named_at=at, head=(seq, f"h{seq}"))
    for each in (one, two, memory(tmp_path, clock)):
        assert each.has_ended("grant-1")
        assert each.has_ended("grant-2")
        assert each.named_at("s", "m") == "b"
        assert each.head("ada") == (2, "h2")


async def test_it_holds_what_can_still_matter(tmp_path: Path) -> None:
    """Entries go when every grant that they could refuse has passed its signed end, not sooner."""
    clock = [now_ms()]
    kept = memory(tmp_path, clock)
    ends = clock[0] + LIFE_MS_MAX
    await kept.saw_end({"grant-1": ends})
    await kept.saw("ada", space_id="s", mission_id="m", named_at="a", head=(1, "h"))
    clock[0] = ends - 1
    await kept.saw_end({"grant-2": ends})
    assert kept.has_ended("grant-1")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("a", (1, "h"))
    clock[0] = ends + max(SLACK_MS, KEPT_MS - LIFE_MS_MAX) + 1
    await kept.saw_end({"grant-3": clock[0] + 1})
    assert not kept.has_ended("grant-1")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("", None)
    assert len(json.loads((tmp_path / "secrets" / MEMORY_FILE).read_text())["ended"]) == 1


@pytest.mark.parametrize("how", ["an older one", "gone"])
async def test_a_running_runner_forgets_nothing(tmp_path: Path, how: str) -> None:
    """A memory that is put back or removed under a runner takes nothing from what it knows, and
    is whole again at the next tick, whether there is news or not."""
    clock = [now_ms()]
    path, kept = tmp_path / "secrets" / MEMORY_FILE, memory(tmp_path, clock)
    await kept.saw_end({"grant-1": clock[0] + 1})
    older = path.read_bytes()
    await kept.saw_end({"grant-2": clock[0] + 1})
    await kept.saw("ada", space_id="s", mission_id="m", named_at="b", head=(2, "h2"))
    path.unlink()
    if how == "an older one":
        path.write_bytes(older)
    assert kept.has_ended("grant-2")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("b", (2, "h2"))
    await kept.saw_end({"grant-1": clock[0] + 1})
    again = memory(tmp_path, clock)
    assert again.has_ended("grant-2")
    assert (again.named_at("s", "m"), again.head("ada")) == ("b", (2, "h2"))


async def test_a_broken_memory_is_told(tmp_path: Path) -> None:
    """A memory that cannot be read stops the runner, which would forget otherwise."""
    path = tmp_path / "secrets" / MEMORY_FILE
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(MemoryUnusable):
        memory(tmp_path, [now_ms()])
