"""The hub's KEK: changed while the hub runs, cut off anywhere, and never lost before its time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mana.crypto.errors import SealRejected
from mana.crypto.identity import PrivateIdentity
from mana.crypto.keys import new_key
from mana.crypto.primitives import b64
from mana.crypto.vaults import open_former_master
from mana.hub import secrets as secrets_file
from mana.hub.accounts import store
from mana.hub.app import operator
from mana.hub.operating.service import BATCH
from mana.hub.operating.store import KekStore
from mana.hub.secrets import (
    HubSecrets,
    KekRing,
    KekRotationRunning,
    SecretsUnusable,
    destroy_old_keks,
    draw_kek,
    load,
    load_or_create,
    rotating,
)
from mana.testing.postgres import Database, connected
from tests.hub.client import Served, served_hub
from tests.hub.test_recovery import reset, token_for
from tests.hub.vaulted import Vaulted, in_zero_knowledge, signed_up, until_waiting

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


def quiet(_done: int, _of: int) -> None:
    return None


async def rotate(served: Served, told: Callable[[int, int], None] = quiet) -> None:
    async with operator(served.hub.settings) as made:
        await made.rotate_kek(told)


async def require_open(database: Database, secrets: HubSecrets, people: list[Vaulted]) -> None:
    """Require that the KEKs of a file open what the hub keeps of people in standard mode."""
    ring = KekRing(lambda: secrets)
    async with connected(database.owner_url) as owner:
        rows = await owner.fetch("select account_id, kek_wrap, kek_id from mana.accounts")
    held = {row["account_id"]: row for row in rows}
    for person in people:
        row = held[person.person.account.account_id]
        opened = ring.unwrap(row["kek_wrap"], row["kek_id"], row["account_id"])
        assert opened == person.keys.master_key


async def test_another_kek(database: Database) -> None:
    """After a change every wrap is under the new KEK alone, the file holds no other, the progress
    was told, and the hub that ran all along signs people up and resets under the new one (K9)."""
    async with served_hub(database) as served:
        folder = served.hub.settings.secrets_dir
        people = [await signed_up(served, f"person-{n}") for n in range(3)]
        hidden = await in_zero_knowledge(served, "hidden")
        before = load(folder)
        told: list[tuple[int, int]] = []
        await rotate(served, lambda done, of: told.append((done, of)))
        assert told == [(0, 3), (3, 3)]
        after = load(folder)
        assert after.keks != before.keks
        assert len(after.keks) == 1
        assert (after.salt, after.public()) == (before.salt, before.public())
        people.append(await signed_up(served, "later"))
        await people[0].changed(master=True)
        await require_open(database, after, people)
        answer = await reset(served, "person-1", await token_for(served, "person-1"))
        assert answer.json()["masterKey"] == b64(people[1].keys.master_key)
        async with connected(database.owner_url) as owner:
            rows = await owner.fetch("select account_id, kek_wrap, kek_id from mana.accounts")
        for row in rows:
            of_hidden = row["account_id"] == hidden.person.account.account_id
            assert (row["kek_wrap"] is None) == of_hidden
            assert row["kek_id"] == (None if of_hidden else after.kek_id)
        await hidden.changed(mode="standard")
        await require_open(database, after, [hidden])


async def test_wraps_from_before_they_had_names(database: Database) -> None:
    """A wrap that names no KEK is opened by the first one that the hub had, and gets a name."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        folder = served.hub.settings.secrets_dir
        async with connected(database.owner_url) as owner:
            await owner.execute("update mana.accounts set kek_id = null")
        answer = await reset(served, "ada", await token_for(served, "ada"))
        assert answer.json()["masterKey"] == b64(ada.keys.master_key)
        draw_kek(folder)
        answer = await reset(served, "ada", await token_for(served, "ada"))
        assert answer.json()["masterKey"] == b64(ada.keys.master_key)
        await rotate(served)
        await require_open(database, load(folder), [ada])


async def test_an_old_backup(database: Database) -> None:
    """What a backup from before zero-knowledge mode holds opens a key that nothing in force is
    sealed under; and once the hub's KEK was changed, it opens nothing at all (K7)."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        account = ada.person.account.account_id
        async with connected(database.owner_url) as owner:
            row = await owner.fetchrow("select kek_wrap, kek_id from mana.accounts")
        ring = KekRing(lambda: load(served.hub.settings.secrets_dir))
        await ada.changed(mode="zero-knowledge", master=True, identity=True, code=True)
        old = ring.unwrap(row["kek_wrap"], row["kek_id"], account)
        vault = await ada.vault()
        public = ada.keys.identity.public()
        assert PrivateIdentity.open(ada.keys.master_key, vault.identity.sealed_private, public)
        with pytest.raises(SealRejected):
            PrivateIdentity.open(old, vault.identity.sealed_private, public)
        [former] = vault.formers.masters
        with pytest.raises(SealRejected):
            open_former_master(old, former.check, former.sealed, account)
        await rotate(served)
        with pytest.raises(SecretsUnusable):
            ring.unwrap(row["kek_wrap"], row["kek_id"], account)


class Cut(BaseException):
    """The process ended here."""


async def test_cut_off_anywhere(database: Database, monkeypatch: Any) -> None:
    """Wherever a change of the KEK is cut off, what the file holds opens every wrap, and asking
    for it again brings it to its end."""
    monkeypatch.setattr("mana.hub.operating.service.BATCH", 2)
    async with served_hub(database) as served:
        folder = served.hub.settings.secrets_dir
        people = [await signed_up(served, f"person-{n}") for n in range(5)]
        steps = 0

        def cutting(at: int, wrapped: Any) -> Any:
            def run(*args: Any, **options: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == at:
                    raise Cut
                return wrapped(*args, **options)

            return run

        places: list[tuple[Any, str]] = [
            (secrets_file, "_draft"),
            (secrets_file, "_overwrite"),
            (secrets_file.os, "fsync"),
            (Path, "replace"),
            (KekRing, "wrap"),
            (KekStore, "rewrap"),
            (KekStore, "finish"),
        ]
        for at in itertools.count(1):
            steps, first = 0, load(folder)
            with monkeypatch.context() as patched:
                for owner, name in places:
                    patched.setattr(owner, name, cutting(at, getattr(owner, name)))
                with contextlib.suppress(Cut):
                    await rotate(served)
            await require_open(database, load(folder), people)
            if steps < at:
                break
            await rotate(served)
            assert len(load(folder).keks) == 1
            assert load(folder).keks != first.keks
            await require_open(database, load(folder), people)
        assert at > 15
        assert len(load(folder).keks) == 1
        assert sorted(path.name for path in folder.glob("hub.*")) == ["hub.key", "hub.pub"]
        assert [path.name for path in folder.glob(".hub.key.*")] == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from mana.hub.app import operator
from mana.hub.settings import HubSettings

async def main():
    settings = HubSettings(home=Path(sys.argv[1]), database_url=sys.argv[2])
    async with operator(settings) as made:
        await made.rotate_kek(lambda done, of: print(done, of, flush=True))

import mana.hub.operating.service as service
service.BATCH = 1
asyncio.run(main())
"""


async def test_killed(database: Database) -> None:
    """A process that is killed in the middle of a change leaves what the next one finishes."""
    async with served_hub(database) as served:
        settings = served.hub.settings
        people = [await signed_up(served, f"person-{n}") for n in range(6)]
        for lines in (1, 3, 5):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                KILLED,
                str(settings.home),
                settings.database_url,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            for _ in range(lines):
                assert await process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            # What it had printed before the kill reached it is read too.
            await process.stdout.read()
            await require_open(database, load(settings.secrets_dir), people)
        told: list[tuple[int, int]] = []
        await rotate(served, lambda done, of: told.append((done, of)))
        assert len(load(settings.secrets_dir).keks) == 1
        await require_open(database, load(settings.secrets_dir), people)


async def test_a_sign_up_that_overlaps(database: Database, monkeypatch: Any) -> None:
    """A sign-up that read the old KEK is waited for: its wrap is made anew before the old one is
    destroyed, and none is made under it later."""
    async with served_hub(database) as served:
        folder = served.hub.settings.secrets_dir
        first = await signed_up(served, "first")
        reached, going = asyncio.Event(), asyncio.Event()
        held = store.write_event

        async def slow(*args: Any, **options: Any) -> None:
            reached.set()
            await going.wait()
            await held(*args, **options)

        monkeypatch.setattr(store, "write_event", slow)
        signing_up = asyncio.create_task(signed_up(served, "slow"))
        await reached.wait()
        monkeypatch.setattr(store, "write_event", held)
        told: list[tuple[int, int]] = []
        changing = asyncio.create_task(rotate(served, lambda done, of: told.append((done, of))))
        await until_waiting(database)
        assert len(load(folder).keks) == 2
        going.set()
        slow_one = await signing_up
        await changing
        assert told[-1] == (2, 2)
        await require_open(database, load(folder), [first, slow_one])
        assert len(load(folder).keks) == 1


async def test_a_wrap_that_nothing_opens(database: Database) -> None:
    """While a wrap does not open, no KEK is destroyed, and whoever asked is told."""
    async with served_hub(database) as served:
        folder = served.hub.settings.secrets_dir
        ada, bob = await signed_up(served), await signed_up(served, "bob")
        account = bob.person.account.account_id
        async with connected(database.owner_url) as owner:
            for spoilt in ("kek_id = 'kek-0000000000000000'", "kek_wrap = 'mk:1:broken.'"):
                kept = await owner.fetchrow(
                    "select kek_id, kek_wrap from mana.accounts where account_id = $1", account
                )
                await owner.execute(
                    f"update mana.accounts set {spoilt} where account_id = $1", account
                )
                with pytest.raises(SecretsUnusable):
                    await rotate(served)
                await require_open(database, load(folder), [ada])
                await owner.execute(
                    "update mana.accounts set kek_id = $2, kek_wrap = $3 where account_id = $1",
                    account,
                    *kept,
                )
        assert len(load(folder).keks) == 2
        await rotate(served)
        await require_open(database, load(folder), [ada, bob])


async def test_one_change_at_a_time(database: Database) -> None:
    """Two changes at once are one; the other is told to wait, and changes nothing."""
    async with served_hub(database) as served:
        await signed_up(served)
        with rotating(served.hub.settings.secrets_dir), pytest.raises(KekRotationRunning):
            await rotate(served)
        assert len(load(served.hub.settings.secrets_dir).keks) == 1


async def test_more_than_a_batch(database: Database) -> None:
    """All wraps are made anew, however many there are."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "insert into mana.accounts select (jsonb_populate_record(a, jsonb_build_object("
                "'account_id', a.account_id || '-' || n, 'login_key', 'x' || n))).*"
                f" from mana.accounts a, generate_series(1, {BATCH}) n"
            )
        # Copies of a row under other names are wraps that do not open there.
        with pytest.raises(SecretsUnusable):
            await rotate(served)
        async with connected(database.owner_url) as owner:
            secrets = load(served.hub.settings.secrets_dir)
            ring = KekRing(lambda: secrets)
            for row in await owner.fetch("select account_id from mana.accounts"):
                made = ring.wrap(ada.keys.master_key, row["account_id"])
                await owner.execute(
                    "update mana.accounts set kek_wrap = $2, kek_id = null where account_id = $1",
                    row["account_id"],
                    made.wrapped,
                )
        told: list[tuple[int, int]] = []
        await rotate(served, lambda done, of: told.append((done, of)))
        assert told == [(0, BATCH + 1), (BATCH, BATCH + 1), (BATCH + 1, BATCH + 1)]
        await require_open(database, load(served.hub.settings.secrets_dir), [ada])


# The file


def test_version_one_is_read(tmp_path: Path) -> None:
    """A file of the first version has one KEK; it is read, and written anew only by a change."""
    kept = load_or_create(tmp_path)
    private = tmp_path / "hub.key"
    stored = msgspec.json.decode(private.read_bytes())
    [kek] = stored.pop("keks")
    first = msgspec.json.encode({**stored, "version": 1, "kek": kek})
    private.write_bytes(first)
    assert load_or_create(tmp_path).keks == kept.keks
    assert private.read_bytes() == first
    for wrong in (
        {**stored, "version": 1},
        {**stored, "version": 2, "kek": kek},
        {**stored, "version": 1, "keks": [kek]},
        {**stored, "version": 2, "keks": []},
        {**stored, "version": 2, "keks": ["AAAA"]},
        {**stored, "version": 3, "keks": [kek]},
    ):
        private.write_bytes(msgspec.json.encode(wrong))
        with pytest.raises(SecretsUnusable):
            load(tmp_path)
    private.write_bytes(first)
    with rotating(tmp_path):
        drawn = draw_kek(tmp_path)
        assert draw_kek(tmp_path).keks == drawn.keks
    assert drawn.keks[1:] == kept.keks
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_the_old_kek_is_overwritten(tmp_path: Path) -> None:
    """What held the old KEK holds nothing of it any more, also for who had the file open."""
    kept = load_or_create(tmp_path)
    with rotating(tmp_path):
        draw_kek(tmp_path)
        with (tmp_path / "hub.key").open("rb") as opened:
            destroy_old_keks(tmp_path)
            assert opened.read().strip(b"\0") == b""
        assert b64(kept.kek).encode() not in (tmp_path / "hub.key").read_bytes()
        destroy_old_keks(tmp_path)
    assert len(load(tmp_path).keks) == 1


def test_what_a_kill_left_behind(tmp_path: Path) -> None:
    """Half-written files of a change that was killed go with the next one, overwritten; one that
    is the standing file under a second name does not take it along."""
    kept = load_or_create(tmp_path)
    left = tmp_path / ".hub.key.1.abcd"
    left.write_bytes(b64(new_key()).encode())
    linked = tmp_path / ".hub.key.2.abcd"
    os.link(tmp_path / "hub.key", linked)
    with left.open("rb") as opened, rotating(tmp_path):
        assert opened.read().strip(b"\0") == b""
    assert not left.exists()
    assert not linked.exists()
    assert load(tmp_path).keks == kept.keks


def test_keys_are_not_shown(tmp_path: Path) -> None:
    """No KEK and no master key shows in what is printed of the objects that hold them."""
    kept = load_or_create(tmp_path)
    made = KekRing(lambda: kept).wrap(bytes(32), "account")
    for shown in (repr(kept), repr(made)):
        for secret in (kept.kek.hex(), str(kept.kek), made.wrapped):
            assert secret not in shown
