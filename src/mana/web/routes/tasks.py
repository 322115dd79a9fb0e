"""Tasks: add in one line, check off, change, delete, bring back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import View
from mana.web.routes.sharing import author_name, set_visibility
from mana.web.showing import title
from mana.web.visits import Named, Page, Visiting, record_id, text_of, visibility_of
from mana.web.words import t

TABLE: Final = "tasks"
PRIORITIES: Final = ("low", "medium", "high", "urgent")
DONE_SHOWN: Final = 30


def task_lists(views: Sequence[View]) -> tuple[list[View], list[View]]:
    """Return the open tasks, the most urgent first, and the newest done ones."""
    still_open = [view for view in views if view.values.get("isCompleted") is not True]
    done = [view for view in views if view.values.get("isCompleted") is True]
    done.sort(key=lambda view: view.text("completedAt"), reverse=True)
    return sorted(still_open, key=_urgency), done[:DONE_SHOWN]


def _urgency(view: View) -> tuple[str, int, str]:
    priority = view.text("priority")
    rank = PRIORITIES.index(priority) if priority in PRIORITIES else 1
    return (view.text("dueDate") or "9999", -rank, view.text("title").casefold())


@get("/tasks")
async def tasks(visit: Visiting) -> Page:
    """List the tasks, open ones first."""
    still_open, done = task_lists(await visit.device.list(TABLE))
    return await visit.page("tasks.html", tasks=still_open, done=done)


@get("/tasks/{task_id:str}")
async def task(visit: Visiting, task_id: Named) -> Page:
    """Show one task, ready to be changed."""
    found = await visit.device.get(TABLE, record_id(task_id))
    return await visit.page("task.html", task=found, by=await author_name(visit, found))


@post("/tasks")
async def add_task(visit: Visiting) -> Page:
    """Add a task."""
    form = await visit.form()
    typed = _values(form)
    values = {name: value for name, value in typed.items() if value not in (None, "")}
    await visit.device.create(
        TABLE, {**values, "isCompleted": False}, visibility=visibility_of(form)
    )
    return visit.go(visit.back(form, "/tasks"))


@post("/tasks/{task_id:str}")
async def save_task(visit: Visiting, task_id: Named) -> Page:
    """Write a task's changes."""
    form = await visit.form()
    found = await visit.device.get(TABLE, record_id(task_id))
    changed = {
        name: value
        for name, value in _values(form).items()
        if (found.values.get(name) or None) != (value or None)
    }
    if changed:
        await visit.device.edit(TABLE, found.id, changed)
    return visit.go(visit.back(form, "/tasks"), t("Saved."))


@post("/tasks/{task_id:str}/check")
async def check_task(visit: Visiting, task_id: Named) -> Page:
    """Check a task off, or open it again."""
    form = await visit.form()
    found = await visit.device.get(TABLE, record_id(task_id))
    done = found.values.get("isCompleted") is not True
    at = datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values: dict[str, Json] = {"isCompleted": done, "completedAt": at if done else None}
    await visit.device.edit(TABLE, found.id, values)
    if not done:
        return visit.go(visit.back(form, "/tasks"))
    said = t("“{title}” is done.", title=title(found))
    return visit.go(visit.back(form, "/tasks"), said, undo=visit.to(f"/tasks/{task_id}/check"))


@post("/tasks/{task_id:str}/delete")
async def delete_task(visit: Visiting, task_id: Named) -> Page:
    """Delete a task; it can be brought back."""
    form = await visit.form()
    found = await visit.device.get(TABLE, record_id(task_id))
    await visit.device.delete(TABLE, found.id)
    said = t("“{title}” is deleted.", title=title(found))
    return visit.go(visit.back(form, "/tasks"), said, undo=visit.to(f"/tasks/{task_id}/restore"))


@post("/tasks/{task_id:str}/restore")
async def restore_task(visit: Visiting, task_id: Named) -> Page:
    """Bring a deleted task back."""
    await visit.device.restore(TABLE, record_id(task_id))
    return visit.go(visit.to("/tasks"), t("The task is back."))


@post("/tasks/{task_id:str}/visibility")
async def set_task_visibility(visit: Visiting, task_id: Named) -> Page:
    """Make a task private, or share it with its space."""
    form = await visit.form()
    return await set_visibility(visit, form, TABLE, task_id)


def _values(form: FormMultiDict) -> dict[str, Json]:
    named = text_of(form, "title").strip()
    if not named:
        raise Invalid("a task needs a title")
    values: dict[str, Json] = {"title": named, "dueDate": text_of(form, "dueDate") or None}
    priority = text_of(form, "priority")
    values["priority"] = priority if priority in PRIORITIES else "medium"
    if "description" in form:
        values["description"] = text_of(form, "description")
    return values


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    tasks,
    task,
    add_task,
    save_task,
    check_task,
    delete_task,
    restore_task,
    set_task_visibility,
)
