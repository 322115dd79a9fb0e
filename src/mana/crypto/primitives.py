"""The primitives that every other file here is made of, each with one way to use it.

AES-256-GCM with 12-byte ivs and 16-byte tags, HKDF-SHA256, HMAC-SHA256, Base64 in its one
canonical spelling. A library's exception never leaves this package.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable
from typing import Final, TypeAlias, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mana.crypto.errors import Malformed, SealRejected

Random: TypeAlias = Callable[[int], bytes]
"""A source of `n` random bytes; `os.urandom` everywhere but in vectors."""

KEY_BYTES: Final = 32
IV_BYTES: Final = 12
TAG_BYTES: Final = 16
HKDF_LENGTH_MAX: Final = 255 * 32
_NO_SALT: Final = bytes(32)

_SPACES: Final = re.compile(r"[\t\n\f\r ]")


def require_key(key: bytes) -> bytes:
    """Return `key` if it has 32 bytes."""
    if len(key) != KEY_BYTES:
        raise Malformed("a key has 32 bytes")
    return key


def hkdf(key: bytes, *, info: bytes, salt: bytes = b"", length: int = KEY_BYTES) -> bytes:
    """Derive `length` bytes from `key` by HKDF-SHA256."""
    if not 0 < length <= HKDF_LENGTH_MAX:
        raise Malformed("HKDF-SHA256 gives 1 to 8160 bytes")
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


@final
class Deriver:
    """HKDF-SHA256 from one key to many: the key is extracted once. Never shows it."""

    __slots__ = ("_extracted",)

    def __init__(self, key: bytes) -> None:
        self._extracted = mac(_NO_SALT, key)

    def __repr__(self) -> str:
        return "Deriver(…)"

    def derive(self, info: bytes) -> bytes:
        """Return the same 32 bytes as `hkdf(key, info=info)`."""
        return mac(self._extracted, info + b"\x01")


def mac(key: bytes, message: bytes) -> bytes:
    """Return the 32-byte HMAC-SHA256 of `message`."""
    return hmac.digest(key, message, "sha256")


def b64(data: bytes) -> str:
    """Encode in the standard alphabet with padding."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def b64url(data: bytes) -> str:
    """Encode in the URL-safe alphabet without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    """Decode canonical Base64; another spelling of the same bytes is refused.

    Two spellings of one ciphertext would make two changes, two hashes and two rows of what
    is one value.
    """
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed("not Base64") from error
    # What is strict may have spare padding, and spare bits in front of padding; nothing else.
    spare = len(data) % 3
    if len(text) != (len(data) + 2) // 3 * 4 or (
        spare and binascii.b2a_base64(data[-spare:], newline=False) != text[-4:].encode()
    ):
        raise Malformed("not canonical Base64")
    return data


def unb64_lenient(text: str) -> bytes:
    """Decode as browsers do: white space and missing padding are forgiven.

    Only for reading what the reference implementation wrote.
    """
    bare = _SPACES.sub("", text).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed("not Base64") from error


@final
class Aead:
    """AES-256-GCM under one key. Keeps the expanded key, and never shows it."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(require_key(key))

    def __repr__(self) -> str:
        return "Aead(…)"

    def seal(self, iv: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
        """Return ciphertext and tag. One iv must never serve two plaintexts."""
        if len(iv) != IV_BYTES:
            raise Malformed("an iv has 12 bytes")
        return self._cipher.encrypt(iv, plaintext, associated_data)

    def open(self, iv: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Return the plaintext; raise SealRejected if anything differs from what was sealed."""
        if len(iv) != IV_BYTES or len(ciphertext) < TAG_BYTES:
            raise Malformed("an iv has 12 bytes and a ciphertext at least 16")
        try:
            return self._cipher.decrypt(iv, ciphertext, associated_data)
        except InvalidTag:
            raise SealRejected("does not open under this key") from None


def seal_text(
    prefix: str, key: bytes, plaintext: bytes, associated_data: bytes, *, random: Random
) -> str:
    """Seal into `<prefix><b64 iv>.<b64 ct+tag>`, the text form that all our seals share."""
    iv = random(IV_BYTES)
    return f"{prefix}{b64(iv)}.{b64(Aead(key).seal(iv, plaintext, associated_data))}"


def open_text(prefix: str, key: bytes, text: str, associated_data: bytes) -> bytes:
    """Open what `seal_text` made with the same prefix, key and associated data."""
    if not text.startswith(prefix):
        raise Malformed("not the expected form")
    iv, dot, ciphertext = text[len(prefix) :].partition(".")
    if not dot:
        raise Malformed("not the expected form")
    return Aead(key).open(unb64(iv), unb64(ciphertext), associated_data)
