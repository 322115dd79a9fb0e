"""Who an account is to others: two public keys, a fingerprint, and certified devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mana.crypto.errors import Malformed
from mana.crypto.hpke import PRIVATE_BYTES, HpkePrivateKey, HpkePublicKey
from mana.crypto.keys import open_secret, seal_secret
from mana.crypto.primitives import Random, b64, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import Json, canonical_json, sha256


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """What others need of an account: where to wrap keys, and how to know its hand."""

    account_id: str
    hpke_key: HpkePublicKey
    signing_key: VerifyKey

    def to_wire(self) -> dict[str, Json]:
        """Return the bundle that the fingerprint covers."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "hpkeKey": b64(self.hpke_key.to_bytes()),
            "signingKey": b64(self.signing_key.to_bytes()),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> PublicIdentity:
        """Read the bundle; raise Malformed for any other form."""
        texts = _texts(wire, "version", "accountId", "hpkeKey", "signingKey")
        if texts["version"] != "v1":
            raise Malformed("unknown version of an identity")
        return cls(
            texts["accountId"],
            HpkePublicKey(unb64(texts["hpkeKey"])),
            VerifyKey(unb64(texts["signingKey"])),
        )

    def fingerprint(self) -> str:
        """Return what two people compare before they trust each other's keys."""
        return fingerprint(canonical_json(self.to_wire()))


@dataclass(frozen=True, slots=True)
class PrivateIdentity:
    """Both private halves of an account, in a device's memory only."""

    account_id: str
    hpke_key: HpkePrivateKey
    signing_key: SigningKey

    @classmethod
    def generate(cls, account_id: str, *, random: Random = os.urandom) -> PrivateIdentity:
        """Draw both pairs."""
        hpke_key = HpkePrivateKey.generate(random=random)
        return cls(account_id, hpke_key, SigningKey.generate(random=random))

    def public(self) -> PublicIdentity:
        """Return the public halves."""
        return PublicIdentity(self.account_id, self.hpke_key.public(), self.signing_key.public())

    def seal(self, master_key: bytes, *, random: Random = os.urandom) -> str:
        """Seal both halves under MK, bound to the public ones, for the hub to keep."""
        plaintext = self.hpke_key.to_bytes() + self.signing_key.to_bytes()
        context = self.public().fingerprint()
        return seal_secret(
            master_key, plaintext, "identity", self.account_id, context, random=random
        )

    @classmethod
    def open(cls, master_key: bytes, sealed: str, public: PublicIdentity) -> PrivateIdentity:
        """Open both halves; raise unless they are the halves of `public`."""
        context = public.fingerprint()
        plaintext = open_secret(master_key, sealed, "identity", public.account_id, context)
        identity = cls(
            public.account_id,
            HpkePrivateKey(plaintext[:PRIVATE_BYTES]),
            SigningKey(plaintext[PRIVATE_BYTES:]),
        )
        if identity.public() != public:
            raise Malformed("private halves of another identity")
        return identity


def fingerprint(public: bytes) -> str:
    """Return the first 128 bits of the SHA-256 in eight groups of four hex digits."""
    digits = sha256(public).hex()[:32]
    return " ".join(digits[start : start + 4] for start in range(0, 32, 4))


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """The account's word that a device key is one of its own."""

    account_id: str
    device_id: str
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
            texts["accountId"],
            texts["deviceId"],
            VerifyKey(unb64(texts["publicKey"])),
            texts["createdAt"],
            unb64(texts["signature"]),
        )


def certify_device(
    identity: SigningKey,
    account_id: str,
    device_id: str,
    public_key: VerifyKey,
    created_at: str,
) -> DeviceCertificate:
    """Sign a device's key with the account's identity (`created_at`: ISO, milliseconds, Z)."""
    draft = DeviceCertificate(account_id, device_id, public_key, created_at, b"")
    signature = identity.sign("mana-device:v1", canonical_json(draft.statement()))
    return DeviceCertificate(account_id, device_id, public_key, created_at, signature)


def verify_certificate(
    certificate: DeviceCertificate, identity: VerifyKey, account_id: str
) -> VerifyKey:
    """Return the device's key; raise unless `account_id` certified it with `identity`."""
    if certificate.account_id != account_id:
        raise Malformed("a certificate of another account")
    statement = canonical_json(certificate.statement())
    identity.verify(certificate.signature, "mana-device:v1", statement)
    return certificate.public_key


@dataclass(frozen=True, slots=True)
class DeviceRevocation:
    """The account's word that a device of its own counts no more from a moment on.

    What it signed with an earlier stamp stays, or nobody could read what it had written.
    """

    account_id: str
    device_id: str
    revoked_at: str
    signature: bytes

    def statement(self) -> dict[str, Json]:
        """Return what is signed."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "deviceId": self.device_id,
            "revokedAt": self.revoked_at,
        }


def revoke_device(
    identity: SigningKey, account_id: str, device_id: str, revoked_at: str
) -> DeviceRevocation:
    """Sign that a device is revoked (`revoked_at`: ISO, milliseconds, Z)."""
    draft = DeviceRevocation(account_id, device_id, revoked_at, b"")
    signature = identity.sign("mana-device-revoked:v1", canonical_json(draft.statement()))
    return DeviceRevocation(account_id, device_id, revoked_at, signature)


def verify_revocation(revocation: DeviceRevocation, identity: VerifyKey, account_id: str) -> None:
    """Raise unless `account_id` revoked this device with `identity`."""
    if revocation.account_id != account_id:
        raise Malformed("a revocation by another account")
    statement = canonical_json(revocation.statement())
    identity.verify(revocation.signature, "mana-device-revoked:v1", statement)


def _texts(wire: Mapping[str, object], *names: str) -> dict[str, str]:
    """Return exactly these members, all of them text."""
    texts = {name: value for name, value in wire.items() if isinstance(value, str)}
    if set(wire) != set(names) or len(texts) != len(names):
        raise Malformed("members missing, unknown or not text")
    return texts
