"""A hub as an earlier schema left it: its rows, its secrets, and the keys of its people.

`make.py` writes such a folder with the code of that time; here it is read, by the code of today.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from mana.crypto.hpke import PRIVATE_BYTES, HpkePrivateKey
from mana.crypto.identity import PrivateIdentity
from mana.crypto.primitives import unb64
from mana.crypto.signatures import SigningKey
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.hub.db import migrate, read_migrations
from mana.testing.accounts import FoundedSpace, NewAccount
from mana.testing.postgres import connected

HERE = Path(__file__).parent
FOLDERS = sorted(path.name for path in HERE.iterdir() if (path / "rows.json").is_file())

TABLES = """
select n.nspname || '.' || c.relname as name
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and n.nspname in ('mana', 'mana_ai') order by 1
"""


@dataclass(frozen=True)
class Before:
    """One kept instance. `migration` is the number of the newest migration of its time.

    `rows`: by table the rows as JSON. `answers`: by login and path what the hub of that time
    answered. `people`: the accounts with their keys. `secrets`: by path the hub's own files.
    """

    migration: int
    rows: dict[str, list[dict[str, Any]]]
    answers: dict[str, dict[str, Any]]
    people: dict[str, NewAccount]
    secrets: dict[str, str]

    def write_secrets(self, home: Path) -> None:
        """Put the hub's secrets of that time under a home folder."""
        for name, text in self.secrets.items():
            path = home / "secrets" / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
            path.chmod(0o600)


def read(name: str) -> Before:
    """Return a kept instance."""
    folder = HERE / name
    keys = json.loads((folder / "keys.json").read_text("utf-8"))
    return Before(
        migration=int(name),
        rows=json.loads((folder / "rows.json").read_text("utf-8")),
        answers=json.loads((folder / "answers.json").read_text("utf-8")),
        people={one["login"]: account_of(one) for one in keys["people"]},
        secrets=keys["secrets"],
    )


async def restore(url: str, before: Before) -> None:
    """Make an empty database what it was: the migrations of that time, then its rows."""
    await migrate(url, read_migrations()[: before.migration])
    async with connected(url) as owner:
        await owner.execute("set session_replication_role = replica")
        for table, rows in before.rows.items():
            if table == "mana.migrations":
                await owner.execute("delete from mana.migrations")
            await owner.execute(
                f"insert into {table} select * from jsonb_populate_recordset(null::{table}, $1)",
                json.dumps(rows),
            )


async def rows_of(connection: asyncpg.Connection) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, as JSON."""
    found = {}
    for table in await connection.fetch(TABLES):
        name = table["name"]
        text = await connection.fetchval(
            f"select coalesce(jsonb_agg(to_jsonb(t) order by to_jsonb(t)::text), '[]') from {name} t"
        )
        found[name] = json.loads(text)
    return found


def account_of(kept: dict[str, Any]) -> NewAccount:
    """Return an account with the keys that its device of that time held."""
    account_id = AccountId(kept["accountId"])
    secret = unb64(kept["identity"])
    identity = PrivateIdentity(
        account_id, HpkePrivateKey(secret[:PRIVATE_BYTES]), SigningKey(secret[PRIVATE_BYTES:])
    )
    spaces = {
        name: FoundedSpace(
            SpaceId(one["spaceId"]), name, unb64(one["spaceKey"]), unb64(one["privateKey"]), None
        )
        for name, one in kept["spaces"].items()
    }
    return NewAccount(
        account_id=account_id,
        login=kept["login"],
        login_key=unb64(kept["loginKey"]),
        unlock_key=unb64(kept["unlockKey"]),
        master_key=unb64(kept["masterKey"]),
        identity=identity,
        device_id=DeviceId(kept["deviceId"]),
        device_key=SigningKey(unb64(kept["deviceKey"])),
        certificate=None,
        personal=spaces["personal"],
        user=spaces["user"],
        request=None,
    )
