"""What a device reads of its account's vault, and how it changes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mana.crypto.passwords import KdfFloor
from mana.domain.errors import ManaError
from mana.hub.http.endpoints import Session
from mana.hub.security.log import Action, SecurityLog
from mana.hub.tenants import Tenant
from mana.hub.vaults.checks import (
    CheckedChange,
    Standing,
    aspects_of,
    check_change,
    statement_of,
)
from mana.hub.vaults.store import VaultStore
from mana.protocol.errors import VaultRefused
from mana.protocol.messages import Vault, VaultChange, VaultLog

LOG_MAX: Final = 1_000
"""Statements in one answer; a device asks again after the last of them."""


class VaultService:
    """The vault of an account, and the chain of its statements."""

    def __init__(
        self,
        store: VaultStore,
        log: SecurityLog,
        hash_login_key: Callable[[bytes], Awaitable[str]],
        *,
        floor: KdfFloor,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._log = log
        self._hash_login_key = hash_login_key
        self._floor = floor
        self._now_ms = now_ms

    async def vault(self, tenant: Tenant) -> Vault:
        """Return what a device needs to unlock the account."""
        return await self._store.vault(tenant)

    async def statements(self, tenant: Tenant, *, after: int) -> VaultLog:
        """Return the statements after a revision, oldest first, 1000 at most."""
        return await self._store.log(tenant, after, LOG_MAX)

    async def change(self, session: Session, change: VaultChange) -> Vault:
        """Let a change stand, whole; return the new vault. What is refused is noted."""
        standing = await self._store.standing(session.tenant)
        try:
            return await self._change(session, change, standing)
        except ManaError as error:
            await self._log.note(
                session.account,
                _action(standing, change),
                ok=False,
                session_id=session.session_id,
                detail=error.code,
            )
            raise

    async def _change(self, session: Session, change: VaultChange, standing: Standing) -> Vault:
        def check(stands: Standing) -> CheckedChange:
            return check_change(stands, change, floor=self._floor)

        # Looked at before the row is held: the hash of a login key takes its time.
        login_key = check(standing).login_key
        login_hash = None if login_key is None else await self._hash_login_key(login_key)
        return await self._store.change(
            session, check, login_hash=login_hash, now_ms=self._now_ms()
        )


def _action(standing: Standing, change: VaultChange) -> Action:
    """Return the word under which an attempt that was refused is found."""
    try:
        aspects = aspects_of(standing.vault, statement_of(change.signed.statement))
    except VaultRefused:
        return "master"
    return aspects[0] if aspects else "master"
