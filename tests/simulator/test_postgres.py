"""The hub in memory and the real one are the same hub, as far as any device can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mana.testing.postgres import Database
from mana.testing.simulator import draw, simulate
from mana.testing.simulator.postgres import real_hubs

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.mark.parametrize("seed", [3, 6, 17, 22])
def test_both_hubs_go_the_same_way(seed: int, database: Database, tmp_path: Path) -> None:
    """The same schedule comes to the same answers, the same log and the same records."""
    # How answers are cut is injected into the hub in memory alone.
    schedule = replace(draw(seed), page=1_000, state_page=500)
    with real_hubs(database, tmp_path) as backend_of:
        real = simulate(schedule, backend_of=backend_of)
    assert real.kept, real.text()
    model = simulate(schedule)
    for ours, theirs in zip(model.trace, real.trace, strict=False):
        assert ours == theirs
    assert (model.digest, model.result) == (real.digest, real.result)
