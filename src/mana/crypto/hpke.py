"""Wrapping keys for one recipient: HPKE (RFC 9180) with the hybrid KEM ML-KEM-768 + X25519.

A wrap stays closed unless both the lattice and the curve are broken: what is recorded today
does not open to a quantum computer of tomorrow. `info` binds a wrap to what it is for.
"""

from __future__ import annotations

import os
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from mana.crypto.errors import Malformed, WrapRejected
from mana.crypto.primitives import Random

SUITE: Final = "hpke-mlkem768-x25519"
PUBLIC_BYTES: Final = 1184 + 32
PRIVATE_BYTES: Final = 64 + 32

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@final
class HpkePublicKey:
    """The half that others wrap to: 1184 bytes of ML-KEM-768, then 32 of X25519."""

    __slots__ = ("_key", "_raw")

    suite: Final = SUITE

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PUBLIC_BYTES:
            raise Malformed("a hybrid public key has 1216 bytes")
        try:
            self._key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(raw[:1184]),
                X25519PublicKey.from_public_bytes(raw[1184:]),
            )
        except ValueError as error:
            raise Malformed("not a hybrid public key") from error
        self._raw = bytes(raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HpkePublicKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def to_bytes(self) -> bytes:
        """Return the 1216 raw bytes."""
        return self._raw

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Return encapsulated key, ciphertext and tag (1168 bytes for a key of 32)."""
        try:
            return _SUITE.encrypt(secret, self._key, info)
        except ValueError as error:
            # A point of low order: whoever published this key would let others read.
            raise WrapRejected("nothing can be wrapped to this key") from error


@final
class HpkePrivateKey:
    """The half that unwraps: 64 bytes of ML-KEM-768 seed, then 32 of X25519. Never shown."""

    __slots__ = ("_key", "_public", "_raw")

    suite: Final = SUITE

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PRIVATE_BYTES:
            raise Malformed("a hybrid private key has 96 bytes")
        lattice = MLKEM768PrivateKey.from_seed_bytes(raw[:64])
        curve = X25519PrivateKey.from_private_bytes(raw[64:])
        self._key = MLKEM768X25519PrivateKey(lattice, curve)
        self._public = HpkePublicKey(
            lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )
        self._raw = bytes(raw)

    @classmethod
    def generate(cls, *, random: Random = os.urandom) -> HpkePrivateKey:
        """Draw a new pair."""
        return cls(random(PRIVATE_BYTES))

    def __repr__(self) -> str:
        return "HpkePrivateKey(…)"

    def public(self) -> HpkePublicKey:
        """Return the public half."""
        return self._public

    def to_bytes(self) -> bytes:
        """Return the 96 raw bytes, to be sealed at once."""
        return self._raw

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return the secret; raise WrapRejected if key, `info` or a byte is another."""
        try:
            return _SUITE.decrypt(wrapped, self._key, info)
        except (InvalidTag, ValueError):
            raise WrapRejected("the wrap does not open") from None
