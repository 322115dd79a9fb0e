"""Rows of spaces: the membership logs, the account's own key wraps, the members' devices."""

from __future__ import annotations

from typing import Final

from mana.domain.errors import NotFound
from mana.domain.ids import SpaceId
from mana.hub.db import Tenancy, load_queries
from mana.hub.tenants import Tenant
from mana.protocol.messages import DeviceCertificate, KeyWrap, SignedEntry, SpaceInfo

Q: Final = load_queries("mana.hub.spaces")


class SpaceStore:
    """The only code that speaks SQL about spaces."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def spaces(self, tenant: Tenant) -> list[SpaceInfo]:
        """Return the spaces of the account with their logs and its own wraps."""
        async with self._tenancy.transaction(tenant) as tx:
            rows = await tx.all(Q["spaces"])
            ids = [row["space_id"] for row in rows]
            entries = await tx.all(Q["entries"], ids)
            keys = await tx.all(Q["keys"], ids)
        logs: dict[str, list[SignedEntry]] = {space_id: [] for space_id in ids}
        wraps: dict[str, list[KeyWrap]] = {space_id: [] for space_id in ids}
        for row in entries:
            logs[row["space_id"]].append(
                SignedEntry(entry=row["entry"], signature=row["signature"])
            )
        for row in keys:
            wraps[row["space_id"]].append(
                KeyWrap(kind=row["kind"], version=row["version"], wrapped=row["wrapped"])
            )
        return [
            SpaceInfo(
                space_id=row["space_id"],
                type=row["type"],
                role=row["role"],
                log=logs[row["space_id"]],
                wraps=wraps[row["space_id"]],
            )
            for row in rows
        ]

    async def devices(self, tenant: Tenant, space_id: SpaceId) -> list[DeviceCertificate]:
        """Return the certificates of the members' devices; NotFound for who is no member."""
        async with self._tenancy.transaction(tenant) as tx:
            if await tx.value(Q["role"], space_id) is None:
                raise NotFound("there is no such space here")
            rows = await tx.all(Q["devices"], space_id)
        return [
            DeviceCertificate(
                account_id=row["account_id"],
                device_id=row["device_id"],
                public_key=row["public_key"],
                created_at=row["created_at"],
                signature=row["signature"],
            )
            for row in rows
        ]
