"""Rows of the security log, of sessions and of revoked devices, under the account's own tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from mana.hub.db import Tenancy, Transaction, load_queries
from mana.hub.moments import iso_of, moment
from mana.hub.tenants import Tenant
from mana.protocol.messages import SecurityEvent, SecurityEvents

Q: Final = load_queries("mana.hub.security")
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class SecurityStore:
    """The only code that speaks SQL about the security log."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def note(
        self,
        tenant: Tenant,
        action: str,
        *,
        ok: bool,
        session_id: str | None,
        detail: str,
        now_ms: int,
    ) -> None:
        """Write a line."""
        async with self._tenancy.transaction(tenant) as tx:
            await write_event(
                tx, action, ok=ok, session_id=session_id, detail=detail, now_ms=now_ms
            )

    async def events(self, tenant: Tenant, *, before_ms: int | None, limit: int) -> SecurityEvents:
        """Return lines before a moment, newest first; those of one millisecond stay together."""
        before = _NEVER if before_ms is None else moment(before_ms)
        async with self._tenancy.transaction(tenant) as tx:
            rows = await tx.all(Q["events"], before, limit)
            more = bool(rows) and await tx.value(Q["has_events"], rows[-1]["at"])
        return SecurityEvents(
            events=[
                SecurityEvent(
                    at=iso_of(row["at"]),
                    action=row["action"],
                    ok=row["ok"],
                    session_id=row["session_id"],
                    detail=row["detail"],
                )
                for row in rows
            ],
            more=more,
        )


async def write_event(
    tx: Transaction,
    action: str,
    *,
    ok: bool = True,
    session_id: str | None = None,
    detail: str = "",
    now_ms: int,
) -> None:
    """Write a line with what it tells of: both stand, or neither."""
    await tx.execute(Q["insert_event"], moment(now_ms), action, ok, session_id, detail)
