"""Sign-up, log-in and sessions. Says as little as it can about who has an account here.

An unknown login gets an invented salt, the same one each time, and costs the same work as a
wrong password; both are limited alike.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from mana.crypto.errors import LoginRejected
from mana.crypto.keys import wrap_master_key
from mana.crypto.passwords import (
    SALT_BYTES,
    hash_login_key,
    token_hash,
    verify_login_key,
)
from mana.crypto.passwords import KdfParameters as Kdf
from mana.crypto.primitives import KEY_BYTES, mac
from mana.domain.clock import iso_ms
from mana.domain.encoding import length_prefixed
from mana.domain.errors import Forbidden
from mana.domain.ids import AccountId
from mana.hub.accounts.founding import (
    check_certificate,
    check_sign_up,
    identity_keys,
    key_bytes,
    login_name,
)
from mana.hub.accounts.store import AccountStore, NewSession
from mana.hub.accounts.tokens import LIFE_S, TokenIssuer
from mana.hub.http.endpoints import Session
from mana.hub.secrets import HubSecrets
from mana.hub.settings import HubSettings
from mana.hub.tenants import Tenant
from mana.protocol.errors import (
    InvalidCredentials,
    RateLimited,
    SessionEnded,
    SignupClosed,
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
    RefreshRequest,
    SignUpRequest,
    Tokens,
    Vault,
)

ATTEMPTS_MAX: Final = 5
ATTEMPTS_WINDOW_MS: Final = 15 * 60 * 1_000
REFRESH_GRACE_MS: Final = 30 * 1_000
REFRESH_LIFE_MS: Final = 60 * 24 * 60 * 60 * 1_000
INVITE_LIFE_MS: Final = 14 * 24 * 60 * 60 * 1_000
HASHES_AT_ONCE: Final = 4

_T = TypeVar("_T")


class AccountService:
    """What a person can do about their account."""

    def __init__(
        self,
        store: AccountStore,
        secrets_: HubSecrets,
        settings: HubSettings,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
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
        login_hash = await self._hash(checked.login_key)
        kek_wrap = None
        if checked.master_key is not None:
            kek_wrap = wrap_master_key(
                checked.master_key,
                self._secrets.kek,
                "kek",
                checked.account,
                self._secrets.kek_id,
            )
        session, refresh_token = _new_session()
        await self._store.sign_up(
            checked,
            login_hash=login_hash,
            kek_wrap=kek_wrap,
            invite_hash=_hash_of(request.invite or ""),
            invites_only=self._settings.sign_ups == "invite",
            session=session,
            now_ms=self._now_ms(),
        )
        return self._tokens(checked.account, session.session_id, refresh_token)

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
        """Begin a session; raise InvalidCredentials or RateLimited."""
        name = login_name(request.login)
        login_key = key_bytes(request.login_key, "the login key")
        login_mac = await self._count_attempt(name)
        facts = await self._store.login_facts(name)
        login_hash = facts.login_hash if facts is not None else await self._decoy_hash()
        await self._verify(login_hash, login_key)
        if facts is None:
            raise InvalidCredentials("login or password is wrong")
        session, refresh_token = _new_session()
        await self._store.begin_session(
            facts.account, session, login_mac=login_mac, now_ms=self._now_ms()
        )
        return self._tokens(facts.account, session.session_id, refresh_token)

    async def refresh(self, request: RefreshRequest) -> Tokens:
        """Exchange a refresh token for a new pair; raise SessionEnded if it does not hold."""
        new = _new_token()
        rotation = await self._store.rotate(
            _hash_of(request.refresh_token),
            _hash_of(new),
            now_ms=self._now_ms(),
            grace_ms=REFRESH_GRACE_MS,
            life_ms=REFRESH_LIFE_MS,
        )
        if rotation.outcome != "ok" or rotation.account is None or rotation.session_id is None:
            raise SessionEnded("the session has ended")
        return self._tokens(rotation.account, rotation.session_id, new)

    async def log_out(self, session: Session) -> None:
        """End the session; its refresh token is worth nothing from now on."""
        await self._store.end_session(session.tenant, session.session_id, now_ms=self._now_ms())

    async def invite(self, tenant: Tenant) -> InviteAnswer:
        """Make a one-time invitation; raise Forbidden unless the account administers."""
        invite = _new_token()
        made = await self._store.add_invite(
            tenant, _hash_of(invite), now_ms=self._now_ms(), life_ms=INVITE_LIFE_MS
        )
        if not made:
            raise Forbidden("only the administrator of this hub invites")
        return InviteAnswer(invite=invite)

    async def account(self, tenant: Tenant) -> Account:
        """Return the signed-in account."""
        return await self._store.account(tenant)

    async def vault(self, tenant: Tenant) -> Vault:
        """Return what a device needs to unlock the account with the password."""
        return await self._store.vault(tenant)

    async def devices(self, tenant: Tenant) -> DevicesAnswer:
        """Return the certificates of the account's devices."""
        return DevicesAnswer(devices=await self._store.devices(tenant))

    async def add_device(self, tenant: Tenant, certificate: DeviceCertificate) -> DeviceCertificate:
        """Register a device that the account's identity certified."""
        signing_key, _ = identity_keys(await self._store.identity(tenant))
        check_certificate(certificate, tenant.account, signing_key)
        await self._store.add_device(tenant, certificate, now_ms=self._now_ms())
        return certificate

    async def delete(self, tenant: Tenant, request: DeleteAccountRequest) -> None:
        """Remove every row of the account, if the login key shows that it is the person."""
        login_key = key_bytes(request.login_key, "the login key")
        name, login_hash = await self._store.login_of(tenant)
        login_mac = await self._count_attempt(name)
        await self._verify(login_hash, login_key)
        await self._store.delete(tenant, login_mac=login_mac)

    async def _count_attempt(self, name: str) -> bytes:
        login_mac = mac(self._secrets.salt, length_prefixed("mana-login-attempt:v1", name))
        now_ms = self._now_ms()
        until_ms = await self._store.count_attempt(
            login_mac, now_ms=now_ms, window_ms=ATTEMPTS_WINDOW_MS, attempts_max=ATTEMPTS_MAX
        )
        if until_ms is not None:
            wait_s = max(1, -(-(until_ms - now_ms) // 1_000))
            detail = {"retryAfterS": wait_s, "retryAt": iso_ms(until_ms)}
            raise RateLimited("too many attempts for this login", detail=detail)
        return login_mac

    async def _hash(self, login_key: bytes) -> str:
        async with self._hashing:
            return await asyncio.to_thread(hash_login_key, login_key, cost=self._settings.hash_cost)

    async def _decoy_hash(self) -> str:
        if self._decoy is None:
            self._decoy = await self._hash(os.urandom(KEY_BYTES))
        return self._decoy

    async def _verify(self, login_hash: str, login_key: bytes) -> None:
        try:
            async with self._hashing:
                await asyncio.to_thread(verify_login_key, login_hash, login_key)
        except LoginRejected:
            raise InvalidCredentials("login or password is wrong") from None

    def _tokens(self, account: AccountId, session_id: str, refresh_token: str) -> Tokens:
        access = self._issuer.issue(account, session_id, now_ms=self._now_ms())
        return Tokens(
            account_id=account,
            access_token=access,
            refresh_token=refresh_token,
            expires_in=LIFE_S,
        )


def _new_token() -> str:
    return secrets.token_urlsafe(KEY_BYTES)


def _hash_of(token: str) -> bytes:
    return token_hash(token.encode("utf-8", "replace"))


def _new_session() -> tuple[NewSession, str]:
    token = _new_token()
    return NewSession(str(uuid.uuid4()), _hash_of(token)), token
