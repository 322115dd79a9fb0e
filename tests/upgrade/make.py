"""Write down what the hub of this release leaves behind, for the tests of later releases.

    .venv/bin/python -m tests.upgrade.make

makes `tests/upgrade/<number of the newest migration>/`. Run it at a release, never over a folder
that is there: what was kept is what people have. All keys in it are of this throw-away instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mana.crypto.primitives import b64
from mana.domain.clock import parse_iso_ms
from mana.hub.db import read_migrations
from mana.hub.grants.store import Register
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.testing.accounts import FoundedSpace, NewAccount, sealed_change
from mana.testing.postgres import Database, connected, throw_away_cluster
from tests.hub.client import Person, codes
from tests.runner.world import NOTE, World, now_ms, world
from tests.upgrade.before import HERE, rows_of

TASKS = next(table for table in TODO.tables if table.name == "tasks")
# A grant lives 30 days at most. This one begins a lifetime from now, so that a runner of every
# later release finds it unexpired.
GRANTED_FROM = "2096-01-01T00:00:00.000Z"
PATHS = ("me", "me/vault", "me/devices", "spaces", "me/missions", "me/ai-audit")


async def make(database: Database, folder: Path) -> None:
    """Play a small life on a hub and write down what stands afterwards."""
    async with world(database) as made:
        bob = await made.served.sign_up("bob")
        await live(made, bob)
        answers = {one.account.login: await answers_of(one, database) for one in (made.ada, bob)}
        async with connected(database.owner_url) as owner:
            rows = await rows_of(owner)
        keys = {
            "people": [person_of(one.account) for one in (made.ada, bob)],
            "secrets": {
                name: (made.home / "secrets" / name).read_text("ascii")
                for name in ("hub.key", "hub.pub", "runner/runner.key", "runner.pub")
            },
        }
    write(folder, rows, answers, keys)


def write(folder: Path, rows: Any, answers: Any, keys: Any) -> None:
    """Write the three files of an instance."""
    folder.mkdir()
    # One row in a line, so that a reader can find one.
    lines = (
        f"{json.dumps(table)}: ["
        + "".join(f"\n  {json.dumps(row)}," for row in found).rstrip(",")
        + "]"
        for table, found in rows.items()
    )
    (folder / "rows.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
    (folder / "keys.json").write_text(json.dumps(keys, indent=1) + "\n", "utf-8")


async def live(made: World, bob: Person) -> None:
    """Leave notes, tasks, a deletion, a private note, a mission that ran, grants, an audit."""

    await made.agent()
    await made.note("note-1")
    await made.mission()
    await made.note("note-2", "gone")
    gone = {"deletedAt": "2026-11-21T05:00:00.000Z"}
    await made.push(made.change(NOTE, "note-2", gone, op="delete"))
    await made.push(made.change(NOTE, "note-3", {"title": "mine"}, visibility="private"))
    await made.push(made.change(TASKS, "task-1", {"title": "milk", "dueDate": "2026-12-01"}))
    await made.revoke(await made.grant())
    with late_grants():
        header = await made.header()
    await made.complete(header)
    async with made.runner() as runner:
        await made.run_now()
        stats = await runner.scheduler.tick()
    assert (stats.errors, stats.plans_written_back) == ([], 1), stats
    answer = await bob.push(
        [
            sealed_change(bob.account, NOTE, "note-1", {"title": "bob's"}, now_ms=now_ms()),
            sealed_change(bob.account, TASKS, "task-1", {"title": "eggs"}, now_ms=now_ms()),
        ]
    )
    assert codes(answer) == ["accepted", "accepted"]


@contextlib.contextmanager
def late_grants() -> Iterator[None]:
    """Let the register count from a moment far ahead."""
    real = Register.now_ms

    async def far_ahead(_register: Register) -> int:
        return parse_iso_ms(GRANTED_FROM)

    Register.now_ms = far_ahead  # type: ignore[method-assign]
    try:
        yield
    finally:
        Register.now_ms = real  # type: ignore[method-assign]


async def answers_of(person: Person, database: Database) -> dict[str, Any]:
    """Return what the hub says to a person, by path."""
    spaces = (person.account.personal.space_id, person.account.user.space_id)
    paths = [f"/api/v1/{path}" for path in (*PATHS, "me/ai-mission-grants")]
    for space in spaces:
        paths += [f"/api/v1/spaces/{space}/{what}" for what in ("changes", "records", "devices")]
    found = {}
    for path in paths:
        answer = await person.call("GET", path)
        assert answer.status_code == 200, answer.text
        found[path] = answer.json()
    return found


def person_of(account: NewAccount) -> dict[str, Any]:
    """Return the keys of a person and their device."""
    identity = account.identity
    return {
        "accountId": account.account_id,
        "login": account.login,
        "loginKey": b64(account.login_key),
        "unlockKey": b64(account.unlock_key),
        "masterKey": b64(account.master_key),
        "identity": b64(identity.hpke_key.to_bytes() + identity.signing_key.to_bytes()),
        "deviceId": account.device_id,
        "deviceKey": b64(account.device_key.to_bytes()),
        "spaces": {one.type: space_of(one) for one in (account.personal, account.user)},
    }


def space_of(space: FoundedSpace) -> dict[str, str]:
    """Return a space with its keys."""
    return {
        "spaceId": space.space_id,
        "spaceKey": b64(space.space_key),
        "privateKey": b64(space.private_key),
    }


def main() -> int:
    """Make the folder of the newest migration."""
    folder = HERE / f"{read_migrations()[-1].number:04}"
    if folder.exists():
        sys.stderr.write(f"{folder.name} is there already\n")
        return 1
    with throw_away_cluster() as cluster, cluster.database() as database:
        asyncio.run(make(database, folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
