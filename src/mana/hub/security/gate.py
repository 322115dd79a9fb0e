"""Whose access token is refused although it has not expired: that of a session that ended.

A session is looked up once, and known to stand until the database says that it ended. A process
that does not hear the database just then knows nothing, and looks each time: what it may have
missed is never taken for granted.
"""

from __future__ import annotations

from typing import Final, Protocol

from mana.domain.errors import Unauthenticated
from mana.hub.http.endpoints import Session
from mana.hub.security.store import SecurityStore
from mana.protocol.errors import DeviceRevoked, SessionEnded

_ENDS: Final = frozenset({"ended", "revoked"})
"""Kinds of notices, as migration 0009 sends them."""

STANDING_MAX: Final = 20_000
"""Sessions that one process remembers; of more, the oldest is looked up again."""


def ended_session(payload: str) -> str | None:
    """Return the session that a notice says has ended; None for a notice of another kind."""
    kind, _, session_id = payload.partition(":")
    return session_id if kind in _ENDS else None


class Hearing(Protocol):
    """A subscription that can say whether it hears."""

    @property
    def is_listening(self) -> bool:
        """Return whether notices arrive."""


class SessionGate:
    """Admits sessions that stand. One for each hub process."""

    def __init__(self, store: SecurityStore) -> None:
        self._store = store
        self._hearing: Hearing | None = None
        self._standing: dict[str, None] = {}
        self._heard = 0

    def follow(self, hearing: Hearing) -> None:
        """Trust what is known as long as this subscription hears."""
        self._hearing = hearing

    async def admit(self, session: Session) -> None:
        """Raise SessionEnded, DeviceRevoked or Unauthenticated unless the session stands."""
        if self._hears() and session.session_id in self._standing:
            return
        heard = self._heard
        state = await self._store.state_of(session)
        if state == "revoked":
            raise DeviceRevoked("this device was revoked")
        if state is None:
            raise Unauthenticated("the session is gone, with its account")
        if state != "standing":
            raise SessionEnded("the session has ended")
        # What ended while the answer was on its way could be this one.
        if self._hears() and heard == self._heard:
            while len(self._standing) >= STANDING_MAX:
                del self._standing[next(iter(self._standing))]
            self._standing[session.session_id] = None

    def notice(self, payload: str) -> None:
        """Take in a notice: `ended:<session>`, `revoked:<session>`; empty: some may be lost."""
        session = ended_session(payload)
        if not payload:
            self._heard += 1
            self._standing.clear()
        elif session is not None:
            self.forget(session)

    def forget(self, session_id: str) -> None:
        """Look this session up before it is admitted again."""
        self._heard += 1
        self._standing.pop(session_id, None)

    def _hears(self) -> bool:
        return self._hearing is not None and self._hearing.is_listening
