"""Who wants letters, and sending them. Off until a person gives an address and confirms it.

The address is sealed, as secrets of authenticators are: a stolen database has none. What fails is
tried again, later each time, and given up in the end; no run and no decision waits for a letter.
However many accounts name an address, few letters go there; whoever asks is answered before any
letter is sent, and so never learns what others asked for.
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
from mana.crypto.primitives import hkdf, mac
from mana.domain.encoding import length_prefixed, sha256
from mana.domain.errors import Conflict, CryptoFailed, Invalid, ManaError
from mana.hub.letters.post import CODE, WAITS, LetterFailed, Send, require_address
from mana.hub.letters.store import AskedCode, DueLetter, LetterStore
from mana.hub.tenants import Tenant
from mana.protocol.errors import RateLimited
from mana.protocol.messages import NotifyState, SetNotify

CODES_PER_HOUR_MAX: Final = 3
CODES_TO_ADDRESS_MAX: Final = 10
"""To one address within a day, for all accounts together."""
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
        self._places = hkdf(key, info=length_prefixed("mana-hub-letter-places:v1"))
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
                    await self.send_due()
                    wait_ms = await self._store.wait_ms()
                    if wait_ms is not None:
                        wait_s = min(LOOK_S, max(wait_ms / 1_000, 0.05))
            except ManaError as error:
                _log.warning("letters_failed", code=error.code)
            if not self._is_ending:
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._awake.wait()

    async def send_due(self) -> None:
        """Send what is due now."""
        if self._send is not None:
            for letter in await self._store.take(BATCH):
                await self._deliver(letter, self._send)

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
        asked = AskedCode(
            address=seal_secret(self._key, address.encode("utf-8"), "letters", tenant.account),
            place=self._place(address),
            code=seal_secret(self._key, code.encode("ascii"), "letter-code", tenant.account),
            code_hash=_hash(tenant.account, code),
        )
        is_asked = await self._store.ask(
            tenant, asked, codes_max=CODES_PER_HOUR_MAX, codes_to_max=CODES_TO_ADDRESS_MAX
        )
        if not is_asked:
            raise RateLimited("too many codes were asked for within an hour")

    async def _take_code(self, tenant: Tenant, given: str) -> None:
        known = await self._store.try_code(tenant, tries_max=CODE_TRIES_MAX)
        code = "".join(given.split())
        if known is None or not hmac.compare_digest(known, _hash(tenant.account, code)):
            raise CodeRefused("the code does not hold")
        if not await self._store.confirm(tenant, known):
            raise CodeRefused("another address was given meanwhile")

    async def _deliver(self, letter: DueLetter, send: Send) -> None:
        if letter.code is not None:
            await self._deliver_code(letter, letter.code, send)
            return
        address = self._opened(letter.account_id, letter.address)
        if address is None:
            await self._store.end(letter.account_id, sent=False)
            return
        is_sent = await _is_sent(send, address, WAITS, letter.attempts)
        if is_sent or letter.attempts >= ATTEMPTS_MAX:
            await self._store.end(letter.account_id, sent=is_sent, place=self._place(address))

    async def _deliver_code(self, letter: DueLetter, sealed: str, send: Send) -> None:
        """Send a code, as long as it is good for anything: then it is not taken any more."""
        address = self._opened(letter.account_id, letter.address)
        code = self._opened(letter.account_id, sealed, "letter-code")
        if address is not None and code is not None:
            subject, text = CODE
            words = (subject, text.format(code=code))
            if not await _is_sent(send, address, words, letter.attempts):
                return
        await self._store.end_code(letter.account_id, sealed)

    def _opened(self, account: str, sealed: str, purpose: str = "letters") -> str | None:
        """Return an address or a code; None where another file of secrets sealed it."""
        try:
            return open_secret(self._key, sealed, purpose, account).decode("utf-8")
        except CryptoFailed:
            return None

    def _place(self, address: str) -> bytes:
        """Return by what an address is counted: alike for all ways to write to one mailbox."""
        name, _, host = address.casefold().rpartition("@")
        mailbox = name.partition("+")[0] or name
        return mac(self._places, length_prefixed(mailbox, host))


async def _is_sent(send: Send, address: str, words: tuple[str, str], attempt: int) -> bool:
    """Send a letter; say whether the mail server took it."""
    try:
        await send(address, words)
    except LetterFailed:
        _log.warning("letter_failed", attempt=attempt)
        return False
    return True


def _new_code() -> str:
    return f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}d}"


def _hash(account: str, code: str) -> bytes:
    return sha256(length_prefixed("mana-letter-code:v1", account, code))
