"""What the to-do module declares."""

from __future__ import annotations

from typing import Final

from mana.domain.manifest import InputKind, ModuleManifest
from mana.domain.records import View
from mana.modules.todo.tables import TASKS
from mana.modules.todo.tools import (
    COMPLETE_TASK,
    COMPLETE_TASKS_BY_TITLE,
    CREATE_TASK,
    GET_TASK_STATS,
    LIST_TASKS,
    is_completed,
)

INPUT_MAX: Final = 2_000


def _content(view: View) -> str:
    """Return `[status] title — description (due: day)`, cut with an ellipsis at the limit."""
    status = "completed" if is_completed(view) else "open"
    description = f" — {view.text('description')}" if view.text("description") else ""
    due = f" (due: {view.text('dueDate')})" if view.text("dueDate") else ""
    room = INPUT_MAX - len(due)
    text = f"[{status}] {view.text('title')}{description}"
    return (text if len(text) <= room else text[: room - 1] + "…") + due


def _pickable(view: View) -> bool:
    return not view.deleted and not is_completed(view)


MANIFEST: Final = ModuleManifest(
    id="todo",
    label="To-do",
    icon="check",
    tables=(TASKS,),
    tools=(CREATE_TASK, COMPLETE_TASK, COMPLETE_TASKS_BY_TITLE, GET_TASK_STATS, LIST_TASKS),
    inputs=(
        InputKind(
            TASKS, title=lambda view: view.text("title"), content=_content, pickable=_pickable
        ),
    ),
)
