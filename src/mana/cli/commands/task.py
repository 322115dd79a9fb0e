"""`mana task`: things to do, as the page has them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Final

import typer

from mana.cli.cadences import day_from_words
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Rows
from mana.cli.records import (
    PrivateOption,
    Visible,
    VisibleArgument,
    brought_back,
    find,
    listed,
    made_visible,
    removed,
    seen_by,
    short_ids,
    shown,
    with_seen_by,
    written,
    wrote,
)
from mana.cli.text import one_line
from mana.device.desk import Device
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import View

TABLE: Final = "tasks"
UNDATED: Final = "9999-99-99"


class Priority(StrEnum):
    """How much a task matters."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    URGENT = "urgent"


class Wanted(StrEnum):
    """Which tasks a list shows."""

    OPEN = "open"
    DONE = "done"
    ALL = "all"
    DELETED = "deleted"


task = typer.Typer(help="Tasks: things to do.", no_args_is_help=True, add_completion=False)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Title, id or start of an id.")]
DueOption = Annotated[
    str | None, typer.Option("--due", help="A day: 2026-11-27, today, tomorrow or friday.")
]
PriorityOption = Annotated[Priority | None, typer.Option("--priority", help="How much it matters.")]
DescriptionOption = Annotated[str | None, typer.Option("--description", help="More about it.")]


@task.command()
@on_account(fresh=False)
async def add(
    device: Device,
    around: Surroundings,
    title: Annotated[str, typer.Argument(help="What is to be done.")],
    due: DueOption = None,
    priority: PriorityOption = None,
    description: DescriptionOption = None,
    private: PrivateOption = False,
) -> Answer:
    """Write a new task."""
    if not title.strip():
        raise Invalid("a task needs a title")
    values: dict[str, Json] = {"title": title.strip()}
    values |= _values(around, due, priority, description)
    visibility = Visible.PRIVATE if private else Visible.SPACE
    record_id = await device.create(TABLE, values, visibility=visibility.value)
    day = values.get("dueDate")
    due_words = f", due {day}" if day else ""
    words = f"Added task “{one_line(title, 80)}”{due_words}."
    return await wrote(device, "task", TABLE, record_id, words)


@task.command("list")
@on_account()
async def list_tasks(
    device: Device,
    around: Surroundings,
    wanted: Annotated[Wanted, typer.Option("--show", help="Which tasks.")] = Wanted.OPEN,
) -> Answer:
    """List tasks, the most urgent first."""
    deleted = wanted is Wanted.DELETED
    views = sorted(
        (
            view
            for view in await device.list(TABLE, include_deleted=deleted)
            if view.deleted is deleted and _is_shown(view, wanted)
        ),
        key=lambda view: (is_done(view), view.text("dueDate") or UNDATED, title_of(view)),
    )
    ids = await short_ids(device, TABLE)
    today = _today(around).isoformat()
    rows = [
        (
            ids[view.id],
            "done" if is_done(view) else "open",
            _due_words(view, today),
            view.text("priority"),
            title_of(view),
        )
        for view in views
    ]
    nothing = (
        "No open tasks. Write one: mana task add TITLE"
        if wanted is Wanted.OPEN
        else "No such tasks."
    )
    head = ("ID", "STATE", "DUE", "PRIORITY", "TITLE")
    shown_rows = with_seen_by(Rows(head, rows, flexible=4), views)
    return listed("tasks", views, shown_rows, nothing=nothing)


@task.command()
@on_account()
async def show(device: Device, around: Surroundings, named: TaskArgument) -> Answer:
    """Show a task."""
    view = await find(device, TABLE, named, what="task", title=title_of)
    facts = [
        ("Id", view.id),
        ("State", "done" if is_done(view) else "open"),
        ("Due", _due_words(view, _today(around).isoformat())),
        ("Priority", view.text("priority")),
        ("Written", written(view, now_ms=around.now_ms())),
        ("Seen by", await seen_by(device, view)),
    ]
    return shown("task", view, title_of(view), facts, view.text("description"))


@task.command()
@on_account()
async def done(
    device: Device,
    named: TaskArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Open it again.")] = False,
) -> Answer:
    """Complete a task."""
    view = await find(device, TABLE, named, what="task", title=title_of)
    if undo:
        await device.edit(TABLE, view.id, {"isCompleted": False, "completedAt": None})
        words = f"Opened task “{one_line(title_of(view), 80)}” again."
    else:
        await device.use_tool("complete_task", {"taskId": view.id})
        words = f"Completed task “{one_line(title_of(view), 80)}”."
    return await wrote(device, "task", TABLE, view.id, words)


@task.command()
@on_account()
async def edit(
    device: Device,
    around: Surroundings,
    named: TaskArgument,
    title: Annotated[str | None, typer.Option("--title", help="A new title.")] = None,
    due: DueOption = None,
    no_due: Annotated[bool, typer.Option("--no-due", help="Take the due day away.")] = False,
    priority: PriorityOption = None,
    description: DescriptionOption = None,
) -> Answer:
    """Change a task."""
    if due is not None and no_due:
        raise Invalid("--due and --no-due exclude each other")
    view = await find(device, TABLE, named, what="task", title=title_of)
    values = _values(around, due, priority, description)
    if title is not None:
        if not title.strip():
            raise Invalid("a task needs a title")
        values["title"] = title.strip()
    if no_due:
        values["dueDate"] = None
    if not values:
        raise Invalid("nothing to change was given: --title, --due, --priority or --description")
    await device.edit(TABLE, view.id, values)
    words = f"Changed task “{one_line(title or title_of(view), 80)}”."
    return await wrote(device, "task", TABLE, view.id, words)


@task.command()
@on_account()
async def delete(device: Device, named: TaskArgument) -> Answer:
    """Delete a task; it can be restored."""
    view = await find(device, TABLE, named, what="task", title=title_of)
    return await removed(device, view, name="task", shown_title=one_line(title_of(view), 80))


@task.command()
@on_account()
async def restore(device: Device, named: TaskArgument) -> Answer:
    """Bring a deleted task back."""
    view = await find(device, TABLE, named, what="deleted task", title=title_of, deleted=True)
    return await brought_back(device, view, name="task", shown_title=one_line(title_of(view), 80))


@task.command()
@on_account()
async def visibility(device: Device, named: TaskArgument, to: VisibleArgument) -> Answer:
    """Say who sees a task of yours in a shared space. Needs the hub."""
    view = await find(device, TABLE, named, what="task", title=title_of)
    title = one_line(title_of(view), 80)
    return await made_visible(device, view, to, name="task", shown_title=title)


def title_of(view: View) -> str:
    """Return what is to be done."""
    return view.text("title").strip() or "untitled"


def is_done(view: View) -> bool:
    """Say whether the task is completed."""
    return view.values.get("isCompleted") is True


def _is_shown(view: View, wanted: Wanted) -> bool:
    if wanted is Wanted.OPEN:
        return not is_done(view)
    return wanted is not Wanted.DONE or is_done(view)


def _due_words(view: View, today: str) -> str:
    day = view.text("dueDate")
    if not day:
        return ""
    if day == today:
        return f"{day} today"
    return f"{day} overdue" if day < today and not is_done(view) else day


def _today(around: Surroundings) -> date:
    return datetime.fromtimestamp(around.now_ms() / 1_000, tz=UTC).astimezone().date()


def _values(
    around: Surroundings, due: str | None, priority: Priority | None, description: str | None
) -> dict[str, Json]:
    values: dict[str, Json] = {}
    if due is not None:
        values["dueDate"] = day_from_words(due, today=_today(around))
    if priority is not None:
        values["priority"] = priority.value
    if description is not None:
        values["description"] = description
    return values
