"""How far runs are, written for whoever looks: at most twice a second, and for all at once.

A run that has ended by then leaves no trace of its phases; most do.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from mana.domain.errors import ManaError
from mana.domain.ids import OccurrenceId
from mana.domain.occurrences import FAIL_POINTS
from mana.hub.runner.batches import Progressed, note_progress
from mana.hub.runner.dialogue import PhaseNote
from mana.hub.runner.ledger import Lease
from mana.hub.runner.store import RunnerStore

EVERY_S: Final = 0.5
NUMBER_MAX: Final = 2**31 - 1
PHASES: Final = frozenset(
    {*FAIL_POINTS, "prompt", "model", "tools", "compaction", "sub-agent", "done"}
)


class Progress:
    """Keeps the newest note of each run until it is written."""

    def __init__(self, store: RunnerStore) -> None:
        self._store = store
        self._newest: dict[OccurrenceId, Progressed] = {}

    def note(self, lease: Lease, note: PhaseNote) -> bool:
        """Take in how far a run is; False: those are no words and numbers of a run."""
        numbers = (note.round, note.tool_calls, note.steps, note.heard)
        if note.name not in PHASES or not all(0 <= number <= NUMBER_MAX for number in numbers):
            return False
        self._newest[lease.occurrence_id] = Progressed(lease, note.name, *numbers)
        return True

    def forget(self, occurrence: OccurrenceId) -> None:
        """Drop what was not written of a run that has ended."""
        self._newest.pop(occurrence, None)

    async def write(self) -> None:
        """Write what came since the last time, twice a second, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            news, self._newest = list(self._newest.values()), {}
            if news:
                # Who looks sees the next one; a database that is away is told of elsewhere.
                with contextlib.suppress(ManaError):
                    async with self._store.across() as tx:
                        await note_progress(tx, news)
