"""The person's own reading and writing of records, by field name, and their own tool calls."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Final

from mana.device.errors import ChangeRefused, VisibilityFixed
from mana.device.opened import Opened
from mana.device.views import RefusedChange
from mana.device.writing import Flip, Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Forbidden, Invalid, NotFound
from mana.domain.ids import RecordId, require_record_id
from mana.domain.iterations import JOURNAL
from mana.domain.missions import InputRef
from mana.domain.records import View, Visibility
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.tables import DELETED_AT, Table, Text, defaults
from mana.domain.tools import Outcome
from mana.planning.dispatch import Caller, execute
from mana.protocol.messages import BATCH_CHANGES_MAX

PICKED_MAX: Final = 200
DISPLAY_NAME_MAX: Final = 80
FLIPS_MAX: Final = 4
"""How often a change of visibility is tried; somebody may write to the record in between."""
_MOVED: Final = frozenset({"flip-outdated", "stale-key"})


class RecordNotFound(NotFound):
    """There is no such record on this device."""

    code: ClassVar[str] = "RECORD_NOT_FOUND"


class OwnOperation(Forbidden):
    """Records of this table are written by operations of their own, which check more."""

    code: ClassVar[str] = "OWN_OPERATION"
    advice: ClassVar[str] = "Use the commands or pages for agents, missions and proposals."


class Editing:
    """Records of any module's table, as the person edits them."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def list(self, table: str, *, include_deleted: bool = False) -> builtins.list[View]:
        """Return the records of a table, newest written first."""
        self._opened.catalogue.table(table)
        views = await self._opened.book.views(table, include_deleted=include_deleted)
        return sorted(views, key=lambda view: (view.written_at, view.id), reverse=True)

    async def get(self, table: str, record_id: str) -> View:
        """Return one record, also a deleted one; raise RecordNotFound."""
        self._opened.catalogue.table(table)
        view = await self._opened.book.view(table, require_record_id(record_id))
        if view is None:
            raise RecordNotFound("no record of this id is on this device")
        return view

    async def create(
        self, table: str, values: Mapping[str, Json], *, visibility: Visibility = "space"
    ) -> str:
        """Create a record with these values and the table's defaults; return its id.

        `visibility` private: for its author alone; raises VisibilityFixed in a space of one
        person, where everything is.
        """
        declared = self._writable(table)
        if visibility == "private" and not self._opened.book.keys.shared:
            raise VisibilityFixed("nobody else sees what is in this space")
        merged = {**defaults(declared), **values}
        record_id = RecordId(self._opened.new_id())
        await self._commit(declared, record_id, ChangeKind.CREATE, merged, visibility)
        return record_id

    async def set_visibility(self, table: str, record_id: str, visibility: Visibility) -> None:
        """Make an own record private, or share it with the space; nothing happens if it is so.

        Waits for the hub's word: raises Offline without it, and ChangeRefused if others keep
        writing to the record meanwhile. What became private takes along what the author's own
        journal tells of it; what is shared does not, so that nobody reads what stood there
        before. Raises NotYourRecord and VisibilityFixed.
        """
        declared = self._writable(table)
        await self.get(table, record_id)
        await self._flip(lambda: self._to_flip(declared.name, record_id, visibility))
        if visibility == "private":
            await self._flip(lambda: self._journal_of(declared.name, record_id))

    async def _flip(self, planned: Callable[[], Awaitable[builtins.list[Flip]]]) -> None:
        """Commit changes of visibility; do it again on what stands now if something came first."""
        for tries_left in reversed(range(FLIPS_MAX)):
            await self._opened.book.sync_now()
            flips = await planned()
            if not flips:
                return
            try:
                await self._opened.book.commit(flips, wait=True)
            except ChangeRefused as refused:
                if not tries_left or refused.detail.get("reason") not in _MOVED:
                    raise

    async def _to_flip(
        self, table: str, record_id: str, visibility: Visibility
    ) -> builtins.list[Flip]:
        view = await self.get(table, record_id)
        return [] if view.visibility == visibility else [Flip(table, record_id, visibility)]

    async def _journal_of(self, table: str, record_id: str) -> builtins.list[Flip]:
        return [
            Flip(JOURNAL.name, view.id, "private")
            for view in await self._opened.book.views(JOURNAL.name, include_deleted=True)
            if (view.text("targetTable"), view.text("targetId")) == (table, record_id)
            and view.author_id == self._opened.account_id
            and view.visibility == "space"
        ][:BATCH_CHANGES_MAX]

    async def edit(self, table: str, record_id: str, values: Mapping[str, Json]) -> None:
        """Write these values; raise RecordNotFound, or Invalid for a value of another kind."""
        declared = self._writable(table)
        view = await self.get(table, record_id)
        changed = {
            path: value
            for path, value in values.items()
            if path not in view.values or view.values[path] != value
        }
        if changed:
            await self._commit(declared, view.id, ChangeKind.UPDATE, changed)

    async def delete(self, table: str, record_id: str) -> None:
        """Delete a record; nothing happens if it is deleted already."""
        declared = self._writable(table)
        view = await self.get(table, record_id)
        if not view.deleted:
            gone: dict[str, Json] = {DELETED_AT: self._opened.now_iso()}
            await self._commit(declared, view.id, ChangeKind.DELETE, gone)

    async def restore(self, table: str, record_id: str) -> None:
        """Bring a deleted record back; nothing happens if it is there."""
        declared = self._writable(table)
        view = await self.get(table, record_id)
        if view.deleted:
            await self._commit(declared, view.id, ChangeKind.UPDATE, {DELETED_AT: None})

    async def use_tool(self, name: str, arguments: Mapping[str, Json]) -> Outcome:
        """Run a tool as the person and apply its changes as one group."""
        opened = self._opened
        outcome = execute(
            name,
            dict(arguments),
            caller=Caller(opened.person, tainted=False),
            catalogue=opened.catalogue,
            records=await opened.snapshot(),
        )
        if outcome.changes:
            writes = [Write(change, opened.person) for change in outcome.changes]
            group = opened.new_id() if len(writes) > 1 else None
            await opened.book.commit(writes, group=group)
        return outcome

    async def inputs(self) -> builtins.list[tuple[InputRef, str]]:
        """Return what can be picked as an input: per module, newest written first."""
        found: builtins.list[tuple[InputRef, str]] = []
        for table, kind in self._opened.catalogue.inputs.items():
            module = self._opened.catalogue.module_of(table)
            picked = [
                view
                for view in await self.list(table)
                if kind.pickable(view) and self._opened.may_be_input(view)
            ]
            found += [
                (InputRef(module, table, view.id), kind.title(view)) for view in picked[:PICKED_MAX]
            ]
        return found

    async def set_display_name(self, name: str) -> None:
        """Set how the person is addressed; blank clears it."""
        shown = name.strip()
        if len(shown) > DISPLAY_NAME_MAX:
            raise Invalid(f"a name has at most {DISPLAY_NAME_MAX} characters")
        await self.write_settings({"displayName": shown or None})

    async def write_settings(self, values: Mapping[str, Json]) -> None:
        """Write to the person's settings, which are the same on every device."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        kind = ChangeKind.UPDATE if view is not None else ChangeKind.CREATE
        change = Change(SETTINGS.name, RecordId(SETTINGS_ID), kind, dict(values))
        await self._opened.book.commit([Write(change, self._opened.person)])

    async def refused(self) -> builtins.list[RefusedChange]:
        """Return what the hub refused."""
        return builtins.list(await self._opened.book.refused())

    async def retry_refused(self, change_id: str) -> None:
        """Send a refused change again."""
        await self._opened.book.retry_refused(change_id)

    async def drop_refused(self, change_id: str) -> None:
        """Forget a refused change."""
        await self._opened.book.drop_refused(change_id)

    def _writable(self, table: str) -> Table:
        declared = self._opened.catalogue.table(table)
        if declared.app_id in ("ai", SETTINGS.app_id):
            raise OwnOperation(f"records of {table} are not written directly")
        return declared

    async def _commit(
        self,
        table: Table,
        record_id: RecordId,
        kind: ChangeKind,
        values: Mapping[str, Json],
        visibility: Visibility = "space",
    ) -> None:
        cleaned: dict[str, Json] = {}
        for path, value in values.items():
            found = table.by_name.get(path.partition("/")[0])
            if found is None:
                raise Invalid(f"table {table.name} has no such field")
            if found.guarded or (found.fixed and kind is not ChangeKind.CREATE):
                raise Invalid(f"{table.name}.{found.name} cannot be written")
            if value == "" and not isinstance(found.kind, Text):
                value = None  # An empty form field: nothing is there.
            if value is not None or kind is not ChangeKind.CREATE:
                cleaned[path] = value
        change = Change(table.name, record_id, kind, cleaned)
        await self._opened.book.commit([Write(change, self._opened.person, visibility)])
