"""Invitations, between the edge and the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mana.crypto.invitations import token_hash
from mana.crypto.primitives import require_key, unb64
from mana.domain.clock import DRIFT_MS_MAX, parse_iso_ms
from mana.domain.errors import Invalid
from mana.domain.ids import require_space_id, require_uuid
from mana.hub.invitations.store import InvitationStore
from mana.hub.sync.service import space_of
from mana.hub.tenants import Tenant
from mana.protocol.messages import (
    AcceptInvitation,
    InvitationInfo,
    InvitationsAnswer,
    NewInvitation,
)

LIFE_MS_MAX: Final = 30 * 24 * 60 * 60 * 1_000
_HEX: Final = frozenset("0123456789abcdef")


class InvitationService:
    """What owners, admins and those whom they invite ask."""

    def __init__(self, store: InvitationStore, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    async def create(self, tenant: Tenant, space: str, made: NewInvitation) -> InvitationInfo:
        """Take note of an invitation that a device made."""
        space_id, now_ms = space_of(space), self._now_ms()
        require_uuid(made.invitation_id, "invitation id")
        if not set(made.token_hash) <= _HEX:
            raise Invalid("the hash of a token is 64 hex digits")
        expires_ms = parse_iso_ms(made.expires_at)
        # A device whose clock is ahead means thirty days too.
        if not now_ms < expires_ms <= now_ms + LIFE_MS_MAX + DRIFT_MS_MAX:
            raise Invalid("an invitation ends within 30 days")
        return await self._store.create(
            tenant,
            space_id,
            made,
            expires_ms=min(expires_ms, now_ms + LIFE_MS_MAX),
            now_ms=now_ms,
        )

    async def of_space(self, tenant: Tenant, space: str) -> InvitationsAnswer:
        """Return the invitations of a space."""
        found = await self._store.of_space(tenant, space_of(space), now_ms=self._now_ms())
        return InvitationsAnswer(invitations=found)

    async def withdraw(self, tenant: Tenant, space: str, invitation_id: str) -> None:
        """End an invitation."""
        space_id = space_of(space)
        require_uuid(invitation_id, "invitation id")
        await self._store.withdraw(tenant, space_id, invitation_id)

    async def of_account(self, tenant: Tenant) -> InvitationsAnswer:
        """Return the invitations that the account accepted."""
        found = await self._store.of_account(tenant, now_ms=self._now_ms())
        return InvitationsAnswer(invitations=found)

    async def accept(
        self, tenant: Tenant, invitation_id: str, proof: AcceptInvitation
    ) -> InvitationInfo:
        """Accept an invitation for the account; a device of the inviter adds it."""
        require_uuid(invitation_id, "invitation id")
        space_id = require_space_id(proof.space_id)
        require_key(unb64(proof.mac))
        return await self._store.accept(
            tenant,
            space_id,
            invitation_id,
            token_hash=token_hash(unb64(proof.token)),
            mac=proof.mac,
            now_ms=self._now_ms(),
        )
