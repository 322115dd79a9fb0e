"""Runs of this device: which due moments were worked on, how they ended, what they cost.

Kept on this device only and without any text, and changed in one transaction each time, because
the terminal and the page are two processes. A run is in the ledger before it begins: what a crash
left behind is found at the next start. An iteration is found again by its derived id, so this
ledger is needed for what left none: failures, refusals of a gate, and moments that were missed.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, TypeVar

import msgspec

from mana.device.holders import Holder
from mana.device.opened import Opened
from mana.device.views import RunView
from mana.device.words import CURRENCY, reason_words
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import derived_id
from mana.domain.occurrences import FAILURES_MAX
from mana.planning.ports import Moment

KEPT: Final = "runs"
LINES_MAX: Final = 500
RUNS_HERE_MAX: Final = 8
"""How many missions of an account run on one device at once."""
_OPEN: Final = frozenset({"queued", "leased"})
_T = TypeVar("_T")
Begun = Literal["", "busy", "concurrency", "over"]
"""Whether a run may begin: yes; the mission runs already; the agent or the device is at work on as
many missions as it may; or this moment has been worked on.
"""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run: `state` as in the hub's ledger; times in ms since 1970, 0 where there is none.

    `due_ms`: when a queued one is tried again. `holder`: the process that works on a leased one.
    `stop`: somebody asked for its end. `leases`: how often a crash left it behind. Of `tokens` and
    `cost`, which are those of all tries so far, the unconfirmed ones are the worst case of calls
    whose model never said.
    """

    mission_id: str
    agent_id: str
    scheduled_ms: int
    kind: str
    state: str
    reason: str = ""
    iteration_id: str | None = None
    tokens: int = 0
    ended_ms: int = 0
    cost: int = 0
    tries: int = 0
    last_reason: str = ""
    due_ms: int = 0
    started_ms: int = 0
    leases: int = 0
    holder: str = ""
    stop: bool = False
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0

    @property
    def is_open(self) -> bool:
        """Say whether it waits or runs."""
        return self.state in _OPEN

    @property
    def unspent(self) -> RunLine:
        """Return the same line without what it used."""
        return replace(self, tokens=0, cost=0, unconfirmed_tokens=0, unconfirmed_cost=0)


@dataclass(frozen=True, slots=True)
class MissionMarks:
    """What is known of a mission's runs here beside the lines.

    `failures` in a row and why the last; `after_ms`: all due moments up to it were dealt with;
    `first_ms`: when the first of the changes was made that now wait for a run.
    """

    failures: int = 0
    failure: str = ""
    after_ms: int = 0
    first_ms: int = 0

    @property
    def is_errored(self) -> bool:
        """Say whether it failed too often in a row."""
        return self.failures >= FAILURES_MAX


@dataclass(slots=True)
class _Kept:
    lines: list[RunLine]
    marks: dict[str, MissionMarks]


class RunLedger:
    """The runs of this device, newest last; a bounded number of them is kept."""

    def __init__(self, opened: Opened, holder: Holder) -> None:
        self._opened = opened
        self.holder = holder
        self._moments: dict[tuple[str, int], Moment] = {}

    # How far a run of this process is

    def moment(self, mission_id: str) -> Moment | None:
        """Return how far a run of this process is; None if none runs."""
        found = (one for key, one in self._moments.items() if key[0] == mission_id)
        return next(found, None)

    def phase(self, mission_id: str) -> str:
        """Return the phase of a run of this process; empty if none runs."""
        found = self.moment(mission_id)
        return found.phase if found is not None else ""

    def set_moment(self, line: RunLine, moment: Moment) -> None:
        """Say how far a run is; nothing happens once it has ended."""
        if _key(line) in self._moments:
            self._moments[_key(line)] = moment

    # Reading

    async def lines(self) -> list[RunLine]:
        """Return all lines, oldest first; read anew, because the terminal runs missions too."""
        return _read(await self._opened.book.kept(KEPT)).lines

    async def marks(self, mission_id: str) -> MissionMarks:
        """Return what is known of a mission's runs beside the lines."""
        return (await self.all_marks()).get(mission_id, MissionMarks())

    async def all_marks(self) -> dict[str, MissionMarks]:
        """Return the marks of each mission that has some."""
        return _read(await self._opened.book.kept(KEPT)).marks

    async def find(self, mission_id: str, scheduled_ms: int) -> RunLine | None:
        """Return the line of a due moment."""
        return _find(await self.lines(), mission_id, scheduled_ms)

    async def runs(self, mission_id: str, *, currency: str = CURRENCY) -> list[RunView]:
        """Return a mission's runs, newest first, as the page shows them."""
        moment = self.moment(mission_id)
        return [
            view(line, moment if line.state == "leased" else None, currency=currency)
            for line in reversed(await self.lines())
            if line.mission_id == mission_id
        ]

    # Changing

    async def begin(self, line: RunLine, *, concurrent_max: int) -> Begun:
        """Enter a run as leased by this process, if it may begin."""
        self.holder.hold()
        runs_here = _key(line) in self._moments
        self._moments.setdefault(_key(line), Moment("inputs"))

        def change(kept: _Kept) -> Begun:
            at_work = [
                one
                for one in kept.lines
                if one.state == "leased" and self.holder.is_alive(one.holder)
            ]
            known = _find(kept.lines, line.mission_id, line.scheduled_ms)
            if any(one.mission_id == line.mission_id for one in at_work):
                return "busy"
            if known is not None and known.state != "queued":
                return "over"
            of_agent = sum(one.agent_id == line.agent_id for one in at_work)
            if of_agent >= concurrent_max or len(at_work) >= RUNS_HERE_MAX:
                return "concurrency"
            begun = replace(
                line,
                state="leased",
                holder=self.holder.name,
                started_ms=self._opened.now_ms(),
                due_ms=0,
                stop=False,
            )
            _put(kept, begun)
            marks = kept.marks.get(line.mission_id, MissionMarks())
            if line.kind != "manual":
                marks = replace(marks, after_ms=max(marks.after_ms, line.scheduled_ms), first_ms=0)
                kept.marks[line.mission_id] = marks
            return ""

        begun = await self._change(change)
        if begun and not runs_here:
            self._moments.pop(_key(line), None)
        return begun

    async def end(self, line: RunLine) -> RunLine:
        """Enter how a run ended, or that it waits for another try; count what failed in a row.

        What is entered replaces the line of the same moment; tokens and cost add up.
        """

        def change(kept: _Kept) -> RunLine:
            known = _find(kept.lines, line.mission_id, line.scheduled_ms)
            ended = replace(line, holder="", stop=False)
            if known is not None:
                ended = replace(
                    ended,
                    tokens=line.tokens + known.tokens,
                    cost=line.cost + known.cost,
                    unconfirmed_tokens=line.unconfirmed_tokens + known.unconfirmed_tokens,
                    unconfirmed_cost=line.unconfirmed_cost + known.unconfirmed_cost,
                )
            _put(kept, ended)
            marks = kept.marks.get(line.mission_id, MissionMarks())
            if ended.state == "failed" and ended.reason != "stopped":
                marks = replace(marks, failures=marks.failures + 1, failure=ended.reason)
            elif ended.state == "done":
                marks = replace(marks, failures=0, failure="")
            if ended.kind != "manual":
                marks = replace(marks, after_ms=max(marks.after_ms, ended.scheduled_ms))
            kept.marks[line.mission_id] = marks
            return ended

        ended = await self._change(change)
        self._moments.pop(_key(line), None)
        return ended

    async def missed(self, lines: Iterable[RunLine]) -> None:
        """Enter moments that passed and are not run; one that is known stays as it is."""

        def change(kept: _Kept) -> None:
            for line in lines:
                if _find(kept.lines, line.mission_id, line.scheduled_ms) is None:
                    _put(kept, line)
                marks = kept.marks.get(line.mission_id, MissionMarks())
                after_ms = max(marks.after_ms, line.scheduled_ms)
                kept.marks[line.mission_id] = replace(marks, after_ms=after_ms)

        await self._change(change)

    async def passed(self, mission_id: str, scheduled_ms: int) -> None:
        """Note that the moments up to one were dealt with, that one among them."""

        def change(kept: _Kept) -> None:
            marks = kept.marks.get(mission_id, MissionMarks())
            after_ms = max(marks.after_ms, scheduled_ms)
            kept.marks[mission_id] = replace(marks, after_ms=after_ms, first_ms=0)

        await self._change(change)

    async def abandoned(self) -> list[RunLine]:
        """Return what nobody works on although it is leased: its process has died."""
        return [
            line
            for line in await self.lines()
            if line.state == "leased"
            and not (
                self.holder.is_alive(line.holder)
                if line.holder != self.holder.name
                else _key(line) in self._moments
            )
        ]

    async def ask_stop(self, mission_id: str) -> bool:
        """Ask whichever process works on a mission to stop; what waits ends. Say if there was any."""

        def change(kept: _Kept) -> bool:
            found = [one for one in kept.lines if one.mission_id == mission_id and one.is_open]
            for line in found:
                if line.state == "leased":
                    _put(kept, replace(line, stop=True))
                else:
                    over = replace(line, state="failed", reason="stopped", due_ms=0)
                    _put(kept, replace(over, ended_ms=self._opened.now_ms()))
            return bool(found)

        return await self._change(change)

    async def note_change(self, mission_id: str, first_ms: int) -> None:
        """Keep when the first of the changes was made that now wait for a run."""

        def change(kept: _Kept) -> None:
            marks = kept.marks.get(mission_id, MissionMarks())
            if not marks.first_ms:
                kept.marks[mission_id] = replace(marks, first_ms=first_ms)

        await self._change(change)

    async def resume(self, mission_id: str) -> None:
        """Let a mission that failed too often run again, from now on."""
        now_ms = self._opened.now_ms()

        def change(kept: _Kept) -> None:
            kept.marks[mission_id] = MissionMarks(after_ms=now_ms)

        await self._change(change)

    async def _change(self, change: Callable[[_Kept], _T]) -> _T:
        def work(before: Json) -> tuple[Json, _T]:
            kept = _read(before)
            answer = change(kept)
            return _wire(kept), answer

        return await self._opened.book.keep_changed(KEPT, work)


def view(line: RunLine, moment: Moment | None = None, *, currency: str = CURRENCY) -> RunView:
    """Return a line as the page shows it; `moment`: how far the run is."""
    now = moment or Moment("")
    return RunView(
        occurrence_id=derived_id("occurrence", line.mission_id, iso_ms(line.scheduled_ms)),
        scheduled_ms=line.scheduled_ms,
        kind=line.kind,
        state=line.state,
        reason=line.reason,
        reason_words=reason_words(line.state, line.reason, currency=currency),
        iteration_id=line.iteration_id,
        tokens=line.tokens,
        phase=now.phase,
        cost=line.cost,
        tries=line.tries,
        last_reason=line.last_reason,
        last_reason_words=reason_words("failed", line.last_reason) if line.last_reason else "",
        due_ms=line.due_ms or None,
        started_ms=line.started_ms,
        round=now.round,
        tool_calls=now.tool_calls,
        steps=now.steps,
        heard=now.heard,
        unconfirmed_tokens=line.unconfirmed_tokens,
        unconfirmed_cost=line.unconfirmed_cost,
    )


def _key(line: RunLine) -> tuple[str, int]:
    return line.mission_id, line.scheduled_ms


def _find(lines: Iterable[RunLine], mission_id: str, scheduled_ms: int) -> RunLine | None:
    for line in lines:
        if (line.mission_id, line.scheduled_ms) == (mission_id, scheduled_ms):
            return line
    return None


def _put(kept: _Kept, line: RunLine) -> None:
    """Put a line at the end, in the place of the one of its moment; the oldest that ended go."""
    kept.lines = [one for one in kept.lines if _key(one) != _key(line)]
    kept.lines.append(line)
    over = len(kept.lines) - LINES_MAX
    if over > 0:
        gone = [one for one in kept.lines if not one.is_open][:over]
        kept.lines = [one for one in kept.lines if one not in gone]


def _wire(kept: _Kept) -> Json:
    lines: builtins.list[Json] = [asdict(line) for line in kept.lines]
    marks: dict[str, Json] = {name: asdict(one) for name, one in kept.marks.items()}
    return {"lines": lines, "missions": marks}


def _read(kept: Json) -> _Kept:
    """Return what was kept; lines of earlier versions are lists of nine."""
    found = _Kept([], {})
    items: Json = kept
    if isinstance(kept, dict):
        items = kept.get("lines")
        marks = kept.get("missions")
        if isinstance(marks, dict):
            found.marks = {str(name): _mark(value) for name, value in marks.items()}
    for item in items if isinstance(items, list) else []:
        if isinstance(item, list):
            names = ("mission_id", "agent_id", "scheduled_ms", "kind", "state", "reason")
            item = dict(zip((*names, "iteration_id", "tokens", "ended_ms"), item, strict=False))
        try:
            found.lines.append(msgspec.convert(item, RunLine))
        except msgspec.ValidationError:
            continue
    return found


def _mark(value: Json) -> MissionMarks:
    try:
        return msgspec.convert(value, MissionMarks)
    except msgspec.ValidationError:
        return MissionMarks()
