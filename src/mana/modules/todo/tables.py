"""The table of tasks. Every field is sealed: the hub needs none of them."""

from __future__ import annotations

from typing import Final

from mana.domain.tables import (
    Choice,
    Day,
    Document,
    Flag,
    Identifier,
    Moment,
    Number,
    Shape,
    Table,
    Text,
    Whole,
    sealed,
)

TITLE_MAX: Final = 200
DESCRIPTION_MAX: Final = 10_000
PRIORITIES: Final = ("low", "medium", "high", "urgent")

TASKS: Final = Table(
    name="tasks",
    app_id="todo",
    title_field="title",
    described="Things to do.",
    fields=(
        sealed("title", Text(TITLE_MAX)),
        sealed("description", Text(DESCRIPTION_MAX)),
        sealed("projectId", Identifier()),
        sealed("priority", Choice(PRIORITIES), default="medium"),
        sealed("isCompleted", Flag(), default=False),
        sealed("completedAt", Moment()),
        sealed("dueDate", Day()),
        sealed("scheduledBlockId", Identifier()),
        sealed("estimatedDuration", Whole(0, 366 * 24 * 60 * 60)),
        sealed("order", Number()),
        sealed("subtasks", Document(2_048), shape=Shape.LIST),
        sealed("transcriptModel", Text(80)),
        sealed("metadata", Document(8_192)),
    ),
)
