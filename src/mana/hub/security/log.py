"""The security log: what happened to an account's keys and sessions, refused attempts too.

A refusal rolls its own transaction back, so each line is written in one of its own. That can
fail too, and then what the person asked for counts more than the line about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Literal, TypeAlias

import structlog

from mana.domain.clock import parse_iso_ms
from mana.domain.errors import CryptoFailed, Forbidden, ManaError, Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.http.endpoints import Session
from mana.hub.security.store import SecurityStore
from mana.hub.tenants import Tenant
from mana.protocol.messages import SecurityEvents

Action: TypeAlias = Literal[
    "sign-up",
    "log-in",
    "second-factor",
    "recover",
    "reset",
    "password",
    "recovery",
    "mode",
    "master",
    "identity",
    "grants",
    "factor-added",
    "factor-removed",
    "session-ended",
    "device-added",
    "device-revoked",
    "link",
]

_LOG: Final = structlog.get_logger("mana.hub")


class SecurityLog:
    """The lines of all accounts, each written and read under its own account."""

    def __init__(self, store: SecurityStore, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    async def note(
        self,
        account: AccountId,
        action: Action,
        *,
        ok: bool,
        session_id: str | None = None,
        detail: str = "",
    ) -> None:
        """Write a line in a transaction of its own; a failure is logged and never raised.

        `detail` is a word of the program, as the kind of a factor: never what somebody typed.
        """
        try:
            await self._store.note(
                Tenant(account),
                action,
                ok=ok,
                session_id=session_id,
                detail=detail,
                now_ms=self._now_ms(),
            )
        except ManaError as error:
            _LOG.error("security line lost", action=action, error=type(error).__name__)

    @contextlib.asynccontextmanager
    async def refusals(self, session: Session, action: Action) -> AsyncIterator[None]:
        """Write a line about what is refused inside: a proof or an answer that does not hold."""
        try:
            yield
        except (CryptoFailed, Forbidden, Unauthenticated) as error:
            await self.note(
                session.account,
                action,
                ok=False,
                session_id=session.session_id,
                detail=error.code,
            )
            raise

    async def events(self, tenant: Tenant, *, before: str | None, limit: int) -> SecurityEvents:
        """Return lines before a moment (ISO), newest first.

        Lines of one millisecond are never torn apart, so there can be a few more than `limit`.
        """
        before_ms = None if before is None else parse_iso_ms(before)
        return await self._store.events(tenant, before_ms=before_ms, limit=limit)
