"""Unlocking a new device by one that is signed in: commit, reveal, compare, hand over.

The new device commits to its key before it learns the old one's nonce, and the old one draws its
nonce before it learns that key. So a hub between them that swaps keys has one guess at the
digits that the person compares, and cannot search for a key that gives the right ones. The old
nonce comes from the master key, which shows the new device that it got the key of whoever gave
those digits: anybody could have wrapped another one to it.
Normative: docs/protocol/vault.md, 6.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from mana.crypto.errors import Malformed, SignatureRejected, WrapRejected
from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.primitives import Random, hkdf, require_key
from mana.crypto.signatures import VerifyKey
from mana.domain.encoding import length_prefixed, sha256

NONCE_BYTES: Final = 32
DIGITS: Final = 6
GROUPS: Final = 2


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """What the new device shows of itself: an HPKE key for this once, and its device key."""

    hpke_key: HpkePublicKey
    device_key: VerifyKey
    device_id: str

    def parts(self) -> tuple[str | bytes, ...]:
        """Return what commitment and digits cover."""
        return (self.hpke_key.to_bytes(), self.device_key.to_bytes(), self.device_id)


def new_nonce(*, random: Random = os.urandom) -> bytes:
    """Draw the nonce of the new device."""
    return require_key(random(NONCE_BYTES))


def old_nonce(master_key: bytes, link_id: str, commitment: bytes) -> bytes:
    """Return the old device's nonce, which nobody knows without MK, and each of its devices.

    It is another one for another commitment, so a hub that changes that knows none.
    """
    info = length_prefixed("mana-link-nonce:v1", link_id, require_key(commitment))
    return hkdf(require_key(master_key), info=info)


def commit(link_id: str, login: str, keys: LinkKeys, nonce: bytes) -> bytes:
    """Return the commitment of the new device: 32 bytes."""
    return sha256(
        length_prefixed("mana-link-commit:v1", link_id, login, *keys.parts(), require_key(nonce))
    )


def open_commitment(
    commitment: bytes, link_id: str, login: str, keys: LinkKeys, nonce: bytes
) -> None:
    """Raise SignatureRejected unless the new device had committed to this key and nonce."""
    if commit(link_id, login, keys, nonce) != commitment:
        raise SignatureRejected("the new device shows another key than it committed to")


def open_old_nonce(nonce: bytes, master_key: bytes, link_id: str, commitment: bytes) -> None:
    """Raise WrapRejected unless whoever drew the nonce has this master key.

    Without this, a hub could hand over a key of its own after the digits were compared.
    """
    if old_nonce(master_key, link_id, commitment) != nonce:
        raise WrapRejected("the master key is not that of the device which answered")


def link_digits(
    link_id: str, login: str, account_id: str, keys: LinkKeys, new_nonce_: bytes, old_nonce_: bytes
) -> str:
    """Return what the person compares on both devices: two groups of six digits."""
    drawn = sha256(
        length_prefixed(
            "mana-link-digits:v1",
            link_id,
            login,
            account_id,
            *keys.parts(),
            require_key(new_nonce_),
            require_key(old_nonce_),
        )
    )
    modulus = 10 ** (DIGITS * GROUPS)
    number = int.from_bytes(drawn[:16], "big") % modulus
    text = f"{number:0{DIGITS * GROUPS}d}"
    return " ".join(text[at : at + DIGITS] for at in range(0, len(text), DIGITS))


def hand_over(
    master_key: bytes, link_id: str, account_id: str, digits: str, keys: LinkKeys
) -> bytes:
    """Wrap the master key to the new device, bound to all that the digits cover."""
    return keys.hpke_key.wrap(require_key(master_key), _info(link_id, account_id, digits))


def receive(
    wrapped: bytes, link_id: str, account_id: str, digits: str, key: HpkePrivateKey
) -> bytes:
    """Return the master key; raise WrapRejected if it was wrapped for another link."""
    found = key.unwrap(wrapped, _info(link_id, account_id, digits))
    if len(found) != NONCE_BYTES:
        raise Malformed("a master key has 32 bytes")
    return found


def _info(link_id: str, account_id: str, digits: str) -> bytes:
    return length_prefixed("mana-link:v1", link_id, account_id, digits)
