"""What guards an account's vault: signed statements, proofs of the master key, the recovery code.

The identity's signing key is sealed under the master key, so whoever signs with it has opened
the vault. Statements form a chain, as a membership log does: a hub that shows an older vault, or
one that nobody of the account made, is found out. Normative: docs/protocol/vault.md.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.keys import key_check, new_key, open_secret, seal_secret
from mana.crypto.primitives import KEY_BYTES, Random, b64, hkdf, require_key, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import Json, canonical_json, length_prefixed, sha256
from mana.domain.errors import Invalid

VaultMode: TypeAlias = Literal["standard", "zero-knowledge"]

_CODE: Final = re.compile(r"[0-9A-Fa-f]{64}")
_GROUP: Final = 4


class RecoveryCodeMalformed(Invalid):
    """What was typed is not a recovery code; no position is said."""

    code: ClassVar[str] = "RECOVERY_CODE_MALFORMED"
    advice: ClassVar[str] = "Type all sixteen groups of four characters, 0-9 and A-F."


# Recovery


def recovery_code(secret: bytes) -> str:
    """Return the code that a person keeps: 16 groups of 4 hex digits, joined by dashes."""
    digits = require_key(secret).hex().upper()
    return "-".join(digits[at : at + _GROUP] for at in range(0, len(digits), _GROUP))


def parse_recovery_code(text: str) -> bytes:
    """Return the secret of a code, however it was typed; raise RecoveryCodeMalformed."""
    digits = re.sub(r"[\s\-\u2010-\u2015]", "", unicodedata.normalize("NFKC", text))
    if _CODE.fullmatch(digits) is None:
        raise RecoveryCodeMalformed("not a recovery code")
    return bytes.fromhex(digits)


@dataclass(frozen=True, slots=True)
class RecoveryKeys:
    """What a recovery secret becomes: the key that wraps MK, and the one that signs in.

    The wrapping key is the reference's, so that a code printed by it gives the same key.
    """

    wrap_key: bytes = field(repr=False)
    login_key: bytes = field(repr=False)
    key_id: str


def recovery_keys(secret: bytes, login: str) -> RecoveryKeys:
    """Derive both keys of a recovery secret, and the id by which the wrap names it."""
    name = unicodedata.normalize("NFC", login).lower()
    return RecoveryKeys(
        hkdf(require_key(secret), info=b"mana-recovery-v1"),
        hkdf(secret, info=length_prefixed("mana-recovery-login:v1", name)),
        "r-" + sha256(length_prefixed("mana-recovery-id:v1", secret)).hex()[:16],
    )


# What came before


def seal_former_master(
    master_key: bytes, former: bytes, account_id: str, *, random: Random = os.urandom
) -> tuple[str, str]:
    """Return check value and seal of a former master key, under the one in force.

    The new key opens the old, never the other way round.
    """
    check = key_check(former, account_id, 1)
    return check, seal_secret(
        master_key, require_key(former), "former-master", account_id, check, random=random
    )


def open_former_master(master_key: bytes, check: str, sealed: str, account_id: str) -> bytes:
    """Return a former master key; raise unless it is the one that its check value names."""
    former = require_key(open_secret(master_key, sealed, "former-master", account_id, check))
    if key_check(former, account_id, 1) != check:
        raise Malformed("a former master key of another check value")
    return former


# The statement


@dataclass(frozen=True, slots=True)
class VaultStatement:
    """What a vault is after its n-th change. Hashes are hex SHA-256 of the texts on the wire.

    `previous`: the hash of the statement before, empty for the first. `challenge`: what the hub
    asked to be signed (base64). `recovery`: hash of the recovery wrap, empty without one.
    `formers`: hash of the canonical list of what came before (`formers_hash`).
    """

    account_id: str
    revision: int
    previous: str
    challenge: str
    mode: VaultMode
    kdf: Mapping[str, Json]
    master_check: str
    master_wrap: str
    recovery: str
    signing_key: str
    hpke_key: str
    sealed_private: str
    formers: str
    grants: bool
    changed_at: str

    def to_wire(self) -> dict[str, Json]:
        """Return what is signed."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "revision": self.revision,
            "previous": self.previous,
            "challenge": self.challenge,
            "mode": self.mode,
            "kdf": dict(self.kdf),
            "masterCheck": self.master_check,
            "masterWrap": self.master_wrap,
            "recovery": self.recovery,
            "signingKey": self.signing_key,
            "hpkeKey": self.hpke_key,
            "sealedPrivate": self.sealed_private,
            "formers": self.formers,
            "grants": self.grants,
            "changedAt": self.changed_at,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Json]) -> VaultStatement:
        """Read a statement; raise Malformed for any other form. It proves nothing by itself."""
        match wire:
            case {
                "version": "v1",
                "accountId": str(account_id),
                "revision": int(revision),
                "previous": str(previous),
                "challenge": str(challenge),
                "mode": "standard" | "zero-knowledge" as mode,
                "kdf": dict(kdf),
                "masterCheck": str(master_check),
                "masterWrap": str(master_wrap),
                "recovery": str(recovery),
                "signingKey": str(signing_key),
                "hpkeKey": str(hpke_key),
                "sealedPrivate": str(sealed_private),
                "formers": str(formers),
                "grants": bool(grants),
                "changedAt": str(changed_at),
            } if len(wire) == 16 and not isinstance(revision, bool) and revision > 0:
                return cls(
                    account_id,
                    revision,
                    previous,
                    challenge,
                    mode,
                    kdf,
                    master_check,
                    master_wrap,
                    recovery,
                    signing_key,
                    hpke_key,
                    sealed_private,
                    formers,
                    grants,
                    changed_at,
                )
        raise Malformed("not the statement of a vault")

    def hash(self) -> str:
        """Return what the next statement names as `previous`."""
        return sha256(canonical_json(self.to_wire())).hex()

    def verify_key(self) -> VerifyKey:
        """Return the identity's signing key that stands after this statement."""
        return VerifyKey(unb64(self.signing_key))


def text_hash(text: str) -> str:
    """Return the hash by which a statement names a wrap or a seal; empty for an empty text."""
    return sha256(text.encode("utf-8")).hex() if text else ""


def formers_hash(masters: Sequence[Json], identities: Sequence[Json]) -> str:
    """Return the hash by which a statement names former keys, as they are on the wire."""
    formers: dict[str, Json] = {"masters": list(masters), "identities": list(identities)}
    return sha256(canonical_json(formers)).hex()


def sign_statement(key: SigningKey, statement: VaultStatement) -> bytes:
    """Sign a statement with the identity that stood before it, and with its own where it is new."""
    return key.sign("mana-vault:v1", canonical_json(statement.to_wire()))


def verify_statement(
    statement: VaultStatement,
    signature: bytes,
    own_signature: bytes | None,
    *,
    before: VaultStatement | None,
    key_before: VerifyKey,
) -> None:
    """Raise unless a statement follows from the one before it.

    `key_before`: the signing key that stood before. `own_signature`: by the key that the
    statement names, and needed exactly where that is another one.
    """
    expected = (before.revision + 1, before.hash()) if before is not None else (1, "")
    if (statement.revision, statement.previous) != expected:
        raise SignatureRejected("the statement does not follow the one before")
    if before is not None and before.account_id != statement.account_id:
        raise SignatureRejected("the statement is of another account")
    message = canonical_json(statement.to_wire())
    key_before.verify(signature, "mana-vault:v1", message)
    is_new = statement.verify_key() != key_before
    if is_new != (own_signature is not None):
        raise SignatureRejected("a new identity signs for itself, and no other does")
    if own_signature is not None:
        statement.verify_key().verify(own_signature, "mana-vault:v1", message)


# Proofs of the master key for all else


def sign_proof(
    key: SigningKey, account_id: str, action: str, challenge: str, body: Mapping[str, Json]
) -> bytes:
    """Sign an action on an account over the hub's challenge: whoever can has opened the vault."""
    return key.sign("mana-proof:v1", account_id, action, challenge, canonical_json(dict(body)))


def verify_proof(
    key: VerifyKey,
    signature: bytes,
    account_id: str,
    action: str,
    challenge: str,
    body: Mapping[str, Json],
) -> None:
    """Raise SignatureRejected unless the account's identity signed exactly this action."""
    message = canonical_json(dict(body))
    key.verify(signature, "mana-proof:v1", account_id, action, challenge, message)


def sign_private_keys(
    key: SigningKey, account_id: str, space_id: str, wraps: Iterable[tuple[int, str]]
) -> bytes:
    """Sign the account's own private keys of a space, each by its version and its wrap's text.

    Nobody can tell what a wrap holds, and a wrong one would stand in the way of the space on
    every device of the account for good: so a session alone must not leave any.
    """
    return key.sign("mana-private-keys:v1", account_id, space_id, _named_wraps(wraps))


def verify_private_keys(
    key: VerifyKey,
    signature: bytes,
    account_id: str,
    space_id: str,
    wraps: Iterable[tuple[int, str]],
) -> None:
    """Raise SignatureRejected unless the account's identity signed exactly these wraps."""
    key.verify(signature, "mana-private-keys:v1", account_id, space_id, _named_wraps(wraps))


def _named_wraps(wraps: Iterable[tuple[int, str]]) -> bytes:
    return canonical_json([[version, text_hash(wrapped)] for version, wrapped in wraps])


def new_challenge(*, random: Random = os.urandom) -> str:
    """Draw a challenge (base64 of 32 bytes)."""
    return b64(random(KEY_BYTES))


def new_recovery_secret(*, random: Random = os.urandom) -> bytes:
    """Draw the secret of a recovery code."""
    return new_key(random=random)
