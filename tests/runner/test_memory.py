"""An older copy of the database brings nothing back: no grant, no mission record, no audit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mana.domain.grants import LIFE_MS_MAX
from mana.hub.runner.ages import Reading
from mana.hub.runner.memory import (
    FOLDED_EVERY_MS,
    JOURNAL_FILE,
    KEPT_MS,
    MEMORY_FILE,
    SLACK_MS,
    WORD_KEPT_MS,
    MemoryUnusable,
    RunnerMemory,
)
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
    for name in (MEMORY_FILE, JOURNAL_FILE):
        path = made.home / "secrets" / name
        if path.exists():
            lines = [{**json.loads(line), part: {}} for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))


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
            kept = taken(made.home)
            for _ in range(2):
                await made.run_now()
                await tick(made)
            opened.clear()
            put_back(made.home, kept)
        before = (await made.audit()).head_seq
        await made.run_now()
        await tick(made)
        assert await last(made) == ("skipped", "set-back")
        assert (await made.audit()).head_seq == before
    assert opened == []


def taken(home: Path) -> dict[str, bytes]:
    """Take the runner's memory away, and return it."""
    paths = [home / "secrets" / name for name in (MEMORY_FILE, JOURNAL_FILE)]
    kept = {path.name: path.read_bytes() for path in paths if path.exists()}
    for path in paths:
        path.unlink(missing_ok=True)
    return kept


def put_back(home: Path, kept: dict[str, bytes]) -> None:
    """Put a memory in the place of what is there."""
    taken(home)
    for name, raw in kept.items():
        (home / "secrets" / MEMORY_FILE).with_name(name).write_bytes(raw)


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
            monkeypatch.setattr("mana.hub.runner.memory.append_line", full)
            stats = await runner.scheduler.tick()
        assert "RUNNER_MEMORY_UNUSABLE" in " ".join(stats.errors)
        assert (await made.status()).occurrences[0].state == "queued"
    assert opened == []


def memory(home: Path, clock: list[int]) -> RunnerMemory:
    settings = RunnerSettings(home=home, database_url="")
    return RunnerMemory(settings, clocks=lambda: Reading("boot", clock[0], clock[0]))


async def test_runners_of_one_machine_share_it(tmp_path: Path) -> None:
    """What one runner remembers another one of the same folder knows at once; nothing is undone
    by who knows less."""
    clock = [now_ms()]
    one, two = memory(tmp_path, clock), memory(tmp_path, clock)
    await one.saw_end({"grant-1": clock[0] + 1})
    await two.saw_end({"grant-2": clock[0] + 1})
    for seq, at, teller in ((2, "b", two), (1, "a", one)):
        await teller.saw_all("ada", named={("s", "m"): at}, head=(seq, f"h{seq}"))
    for each in (one, two, memory(tmp_path, clock)):
        assert each.has_ended("grant-1")
        assert each.has_ended("grant-2")
        assert each.named_at("s", "m") == "b"
        assert each.head("ada") == (2, "h2")


async def test_it_holds_what_can_still_matter(tmp_path: Path) -> None:
    """Entries go when every grant that they could refuse is over, not sooner."""
    clock = [now_ms()]
    kept = memory(tmp_path, clock)
    ends = clock[0] + LIFE_MS_MAX
    await kept.saw_end({"grant-1": ends})
    await kept.saw_all("ada", named={("s", "m"): "a"}, head=(1, "h"))
    clock[0] = ends - 1
    await kept.saw_end({"grant-2": ends})
    assert kept.has_ended("grant-1")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("a", (1, "h"))
    clock[0] = ends + max(SLACK_MS, KEPT_MS - LIFE_MS_MAX) + 1
    await kept.saw_end({"grant-3": clock[0] + 1})
    assert not kept.has_ended("grant-1")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("", None)
    kept_ends = json.loads((tmp_path / "secrets" / MEMORY_FILE).read_text())["ended"]
    assert set(kept_ends) == {"grant-2", "grant-3"}
    assert (tmp_path / "secrets" / JOURNAL_FILE).read_bytes() == b""


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_is_set_makes_it_forget_nothing(tmp_path: Path, restarted: bool) -> None:
    """What is known stays while the machine's clock is 400 days ahead, also where the machine was
    started anew with it; when so much time has passed, it goes."""
    settings = RunnerSettings(home=tmp_path, database_url="")
    now = Reading("boot", 1_000, now_ms())
    kept = RunnerMemory(settings, clocks=lambda: now)
    await kept.saw_end({"grant-1": now.wall_ms + 1})
    await kept.saw_all("ada", named={("s", "m"): "a"}, head=(1, "h"))
    await kept.saw_word("ada", 1, "w")
    await kept.saw_lifted("s", {"lifted/one": "a"})

    async def known(told: RunnerMemory) -> tuple[object, ...]:
        """Have it go through what it keeps, and return what another runner reads there then."""
        nonlocal now
        now = now._replace(up_ms=now.up_ms + FOLDED_EVERY_MS)
        await told.saw_end({f"grant-{now.up_ms}": 0})
        there = RunnerMemory(settings, clocks=lambda: now)
        words = there.word("ada"), dict(there.lifted("s"))
        return (there.has_ended("grant-1"), there.named_at("s", "m"), there.head("ada"), *words)

    everything = (True, "a", (1, "h"), (1, "w"), {"lifted/one": "a"})
    now = now._replace(wall_ms=now.wall_ms + WORD_KEPT_MS + SLACK_MS)
    if restarted:
        now = now._replace(boot="boot again", up_ms=0)
        kept = RunnerMemory(settings, clocks=lambda: now)
    assert await known(kept) == everything
    now = now._replace(up_ms=now.up_ms + KEPT_MS)
    assert await known(kept) == (False, "", None, *everything[3:])
    now = now._replace(up_ms=now.up_ms + WORD_KEPT_MS - KEPT_MS)
    assert await known(kept) == (False, "", None, None, {})


@pytest.mark.parametrize("how", ["an older one", "gone"])
@pytest.mark.parametrize("folded", [False, True])
async def test_a_running_runner_forgets_nothing(tmp_path: Path, how: str, folded: bool) -> None:
    """A memory that is put back or removed under a runner takes nothing from what it knows, and
    is whole again at the next tick, whether there is news or not."""
    clock = [now_ms()]
    kept = memory(tmp_path, clock)
    await kept.saw_end({"grant-1": clock[0] + LIFE_MS_MAX})
    if folded:
        clock[0] += FOLDED_EVERY_MS
        await kept.saw_end({"grant-0": clock[0] + LIFE_MS_MAX})
    older = taken(tmp_path)
    put_back(tmp_path, older)
    await kept.saw_end({"grant-2": clock[0] + LIFE_MS_MAX})
    await kept.saw_all("ada", named={("s", "m"): "b"}, head=(2, "h2"))
    taken(tmp_path)
    if how == "an older one":
        put_back(tmp_path, older)
    assert kept.has_ended("grant-2")
    assert (kept.named_at("s", "m"), kept.head("ada")) == ("b", (2, "h2"))
    await kept.saw_end({"grant-1": clock[0] + LIFE_MS_MAX})
    again = memory(tmp_path, clock)
    assert again.has_ended("grant-2")
    assert (again.named_at("s", "m"), again.head("ada")) == ("b", (2, "h2"))


async def test_what_a_crash_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    """A line that was not written whole was told to nobody; those before and after it stand."""
    clock = [now_ms()]
    path, kept = tmp_path / "secrets" / JOURNAL_FILE, memory(tmp_path, clock)
    await kept.saw_end({"grant-1": clock[0] + LIFE_MS_MAX})
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:20], b"{"):
        with path.open("ab") as file:
            file.write(torn)
        again = memory(tmp_path, clock)
        assert again.has_ended("grant-1")
        assert kept.has_ended("grant-1")
        assert not again.has_ended("grant-2")
        await again.saw_end({f"grant-{len(torn)}": clock[0] + LIFE_MS_MAX})
        assert all(
            one.has_ended(f"grant-{len(torn)}") for one in (kept, again, memory(tmp_path, clock))
        )
    assert path.read_bytes().startswith(whole)


async def test_news_of_one_moment_go_to_the_disk_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred accounts that have news wait for few writes, each until its own is on the disk;
    what is known costs a later line nothing, and a mission that is named as before is no news."""
    clock = [now_ms()]
    path, kept = tmp_path / "secrets" / JOURNAL_FILE, memory(tmp_path, clock)
    await asyncio.gather(
        *(
            kept.saw_all(f"account-{one}", named={("s", f"m-{one}"): "a"}, head=(1, "h"))
            for one in range(100)
        )
    )
    assert len(path.read_bytes().splitlines()) <= 3
    again = memory(tmp_path, clock)
    assert {again.head(f"account-{one}") for one in range(100)} == {(1, "h")}
    size = path.stat().st_size
    await kept.saw_all("account-1", named={("s", "m-1"): "a"}, head=(2, "h"))
    assert path.stat().st_size - size < 200
    assert b"m-1" not in path.read_bytes()[size:]


async def test_a_long_journal_is_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the journal is long it begins anew, and nobody who shares it misses a word."""
    monkeypatch.setattr("mana.hub.runner.memory.JOURNAL_BYTES_MAX", 2_000)
    clock = [now_ms()]
    path = tmp_path / "secrets" / JOURNAL_FILE
    one, two = memory(tmp_path, clock), memory(tmp_path, clock)
    for seq in range(60):
        teller, hearer = (one, two) if seq % 3 else (two, one)
        await teller.saw_all(f"ada-{seq % 7}", named={("s", "m"): f"{seq:04}"}, head=(seq, "h"))
        assert hearer.head(f"ada-{seq % 7}") == (seq, "h")
        assert hearer.named_at("s", "m") == f"{seq:04}"
        assert path.stat().st_size < 3_000


@pytest.mark.parametrize("name", [MEMORY_FILE, JOURNAL_FILE])
async def test_a_broken_memory_is_told(tmp_path: Path, name: str) -> None:
    """A memory that cannot be read stops the runner, which would forget otherwise."""
    path = tmp_path / "secrets" / name
    path.parent.mkdir(parents=True)
    path.write_text("{\n")
    with pytest.raises(MemoryUnusable):
        memory(tmp_path, [now_ms()])
