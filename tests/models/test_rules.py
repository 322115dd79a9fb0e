"""The offline model: what it finds, what it leaves, and that it only says what it may."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.policy import STANDARD, Policy
from mana.domain.records import View
from mana.models.rules import ENDPOINT, Rules, answer
from mana.planning.loop import Plan
from mana.planning.ports import ModelRequest
from mana.planning.prompt import PastIteration, PastStep, prompt
from tests.planning.given import CATALOGUE, mission, plan, plan_input, planned_inputs, view


def found(content: str, *more: object, **given_more: object) -> Plan:
    """Return the plan over one note with this text."""
    views = [view("notes", "n1", {"title": "Meeting", "content": content}), *more]
    kept = given_more.pop("history", ())
    objective = given_more.pop("given_mission", None)
    given_input = plan_input(
        inputs=planned_inputs(views),
        history=kept,
        given_mission=objective,  # type: ignore[arg-type]
    )
    return asyncio.run(plan(Rules(), views=views, given=given_input, **given_more))  # type: ignore[arg-type]


def titles(result: Plan) -> list[tuple[object, object]]:
    """Return title and day of every task that is proposed."""
    return [
        (step.arguments["title"], step.arguments.get("dueDate"))
        for step in result.steps
        if step.tool == "create_task"
    ]


@pytest.mark.parametrize(
    "line, title, due",
    [
        ("TODO: order new filters", "Order new filters", None),
        ("- [ ] send the offer to Kim", "Send the offer to Kim", None),
        ("We must renew the passport by 2026-12-03.", "Renew the passport", "2026-12-03"),
        ("I need to book the hall on Monday.", "Book the hall", "2026-11-23"),
        ("Call the dentist by Friday.", "Call the dentist", "2026-11-27"),
        ("Call the dentist by Saturday", "Call the dentist", "2026-11-21"),
        ("Please send Ada the minutes tomorrow", "Send Ada the minutes", "2026-11-22"),
        ("- Pay the invoice until 5 December", "Pay the invoice", "2026-12-05"),
        ("- [ ] Buy gifts by Dec 20", "Buy gifts", "2026-12-20"),
        ("TODO: file taxes by March 1", "File taxes", "2027-03-01"),
        ("Ask Jo about the venue (urgent)", "Ask Jo about the venue", None),
        ("Call back tomorrow morning.", "Call back", "2026-11-22"),
        ("Don't forget to renew the pass (Ada's)!", "Renew the pass (Ada's)", None),
        ("Remember: call the dentist by Friday.", "Call the dentist", "2026-11-27"),
        ("TODO: Steuer bis 27.11.", "Steuer bis", "2026-11-27"),
    ],
)
def test_action_items_are_found(line: str, title: str, due: str | None) -> None:
    """A line that names something to do becomes a task, with its day where it names one."""
    assert titles(found(line)) == [(title, due)]


@pytest.mark.parametrize(
    "line",
    [
        "- [x] send the offer",
        "DONE: send the offer",
        "The weather was fine.",
        "Review of last week",
        "We must not miss the deadline.",
        "They do not need to sign.",
        "You need to know that prices rise.",
        "",
        "TODO:   ",
    ],
)
def test_what_is_no_action_item_is_left(line: str) -> None:
    """What is done, or is only told, becomes no task."""
    assert found(line).steps == ()


def test_existing_tasks_are_not_doubled() -> None:
    """An item that is a task already, open or done, is not proposed again."""
    task = view("tasks", "t9", {"title": "order NEW filters!", "isCompleted": False})
    assert found("TODO: Order new filters", task).steps == ()


def test_done_lines_complete_their_task() -> None:
    """A ticked line completes the open task of that title."""
    task = view("tasks", "t9", {"title": "Send the offer", "isCompleted": False})
    result = found("- [x] Send the offer", task)
    assert [(step.tool, step.arguments) for step in result.steps] == [
        ("complete_task", {"taskId": "t9"})
    ]


@pytest.mark.parametrize("status, repeated", [("rejected", 0), ("staged", 0), ("expired", 1)])
def test_decided_proposals_are_not_repeated(status: str, repeated: int) -> None:
    """What was rejected or still waits is not proposed again; what expired is."""
    step = PastStep("create_task", "Add task “Order new filters”", status, "no thanks")
    past = PastIteration("i1", "2026-11-20T08:00:00.000Z", "", (step,))
    assert len(found("TODO: order new filters", history=(past,)).steps) == repeated


def test_a_summary_is_written_when_the_mission_asks() -> None:
    """A mission that wants a digest gets one note, in the inputs' own words."""
    wants = mission(objective="Write a weekly digest of my notes.")
    late = view("tasks", "t9", {"title": "Pay rent", "dueDate": "2026-11-01"})
    result = found("The offer was sent. More follows.", late, given_mission=wants)
    [step] = result.steps
    assert step.tool == "create_note"
    assert "Pay rent (since 2026-11-01)" in str(step.arguments["content"])
    assert "The offer was sent." in str(step.arguments["content"])


def test_only_offered_tools_are_called() -> None:
    """Without a tool in the request it is not called, and nothing is refused."""
    denied = Policy({"read": "auto", "write": "deny"})
    result = found("TODO: order new filters", policy=denied)
    assert (result.steps, result.refusals, result.stop_reason) == ((), (), "finished")


def test_many_items_fit_in_one_plan() -> None:
    """More items than one round takes are planned over rounds, none twice, none refused."""
    result = found("\n".join(f"TODO: sort box number {n}" for n in range(30)), policy=STANDARD)
    assert len(result.steps) == 20
    assert len({str(step.arguments["title"]) for step in result.steps}) == 20
    assert result.refusals == ()
    assert {step.decision for step in result.steps} == {"propose"}


def test_the_description_is_honest() -> None:
    """It says that it is no language model, and that text goes nowhere."""
    model = Rules()
    assert "not a language model" in model.description
    assert model.endpoint == ENDPOINT == "rules:offline"


def test_long_runs_of_spaces_do_not_stall() -> None:
    """Text made to slow the patterns down is read in a moment."""
    hostile = "\n".join(("- " + " " * 9_000 + "x", "TODO: by by " * 700, "must " * 2_000))
    assert found(hostile).stop_reason == "finished"


@given(st.text(max_size=400))
def test_any_text_is_read(content: str) -> None:
    """No text breaks the rules, and what they call is always accepted."""
    result = found(content)
    assert result.refusals == ()
    assert result.stop_reason == "finished"


def test_the_same_request_gives_the_same_reply() -> None:
    """The model keeps nothing between calls."""
    schemas = tuple(CATALOGUE.schema(tool.name) for tool in CATALOGUE.tools)
    request = ModelRequest(prompt(plan_input(), rounds_max=5), schemas, 0.3, 100)
    assert answer(request) == answer(request)
    assert answer(request).calls[0].name == "list_tasks"


def test_reasons_name_inputs_as_people_do() -> None:
    """A reason holds the input's title in quotes and no id."""
    task = view("tasks", "t9", {"title": "Send the offer", "isCompleted": False})
    result = found("- [x] Send the offer\nTODO: order new filters", task)
    reasons = {step.tool: step.rationale for step in result.steps}
    assert reasons == {
        "create_task": "“Meeting” names it as something to do.",
        "complete_task": "“Meeting” says that it is done.",
    }


@pytest.mark.parametrize(
    "content, more, first",
    [
        ("Nothing here.", [], "Read 1 input; suggests nothing new."),
        ("TODO: order filters", [], "Read 1 input; suggests 1 new task."),
        (
            "TODO: order filters\nTODO: call Kim\n- [x] Send the offer",
            [
                view("tasks", "t9", {"title": "Send the offer"}),
                view("tasks", "t8", {"title": "Pay rent", "dueDate": "2026-11-01"}),
            ],
            "Read 3 inputs; suggests 2 new tasks and 1 task to complete; 1 task is overdue.",
        ),
    ],
)
def test_a_summary_begins_with_one_sentence(content: str, more: list[View], first: str) -> None:
    """The first line says what was read, what is suggested and what is late."""
    assert found(content, *more).summary.partition("\n")[0] == first
