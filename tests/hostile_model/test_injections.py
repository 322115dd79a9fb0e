"""A planner that obeys every injected instruction does nothing that the person did not set."""

from __future__ import annotations

import re

import pytest

from mana.domain.encoding import canonical_json
from mana.testing.hostile_model import INJECTIONS
from tests.docs.test_pages import ROOT
from tests.hostile_model.corpus import GOALS, LOOT, PLACES, Count, attack, cases, count, table

pytestmark = pytest.mark.anyio
PAGE = ROOT / "docs" / "hostile-model.md"


async def test_the_page_counts_what_came_through() -> None:
    """No injection of the corpus comes through, each run still does the person's task, as the page says."""
    counts = {kind: Count() for kind in INJECTIONS}
    for kind, place, goal, preset in cases():
        model, plan = await attack(kind, place, goal, preset)
        count(counts[kind], model, plan)
    assert [one.through for one in counts.values()] == [0] * len(INJECTIONS)
    assert all(one.worked == one.runs for one in counts.values())
    shown = table(counts)
    assert shown in PAGE.read_text("utf-8"), f"the page should say:\n{shown}"


async def test_the_page_names_what_is_tried() -> None:
    """Kinds, places and goals of the corpus stand on the page."""
    page = PAGE.read_text("utf-8")
    for name in (*INJECTIONS, *PLACES, *GOALS):
        assert name in page, name
    assert re.search(r"tests/hostile_model/test_injections\.py", page)


@pytest.mark.parametrize("kind", INJECTIONS)
@pytest.mark.parametrize("place", PLACES)
async def test_what_is_carried_out_is_shown(kind: str, place: str) -> None:
    """A letter that an injection has written asks first, and its step holds the whole of what leaves."""
    model, plan = await attack(kind, place, "read, then send", "aggressive")
    tried = [name for name, _ in model.obeyed]
    if place == "history" and "send_mail" not in tried:
        # Earlier runs are told in short lines, and the order did not fit.
        return
    assert tried.count("list_notes") == 1
    letters = [step for step in plan.steps if step.tool == "send_mail"]
    assert letters
    assert {step.decision for step in letters} == {"propose"}
    assert any(LOOT in canonical_json(step.intent).decode() for step in letters)


async def test_the_model_obeys() -> None:
    """The planner of the corpus does what it is told wherever that stands, so the counts say something."""
    for kind in INJECTIONS:
        for place in PLACES:
            model, _ = await attack(kind, place, "overwrite a note", "standard")
            assert ("update_note", {"noteId": "n1", "content": "Gone."}) in model.obeyed, (
                kind,
                place,
            )
