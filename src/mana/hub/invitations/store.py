"""Rows of invitations. The hub knows a token by its hash, and believes no acceptance by itself.

Making and withdrawing take the lock of the space, as a move of its membership does: an admin who
is demoted meanwhile invites nobody.
"""

from __future__ import annotations

from typing import Final

from mana.domain.clock import iso_ms
from mana.domain.errors import Conflict, Forbidden, NotFound
from mana.domain.ids import SpaceId
from mana.domain.spaces import SHARED_TYPES, Role, can_manage
from mana.hub.db import AlreadyExists, Row, Tenancy, Transaction, load_queries
from mana.hub.moments import millis, moment
from mana.hub.spaces.store import lock_space, role_of
from mana.hub.tenants import Tenant
from mana.protocol.errors import AlreadyMember, InvitationsFull, SpaceUndeletable
from mana.protocol.messages import InvitationInfo, NewInvitation

Q: Final = load_queries("mana.hub.invitations")
OPEN_MAX: Final = 100
ENDED_KEPT_MAX: Final = 200
LISTED_MAX: Final = 500
OWN_LISTED_MAX: Final = 100


class InvitationStore:
    """The only code that speaks SQL about invitations."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def create(
        self,
        tenant: Tenant,
        space_id: SpaceId,
        made: NewInvitation,
        *,
        expires_ms: int,
        now_ms: int,
    ) -> InvitationInfo:
        """Store an invitation of an owner or admin; the same one again changes nothing."""
        now = moment(now_ms)
        async with self._tenancy.transaction(tenant) as tx:
            role = await lock_space(tx, space_id)
            if await tx.value(Q["type"], space_id) not in SHARED_TYPES:
                raise SpaceUndeletable("a space of one person is never shared")
            if not can_manage(role) or (made.role == "admin" and role != "owner"):
                raise Forbidden("the role may not invite others, or not to this role")
            held = await tx.one(Q["invitation"], space_id, made.invitation_id)
            if held is not None:
                if (held["token_hash"], held["role"]) != (made.token_hash, made.role):
                    raise AlreadyExists("23505", "invitations")
                return _info(held, now_ms)
            if await tx.value(Q["open_invitations"], space_id, now) >= OPEN_MAX:
                raise InvitationsFull("the space has as many open invitations as it can have")
            await tx.execute(Q["forget_invitations"], space_id, now, ENDED_KEPT_MAX)
            await tx.execute(
                Q["add_invitation"],
                made.invitation_id,
                space_id,
                made.role,
                made.token_hash,
                now,
                moment(expires_ms),
            )
            return _info(await _one(tx, space_id, made.invitation_id), now_ms)

    async def of_space(
        self, tenant: Tenant, space_id: SpaceId, *, now_ms: int
    ) -> list[InvitationInfo]:
        """Return the invitations of a space to an owner or admin, newest first."""
        async with self._tenancy.transaction(tenant) as tx:
            _require_manager(await role_of(tx, space_id))
            rows = await tx.all(Q["invitations"], space_id, LISTED_MAX)
        return [_info(row, now_ms) for row in rows]

    async def withdraw(self, tenant: Tenant, space_id: SpaceId, invitation_id: str) -> None:
        """End an invitation by which nobody joined yet; one that was withdrawn stays so."""
        async with self._tenancy.transaction(tenant) as tx:
            _require_manager(await lock_space(tx, space_id))
            held = await _one(tx, space_id, invitation_id)
            if not await tx.execute(Q["withdraw"], space_id, invitation_id):
                raise Conflict("somebody joined by this invitation")
            await _notify(tx, held)

    async def of_account(self, tenant: Tenant, *, now_ms: int) -> list[InvitationInfo]:
        """Return the invitations that the account accepted, newest first."""
        async with self._tenancy.transaction(tenant) as tx:
            rows = await tx.all(Q["accepted_invitations"], OWN_LISTED_MAX)
        return [_info(row, now_ms) for row in rows]

    async def accept(
        self,
        tenant: Tenant,
        space_id: SpaceId,
        invitation_id: str,
        *,
        token_hash: str,
        mac: str,
        now_ms: int,
    ) -> InvitationInfo:
        """Note who accepts, with the public keys of their account; the same one may do it again.

        NotFound for one that is unknown, over or withdrawn, and for another token.
        """
        async with self._tenancy.transaction(tenant, invitation=token_hash) as tx:
            held = await tx.one(Q["borne_invitation"], invitation_id, space_id)
            _require_acceptable(held, tenant, now_ms)
            if held is not None and held["joined"]:
                return _info(held, now_ms)
            if await tx.value(Q["is_member"], space_id):
                raise AlreadyMember("the account is in this space")
            done = await tx.execute(Q["accept"], invitation_id, mac)
            held = await tx.one(Q["borne_invitation"], invitation_id, space_id)
            if not done:
                # Somebody else came first between the two statements.
                _require_acceptable(held, tenant, now_ms)
            if held is None:
                raise _unknown()
            await _notify(tx, held)
            return _info(held, now_ms)


def _require_acceptable(held: Row | None, tenant: Tenant, now_ms: int) -> None:
    if held is None or held["withdrawn"]:
        raise _unknown()
    if held["account_id"] == tenant.account:
        return
    if held["account_id"] is not None:
        raise AlreadyExists("23505", "invitations")
    if millis(held["expires_at"]) <= now_ms:
        raise _unknown()


def _require_manager(role: Role) -> None:
    if not can_manage(role):
        raise Forbidden("invitations are for owners and admins")


def _unknown() -> NotFound:
    return NotFound("there is no such invitation, or it is over")


async def _one(tx: Transaction, space_id: SpaceId, invitation_id: str) -> Row:
    row = await tx.one(Q["invitation"], space_id, invitation_id)
    if row is None:
        raise _unknown()
    return row


async def _notify(tx: Transaction, held: Row) -> None:
    concerned = {held["created_by"], held["account_id"]} - {None}
    await tx.all(Q["notify"], sorted(concerned))


def _info(row: Row, now_ms: int) -> InvitationInfo:
    expires_ms = millis(row["expires_at"])
    if row["withdrawn"]:
        state = "withdrawn"
    elif row["joined"]:
        state = "joined"
    elif row["account_id"] is not None:
        state = "accepted"
    else:
        state = "open" if expires_ms > now_ms else "expired"
    return InvitationInfo(
        invitation_id=row["invitation_id"],
        space_id=row["space_id"],
        role=row["role"],
        state=state,
        created_by=row["created_by"],
        expires_at=iso_ms(expires_ms),
        account_id=row["account_id"],
        signing_key=row["signing_key"],
        hpke_key=row["hpke_key"],
        mac=row["mac"],
    )
