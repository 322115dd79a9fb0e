"""Rows of accounts. Before log-in through the doors, after it under the account's own tenant."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from mana.crypto.errors import SignatureRejected
from mana.crypto.passwords import token_hash
from mana.crypto.primitives import KEY_BYTES, unb64
from mana.crypto.signatures import VerifyKey, entry_hash
from mana.crypto.vaults import new_challenge, verify_proof
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Unauthenticated
from mana.domain.ids import AccountId
from mana.hub.accounts.founding import (
    CheckedSignUp,
    CheckedSpace,
    check_certificate,
    identity_keys,
)
from mana.hub.db import AlreadyExists, Tenancy, Transaction, load_queries
from mana.hub.http.endpoints import Session
from mana.hub.moments import millis, moment
from mana.hub.secrets import KekRing, KekWrap
from mana.hub.security.store import require_session, write_event
from mana.hub.tenants import Tenant
from mana.protocol.errors import (
    AccountExists,
    DeviceRevoked,
    InvalidCredentials,
    InviteNeeded,
    LoginTaken,
    ProofRefused,
    ZeroKnowledgeActive,
)
from mana.protocol.messages import (
    Account,
    DeviceCertificate,
    DeviceRevocation,
    DevicesAnswer,
    Identity,
    MasterProof,
)

Q: Final = load_queries("mana.hub.accounts")


class AccountShared(Conflict):
    """The account is in spaces with other people, who must not lose them."""

    code = "ACCOUNT_SHARED"
    advice = "Leave the shared spaces first."


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that begins, with its first refresh token. `name`: what its device is called."""

    session_id: str
    refresh_token: str = field(repr=False)
    name: str = ""
    device_id: str | None = None

    @classmethod
    def draw(cls, *, name: str = "", device_id: str | None = None) -> NewSession:
        """Draw the id and the token."""
        return cls(str(uuid.uuid4()), new_token(), name, device_id)


def new_token() -> str:
    """Draw a token that nobody guesses (43 characters)."""
    return secrets.token_urlsafe(KEY_BYTES)


def hash_of(token: str) -> bytes:
    """Return what is stored of a random token."""
    return token_hash(token.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class LoginFacts:
    """What a log-in is checked against."""

    account: AccountId
    kdf: Mapping[str, Any]
    login_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rotation:
    """How an exchange of a refresh token ended: `ok | unknown | ended | reused | revoked`."""

    outcome: str
    account: AccountId | None
    session_id: str | None


@dataclass(frozen=True, slots=True)
class RecoveryFacts:
    """What a recovery code is checked against."""

    account: AccountId
    recovery_hash: bytes = field(repr=False)


class AccountStore:
    """The only code that speaks SQL about accounts."""

    def __init__(self, tenancy: Tenancy, keks: KekRing) -> None:
        self._tenancy = tenancy
        self._keks = keks

    async def sign_up(
        self,
        checked: CheckedSignUp,
        *,
        login_hash: str,
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
                kek: KekWrap | None = None
                if checked.master_key is not None:
                    kek = await wrap_under_kek(tx, self._keks, checked.master_key, checked.account)
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
                    None if kek is None else kek.wrapped,
                    request.identity.signing_key,
                    request.identity.hpke_key,
                    request.identity.sealed_private,
                    now,
                    None if kek is None else kek.kek_id,
                )
                await _insert_device(tx, request.device, now)
                for space in checked.spaces:
                    await insert_space(tx, checked.account, space, now)
                await insert_session(tx, checked.account, session, now)
                await write_event(tx, "sign-up", session_id=session.session_id, now_ms=now_ms)
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

    async def touch_attempts(self, login_mac: bytes) -> None:
        """Do the work of a line in the security log for a login that has no account."""
        async with self._tenancy.door() as tx:
            await tx.execute(Q["touch_attempts"], login_mac)

    async def recovery_facts(self, login_name: str) -> RecoveryFacts | None:
        """Return what a recovery code is checked against, None where there is none."""
        async with self._tenancy.door() as tx:
            row = await tx.one(Q["recovery_facts"], login_name)
        if row is None:
            return None
        return RecoveryFacts(AccountId(row["account_id"]), row["recovery_hash"])

    async def begin_session(
        self,
        account: AccountId,
        session: NewSession,
        *,
        action: str,
        holds: Callable[[Mapping[str, Any]], bool],
        login_mac: bytes,
        now_ms: int,
    ) -> None:
        """Store a session and forget the attempts before it.

        `holds`: whether what was checked still stands in the account's row. A password that was
        changed in between ended the sessions of the old one, and this would be one more.
        """
        async with self._tenancy.transaction(Tenant(account)) as tx:
            row = await tx.one(Q["share_account"])
            if row is None or not holds(row):
                raise InvalidCredentials("login or password is wrong")
            await insert_session(tx, account, session, moment(now_ms))
            await write_event(tx, action, session_id=session.session_id, now_ms=now_ms)
            await tx.execute(Q["clear_attempts"], login_mac)

    async def open_reset(
        self, login_name: str, token: bytes, *, now_ms: int, life_ms: int
    ) -> str | None:
        """Keep the hash of a one-time token in standard mode; return the mode, None: unknown."""
        async with self._tenancy.door() as tx:
            mode: str | None = await tx.value(
                Q["open_reset"], token, login_name, moment(now_ms), moment(now_ms + life_ms)
            )
        return mode

    async def reset_account(
        self, login_name: str, token: bytes, *, now_ms: int
    ) -> AccountId | None:
        """Return the account that a one-time token is for, None if it does not hold."""
        async with self._tenancy.door() as tx:
            found = await tx.value(Q["reset_account"], token, login_name, moment(now_ms))
        return None if found is None else AccountId(found)

    async def reset(
        self,
        account: AccountId,
        token: bytes,
        session: NewSession,
        *,
        login_mac: bytes,
        now_ms: int,
    ) -> bytes:
        """Use up a one-time token for a session; return the master key that the hub keeps."""
        async with self._tenancy.transaction(Tenant(account)) as tx:
            row = await lock_account(tx)
            if row["mode"] != "standard":
                raise ZeroKnowledgeActive("the account is in zero-knowledge mode")
            if not await tx.execute(Q["use_reset"], token, moment(now_ms)):
                raise InvalidCredentials("login or token is wrong")
            master_key = self._keks.unwrap(row["kek_wrap"], row["kek_id"], account)
            await insert_session(tx, account, session, moment(now_ms))
            await write_event(tx, "reset", session_id=session.session_id, now_ms=now_ms)
            await tx.execute(Q["clear_attempts"], login_mac)
        return master_key

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
            if await tx.execute(Q["end_session"], session_id, moment(now_ms)):
                await write_event(
                    tx, "session-ended", session_id=session_id, detail="log-out", now_ms=now_ms
                )

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

    async def devices(self, tenant: Tenant) -> DevicesAnswer:
        """Return the certificates of the account's devices, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            await _account(tx)
            return devices_answer(await tx.all(Q["devices"]))

    async def add_device(
        self, session: Session, certificate: DeviceCertificate, *, now_ms: int
    ) -> None:
        """Store a device that the account's identity certified; the same one again is known.

        The session is that device's from now on, if it was nobody's: or a device could be
        revoked whose session goes by another one's name. Raises as `register_device`.
        """
        try:
            async with self._tenancy.transaction(session.tenant) as tx:
                row = await lock_account(tx)
                await require_session(tx, session)
                await register_device(tx, row, certificate, session.session_id, now_ms=now_ms)
                await tx.execute(Q["set_session_device"], session.session_id, certificate.device_id)
        except AlreadyExists:
            raise AccountExists("a device with this id exists") from None

    async def login_of(self, tenant: Tenant) -> tuple[str, str]:
        """Return the login name in its one form, and the hash of the login key."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await _account(tx)
        return row["login_key"], row["login_hash"]

    async def delete(self, session: Session, *, login_hash: str, login_mac: bytes) -> None:
        """Remove the account and everything that refers to it.

        `login_hash`: by which the login key was checked. Who changed the password meanwhile, or
        ended the session, did not mean this.
        """
        async with self._tenancy.transaction(session.tenant) as tx:
            # The account first: whoever is adding it to a space holds its row, and is waited for.
            held = await tx.value(Q["hold_login_hash"])
            await require_session(tx, session)
            if held != login_hash:
                raise InvalidCredentials("login or password is wrong")
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


async def device_key(tx: Transaction, device_id: str, account: AccountId) -> VerifyKey:
    """Return the key of a device that the account certified and has not revoked.

    The transaction is the account's. Raises SignatureRejected.
    """
    row = await tx.one(Q["certified"], device_id)
    if row is None:
        raise SignatureRejected("the device is not registered to the account")
    certificate = certificate_of(row)
    check_certificate(certificate, account, VerifyKey(unb64(row["signing_key"])))
    return VerifyKey(unb64(certificate.public_key))


def devices_answer(rows: Sequence[Mapping[str, Any]]) -> DevicesAnswer:
    """Return rows of `devices` as they are on the wire.

    While an identity changes, a device comes twice: by the new identity, then by the one before.
    """
    devices, revoked = [], []
    for row in rows:
        certificate = certificate_of(row)
        devices.append(certificate)
        if row["former_signature"] is not None:
            before = msgspec.structs.replace(certificate, signature=row["former_signature"])
            devices.append(before)
        if row["revoked_at"] is not None:
            revoked.append(
                DeviceRevocation(
                    account_id=row["account_id"],
                    device_id=row["device_id"],
                    revoked_at=row["revoked_at"],
                    signature=row["revocation"],
                )
            )
    return DevicesAnswer(devices=devices, revoked=revoked)


def identity_of(row: Mapping[str, Any]) -> Identity:
    """Return the identity of a row of `accounts`."""
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

    SessionEnded or DeviceRevoked if the session has ended meanwhile.

    The next challenge is drawn in the same transaction, so a proof is good for one that commits.
    `action` and `body`: docs/protocol/vault.md, 3.
    """
    row = await lock_account(tx)
    await require_session(tx, session)
    try:
        if proof.challenge != row["challenge"]:
            raise ProofRefused("the proof is over another challenge")
        key, signature = VerifyKey(unb64(row["signing_key"])), unb64(proof.signature)
        verify_proof(key, signature, session.account, action, proof.challenge, body)
    except CryptoFailed:
        raise ProofRefused("the proof does not hold") from None
    await tx.execute(Q["set_challenge"], new_challenge())


async def register_device(
    tx: Transaction,
    account: Mapping[str, Any],
    certificate: DeviceCertificate,
    session_id: str,
    *,
    now_ms: int,
) -> None:
    """Store a device that the identity certified, with a line in the log; `account`: locked row.

    The same one again is known. Raises CryptoFailed for another identity's word, DeviceRevoked,
    and AccountExists for another device of this id.
    """
    signing_key, _ = identity_keys(identity_of(account))
    check_certificate(certificate, account["account_id"], signing_key)
    held = await tx.one(Q["device"], certificate.device_id)
    if held is None:
        await _insert_device(tx, certificate, moment(now_ms))
        # A change of the vault that does not know this device is asked to look again.
        await tx.execute(Q["set_challenge"], new_challenge())
        await write_event(tx, "device-added", session_id=session_id, now_ms=now_ms)
    elif held["revoked_at"] is not None:
        raise DeviceRevoked("the device was revoked")
    elif certificate_of(held) != certificate:
        raise AccountExists("a device with this id exists")


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


async def insert_session(
    tx: Transaction, account: AccountId, session: NewSession, now: datetime
) -> None:
    """Store a session and the hash of its first refresh token."""
    await tx.execute(
        Q["insert_session"], session.session_id, account, now, session.name, session.device_id
    )
    await tx.execute(
        Q["insert_token"], hash_of(session.refresh_token), session.session_id, account, now
    )


async def wrap_under_kek(
    tx: Transaction, keks: KekRing, master_key: bytes, account: AccountId
) -> KekWrap:
    """Wrap a master key under the KEK in force, which stays in force until this commits."""
    await tx.value(Q["share_kek"])
    return keks.wrap(master_key, account)
