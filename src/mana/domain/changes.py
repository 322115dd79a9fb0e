"""A change as it is planned: one record's written fields, opened, not yet stamped.

Tools return these. Who applies one stamps it, seals it and puts it on the wire
(`mana.protocol.messages.ChangeMessage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mana.domain.encoding import Json
from mana.domain.ids import RecordId


class ChangeKind(Enum):
    """What a change does to its record; the value is the wire's `op`."""

    CREATE = "insert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """Written values by path. `guards` holds, by guarded path, the value that must stand."""

    table: str
    record_id: RecordId
    kind: ChangeKind
    values: Mapping[str, Json]
    guards: Mapping[str, Json] = field(default_factory=dict)
