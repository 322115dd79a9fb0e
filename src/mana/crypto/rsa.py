"""Wrapping by RSA-OAEP-2048 with SHA-256: the reference's suite, kept for its runner keys.

No label: WebCrypto implementations differ in it. What a wrap is for is therefore bound by
what the secret derives (see `grants.py`), and `info` is accepted and left unused here.
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from mana.crypto.errors import Malformed, WrapRejected

SUITE: Final = "rsa-oaep-2048-sha256"
KEY_BITS: Final = 2048
SECRET_BYTES_MAX: Final = 190

_PADDING: Final = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)


@final
class RsaPublicKey:
    """The half that others wrap to; its bytes are DER SubjectPublicKeyInfo."""

    __slots__ = ("_key", "_raw")

    suite: Final = SUITE

    def __init__(self, raw: bytes) -> None:
        try:
            key = load_der_public_key(raw)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Malformed("not a public key") from error
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != KEY_BITS:
            raise Malformed("not an RSA key of 2048 bits")
        self._key = key
        self._raw = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RsaPublicKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def to_bytes(self) -> bytes:
        """Return the DER form."""
        return self._raw

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Return 256 bytes. `info` is not bound by this suite."""
        del info
        if len(secret) > SECRET_BYTES_MAX:
            raise Malformed("too long for one RSA-OAEP block")
        return self._key.encrypt(secret, _PADDING)


@final
class RsaPrivateKey:
    """The half that unwraps; its bytes are DER PKCS #8. Never shown."""

    __slots__ = ("_key",)

    suite: Final = SUITE

    def __init__(self, raw: bytes, *, tested: bool = False) -> None:
        """Read the DER form. `tested`: its numbers were, so that it need not take 40 ms again."""
        try:
            key = load_der_private_key(raw, password=None, unsafe_skip_rsa_key_validation=tested)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Malformed("not a private key") from error
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != KEY_BITS:
            raise Malformed("not an RSA key of 2048 bits")
        self._key = key

    @classmethod
    def generate(cls) -> RsaPrivateKey:
        """Make a new pair; the library draws the primes itself."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        return cls(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))

    def __repr__(self) -> str:
        return "RsaPrivateKey(…)"

    def public(self) -> RsaPublicKey:
        """Return the public half."""
        public = self._key.public_key()
        return RsaPublicKey(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def to_bytes(self) -> bytes:
        """Return the DER form, to be sealed or stored at once."""
        return self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return the secret; raise WrapRejected if it was not wrapped to this key."""
        del info
        try:
            return self._key.decrypt(wrapped, _PADDING)
        except ValueError:
            raise WrapRejected("the wrap does not open") from None
