"""The replica: durable, sealed, and never under two device ids' feet."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from mana.device.accounts import Accounts
from mana.device.errors import ChangeRefused, ReplicaTooNew
from mana.device.replica import Replica, Tx, certify_place
from mana.device.settings import DeviceSettings
from mana.domain.changes import ChangeKind
from mana.domain.clock import parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, TooLarge
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Database
from tests.device.rig import CATALOGUE, Machine, Rig, note, rig_on, titles, write

pytestmark = pytest.mark.anyio
SECRET = "Zugspitze-Zwetschge-9471"


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def test_nothing_a_person_wrote_lies_on_the_disk_in_plain(rig: Rig) -> None:
    """No file of the device holds a text, a key, the password or a token, before or after sync."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title=SECRET, content=f"about {SECRET}")
    await book.commit([write(book, "userSettings", "settings-global", {"displayName": SECRET})])
    await book.commit([write(book, "tasks", "t1", {"title": SECRET, "subtasks": [SECRET]})])
    await book.keep("draft", {"text": SECRET})
    await book.sync_now()
    await book.views("notes")
    await note(book, "n1", title=f"{SECRET} again")
    assert await book.kept("draft") == {"text": SECRET}
    key = book.signing_key().to_bytes()
    record_key, _ = await book.record_secret("notes", "n1")
    lying = machine.files()
    for secret in (SECRET.encode(), PASSWORD.encode(), key, record_key, book.login_key()):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert form not in lying
    assert machine.wire.seen
    tokens = [body for _, path, body in machine.wire.seen if path.endswith("/refresh")]
    assert all(json.loads(body)["refreshToken"].encode() not in lying for body in tokens)
    for path in (machine.home / "device").iterdir():
        assert path.stat().st_mode & 0o077 == 0 or path.suffix in (".place", ".db-wal", ".db-shm")
    assert (machine.home / "device").stat().st_mode & 0o077 == 0


async def test_a_commit_is_whole_or_nothing(rig: Rig) -> None:
    """If one write of a commit cannot be made, neither record nor outbox nor clock has moved."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="before")
    before = await book.record("notes", "n1")
    with pytest.raises(Invalid):
        await book.commit(
            [
                write(book, "notes", "n1", {"title": "after"}),
                write(book, "notes", "n2", {"title": "x" * 10_000}),
            ]
        )
    assert await book.record("notes", "n1") == before
    assert (await book.status()).waiting == 1
    await book.lock()
    again = await machine.sign_in()
    assert await titles(again) == {"n1": "before"}


async def test_a_crash_in_the_middle_of_a_transaction_leaves_the_old_state(
    tmp_path: Path,
) -> None:
    """What a transaction wrote before it died is not in the file."""
    replica = Replica(tmp_path / "a.db", guarded=lambda table, path: False)
    await replica.open()

    def die(tx: Tx) -> None:
        tx.set_meta("name", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await replica.write(die)
    assert await replica.read(lambda tx: tx.meta("name")) is None
    await replica.write(lambda tx: tx.set_meta("name", "whole"))
    await replica.close()
    again = Replica(tmp_path / "a.db", guarded=lambda table, path: False)
    await again.open()
    assert await again.read(lambda tx: tx.meta("name")) == "whole"
    await again.close()


async def test_a_cancelled_write_is_not_left_behind(tmp_path: Path) -> None:
    """Cancelling the caller leaves no open transaction in the way of the next one."""
    replica = Replica(tmp_path / "a.db", guarded=lambda table, path: False)
    await replica.open()
    writing = asyncio.create_task(replica.write(lambda tx: tx.set_meta("name", "one")))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await replica.write(lambda tx: tx.set_meta("name", "two"))
    assert await replica.read(lambda tx: tx.meta("name")) == "two"
    await replica.close()


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    """A replica of a newer version is refused, not guessed at."""
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("pragma user_version = 999")
    replica = Replica(tmp_path / "a.db", guarded=lambda table, path: False)
    with pytest.raises(ReplicaTooNew):
        await replica.open()


async def test_full_synchronisation_is_on(tmp_path: Path) -> None:
    """The file is in WAL mode with full synchronisation: a commit survives a power cut."""
    replica = Replica(tmp_path / "a.db", guarded=lambda table, path: False)
    await replica.open()

    def modes(tx: Tx) -> tuple[str, int]:
        sql = tx._sql
        return (
            str(sql("pragma journal_mode").fetchone()[0]),
            int(sql("pragma synchronous").fetchone()[0]),
        )

    assert await replica.read(modes) == ("wal", 2)
    await replica.close()


async def test_a_restored_copy_takes_a_new_device_id(rig: Rig) -> None:
    """A copied data folder goes on as another device; both stay signed in and lose nothing."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="both")
    await book.lock()
    copied = rig.folder / "copied"
    shutil.copytree(machine.home, copied)
    original, copy = await machine.sign_in(), await rig.machine(copied).sign_in()
    assert original.device_id == book.device_id
    assert copy.device_id != book.device_id
    await copy.commit([write(copy, "notes", "n2", {"title": "copy"})])
    await original.commit([write(original, "notes", "n3", {"title": "original"})])
    for one in (original, copy, original, copy):
        await one.sync_now()
    assert await titles(original) == await titles(copy)
    assert len(await titles(copy)) == 3
    rig.served.clock.now_ms += 16 * 60 * 1_000
    assert (await original.sync_now()).link == (await copy.sync_now()).link == "online"
    record = await copy.record("notes", "n2")
    assert record is not None
    assert parse_stamp(record.entries["title"].at).device == copy.device_id
    await copy.lock()
    again = await rig.machine(copied).sign_in()
    assert again.device_id == copy.device_id


async def test_a_copy_brings_what_waited_under_its_own_name(rig: Rig) -> None:
    """What waited when a replica was copied is sent once, by whom it is sent first, and stands."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="in the log")
    await book.sync_now()
    await note(book, "n2", title="waits")
    await note(book, "n1", content="waits")
    await book.lock()
    copied = rig.folder / "copied"
    shutil.copytree(machine.home, copied)
    copy_machine = rig.machine(copied)
    copy = await copy_machine.sign_in()
    stamps = {
        parse_stamp(entry.at).device
        for name in ("n1", "n2")
        for path, entry in (await copy.record("notes", name)).entries.items()  # type: ignore[union-attr]
        if (name, path) != ("n1", "title")
    }
    assert stamps == {copy.device_id}
    original = await machine.sign_in()
    for one in (copy, original, copy):
        assert (await one.sync_now()).refused == 0
    assert (await copy.status()).waiting == (await original.status()).waiting == 0
    assert await titles(copy) == await titles(original) == {"n1": "in the log", "n2": "waits"}
    assert await copy.record("notes", "n1") == await original.record("notes", "n1")
    assert await copy.record("notes", "n2") == await original.record("notes", "n2")


async def test_a_replica_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """Nothing of an older file is lost: what was synced, sent, waiting, refused and set aside."""
    folder = tmp_path / "device"
    folder.mkdir()
    account = "e3af103e-b449-447d-ac3c-54cc49cdcfe9"
    path = folder / f"{account}.db"
    script = (Path(__file__).parent / "fixtures" / "replica_v1.sql").read_text()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        (marker,) = connection.execute("select value from meta where name = 'marker'").fetchone()
        assert connection.execute("pragma user_version").fetchone() == (1,)
        old = {
            name: connection.execute(f"select {names} from {name} order by 1, 2").fetchall()
            for name, names in _OLD_COLUMNS.items()
        }
    certify_place(path, marker)
    known = [{"accountId": account, "login": "ada"}]
    (folder / "accounts.json").write_text(json.dumps(known))
    replica = Replica(path, guarded=lambda table, path: False)
    await replica.open()

    def look(tx: Tx) -> dict[str, list[tuple[object, ...]]]:
        return {
            name: tx._sql(f"select {names} from {name} order by 1, 2").fetchall()
            for name, names in _OLD_COLUMNS.items()
        }

    assert await replica.read(look) == old
    assert {row.state for row in await replica.read(lambda tx: tx.spaces())} == {"active"}
    dead = await replica.read(
        lambda tx: tx._sql("select id from records where dead_ms = 0").fetchall()
    )
    assert dead == [("n9",)]
    await replica.close()
    accounts = Accounts(
        DeviceSettings(home=tmp_path, kdf_floor=CHEAP, hub_url="http://hub.test"), CATALOGUE
    )
    book = await accounts.unlock(account, PASSWORD)
    assert await titles(book) == {"n0": "synced", "n2": "sent", "n3": "waiting", "n4": "private"}
    view = await book.view("notes", "n0")
    assert view is not None
    assert view.text("content") == "edited"
    task = await book.view("tasks", "t1")
    assert task is not None
    assert task.text("title") == "set aside twice"
    assert await book.is_verified("agents", "a1")
    status = await book.status()
    assert (status.waiting, status.refused) == (5, 1)
    assert [one.title for one in await book.refused()] == ["refused"]
    batch = await book.inner().replica.read(lambda tx: [row.state for row in tx.unacknowledged()])
    assert batch == ["sent", "waiting", "waiting", "waiting", "waiting"]
    await book.lock()


_OLD_COLUMNS = {
    "meta": "name, value",
    "spaces": "space, type, cursor, page, head",
    "records": "tbl, id, space, base, shown",
    "outbox": "position, space, change_id, tbl, id, grp, message, state, seq, code, refused_ms",
    "made": "change_id, 1",
    "aside": "position, space, tbl, kind, body",
}


async def test_stamps_rise_although_the_clock_falls_back(rig: Rig) -> None:
    """A later write of this device stands, even if its clock was set back and it restarted."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="first")
    machine.clock.now_ms -= 3_600_000
    await book.lock()
    again = await machine.sign_in()
    await note(again, "n1", title="second")
    assert await titles(again) == {"n1": "second"}


async def test_a_list_that_is_kept_is_never_an_old_one(rig: Rig) -> None:
    """A list that was read before shows every change since, also a tombstone, and of another device."""
    machine = rig.machine()
    book = await machine.sign_up()
    assert await book.views("notes") == []
    await note(book, "n1", title="one")
    assert await titles(book) == {"n1": "one"}
    first = await book.views("notes")
    first.clear()
    assert [view.text("title") for view in await book.views("notes")] == ["one"]
    await book.sync_now()
    other = await rig.machine().sign_in()
    await other.sync_now()
    await note(other, "n1", title="two")
    await note(other, "n2", title="new")
    await other.sync_now()
    await book.sync_now()
    assert await titles(book) == {"n1": "two", "n2": "new"}
    await book.commit([write(book, "notes", "n1", {"deletedAt": "2026-11-21T05:23:00.123Z"})])
    assert await titles(book) == {"n2": "new"}
    assert len(await book.views("notes", include_deleted=True)) == 2


async def test_collections_merge_by_element(rig: Rig) -> None:
    """Two devices that add to one list both keep what they added, in one order on both."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    await _subtasks(here, ["b"])
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    await _subtasks(here, ["a", "b"])
    await _subtasks(there, ["b", "c"])
    for book in (here, there, here):
        await book.sync_now()
    for book in (here, there):
        view = await book.view("tasks", "t1")
        assert view is not None
        assert view.values["subtasks"] == ["a", "b", "c"]
    await _subtasks(here, ["c", "a"])
    view = await here.view("tasks", "t1")
    assert view is not None
    assert view.values["subtasks"] == ["c", "a"]


async def test_a_field_that_does_not_open_hides_nothing_else(rig: Rig) -> None:
    """A damaged value is named in `sealed_fields`; the record and the list are shown."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="damaged", content="whole")
    await note(book, "n2", title="fine")
    await book.lock()
    (path,) = (machine.home / "device").glob("*.db")
    with closing(sqlite3.connect(path)) as connection:
        (raw,) = connection.execute("select shown from records where id = 'n1'").fetchone()
        row = json.loads(raw)
        row["fields"]["title"]["value"] = row["fields"]["content"]["value"]
        connection.execute(
            "update records set shown = ? where id = 'n1'", (json.dumps(row).encode(),)
        )
        connection.commit()
    again = await machine.sign_in()
    found = {view.id: view for view in await again.views("notes")}
    assert found["n1"].sealed_fields == ("title",)
    assert found["n1"].text("content") == "whole"
    assert found["n2"].text("title") == "fine"


async def test_deleted_records_come_back(rig: Rig) -> None:
    """A deleted record is hidden, can be asked for, and lives again once restored."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="gone")
    await book.commit(
        [
            write(
                book,
                "notes",
                "n1",
                {"deletedAt": "2026-11-21T05:23:00.123Z"},
                kind=ChangeKind.DELETE,
            )
        ]
    )
    assert await titles(book) == {}
    assert [view.deleted for view in await book.views("notes", include_deleted=True)] == [True]
    await book.commit([write(book, "notes", "n1", {"deletedAt": None})])
    assert await titles(book) == {"n1": "gone"}


async def test_private_records_stay_their_authors(rig: Rig) -> None:
    """A private record is sealed under the author's own key and opens on their other device."""
    first, second = rig.machine(), rig.machine()
    here = await first.sign_up()
    await here.commit([write(here, "notes", "n1", {"title": "mine"}, visibility="private")])
    record = await here.record("notes", "n1")
    assert record is not None
    assert str(record.entries["title"].value).startswith("enc:2:p1:")
    await here.sync_now()
    there = await second.sign_in()
    await there.sync_now()
    assert await titles(there) == {"n1": "mine"}


async def test_impossible_writes_are_refused_at_once(rig: Rig) -> None:
    """What the hub would refuse for certain never reaches the outbox."""
    book = await rig.machine().sign_up()
    step: dict[str, Json] = {
        "missionId": "m1",
        "iterationId": "i1",
        "index": 0,
        "status": "staged",
    }
    guards: dict[str, Json] = {"status": None}
    await book.commit([write(book, "aiSteps", "s1", step, guards=guards)])
    bad = [
        write(book, "notes", "n1", {}),
        write(book, "notes", "n1", {"nothing": 1}),
        write(book, "notes", "../x", {"title": "x"}),
        write(book, "aiSteps", "s2", {"status": "staged", "missionId": "m1"}),
        write(book, "aiSteps", "s1", {"index": 1}),
        write(book, "notes", "n1", {"title": "x"}, change_id="no uuid"),
    ]
    for one in bad:
        with pytest.raises(Invalid):
            await book.commit([one])
    moved = write(book, "aiSteps", "s1", {"status": "approved"}, guards={"status": "planned"})
    with pytest.raises(ChangeRefused):
        await book.commit([moved])
    notes = [write(book, "notes", f"n{number}", {"title": "x"}) for number in range(501)]
    with pytest.raises(TooLarge):
        await book.commit(notes)
    assert (await book.status()).waiting == 1


async def test_forgetting_an_account_leaves_no_file(rig: Rig) -> None:
    """After signing out here, nothing of the account is left on this machine."""
    machine = rig.machine()
    book = await machine.sign_up()
    await book.start()
    await book.lock()
    machine.accounts.forget(book.account_id)
    assert machine.accounts.known() == []
    assert book.account_id.encode() not in machine.files()
    assert [path.name for path in (machine.home / "device").iterdir()] == ["accounts.json"]


async def test_removing_an_account_removes_it_from_the_hub(rig: Rig) -> None:
    """The account is gone from hub and device; its login can be taken anew."""
    machine: Machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="x")
    await book.sync_now()
    await book.lock()
    await machine.accounts.remove(book.account_id, PASSWORD)
    assert machine.accounts.known() == []
    again = await machine.sign_up()
    await again.sync_now()
    assert await titles(again) == {}


def test_accounts_reads_no_folder_before_it_exists(tmp_path: Path) -> None:
    """A new device knows nobody and makes nothing by looking."""
    accounts = Accounts(DeviceSettings(home=tmp_path / "none"), CATALOGUE)
    assert accounts.known() == []
    assert not (tmp_path / "none").exists()


async def _subtasks(book, wanted: list[Json]) -> None:
    await book.commit([write(book, "tasks", "t1", {"subtasks": wanted})])


_WRITER = """
import asyncio, pathlib, sys
from mana.device.replica import Replica

async def main():
    replica = Replica(pathlib.Path(sys.argv[1]), guarded=lambda table, path: False)
    await replica.open()
    number = 0
    while True:
        number += 1
        await replica.write(lambda tx: tx.set_meta("number", str(number)))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A process that is killed in the middle of writing has lost nothing that it reported."""
    path = tmp_path / "a.db"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WRITER,
        str(path),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    reported = 0
    while reported < 50:
        reported = int(await child.stdout.readline())
    child.kill()
    rest = (await child.stdout.read()).split()
    await child.wait()
    reported = max([reported, *(int(line) for line in rest)])
    replica = Replica(path, guarded=lambda table, path: False)
    await replica.open()
    found = int(await replica.read(lambda tx: tx.meta("number")) or 0)
    assert found in (reported, reported + 1)
    await replica.close()
