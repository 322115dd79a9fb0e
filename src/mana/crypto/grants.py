"""Mission grants, version 2: exactly some record keys, for one runner, one scope, one life.

The header is bytes to this file; `domain.grants` says what stands in it. The key that opens
the grant is derived from the header itself, so any other scope, life or mission is another
key; and both the device and the hub have signed it. Normative: docs/protocol/grants.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from mana.crypto.envelope import parse_json
from mana.crypto.errors import Malformed, SealRejected, WrapRejected
from mana.crypto.keys import new_key
from mana.crypto.primitives import (
    Random,
    hkdf,
    open_text,
    require_key,
    seal_text,
)
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.crypto.wrapping import WrapPrivateKey, WrapPublicKey
from mana.domain.encoding import Json, canonical_json, length_prefixed, sha256

INFO_BYTES_MAX_V1: Final = 1024

_SEALED_PREFIX: Final = "gk:2:"
_MADE: Final = "mana-grant:v2"
_ENDED: Final = "mana-grant-revoked:v1"


class Signer(Protocol):
    """Whoever signs for a device: its key, or a vault that does not give the key away."""

    def sign(self, purpose: str, *parts: str | bytes) -> bytes:
        """Sign a statement: 64 bytes over the length-prefixed purpose and parts."""


@dataclass(frozen=True, slots=True)
class SealedGrant:
    """What a device hands to the register with a header."""

    wrapped_key: bytes = field(repr=False)
    sealed_keys: str = field(repr=False)
    signature: bytes


def derive_mission_data_key(secret: bytes, mission_id: str, header: bytes) -> bytes:
    """Derive MDK, which seals the keys of a grant."""
    return hkdf(require_key(secret), salt=_utf8(mission_id), info=header)


def seal_grant(
    header: bytes,
    mission_id: str,
    payload: Mapping[str, Json],
    *,
    runner: WrapPublicKey,
    device: Signer,
    random: Random = os.urandom,
) -> SealedGrant:
    """Complete a grant on the device: wrap the secret, seal the keys, sign both."""
    _require_canonical(header)
    secret = new_key(random=random)
    sealed_keys = seal_text(
        _SEALED_PREFIX,
        derive_mission_data_key(secret, mission_id, header),
        canonical_json(dict(payload)),
        header,
        random=random,
    )
    wrapped_key = runner.wrap(secret, _wrap_info(header))
    unsigned = SealedGrant(wrapped_key, sealed_keys, b"")
    return replace(unsigned, signature=device.sign(_MADE, header, *_hashes(unsigned)))


def countersign_grant(hub: SigningKey, header: bytes, grant: SealedGrant) -> bytes:
    """Sign, as the hub, that the register took this grant."""
    return hub.sign("mana-grant-hub:v2", header, grant.signature)


def verify_grant(header: bytes, grant: SealedGrant, *, device: VerifyKey) -> None:
    """Raise SignatureRejected unless the device made this grant. Needs no private key."""
    _require_canonical(header)
    device.verify(grant.signature, _MADE, header, *_hashes(grant))


@dataclass(frozen=True, slots=True)
class GrantHashes:
    """What of a grant stays known when its sealed material is erased: hex SHA-256 of both parts."""

    wrapped_key: str
    sealed_keys: str

    @classmethod
    def of(cls, grant: SealedGrant) -> GrantHashes:
        """Return the hashes that the device's signature covers."""
        return cls(*(part.hex() for part in _hashes(grant)))


def verify_grant_hashes(
    header: bytes, hashes: GrantHashes, signature: bytes, *, device: VerifyKey
) -> None:
    """Raise unless the device made a grant of this header, whose material need not be there."""
    _require_canonical(header)
    try:
        parts = bytes.fromhex(hashes.wrapped_key), bytes.fromhex(hashes.sealed_keys)
    except ValueError:
        raise Malformed("the hashes of a grant are hex digits") from None
    device.verify(signature, _MADE, header, *parts)


def end_grant(device: Signer, grant_id: str, header: bytes) -> bytes:
    """Sign that a grant has ended, with a device of the grantor or of who manages the space."""
    return device.sign(_ENDED, grant_id, sha256(header).hex())


def verify_grant_ended(
    grant_id: str, header: bytes, signature: bytes, *, device: VerifyKey
) -> None:
    """Raise SignatureRejected unless the device signed that this grant has ended."""
    device.verify(signature, _ENDED, grant_id, sha256(header).hex())


def verify_countersignature(
    header: bytes, grant: SealedGrant, countersignature: bytes, *, hub: VerifyKey
) -> None:
    """Raise SignatureRejected unless the hub's register took this grant."""
    hub.verify(countersignature, "mana-grant-hub:v2", header, grant.signature)


@dataclass(frozen=True, slots=True)
class VerifiedGrant:
    """A grant that its device made and the hub's register took. Made by `verified_grant` alone."""

    header: bytes
    sealed: SealedGrant


def verified_grant(
    header: bytes,
    grant: SealedGrant,
    countersignature: bytes,
    *,
    device: VerifyKey,
    hub: VerifyKey,
) -> VerifiedGrant:
    """Return the grant as one that may be opened; raise SignatureRejected or Malformed."""
    verify_grant(header, grant, device=device)
    verify_countersignature(header, grant, countersignature, hub=hub)
    return VerifiedGrant(header, grant)


def open_verified(
    grant: VerifiedGrant, mission_id: str, *, runner: WrapPrivateKey
) -> dict[str, Json]:
    """Return the payload: the record keys and the mission key.

    Raises WrapRejected or Malformed: the reasons `wrap-rejected` and `malformed`. Whether the
    grant is the right one, in force and audited is for the caller to settle first.
    """
    secret = runner.unwrap(grant.sealed.wrapped_key, _wrap_info(grant.header))
    mission_data_key = derive_mission_data_key(secret, mission_id, grant.header)
    try:
        plaintext = open_text(
            _SEALED_PREFIX, mission_data_key, grant.sealed.sealed_keys, grant.header
        )
    except SealRejected:
        # The secret is not the one of this header: to the runner, a key that does not fit.
        raise WrapRejected("the keys of the grant do not open") from None
    payload = parse_json(plaintext)
    if not isinstance(payload, dict):
        raise Malformed("the payload of a grant is an object")
    return payload


def open_grant(
    header: bytes,
    mission_id: str,
    grant: SealedGrant,
    countersignature: bytes,
    *,
    runner: WrapPrivateKey,
    device: VerifyKey,
    hub: VerifyKey,
) -> dict[str, Json]:
    """Verify a grant and open it; raises as `verified_grant` and `open_verified`."""
    verified = verified_grant(header, grant, countersignature, device=device, hub=hub)
    return open_verified(verified, mission_id, runner=runner)


def mission_data_key_v1(
    master_key: bytes, mission_id: str, tables: Iterable[str], record_ids: Iterable[str]
) -> bytes:
    """Derive the reference's version 1 key, to read what it left. Never used to write.

    Its scope string is ambiguous (an id may hold a comma); version 2 exists for that too.
    """
    info = _utf8(
        "mana-ai-mission-grant:v1"
        f":tables={','.join(sorted(tables, key=_utf16))}"
        f":ids={','.join(sorted(record_ids, key=_utf16))}"
    )
    if len(info) > INFO_BYTES_MAX_V1:
        # The reference's HKDF takes no more, so it can have made no such grant.
        raise Malformed("a scope that version 1 could not express")
    return hkdf(require_key(master_key), salt=_utf8(mission_id), info=info)


def _wrap_info(header: bytes) -> bytes:
    return length_prefixed("mana-grant-wrap:v2", sha256(header).hex())


def _hashes(grant: SealedGrant) -> tuple[bytes, bytes]:
    if not grant.sealed_keys.isascii():
        raise Malformed("not the form of sealed keys")
    return sha256(grant.wrapped_key), sha256(grant.sealed_keys.encode("ascii"))


def _require_canonical(header: bytes) -> None:
    """Refuse a header of which two readers could read two things."""
    value = parse_json(header)
    if not isinstance(value, dict) or canonical_json(value) != header:
        raise Malformed("a grant's header is one canonical JSON object")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed("not text that can be written in UTF-8") from None


def _utf16(text: str) -> bytes:
    """Order as the reference does: by UTF-16 code units."""
    return text.encode("utf-16-be", "surrogatepass")
