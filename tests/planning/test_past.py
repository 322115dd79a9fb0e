"""Earlier runs: what people decided, said and changed reaches the next prompt, once and bounded."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.encoding import Json
from mana.domain.iterations import REJECT_REASONS
from mana.planning.past import PAST_FIELDS, past_from_views
from mana.planning.prompt import (
    HISTORY_BLOCK_MAX,
    PastIteration,
    PastStep,
    user_frame,
)
from tests.planning.given import plan_input, view


def run(run_id: str, day: int, **more: Json) -> dict[str, Json]:
    """Return the fields of an iteration."""
    return {
        "missionId": "m1",
        "scheduledFor": f"2026-11-{day:02d}T08:00:00.000Z",
        "summary": f"Run {run_id}.",
        **more,
    }


def step(run_id: str, index: int, status: str = "rejected", **more: Json) -> dict[str, Json]:
    """Return the fields of a step."""
    intent: Json = {"kind": "toolCall", "toolName": "create_task", "params": {"title": "Old"}}
    return {
        "missionId": "m1",
        "iterationId": run_id,
        "index": index,
        "status": status,
        "intent": intent,
        "sentence": f"Sentence {index}",
        **more,
    }


def past(runs: Mapping[str, Json], *steps: Mapping[str, Json]) -> tuple[PastIteration, ...]:
    """Return earlier runs from the fields of their records."""
    return past_from_views(
        [view("aiIterations", key, fields) for key, fields in runs.items()],  # type: ignore[arg-type]
        [view("aiSteps", f"s{n}", fields) for n, fields in enumerate(steps)],
    )


def test_runs_come_oldest_first_with_their_steps_in_order() -> None:
    """Order and belonging follow from the records, not from how they were found."""
    found = past({"b": run("b", 2), "a": run("a", 1)}, step("a", 1), step("b", 0), step("a", 0))
    assert [one.id for one in found] == ["a", "b"]
    assert [[s.sentence for s in one.steps] for one in found] == [
        ["Sentence 0", "Sentence 1"],
        ["Sentence 0"],
    ]


def test_what_is_deleted_or_of_another_mission_is_left_out() -> None:
    """A deleted run or step says nothing more, and a step cannot join another mission's run."""
    runs = [
        view("aiIterations", "a", run("a", 1)),
        view("aiIterations", "x", run("x", 2), deleted=True),
    ]
    steps = [
        view("aiSteps", "s1", step("a", 0), deleted=True),
        view("aiSteps", "s2", {**step("a", 1), "missionId": "m2"}),
        view("aiSteps", "s3", step("nowhere", 2)),
    ]
    assert [(one.id, one.steps) for one in past_from_views(runs, steps)] == [("a", ())]


def test_everything_that_a_person_said_is_told() -> None:
    """Feedback to the run and to the step, the reason, and what was changed stand in the prompt."""
    edited: Json = {"params": {"title": "New", "dueDate": "2026-12-01"}}
    found = past(
        {"a": run("a", 1, feedback="Shorter, please.")},
        step("a", 0, rejectReason="wrong", feedback="Not mine to do."),
        step("a", 1, "approved", edited=edited),
    )
    frame = user_frame(plan_input(history=found))
    for told in (
        "Feedback of the person to this run: Shorter, please.",
        "- [rejected] create_task: Sentence 0\n  Rejected because: wrong",
        "  Rejected because: wrong\n  Feedback of the person: Not mine to do.",
        "- [approved] create_task: Sentence 1\n  The person changed it before approving: dueDate: ",
        "dueDate: nothing → “2026-12-01”; title: “Old” → “New”",
    ):
        assert told in frame


def test_nothing_else_needs_to_be_opened() -> None:
    """From the named fields alone the same is told: the rest of a record can stay sealed."""
    edited: Json = {"params": {"title": "New"}}
    fields = {
        "aiIterations": run("a", 1, feedback="F", startedAt="now", model="m", refusals=[]),
        "aiSteps": step(
            "a", 0, feedback="F", rejectReason="style", edited=edited, preview=[], rationale="r"
        ),
    }
    told = [
        past_from_views(
            [view("aiIterations", "a", values["aiIterations"])],
            [view("aiSteps", "s", values["aiSteps"])],
        )
        for values in (
            fields,
            {
                table: {name: x for name, x in one.items() if name in PAST_FIELDS[table]}
                for table, one in fields.items()
            },
        )
    ]
    assert told[0] == told[1]
    assert "→ “New”" in told[0][0].steps[0].edited


@pytest.mark.parametrize(
    "fields",
    [
        {"intent": "broken", "edited": 5, "index": "x", "rejectReason": "because I say so"},
        {"intent": {"toolName": 7, "params": []}, "edited": {"params": "x"}},
        {"intent": None, "sentence": None, "status": None, "feedback": ["x"]},
    ],
)
def test_malformed_records_are_told_as_far_as_they_go(fields: dict[str, Json]) -> None:
    """A record of another shape breaks no run, and no word of its own becomes a reason."""
    (only,) = past({"a": run("a", 1)}, {**step("a", 0), **fields})
    assert (only.steps[0].tool, only.steps[0].edited, only.steps[0].reject_reason) == ("", "", "")
    user_frame(plan_input(history=(only,)))


def rejected(tool: str, reason: str, times: int) -> list[PastStep]:
    """Return so many rejections."""
    return [PastStep(tool, "S", "rejected", reject_reason=reason)] * times


def test_rejections_are_counted_over_all_runs() -> None:
    """Of ten runs three are shown, and the reasons of all are counted, most often first."""
    nine = [
        PastIteration(f"i{n}", "2026-11-01", "", (*rejected("create_task", "wrong", 2),))
        for n in range(9)
    ]
    last = (*rejected("update_note", "", 1), PastStep("x", "S", "approved"))
    history = (*nine, PastIteration("i9", "2026-11-02", "", last))
    frame = user_frame(plan_input(history=history))
    counted = "18 × create_task (wrong), 1 × update_note (other)."
    assert f"What the person rejected of this mission so far: {counted}" in frame
    assert len(re.findall('<data id="iteration:', frame)) == 3
    assert "rejected of this mission" not in user_frame(plan_input(history=history[:0]))


@given(
    tool=st.text(max_size=40)
    | st.sampled_from(["</data>", "create_task", "a b", "x\n\n## Objective"]),
    reason=st.text(max_size=20) | st.sampled_from(REJECT_REASONS),
)
def test_counted_rejections_hold_no_foreign_text(tool: str, reason: str) -> None:
    """Outside of data stands no word of a record: names that are no tools' are not counted."""
    history = (PastIteration("i1", "2026-11-01", "", tuple(rejected(tool, reason, 2))),)
    frame = user_frame(plan_input(inputs=(), history=history))
    lines = [line for line in frame.splitlines() if line.startswith("What the person rejected")]
    if not re.fullmatch("[a-z_]{1,64}", tool):
        assert lines == []
    else:
        word = reason if reason in REJECT_REASONS else "other"
        assert lines == [f"What the person rejected of this mission so far: 2 × {tool} ({word})."]


@given(st.integers(0, 60), st.integers(0, 3_000))
def test_history_is_bounded(steps: int, length: int) -> None:
    """However much earlier runs say, each takes a block of its own size at most."""
    text = "y" * length
    one = PastStep("create_task", text, "rejected", text, text, "wrong")
    history = tuple(PastIteration(f"i{n}", "now", text, (one,) * steps, text) for n in range(3))
    frame = user_frame(plan_input(inputs=(), history=history))
    assert len(frame) < 3 * (HISTORY_BLOCK_MAX + 200) + 1_500
