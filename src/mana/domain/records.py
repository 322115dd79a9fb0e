"""Records as they are stored and as tools see them.

A stored record maps paths to entries, sealed or plain, each with its stamp, actor and origin.
A `View` is the same record opened: values by field name, for people, tools and prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from mana.domain.actors import Actor, Origin
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import NotFound
from mana.domain.ids import RecordId
from mana.domain.tables import DELETED_AT, Shape, Table, defaults

Visibility = Literal["space", "private"]
VISIBILITIES: Final = ("space", "private")
_SEALED: Final = re.compile(r"enc:2:([spm])([1-9][0-9]{0,8}):")


def key_version(value: Json) -> int:
    """Return the key version that a sealed wire value names; 0 for a plain one."""
    if isinstance(value, str) and (match := _SEALED.match(value)):
        return int(match[2])
    return 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a record as it travels: the wire value and who wrote it when."""

    value: Json
    at: str
    actor: Actor
    origin: Origin
    change_id: str


@dataclass(frozen=True, slots=True)
class Record:
    """One stored record. `entries` by path; see `merge.py` for how two meet."""

    table: str
    id: RecordId
    author_id: str
    visibility: Visibility
    entries: Mapping[str, Entry]

    @property
    def deleted(self) -> bool:
        """Say whether the tombstone is set."""
        entry = self.entries.get(DELETED_AT)
        return entry is not None and entry.value is not None

    @property
    def edited_after_delete(self) -> bool:
        """Say whether an edit is newer than the tombstone, so that restore is offered."""
        entry = self.entries.get(DELETED_AT)
        if entry is None or entry.value is None:
            return False
        return any(other.at > entry.at for other in self.entries.values())


@dataclass(frozen=True, slots=True)
class View:
    """One opened record. `stamps` and `actors` are by path, `values` by field name.

    `sealed_fields` names fields whose value could not be opened here.
    """

    table: str
    id: RecordId
    values: Mapping[str, Json]
    stamps: Mapping[str, str] = field(default_factory=dict)
    actors: Mapping[str, Actor] = field(default_factory=dict)
    author_id: str = ""
    visibility: Visibility = "space"
    deleted: bool = False
    restorable: bool = False
    sealed_fields: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """Return a field as text, empty if it is absent or not text."""
        value = self.values.get(name)
        return value if isinstance(value, str) else ""

    @property
    def written_at(self) -> str:
        """Return the newest stamp, which is when the record was last written."""
        return max(self.stamps.values(), default="")

    @property
    def created_at(self) -> str:
        """Return the oldest stamp that survives, an upper bound of the creation."""
        return min(self.stamps.values(), default="")


def assemble(table: Table, opened: Mapping[str, Json]) -> dict[str, Json]:
    """Return values by field name from opened values by path."""
    values: dict[str, Json] = {}
    elements: dict[str, list[tuple[str, Json]]] = {}
    by_name = table.by_name
    for path, value in sorted(opened.items()):
        declared = by_name.get(path) or table.field_at(path)
        if declared.shape is Shape.VALUE:
            values[path] = value
        elif value is not None:
            elements.setdefault(declared.name, []).append((path.partition("/")[2], value))
    for name, found in elements.items():
        shape = table.by_name[name].shape
        if shape is Shape.COUNTER:
            values[name] = sum(value for _, value in found if isinstance(value, int | float))
        elif shape is Shape.SET:
            unique = {canonical_json(value): value for _, value in found}
            values[name] = [unique[key] for key in sorted(unique)]
        else:
            ordered = (
                sorted(
                    (str(value["position"]), element, value["value"])
                    for element, value in found
                    if isinstance(value, dict)
                )
                if all(isinstance(value, dict) for _, value in found)
                else []
            )
            values[name] = [value for _, _, value in ordered]
    return values


class Records(Protocol):
    """What a tool may read: the records of one space that its caller may see."""

    @property
    def today(self) -> str:
        """Return the current day in the person's zone, `YYYY-MM-DD`."""

    @property
    def now(self) -> str:
        """Return the current moment, ISO with milliseconds and Z."""

    def get(self, table: Table, record_id: str) -> View:
        """Return one live record; raise NotFound otherwise."""

    def all(self, table: Table) -> Sequence[View]:
        """Return the live records, newest written first."""

    def new(self, table: Table, values: Mapping[str, Json]) -> Change:
        """Return the change that creates a record with these values and the defaults."""

    def edit(self, view: View, values: Mapping[str, Json]) -> Change:
        """Return the change that writes these values to an existing record."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Records over opened views in memory, the same for device, runner and tests.

    `load` returns the live and dead views of a table; `new_id` is asked once per new record.
    """

    load: Callable[[Table], Sequence[View]]
    new_id: Callable[[], RecordId]
    today: str
    now: str

    def get(self, table: Table, record_id: str) -> View:
        """Return one live record; raise NotFound otherwise."""
        for view in self.load(table):
            if view.id == record_id and not view.deleted:
                return view
        raise NotFound(f"no record of {table.name} with this id can be read here")

    def all(self, table: Table) -> Sequence[View]:
        """Return the live records, newest written first."""
        live = [view for view in self.load(table) if not view.deleted]
        return sorted(live, key=lambda view: (view.written_at, view.id), reverse=True)

    def new(self, table: Table, values: Mapping[str, Json]) -> Change:
        """Return the change that creates a record with these values and the defaults."""
        merged = {**defaults(table), **values}
        for path, value in merged.items():
            table.check(path, value)
        return Change(table.name, self.new_id(), ChangeKind.CREATE, merged)

    def edit(self, view: View, values: Mapping[str, Json]) -> Change:
        """Return the change that writes these values to an existing record."""
        return Change(view.table, view.id, ChangeKind.UPDATE, dict(values))


def with_changes(views: Sequence[View], table: Table, changes: Sequence[Change]) -> list[View]:
    """Return the views as they would be after the changes, for previews and later steps."""
    found = {view.id: view for view in views}
    for change in changes:
        if change.table != table.name:
            continue
        old = found.get(change.record_id, View(table.name, change.record_id, {}))
        values = {**old.values, **change.values}
        found[change.record_id] = replace(
            old, values=values, deleted=values.get(DELETED_AT) is not None
        )
    return list(found.values())
