"""Signatures: Ed25519 over a length-prefixed statement that begins with its purpose.

A signature made for one purpose is never one for another, and no field can slide into its
neighbour. Verifying raises; there is no answer that could be ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.pem import from_pem, to_pem
from mana.crypto.primitives import KEY_BYTES, Random, b64, require_key
from mana.domain.encoding import Json, canonical_json, length_prefixed, sha256

SIGNATURE_BYTES: Final = 64
AUDIT_START: Final = "0" * 64
"""What stands for the previous hash in the first row of an audit."""

# DER of PKCS #8 and SubjectPublicKeyInfo around a raw Ed25519 key: RFC 8410.
_PRIVATE_DER: Final = bytes.fromhex("302e020100300506032b657004220420")
_PUBLIC_DER: Final = bytes.fromhex("302a300506032b6570032100")


@final
class VerifyKey:
    """The public half: 32 raw bytes."""

    __slots__ = ("_key", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = bytes(require_key(raw))
        try:
            self._key = Ed25519PublicKey.from_public_bytes(self._raw)
        except ValueError as error:
            raise Malformed("not an Ed25519 public key") from error

    @classmethod
    def from_pem(cls, text: str) -> VerifyKey:
        """Read the PEM form (SubjectPublicKeyInfo)."""
        return cls(_unwrap_der(text, "PUBLIC KEY", _PUBLIC_DER))

    def __repr__(self) -> str:
        return f"VerifyKey({self._raw.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def to_bytes(self) -> bytes:
        """Return the 32 raw bytes."""
        return self._raw

    def to_pem(self) -> str:
        """Return the PEM form (SubjectPublicKeyInfo)."""
        return to_pem("PUBLIC KEY", _PUBLIC_DER + self._raw)

    def verify(self, signature: bytes, purpose: str, *parts: str | bytes) -> None:
        """Raise SignatureRejected unless this key signed exactly this statement."""
        self.verify_message(signature, length_prefixed(purpose, *parts))

    def verify_message(self, signature: bytes, message: bytes) -> None:
        """Raise SignatureRejected unless this key signed these bytes."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise SignatureRejected("the signature does not hold") from None


@final
class SigningKey:
    """The private half: 32 raw bytes. Never shown."""

    __slots__ = ("_key", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = bytes(require_key(raw))
        self._key = Ed25519PrivateKey.from_private_bytes(self._raw)

    @classmethod
    def generate(cls, *, random: Random = os.urandom) -> SigningKey:
        """Draw a new pair."""
        return cls(random(KEY_BYTES))

    @classmethod
    def from_pem(cls, text: str) -> SigningKey:
        """Read the PEM form (PKCS #8, unencrypted)."""
        return cls(_unwrap_der(text, "PRIVATE KEY", _PRIVATE_DER))

    def __repr__(self) -> str:
        return "SigningKey(…)"

    def public(self) -> VerifyKey:
        """Return the public half."""
        return VerifyKey(self._key.public_key().public_bytes_raw())

    def to_bytes(self) -> bytes:
        """Return the 32 raw bytes, to be sealed at once."""
        return self._raw

    def to_pem(self) -> str:
        """Return the PEM form (PKCS #8), unencrypted: for a file of mode 0600."""
        return to_pem("PRIVATE KEY", _PRIVATE_DER + self._raw)

    def sign(self, purpose: str, *parts: str | bytes) -> bytes:
        """Sign a statement: 64 bytes over the length-prefixed purpose and parts."""
        return self._key.sign(length_prefixed(purpose, *parts))


def _unwrap_der(text: str, label: str, prefix: bytes) -> bytes:
    found, der = from_pem(text)
    if found != label or not der.startswith(prefix):
        raise Malformed("not an Ed25519 key in PEM")
    return der[len(prefix) :]


@dataclass(frozen=True, slots=True)
class ChangeFacts:
    """What a change signature states.

    `entries` holds, by path, the stamp and the hash of the value *as it is on the wire*: the
    envelope where the field is sealed. Over the plaintext, a signature would let anyone who
    has it try out guesses of a short value.
    """

    space: str
    table: str
    record: str
    change: str
    author: str
    visibility: str
    actor: Mapping[str, Json]
    origin: str
    entries: Mapping[str, tuple[str, str]]

    def parts(self) -> tuple[str | bytes, ...]:
        """Return the statement that follows the purpose."""
        entries: dict[str, Json] = {
            path: [at, digest] for path, (at, digest) in self.entries.items()
        }
        return (
            self.space,
            self.table,
            self.record,
            self.change,
            self.author,
            self.visibility,
            canonical_json(dict(self.actor)),
            self.origin,
            canonical_json(entries),
        )


def value_hash(value: Json) -> str:
    """Return the hex SHA-256 of a wire value, as it stands in the entries of a change."""
    return sha256(canonical_json(value)).hex()


def change_digest(facts: ChangeFacts) -> bytes:
    """Return the SHA-256 of the signed statement, to refer to one exact change."""
    return sha256(length_prefixed("mana-change:v1", *facts.parts()))


def sign_change(key: SigningKey, facts: ChangeFacts) -> bytes:
    """Sign a change of what decides, with the writer's device key."""
    return key.sign("mana-change:v1", *facts.parts())


def verify_change(key: VerifyKey, facts: ChangeFacts, signature: bytes) -> None:
    """Raise SignatureRejected unless the device signed this change."""
    key.verify(signature, "mana-change:v1", *facts.parts())


def sign_reseal(key: SigningKey, facts: ChangeFacts) -> bytes:
    """Sign values that were brought under a newer key: their writer's, but by this device."""
    return key.sign("mana-reseal:v1", *facts.parts())


def verify_reseal(key: VerifyKey, facts: ChangeFacts, signature: bytes) -> None:
    """Raise SignatureRejected unless the device vouches for these values under a newer key."""
    key.verify(signature, "mana-reseal:v1", *facts.parts())


def sign_entry(key: SigningKey, entry: Mapping[str, Json]) -> bytes:
    """Sign one entry of a membership log."""
    return key.sign("mana-membership:v1", canonical_json(dict(entry)))


def verify_entry(key: VerifyKey, entry: Mapping[str, Json], signature: bytes) -> None:
    """Raise SignatureRejected unless the key signed this entry."""
    key.verify(signature, "mana-membership:v1", canonical_json(dict(entry)))


def entry_hash(entry: Mapping[str, Json], signature: bytes) -> str:
    """Return the hash that the next entry commits to; of the first entry, the space id."""
    return sha256(canonical_json({"entry": dict(entry), "signature": b64(signature)})).hex()


@dataclass(frozen=True, slots=True)
class RunnerWrite:
    """What the runner's signature states: which occurrence, under what, and what it wrote.

    `scheduled_for` is ISO with milliseconds and Z; `digest` the hex SHA-256 of the write;
    `audit_seq` and `audit_hash` the head of the account's audit that the runner knows.
    """

    mission: str
    scheduled_for: str
    grant: str
    fence: int
    digest: str
    audit_seq: int
    audit_hash: str

    def parts(self) -> tuple[str, ...]:
        """Return the statement that follows the purpose."""
        return (
            self.mission,
            self.scheduled_for,
            self.grant,
            str(self.fence),
            self.digest,
            str(self.audit_seq),
            self.audit_hash,
        )


def sign_runner_write(key: SigningKey, write: RunnerWrite) -> bytes:
    """Sign what the runner writes back."""
    return key.sign("mana-runner-write:v1", *write.parts())


def verify_runner_write(key: VerifyKey, write: RunnerWrite, signature: bytes) -> None:
    """Raise SignatureRejected unless the runner wrote this for this occurrence and grant."""
    key.verify(signature, "mana-runner-write:v1", *write.parts())


def audit_hash(previous: str, row: Mapping[str, Json]) -> str:
    """Return the hash of an audit row in its chain; the first follows `AUDIT_START`."""
    return sha256(length_prefixed("mana-audit:v1", previous, canonical_json(dict(row)))).hex()
