"""Rows of the security log, of sessions and of revoked devices, under the account's own tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from mana.domain.errors import NotFound
from mana.hub.db import Tenancy, Transaction, load_queries
from mana.hub.http.endpoints import Session
from mana.hub.moments import iso_of, moment
from mana.hub.security.revocations import require_revocation
from mana.hub.tenants import Tenant
from mana.protocol.errors import DeviceRevoked, SessionEnded
from mana.protocol.messages import (
    DeviceRevocation,
    SecurityEvent,
    SecurityEvents,
    SessionInfo,
    SessionsAnswer,
)

Q: Final = load_queries("mana.hub.security")
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
REFUSED_MAX: Final = 100
"""How many refusals of one kind within a day the log tells of; what follows is more of the same."""


class SecurityStore:
    """The only code that speaks SQL about the security log, and about which sessions stand."""

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

    async def state_of(self, session: Session) -> str | None:
        """Return how a session stands: `standing | ended | revoked`; None if it is gone."""
        async with self._tenancy.transaction(session.tenant) as tx:
            state: str | None = await tx.value(Q["state_of"], session.session_id)
        return state

    async def sessions(self, session: Session, *, since_ms: int) -> SessionsAnswer:
        """Return the sessions of the account that were seen since, newest first."""
        async with self._tenancy.transaction(session.tenant) as tx:
            rows = await tx.all(Q["sessions"], moment(since_ms))
        return SessionsAnswer(
            sessions=[
                SessionInfo(
                    session_id=row["session_id"],
                    created_at=iso_of(row["created_at"]),
                    seen_at=iso_of(row["seen_at"]),
                    current=row["session_id"] == session.session_id,
                    name=row["name"],
                    device_id=row["device_id"],
                )
                for row in rows
            ]
        )

    async def end_session(self, session: Session, ended: str, *, now_ms: int) -> None:
        """End a session of the account; one that has ended stays so. NotFound for another's."""
        async with self._tenancy.transaction(session.tenant) as tx:
            if await tx.execute(Q["end_session"], ended, moment(now_ms)):
                await write_event(
                    tx,
                    "session-ended",
                    session_id=session.session_id,
                    detail=ended,
                    now_ms=now_ms,
                )
            elif await tx.value(Q["state_of"], ended) is None:
                raise NotFound("the account has no such session")

    async def revoke_device(
        self, session: Session, revocation: DeviceRevocation, *, now_ms: int
    ) -> list[str]:
        """Revoke a device of the account for ever; return its sessions, which have ended.

        Raises ProofRefused unless the account's identity signed it, and NotFound. The moment of
        the first revocation stands, whatever comes later; another identity may repeat it.
        """
        async with self._tenancy.transaction(session.tenant) as tx:
            # The account before the device, as a change of the identity locks them.
            signing_key = await tx.value(Q["signing_key"])
            await require_session(tx, session)
            require_revocation(revocation, signing_key or "", session.account)
            device = await tx.one(Q["device"], revocation.device_id)
            if device is None:
                raise NotFound("the account has no such device")
            if device["revoked_at"] in (None, revocation.revoked_at):
                await tx.execute(
                    Q["revoke_device"],
                    revocation.device_id,
                    revocation.revoked_at,
                    revocation.signature,
                )
            if device["revoked_at"] is None:
                await write_event(
                    tx,
                    "device-revoked",
                    session_id=session.session_id,
                    detail=revocation.device_id,
                    now_ms=now_ms,
                )
            rows = await tx.all(Q["end_sessions_of"], revocation.device_id, moment(now_ms))
            return [row["session_id"] for row in rows]


async def require_session(tx: Transaction, session: Session) -> None:
    """Raise SessionEnded or DeviceRevoked if the session ended after its call was let in.

    Ask once the account's row is held: a call can wait for it for as long as another one likes.
    """
    state = await tx.value(Q["state_of"], session.session_id)
    if state == "revoked":
        raise DeviceRevoked("this device was revoked")
    if state != "standing":
        raise SessionEnded("the session has ended")


async def write_event(
    tx: Transaction,
    action: str,
    *,
    ok: bool = True,
    session_id: str | None = None,
    detail: str = "",
    now_ms: int,
) -> None:
    """Write a line with what it tells of: both stand, or neither.

    Whoever is signed in can be refused as often as they like, and fills no database with it. Of
    who is not, every line is written: their attempts are counted, and a line that is left out
    would tell by its time that the account is there.
    """
    at = moment(now_ms)
    if ok or session_id is None:
        await tx.execute(Q["insert_event"], at, action, ok, session_id, detail)
    else:
        await tx.execute(Q["insert_refusal"], at, action, session_id, detail, REFUSED_MAX)
