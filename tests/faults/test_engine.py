"""Whatever breaks around runners, each occurrence ends once, noted, paid for, and obeyed by devices.

`ENGINE_SEEDS` and `ENGINE_OCCURRENCES` in the environment make longer runs:

    ENGINE_SEEDS=20 ENGINE_OCCURRENCES=200 .venv/bin/python -m pytest tests/faults/test_engine.py \
        -n 0 -s --timeout 7200
"""

from __future__ import annotations

import os

import pytest

from tests.faults.after import check
from tests.faults.engine import Scale, party
from tests.faults.storm import told, weathered

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.slow]

FIRST = int(os.environ.get("ENGINE_SEED", "1"))
SEEDS = int(os.environ.get("ENGINE_SEEDS", "1"))
OCCURRENCES = int(os.environ.get("ENGINE_OCCURRENCES", "8"))
MANY = 50


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
async def test_whatever_breaks(seed: int) -> None:
    """Each occurrence ends once: done with one iteration that devices obey, or not, with a reason."""
    people = 2 if OCCURRENCES < MANY else 3
    scale = Scale(people, OCCURRENCES, runners=3, seconds=8 + OCCURRENCES / 4)
    async with party(scale, seed) as made:
        await weathered(made)
        ends = await check(made)
        print(told(seed, made, ends))
        assert ends["done()"] > OCCURRENCES
        for runner in made.runners:
            assert runner.left() == []
            assert runner.said == {}
