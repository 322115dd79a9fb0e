"""Opening what a grant covers: keys first, then records as views. Worker processes only."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from mana.crypto.envelope import (
    RecordBinding,
    RecordKey,
    actor_bytes,
    open_text_at,
    parse_envelope,
)
from mana.crypto.errors import Malformed
from mana.crypto.grants import SealedGrant, VerifiedGrant, open_verified, verified_grant
from mana.crypto.keys import RecordKeys
from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import VerifyKey
from mana.domain.actors import Actor, actor_from_wire
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.grants import GrantHeader
from mana.domain.own_models import OwnModel, own_model_from_wire
from mana.domain.records import View, assemble
from mana.domain.tables import DELETED_AT, Table
from mana.hub.runner.dialogue import GrantMaterial
from mana.protocol.messages import StateRecord

_MEMBERS: Final = frozenset({"records", "support", "iterationKey"})
_MODEL: Final = "model"


class KeyRotated(CryptoFailed):
    """The record is sealed under another key version than the one that was granted."""

    code = "KEY_ROTATED"
    advice = "The device mints the same grant again under the new key."


@dataclass(frozen=True, slots=True)
class GrantedKey:
    """A key of a grant, and the class and version of the envelopes that it opens."""

    key: bytes = field(repr=False)
    opens: str


@dataclass(frozen=True, slots=True)
class MissionKey:
    """The key that those of a mission's iterations and steps are derived from."""

    opens: str
    _keys: RecordKeys = field(repr=False)

    @classmethod
    def of(cls, granted: GrantedKey) -> MissionKey:
        """Return the parent that a grant gives."""
        return cls(granted.opens, RecordKeys(granted.key))

    def for_record(self, table: str, record_id: str) -> GrantedKey:
        """Return the key of one record."""
        return GrantedKey(self._keys.of(table, record_id), self.opens)


@dataclass(frozen=True, slots=True)
class GrantKeys:
    """The opened keys of a grant, and the model endpoint of the person's own where it has one."""

    records: Mapping[str, GrantedKey]
    support: Mapping[str, GrantedKey]
    iteration: MissionKey
    model: OwnModel | None = None

    def of(self, name: str) -> GrantedKey | None:
        """Return the key of `table:id`, if it was granted."""
        return self.records.get(name) or self.support.get(name)


def sealed_grant(material: GrantMaterial) -> SealedGrant:
    """Return the material in the form that is verified and opened."""
    return SealedGrant(
        unb64(material.wrapped_key), material.sealed_keys, unb64(material.signature.value)
    )


def read_grant(material: GrantMaterial, *, device: VerifyKey, hub: VerifyKey) -> VerifiedGrant:
    """Return the material as a grant that device and hub signed; raise otherwise."""
    return verified_grant(
        material.header.encode("utf-8"),
        sealed_grant(material),
        unb64(material.hub_signature),
        device=device,
        hub=hub,
    )


def open_keys(header: GrantHeader, grant: VerifiedGrant, *, runner: RunnerPrivateKey) -> GrantKeys:
    """Open a grant's keys; raise unless it holds exactly the header's records."""
    payload = open_verified(grant, header.mission_id, runner=runner.unwrap_key(header.suite))
    if set(payload) - {_MODEL} != _MEMBERS:
        raise Malformed("the payload of a grant has other members")
    records = _keys(payload["records"])
    support = _keys(payload["support"])
    if set(records) != set(header.record_ids):
        raise Malformed("a grant holds exactly the keys of its records")
    allowed = {
        f"aiMissions:{header.mission_id}",
        f"agents:{header.agent_id}",
        f"agentMemory:{header.agent_id}",
    }
    if not set(support) <= allowed:
        raise Malformed("a grant supports its own mission and agent only")
    model = _own_model(payload[_MODEL]) if _MODEL in payload else None
    return GrantKeys(records, support, MissionKey.of(_key(payload["iterationKey"])), model)


def open_record(
    space_id: str,
    record: StateRecord,
    table: Table,
    granted: GrantedKey,
    *,
    fields: Container[str] | None = None,
) -> View:
    """Return the record opened; raise if one sealed path does not open under this key.

    `fields`: only these are opened and told, so that nothing is plain that nobody reads.
    """
    key = RecordKey(granted.key)
    place = RecordBinding(space_id, record.table, record.id)
    opens = f"enc:2:{granted.opens}:"
    values: dict[str, Json] = {}
    stamps: dict[str, str] = {}
    actors: dict[str, Actor] = {}
    wire: Mapping[str, str] = {}
    hand: tuple[Actor, bytes] | None = None
    for path, entry in record.fields.items():
        if fields is not None and path not in fields and path.partition("/")[0] not in fields:
            continue
        if hand is None or entry.actor != wire:
            # Most of a record was written at once.
            wire, hand = entry.actor, _hand(tuple(entry.actor.items()))
        actor, bound = hand
        value: Json = entry.value
        if value is not None and table.field_at(path).sealed:
            if not isinstance(value, str):
                raise Malformed("a sealed field holds no envelope")
            if not value.startswith(opens):
                parse_envelope(value)
                raise KeyRotated("the record is sealed under another key version")
            value = open_text_at(key, value, place.associated_data(path, entry.at, bound))
        values[path] = value
        stamps[path] = entry.at
        actors[path] = actor
    tombstone = record.fields.get(DELETED_AT)
    deleted = tombstone is not None and tombstone.value is not None
    return View(
        table=record.table,
        id=record.id,  # type: ignore[arg-type]
        values=assemble(table, values),
        stamps=stamps,
        actors=actors,
        author_id=record.author_id,
        visibility="private" if record.visibility == "private" else "space",
        deleted=deleted,
    )


@lru_cache(maxsize=512)
def _hand(members: tuple[tuple[str, str], ...]) -> tuple[Actor, bytes]:
    """Return who wrote, and the bytes of it that are bound: ids, and most entries name one of few."""
    wire = dict(members)
    return actor_from_wire(wire), actor_bytes(wire)


def _own_model(value: Json) -> OwnModel:
    try:
        return own_model_from_wire(value)
    except Invalid as error:
        raise Malformed(error.message) from None


def _keys(value: Json) -> dict[str, GrantedKey]:
    if not isinstance(value, dict):
        raise Malformed("the keys of a grant are an object")
    return {name: _key(item) for name, item in value.items()}


def _key(item: Json) -> GrantedKey:
    if isinstance(item, dict) and set(item) == {"k", "e"}:
        key, opens = item["k"], item["e"]
        if isinstance(key, str) and isinstance(opens, str):
            return GrantedKey(unb64(key), opens)
    raise Malformed("a key of a grant is {k, e}")
