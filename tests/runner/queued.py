"""Accounts, missions and occurrences as bare rows, by the thousand, for tests of the queue."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mana.hub.db import Pool, Role, Tenancy
from mana.hub.runner.ledger import Lease
from mana.hub.runner.store import RunnerStore
from mana.testing.postgres import Database, connected

LEASE_S = 60

_ACCOUNT = """
insert into mana.accounts
  (account_id, login, login_key, mode, role, demo, kdf, login_hash, master_wrap, master_check,
   signing_key, hpke_key, sealed_private, created_at, grants)
select a, a, a, 'zero-knowledge', 'member', false, '{}', '', '', '', '', '', '', now(), true
  from unnest($1::text[]) as a
"""
_SPACE = """
insert into mana.spaces (space_id, type, members, key_version, created_at)
select s, 'personal', array[a], 1, now() from unnest($1::text[], $2::text[]) as k (s, a)
"""
_QUEUE = """
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, scheduled_for, kind, state, due_at)
select $1, $2, $3, at, 'scheduled', 'queued', at
  from (select now() - $5::interval - n * interval '1 ms' as at
          from generate_series(1, $4::int) as n) k
"""


def account_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def space_id(number: int) -> str:
    return f"{number:064x}"


@dataclass
class Queued:
    """A database with accounts, each with a space of its own, and a runner's store."""

    owner: Any
    database: Database
    store: RunnerStore

    async def accounts(self, numbers: Sequence[int]) -> None:
        await self.owner.execute(_ACCOUNT, [account_id(n) for n in numbers])
        await self.owner.execute(
            _SPACE, [space_id(n) for n in numbers], [account_id(n) for n in numbers]
        )

    async def queue(
        self, number: int, count: int = 1, *, mission: str = "m", late_s: float = 1
    ) -> None:
        """Queue occurrences of an account that were due some seconds ago; negative: later."""
        await self.owner.execute(
            _QUEUE,
            space_id(number),
            f"{mission}-{number}",
            account_id(number),
            count,
            timedelta(seconds=late_s),
        )

    async def lease(self, free: int, worker: str = "one") -> list[Lease]:
        return (await self.store.lease(worker, free, lease_s=LEASE_S)).leases

    async def wait_ms(self) -> int | None:
        """Return what a runner hears that has no room now."""
        return (await self.store.lease("full", 0, lease_s=LEASE_S)).wait_ms

    async def limit(self, **values: object) -> None:
        for name, value in values.items():
            await self.owner.execute(f"update mana_ai.hub_limits set {name} = $1", value)

    async def late_turns(self) -> list[str]:
        """Return the accounts whose turn is later than what they have queued."""
        rows = await self.owner.fetch(
            "select o.account_id from mana_ai.occurrences o"
            " left join mana_ai.account_work w on w.account_id = o.account_id"
            " where o.state = 'queued' and (w.next_due is null or w.next_due > o.due_at)"
        )
        return [row["account_id"] for row in rows]


@contextlib.asynccontextmanager
async def queued(database: Database) -> AsyncIterator[Queued]:
    """Lend a database to queue in."""
    async with (
        connected(database.owner_url) as owner,
        Pool(database.runner_url, role=Role.RUNNER, size=6) as pool,
    ):
        yield Queued(owner, database, RunnerStore(Tenancy(pool)))


def by_account(leases: Sequence[Lease]) -> dict[int, int]:
    """Return how many of the leases each account has, by its number."""
    found: dict[int, int] = {}
    for lease in leases:
        number = int(lease.account_id[-12:])
        found[number] = found.get(number, 0) + 1
    return found
