"""The envelope of one sealed field, and the path tokens of set elements.

A hub checks the form without a key (`parse_envelope`); only a holder of the record key opens
it, and only where it was sealed: space, table, record, path, stamp and actor are bound. The
length is padded to a size class, so that "yes" and "no" look the same.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias, cast, final

import msgspec

from mana.crypto import keys
from mana.crypto.errors import Malformed
from mana.crypto.primitives import (
    IV_BYTES,
    TAG_BYTES,
    Aead,
    Random,
    b64,
    b64url,
    hkdf,
    mac,
    require_key,
    unb64,
    unb64_lenient,
)
from mana.domain.encoding import Json, canonical_json, length_prefixed

KeyClass: TypeAlias = Literal["s", "p", "m"]
"""Whose key: the space's, the author's private one in it, or the mission's."""

SIZE_MIN: Final = 32
SIZE_STEP: Final = 4096
VERSION_MAX: Final = 999_999_999

_PREFIX: Final = re.compile(r"enc:2:([spm])([1-9][0-9]{0,8}):")
_IV_CHARS: Final = 16
_SMALL: Final = frozenset(1 << power for power in range(5, 13))
_ENC1: Final = "enc:1:"
_BLANK: Final = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a sealed value stands. `actor` is the wire form, without what a person wrote."""

    space: str
    table: str
    record: str
    path: str
    at: str
    actor: Mapping[str, Json]

    def associated_data(self) -> bytes:
        """Return the bytes that are bound to the value."""
        place = RecordBinding(self.space, self.table, self.record)
        return place.associated_data(self.path, self.at, actor_bytes(self.actor))


@final
class RecordBinding:
    """What the bindings of all fields of one record begin with, encoded once."""

    __slots__ = ("_head", "_tail", "_written")

    def __init__(self, space: str, table: str, record: str) -> None:
        self._head = _prefixed(space) + _prefixed(table) + length_prefixed(record)
        self._written: tuple[str, bytes] | None = None
        self._tail = b""

    def associated_data(self, path: str, at: str, actor: bytes) -> bytes:
        """Return the bytes that are bound to one value. `actor`: of `actor_bytes`."""
        written = (at, actor)
        if written != self._written:
            # Most fields of a record were written together.
            self._written, self._tail = written, length_prefixed(at, actor)
        return self._head + _prefixed(path) + self._tail


@lru_cache(maxsize=4096)
def _prefixed(part: str) -> bytes:
    """Return what one part adds to `length_prefixed`: spaces, tables and paths are few."""
    return length_prefixed(part)


def actor_bytes(actor: Mapping[str, Json]) -> bytes:
    """Return the wire form of an actor as it is bound."""
    return canonical_json(dict(actor))


class Envelope(NamedTuple):
    """A sealed field, taken apart but not opened."""

    cls: KeyClass
    version: int
    iv: bytes
    ciphertext: bytes


@final
class RecordKey:
    """The key of one record, expanded once, because a record has many fields."""

    __slots__ = ("_raw", "aead")

    def __init__(self, raw: bytes) -> None:
        self._raw = bytes(require_key(raw))
        self.aead: Final = Aead(self._raw)

    @classmethod
    def derive(cls, parent: bytes, table: str, record_id: str) -> RecordKey:
        """Derive from a space key, a private key or a mission key."""
        return cls(keys.record_key(parent, table, record_id))

    def __repr__(self) -> str:
        return "RecordKey(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordKey) and hmac.compare_digest(self._raw, other._raw)

    def to_bytes(self) -> bytes:
        """Return the 32 bytes, to be put into a grant at once."""
        return self._raw


def seal_field(
    key: RecordKey,
    *,
    cls: KeyClass,
    version: int,
    binding: Binding,
    value: Json,
    random: Random = os.urandom,
) -> str:
    """Seal one value for one place. Two seals of one value differ."""
    bound = binding.associated_data()
    return seal_value(
        key, cls=cls, version=version, associated_data=bound, value=value, random=random
    )


def seal_value(
    key: RecordKey,
    *,
    cls: KeyClass,
    version: int,
    associated_data: bytes,
    value: Json,
    random: Random = os.urandom,
) -> str:
    """Seal one value for the place that the associated data of a `RecordBinding` names."""
    if cls not in ("s", "p", "m") or not 1 <= version <= VERSION_MAX:
        raise Malformed("unknown key class or key version")
    plaintext = canonical_json(value)
    padded = plaintext.ljust(size_class(len(plaintext)), b" ")
    iv = random(IV_BYTES)
    return f"enc:2:{cls}{version}:{b64(iv)}.{b64(key.aead.seal(iv, padded, associated_data))}"


def open_field(key: RecordKey, text: str, *, binding: Binding) -> Json:
    """Open what was sealed for this place; raise SealRejected anywhere else."""
    return open_envelope(key, parse_envelope(text), binding.associated_data())


def open_envelope(key: RecordKey, envelope: Envelope, associated_data: bytes) -> Json:
    """Open an envelope that was parsed; raise SealRejected anywhere but in its place."""
    return parse_json(key.aead.open(envelope.iv, envelope.ciphertext, associated_data))


def open_text_at(key: RecordKey, text: str, associated_data: bytes) -> Json:
    """Open the text of an envelope at once; raises as `parse_envelope` and `open_envelope`."""
    _, iv, ciphertext = _parts(text)
    return parse_json(key.aead.open(iv, ciphertext, associated_data))


def parse_envelope(text: str) -> Envelope:
    """Check the form, to the last bit, without a key; raise Malformed otherwise."""
    (cls, version), iv, ciphertext = _parts(text)
    return Envelope(cls, version, iv, ciphertext)


def _parts(text: str) -> tuple[tuple[KeyClass, int], bytes, bytes]:
    """Return class and version, iv, and ciphertext; raise Malformed for any other form."""
    head, _, sealed = text.partition(".")
    opens = _class_of(head[:-_IV_CHARS])
    iv, ciphertext = unb64(head[-_IV_CHARS:]), unb64(sealed)
    if len(iv) != IV_BYTES:
        raise Malformed("not an envelope")
    size = len(ciphertext) - TAG_BYTES
    if size not in _SMALL and size_class(size) != size:
        raise Malformed("not the length of an envelope")
    return opens, iv, ciphertext


@lru_cache(maxsize=512)
def _class_of(prefix: str) -> tuple[KeyClass, int]:
    """Return key class and version of what stands before the iv."""
    match = _PREFIX.fullmatch(prefix)
    if match is None:
        raise Malformed("not an envelope")
    return cast(KeyClass, match[1]), int(match[2])


def is_envelope(value: object) -> bool:
    """Say whether a value on the wire has the form of a sealed field."""
    if not isinstance(value, str):
        return False
    try:
        parse_envelope(value)
    except Malformed:
        return False
    return True


def size_class(length: int) -> int:
    """Return the padded length: a power of two from 32 to 4096, then multiples of 4096."""
    if length > SIZE_STEP:
        return -(-length // SIZE_STEP) * SIZE_STEP
    return max(SIZE_MIN, 1 << max(0, length - 1).bit_length())


def element_token(key: RecordKey, field: str, element: Json) -> str:
    """Return the last part of a set element's path: equal for equal elements of one field.

    Keyed by the record, so that the hub merges a set without learning that two records
    share an element.
    """
    path_key = hkdf(key.to_bytes(), info=length_prefixed("mana-path:v1", field))
    return b64url(mac(path_key, canonical_json(element))[:16])


def is_enc1(value: object) -> bool:
    """Say whether an imported value is in the reference's older form."""
    return isinstance(value, str) and value.startswith(_ENC1)


def open_enc1(master_key: bytes, text: str) -> Json:
    """Open a value of the reference's form `enc:1`. Mana never writes it: nothing is bound.

    The result may hold a lone surrogate, which the reference allows and Mana cannot seal;
    whoever imports replaces it.
    """
    if not text.startswith(_ENC1):
        raise Malformed("not an enc:1 value")
    iv, dot, ciphertext = text[len(_ENC1) :].partition(".")
    if not dot:
        raise Malformed("not an enc:1 value")
    plaintext = Aead(master_key).open(unb64_lenient(iv), unb64_lenient(ciphertext), b"")
    return parse_json(plaintext)


def parse_json(data: bytes) -> Json:
    """Read authenticated JSON strictly: UTF-8, no NaN, no name twice."""
    if data[:1] == b'"':
        try:
            return _TEXT.decode(data)
        except ValueError:
            pass  # It may hold half a pair of a character, which the other way reads.
    try:
        text = data.decode().strip(_BLANK)
        value, end = _JSON.raw_decode(text)
        if end != len(text):
            raise ValueError("something follows the value")
        return cast(Json, value)
    except (ValueError, RecursionError):
        # Without a cause: a decoder's message would quote the plaintext.
        raise Malformed("not JSON") from None


def _refuse(constant: str) -> Json:
    raise ValueError("not JSON")


def _once_each(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name twice")
    return members


_TEXT: Final = msgspec.json.Decoder(str)
_JSON: Final = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once_each)
