"""From stored records to opened views and back: which key, which place, which signature.

What does not open is named and left closed; it never hides the rest of a record or of a list.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from mana.crypto.authority import facts_of
from mana.crypto.envelope import (
    Binding,
    KeyClass,
    RecordBinding,
    RecordKey,
    actor_bytes,
    open_envelope,
    open_field,
    parse_envelope,
    seal_field,
)
from mana.crypto.primitives import Random, b64
from mana.crypto.signatures import sign_change
from mana.device.vault import DeviceKey, OpenedVault, SpaceKeys
from mana.domain.actors import Actor, actor_from_wire
from mana.domain.clock import Stamp
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError
from mana.domain.records import Entry, Record, View, assemble
from mana.domain.tables import Sealing, Table
from mana.protocol.messages import ChangeMessage, FieldWrite, Signature
from mana.registry.catalogue import Catalogue

_MISSION: Final = "missionId"
TARGET_TABLE: Final = "targetTable"
TARGET_ID: Final = "targetId"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Which key the sealed fields of a record take."""

    cls: KeyClass
    table: str
    record_id: str
    mission_id: str = ""


class Sealer:
    """Seals, opens and signs with the keys of one unlocked account."""

    def __init__(
        self,
        vault: OpenedVault,
        catalogue: Catalogue,
        device: DeviceKey,
        *,
        random: Random = os.urandom,
    ) -> None:
        self.vault: Final = vault
        self.catalogue: Final = catalogue
        self.device = device
        self.random: Final = random

    def keys(self, space_id: str) -> SpaceKeys:
        """Return the keys of a space, former ones too; raise NotFound."""
        return self.vault.space(space_id)

    def place(
        self,
        table: Table,
        record_id: str,
        visibility: str,
        entries: Mapping[str, Entry],
        values: Mapping[str, Json],
    ) -> KeyPlace:
        """Return which key a record takes, from its plain fields or those now written."""

        def plain(name: str) -> str:
            entry = entries.get(name)
            found = entry.value if entry is not None else values.get(name)
            if not isinstance(found, str) or not found:
                raise Invalid(f"a record of {table.name} needs {name}, which chooses its key")
            return found

        cls: KeyClass = "p" if visibility == "private" else "s"
        if table.sealing is Sealing.MISSION:
            return KeyPlace("m", table.name, record_id, plain(_MISSION))
        if table.sealing is Sealing.TARGET:
            # What stood in a private record is as private as what stands there.
            return KeyPlace(cls, plain(TARGET_TABLE), plain(TARGET_ID))
        return KeyPlace(cls, table.name, record_id)

    def record_key(self, space: SpaceKeys, place: KeyPlace, version: int) -> RecordKey:
        """Return the key of a place in one version."""
        return self.vault.record_key(
            space.space_id, place.cls, version, place.table, place.record_id, place.mission_id
        )

    def version(self, space: SpaceKeys, place: KeyPlace) -> int:
        """Return the version under which is sealed now."""
        return space.private_version if place.cls == "p" else space.current_version

    # Opening

    def view(self, space_id: str, record: Record) -> View:
        """Return a record opened; fields that do not open are named in `sealed_fields`."""
        table = self.catalogue.table(record.table)
        opened, closed = self._open(space_id, table, record)
        return View(
            table=record.table,
            id=record.id,
            values=assemble(table, opened),
            stamps={path: entry.at for path, entry in record.entries.items()},
            actors={path: entry.actor for path, entry in record.entries.items()},
            author_id=record.author_id,
            visibility=record.visibility,
            deleted=record.deleted,
            restorable=record.edited_after_delete,
            sealed_fields=tuple(sorted(closed)),
        )

    def opened_paths(self, space_id: str, record: Record) -> dict[str, Json]:
        """Return the opened values by path, without those that do not open."""
        return self._open(space_id, self.catalogue.table(record.table), record)[0]

    def _open(
        self, space_id: str, table: Table, record: Record
    ) -> tuple[dict[str, Json], set[str]]:
        opened: dict[str, Json] = {}
        closed: set[str] = set()
        opener: _Opener | None = None
        space = self.keys(space_id)
        try:
            place = self.place(table, record.id, record.visibility, record.entries, {})
            opener = _Opener(self, space, place, record)
        except ManaError:
            pass  # nothing says which key it takes
        for path, entry in record.entries.items():
            try:
                declared = table.field_at(path)
            except Invalid:
                continue  # written by a newer version; it is kept, and not shown
            try:
                value = entry.value
                if declared.sealed and value is not None:
                    if opener is None:
                        raise Invalid("not an envelope")
                    value = opener.open(path, entry)
                declared.check(value)
                opened[path] = value
            except ManaError:
                closed.add(declared.name)
        return opened, closed

    def open_value(self, space: SpaceKeys, place: KeyPlace, binding: Binding, value: str) -> Json:
        """Return what was sealed for a place, under the version that its envelope names."""
        version = parse_envelope(value).version
        return open_field(self.record_key(space, place, version), value, binding=binding)

    # Sealing

    def seal(
        self,
        space_id: str,
        draft: ChangeMessage,
        place: KeyPlace,
        values: Mapping[str, Json],
        stamp: Stamp,
    ) -> ChangeMessage:
        """Return a change with its values stamped, sealed and, where it decides, signed.

        A flip decides too: who sees the record from then on.
        """
        table = self.catalogue.table(draft.table)
        space = self.keys(space_id)
        version = self.version(space, place)
        key = self.record_key(space, place, version)
        actor = actor_from_wire(draft.actor).to_wire()
        at = str(stamp)
        fields: dict[str, FieldWrite] = {}
        for path, value in values.items():
            wire = value
            if value is not None and table.field_at(path).sealed:
                binding = Binding(space.space_id, draft.table, draft.id, path, at, actor)
                wire = seal_field(
                    key,
                    cls=place.cls,
                    version=version,
                    binding=binding,
                    value=value,
                    random=self.random,
                )
            fields[path] = FieldWrite(value=wire, at=at)
        change = msgspec.structs.replace(draft, fields=fields, signature=None)
        signed = table.authority or change.op == "flip"
        return self.sign(change, space.space_id) if signed else change

    def sign(self, change: ChangeMessage, space_id: str) -> ChangeMessage:
        """Return a change with this device's signature over the whole of it."""
        facts = facts_of(space_id, change)
        signature = Signature(
            signer=self.device.device_id, value=b64(sign_change(self.device.key, facts))
        )
        return msgspec.structs.replace(change, signature=signature)


class _Opener:
    """Opens the fields of one record: what they share is made once."""

    __slots__ = ("_binding", "_keys", "_place", "_sealer", "_space")

    def __init__(self, sealer: Sealer, space: SpaceKeys, place: KeyPlace, record: Record) -> None:
        self._sealer = sealer
        self._space = space
        self._place = place
        self._binding = RecordBinding(space.space_id, record.table, record.id)
        self._keys: dict[int, RecordKey] = {}

    def open(self, path: str, entry: Entry) -> Json:
        """Return what was sealed for this path; raise ManaError otherwise."""
        if not isinstance(entry.value, str):
            raise Invalid("not an envelope")
        envelope = parse_envelope(entry.value)
        if envelope.cls != self._place.cls:
            raise Invalid("an envelope of another key class")
        key = self._keys.get(envelope.version)
        if key is None:
            key = self._sealer.record_key(self._space, self._place, envelope.version)
            self._keys[envelope.version] = key
        data = self._binding.associated_data(path, entry.at, _actor_bytes(entry.actor))
        return open_envelope(key, envelope, data)


@lru_cache(maxsize=512)
def _actor_bytes(actor: Actor) -> bytes:
    return actor_bytes(actor.to_wire())
