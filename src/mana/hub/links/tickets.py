"""The ticket of a new device: whose link it is, sealed by the hub. Pure but for the dice.

A login that does not exist gets one too, of an account that does not exist, and nothing of it is
kept: so asking tells nothing, and fills no table.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

from mana.crypto.keys import open_secret, seal_secret
from mana.crypto.primitives import hkdf, mac
from mana.domain.encoding import length_prefixed
from mana.domain.errors import CryptoFailed
from mana.domain.ids import AccountId
from mana.hub.tenants import Tenant
from mana.protocol.errors import LinkEnded

LIFE_MS: Final = 10 * 60 * 1_000
_FORM: Final = struct.Struct(">16sQ")
_PURPOSE: Final = "link-ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whose link it is, and when it ends (milliseconds since 1970)."""

    tenant: Tenant
    expires_ms: int


class Tickets:
    """Seals and opens tickets under the hub's own `salt`."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._key = hkdf(salt, info=length_prefixed("mana-hub-links:v1"))

    def nobody(self, login_name: str) -> AccountId:
        """Return the account of a login that does not exist, the same one each time."""
        drawn = mac(self._salt, length_prefixed("mana-no-such-account:v1", login_name))
        return AccountId(str(uuid.UUID(bytes=drawn[:16], version=4)))

    def seal(self, ticket: Ticket, link_id: str) -> str:
        """Return a ticket as the new device gets it; for this link and no other."""
        plain = _FORM.pack(uuid.UUID(ticket.tenant.account).bytes, ticket.expires_ms)
        return seal_secret(self._key, plain, _PURPOSE, "", link_id)

    def open(self, text: str, link_id: str, *, now_ms: int) -> Ticket:
        """Return what a ticket says; raise LinkEnded for a wrong one and after its end."""
        try:
            plain = open_secret(self._key, text, _PURPOSE, "", link_id)
        except CryptoFailed:
            raise LinkEnded("there is no such link") from None
        account, expires_ms = _FORM.unpack(plain)
        if now_ms >= expires_ms:
            raise LinkEnded("the link has ended")
        return Ticket(Tenant(AccountId(str(uuid.UUID(bytes=account)))), expires_ms)
