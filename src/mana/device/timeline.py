"""What AI did, one bucket per iteration: steps, refusals, and what became of each.

A record of the past: nothing here decides. A reverted bucket stays, with its lines marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mana.device.cases import cost_of, flags_of, in_order, planned_ms, tokens_of, was_edited
from mana.device.diffs import record_diff
from mana.device.journal import Chain, Journal
from mana.device.names import tool_words
from mana.device.opened import Opened
from mana.device.steps import Steps
from mana.device.unseen import visible
from mana.device.views import Bucket, RecordDiff, TimelineLine
from mana.device.words import refused_call_words
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.iterations import ITERATIONS
from mana.domain.missions import MISSIONS
from mana.domain.records import View

LIMIT_MAX: Final = 1_000
REFUSALS_SHOWN: Final = 10
_STATES: Final = {
    "staged": "proposed",
    "planned": "proposed",
    "executing": "proposed",
    "rejected": "rejected",
    "expired": "rejected",
    "skipped": "refused",
    "failed": "failed",
}
_NOTES: Final = {
    "planned": "Waits to be done by a device.",
    "executing": "A device is doing it.",
    "expired": "Its time passed without a decision.",
    "skipped": "The policy denied it.",
}
EDITED: Final = "You changed it before you approved it."
EDITED_BY_OTHER: Final = "It was changed before it was approved."


class Timeline:
    """The iterations of the account, newest first."""

    def __init__(self, opened: Opened, steps: Steps, journal: Journal) -> None:
        self._opened = opened
        self._steps = steps
        self._journal = journal

    async def buckets(self, *, limit: int = 100, mission_id: str | None = None) -> list[Bucket]:
        """Return the newest buckets, of one mission or of all."""
        if not 1 <= limit <= LIMIT_MAX:
            raise Invalid(f"the timeline shows from 1 to {LIMIT_MAX} runs")
        book = self._opened.book
        iterations = [
            view
            for view in await book.views(ITERATIONS.name)
            if mission_id is None or view.text("missionId") == mission_id
        ]
        iterations.sort(key=lambda view: (_at_ms(view), view.id), reverse=True)
        steps: dict[str, list[View]] = {}
        for step in await self._steps.views():
            steps.setdefault(step.text("iterationId"), []).append(step)
        chains: dict[str, list[Chain]] = {}
        for chain in await self._journal.chains():
            chains.setdefault(chain.entries[0].step_id, []).append(chain)
        titles = {str(view.id): view.text("title") for view in await book.views(MISSIONS.name)}
        return [
            await self._bucket(view, in_order(steps.get(view.id, ())), chains, titles)
            for view in iterations[:limit]
        ]

    async def _bucket(
        self,
        iteration: View,
        steps: Sequence[View],
        chains: Mapping[str, Sequence[Chain]],
        titles: Mapping[str, str],
    ) -> Bucket:
        lines = [await self._line(step, iteration, chains.get(step.id, ())) for step in steps]
        lines += _refusals(iteration)
        own = [chain for step in steps for chain in chains.get(step.id, ())]
        actor = iteration.actors.get("missionId")
        agent_id = actor.principal_id if actor is not None and actor.kind == "ai" else ""
        if not agent_id:
            mission = await self._opened.find(MISSIONS.name, iteration.text("missionId"))
            agent_id = mission.text("agentId") if mission is not None else ""
        agent = await self._opened.agent_or_none(agent_id)
        mission_id = iteration.text("missionId")
        return Bucket(
            iteration_id=iteration.id,
            mission_id=mission_id,
            mission_title=titles.get(mission_id) or iteration.text("missionTitle"),
            agent_id=agent_id,
            agent_name=agent.name if agent is not None else iteration.text("agentName"),
            agent_avatar=agent.avatar if agent is not None else iteration.text("agentAvatar"),
            at_ms=_at_ms(iteration),
            summary=visible(iteration.text("summary")),
            source=iteration.text("source"),
            model=iteration.text("model"),
            tokens=tokens_of(iteration),
            cost=cost_of(iteration),
            flags=flags_of(iteration),
            lines=tuple(lines),
            revertible=any(not chain.reverted for chain in own),
            reverted=bool(own) and all(chain.reverted for chain in own),
            feedback=iteration.text("feedback"),
        )

    async def _line(self, step: View, iteration: View, chains: Sequence[Chain]) -> TimelineLine:
        status = step.text("status")
        at_ms = planned_ms(step, iteration)
        if not chains:
            note = step.text("feedback") or step.text("result") or _NOTES.get(status, "")
            return TimelineLine(
                step_id=step.id,
                sentence=visible(step.text("sentence")),
                state=_STATES.get(status, "done"),
                journal_ids=(),
                diffs=await self._steps.diffs(step.values.get("preview")),
                at_ms=at_ms,
                note=note,
            )
        state, note = await self._state(chains)
        written = max(chain.entries[0].at for chain in chains)[:24]
        return TimelineLine(
            step_id=step.id,
            sentence=visible(chains[0].entries[0].sentence or step.text("sentence")),
            state=state,
            journal_ids=tuple(chain.last.id for chain in chains),
            diffs=await self._diffs(chains),
            at_ms=_ms(written) or at_ms,
            note=note or step.text("feedback") or self._edited(step),
            edited=was_edited(step),
        )

    def _edited(self, step: View) -> str:
        if not was_edited(step):
            return ""
        actor = step.actors.get("edited")
        mine = actor is not None and actor.principal_id == self._opened.account_id
        return EDITED if mine else EDITED_BY_OTHER

    async def _state(self, chains: Sequence[Chain]) -> tuple[str, str]:
        """Return what became of a write: done, reverted, or changed since."""
        if all(chain.reverted for chain in chains):
            return "reverted", ""
        changed: set[str] = set()
        for chain in chains:
            if chain.reverted:
                continue
            now = await self._journal.record_now(chain.last.table, chain.last.record_id)
            for path in chain.last.after:
                found = now.paths.get(path)
                if found is not None and not chain.wrote(path, found):
                    changed.add("you" if found.actor.kind == "user" else "an agent")
            if not now.paths:
                changed.add("you")
        if changed:
            by = "you" if "you" in changed else "an agent"
            return "changed", f"Changed since by {by}."
        return "done", ""

    async def _diffs(self, chains: Sequence[Chain]) -> tuple[RecordDiff, ...]:
        """Return what was written, as it was at the time."""
        found: list[RecordDiff] = []
        for chain in sorted(chains, key=lambda one: (one.last.table, one.last.record_id)):
            entry = chain.entries[0]
            view = await self._opened.find(entry.table, entry.record_id)
            after = {path: image.value for path, image in entry.after.items()}
            named = self._opened.title_field(entry.table)
            title = self._opened.title(view) or (str(after.get(named) or "") if named else "")
            before: dict[str, Json] = {path: image.value for path, image in entry.before.items()}
            op = "insert" if entry.created else "update"
            found.append(record_diff(entry.table, entry.record_id, op, before, after, title=title))
        return tuple(found)


def _refusals(iteration: View) -> list[TimelineLine]:
    """Return the calls of a run that were refused, as lines of their own."""
    listed = iteration.values.get("refusals")
    lines: list[TimelineLine] = []
    for number, item in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(item, dict) or number >= REFUSALS_SHOWN:
            continue
        tool, code = str(item.get("tool") or ""), str(item.get("code") or "")
        why = refused_call_words(code, str(item.get("message") or ""))
        lines.append(
            TimelineLine(
                step_id=f"{iteration.id}-refused-{number}",
                sentence=visible(f"{_asked(tool)} did not happen: {why}"),
                state="refused",
                journal_ids=(),
                diffs=(),
                at_ms=_at_ms(iteration),
                note=code,
            )
        )
    return lines


def _asked(tool: str) -> str:
    """Return what a model asked for, as a sentence begins with it."""
    words = tool_words(tool)
    return f"“{words[:1].upper()}{words[1:]}”" if words else "A call"


def _at_ms(iteration: View) -> int:
    return _ms(iteration.text("finishedAt")) or _ms(iteration.text("scheduledFor"))


def _ms(text: str) -> int:
    try:
        return parse_iso_ms(text) if text else 0
    except Invalid:
        return 0
