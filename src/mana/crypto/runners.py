"""The runner's keys: one pair for each wrapping suite, one to sign what it writes.

They travel as one bundle, so that one fingerprint and one key id stand for all of them. The
private bundle is a file of the runner; the public one a setting (`MANA_AI_PUBLIC_KEY_PEM`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mana.crypto import hpke, rsa
from mana.crypto.envelope import parse_json
from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.identity import fingerprint
from mana.crypto.pem import from_pem, to_pem
from mana.crypto.primitives import Random, b64, unb64
from mana.crypto.rsa import RsaPrivateKey, RsaPublicKey
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.crypto.wrapping import WrapPrivateKey, WrapPublicKey
from mana.domain.encoding import canonical_json, sha256

_PUBLIC: Final = "MANA RUNNER PUBLIC KEY"
_PRIVATE: Final = "MANA RUNNER PRIVATE KEY"
_SUCCEEDED: Final = "mana-runner-key:v1"


@dataclass(frozen=True, slots=True)
class RunnerPublicKey:
    """What a device needs to grant to a runner and to check what it wrote."""

    hpke_key: HpkePublicKey
    rsa_key: RsaPublicKey
    signing_key: VerifyKey

    def bundle(self) -> bytes:
        """Return the canonical JSON that key id and fingerprint cover."""
        return _bundle(self.hpke_key, self.rsa_key, self.signing_key)

    def key_id(self) -> str:
        """Return the hex SHA-256 of the bundle, by which a grant's header names it."""
        return sha256(self.bundle()).hex()

    def fingerprint(self) -> str:
        """Return what the consent shows and a person can compare."""
        return fingerprint(self.bundle())

    def wrap_key(self, suite: str) -> WrapPublicKey:
        """Return the key of the named suite."""
        if suite == hpke.SUITE:
            return self.hpke_key
        if suite == rsa.SUITE:
            return self.rsa_key
        raise Malformed("unknown wrapping suite")

    def to_pem(self) -> str:
        """Return the bundle as PEM text."""
        return to_pem(_PUBLIC, self.bundle())

    @classmethod
    def from_pem(cls, text: str) -> RunnerPublicKey:
        """Read the bundle; raise Malformed for any other form."""
        hpke_raw, rsa_raw, signing_raw = _members(_PUBLIC, text)
        return cls(HpkePublicKey(hpke_raw), RsaPublicKey(rsa_raw), VerifyKey(signing_raw))


@dataclass(frozen=True, slots=True)
class RunnerPrivateKey:
    """The runner's private halves. Never shown."""

    hpke_key: HpkePrivateKey
    rsa_key: RsaPrivateKey
    signing_key: SigningKey

    @classmethod
    def generate(cls, *, random: Random = os.urandom) -> RunnerPrivateKey:
        """Make all three pairs; RSA draws its primes itself."""
        return cls(
            HpkePrivateKey.generate(random=random),
            RsaPrivateKey.generate(),
            SigningKey.generate(random=random),
        )

    def public(self) -> RunnerPublicKey:
        """Return the public halves."""
        return RunnerPublicKey(
            self.hpke_key.public(), self.rsa_key.public(), self.signing_key.public()
        )

    def unwrap_key(self, suite: str) -> WrapPrivateKey:
        """Return the key of the named suite."""
        if suite == hpke.SUITE:
            return self.hpke_key
        if suite == rsa.SUITE:
            return self.rsa_key
        raise Malformed("unknown wrapping suite")

    def to_pem(self) -> str:
        """Return the private bundle as PEM text, unencrypted: for a file of mode 0600."""
        return to_pem(_PRIVATE, _bundle(self.hpke_key, self.rsa_key, self.signing_key))

    @classmethod
    def from_pem(cls, text: str, *, tested: bool = False) -> RunnerPrivateKey:
        """Read the private bundle; raise Malformed for any other form.

        `tested`: this very bundle was read before, by a process that is trusted with it.
        """
        hpke_raw, rsa_raw, signing_raw = _members(_PRIVATE, text)
        rsa_key = RsaPrivateKey(rsa_raw, tested=tested)
        return cls(HpkePrivateKey(hpke_raw), rsa_key, SigningKey(signing_raw))


@dataclass(frozen=True, slots=True)
class Succession:
    """A runner's key, and its word that another one comes after it."""

    key: RunnerPublicKey
    signature: bytes

    @classmethod
    def read(cls, public_key: str, signature: str) -> Succession:
        """Return the word of its wire form: the key's PEM, the signature in base64."""
        return cls(RunnerPublicKey.from_pem(public_key), unb64(signature))


def name_successor(before: RunnerPrivateKey, after: RunnerPublicKey) -> Succession:
    """Sign, with a runner's key, the one that takes its place."""
    public = before.public()
    signature = before.signing_key.sign(_SUCCEEDED, public.key_id(), after.bundle())
    return Succession(public, signature)


def succession_from(
    current: RunnerPublicKey, before: Sequence[Succession]
) -> tuple[RunnerPublicKey, ...]:
    """Return the keys that lead to `current`, newest first, as far as each signed the next.

    `current` is the first of them. What signs nothing of the chain ends it: a list that
    somebody else wrote can only be too short.
    """
    keys = [current]
    for one in before:
        try:
            one.key.signing_key.verify(
                one.signature, _SUCCEEDED, one.key.key_id(), keys[-1].bundle()
            )
        except SignatureRejected:
            break
        keys.append(one.key)
    return tuple(keys)


def _bundle(
    hpke_key: HpkePublicKey | HpkePrivateKey,
    rsa_key: RsaPublicKey | RsaPrivateKey,
    signing_key: VerifyKey | SigningKey,
) -> bytes:
    return canonical_json(
        {
            "version": "v1",
            "hpkeKey": b64(hpke_key.to_bytes()),
            "rsaKey": b64(rsa_key.to_bytes()),
            "signingKey": b64(signing_key.to_bytes()),
        }
    )


def _members(label: str, text: str) -> tuple[bytes, bytes, bytes]:
    found, raw = from_pem(text)
    value = parse_json(raw)
    if found != label or not isinstance(value, dict):
        raise Malformed("not a runner's key")
    match value:
        case {
            "version": "v1",
            "hpkeKey": str(hpke_key),
            "rsaKey": str(rsa_key),
            "signingKey": str(signing_key),
        } if len(value) == 4 and canonical_json(value) == raw:
            return unb64(hpke_key), unb64(rsa_key), unb64(signing_key)
    raise Malformed("not a runner's key")
