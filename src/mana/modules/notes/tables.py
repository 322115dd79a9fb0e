"""The table of notes. Every field is sealed: the hub needs none of them."""

from __future__ import annotations

from typing import Final

from mana.domain.tables import Flag, Table, Text, sealed

TITLE_MAX: Final = 200
CONTENT_MAX: Final = 50_000

NOTES: Final = Table(
    name="notes",
    app_id="notes",
    title_field="title",
    described="Titled texts.",
    fields=(
        sealed("title", Text(TITLE_MAX)),
        sealed("content", Text(CONTENT_MAX)),
        sealed("color", Text(16)),
        sealed("transcriptModel", Text(80)),
        sealed("isPinned", Flag()),
        sealed("isArchived", Flag()),
        sealed("isSpaceContext", Flag()),
    ),
)
