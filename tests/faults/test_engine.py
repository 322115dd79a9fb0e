"""Whatever breaks around runners, each occurrence ends once, noted, paid for, and obeyed by devices.

`make storm` does the same with thousands of them, for any seed.
"""

from __future__ import annotations

import pytest

from tests.faults.after import check
from tests.faults.engine import Scale, party
from tests.faults.storm import weathered

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SMALL = Scale(people=2, occurrences=6, runners=2, seconds=8, is_whole=False)


async def test_whatever_breaks() -> None:
    """Each occurrence ends once: done with one iteration that devices obey, or not, with a reason."""
    async with party(SMALL, seed=1) as made:
        await weathered(made)
        ends = await check(made)
        assert ends["done()"] > SMALL.occurrences
        for runner in made.runners:
            assert runner.left() == []
            assert runner.said == {}
