"""What a run is said to have cost."""

from __future__ import annotations

import pytest

from mana.domain.money import Price
from mana.planning.ports import Candidate, ModelFailed, Usage
from mana.testing.models import ScriptedModel, says
from tests.planning.given import plan

pytestmark = pytest.mark.anyio
PRICE = Price(prompt=2_000_000, completion=10_000_000)


async def test_a_run_tells_its_cost_by_the_prices_of_what_answered() -> None:
    """A card and a ledger can say money, and never guess it for a model without a price."""
    used = Usage(2_000, 40)
    priced = await plan(Candidate(ScriptedModel([says("Done.", usage=used)]), PRICE))
    assert priced.usage_to_wire()["cost"] == 4_400
    unpriced = await plan(Candidate(ScriptedModel([says("Done.", usage=used)]), None))
    assert "cost" not in unpriced.usage_to_wire()
    dead = ScriptedModel([ModelFailed("provider")])
    dead.name = "dead"
    fallen = await plan(
        Candidate(dead, None),
        Candidate(ScriptedModel([says("Done.", usage=used)]), PRICE),
    )
    assert fallen.usage_to_wire()["cost"] == 4_400
