"""Ways in which a sync server loses, leaks or stalls, tried on ours. docs/weaknesses.md has the list."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mana.domain.missions import MISSIONS
from mana.domain.spaces import SHARED_TYPES
from mana.protocol.messages import ChangeMessage, FieldWrite, PullAnswer, PushRequest
from mana.testing.accounts import new_account, sealed_change
from mana.testing.postgres import Database, connected
from mana.testing.spaces import shared_space
from tests.faults.load import TASKS
from tests.hub.client import START_MS, Person, codes, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

replace = msgspec.structs.replace
ROWS = 3_000


def task(person: Person, record_id: str, **options: Any) -> ChangeMessage:
    values = options.pop("values", {"title": "milk", "dueDate": "2026-12-01"})
    return sealed_change(person.account, TASKS, record_id, values, now_ms=START_MS, **options)


def with_plain(change: ChangeMessage, path: str, value: object) -> ChangeMessage:
    at = change.fields["title"].at
    return replace(change, fields={**change.fields, path: FieldWrite(value, at)})


async def test_a_poison_change_stops_nothing(database: Database) -> None:
    """A change that cannot be stored is refused alone: what stands around it in the batch is
    taken once, however often the batch is sent, and everybody reads on (S5, S6)."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        poisons = [
            with_plain(task(ada, "p1"), "dueDate", "2026-12-01\x00"),
            with_plain(task(ada, "p2"), "dueDate", {"an": "object"}),
            with_plain(task(ada, "p3"), "dueDate", ["2026-12-01"]),
            replace(task(ada, "p4"), actor={}),
            replace(task(ada, "p5"), actor={"kind": "user", "principalId": "\x00"}),
            replace(task(ada, "p\x00"), actor={}),
            replace(task(ada, "p7"), group="\x00"),
            replace(task(ada, "p8"), author_id="\x00"),
            with_plain(task(ada, "p9"), "title", "enc:2:s1:\x00"),
            replace(task(ada, "p10"), table="\x00"),
            sealed_change(
                ada.account, MISSIONS, "p11", {"timeZone": "Europe/\x00"}, now_ms=START_MS
            ),
        ]
        batch = [
            one
            for number, poison in enumerate(poisons)
            for one in (task(ada, f"t{number}"), poison)
        ]
        first, again = await ada.push(batch), await ada.push(batch)
        assert codes(first)[::2] == ["accepted"] * len(poisons)
        assert codes(again)[::2] == ["duplicate"] * len(poisons)
        for answer in (first, again):
            assert {one.status for one in answer.results[1::2]} == {"refused"}
        pulled = await ada.pull()
        assert [one.change.id for one in pulled.changes] == [f"t{n}" for n in range(len(poisons))]
        assert len((await ada.state()).records) == len(poisons)


@pytest.mark.parametrize(
    "member",
    [
        {"actor": None},
        {"fields": {"title": {"value": "x", "updatedAt": "2026-11-21T05:00:00.000Z"}}},
        {"fields": {"title": {"value": "x"}}},
        {"data": {"title": "x"}},
        {"field_meta": {}},
        {"spaceId": "0" * 64},
    ],
    ids=["no actor", "old key of a stamp", "no stamp", "data", "old metadata", "space"],
)
async def test_an_older_form_is_refused_aloud(
    database: Database, member: dict[str, object]
) -> None:
    """A change in another form than ours is refused as malformed; nothing of it is taken with an
    empty stamp, without an actor, or half (S13, S14)."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        request = PushRequest(device_id=ada.account.device_id, changes=[task(ada, "t1")])
        wire = msgspec.json.decode(msgspec.json.encode(request))
        wire["changes"][0] |= member
        answer = await ada.call("POST", f"/api/v1/spaces/{ada.space}/changes", wire)
        assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST")
        assert (await ada.pull()).cursor == 0


async def test_the_space_of_a_change_is_the_path_alone(database: Database) -> None:
    """Nothing in a change can put it into another space or under another account's settings (S3)."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        assert "spaceId" not in ChangeMessage.__struct_encode_fields__
        stolen = [
            task(eve, "t1", space=ada.account.personal),
            replace(task(eve, "t2"), author_id=ada.account.account_id),
            replace(task(eve, "t3"), actor={"kind": "user", "principalId": ada.account.account_id}),
        ]
        for space in (ada.space, ada.account.user.space_id):
            answer = await eve.send(stolen, space=space)
            assert answer.status_code == 404
        await eve.push(stolen)
        assert (await ada.pull()).changes == []


async def test_a_push_tells_nothing_of_other_changes(database: Database) -> None:
    """An answer to a push carries no changes and moves nobody's cursor: whoever pushed first
    still pulls all that was there before (S2)."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        await ada.push([task(ada, f"t{number}") for number in range(30)])
        answer = await ada.push([task(ada, "mine")])
        assert set(msgspec.json.decode(msgspec.json.encode(answer))) == {
            "results",
            "cursor",
            "hubTime",
        }
        seen: list[str] = []
        after, more = 0, True
        while more:
            page: PullAnswer = await ada.pull(after=after, limit=7)
            assert page.changes or not page.more
            seen += [one.change.id for one in page.changes]
            after, more = page.cursor, page.more
        assert seen == [*(f"t{number}" for number in range(30)), "mine"]


async def test_no_call_reads_the_whole_log(database: Database, tmp_path: Path) -> None:
    """Push, pull, state and what a stream asks find their rows by an index: none of them passes
    over the rows of everybody (S10)."""
    async with served_hub(database, home=tmp_path) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        await ada.push([task(ada, "t1")])
        await bob.push([task(bob, "t1")])
    async with connected(database.owner_url) as owner:
        await grow(owner, ada.space)
        before = await scans(owner)
    async with served_hub(database, home=tmp_path) as served:
        bob = Person(served, bob.account, bob.tokens)
        assert (await bob.pull()).cursor == 1
        assert (await bob.pull(after=1)).changes == []
        assert len((await bob.state()).records) == 1
        assert (
            codes(await bob.push([task(bob, "t1", op="update"), task(bob, "t2")]))
            == ["accepted"] * 2
        )
        path = f"/api/v1/spaces/{bob.space}/records/tasks/t2"
        assert (await bob.call("GET", path)).status_code == 200
        assert (await bob.call("GET", "/api/v1/spaces")).status_code == 200
    # The hub's connections are closed by now, and with that their figures are in.
    async with connected(database.owner_url) as owner:
        assert await scans(owner) == before


async def grow(owner: Any, space: str) -> None:
    """Give a space a long history."""
    for table, number in (("mana.sync_changes", "seq"), ("mana.records", "record_id")):
        columns = [
            row["attname"]
            for row in await owner.fetch(
                "select attname from pg_attribute where attrelid = $1::text::regclass"
                " and attnum > 0 and not attisdropped and attgenerated = ''",
                table,
            )
        ]
        new = {
            "seq": "1000 + n",
            "change_id": "gen_random_uuid()::text",
            "record_id": "'r' || n",
        }
        values = ", ".join(new.get(name, f"t.{name}") for name in columns)
        await owner.execute(
            f"insert into {table} ({', '.join(columns)}) select {values}"
            f" from {table} t, generate_series(1, {ROWS}) n where t.space_id = $1",
            space,
        )
        assert number in columns
        await owner.execute(f"analyze {table}")


async def scans(owner: Any) -> dict[str, int]:
    """Return how often each of the large tables was read from one end to the other."""
    rows = await owner.fetch(
        "select relname, seq_scan from pg_stat_user_tables where schemaname = 'mana'"
        " and relname in ('sync_changes', 'records')"
    )
    assert len(rows) == 2
    return {row["relname"]: row["seq_scan"] for row in rows}


@pytest.mark.parametrize("space_type", SHARED_TYPES)
async def test_tasks_are_in_every_type(database: Database, space_type: Any) -> None:
    """Tasks can be shared in a space of any type (B5)."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        made = shared_space(ada.account, space_type, now_ms=START_MS)
        answer = await ada.call("POST", "/api/v1/spaces", made.founded.new)
        assert answer.status_code == 201, answer.text
        change = task(ada, "t1", space=made.founded)
        assert codes(await ada.push([change], space=made.space_id)) == ["accepted"]


async def test_racing_sign_ups_make_one_vault(database: Database) -> None:
    """One sign-up that is sent several times at once makes one account with one vault, and none
    of the answers is a failure of the hub (K9)."""
    async with served_hub(database) as served:
        account = new_account("ada", now_ms=START_MS)
        answers = await asyncio.gather(
            *(served.call("POST", "/api/v1/auth/signup", account.request) for _ in range(4))
        )
        assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana.accounts") == 1
