"""How an agent's proposals fared, and for which reasons those of a mission were rejected.

Counted from what people decided; what ran by itself is no decision of anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mana.device.cases import tool_of, was_edited, written_by
from mana.device.opened import Opened, stamp_ms
from mana.device.views import Acceptance, AcceptRate, AcceptWeek, RejectedFor, ToolAcceptance
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Invalid
from mana.domain.iterations import STEPS
from mana.domain.records import View

DAY_MS: Final = 24 * 60 * 60 * 1_000
TREND_MS: Final = 30 * DAY_MS
WEEKS: Final = 12
SAID_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class _Decided:
    """One proposal with what became of it: approved, rejected or expired, and when."""

    tool: str
    state: str
    edited: bool
    at_ms: int


async def acceptance(opened: Opened, agent_id: str) -> Acceptance:
    """Return how the proposals of an agent fared: in all, by tool, by week."""
    now_ms = opened.now_ms()
    decided = [
        one
        for view in await opened.book.views(STEPS.name)
        if written_by(view) == agent_id and (one := _decided(view)) is not None
    ]
    tools = sorted({one.tool for one in decided})
    return Acceptance(
        agent_id=agent_id,
        total=_rate(decided, now_ms),
        tools=tuple(
            ToolAcceptance(tool, _rate([one for one in decided if one.tool == tool], now_ms))
            for tool in tools
        ),
        weeks=_weeks(decided, now_ms),
    )


async def rejections(opened: Opened, mission_id: str) -> list[RejectedFor]:
    """Return for which reasons proposals of a mission were rejected, the most frequent first."""
    by_reason: dict[str, list[View]] = {}
    for view in await opened.book.views(STEPS.name):
        if view.text("missionId") == mission_id and view.text("status") == "rejected":
            by_reason.setdefault(view.text("rejectReason"), []).append(view)
    found: list[RejectedFor] = []
    for reason, views in by_reason.items():
        views.sort(key=_at_ms, reverse=True)
        said = [view.text("feedback") for view in views if view.text("feedback")]
        found.append(RejectedFor(reason, len(views), _at_ms(views[0]), tuple(said[:SAID_MAX])))
    return sorted(found, key=lambda one: (-one.count, -one.newest_ms, one.reason))


def _decided(step: View) -> _Decided | None:
    """Return what became of a proposal; None where nobody decided, or nobody was asked."""
    state = step.text("status")
    is_person_s = state in ("approved", "rejected") and bool(step.text("decidedAt"))
    if not is_person_s and state != "expired":
        return None
    return _Decided(tool_of(step), state, was_edited(step), _at_ms(step))


def _at_ms(step: View) -> int:
    try:
        return parse_iso_ms(step.text("decidedAt"))
    except Invalid:
        return stamp_ms(step.stamps.get("status"))


def _rate(decided: Sequence[_Decided], now_ms: int) -> AcceptRate:
    def count(state: str) -> int:
        return sum(one.state == state for one in decided)

    since, before = now_ms - TREND_MS, now_ms - 2 * TREND_MS
    newer = _percent(one for one in decided if one.at_ms > since)
    older = _percent(one for one in decided if before < one.at_ms <= since)
    return AcceptRate(
        approved=count("approved"),
        edited=sum(one.edited for one in decided),
        rejected=count("rejected"),
        expired=count("expired"),
        percent=_percent(decided),
        trend=None if newer is None or older is None else newer - older,
    )


def _percent(decided: Iterable[_Decided]) -> int | None:
    """Return how many of those on which a person decided were approved, rounded down."""
    states = [one.state for one in decided if one.state != "expired"]
    return states.count("approved") * 100 // len(states) if states else None


def _weeks(decided: Sequence[_Decided], now_ms: int) -> tuple[AcceptWeek, ...]:
    """Return the last weeks, that of now last; the days of a week end now."""
    week_ms = 7 * DAY_MS
    weeks: list[AcceptWeek] = []
    for number in reversed(range(WEEKS)):
        start = now_ms - (number + 1) * week_ms
        states = [one.state for one in decided if start < one.at_ms <= start + week_ms]
        weeks.append(AcceptWeek(start, states.count("approved"), states.count("rejected")))
    return tuple(weeks)
