"""Second factors: added by whoever opened the vault, asked for at log-in, each answer once.

The secret of an authenticator is sealed under a key of the hub's file of secrets, so that a
stolen database has none. That key is not the KEK: it does not change when the KEK does.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from mana.crypto.keys import open_secret, seal_secret
from mana.crypto.primitives import KEY_BYTES, b64url, hkdf
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json, length_prefixed
from mana.domain.errors import Invalid
from mana.domain.ids import AccountId
from mana.hub.factors import totp
from mana.hub.factors.passkeys import Passkey, RelyingParty
from mana.hub.factors.store import Factor, FactorStore
from mana.hub.http.endpoints import Session
from mana.hub.security.log import SecurityLog
from mana.hub.tenants import Tenant
from mana.protocol.codec import check_text
from mana.protocol.errors import TwoFactorFailed, TwoFactorRequired
from mana.protocol.messages import (
    FactorAnswer,
    FactorInfo,
    FactorsAnswer,
    FactorSetup,
    NewFactor,
    RemoveFactor,
)

FACTORS_MAX: Final = 16
PENDING_MS: Final = 10 * 60 * 1_000
"""How long a factor waits to be finished, and a passkey to sign; the sweep knows it too."""


def factor_key(salt: bytes) -> bytes:
    """Return the key that secrets of authenticators are sealed under; `salt`: the hub's own."""
    return hkdf(salt, info=length_prefixed("mana-hub-factors:v1"))


class FactorService:
    """What a person does with second factors, and what a log-in asks of them."""

    def __init__(
        self,
        store: FactorStore,
        log: SecurityLog,
        key: bytes,
        party: RelyingParty,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._log = log
        self._key = key
        self._party = party
        self._now_ms = now_ms

    async def check(self, account: AccountId, answer: FactorAnswer | None) -> None:
        """Raise TwoFactorRequired or TwoFactorFailed unless a factor of the account answers.

        Called after the login key was right, by a caller that counts attempts. An account
        without second factors passes.
        """
        tenant = Tenant(account)
        active = [one for one in await self._store.factors(tenant) if one.is_active]
        if not active:
            return
        if answer is None or (answer.totp is None and answer.passkey is None):
            raise await self._required(tenant, active)
        try:
            kind = await self._checked(tenant, active, answer)
        except TwoFactorFailed:
            await self._log.note(account, "second-factor", ok=False)
            raise
        await self._log.note(account, "second-factor", ok=True, detail=kind)

    async def factors(self, tenant: Tenant) -> FactorsAnswer:
        """Return the factors that count."""
        found = await self._store.factors(tenant)
        return FactorsAnswer(factors=[one.info for one in found if one.is_active])

    async def begin(self, session: Session, new: NewFactor) -> FactorSetup:
        """Make a factor that counts once it is finished; raise ProofRefused."""
        check_text(new.name)
        login = await self._store.login(session.tenant)
        known = [one.credential_id for one in await self._store.factors(session.tenant)]
        factor_id, secret = str(uuid.uuid4()), os.urandom(totp.SECRET_BYTES)
        made = self._pending(session.account, factor_id, new, secret)
        body: dict[str, Json] = {"kind": new.kind, "name": new.name}
        now_ms = self._now_ms()
        async with self._log.refusals(session, "factor-added"):
            has_room = await self._store.begin(
                session, new.proof, body, made, most=FACTORS_MAX, now_ms=now_ms
            )
        if not has_room:
            raise Invalid(f"an account has {FACTORS_MAX} second factors at most; remove one first")
        if new.kind == "totp":
            return FactorSetup(
                factor_id=factor_id,
                secret=totp.secret_text(secret),
                uri=totp.address(secret, login),
            )
        challenge = await self._ask(session.tenant, factor_id)
        options = self._party.new_options(
            challenge,
            user_id=uuid.UUID(session.account).bytes,
            login=login,
            known=[one for one in known if one],
        )
        return FactorSetup(factor_id=factor_id, options=options)

    async def finish(self, session: Session, factor_id: str, answer: FactorAnswer) -> None:
        """Let a factor count by its first answer; raise FactorUnknown or TwoFactorFailed."""
        now_ms = self._now_ms()
        tenant = session.tenant
        held = await self._store.pending(tenant, factor_id, since_ms=now_ms - PENDING_MS)
        async with self._log.refusals(session, "factor-added"):
            if held.kind == "totp":
                done = self._proven_code(session.account, held, answer, now_ms)
            else:
                done = await self._proven_passkey(tenant, held, answer, now_ms)
        await self._store.activate(session, done, now_ms=now_ms)

    async def remove(self, session: Session, factor_id: str, removal: RemoveFactor) -> None:
        """Remove a factor; raise ProofRefused or FactorUnknown."""
        async with self._log.refusals(session, "factor-removed"):
            await self._store.remove(
                session,
                factor_id,
                removal.proof,
                {"factorId": factor_id},
                now_ms=self._now_ms(),
            )

    def _pending(self, account: AccountId, factor_id: str, new: NewFactor, secret: bytes) -> Factor:
        sealed = ""
        if new.kind == "totp":
            sealed = seal_secret(self._key, secret, "totp", account, factor_id)
        info = FactorInfo(factor_id, new.kind, new.name, iso_ms(self._now_ms()))
        return Factor(factor_id, new.kind, sealed, "", 0, info, is_active=False)

    def _proven_code(
        self, account: AccountId, held: Factor, answer: FactorAnswer, now_ms: int
    ) -> Factor:
        step = self._step_of(account, held, answer.totp or "", now_ms)
        if step is None:
            raise TwoFactorFailed("the code is not right")
        return replace(held, used=step)

    async def _proven_passkey(
        self, tenant: Tenant, held: Factor, answer: FactorAnswer, now_ms: int
    ) -> Factor:
        claim = self._party.claim(answer.passkey or {})
        if not await self._store.take(tenant, claim.challenge, held.factor_id, now_ms=now_ms):
            raise TwoFactorFailed("the passkey signed something else; begin again")
        made = self._party.made(answer.passkey or {}, claim)
        return replace(
            held, secret=made.public_key, credential_id=made.credential_id, used=made.count
        )

    async def _required(self, tenant: Tenant, active: Sequence[Factor]) -> TwoFactorRequired:
        detail: dict[str, object] = {"kinds": sorted({one.kind for one in active})}
        passkeys = [one.credential_id for one in active if one.kind == "passkey"]
        if passkeys:
            detail["passkey"] = self._party.options(await self._ask(tenant, None), passkeys)
        return TwoFactorRequired("the account asks for a second factor", detail=detail)

    async def _checked(self, tenant: Tenant, active: Sequence[Factor], answer: FactorAnswer) -> str:
        if answer.totp is not None and answer.passkey is not None:
            raise TwoFactorFailed("one second factor is answered, not two")
        now_ms = self._now_ms()
        if answer.totp is not None:
            return await self._checked_code(tenant, active, answer.totp, now_ms)
        claim = self._party.claim(answer.passkey or {})
        # Used up before anything is looked at: what fails once is not tried a second time.
        if not await self._store.take(tenant, claim.challenge, None, now_ms=now_ms):
            raise TwoFactorFailed("the passkey signed something else, or twice")
        named = [one for one in active if one.kind == "passkey"]
        held = next((one for one in named if one.credential_id == claim.credential_id), None)
        if held is None:
            raise TwoFactorFailed("the account has no such passkey")
        passkey = Passkey(held.credential_id, held.secret, held.used)
        count = self._party.signed(answer.passkey or {}, claim, passkey)
        if not await self._store.use_count(tenant, held.factor_id, count, now_ms=now_ms):
            raise TwoFactorFailed("the passkey was used meanwhile")
        return "passkey"

    async def _checked_code(
        self, tenant: Tenant, active: Sequence[Factor], code: str, now_ms: int
    ) -> str:
        for one in active:
            if one.kind != "totp":
                continue
            step = self._step_of(tenant.account, one, code, now_ms)
            if step is not None and await self._store.use_step(
                tenant, one.factor_id, step, now_ms=now_ms
            ):
                return "totp"
        raise TwoFactorFailed("the code is not right, or was used")

    def _step_of(self, account: AccountId, held: Factor, code: str, now_ms: int) -> int | None:
        secret = open_secret(self._key, held.secret, "totp", account, held.factor_id)
        return totp.step_of(secret, code, after=held.used, now_ms=now_ms)

    async def _ask(self, tenant: Tenant, factor_id: str | None) -> bytes:
        challenge = os.urandom(KEY_BYTES)
        until_ms = self._now_ms() + PENDING_MS
        await self._store.ask(tenant, b64url(challenge), factor_id, until_ms=until_ms)
        return challenge
