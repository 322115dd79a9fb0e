"""The ledger of the runner, in PostgreSQL: grants, records, the audit and the use of tokens.

`Ledger` works inside a transaction that someone opened for an account; `RunnerStore` opens
them, and has the one door across accounts, to what is due. All times are the database's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from mana.domain.ids import AccountId, AgentId, GrantId, MissionId, SpaceId
from mana.hub.db import (
    DatabaseUnavailable,
    Isolation,
    Pool,
    Role,
    Row,
    Tenancy,
    Transaction,
    load_queries,
    retried,
)
from mana.hub.money import store as money
from mana.hub.runner.ledger import AuditFilter, RegisteredGrant
from mana.hub.runner.queue import DUE, Queue, Turns
from mana.hub.runner.rows import agent_of, from_ms, mission_of, to_ms
from mana.hub.tenants import Tenant
from mana.protocol.messages import (
    AuditRow,
)

__all__ = [
    "DUE",
    "LIVE",
    "Ledger",
    "RunnerStore",
    "Transaction",
    "agent_of",
    "from_ms",
    "mission_of",
    "to_ms",
]

_T = TypeVar("_T")

LIVE: Final = "mana_live"
PATIENCE_S: Final = 20.0
"""How long a transaction of a run is tried again; less than a lease, so that it is ours still."""
PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 1.0
_QUERIES: Final = load_queries("mana.hub.runner")


class Ledger(Queue):
    """The statements about missions and their runs, within one open transaction."""

    async def spent_today(self) -> dict[str, money.Spent]:
        """Return the tokens and costs of the day by agent, reservations counted in full."""
        return await money.agents_today(self.tx)

    async def audit_rows(
        self, wanted: AuditFilter, *, before: int | None, limit: int
    ) -> list[AuditRow]:
        """Return rows of the account's audit, newest first."""
        rows = await self.tx.all(
            _QUERIES["audit_rows"],
            wanted.mission,
            wanted.table,
            wanted.status,
            wanted.since,
            wanted.until,
            before,
            limit,
        )
        return [msgspec.convert(_audit(row), AuditRow) for row in rows]

    async def audit_head(self, account: AccountId) -> tuple[int, str] | None:
        """Return number and hash of the last row of an account's audit."""
        row = await self.tx.one(_QUERIES["audit_head"], account)
        return None if row is None else (row["seq"], row["hash"])

    # What follows is the runner's, and its role alone has the rights for it.

    async def expire_grant(self, grant: GrantId) -> None:
        """End a grant whose time has passed, and erase its sealed keys."""
        await self.tx.execute(_QUERIES["expire_grant"], grant)


@dataclass(frozen=True, slots=True)
class EndedGrants:
    """Grants that ended before their time, each with its signed end, and the database's time.

    All in milliseconds.
    """

    now_ms: int
    ends_ms: dict[str, int]


class RunnerStore(Turns):
    """Opens the runner's transactions: for one account, or to look at what is due."""

    @classmethod
    def at(cls, url: str, *, role: Role = Role.RUNNER, size: int = 8) -> RunnerStore:
        """Return a store at a database's address; `open` it before use."""
        pool = Pool(url, role=role, size=size)
        return cls(Tenancy(pool), pool)

    @property
    def tenancy(self) -> Tenancy:
        """Return what opens its transactions."""
        return self._tenancy

    async def open(self) -> None:
        """Connect."""
        if self._pool is not None:
            await self._pool.open()

    async def close(self) -> None:
        """Disconnect."""
        if self._pool is not None:
            await self._pool.close()

    @contextlib.asynccontextmanager
    async def work(
        self,
        account: str,
        *,
        isolation: Isolation = Isolation.READ_COMMITTED,
        space: SpaceId | None = None,
        locked: bool = False,
    ) -> AsyncIterator[Ledger]:
        """Open a transaction for one account; `space`, `locked`: see `Tenancy.transaction`."""
        async with self._tenancy.transaction(
            Tenant(AccountId(account)), isolation=isolation, space=space, locked=locked
        ) as tx:
            yield Ledger(tx)

    async def again(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a whole transaction again while another one came first, or the database is away.

        What a run has come to by then was paid for, so a moment's absence is waited for.
        """
        until_s = time.monotonic() + PATIENCE_S
        pause_s = PAUSE_S_MIN
        while True:
            try:
                return await retried(work)
            except DatabaseUnavailable:
                if time.monotonic() + pause_s > until_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)

    @contextlib.asynccontextmanager
    async def across(self) -> AsyncIterator[Transaction]:
        """Open a transaction about leases, of whatever account."""
        async with self._tenancy.lease() as tx:
            yield tx

    async def end_grants(self) -> EndedGrants:
        """End grants whose time has come, in every account, and erase their sealed keys."""
        async with self._tenancy.lease() as tx:
            now_ms = await Queue(tx).now_ms()
            rows = await tx.all(_QUERIES["ended_grants"])
        return EndedGrants(now_ms, {row["grant_id"]: to_ms(row["expires_at"]) for row in rows})


def registered_grant(row: Row) -> RegisteredGrant:
    """Return a grant of a row of the register."""
    ended = row["ended_at"]
    return RegisteredGrant(
        grant_id=GrantId(row["grant_id"]),
        account_id=AccountId(row["account_id"]),
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        agent_id=AgentId(row["agent_id"]),
        header=row["header"],
        suite=row["suite"],
        runner_key_id=row["runner_key_id"],
        state=row["state"],
        expired=row["expired"],
        expires_ms=to_ms(row["expires_at"]),
        created_ms=to_ms(row["created_at"]),
        ended_ms=None if ended is None else to_ms(ended),
        wrapped_key=row["wrapped_key"],
        sealed_keys=row["sealed_keys"],
        signer=row["signer"],
        signature=row["signature"],
        hub_signature=row["hub_signature"],
        wrapped_key_hash=row["wrapped_key_hash"],
        sealed_keys_hash=row["sealed_keys_hash"],
        revoker=row["revoker"],
        revocation=row["revocation"],
    )


def _audit(row: Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "missionId": row["mission_id"],
        "iterationId": row["iteration_id"],
        "grantId": row["grant_id"],
        "tableName": row["table_name"],
        "recordId": row["record_id"],
        "status": row["status"],
        "reason": row["reason"],
        "endpoint": row["endpoint"],
        "runnerKeyId": row["runner_key_id"],
        "ts": row["ts"],
        "previous": row["previous"],
        "hash": row["hash"],
    }
