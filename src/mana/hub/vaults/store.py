"""Rows of vaults, under the account's own tenant: read whole, changed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from mana.crypto.vaults import new_challenge
from mana.domain.errors import Unauthenticated
from mana.domain.ids import MissionId, SpaceId
from mana.hub.accounts.store import certificate_of, identity_of, lock_account, wrap_under_kek
from mana.hub.db import Isolation, Tenancy, Transaction, load_queries, retried
from mana.hub.http.endpoints import Session
from mana.hub.moments import iso_of, moment
from mana.hub.runner import scheduling
from mana.hub.runner.store import Ledger
from mana.hub.secrets import KekRing
from mana.hub.security.store import require_session, write_event
from mana.hub.tenants import Tenant
from mana.hub.vaults.checks import CheckedChange, Standing
from mana.protocol.messages import (
    Formers,
    KdfParameters,
    RecoveryWrap,
    SignedStatement,
    Vault,
    VaultLog,
)

Q: Final = load_queries("mana.hub.vaults")


class VaultStore:
    """The only code that speaks SQL about vaults."""

    def __init__(self, tenancy: Tenancy, keks: KekRing) -> None:
        self._tenancy = tenancy
        self._keks = keks

    async def vault(self, tenant: Tenant) -> Vault:
        """Return the vault as it stands; raise Unauthenticated if the account is gone."""
        async with self._tenancy.transaction(tenant) as tx:
            return await _vault(tx)

    async def standing(self, tenant: Tenant) -> Standing:
        """Return the vault with what a change of it is checked against, as of one moment."""
        async with self._tenancy.transaction(tenant, isolation=Isolation.ONE_MOMENT) as tx:
            return await _standing(tx)

    async def log(self, tenant: Tenant, after: int, limit: int) -> VaultLog:
        """Return statements after a revision, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            await _vault(tx)
            rows = await tx.all(Q["log"], after, limit)
        return VaultLog(statements=[_signed(row) for row in rows])

    async def change(
        self,
        session: Session,
        check: Callable[[Standing], CheckedChange],
        *,
        login_hash: str | None,
        now_ms: int,
    ) -> Vault:
        """Let a change stand with all that follows from it, or nothing; return the new vault.

        `check` decides, under a lock that lets nobody else change the vault meanwhile.
        """

        async def once() -> Vault:
            async with self._tenancy.transaction(session.tenant) as tx:
                await lock_account(tx)
                await require_session(tx, session)
                checked = check(await _standing(tx))
                await self._write(tx, session, checked, login_hash, now_ms=now_ms)
                return await _vault(tx)

        return await retried(once)

    async def _write(
        self,
        tx: Transaction,
        session: Session,
        checked: CheckedChange,
        login_hash: str | None,
        *,
        now_ms: int,
    ) -> None:
        statement, change, now = checked.statement, checked.change, moment(now_ms)
        kek = None
        if checked.master_key is not None:
            kek = await wrap_under_kek(tx, self._keks, checked.master_key, session.account)
        await tx.execute(
            Q["change"],
            statement.mode,
            msgspec.to_builtins(change.kdf),
            login_hash,
            change.master_wrap,
            statement.master_check,
            statement.signing_key,
            statement.hpke_key,
            change.sealed_private,
            statement.revision,
            new_challenge(),
            msgspec.to_builtins(change.formers),
            statement.grants,
            checked.keeps_kek_wrap,
            None if kek is None else kek.wrapped,
            None if kek is None else kek.kek_id,
        )
        if checked.recovery is None:
            await tx.execute(Q["set_recovery"], None, None, None)
        elif checked.recovery_hash is not None:
            recovery = msgspec.to_builtins(checked.recovery)
            await tx.execute(Q["set_recovery"], recovery, checked.recovery_hash, now)
        signed = change.signed
        await tx.execute(
            Q["add_statement"],
            statement.revision,
            statement.to_wire(),
            signed.signature,
            signed.own_signature,
        )
        for certificate in change.devices:
            await tx.execute(Q["certify_device"], certificate.device_id, certificate.signature)
        if not change.formers.identities:
            await tx.execute(Q["forget_former_certificates"])
        if not statement.grants:
            await _end_grants(tx)
        if checked.ends_sessions:
            await tx.execute(Q["end_other_sessions"], session.session_id, now)
            if statement.mode == "standard":
                # In zero-knowledge mode the token that is left only says why it is worth nothing.
                await tx.execute(Q["drop_resets"])
        # A change of nothing that a person would name still dropped or sealed former keys.
        for aspect in checked.aspects or ("master",):
            await write_event(
                tx,
                aspect,
                session_id=session.session_id,
                detail=f"revision {statement.revision}",
                now_ms=now_ms,
            )


async def _vault(tx: Transaction) -> Vault:
    row = await tx.one(Q["vault"])
    if row is None:
        raise Unauthenticated("the account is gone")
    set_at = row["recovery_set_at"]
    return Vault(
        account_id=row["account_id"],
        login=row["login"],
        mode=row["mode"],
        role=row["role"],
        kdf=msgspec.convert(row["kdf"], KdfParameters),
        master_wrap=row["master_wrap"],
        master_check=row["master_check"],
        identity=identity_of(row),
        revision=row["revision"],
        challenge=row["challenge"],
        statement=None if row["statement"] is None else _signed(row),
        recovery=msgspec.convert(row["recovery"], RecoveryWrap | None),
        recovery_set_at=None if set_at is None else iso_of(set_at),
        formers=msgspec.convert(row["formers"], Formers),
        grants=row["grants"],
    )


async def _standing(tx: Transaction) -> Standing:
    devices = [certificate_of(row) for row in await tx.all(Q["devices"])]
    named = {(row["signing_key"], row["hpke_key"]) for row in await tx.all(Q["named"])}
    return Standing(await _vault(tx), tuple(devices), frozenset(named))


def _signed(row: Mapping[str, Any]) -> SignedStatement:
    return SignedStatement(
        statement=row["statement"],
        signature=row["signature"],
        own_signature=row["own_signature"],
    )


async def _end_grants(tx: Transaction) -> None:
    """Revoke all that the account granted, and hold the missions that ran on it."""
    ledger = Ledger(tx)
    await ledger.lock_granted()
    held = {
        (SpaceId(row["space_id"]), MissionId(row["mission_id"]))
        for row in await tx.all(Q["end_grants"])
        if row["was_active"]
    }
    for space, mission in sorted(held):
        await scheduling.hold(ledger, space, mission, "revoked")
        await ledger.cancel_queued(space, mission, manual_too=True)
    if held:
        await ledger.wake()
