"""Sign-up, log-in and sessions. Says as little as it can about who has an account here.

An unknown login gets an invented salt, the same one each time, and costs the same work as a
wrong password; both are limited alike.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from mana.crypto.errors import LoginRejected
from mana.crypto.passwords import SALT_BYTES, hash_login_key, token_hash, verify_login_key
from mana.crypto.passwords import KdfParameters as Kdf
from mana.crypto.primitives import KEY_BYTES, b64, mac
from mana.domain.clock import iso_ms
from mana.domain.encoding import length_prefixed
from mana.domain.errors import Forbidden, ManaError
from mana.domain.ids import AccountId
from mana.hub.accounts.founding import check_sign_up, key_bytes, login_name
from mana.hub.accounts.store import AccountStore, NewSession, hash_of, new_token
from mana.hub.accounts.tokens import LIFE_S, TokenIssuer
from mana.hub.factors.service import FactorService
from mana.hub.http.endpoints import Session
from mana.hub.secrets import HubSecrets
from mana.hub.security.log import Action, SecurityLog
from mana.hub.settings import HubSettings
from mana.hub.tenants import Tenant
from mana.protocol.codec import check_text
from mana.protocol.errors import (
    DeviceRevoked,
    InvalidCredentials,
    RateLimited,
    SessionEnded,
    SignupClosed,
    TwoFactorRequired,
)
from mana.protocol.messages import (
    Account,
    DeleteAccountRequest,
    DeviceCertificate,
    DevicesAnswer,
    InviteAnswer,
    KdfParameters,
    KdfRequest,
    LoginRequest,
    RecoverRequest,
    RefreshRequest,
    ResetAnswer,
    ResetRequest,
    SignUpRequest,
    Tokens,
)

ATTEMPTS_MAX: Final = 5
ATTEMPTS_WINDOW_MS: Final = 15 * 60 * 1_000
REFRESH_GRACE_MS: Final = 30 * 1_000
REFRESH_LIFE_MS: Final = 60 * 24 * 60 * 60 * 1_000
INVITE_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
HASHES_AT_ONCE: Final = 4

_E = TypeVar("_E", bound=ManaError)


class AccountService:
    """What a person can do about their account."""

    def __init__(
        self,
        store: AccountStore,
        secrets_: HubSecrets,
        settings: HubSettings,
        *,
        log: SecurityLog,
        factors: FactorService,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._log = log
        self._factors = factors
        self._secrets = secrets_
        self._settings = settings
        self._now_ms = now_ms
        self._issuer = TokenIssuer(secrets_.token_key, issuer=settings.issuer)
        self._decoy: str | None = None
        # Each hash takes memory; a flood of log-ins must wait rather than take all of it.
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    def authenticate(self, token: str) -> Session:
        """Return whose access token this is; raise Unauthenticated otherwise."""
        return self._issuer.verify(token, now_ms=self._now_ms())

    def jwks(self) -> dict[str, Any]:
        """Return the public keys of access tokens."""
        return self._issuer.jwks()

    async def sign_up(self, request: SignUpRequest) -> Tokens:
        """Make an account with everything that belongs to it, and sign it in."""
        if self._settings.sign_ups == "closed":
            raise SignupClosed("this hub takes no new accounts")
        checked = check_sign_up(request, floor=self._settings.kdf_floor)
        login_hash = await self.hash_login_key(checked.login_key)
        name = _named(request.device_name)
        session = NewSession.draw(name=name, device_id=request.device.device_id)
        await self._store.sign_up(
            checked,
            login_hash=login_hash,
            invite_hash=hash_of(request.invite or ""),
            invites_only=self._settings.sign_ups == "invite",
            session=session,
            now_ms=self._now_ms(),
        )
        return self.tokens(checked.account, session)

    async def kdf(self, request: KdfRequest) -> KdfParameters:
        """Return how the password of a login becomes keys; invented for an unknown login."""
        name = login_name(request.login)
        facts = await self._store.login_facts(name)
        if facts is not None:
            return msgspec.convert(facts.kdf, KdfParameters)
        salt = mac(self._secrets.salt, length_prefixed("mana-no-such-login:v1", name))
        floor = self._settings.kdf_floor
        invented = Kdf(salt[:SALT_BYTES], t=floor.t, m_kib=floor.m_kib, p=floor.p)
        return msgspec.convert(invented.to_wire(), KdfParameters)

    async def log_in(self, request: LoginRequest) -> Tokens:
        """Begin a session; raise InvalidCredentials, RateLimited, or what the factors raise."""
        name, device = login_name(request.login), _named(request.device_name)
        login_key = key_bytes(request.login_key, "the login key")
        login_mac = await self._count_attempt(name)
        facts = await self._store.login_facts(name)
        login_hash = facts.login_hash if facts is not None else await self._decoy_hash()
        account = None if facts is None else facts.account
        try:
            await self._verify(login_hash, login_key)
        except InvalidCredentials as error:
            raise await self._refused(account, login_mac, "log-in", error) from None
        if account is None:
            # The invented hash fits no key; this is for whoever reads the types.
            raise InvalidCredentials("login or password is wrong")
        try:
            await self._factors.check(account, request.factor)
        except TwoFactorRequired as error:
            # Somebody knows the password; what is wrong with an answer the factors note.
            raise await self._refused(account, login_mac, "log-in", error) from None

        def holds(row: Mapping[str, Any]) -> bool:
            return bool(row["login_hash"] == login_hash)

        return await self._begin(account, "log-in", device, login_mac, holds)

    async def recover(self, request: RecoverRequest) -> Tokens:
        """Begin a session with the key of a recovery code; no second factor is asked for."""
        name, device = login_name(request.login), _named(request.device_name)
        given = token_hash(key_bytes(request.recovery_key, "the recovery key"))
        login_mac = await self._count_attempt(name)
        facts = await self._store.recovery_facts(name)
        if facts is None or not hmac.compare_digest(facts.recovery_hash, given):
            error = InvalidCredentials("login or recovery code is wrong")
            known = await self._store.login_facts(name)
            account = None if known is None else known.account
            raise await self._refused(account, login_mac, "recover", error)

        def holds(row: Mapping[str, Any]) -> bool:
            return bool(row["recovery_hash"] == given)

        return await self._begin(facts.account, "recover", device, login_mac, holds)

    async def reset(self, request: ResetRequest) -> ResetAnswer:
        """Use up a one-time token of the operator; return a session and the master key."""
        name, device = login_name(request.login), _named(request.device_name)
        token, now_ms = hash_of(request.token), self._now_ms()
        login_mac = await self._count_attempt(name)
        account = await self._store.reset_account(name, token, now_ms=now_ms)
        if account is None:
            error = InvalidCredentials("login or token is wrong")
            known = await self._store.login_facts(name)
            whose = None if known is None else known.account
            raise await self._refused(whose, login_mac, "reset", error)
        session = NewSession.draw(name=device)
        try:
            master_key = await self._store.reset(
                account, token, session, login_mac=login_mac, now_ms=now_ms
            )
        except ManaError as error:
            raise await self._refused(account, login_mac, "reset", error) from None
        return ResetAnswer(tokens=self.tokens(account, session), master_key=b64(master_key))

    async def refresh(self, request: RefreshRequest) -> Tokens:
        """Exchange a refresh token for a new pair; raise SessionEnded if it does not hold.

        DeviceRevoked for a session of a device that was revoked.
        """
        new = new_token()
        rotation = await self._store.rotate(
            hash_of(request.refresh_token),
            hash_of(new),
            now_ms=self._now_ms(),
            grace_ms=REFRESH_GRACE_MS,
            life_ms=REFRESH_LIFE_MS,
        )
        if rotation.outcome == "revoked":
            raise DeviceRevoked("the device was revoked")
        if rotation.outcome != "ok" or rotation.account is None or rotation.session_id is None:
            raise SessionEnded("the session has ended")
        return self.tokens(rotation.account, NewSession(rotation.session_id, new))

    async def log_out(self, session: Session) -> None:
        """End the session; its refresh token is worth nothing from now on."""
        await self._store.end_session(session.tenant, session.session_id, now_ms=self._now_ms())

    async def invite(self, tenant: Tenant) -> InviteAnswer:
        """Make a one-time invitation; raise Forbidden unless the account administers."""
        invite = new_token()
        made = await self._store.add_invite(
            tenant, hash_of(invite), now_ms=self._now_ms(), life_ms=INVITE_LIFE_MS
        )
        if not made:
            raise Forbidden("only the administrator of this hub invites")
        return InviteAnswer(invite=invite)

    async def account(self, tenant: Tenant) -> Account:
        """Return the signed-in account."""
        return await self._store.account(tenant)

    async def devices(self, tenant: Tenant) -> DevicesAnswer:
        """Return the certificates of the account's devices, and which were revoked."""
        return await self._store.devices(tenant)

    async def add_device(
        self, session: Session, certificate: DeviceCertificate
    ) -> DeviceCertificate:
        """Register a device that the account's identity certified."""
        async with self._log.refusals(session, "device-added"):
            await self._store.add_device(session, certificate, now_ms=self._now_ms())
        return certificate

    async def delete(self, session: Session, request: DeleteAccountRequest) -> None:
        """Remove every row of the account, if the login key shows that it is the person."""
        login_key = key_bytes(request.login_key, "the login key")
        name, login_hash = await self._store.login_of(session.tenant)
        login_mac = await self._count_attempt(name)
        await self._verify(login_hash, login_key)
        await self._store.delete(session, login_hash=login_hash, login_mac=login_mac)

    async def _count_attempt(self, name: str) -> bytes:
        login_mac = mac(self._secrets.salt, length_prefixed("mana-login-attempt:v1", name))
        now_ms = self._now_ms()
        until_ms = await self._store.count_attempt(
            login_mac, now_ms=now_ms, window_ms=ATTEMPTS_WINDOW_MS, attempts_max=ATTEMPTS_MAX
        )
        if until_ms is not None:
            raise rate_limited(until_ms, now_ms=now_ms)
        return login_mac

    async def hash_login_key(self, login_key: bytes) -> str:
        """Return what the hub keeps of a login key; few at once, because each takes memory."""
        async with self._hashing:
            return await asyncio.to_thread(hash_login_key, login_key, cost=self._settings.hash_cost)

    async def _decoy_hash(self) -> str:
        if self._decoy is None:
            self._decoy = await self.hash_login_key(os.urandom(KEY_BYTES))
        return self._decoy

    async def _verify(self, login_hash: str, login_key: bytes) -> None:
        try:
            async with self._hashing:
                await asyncio.to_thread(verify_login_key, login_hash, login_key)
        except LoginRejected:
            raise InvalidCredentials("login or password is wrong") from None

    async def _begin(
        self,
        account: AccountId,
        action: Action,
        device_name: str,
        login_mac: bytes,
        holds: Callable[[Mapping[str, Any]], bool],
    ) -> Tokens:
        session = NewSession.draw(name=device_name)
        await self._store.begin_session(
            account,
            session,
            action=action,
            holds=holds,
            login_mac=login_mac,
            now_ms=self._now_ms(),
        )
        return self.tokens(account, session)

    async def _refused(
        self, account: AccountId | None, login_mac: bytes, action: Action, error: _E
    ) -> _E:
        """Note an attempt that was refused; an unknown login costs as much, and is nobody's."""
        if account is None:
            await self._store.touch_attempts(login_mac)
        else:
            await self._log.note(account, action, ok=False, detail=error.code)
        return error

    def tokens(self, account: AccountId, session: NewSession) -> Tokens:
        """Return the tokens of a session that is stored."""
        access = self._issuer.issue(account, session.session_id, now_ms=self._now_ms())
        return Tokens(
            account_id=account,
            access_token=access,
            refresh_token=session.refresh_token,
            expires_in=LIFE_S,
        )


def rate_limited(until_ms: int, *, now_ms: int) -> RateLimited:
    """Return the refusal of an attempt that may be made again at a moment."""
    wait_s = max(1, -(-(until_ms - now_ms) // 1_000))
    detail = {"retryAfterS": wait_s, "retryAt": iso_ms(until_ms)}
    wait = "1 minute" if wait_s <= 60 else f"{-(-wait_s // 60)} minutes"
    return RateLimited(f"too many attempts for this login; wait {wait}", detail=detail)


def _named(device_name: str) -> str:
    """Return what a device calls itself, as text that can be kept."""
    check_text(device_name)
    return device_name.strip()
