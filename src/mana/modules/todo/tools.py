"""What an agent or a person can ask of tasks. Nothing here writes: changes are returned."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid, NotFound
from mana.domain.records import Records, View
from mana.domain.tools import Call, Outcome, Tool
from mana.modules.todo.tables import DESCRIPTION_MAX, PRIORITIES, TASKS, TITLE_MAX

LIST_MAX: Final = 200
LIST_DEFAULT: Final = 50
MATCHES_MAX: Final = 50
_EXCERPT_MAX: Final = 300

TaskId = Annotated[str, Meta(min_length=1, max_length=128, description="Id of the task.")]


class AlreadyCompleted(Conflict):
    """The task was completed before."""

    code = "ALREADY_COMPLETED"
    advice = "Nothing is to be done."


class CreateTask(Call, frozen=True):
    """Parameters of `create_task`."""

    title: Annotated[
        str, Meta(min_length=1, max_length=TITLE_MAX, description="What is to be done.")
    ]
    due_date: (
        Annotated[
            str,
            Meta(
                min_length=10,
                max_length=10,
                pattern=r"^\d{4}-\d{2}-\d{2}$",
                description="Day by which it is due, YYYY-MM-DD.",
            ),
        ]
        | None
    ) = None
    priority: Literal["low", "medium", "high", "urgent"] | None = None
    description: (
        Annotated[str, Meta(max_length=DESCRIPTION_MAX, description="More about it.")] | None
    ) = None


class CompleteTask(Call, frozen=True):
    """Parameters of `complete_task`."""

    task_id: TaskId


class CompleteTasksByTitle(Call, frozen=True):
    """Parameters of `complete_tasks_by_title`."""

    title_match: Annotated[
        str, Meta(min_length=2, max_length=TITLE_MAX, description="Part of the title.")
    ]


class GetTaskStats(Call, frozen=True):
    """`get_task_stats` has no parameters."""


class ListTasks(Call, frozen=True):
    """Parameters of `list_tasks`."""

    filter: Literal["open", "completed", "overdue", "today", "all"] = "open"
    limit: Annotated[int, Meta(ge=1, le=LIST_MAX, description="How many at most.")] = LIST_DEFAULT


def is_completed(view: View) -> bool:
    """Say whether the task is done."""
    return view.values.get("isCompleted") is True


def is_overdue(view: View, today: str) -> bool:
    """Say whether an open task's day has passed."""
    due = view.text("dueDate")
    return not is_completed(view) and bool(due) and due < today


def _urgency(view: View) -> tuple[str, int, str, str]:
    """Return the order of tasks: by day, the undated last, then priority and title."""
    priority = view.text("priority") or "medium"
    rank = PRIORITIES.index(priority) if priority in PRIORITIES else 1
    return (view.text("dueDate") or "9999-99-99", -rank, view.text("title").casefold(), view.id)


def create_task(call: CreateTask, records: Records) -> Outcome:
    """Plan one new open task."""
    title = call.title.strip()
    if not title:
        raise Invalid("create_task needs a title that is not blank")
    given: dict[str, Json] = {
        "title": title,
        "dueDate": call.due_date,
        "priority": call.priority,
        "description": call.description,
    }
    change = records.new(TASKS, {name: value for name, value in given.items() if value is not None})
    return Outcome("The task is created.", {"taskId": change.record_id}, (change,))


def complete_task(call: CompleteTask, records: Records) -> Outcome:
    """Plan to complete an open task."""
    view = records.get(TASKS, call.task_id)
    if is_completed(view):
        raise AlreadyCompleted("the task is already completed")
    change = records.edit(view, {"isCompleted": True, "completedAt": records.now})
    return Outcome("The task is completed.", {"taskId": view.id}, (change,))


def _matching(call: CompleteTasksByTitle, records: Records) -> list[View]:
    """Return the open tasks whose title holds the text; raise NotFound if there are none."""
    wanted = call.title_match.strip().casefold()
    if not wanted:
        raise Invalid("complete_tasks_by_title needs a text that is not blank")
    found = [
        view
        for view in records.all(TASKS)
        if not is_completed(view) and wanted in view.text("title").casefold()
    ]
    if not found:
        raise NotFound("no open task has a title like this")
    if len(found) > MATCHES_MAX:
        raise Invalid(f"more than {MATCHES_MAX} open tasks have a title like this")
    return sorted(found, key=_urgency)


def complete_tasks_by_title(call: CompleteTasksByTitle, records: Records) -> Outcome:
    """Plan to complete every open task whose title holds the text."""
    found = _matching(call, records)
    changes = tuple(
        records.edit(view, {"isCompleted": True, "completedAt": records.now}) for view in found
    )
    ids: list[Json] = [view.id for view in found]
    return Outcome(f"Tasks completed: {len(found)}.", {"taskIds": ids}, changes)


def get_task_stats(call: GetTaskStats, records: Records) -> Outcome:
    """Answer how many tasks are open, done, overdue, due today and undated."""
    tasks = records.all(TASKS)
    still_open = [view for view in tasks if not is_completed(view)]
    today = records.today
    stats: dict[str, Json] = {
        "total": len(tasks),
        "open": len(still_open),
        "completed": len(tasks) - len(still_open),
        "overdue": sum(is_overdue(view, today) for view in still_open),
        "today": sum(view.text("dueDate") == today for view in still_open),
        "undated": sum(not view.text("dueDate") for view in still_open),
    }
    return Outcome(f"{stats['open']} tasks are open, {stats['overdue']} of them overdue.", stats)


def _listed(view: View, wanted: str, today: str) -> bool:
    if wanted == "completed":
        return is_completed(view)
    if wanted == "overdue":
        return is_overdue(view, today)
    if wanted == "today":
        return not is_completed(view) and view.text("dueDate") == today
    return wanted == "all" or not is_completed(view)


def list_tasks(call: ListTasks, records: Records) -> Outcome:
    """Answer with tasks, the most urgent first."""
    today = records.today
    found = sorted(
        (view for view in records.all(TASKS) if _listed(view, call.filter, today)), key=_urgency
    )
    tasks: list[Json] = [
        {
            "taskId": view.id,
            "title": view.text("title"),
            "dueDate": view.text("dueDate") or None,
            "priority": view.text("priority") or "medium",
            "isCompleted": is_completed(view),
            "isOverdue": is_overdue(view, today),
            "description": view.text("description")[:_EXCERPT_MAX],
        }
        for view in found[: call.limit]
    ]
    return Outcome(f"{len(tasks)} of {len(found)} tasks.", {"tasks": tasks, "total": len(found)})


def _create_sentence(call: CreateTask, records: Records) -> str:
    due = f", due {call.due_date}" if call.due_date else ""
    priority = f", priority {call.priority}" if call.priority else ""
    return f"Add task “{call.title.strip()}”{due}{priority}"


def _complete_sentence(call: CompleteTask, records: Records) -> str:
    return f"Complete task “{records.get(TASKS, call.task_id).text('title')}”"


def _complete_all_sentence(call: CompleteTasksByTitle, records: Records) -> str:
    found = _matching(call, records)
    named = ", ".join(f"“{view.text('title')}”" for view in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"Complete {'task' if len(found) == 1 else 'tasks'} {named}{more}"


CREATE_TASK: Final = Tool(
    name="create_task",
    module="todo",
    effect="write",
    description="Create a task; give a due day only if one is known.",
    call=CreateTask,
    run=create_task,
    sentence=_create_sentence,
    words="add a task",
)
COMPLETE_TASK: Final = Tool(
    name="complete_task",
    module="todo",
    effect="write",
    description="Complete an open task by its id.",
    call=CompleteTask,
    run=complete_task,
    sentence=_complete_sentence,
    words="complete a task",
)
COMPLETE_TASKS_BY_TITLE: Final = Tool(
    name="complete_tasks_by_title",
    module="todo",
    effect="write",
    description="Complete every open task whose title contains a text.",
    call=CompleteTasksByTitle,
    run=complete_tasks_by_title,
    sentence=_complete_all_sentence,
    words="complete all tasks with a word in their title",
)
GET_TASK_STATS: Final = Tool(
    name="get_task_stats",
    module="todo",
    effect="read",
    description="Count tasks: open, completed, overdue, due today, undated.",
    call=GetTaskStats,
    run=get_task_stats,
    sentence=lambda call, records: "Count tasks",
    words="count tasks",
)
LIST_TASKS: Final = Tool(
    name="list_tasks",
    module="todo",
    effect="read",
    description="List tasks with id, title, due day and priority, the most urgent first.",
    call=ListTasks,
    run=list_tasks,
    sentence=lambda call, records: "List tasks",
    words="look through tasks",
)
