"""Everything that a run, a proposal or a tool can say of itself has words for people."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import mana.planning
from mana.device import names, words
from mana.domain.agents import AGENT_STATES
from mana.domain.iterations import REJECT_REASONS, STEP_STATUSES
from mana.domain.missions import MISSION_STATES
from mana.domain.occurrences import FAIL_POINTS, HOLDING, RETRIES_MS, FailReason, SkipReason
from mana.domain.policy import DECISIONS, EFFECTS
from mana.domain.tools import TASK
from mana.planning import dispatch
from mana.planning.calls import MARKED
from mana.planning.conversation import CONTEXT_FULL
from mana.registry.catalogue import load_catalogue

SPENT = {
    (0, 0, 0, 0): "",
    (1, 0, 0, 0): "1 token",
    (3_040, 0, 120_000, 0): "3,040 tokens, 0.12 EUR",
    (3_040, 2_000, 0, 0): "3,040 tokens, of which 2,000 at most: the model never said",
    (3_040, 2_000, 120_000, 80_000): (
        "3,040 tokens, 0.12 EUR, of which 2,000 tokens, 0.08 EUR at most: the model never said"
    ),
    (3_040, 3_040, 120_000, 120_000): "at most 3,040 tokens, 0.12 EUR: the model never said",
}
RUN_STATES = ("queued", "leased", "done", "skipped", "failed", "missed")
RUN_KINDS = ("scheduled", "manual", "change")
HOLDS = (*HOLDING, "errored", "malformed")


def told_by_planning(called: str) -> Iterator[str]:
    """Yield what the planner's code gives as the first argument of the calls of this name."""
    for path in Path(mana.planning.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name == called and isinstance(first, ast.Constant):
                yield str(first.value)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        *(("skipped", reason) for reason in get_args(SkipReason)),
        *(("failed", reason) for reason in (*get_args(FailReason), *RETRIES_MS, "model")),
        *(("skipped", reason) for reason in (words.NEEDS_HUB, "superseded")),
        ("skipped", "budget:hub:cost:0/5000000"),
    ],
)
def test_every_reason_of_a_run_is_a_sentence(state: str, reason: str) -> None:
    """A person reads why a run ended, and never the inner word for it."""
    said = words.reason_words(state, reason)
    assert said.endswith(".")
    assert not said.startswith("Reason:")
    assert "-" not in reason or reason not in said
    assert words.unread_words(reason).endswith(".")


def test_every_state_kind_and_phase_has_a_name() -> None:
    """No list, ledger or card shows a code of the wire in the place of a word."""
    phases = {*FAIL_POINTS, *told_by_planning("phase"), "inputs", "queued"}
    assert phases <= set(names.PHASES)
    assert {"sub-agent", "compaction", "model"} <= phases
    assert set(names.RUN_STATES) == set(RUN_STATES)
    assert set(names.KINDS) == set(RUN_KINDS)
    assert set(names.EFFECTS) == set(EFFECTS)
    assert set(names.DECISIONS) == set(DECISIONS)
    assert {*STEP_STATUSES, *MISSION_STATES, *AGENT_STATES, *RUN_STATES} <= set(names.STATES)
    assert set(names.REJECTED) == set(REJECT_REASONS)
    assert {MARKED, CONTEXT_FULL, "length", "content-filter"} <= set(names.FLAGS)
    assert all(words.hold_words(hold) != f"Waits: {hold}." for hold in HOLDS)


def test_every_refusal_of_a_call_is_told() -> None:
    """What a model was not let do is told in words, whichever rule it was."""
    codes = {*told_by_planning("Refused")} | {
        found.code
        for found in vars(dispatch).values()
        if isinstance(found, type)
        and found.__module__ == dispatch.__name__
        and hasattr(found, "code")
        if isinstance(found.__dict__.get("code"), str)
    }
    assert {"TOOL_DENIED", "RATE_LIMIT"} <= codes
    assert codes <= set(words.REFUSED_CALLS)


def test_every_tool_says_what_it_does() -> None:
    """Each tool of the catalogue, and the planner's own, has words that follow “may”."""
    for name in (TASK, *(tool.name for tool in load_catalogue().tools)):
        said = names.tool_words(name)
        assert said != name.replace("_", " "), name
        assert said == said.strip().rstrip("."), name
        assert len(said) <= 60, name
    assert names.tool_words("send_mail") == "send mail"


def test_every_table_that_a_tool_changes_has_a_name() -> None:
    """A person reads of a note, and not of a record of `notes`."""
    for table in ("notes", "tasks", "agentMemory"):
        assert table in names.TABLES
        assert table not in words.kind_words(table).split()


@pytest.mark.parametrize("figures", SPENT)
def test_a_figure_says_how_much_of_it_is_a_worst_case(figures: tuple[int, int, int, int]) -> None:
    """What nobody confirmed is told as what it may be at most."""
    assert words.spent_words(*figures, "EUR") == SPENT[figures]
