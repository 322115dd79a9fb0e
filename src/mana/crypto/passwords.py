"""From a password to two keys that know nothing of each other, and what the hub keeps of one.

The login key is sent and hashed again; the unlock key never leaves the device. The device
sets a floor under the cost, because a hub that may choose the cost chooses how fast it can
guess; and a ceiling, because it could also ask for all of the memory.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError
from argon2.low_level import Type, hash_secret_raw

from mana.crypto.errors import KdfTooCostly, KdfTooWeak, LoginRejected, Malformed
from mana.crypto.primitives import Random, b64, hkdf, require_key, unb64
from mana.domain.encoding import length_prefixed, sha256

SALT_BYTES: Final = 16
ROOT_BYTES: Final = 64
T_MAX: Final = 16
M_KIB_MAX: Final = 1024 * 1024
P_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class KdfFloor:
    """The least that a device accepts, each number for itself."""

    t: int
    m_kib: int
    p: int


FLOOR: Final = KdfFloor(t=3, m_kib=64 * 1024, p=4)
"""What every device outside of tests insists on, and what new accounts get."""


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """How one account's password becomes keys; the hub hands it out before log-in."""

    salt: bytes
    t: int = FLOOR.t
    m_kib: int = FLOOR.m_kib
    p: int = FLOOR.p

    @classmethod
    def new(cls, *, floor: KdfFloor = FLOOR, random: Random = os.urandom) -> KdfParameters:
        """Draw a salt for a new password, at the cost of `floor`."""
        return cls(random(SALT_BYTES), t=floor.t, m_kib=floor.m_kib, p=floor.p)

    def check_floor(self, *, floor: KdfFloor = FLOOR) -> None:
        """Raise KdfTooWeak below the floor and KdfTooCostly above the ceiling."""
        if len(self.salt) != SALT_BYTES:
            raise Malformed("a salt has 16 bytes")
        if self.t < floor.t or self.m_kib < floor.m_kib or self.p < floor.p:
            raise KdfTooWeak("password parameters below the floor")
        if self.t > T_MAX or self.m_kib > M_KIB_MAX or self.p > P_MAX:
            raise KdfTooCostly("password parameters above the ceiling")

    def to_wire(self) -> dict[str, str | int]:
        """Return the JSON object that the hub stores and hands out."""
        return {
            "salt": b64(self.salt),
            "t": self.t,
            "mKib": self.m_kib,
            "p": self.p,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> KdfParameters:
        """Read the JSON object; raise Malformed for any other form. Checks no floor."""
        salt, t, m_kib, p = wire.get("salt"), wire.get("t"), wire.get("mKib"), wire.get("p")
        if (
            type(salt) is not str
            or type(t) is not int
            or type(m_kib) is not int
            or type(p) is not int
        ):
            raise Malformed("not password parameters")
        return cls(unb64(salt), t=t, m_kib=m_kib, p=p)


@dataclass(frozen=True, slots=True)
class PasswordKeys:
    """The two keys of a password."""

    login_key: bytes = field(repr=False)
    unlock_key: bytes = field(repr=False)


def derive_password_keys(
    password: str, login_name: str, parameters: KdfParameters, *, floor: KdfFloor = FLOOR
) -> PasswordKeys:
    """Derive both keys, after refusing parameters outside of floor and ceiling.

    Password and name are taken in Unicode form NFC, so that another keyboard gives the same
    keys; the name in lower case.
    """
    parameters.check_floor(floor=floor)
    name = unicodedata.normalize("NFC", login_name).lower()
    try:
        secret = unicodedata.normalize("NFC", password).encode("utf-8")
        info = length_prefixed("mana-login:v1", name)
    except UnicodeEncodeError:
        raise Malformed("not text that can be written in UTF-8") from None
    try:
        root = hash_secret_raw(
            secret,
            parameters.salt,
            time_cost=parameters.t,
            memory_cost=parameters.m_kib,
            parallelism=parameters.p,
            hash_len=ROOT_BYTES,
            type=Type.ID,
        )
    except Argon2Error as error:
        raise Malformed("password parameters that Argon2id does not take") from error
    return PasswordKeys(
        login_key=hkdf(root, info=info),
        unlock_key=hkdf(root, info=length_prefixed("mana-unlock:v1")),
    )


@dataclass(frozen=True, slots=True)
class HashCost:
    """What the hub spends to hash a login key, which is random already."""

    t: int = 2
    m_kib: int = 19 * 1024
    p: int = 1


HASH_COST: Final = HashCost()


def hash_login_key(
    login_key: bytes, *, cost: HashCost = HASH_COST, random: Random = os.urandom
) -> str:
    """Return the encoded Argon2id hash that the hub stores instead of the login key."""
    hasher = PasswordHasher(time_cost=cost.t, memory_cost=cost.m_kib, parallelism=cost.p)
    return hasher.hash(require_key(login_key), salt=random(SALT_BYTES))


def verify_login_key(encoded: str, login_key: bytes) -> None:
    """Raise LoginRejected unless `encoded` was made from `login_key`."""
    try:
        PasswordHasher().verify(encoded, require_key(login_key))
    except VerifyMismatchError:
        raise LoginRejected("wrong login key") from None
    except (Argon2Error, InvalidHashError, ValueError) as error:
        raise Malformed("not an Argon2 hash") from error


def token_hash(token: bytes) -> bytes:
    """Return what the hub stores of a random token, such as a refresh token."""
    return sha256(length_prefixed("mana-token:v1", token))
