"""What a person wrote on this device and something newer of another replaced: shown, and offered.

The newer edit stands; nothing is asked before it does. Both values are kept here as they
travelled, sealed, until the person dismisses or restores them, or for 30 days.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from mana.device.records import RecordBook
from mana.device.renewals import open_entry
from mana.device.replica import Overwritten
from mana.device.views import ConflictView, Notice, OverwrittenField
from mana.device.writing import Write
from mana.domain.actors import Actor, person
from mana.domain.agents import AGENTS
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError, NotFound
from mana.domain.ids import RecordId
from mana.domain.records import Record, View
from mana.domain.spaces import MEMBER_NAMES

_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class ConflictGone(NotFound):
    """What was overwritten is not kept any more: it was dismissed, restored or written anew."""

    code = "CONFLICT_GONE"
    advice = "Look at the record; the newest value stands there."


class Conflicts:
    """The overwritten edits of one account's person on this device, over all its spaces."""

    def __init__(self, book: RecordBook) -> None:
        self._book = book

    async def list(self) -> Sequence[ConflictView]:
        """Return what was overwritten, newest first. What stands no more is forgotten."""
        replica = self._book.inner().replica
        views = []
        for row in await replica.read(lambda tx: tx.overwritten()):
            view = await self._view(row)
            if view is None:
                await self._forget(row.number)
            else:
                views.append(view)
        return views

    async def restore(self, conflict_id: str) -> Sequence[str]:
        """Write again what the person had written; return the change ids.

        An ordinary write of now, so it is newer than what replaced it. It leaves out what this
        device wrote anew meanwhile. Raises ConflictGone; if the write fails, the conflict stays.
        """
        row = await self._find(conflict_id)
        book = self._book.in_space(row.space)
        held = await book.record(row.table, row.record_id)
        if held is None:
            raise ConflictGone("the record is not here any more")
        values: dict[str, Json] = {}
        for path in self._standing(row, held):
            opened, value = open_entry(
                self._book.inner().sealer, row.space, held, path, row.was[path]
            )
            if opened:
                values[path] = value
        change = Change(row.table, RecordId(row.record_id), ChangeKind.UPDATE, values)
        written = await book.commit([Write(change, person(book.account_id))])
        await self._forget(row.number)
        self._book.inner().syncer.say(Notice("conflicts"))
        return written

    async def dismiss(self, conflict_id: str) -> None:
        """Forget what was overwritten; raise ConflictGone if that is so already."""
        row = await self._find(conflict_id)
        await self._forget(row.number)
        self._book.inner().syncer.say(Notice("conflicts"))

    async def _find(self, conflict_id: str) -> Overwritten:
        rows = await self._book.inner().replica.read(lambda tx: tx.overwritten())
        for row in rows:
            if str(row.number) == conflict_id and await self._view(row) is not None:
                return row
        raise ConflictGone("nothing of this id was overwritten")

    async def _forget(self, number: int) -> None:
        await self._book.inner().replica.write(lambda tx: tx.drop_overwritten(number))

    def _standing(self, row: Overwritten, held: Record) -> Sequence[str]:
        """Return the paths that this device did not write anew since."""
        device_id = self._book.device_id
        return [
            path
            for path, now in row.now.items()
            if path in row.was
            and not (
                path in held.entries
                and held.entries[path].at > now.at
                and held.entries[path].at.endswith(device_id)
            )
        ]

    async def _view(self, row: Overwritten) -> ConflictView | None:
        try:
            book = self._book.in_space(row.space)
            table = book.catalogue.table(row.table)
            held = await book.record(row.table, row.record_id)
            shown = await book.view(row.table, row.record_id)
        except ManaError:
            return None
        if held is None or shown is None or held.deleted:
            return None
        sealer = self._book.inner().sealer
        fields = []
        newest = ""
        by: Actor | None = None
        for path in sorted(self._standing(row, held)):
            could, was = open_entry(sealer, row.space, held, path, row.was[path])
            entry = held.entries.get(path, row.now[path])
            _, now = open_entry(sealer, row.space, held, path, entry)
            if not could or was == now:
                continue
            try:
                name = table.field_at(path).name
            except Invalid:
                continue
            fields.append(OverwrittenField(name, label_of(name), _shown(was), _shown(now)))
            if entry.at > newest:
                newest, by = entry.at, entry.actor
        if by is None:
            return None
        return ConflictView(
            conflict_id=str(row.number),
            space_id=row.space,
            table=row.table,
            record_id=row.record_id,
            title=_title(shown, table.title_field),
            by=await self._name(book, by),
            at_ms=row.at_ms,
            fields=tuple(fields),
        )

    async def _name(self, book: RecordBook, actor: Actor) -> str:
        """Return who wrote it, in words; empty for a person or agent that is not known here."""
        if actor.kind == "user" and actor.principal_id == book.account_id:
            return "you, on another device"
        table = MEMBER_NAMES.name if actor.kind == "user" else AGENTS.name
        field = "displayName" if actor.kind == "user" else "name"
        try:
            view = await book.view(table, actor.principal_id)
        except ManaError:
            return ""
        return view.text(field) if view is not None else ""


def label_of(name: str) -> str:
    """Return a field's name as a person reads it: `dueDate` as `Due date`."""
    words = _WORD.sub(" ", name).lower()
    return words[:1].upper() + words[1:]


def _shown(value: Json) -> Json:
    """Return an element of a list without its position."""
    if isinstance(value, dict) and set(value) == {"position", "value"}:
        return value["value"]
    return value


def _title(view: View, field: str | None) -> str:
    return view.text(field) if field is not None else ""
