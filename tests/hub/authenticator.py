"""An authenticator in software: it holds one passkey (ES256), signs what a browser is asked for,
and can be made to sign something else."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from mana.crypto.primitives import b64url

PAGE = "http://localhost:3051"
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


@dataclass
class Authenticator:
    """`page`, `domain` and `crosses`: where the browser says that it is used."""

    page: str = PAGE
    domain: str = "localhost"
    crosses: bool = False
    flags: int = PRESENT | VERIFIED
    count: int = 0
    credential_id: bytes = field(default_factory=lambda: os.urandom(20))
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def make(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the registration that `navigator.credentials.create` would give."""
        numbers = self.key.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: _bytes(numbers.x), -3: _bytes(numbers.y)}
        attested = (
            bytes(16)
            + struct.pack(">H", len(self.credential_id))
            + self.credential_id
            + cbor2.dumps(cose)
        )
        data = self._data(self.flags | ATTESTED) + attested
        made = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        said = self._said("webauthn.create", options["challenge"])
        return self._credential({"clientDataJSON": b64url(said), "attestationObject": b64url(made)})

    def sign(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the assertion that `navigator.credentials.get` would give; it counts on."""
        self.count += 1
        return self.sign_as_counted(options)

    def sign_as_counted(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return an assertion with the counter as it is."""
        data = self._data(self.flags)
        said = self._said("webauthn.get", options["challenge"])
        signature = self.key.sign(data + hashlib.sha256(said).digest(), ec.ECDSA(hashes.SHA256()))
        return self._credential(
            {
                "clientDataJSON": b64url(said),
                "authenticatorData": b64url(data),
                "signature": b64url(signature),
            }
        )

    def _data(self, flags: int) -> bytes:
        domain = hashlib.sha256(self.domain.encode()).digest()
        return domain + bytes([flags]) + struct.pack(">I", self.count)

    def _said(self, kind: str, challenge: str) -> bytes:
        said = {
            "type": kind,
            "challenge": challenge,
            "origin": self.page,
            "crossOrigin": self.crosses,
        }
        return json.dumps(said).encode()

    def _credential(self, response: dict[str, str]) -> dict[str, Any]:
        name = b64url(self.credential_id)
        return {
            "id": name,
            "rawId": name,
            "type": "public-key",
            "clientExtensionResults": {},
            "response": response,
        }


def _bytes(number: int) -> bytes:
    return number.to_bytes(32, "big")
