"""Sessions and devices of an account, and what the log says of both."""

from __future__ import annotations

from collections.abc import Callable

from mana.hub.http.endpoints import Session
from mana.hub.security.gate import SessionGate
from mana.hub.security.log import SecurityLog
from mana.hub.security.revocations import check_revocation
from mana.hub.security.store import SecurityStore
from mana.protocol.messages import DeviceRevocation, SessionsAnswer


class SecurityService:
    """What a person does about sessions and devices. `life_ms`: how long an unused one stands."""

    def __init__(
        self,
        store: SecurityStore,
        log: SecurityLog,
        gate: SessionGate,
        *,
        life_ms: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._log = log
        self._gate = gate
        self._life_ms = life_ms
        self._now_ms = now_ms

    async def sessions(self, session: Session) -> SessionsAnswer:
        """Return the sessions that stand, newest first."""
        return await self._store.sessions(session, since_ms=self._now_ms() - self._life_ms)

    async def end_session(self, session: Session, ended: str) -> None:
        """End a session; its tokens are refused from the answer on."""
        await self._store.end_session(session, ended, now_ms=self._now_ms())
        self._gate.forget(ended)

    async def revoke_device(
        self, session: Session, device_id: str, revocation: DeviceRevocation
    ) -> None:
        """Revoke a device for ever: its sessions end, its changes and its name are refused."""
        now_ms = self._now_ms()
        check_revocation(revocation, device_id, now_ms=now_ms)
        async with self._log.refusals(session, "device-revoked"):
            ended = await self._store.revoke_device(session, revocation, now_ms=now_ms)
        for session_id in ended:
            self._gate.forget(session_id)
