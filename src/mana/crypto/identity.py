"""Who an account is to others: two public keys, a fingerprint, and certified devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mana.crypto.errors import Malformed
from mana.crypto.hpke import HpkePublicKey
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import Json, canonical_json, sha256
from mana.domain.ids import AccountId, DeviceId


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """What others need of an account: where to wrap keys, and how to know its hand."""

    account_id: AccountId
    wrap_key: HpkePublicKey
    verify_key: VerifyKey

    def to_wire(self) -> dict[str, Json]:
        """Return the JSON object that the hub hands to other members."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "encryptionKey": b64(self.wrap_key.to_bytes()),
            "signingKey": b64(self.verify_key.to_bytes()),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> PublicIdentity:
        """Read the JSON object; raise Malformed for any other form."""
        texts = _texts(wire, "version", "accountId", "encryptionKey", "signingKey")
        if texts["version"] != "v1":
            raise Malformed("unknown version of an identity")
        return cls(
            AccountId(texts["accountId"]),
            HpkePublicKey(unb64(texts["encryptionKey"])),
            VerifyKey(unb64(texts["signingKey"])),
        )

    def fingerprint(self) -> str:
        """Return what two people compare before they trust each other's keys."""
        return fingerprint(canonical_json(self.to_wire()))


def fingerprint(public: bytes) -> str:
    """Return the first 128 bits of the SHA-256 in eight groups of four hex digits."""
    digits = sha256(public).hex()[:32]
    return " ".join(digits[start : start + 4] for start in range(0, 32, 4))


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """The account's word that a device key is one of its own."""

    account_id: AccountId
    device_id: DeviceId
    public_key: VerifyKey
    created_at: str
    signature: bytes

    def statement(self) -> dict[str, Json]:
        """Return what is signed."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "deviceId": self.device_id,
            "publicKey": b64(self.public_key.to_bytes()),
            "createdAt": self.created_at,
        }

    def to_wire(self) -> dict[str, Json]:
        """Return the statement and its signature as one JSON object."""
        return {**self.statement(), "signature": b64(self.signature)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> DeviceCertificate:
        """Read the JSON object. It proves nothing until `verify_certificate`."""
        names = ("version", "accountId", "deviceId", "publicKey", "createdAt", "signature")
        texts = _texts(wire, *names)
        if texts["version"] != "v1":
            raise Malformed("unknown version of a certificate")
        return cls(
            AccountId(texts["accountId"]),
            DeviceId(texts["deviceId"]),
            VerifyKey(unb64(texts["publicKey"])),
            texts["createdAt"],
            unb64(texts["signature"]),
        )


def certify_device(
    identity: SigningKey,
    account_id: AccountId,
    device_id: DeviceId,
    public_key: VerifyKey,
    created_at: str,
) -> DeviceCertificate:
    """Sign a device's key with the account's identity (`created_at`: ISO, milliseconds, Z)."""
    draft = DeviceCertificate(account_id, device_id, public_key, created_at, b"")
    signature = identity.sign("mana-device:v1", canonical_json(draft.statement()))
    return DeviceCertificate(account_id, device_id, public_key, created_at, signature)


def verify_certificate(
    certificate: DeviceCertificate, identity: VerifyKey, account_id: AccountId
) -> VerifyKey:
    """Return the device's key; raise unless `account_id` certified it with `identity`."""
    if certificate.account_id != account_id:
        raise Malformed("a certificate of another account")
    statement = canonical_json(certificate.statement())
    identity.verify(certificate.signature, "mana-device:v1", statement)
    return certificate.public_key


def _texts(wire: Mapping[str, object], *names: str) -> dict[str, str]:
    """Return exactly these members, all of them text."""
    texts = {name: value for name, value in wire.items() if isinstance(value, str)}
    if set(wire) != set(names) or len(texts) != len(names):
        raise Malformed("members missing, unknown or not text")
    return texts
