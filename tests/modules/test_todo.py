"""Tasks: each tool plans exactly what it says, and today is the person's day."""

from __future__ import annotations

import pytest

from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.tools import Outcome, parse_call
from mana.planning.dispatch import execute
from tests.planning.given import CATALOGUE, NOW, PERSON, TODAY, records, view

VIEWS = [
    view("tasks", "late", {"title": "Pay rent", "dueDate": "2026-11-20", "isCompleted": False}),
    view("tasks", "today", {"title": "Rent a car", "dueDate": TODAY, "priority": "low"}),
    view("tasks", "vague", {"title": "Read", "priority": "urgent"}),
    view("tasks", "done", {"title": "Rent paid", "dueDate": "2026-11-01", "isCompleted": True}),
]


def do(tool: str, arguments: Json) -> Outcome:
    """Run a tool for a person over four tasks."""
    return execute(tool, arguments, caller=PERSON, catalogue=CATALOGUE, records=records(VIEWS))


def test_create_task_takes_the_defaults() -> None:
    """A new task is open, of medium priority, and its id is told."""
    outcome = do("create_task", {"title": " Call "})
    [change] = outcome.changes
    assert change.values == {"title": "Call", "priority": "medium", "isCompleted": False}
    assert outcome.data == {"taskId": change.record_id}


@pytest.mark.parametrize("priority", ["low", "medium", "high", "urgent"])
def test_every_priority_is_accepted(priority: str) -> None:
    """All four priorities of the data are accepted, urgent too."""
    arguments: Json = {"title": "Call", "priority": priority, "dueDate": "2026-11-27"}
    [change] = do("create_task", arguments).changes
    assert (change.values["priority"], change.values["dueDate"]) == (priority, "2026-11-27")


def test_completing_marks_the_moment() -> None:
    """A completed task bears when it was completed; a second time is refused."""
    [change] = do("complete_task", {"taskId": "late"}).changes
    assert change.values == {"isCompleted": True, "completedAt": NOW}
    with pytest.raises(ManaError) as refused:
        do("complete_task", {"taskId": "done"})
    assert refused.value.code == "ALREADY_COMPLETED"


def test_completing_by_title_takes_open_tasks_only() -> None:
    """Every open task with the text in its title, in any case, and no other."""
    outcome = do("complete_tasks_by_title", {"titleMatch": "RENT"})
    assert [change.record_id for change in outcome.changes] == ["late", "today"]
    with pytest.raises(ManaError) as refused:
        do("complete_tasks_by_title", {"titleMatch": "paid"})
    assert refused.value.code == "NOT_FOUND"


def test_stats_count_by_the_person_s_day() -> None:
    """Overdue is before today, and today is not overdue."""
    assert do("get_task_stats", {}).data == {
        "total": 4,
        "open": 3,
        "completed": 1,
        "overdue": 1,
        "today": 1,
        "undated": 1,
    }


@pytest.mark.parametrize(
    "arguments, ids",
    [
        ({}, ["late", "today", "vague"]),
        ({"filter": "open", "limit": 1}, ["late"]),
        ({"filter": "completed"}, ["done"]),
        ({"filter": "overdue"}, ["late"]),
        ({"filter": "today"}, ["today"]),
        ({"filter": "all"}, ["done", "late", "today", "vague"]),
    ],
)
def test_tasks_are_listed(arguments: Json, ids: list[str]) -> None:
    """Filters take what they say, the most urgent first."""
    data = do("list_tasks", arguments).data
    assert [task["taskId"] for task in data["tasks"]] == ids  # type: ignore[index,call-overload,union-attr]


def test_sentences_say_what_would_happen() -> None:
    """A proposal reads as plain English."""
    said = []
    for name, arguments in (
        ("create_task", {"title": "Call the dentist", "dueDate": "2026-11-27"}),
        ("complete_task", {"taskId": "late"}),
        ("complete_tasks_by_title", {"titleMatch": "rent"}),
    ):
        tool = CATALOGUE.tool(name)
        said.append(tool.sentence(parse_call(tool, arguments), records(VIEWS)))
    assert said == [
        "Add task “Call the dentist”, due 2026-11-27",
        "Complete task “Pay rent”",
        "Complete tasks “Pay rent”, “Rent a car”",
    ]


def test_inputs_show_state_and_day() -> None:
    """A task as a mission's input tells its state, text and day, within the limit."""
    kind = CATALOGUE.inputs["tasks"]
    assert kind.content(VIEWS[0]) == "[open] Pay rent (due: 2026-11-20)"
    assert [kind.pickable(found) for found in VIEWS] == [True, True, True, False]
    values = {"title": "T", "description": "x" * 9_000, "dueDate": TODAY}
    long = kind.content(view("tasks", "t", values))
    assert len(long) == 2_000
    assert long.endswith(f"… (due: {TODAY})")
