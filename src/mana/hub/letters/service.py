"""Who wants letters, and sending them. Off until a person gives an address and confirms it.

The address is sealed, as secrets of authenticators are: a stolen database has none. What fails is
tried again, later each time, and given up in the end; no run and no decision waits for a letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import structlog

from mana.crypto.keys import open_secret, seal_secret
from mana.crypto.primitives import hkdf
from mana.domain.encoding import length_prefixed, sha256
from mana.domain.errors import Conflict, CryptoFailed, Invalid, ManaError
from mana.hub.letters.post import CODE, WAITS, LetterFailed, Send, require_address
from mana.hub.letters.store import DueLetter, LetterStore
from mana.hub.tenants import Tenant
from mana.protocol.errors import RateLimited
from mana.protocol.messages import NotifyState, SetNotify

CODES_PER_HOUR_MAX: Final = 3
CODE_TRIES_MAX: Final = 5
ATTEMPTS_MAX: Final = 8
BATCH: Final = 20
LOOK_S: Final = 60.0
_CODE_DIGITS: Final = 8
_log: Final = structlog.get_logger("mana.hub")


class LettersUnavailable(Conflict):
    """This hub sends no letters."""

    code = "LETTERS_UNAVAILABLE"
    advice = "Ask whoever runs the hub to set MANA_SMTP_URL and MANA_SMTP_FROM."


class CodeRefused(Invalid):
    """The code is not the one that was sent, or its time is over."""

    code = "CODE_REFUSED"
    advice = "Look at the letter again, or give the address anew."


def letters_key(salt: bytes) -> bytes:
    """Return the key that addresses are sealed under; `salt`: the hub's own."""
    return hkdf(salt, info=length_prefixed("mana-hub-letters:v1"))


class LetterService:
    """What a person does about letters, and what the hub does with those that are due."""

    def __init__(
        self,
        store: LetterStore,
        key: bytes,
        send: Send | None,
        *,
        new_code: Callable[[], str] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._send = send
        self._new_code = new_code or _new_code
        self._awake = asyncio.Event()
        self._is_ending = False

    async def state(self, tenant: Tenant) -> NotifyState:
        """Return whether letters are sent, and where to."""
        wish = await self._store.wish(tenant)
        if wish is None:
            return NotifyState(available=self._send is not None)
        return NotifyState(
            available=self._send is not None,
            address=self._opened(tenant.account, wish.address) or "",
            confirmed=wish.confirmed,
            enabled=wish.enabled,
        )

    async def set(self, tenant: Tenant, wanted: SetNotify) -> NotifyState:
        """Take an address (an empty one removes it), a code, or on and off; return what stands."""
        if wanted.address is not None:
            await self._take_address(tenant, wanted.address)
        if wanted.code is not None:
            await self._take_code(tenant, wanted.code)
        if wanted.enabled is not None:
            is_known = await self._store.switch(tenant, enabled=wanted.enabled)
            if wanted.enabled and not is_known:
                raise CodeRefused("the address is not confirmed yet")
        return await self.state(tenant)

    async def work(self) -> None:
        """Send what is due, until `end`; what fails is tried again."""
        while not self._is_ending:
            self._awake.clear()
            wait_s = LOOK_S
            try:
                if self._send is not None:
                    for letter in await self._store.take(BATCH):
                        await self._deliver(letter, self._send)
                    wait_ms = await self._store.wait_ms()
                    if wait_ms is not None:
                        wait_s = min(LOOK_S, max(wait_ms / 1_000, 0.05))
            except ManaError as error:
                _log.warning("letters_failed", code=error.code)
            if not self._is_ending:
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._awake.wait()

    def end(self) -> None:
        """Let `work` end. Said beside a cancellation, which a library may lose on its way."""
        self._is_ending = True
        self._awake.set()

    def wake(self, _payload: str = "") -> None:
        """Say that a letter may be due."""
        self._awake.set()

    async def _take_address(self, tenant: Tenant, given: str) -> None:
        if not given.strip():
            await self._store.forget(tenant)
            return
        if self._send is None:
            raise LettersUnavailable("this hub sends no letters")
        address = require_address(given)
        code = self._new_code()
        sealed = seal_secret(self._key, address.encode("utf-8"), "letters", tenant.account)
        is_asked = await self._store.ask(
            tenant, sealed, _hash(tenant.account, code), codes_max=CODES_PER_HOUR_MAX
        )
        if not is_asked:
            raise RateLimited("too many codes were asked for within an hour")
        subject, text = CODE
        await self._send(address, (subject, text.format(code=code)))

    async def _take_code(self, tenant: Tenant, given: str) -> None:
        known = await self._store.try_code(tenant, tries_max=CODE_TRIES_MAX)
        code = "".join(given.split())
        if known is None or not hmac.compare_digest(known, _hash(tenant.account, code)):
            raise CodeRefused("the code does not hold")
        if not await self._store.confirm(tenant, known):
            raise CodeRefused("another address was given meanwhile")

    async def _deliver(self, letter: DueLetter, send: Send) -> None:
        address = self._opened(letter.account_id, letter.address)
        if address is None:
            await self._store.end(letter.account_id, sent=False)
            return
        try:
            await send(address, WAITS)
        except LetterFailed:
            _log.warning("letter_failed", attempt=letter.attempts)
            if letter.attempts >= ATTEMPTS_MAX:
                await self._store.end(letter.account_id, sent=False)
            return
        await self._store.end(letter.account_id, sent=True)

    def _opened(self, account: str, sealed: str) -> str | None:
        """Return an address; None where another file of secrets sealed it."""
        try:
            return open_secret(self._key, sealed, "letters", account).decode("utf-8")
        except CryptoFailed:
            return None


def _new_code() -> str:
    return f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}d}"


def _hash(account: str, code: str) -> bytes:
    return sha256(length_prefixed("mana-letter-code:v1", account, code))
