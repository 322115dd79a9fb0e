"""What the notes module declares."""

from __future__ import annotations

from typing import Final

from mana.domain.manifest import InputKind, ModuleManifest
from mana.domain.records import View
from mana.modules.notes.tables import NOTES
from mana.modules.notes.tools import (
    ADD_TAG_TO_NOTE,
    APPEND_TO_NOTE,
    CREATE_NOTE,
    LIST_NOTES,
    UPDATE_NOTE,
    shorten,
    title_of,
)

INPUT_MAX: Final = 20_000


def _content(view: View) -> str:
    return shorten(view.text("content"), INPUT_MAX)


def _pickable(view: View) -> bool:
    return not view.deleted and view.values.get("isArchived") is not True


MANIFEST: Final = ModuleManifest(
    id="notes",
    label="Notes",
    icon="note",
    tables=(NOTES,),
    tools=(CREATE_NOTE, UPDATE_NOTE, APPEND_TO_NOTE, ADD_TAG_TO_NOTE, LIST_NOTES),
    inputs=(InputKind(NOTES, title=title_of, content=_content, pickable=_pickable),),
)
