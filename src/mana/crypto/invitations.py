"""Invitations to a space: a link whose secret the hub never sees, and what it proves.

Who holds the link can make a token, which the hub knows by its hash, and a MAC over the keys
that they join with, which only a device of the inviter can check: so the hub can invite nobody,
and cannot put another person in the place of the one who was invited. Normative:
docs/protocol/crypto.md, 11.
"""

from __future__ import annotations

import hmac
import os
import re
from dataclasses import dataclass, field
from typing import Final

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.primitives import (
    KEY_BYTES,
    Random,
    b64,
    b64url,
    hkdf,
    mac,
    require_key,
    unb64,
)
from mana.domain.encoding import length_prefixed, sha256

SECRET_CHARS: Final = 43
"""How long a secret is in base64url without padding."""
_HASH: Final = r"[0-9a-f]{64}"
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_FRAGMENT: Final = re.compile(
    rf"1\.({_HASH})\.({_UUID})\.([A-Za-z0-9_-]{{{SECRET_CHARS}}})\.({_HASH})", re.ASCII
)
_HUB: Final = re.compile(r"https?://[!-~]{1,400}", re.ASCII)


class InvitationRejected(SignatureRejected):
    """Whoever accepted the invitation did not hold its link."""

    code = "INVITATION_REJECTED"
    advice = "Withdraw this invitation, and make another one for who was meant."


@dataclass(frozen=True, slots=True)
class InvitationLink:
    """What an invitation link says. `hub`: the hub's address; `head`: the newest entry's hash."""

    hub: str
    space_id: str
    invitation_id: str
    secret: bytes = field(repr=False)
    head: str

    def text(self) -> str:
        """Return the link; its fragment never leaves the browser that opens it."""
        secret = secret_text(self.secret)
        hub = self.hub.rstrip("/")
        return f"{hub}/join#1.{self.space_id}.{self.invitation_id}.{secret}.{self.head}"


def parse_link(text: str) -> InvitationLink:
    """Return what a link says; raise Malformed for any other text than `InvitationLink.text`.

    White space around it, which copying adds, is forgiven.
    """
    bare = text.strip()
    place, hash_sign, fragment = bare.partition("#")
    found = _FRAGMENT.fullmatch(fragment)
    hub = place.removesuffix("/join")
    if not hash_sign or found is None:
        raise Malformed("not a link of an invitation")
    if hub == place or not _HUB.fullmatch(hub) or hub.endswith("/") or "?" in hub or "@" in hub:
        raise Malformed("not a link of an invitation")
    space_id, invitation_id, secret, head = found.groups()
    return InvitationLink(hub, space_id, invitation_id, parse_secret(secret), head)


def new_secret(*, random: Random = os.urandom) -> bytes:
    """Draw the secret of an invitation."""
    return require_key(random(KEY_BYTES))


def secret_text(secret: bytes) -> str:
    """Return a secret as it is in a link."""
    return b64url(require_key(secret))


def parse_secret(text: str) -> bytes:
    """Return the secret of a link; raise Malformed for another spelling."""
    if len(text) != SECRET_CHARS:
        raise Malformed("not a secret of an invitation")
    secret = unb64(text.replace("-", "+").replace("_", "/") + "=")
    if secret_text(secret) != text:
        raise Malformed("not a secret of an invitation")
    return secret


def invitation_token(secret: bytes, space_id: str, invitation_id: str) -> bytes:
    """Return the token by which the hub knows who holds the link."""
    return _derived(secret, "mana-invite-token:v1", space_id, invitation_id)


def token_hash(token: bytes) -> str:
    """Return what the hub keeps of a token, in hex."""
    return sha256(require_key(token)).hex()


def acceptance_mac(
    secret: bytes,
    space_id: str,
    invitation_id: str,
    *,
    account_id: str,
    signing_key: str,
    hpke_key: str,
) -> bytes:
    """Return the proof that a holder of the link joins with these public keys (base64)."""
    key = _derived(secret, "mana-invite-accept:v1", space_id, invitation_id)
    return mac(key, length_prefixed(account_id, signing_key, hpke_key))


def verify_acceptance(
    secret: bytes,
    space_id: str,
    invitation_id: str,
    *,
    account_id: str,
    signing_key: str,
    hpke_key: str,
    proof: str,
) -> None:
    """Raise InvitationRejected unless a holder of the link joins with exactly these keys.

    `proof` is the MAC in base64, as the hub hands it on.
    """
    expected = acceptance_mac(
        secret,
        space_id,
        invitation_id,
        account_id=account_id,
        signing_key=signing_key,
        hpke_key=hpke_key,
    )
    if not hmac.compare_digest(b64(expected).encode(), proof.encode()):
        raise InvitationRejected("who accepted the invitation does not hold its link")


def _derived(secret: bytes, purpose: str, space_id: str, invitation_id: str) -> bytes:
    return hkdf(require_key(secret), info=length_prefixed(purpose, space_id, invitation_id))
