"""Rows of second factors and of what passkeys are asked to sign, under the account's tenant.

What may count once is taken by one statement that says so: of two log-ins with one code, one
finds the step used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from mana.domain.encoding import Json
from mana.domain.errors import Unauthenticated
from mana.hub.db import AlreadyExists, Row, Tenancy, Transaction, load_queries
from mana.hub.http.endpoints import Session
from mana.hub.moments import iso_of, moment
from mana.hub.security.store import write_event
from mana.hub.tenants import Tenant
from mana.protocol.errors import FactorUnknown
from mana.protocol.messages import FactorInfo, MasterProof

Q: Final = load_queries("mana.hub.factors")

Prove: TypeAlias = Callable[
    [Transaction, Session, str, Mapping[str, Json], MasterProof], Awaitable[None]
]
"""Raises ProofRefused unless the account's identity signed action and body; locks the account."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A second factor as it is kept. `used`: the last step of a code, or a passkey's counter."""

    factor_id: str
    kind: str
    secret: str = field(repr=False)
    credential_id: str
    used: int
    info: FactorInfo
    is_active: bool


class FactorStore:
    """The only code that speaks SQL about second factors."""

    def __init__(self, tenancy: Tenancy, prove: Prove) -> None:
        self._tenancy = tenancy
        self._prove = prove

    async def factors(self, tenant: Tenant) -> list[Factor]:
        """Return what the account has, pending ones too, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            return [_factor(row) for row in await tx.all(Q["of_account"])]

    async def login(self, tenant: Tenant) -> str:
        """Return the login name, as an authenticator shows it."""
        async with self._tenancy.transaction(tenant) as tx:
            login: str | None = await tx.value(Q["login"])
        if login is None:
            raise Unauthenticated("the account is gone")
        return login

    async def begin(
        self,
        session: Session,
        proof: MasterProof,
        body: Mapping[str, Json],
        made: Factor,
        *,
        most: int,
        now_ms: int,
    ) -> bool:
        """Store a pending factor; False if the account has as many as it may have."""
        async with self._tenancy.transaction(session.tenant) as tx:
            await self._prove(tx, session, "factor-begin", body, proof)
            if len(await tx.all(Q["of_account"])) >= most:
                return False
            await tx.execute(
                Q["insert"], made.factor_id, made.kind, made.info.name, made.secret, moment(now_ms)
            )
        return True

    async def pending(self, tenant: Tenant, factor_id: str, *, since_ms: int) -> Factor:
        """Return a factor that was begun after a moment; raise FactorUnknown."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await tx.one(Q["pending"], factor_id, moment(since_ms))
        if row is None:
            raise FactorUnknown("there is no such second factor to finish")
        return _factor(row)

    async def activate(self, session: Session, factor: Factor, *, now_ms: int) -> None:
        """Let a pending factor count, as `factor` says; raise FactorUnknown if it is not there."""
        try:
            async with self._tenancy.transaction(session.tenant) as tx:
                done = await tx.execute(
                    Q["activate"],
                    factor.factor_id,
                    factor.secret,
                    factor.credential_id or None,
                    factor.used,
                    moment(now_ms),
                )
                if not done:
                    raise FactorUnknown("there is no such second factor to finish")
                await write_event(
                    tx,
                    "factor-added",
                    session_id=session.session_id,
                    detail=factor.kind,
                    now_ms=now_ms,
                )
        except AlreadyExists:
            raise FactorUnknown("this passkey is a second factor already") from None

    async def remove(
        self,
        session: Session,
        factor_id: str,
        proof: MasterProof,
        body: Mapping[str, Json],
        *,
        now_ms: int,
    ) -> None:
        """Remove a factor that counts; raise ProofRefused or FactorUnknown."""
        async with self._tenancy.transaction(session.tenant) as tx:
            await self._prove(tx, session, "factor-remove", body, proof)
            if not await tx.execute(Q["remove"], factor_id):
                raise FactorUnknown("there is no such second factor")
            await write_event(tx, "factor-removed", session_id=session.session_id, now_ms=now_ms)

    async def use_step(self, tenant: Tenant, factor_id: str, step: int, *, now_ms: int) -> bool:
        """Use up a step of a code and all before it; False if one as late was used."""
        async with self._tenancy.transaction(tenant) as tx:
            return await tx.execute(Q["use_step"], factor_id, step, moment(now_ms)) > 0

    async def use_count(self, tenant: Tenant, factor_id: str, count: int, *, now_ms: int) -> bool:
        """Keep a passkey's counter; False if one as high was seen. Some never count: 0 stays 0."""
        async with self._tenancy.transaction(tenant) as tx:
            return await tx.execute(Q["use_count"], factor_id, count, moment(now_ms)) > 0

    async def ask(
        self, tenant: Tenant, challenge: str, factor_id: str | None, *, until_ms: int
    ) -> None:
        """Keep what a passkey is asked to sign: a new one's factor, or None for a log-in."""
        async with self._tenancy.transaction(tenant) as tx:
            await tx.execute(Q["insert_challenge"], challenge, factor_id, moment(until_ms))

    async def take(
        self, tenant: Tenant, challenge: str, factor_id: str | None, *, now_ms: int
    ) -> bool:
        """Use a challenge up, whatever comes of the answer; False if it does not stand."""
        async with self._tenancy.transaction(tenant) as tx:
            return await tx.execute(Q["take_challenge"], challenge, factor_id, moment(now_ms)) > 0


def _factor(row: Row) -> Factor:
    used_at = row["used_at"]
    return Factor(
        factor_id=row["factor_id"],
        kind=row["kind"],
        secret=row["secret"],
        credential_id=row["credential_id"] or "",
        used=row["used"],
        info=FactorInfo(
            factor_id=row["factor_id"],
            kind=row["kind"],
            name=row["name"],
            created_at=iso_of(row["created_at"]),
            used_at=None if used_at is None else iso_of(used_at),
        ),
        is_active=row["state"] == "active",
    )
