"""Unlocking a new device by one that is signed in, as the hub between them keeps it.

A stranger can let links wait, a few for each login and as many for one that does not exist, and
learns nothing by it. The hub passes on what both sides show; it cannot open what is handed over.
Normative: docs/protocol/vault.md, 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from mana.crypto.hpke import HpkePublicKey
from mana.crypto.primitives import mac, unb64
from mana.crypto.signatures import VerifyKey
from mana.domain.clock import iso_ms
from mana.domain.encoding import length_prefixed
from mana.domain.ids import AccountId, require_uuid
from mana.hub.accounts.founding import check_wrap, key_bytes, login_name
from mana.hub.accounts.service import ATTEMPTS_MAX, ATTEMPTS_WINDOW_MS, rate_limited
from mana.hub.accounts.store import AccountStore, NewSession, hash_of
from mana.hub.http.endpoints import Session
from mana.hub.links.store import LinkStore
from mana.hub.links.tickets import LIFE_MS, Ticket, Tickets
from mana.hub.security.log import SecurityLog
from mana.hub.tenants import Tenant
from mana.protocol.codec import check_text
from mana.protocol.messages import (
    AnswerLink,
    ApproveLink,
    LinkPoll,
    LinkRequest,
    LinkReveal,
    LinksAnswer,
    LinkState,
    LinkTicket,
    Tokens,
)

WAITING_MAX: Final = 5
"""Links of one account that wait at a time."""


class LinkService:
    """What the new device asks with its ticket, and the old one with its session.

    `salt`: the hub's own, for tickets and for counting attempts. `tokens`: of a stored session.
    """

    def __init__(
        self,
        store: LinkStore,
        accounts: AccountStore,
        log: SecurityLog,
        salt: bytes,
        tokens: Callable[[AccountId, NewSession], Tokens],
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._log = log
        self._salt = salt
        self._tickets = Tickets(salt)
        self._tokens = tokens
        self._now_ms = now_ms

    async def begin(self, request: LinkRequest) -> LinkTicket:
        """Let a link wait for a device of the account; raise RateLimited.

        The answer is the same for a login that does not exist, and for one link too many.
        """
        name = login_name(request.login)
        check_text(request.name)
        key_bytes(request.commitment, "the commitment")
        facts = await self._accounts.login_facts(name)
        account = self._tickets.nobody(name) if facts is None else facts.account
        now_ms = self._now_ms()
        ticket = Ticket(Tenant(account), now_ms + LIFE_MS)
        text = self._tickets.seal(ticket, request.link_id)
        until_ms = await self._store.begin(
            ticket.tenant,
            request,
            hash_of(text),
            self._login_mac(name),
            attempts_max=ATTEMPTS_MAX,
            window_ms=ATTEMPTS_WINDOW_MS,
            waiting_max=WAITING_MAX,
            life_ms=LIFE_MS,
            now_ms=now_ms,
        )
        if until_ms is not None:
            raise rate_limited(until_ms, now_ms=now_ms)
        return LinkTicket(ticket=text, expires_at=iso_ms(ticket.expires_ms))

    async def poll(self, link_id: str, poll: LinkPoll) -> LinkState:
        """Return how the link stands; what was approved is handed out. Raises LinkEnded."""
        now_ms = self._now_ms()
        tenant = self._tickets.open(poll.ticket, link_id, now_ms=now_ms).tenant
        ticket_hash = hash_of(poll.ticket)
        state, login = await self._store.state(tenant, link_id, ticket_hash)
        if state.state != "approved":
            return state
        handed = await self._store.take(
            tenant, link_id, ticket_hash, self._login_mac(login_name(login)), now_ms=now_ms
        )
        if handed is None:
            return LinkState(state="refused")
        return msgspec.structs.replace(
            state,
            wrapped=handed.wrapped,
            certificate=handed.certificate,
            tokens=self._tokens(tenant.account, handed.session),
        )

    async def reveal(self, link_id: str, shown: LinkReveal) -> None:
        """Show the old device what the new one had committed to; raise LinkEnded."""
        HpkePublicKey(unb64(shown.hpke_key))
        VerifyKey(unb64(shown.device_key))
        require_uuid(shown.device_id, "device id")
        key_bytes(shown.nonce, "the nonce")
        now_ms = self._now_ms()
        tenant = self._tickets.open(shown.ticket, link_id, now_ms=now_ms).tenant
        await self._store.reveal(tenant, link_id, hash_of(shown.ticket), shown, now_ms=now_ms)

    async def waiting(self, tenant: Tenant) -> LinksAnswer:
        """Return the links that wait for a device of the account."""
        return LinksAnswer(links=await self._store.waiting(tenant, now_ms=self._now_ms()))

    async def answer(self, tenant: Tenant, link_id: str, answer: AnswerLink) -> None:
        """Give the old device's nonce; raise LinkEnded."""
        key_bytes(answer.nonce, "the nonce")
        await self._store.answer(tenant, link_id, answer.nonce, now_ms=self._now_ms())

    async def approve(self, session: Session, link_id: str, approval: ApproveLink) -> None:
        """Hand the account over to the new device; raise LinkEnded or ProofRefused."""
        check_wrap(approval.wrapped)
        async with self._log.refusals(session, "link"):
            await self._store.approve(session, link_id, approval, now_ms=self._now_ms())

    async def refuse(self, session: Session, link_id: str) -> None:
        """End a link; raise LinkEnded."""
        await self._store.refuse(session, link_id, now_ms=self._now_ms())

    async def sweep(self) -> None:
        """Remove what waited in vain."""
        await self._store.sweep(now_ms=self._now_ms())

    def _login_mac(self, name: str) -> bytes:
        return mac(self._salt, length_prefixed("mana-link-attempt:v1", name))
