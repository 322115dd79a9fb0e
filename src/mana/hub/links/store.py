"""Rows of links. Each step is one statement that says from which state it may be taken.

What was approved leaves its row in the transaction that hands it out, which also registers the
device and begins its session: it is handed out once, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import msgspec

from mana.domain.errors import Conflict, CryptoFailed, Invalid
from mana.hub.accounts.founding import check_certificate, identity_keys
from mana.hub.accounts.store import (
    NewSession,
    identity_of,
    insert_session,
    lock_account,
    register_device,
    require_proof,
)
from mana.hub.db import Tenancy, Transaction, load_queries
from mana.hub.http.endpoints import Session
from mana.hub.moments import iso_of, millis, moment
from mana.hub.security.store import write_event
from mana.hub.tenants import Tenant
from mana.protocol.errors import DeviceRevoked, LinkEnded
from mana.protocol.messages import (
    ApproveLink,
    DeviceCertificate,
    LinkInfo,
    LinkRequest,
    LinkReveal,
    LinkState,
)

Q: Final = load_queries("mana.hub.links")


@dataclass(frozen=True, slots=True)
class Handed:
    """What an approved link gives, once: the wrapped key, the certificate, a session."""

    wrapped: str = field(repr=False)
    certificate: DeviceCertificate
    session: NewSession


class LinkStore:
    """The only code that speaks SQL about links."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def begin(
        self,
        tenant: Tenant,
        request: LinkRequest,
        ticket_hash: bytes,
        login_mac: bytes,
        *,
        attempts_max: int,
        window_ms: int,
        waiting_max: int,
        life_ms: int,
        now_ms: int,
    ) -> int | None:
        """Let a link wait, if the account is there and few do; return when to ask again, else None.

        For an account that is not there the same statements run, and one row is written too.
        """
        now, window = moment(now_ms), timedelta(milliseconds=window_ms)
        async with self._tenancy.transaction(tenant) as tx:
            until = await tx.value(Q["count_attempt"], login_mac, now, window, attempts_max)
            if until is not None:
                return millis(until)
            await tx.execute(
                Q["begin"],
                request.link_id,
                request.login,
                request.name,
                ticket_hash,
                request.commitment,
                now,
                moment(now_ms + life_ms),
                waiting_max,
            )
        return None

    async def sweep(self, *, now_ms: int) -> None:
        """Remove what waited in vain: links, challenges and second factors of all accounts."""
        async with self._tenancy.door() as tx:
            await tx.execute(Q["sweep"], moment(now_ms))

    async def state(
        self, tenant: Tenant, link_id: str, ticket_hash: bytes
    ) -> tuple[LinkState, str]:
        """Return how a link stands for the new device, without what it is handed, and its login.

        A link that is not there waits: it was never answered, and cannot be.
        """
        async with self._tenancy.transaction(tenant) as tx:
            row = await tx.one(Q["of_ticket"], link_id, ticket_hash)
        if row is None or row["state"] == "waiting":
            return LinkState(state="waiting"), ""
        if row["state"] == "refused":
            return LinkState(state="refused"), ""
        if row["state"] == "taken":
            raise LinkEnded("what was approved was handed out")
        state = LinkState(state=row["state"], account_id=tenant.account, nonce=row["own_nonce"])
        return state, row["login"]

    async def reveal(
        self, tenant: Tenant, link_id: str, ticket_hash: bytes, shown: LinkReveal, *, now_ms: int
    ) -> None:
        """Keep what the new device had committed to; raise LinkEnded unless it was answered."""
        async with self._tenancy.transaction(tenant) as tx:
            done = await tx.execute(
                Q["reveal"],
                link_id,
                ticket_hash,
                moment(now_ms),
                shown.hpke_key,
                shown.device_key,
                shown.device_id,
                shown.nonce,
            )
        if not done:
            raise LinkEnded("the link has ended, or nobody has answered it")

    async def take(
        self,
        tenant: Tenant,
        link_id: str,
        ticket_hash: bytes,
        login_mac: bytes,
        *,
        now_ms: int,
    ) -> Handed | None:
        """Hand out what was approved, once; None if what it rested on no longer stands.

        The session that approved must not have ended since, nor the vault have changed. Raises
        LinkEnded for a link that is not approved.
        """
        async with self._tenancy.transaction(tenant) as tx:
            # The account before the link, as an approval locks them.
            account = await lock_account(tx)
            row = await tx.one(Q["lock_of_ticket"], link_id, ticket_hash, moment(now_ms))
            if row is None:
                raise LinkEnded("what was approved was handed out")
            handed = await _handed(tx, account, row, now_ms=now_ms)
            await tx.execute(Q["end"], link_id, "refused" if handed is None else "taken")
            if handed is not None:
                await tx.execute(Q["clear_attempts"], login_mac)
        return handed

    async def waiting(self, tenant: Tenant, *, now_ms: int) -> list[LinkInfo]:
        """Return the links that one of the account's devices can go on with, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            rows = await tx.all(Q["waiting"], moment(now_ms))
        return [
            LinkInfo(
                link_id=row["link_id"],
                name=row["name"],
                state=row["state"],
                created_at=iso_of(row["created_at"]),
                expires_at=iso_of(row["expires_at"]),
                commitment=row["commitment"],
                own_nonce=row["own_nonce"],
                hpke_key=row["hpke_key"],
                device_key=row["device_key"],
                device_id=row["device_id"],
                nonce=row["nonce"],
            )
            for row in rows
        ]

    async def answer(self, tenant: Tenant, link_id: str, nonce: str, *, now_ms: int) -> None:
        """Keep the old device's nonce, the first one; raise LinkEnded."""
        async with self._tenancy.transaction(tenant) as tx:
            done = await tx.execute(Q["answer"], link_id, moment(now_ms), nonce)
        if not done:
            raise LinkEnded("the link has ended, or was answered")

    async def approve(
        self, session: Session, link_id: str, approval: ApproveLink, *, now_ms: int
    ) -> None:
        """Keep what the new device is to be handed; raise LinkEnded or ProofRefused."""
        certificate = approval.certificate
        async with self._tenancy.transaction(session.tenant) as tx:
            account = await lock_account(tx)
            row = await tx.one(Q["lock_revealed"], link_id, moment(now_ms))
            if row is None:
                raise LinkEnded("the link has ended, or shows no key yet")
            body = {"linkId": link_id, "deviceId": certificate.device_id}
            await require_proof(tx, session, "link-approve", body, approval.proof)
            signing_key, _ = identity_keys(identity_of(account))
            check_certificate(certificate, session.account, signing_key)
            shown = (row["device_id"], row["device_key"])
            if (certificate.device_id, certificate.public_key) != shown:
                raise Invalid("the certificate is of another device than the link shows")
            await tx.execute(
                Q["approve"],
                link_id,
                approval.wrapped,
                msgspec.to_builtins(certificate),
                session.session_id,
                account["revision"],
            )
            await write_event(
                tx, "link", session_id=session.session_id, detail="approved", now_ms=now_ms
            )

    async def refuse(self, session: Session, link_id: str, *, now_ms: int) -> None:
        """End a link before anything is handed out; raise LinkEnded."""
        async with self._tenancy.transaction(session.tenant) as tx:
            if not await tx.execute(Q["refuse"], link_id, moment(now_ms)):
                raise LinkEnded("the link has ended")
            await write_event(
                tx,
                "link",
                ok=False,
                session_id=session.session_id,
                detail="refused",
                now_ms=now_ms,
            )


async def _handed(
    tx: Transaction, account: Mapping[str, Any], row: Mapping[str, Any], *, now_ms: int
) -> Handed | None:
    """Register the device of an approved link and begin its session; None if it may not be."""
    stands = await tx.value(Q["session_stands"], row["session_id"])
    if not stands or row["revision"] != account["revision"]:
        return None
    certificate = msgspec.convert(row["certificate"], DeviceCertificate)
    session = NewSession.draw(name=row["name"], device_id=certificate.device_id)
    try:
        async with tx.savepoint():
            await register_device(tx, account, certificate, session.session_id, now_ms=now_ms)
    except (Conflict, CryptoFailed, DeviceRevoked):
        return None
    await insert_session(tx, account["account_id"], session, moment(now_ms))
    await write_event(tx, "link", session_id=session.session_id, detail="taken", now_ms=now_ms)
    return Handed(row["wrapped"], certificate, session)
