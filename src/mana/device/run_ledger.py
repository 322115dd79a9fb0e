"""Runs of this device: which due moments were worked on, how they ended, what they cost.

Kept on this device only and without any text. An iteration is found again by its derived id,
so this ledger is needed for what left no iteration: failures, refusals of a gate, and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mana.device.opened import Opened
from mana.device.views import RunView
from mana.device.words import reason_words
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import derived_id

KEPT: Final = "runs"
LINES_MAX: Final = 200
DAY_MS: Final = 24 * 60 * 60 * 1_000


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run: `state` as in the hub's ledger, `ended_ms` when its tokens were counted."""

    mission_id: str
    agent_id: str
    scheduled_ms: int
    kind: str
    state: str
    reason: str
    iteration_id: str | None
    tokens: int
    ended_ms: int

    def to_wire(self) -> list[Json]:
        """Return the kept form."""
        return [
            self.mission_id,
            self.agent_id,
            self.scheduled_ms,
            self.kind,
            self.state,
            self.reason,
            self.iteration_id,
            self.tokens,
            self.ended_ms,
        ]


class RunLedger:
    """The runs of this device, newest last; a bounded number of them is kept."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._phases: dict[str, str] = {}

    def phase(self, mission_id: str) -> str:
        """Return how far a run of this device is; empty if none runs."""
        return self._phases.get(mission_id, "")

    def set_phase(self, mission_id: str, phase: str | None) -> None:
        """Say how far a run is; None when it has ended."""
        if phase is None:
            self._phases.pop(mission_id, None)
        else:
            self._phases[mission_id] = phase

    async def lines(self) -> list[RunLine]:
        """Return all lines, oldest first; read anew, because the terminal runs missions too."""
        kept = await self._opened.book.kept(KEPT)
        return [line for item in _items(kept) if (line := _line(item)) is not None]

    async def put(self, line: RunLine) -> RunLine:
        """Keep a line; one for the same mission and moment is replaced, its tokens added."""
        lines = await self.lines()
        for position, known in enumerate(lines):
            if (known.mission_id, known.scheduled_ms) == (line.mission_id, line.scheduled_ms):
                line = replace(line, tokens=line.tokens + known.tokens)
                del lines[position]
                break
        lines.append(line)
        del lines[:-LINES_MAX]
        await self._opened.book.keep(KEPT, [one.to_wire() for one in lines])
        return line

    async def find(self, mission_id: str, scheduled_ms: int) -> RunLine | None:
        """Return the line of a due moment."""
        for line in await self.lines():
            if (line.mission_id, line.scheduled_ms) == (mission_id, scheduled_ms):
                return line
        return None

    async def runs(self, mission_id: str) -> list[RunView]:
        """Return a mission's runs, newest first, as the page shows them."""
        return [
            view(line) for line in reversed(await self.lines()) if line.mission_id == mission_id
        ]

    async def tokens_today(self) -> dict[str, int]:
        """Return tokens by agent that runs of the last 24 hours used here."""
        since_ms = self._opened.now_ms() - DAY_MS
        used: dict[str, int] = {}
        for line in await self.lines():
            if line.ended_ms > since_ms and line.tokens:
                used[line.agent_id] = used.get(line.agent_id, 0) + line.tokens
        return used


def view(line: RunLine) -> RunView:
    """Return a line as the page shows it."""
    moment = iso_ms(line.scheduled_ms)
    return RunView(
        occurrence_id=derived_id("occurrence", line.mission_id, moment),
        scheduled_ms=line.scheduled_ms,
        kind=line.kind,
        state=line.state,
        reason=line.reason,
        reason_words=reason_words(line.state, line.reason),
        iteration_id=line.iteration_id,
        tokens=line.tokens,
    )


def _items(kept: Json) -> list[Json]:
    return kept if isinstance(kept, list) else []


def _line(item: Json) -> RunLine | None:
    match item:
        case [
            str(mission_id),
            str(agent_id),
            int(scheduled_ms),
            str(kind),
            str(state),
            str(reason),
            (str() | None) as iteration_id,
            int(tokens),
            int(ended_ms),
        ]:
            return RunLine(
                mission_id,
                agent_id,
                scheduled_ms,
                kind,
                state,
                reason,
                iteration_id,
                tokens,
                ended_ms,
            )
    return None
