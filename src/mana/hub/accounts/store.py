"""Rows of accounts. Before log-in through the doors, after it under the account's own tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey, entry_hash
from mana.crypto.vaults import new_challenge, verify_proof
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.accounts.founding import CheckedSignUp, CheckedSpace
from mana.hub.db import AlreadyExists, Tenancy, Transaction, load_queries
from mana.hub.http.endpoints import Session
from mana.hub.tenants import Tenant
from mana.protocol.errors import AccountExists, InviteNeeded, LoginTaken, ProofRefused
from mana.protocol.messages import (
    Account,
    DeviceCertificate,
    Identity,
    KdfParameters,
    MasterProof,
    Vault,
)

Q: Final = load_queries("mana.hub.accounts")


class AccountShared(Conflict):
    """The account is in spaces with other people, who must not lose them."""

    code = "ACCOUNT_SHARED"
    advice = "Leave the shared spaces first."


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that begins, with the hash of its first refresh token."""

    session_id: str
    token_hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoginFacts:
    """What a log-in is checked against."""

    account: AccountId
    kdf: Mapping[str, Any]
    login_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rotation:
    """How an exchange of a refresh token ended: `ok | unknown | ended | reused`."""

    outcome: str
    account: AccountId | None
    session_id: str | None


def moment(ms: int) -> datetime:
    """Return milliseconds since 1970 as the driver takes them."""
    return datetime.fromtimestamp(ms // 1_000, UTC) + timedelta(milliseconds=ms % 1_000)


def millis(at: datetime) -> int:
    """Return a moment of the database as milliseconds since 1970."""
    return round(at.timestamp() * 1_000)


class AccountStore:
    """The only code that speaks SQL about accounts."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def sign_up(
        self,
        checked: CheckedSignUp,
        *,
        login_hash: str,
        kek_wrap: str | None,
        invite_hash: bytes,
        invites_only: bool,
        session: NewSession,
        now_ms: int,
    ) -> None:
        """Store account, device, spaces and first session, or nothing."""
        now = moment(now_ms)
        request = checked.request
        try:
            async with self._tenancy.transaction(Tenant(checked.account)) as tx:
                role = await tx.value(Q["admit_sign_up"], request.demo, invite_hash, invites_only)
                if role is None:
                    raise InviteNeeded("this hub takes new accounts by invitation only")
                await tx.execute(
                    Q["insert_account"],
                    checked.account,
                    request.login,
                    checked.login_name,
                    request.mode,
                    role,
                    request.demo,
                    msgspec.to_builtins(request.kdf),
                    login_hash,
                    request.master_wrap,
                    request.master_check,
                    kek_wrap,
                    request.identity.signing_key,
                    request.identity.hpke_key,
                    request.identity.sealed_private,
                    now,
                )
                await _insert_device(tx, request.device, now)
                for space in checked.spaces:
                    await insert_space(tx, checked.account, space, now)
                await _insert_session(tx, checked.account, session, now)
        except AlreadyExists as error:
            if error.constraint == "accounts_login":
                raise LoginTaken("this login name is taken") from None
            raise AccountExists("an account, device or space with this id exists") from None

    async def login_facts(self, login_name: str) -> LoginFacts | None:
        """Return what a log-in is checked against, None for an unknown login."""
        async with self._tenancy.door() as tx:
            row = await tx.one(Q["login_facts"], login_name)
        if row is None:
            return None
        return LoginFacts(AccountId(row["account_id"]), row["kdf"], row["login_hash"])

    async def count_attempt(
        self, login_mac: bytes, *, now_ms: int, window_ms: int, attempts_max: int
    ) -> int | None:
        """Count an attempt before it is judged; return when the next one may be, else None."""
        window = timedelta(milliseconds=window_ms)
        async with self._tenancy.door() as tx:
            until = await tx.value(
                Q["count_attempt"], login_mac, moment(now_ms), window, attempts_max
            )
        return None if until is None else millis(until)

    async def begin_session(
        self, account: AccountId, session: NewSession, *, login_mac: bytes, now_ms: int
    ) -> None:
        """Store a session and forget the attempts before it."""
        async with self._tenancy.transaction(Tenant(account)) as tx:
            await _insert_session(tx, account, session, moment(now_ms))
            await tx.execute(Q["clear_attempts"], login_mac)

    async def rotate(
        self, old: bytes, new: bytes, *, now_ms: int, grace_ms: int, life_ms: int
    ) -> Rotation:
        """Exchange a refresh token, or find out why not; reuse ends the session."""
        grace, life = timedelta(milliseconds=grace_ms), timedelta(milliseconds=life_ms)
        async with self._tenancy.door() as tx:
            row = await tx.one(Q["rotate_token"], old, new, moment(now_ms), grace, life)
        if row is None:
            return Rotation("unknown", None, None)
        account = row["account_id"]
        return Rotation(
            row["outcome"], None if account is None else AccountId(account), row["session_id"]
        )

    async def end_session(self, tenant: Tenant, session_id: str, *, now_ms: int) -> None:
        """End a session of the account; one that has ended stays so."""
        async with self._tenancy.transaction(tenant) as tx:
            await tx.execute(Q["end_session"], session_id, moment(now_ms))

    async def add_invite(
        self, tenant: Tenant, invite_hash: bytes, *, now_ms: int, life_ms: int
    ) -> bool:
        """Store an invitation; False if the account does not administer this hub."""
        async with self._tenancy.transaction(tenant) as tx:
            if (await _account(tx))["role"] != "administrator":
                return False
            await tx.execute(
                Q["insert_invite"], invite_hash, moment(now_ms), moment(now_ms + life_ms)
            )
        return True

    async def account(self, tenant: Tenant) -> Account:
        """Return the signed-in account; raise Unauthenticated if it is gone."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await _account(tx)
        return Account(
            account_id=row["account_id"],
            login=row["login"],
            mode=row["mode"],
            role=row["role"],
            created_at=iso_ms(millis(row["created_at"])),
        )

    async def vault(self, tenant: Tenant) -> Vault:
        """Return what a device needs to unlock the account with the password."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await _account(tx)
        return Vault(
            account_id=row["account_id"],
            login=row["login"],
            mode=row["mode"],
            role=row["role"],
            kdf=msgspec.convert(row["kdf"], KdfParameters),
            master_wrap=row["master_wrap"],
            master_check=row["master_check"],
            identity=_identity(row),
        )

    async def identity(self, tenant: Tenant) -> Identity:
        """Return the account's identity."""
        async with self._tenancy.transaction(tenant) as tx:
            return _identity(await _account(tx))

    async def devices(self, tenant: Tenant) -> list[DeviceCertificate]:
        """Return the certificates of the account's devices, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            await _account(tx)
            return [certificate_of(row) for row in await tx.all(Q["devices"])]

    async def add_device(
        self, tenant: Tenant, certificate: DeviceCertificate, *, now_ms: int
    ) -> None:
        """Store a device's certificate; the same one again changes nothing."""
        try:
            async with self._tenancy.transaction(tenant) as tx:
                await _account(tx)
                held = await tx.one(Q["device"], certificate.device_id)
                if held is not None:
                    if certificate_of(held) != certificate:
                        raise AccountExists("a device with this id exists")
                    return
                await _insert_device(tx, certificate, moment(now_ms))
        except AlreadyExists:
            raise AccountExists("a device with this id exists") from None

    async def login_of(self, tenant: Tenant) -> tuple[str, str]:
        """Return the login name in its one form, and the hash of the login key."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await _account(tx)
        return row["login_key"], row["login_hash"]

    async def delete(self, tenant: Tenant, *, login_mac: bytes) -> None:
        """Remove the account and everything that refers to it."""
        async with self._tenancy.transaction(tenant) as tx:
            # The account first: whoever is adding it to a space holds its row, and is waited for.
            await tx.execute(Q["delete_account"])
            if await tx.value(Q["shared_spaces"]):
                raise AccountShared("the account is in spaces with other people")
            await tx.execute(Q["delete_spaces"])
            await tx.execute(Q["clear_attempts"], login_mac)


def certificate_of(row: Mapping[str, Any]) -> DeviceCertificate:
    """Return the certificate of a row of `devices`."""
    return DeviceCertificate(
        account_id=row["account_id"],
        device_id=row["device_id"],
        public_key=row["public_key"],
        created_at=row["created_at"],
        signature=row["signature"],
    )


def _identity(row: Mapping[str, Any]) -> Identity:
    return Identity(
        signing_key=row["signing_key"],
        hpke_key=row["hpke_key"],
        sealed_private=row["sealed_private"],
    )


async def _account(tx: Transaction) -> Mapping[str, Any]:
    row = await tx.one(Q["account"])
    if row is None:
        raise Unauthenticated("the account is gone")
    return row


async def lock_account(tx: Transaction) -> Mapping[str, Any]:
    """Return the account's row; nobody else changes its vault until the end of the transaction.

    Raises Unauthenticated if the account is gone. Rows that only refer to it are not held up.
    """
    row = await tx.one(Q["lock_account"])
    if row is None:
        raise Unauthenticated("the account is gone")
    return row


async def require_proof(
    tx: Transaction, session: Session, action: str, body: Mapping[str, Json], proof: MasterProof
) -> None:
    """Raise ProofRefused unless the account's identity signed this action over the challenge.

    The next challenge is drawn in the same transaction, so a proof is good for one that commits.
    `action` and `body`: docs/protocol/vault.md, 3.
    """
    row = await lock_account(tx)
    try:
        if proof.challenge != row["challenge"]:
            raise ProofRefused("the proof is over another challenge")
        key, signature = VerifyKey(unb64(row["signing_key"])), unb64(proof.signature)
        verify_proof(key, signature, session.account, action, proof.challenge, body)
    except CryptoFailed:
        raise ProofRefused("the proof does not hold") from None
    await tx.execute(Q["set_challenge"], new_challenge())


async def _insert_device(tx: Transaction, certificate: DeviceCertificate, now: datetime) -> None:
    await tx.execute(
        Q["insert_device"],
        certificate.device_id,
        certificate.account_id,
        certificate.public_key,
        certificate.created_at,
        certificate.signature,
        now,
    )


async def insert_space(
    tx: Transaction, account: AccountId, space: CheckedSpace, now: datetime
) -> None:
    """Store a space with its founder, the first entry of its log, and the founder's keys."""
    first = space.new.first
    hashed = entry_hash(space.entry.to_wire(), unb64(first.signature))
    await tx.execute(
        Q["insert_space"],
        space.space_id,
        space.entry.space_type,
        [account],
        space.entry.key_version,
        now,
    )
    await tx.execute(Q["insert_membership"], space.space_id, account, "owner")
    await tx.execute(
        Q["insert_entry"], space.space_id, 1, space.entry.to_wire(), first.signature, hashed
    )
    for wrap in space.new.wraps:
        await tx.execute(
            Q["insert_key"], space.space_id, account, wrap.kind, wrap.version, wrap.wrapped
        )
    await tx.execute(Q["insert_head"], space.space_id)


async def _insert_session(
    tx: Transaction, account: AccountId, session: NewSession, now: datetime
) -> None:
    await tx.execute(Q["insert_session"], session.session_id, account, now)
    await tx.execute(Q["insert_token"], session.token_hash, session.session_id, account, now)
