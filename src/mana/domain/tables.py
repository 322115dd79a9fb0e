"""Declarations of tables: which fields there are, of what kind, and which the hub may read.

A module declares; storage, sync, sealing, forms, schema for the model and export follow from
the declaration. Names are those of the wire, unchanged; sealed is the default, and a plain
field gives the reason, which the docs print.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final, Literal, Protocol, TypeAlias

from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_ELEMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
DELETED_AT: Final = "deletedAt"


class Kind(Protocol):
    """What one value of a field may be. `check` raises Invalid and returns nothing."""

    def check(self, value: Json) -> None:
        """Raise Invalid if `value` is not of this kind."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `max_length` characters."""

    max_length: int

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is a string within the limit."""
        if not isinstance(value, str) or len(value) > self.max_length:
            raise Invalid(f"expected text of at most {self.max_length} characters")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a fixed list of words."""

    values: tuple[str, ...]

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is one of the words."""
        if value not in self.values:
            raise Invalid("expected one of: " + ", ".join(self.values))


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is a boolean."""
        if not isinstance(value, bool):
            raise Invalid("expected true or false")


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer within bounds, both included."""

    low: int
    high: int

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is an integer within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid("expected a whole number")
        if not self.low <= value <= self.high:
            raise Invalid(f"expected a whole number from {self.low} to {self.high}")


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number."""

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is a finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid("expected a number")
        # Of a whole number that no float holds, `isfinite` cannot even be asked.
        if abs(value) > sys.float_info.max or not math.isfinite(value):
            raise Invalid("expected a finite number")


@dataclass(frozen=True, slots=True)
class Day:
    """A calendar day, `YYYY-MM-DD`, in the person's own zone."""

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is a day that exists."""
        if not isinstance(value, str) or not _DAY.fullmatch(value):
            raise Invalid("expected a day like 2026-11-21")
        parse_iso_ms(f"{value}T00:00:00.000Z")


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant, `YYYY-MM-DDTHH:MM:SS.mmmZ`."""

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is an instant that exists."""
        if not isinstance(value, str):
            raise Invalid("expected a moment like 2026-11-21T05:23:00.123Z")
        parse_iso_ms(value)


@dataclass(frozen=True, slots=True)
class Identifier:
    """The id of something else: at most 128 characters, no spaces."""

    def check(self, value: Json) -> None:
        """Raise Invalid unless this can be an id."""
        if not isinstance(value, str) or not 0 < len(value) <= 128 or value.split() != [value]:
            raise Invalid("expected an id")


@dataclass(frozen=True, slots=True)
class Document:
    """Any JSON value of at most `max_bytes` in canonical form; it merges as one value."""

    max_bytes: int

    def check(self, value: Json) -> None:
        """Raise Invalid unless this is JSON within the limit."""
        if len(canonical_json(value)) > self.max_bytes:
            raise Invalid(f"expected a value of at most {self.max_bytes} bytes")


class Shape(Enum):
    """How the entries of one field merge (DESIGN 5, *Merge*)."""

    VALUE = "value"
    SET = "set"
    LIST = "list"
    COUNTER = "counter"


Writers: TypeAlias = Literal["members", "managers", "self"]
"""Whose roles write a table: whoever may write in the space; its owners and admins; or each
account the one record that bears its id."""


class Sealing(Enum):
    """Which key a table's sealed fields take (docs/protocol/crypto.md, *Record keys*)."""

    SPACE = "space"
    """The record's own key, under the space key, or the author's where it is private."""
    MISSION = "mission"
    """The record's own key under the mission key of the plain field `missionId`."""
    TARGET = "target"
    """The key of the record named by the plain fields `targetTable` and `targetId`."""


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field. `because` is empty exactly for sealed fields."""

    name: str
    kind: Kind
    because: str = ""
    shape: Shape = Shape.VALUE
    guarded: bool = False
    fixed: bool = False
    default: Json = None

    @property
    def sealed(self) -> bool:
        """Say whether the hub must never see this field's value."""
        return not self.because

    def check(self, value: Json) -> None:
        """Raise Invalid unless an opened value may stand at a path of this field. None clears."""
        if value is None:
            return
        if self.shape is Shape.LIST:
            if not isinstance(value, dict) or set(value) != {"position", "value"}:
                raise Invalid("a list element is {position, value}")
            Text(64).check(value["position"])
            value = value["value"]
        self.kind.check(value)


def sealed(name: str, kind: Kind, *, shape: Shape = Shape.VALUE, default: Json = None) -> Field:
    """Declare a field that leaves the device only encrypted."""
    return Field(name, kind, shape=shape, default=default)


def plain(
    name: str,
    kind: Kind,
    *,
    because: str,
    fixed: bool = False,
    shape: Shape = Shape.VALUE,
    default: Json = None,
) -> Field:
    """Declare a field that the hub can read, with the reason. `fixed`: never changes."""
    if not because:
        raise Invalid(f"plain field {name} gives no reason")
    return Field(name, kind, because=because, shape=shape, fixed=fixed, default=default)


def guarded(name: str, kind: Kind, *, because: str, default: Json = None) -> Field:
    """Declare a plain field that changes only by compare-and-set on the hub."""
    if not because:
        raise Invalid(f"guarded field {name} gives no reason")
    return Field(name, kind, because=because, guarded=True, default=default)


TOMBSTONE: Final = plain(
    DELETED_AT, Moment(), because="the hub keeps tombstones apart from live records"
)


@dataclass(frozen=True)
class Table:
    """A declared table. `authority`: its changes carry a device's signature."""

    name: str
    app_id: str
    fields: tuple[Field, ...]
    sealing: Sealing = Sealing.SPACE
    authority: bool = False
    agents_may_write: bool = True
    written_by: Writers = "members"
    title_field: str | None = None
    described: str = ""

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        """Return the declared fields and the tombstone, by name."""
        found = {declared.name: declared for declared in (*self.fields, TOMBSTONE)}
        if len(found) != len(self.fields) + 1:
            raise Invalid(f"table {self.name} declares a field twice")
        return found

    @property
    def flips(self) -> bool:
        """Say whether the author of a record may change who sees it."""
        # What decides is decided before everybody, under a mission's key or a signature, and
        # how a space and its members are called is theirs to read.
        return (
            not self.authority
            and self.sealing is not Sealing.MISSION
            and self.written_by == "members"
        )

    def field_at(self, path: str) -> Field:
        """Return the field that a path belongs to; raise Invalid if there is none.

        A path is the field's name, or `<field>/<element>` for sets, lists and counters.
        """
        found = self.by_name.get(path)
        if found is not None and found.shape is Shape.VALUE:
            return found
        name, slash, element = path.partition("/")
        found = self.by_name.get(name)
        if found is None:
            raise Invalid(f"table {self.name} has no such field")
        if (found.shape is Shape.VALUE) == bool(slash):
            raise Invalid(f"path of {self.name}.{name} has the wrong form")
        if slash and not _ELEMENT.fullmatch(element):
            raise Invalid(f"element of {self.name}.{name} is malformed")
        return found

    def check(self, path: str, value: Json) -> None:
        """Raise Invalid unless an opened value may stand at this path. None clears."""
        self.field_at(path).check(value)


def defaults(table: Table) -> dict[str, Json]:
    """Return the values that a new record of this table starts with."""
    return {
        declared.name: declared.default
        for declared in table.fields
        if declared.shape is Shape.VALUE and declared.default is not None
    }
