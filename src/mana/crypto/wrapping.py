"""One door to both wrapping suites, by name or by PEM, whose label tells the suite."""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias

from mana.crypto import hpke, rsa
from mana.crypto.errors import Malformed
from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.pem import from_pem, to_pem
from mana.crypto.primitives import Random
from mana.crypto.rsa import RsaPrivateKey, RsaPublicKey

SuiteName: TypeAlias = Literal["hpke-mlkem768-x25519", "rsa-oaep-2048-sha256"]
WrapPublicKey: TypeAlias = HpkePublicKey | RsaPublicKey
WrapPrivateKey: TypeAlias = HpkePrivateKey | RsaPrivateKey

SUITES: Final[tuple[SuiteName, ...]] = (hpke.SUITE, rsa.SUITE)
"""Both suites, the preferred one first."""

_HPKE_PUBLIC: Final = "MANA HPKE-MLKEM768-X25519 PUBLIC KEY"
_HPKE_PRIVATE: Final = "MANA HPKE-MLKEM768-X25519 PRIVATE KEY"


def generate_wrap_key(suite: str, *, random: Random = os.urandom) -> WrapPrivateKey:
    """Make a pair of the named suite; raise Malformed for an unknown name."""
    if suite == hpke.SUITE:
        return HpkePrivateKey.generate(random=random)
    if suite == rsa.SUITE:
        return RsaPrivateKey.generate()
    raise Malformed("unknown wrapping suite")


def load_wrap_public(suite: str, raw: bytes) -> WrapPublicKey:
    """Read a public half from its raw bytes."""
    if suite == hpke.SUITE:
        return HpkePublicKey(raw)
    if suite == rsa.SUITE:
        return RsaPublicKey(raw)
    raise Malformed("unknown wrapping suite")


def wrap_public_to_pem(key: WrapPublicKey) -> str:
    """Return the PEM text of a public half."""
    label = _HPKE_PUBLIC if isinstance(key, HpkePublicKey) else "PUBLIC KEY"
    return to_pem(label, key.to_bytes())


def wrap_private_to_pem(key: WrapPrivateKey) -> str:
    """Return the PEM text of a private half, unencrypted: for a file of mode 0600."""
    label = _HPKE_PRIVATE if isinstance(key, HpkePrivateKey) else "PRIVATE KEY"
    return to_pem(label, key.to_bytes())


def wrap_public_from_pem(text: str) -> WrapPublicKey:
    """Read a public half of either suite."""
    label, raw = from_pem(text)
    if label == _HPKE_PUBLIC:
        return HpkePublicKey(raw)
    if label == "PUBLIC KEY":
        return RsaPublicKey(raw)
    raise Malformed("not a public wrapping key")


def wrap_private_from_pem(text: str) -> WrapPrivateKey:
    """Read a private half of either suite."""
    label, raw = from_pem(text)
    if label == _HPKE_PRIVATE:
        return HpkePrivateKey(raw)
    if label == "PRIVATE KEY":
        return RsaPrivateKey(raw)
    raise Malformed("not a private wrapping key")
