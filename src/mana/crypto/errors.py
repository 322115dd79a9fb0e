"""How bytes fail: one class for each fact that a caller must tell apart, and no more.

No message carries a key, a plaintext or the position of a fault: an error may cross a
process and end in a log.
"""

from __future__ import annotations

from mana.domain.errors import CryptoFailed


class Malformed(CryptoFailed):
    """The bytes do not have the documented form, whatever the key."""

    code = "CRYPTO_MALFORMED"
    advice = "The data was cut off or made by another version of Mana."


class SealRejected(CryptoFailed):
    """A sealed value does not open under this key and this associated data."""

    code = "SEAL_REJECTED"


class WrapRejected(CryptoFailed):
    """A wrapped key does not open with this key and this purpose."""

    code = "WRAP_REJECTED"
    advice = "It was wrapped for another key, or changed."


class SignatureRejected(CryptoFailed):
    """The signature is not that key's over that statement."""

    code = "SIGNATURE_REJECTED"
    advice = "Do not trust the data; compare fingerprints with whoever wrote it."


class LoginRejected(CryptoFailed):
    """The login key is not the one that the stored hash stands for."""

    code = "LOGIN_REJECTED"
    advice = "Check the login name and the password."


class KdfTooWeak(CryptoFailed):
    """The hub names password parameters below what a device accepts."""

    code = "KDF_TOO_WEAK"
    advice = "Do not enter the password; the hub asks for a form of it that can be guessed."


class KdfTooCostly(CryptoFailed):
    """The hub names password parameters that would exhaust the device."""

    code = "KDF_TOO_COSTLY"
    advice = "Ask whoever runs the hub; no Mana device makes such parameters."
