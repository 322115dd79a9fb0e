"""The hierarchy: master key, space keys, mission keys, record keys, and their wraps.

Every derivation and every wrap names its purpose, so that bytes made for one never open as
another. A record key opens one record: this is what lets a grant hand over exactly some.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias, final

from mana.crypto.errors import Malformed, SealRejected, WrapRejected
from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.primitives import (
    KEY_BYTES,
    Deriver,
    Random,
    b64,
    hkdf,
    open_text,
    require_key,
    seal_text,
    unb64,
)
from mana.domain.encoding import length_prefixed

WrapPurpose: TypeAlias = Literal["unlock", "kek", "recovery"]
KeyKind: TypeAlias = Literal["s", "p"]

_MASTER_PREFIX: Final = "mk:1:"
_SECRET_PREFIX: Final = "sec:1:"  # the name of a form, not a secret


def new_key(*, random: Random = os.urandom) -> bytes:
    """Draw a key: MK, a space key, a private key of a space, a grant secret."""
    return require_key(random(KEY_BYTES))


def wrap_master_key(
    master_key: bytes,
    wrapping_key: bytes,
    purpose: WrapPurpose,
    account_id: str,
    key_id: str,
    *,
    random: Random = os.urandom,
) -> str:
    """Wrap MK under the unlock key, the hub's KEK or the recovery key."""
    associated_data = length_prefixed("mana-mk:v1", purpose, account_id, key_id)
    key = require_key(master_key)
    return seal_text(_MASTER_PREFIX, wrapping_key, key, associated_data, random=random)


def unwrap_master_key(
    wrapped: str, wrapping_key: bytes, purpose: WrapPurpose, account_id: str, key_id: str
) -> bytes:
    """Return MK; raise WrapRejected if key, purpose, account or key id is another."""
    associated_data = length_prefixed("mana-mk:v1", purpose, account_id, key_id)
    try:
        return require_key(open_text(_MASTER_PREFIX, wrapping_key, wrapped, associated_data))
    except SealRejected:
        raise WrapRejected("the master key does not unwrap") from None


def key_check(key: bytes, label: str, version: int) -> str:
    """Return the value by which two holders see that they hold the same key."""
    info = length_prefixed("mana-key-check:v1", label, str(_require_version(version)))
    return b64(hkdf(require_key(key), info=info)[:16])


def record_key(parent: bytes, table: str, record_id: str) -> bytes:
    """Derive the key of one record from its space key, private key or mission key."""
    return hkdf(require_key(parent), info=_record_info(table, record_id))


@final
class RecordKeys:
    """The keys of the records under one parent, derived one after the other as `record_key`."""

    __slots__ = ("_deriver",)

    def __init__(self, parent: bytes) -> None:
        self._deriver = Deriver(require_key(parent))

    def __repr__(self) -> str:
        return "RecordKeys(…)"

    def of(self, table: str, record_id: str) -> bytes:
        """Return the key of one record."""
        return self._deriver.derive(_record_info(table, record_id))


def mission_key(space_key: bytes, mission_id: str) -> bytes:
    """Derive the parent of the record keys of a mission's iterations and steps."""
    return hkdf(require_key(space_key), info=length_prefixed("mana-mission:v1", mission_id))


def private_key(master_key: bytes, space_id: str, version: int) -> bytes:
    """Derive an account's key for its private records in a space: no log has to name it."""
    info = length_prefixed("mana-private:v1", space_id, str(_require_version(version)))
    return hkdf(require_key(master_key), info=info)


def seal_secret(
    master_key: bytes,
    plaintext: bytes,
    purpose: str,
    account_id: str,
    *context: str,
    random: Random = os.urandom,
) -> str:
    """Seal a private half, or another secret of the account, under MK."""
    associated_data = length_prefixed("mana-secret:v1", purpose, account_id, *context)
    return seal_text(_SECRET_PREFIX, master_key, plaintext, associated_data, random=random)


def open_secret(
    master_key: bytes, sealed: str, purpose: str, account_id: str, *context: str
) -> bytes:
    """Open what `seal_secret` made for the same purpose, account and context."""
    associated_data = length_prefixed("mana-secret:v1", purpose, account_id, *context)
    return open_text(_SECRET_PREFIX, master_key, sealed, associated_data)


@dataclass(frozen=True, slots=True)
class SpaceKeyName:
    """Which key of a space, for whom: what a wrap is bound to.

    Kind `s` is the space's key, `p` the private one of its recipient in that space.
    """

    kind: KeyKind
    space: str
    version: int
    recipient: str

    def info(self) -> bytes:
        """Return the bytes that HPKE binds."""
        number = str(_require_version(self.version))
        return length_prefixed("mana-key-wrap:v1", self.kind, self.space, number, self.recipient)


def wrap_space_key(key: bytes, recipient: HpkePublicKey, name: SpaceKeyName) -> str:
    """Wrap a key of a space to one member; Base64 of the HPKE message."""
    return b64(recipient.wrap(require_key(key), name.info()))


def unwrap_space_key(wrapped: str, recipient: HpkePrivateKey, name: SpaceKeyName) -> bytes:
    """Return the key of a space; raise WrapRejected if any named fact is another."""
    return require_key(recipient.unwrap(unb64(wrapped), name.info()))


def _record_info(table: str, record_id: str) -> bytes:
    return _record_head(table) + length_prefixed(record_id)


@lru_cache(maxsize=512)
def _record_head(table: str) -> bytes:
    return length_prefixed("mana-record:v1", table)


def _require_version(version: int) -> int:
    if version < 1:
        raise Malformed("key versions count from 1")
    return version
