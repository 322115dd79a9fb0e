"""The register in PostgreSQL. The database itself refuses to change what has ended."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from mana.crypto.grants import GrantHashes
from mana.domain.ids import AccountId, MissionId, SpaceId
from mana.hub.db import Row, Tenancy, Transaction, load_queries
from mana.hub.runner.ledger import RegisteredGrant
from mana.hub.runner.store import Ledger, from_ms, registered_grant, to_ms
from mana.hub.tenants import Tenant

_QUERIES: Final = load_queries("mana.hub.grants")


@dataclass(frozen=True, slots=True)
class SpaceFacts:
    """The space that a grant is asked for, what the account is in it, and whether it may grant."""

    space_id: SpaceId
    type: str
    role: str
    grants: bool


@dataclass(frozen=True, slots=True)
class StandingRecord:
    """That a record is there, and what of it the hub may read."""

    deleted: bool
    agent_id: str | None


class Register:
    """The statements about grants, within one open transaction."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.ledger = Ledger(tx)

    async def now_ms(self) -> int:
        """Return the database's clock."""
        return to_ms(await self.tx.value(_QUERIES["now"]))

    async def facts(self, space: str | None) -> SpaceFacts | None:
        """Return a space of the account, the personal one if none is named."""
        row = await self.tx.one(_QUERIES["facts"], space)
        if row is None:
            return None
        return SpaceFacts(SpaceId(row["space_id"]), row["type"], row["role"], row["grants"])

    async def standing(
        self, space: SpaceId, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], StandingRecord]:
        """Return which of these records the account can see."""
        tables, records = [table for table, _ in keys], [record for _, record in keys]
        rows = await self.tx.all(_QUERIES["standing"], space, tables, records)
        return {(row["table_name"], row["record_id"]): _standing(row) for row in rows}

    async def add(self, grant: RegisteredGrant) -> None:
        """Keep a header that is not completed yet; drop those that never were."""
        await self.tx.execute(_QUERIES["sweep_pending"])
        await self.tx.execute(
            _QUERIES["add"],
            grant.grant_id,
            grant.account_id,
            grant.space_id,
            grant.mission_id,
            grant.agent_id,
            grant.header,
            grant.suite,
            grant.runner_key_id,
            from_ms(grant.expires_ms),
        )

    async def one_locked(self, grant_id: str) -> RegisteredGrant | None:
        """Return a grant of a space of the account; nobody else changes it meanwhile."""
        # The mission before the grant, as the runner locks them, so that neither waits for the other.
        await self.tx.one(_QUERIES["mission_locked"], grant_id)
        row = await self.tx.one(_QUERIES["one_locked"], grant_id)
        return None if row is None else registered_grant(row)

    async def activate(
        self,
        grant: RegisteredGrant,
        *,
        wrapped_key: str,
        sealed_keys: str,
        signer: str,
        signature: str,
        hub_signature: str,
        hashes: GrantHashes,
    ) -> None:
        """Make a grant the active one of its mission; the one before it is replaced."""
        await self.tx.execute(
            _QUERIES["replace_active"], grant.space_id, grant.mission_id, grant.grant_id
        )
        await self.tx.execute(
            _QUERIES["activate"],
            grant.grant_id,
            wrapped_key,
            sealed_keys,
            signer,
            signature,
            hub_signature,
            hashes.wrapped_key,
            hashes.sealed_keys,
        )

    async def revoke(self, grant_id: str) -> None:
        """End a grant for ever and erase its sealed keys."""
        await self.tx.execute(_QUERIES["revoke"], grant_id)

    async def add_revocation(self, grant_id: str, *, signer: str, value: str) -> None:
        """Keep a device's signed word that a grant has ended; the first one stays."""
        await self.tx.execute(_QUERIES["add_revocation"], grant_id, signer, value)

    async def active_grant(self, space: SpaceId, mission: MissionId) -> str | None:
        """Return the active grant of a mission; nobody else ends it meanwhile."""
        grant: str | None = await self.tx.value(_QUERIES["active_grant"], space, mission)
        return grant

    async def waiting_by_hand(self, space: SpaceId, mission: MissionId) -> int:
        """Return how many runs of a mission somebody asked for that did not begin yet."""
        found: int = await self.tx.value(_QUERIES["waiting_by_hand"], space, mission)
        return found

    async def expire_seen(self) -> None:
        """End the grants of the account's spaces whose time has passed."""
        await self.tx.execute(_QUERIES["expire_seen"])

    async def visible(self, limit: int) -> list[RegisteredGrant]:
        """Return the grants of the account's spaces, newest first."""
        return [registered_grant(row) for row in await self.tx.all(_QUERIES["visible"], limit)]

    async def role(self, space: SpaceId) -> str | None:
        """Return the account's role in a space."""
        role: str | None = await self.tx.value(_QUERIES["role"], space)
        return role


class GrantStore:
    """Opens transactions on the register."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    @contextlib.asynccontextmanager
    async def register(self, tenant: Tenant) -> AsyncIterator[Register]:
        """Open the register for an account."""
        async with self._tenancy.transaction(tenant) as tx:
            yield Register(tx)

    @contextlib.asynccontextmanager
    async def ledger(self, account: AccountId) -> AsyncIterator[Ledger]:
        """Open the ledger of runs for an account."""
        async with self._tenancy.transaction(Tenant(account)) as tx:
            yield Ledger(tx)


def _standing(row: Row) -> StandingRecord:
    agent = row["agent_id"]
    return StandingRecord(
        deleted=row["deleted_at"] is not None, agent_id=agent if isinstance(agent, str) else None
    )
