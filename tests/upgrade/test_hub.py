"""A hub of an earlier release, brought up to date: nothing is gone, and everything goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from mana.crypto.envelope import Binding, RecordKey, open_field
from mana.hub.db import migrate, read_migrations
from mana.protocol.messages import PullAnswer, StateAnswer, StateRecord, Tokens
from mana.testing.accounts import sealed_change
from mana.testing.postgres import Database, connected
from tests.hub.client import Person, Served, codes, served_hub
from tests.runner.world import NOTE, World, now_ms
from tests.upgrade.before import FOLDERS, Before, read, restore, rows_of

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

# What a hub says of the moment, not of what it keeps.
MOMENTARY = frozenset({"hubTime"})


@dataclass
class Upgraded:
    """A hub of today over a database of then."""

    before: Before
    database: Database
    served: Served
    home: Path

    async def log_in(self, login: str) -> Person:
        person = Person(self.served, self.before.people[login], Tokens("", "", "", 0))
        answer = await person.log_in()
        assert answer.status_code == 200, answer.text
        person.tokens = msgspec.json.decode(answer.content, type=Tokens)
        return person


@contextlib.asynccontextmanager
async def upgraded(database: Database, home: Path, name: str) -> AsyncIterator[Upgraded]:
    before = read(name)
    await restore(database.owner_url, before)
    await migrate(database.owner_url)
    before.write_secrets(home)
    async with served_hub(database, home=home) as served:
        served.clock.now_ms = now_ms()
        yield Upgraded(before, database, served, home)


def kept_of(value: object) -> object:
    """Return an answer without what it says of the moment."""
    if isinstance(value, dict):
        return {name: kept_of(one) for name, one in value.items() if name not in MOMENTARY}
    return [kept_of(one) for one in value] if isinstance(value, list) else value


def holds(now: object, then: object) -> bool:
    """Say whether an answer says all that an older one said; a newer hub may say more."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(name in now and holds(now[name], one) for name, one in then.items())
    if isinstance(now, list) and isinstance(then, list):
        return len(now) == len(then) and all(map(holds, now, then))
    return now == then


@pytest.mark.parametrize("name", FOLDERS)
async def test_migrates_from(empty_database: Database, name: str) -> None:
    """The migrations of then are those of now, and the later ones run over real rows."""
    before = read(name)
    url = empty_database.owner_url
    await restore(url, before)
    later = [one.number for one in read_migrations() if one.number > before.migration]
    assert list(await migrate(url)) == later
    assert await migrate(url) == ()


@pytest.mark.parametrize("name", FOLDERS)
async def test_no_row_is_lost(empty_database: Database, name: str) -> None:
    """Every row of every table is there after the upgrade, with every value that it had."""
    before = read(name)
    url = empty_database.owner_url
    await restore(url, before)
    async with connected(url) as owner:
        assert await rows_of(owner) == before.rows  # what was kept is what was put in
    await migrate(url)
    async with connected(url) as owner:
        after = await rows_of(owner)
    for table, rows in before.rows.items():
        lost = [row for row in rows if not any(holds(now, row) for now in after[table])]
        assert lost == [], table
    assert len(before.rows["mana.sync_changes"]) == len(after["mana.sync_changes"]) > 0


@pytest.mark.parametrize("name", FOLDERS)
async def test_answers_are_the_same(empty_database: Database, tmp_path: Path, name: str) -> None:
    """Whatever an account could read before the upgrade, it reads the same after it."""
    async with upgraded(empty_database, tmp_path, name) as made:
        for login, answers in made.before.answers.items():
            person = await made.log_in(login)
            for path, then in answers.items():
                answer = await person.call("GET", path)
                assert answer.status_code == 200, f"{path}: {answer.text}"
                if path == "/api/v1/spaces":
                    then = by_space(then)
                    assert holds(by_space(answer.json()), then), path
                else:
                    assert holds(kept_of(answer.json()), kept_of(then)), path


def by_space(answer: object) -> dict[str, object]:
    """Return the spaces by id: they were a list of their own, and later a member of the answer."""
    spaces = answer if isinstance(answer, list) else answer["spaces"]  # type: ignore[index]
    return {one["spaceId"]: one for one in spaces}


@pytest.mark.parametrize("name", FOLDERS)
async def test_devices_go_on(empty_database: Database, tmp_path: Path, name: str) -> None:
    """A device of then reads on from its cursor, sends what waited, and is told what is known."""
    async with upgraded(empty_database, tmp_path, name) as made:
        for login in made.before.people:
            person = await made.log_in(login)
            path = f"/api/v1/spaces/{person.space}/changes"
            then = msgspec.convert(made.before.answers[login][path], PullAnswer)
            assert (await person.pull(after=then.cursor)).changes == []
            waited = sealed_change(
                person.account, NOTE, "note-1", {"title": "later"}, now_ms=now_ms(), op="update"
            )
            resent = then.changes[0].change
            answer = await person.push([resent, waited])
            assert codes(answer) == ["duplicate", "accepted"]
            assert [one.seq for one in answer.results] == [1, then.cursor + 1]
            (logged,) = (await person.pull(after=then.cursor)).changes
            assert (logged.seq, logged.change) == (then.cursor + 1, waited)
            found = await record(person, "notes", "note-1")
            assert opened(person, found, "title") == "later"
            seqs = [one.seq for one in (await person.pull()).changes]
            assert seqs == list(range(1, then.cursor + 2))


@pytest.mark.parametrize("name", FOLDERS)
async def test_the_state_opens(empty_database: Database, tmp_path: Path, name: str) -> None:
    """What was sealed before the upgrade opens after it with the keys of then."""
    async with upgraded(empty_database, tmp_path, name) as made:
        bob = await made.log_in("bob")
        assert opened(bob, await record(bob, "notes", "note-1"), "title") == "bob's"
        ada = await made.log_in("ada")
        assert opened(ada, await record(ada, "notes", "note-3"), "title") == "mine"
        gone = await record(ada, "notes", "note-2")
        assert gone.fields["deletedAt"].value is not None


@pytest.mark.parametrize("name", FOLDERS)
async def test_the_runner_goes_on(empty_database: Database, tmp_path: Path, name: str) -> None:
    """A mission that was granted before the upgrade runs after it, and its audit goes on."""
    async with upgraded(empty_database, tmp_path, name) as made:
        ada = await made.log_in("ada")
        world = World(made.database, made.served, ada, made.home)
        before = await world.audit()
        # A device of then let the mission name its grant as well; these rows are not a device's.
        listed = (await ada.call("GET", "/api/v1/me/ai-mission-grants")).json()["grants"]
        (granted,) = [one["header"]["grantId"] for one in listed if one["state"] == "active"]
        await world.edit_mission(grantId=granted)
        await world.run_now()
        async with world.runner() as runner:
            stats = await runner.scheduler.tick()
        assert (stats.errors, stats.plans_written_back) == ([], 1)
        assert [one.state for one in (await world.status()).occurrences] == ["done", "done"]
        after = await world.audit()
        assert after.head_seq > before.head_seq
        newer = [row for row in after.rows if row.seq > before.head_seq]
        assert newer[-1].previous == before.head_hash
        assert {row.status for row in newer} == {"ok"}


def test_holds_sees_a_loss() -> None:
    """The comparison of answers allows new members and nothing else."""
    then = json.loads('{"a": [{"b": 1}], "c": null}')
    assert holds({"a": [{"b": 1, "d": 2}], "c": None, "e": 3}, then)
    assert not holds({"a": [{"b": 2}], "c": None}, then)
    assert not holds({"a": [], "c": None}, then)
    assert not holds({"a": [{"b": 1}]}, then)


async def record(person: Person, table: str, record_id: str) -> StateRecord:
    state: StateAnswer = await person.state()
    return next(one for one in state.records if (one.table, one.id) == (table, record_id))


def opened(person: Person, found: StateRecord, path: str) -> object:
    space = person.account.personal
    key = space.private_key if found.visibility == "private" else space.space_key
    entry = found.fields[path]
    return open_field(
        RecordKey.derive(key, found.table, found.id),
        entry.value,
        binding=Binding(space.space_id, found.table, found.id, path, entry.at, entry.actor),
    )
