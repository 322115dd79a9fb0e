"""Earlier runs as the next prompt tells them, from opened records; the same on hub and device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mana.domain.encoding import Json, canonical_json
from mana.domain.iterations import ITERATIONS, REJECT_REASONS, STEPS
from mana.domain.records import View
from mana.planning.prompt import PastIteration, PastStep, one_line

PAST_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    ITERATIONS.name: frozenset({"missionId", "scheduledFor", "startedAt", "summary", "feedback"}),
    STEPS.name: frozenset(
        {
            "missionId",
            "iterationId",
            "index",
            "status",
            "intent",
            "edited",
            "sentence",
            "feedback",
            "rejectReason",
        }
    ),
}
"""By table what is told of earlier runs; nothing else of them needs to be opened."""
_VALUE_MAX: Final = 80


def past_from_views(iterations: Iterable[View], steps: Iterable[View]) -> tuple[PastIteration, ...]:
    """Return the runs of these records, oldest first; deleted ones are left out.

    A step belongs to the run that it names, and only if both name the same mission.
    """
    by_run: dict[tuple[str, str], list[View]] = {}
    for step in steps:
        if not step.deleted:
            by_run.setdefault((step.text("iterationId"), step.text("missionId")), []).append(step)
    live = sorted(
        (view for view in iterations if not view.deleted),
        key=lambda view: (view.text("scheduledFor"), view.id),
    )
    return tuple(
        PastIteration(
            id=view.id,
            started_at=view.text("startedAt") or view.text("scheduledFor"),
            summary=view.text("summary"),
            steps=_past_steps(by_run.get((view.id, view.text("missionId")), ())),
            feedback=view.text("feedback"),
        )
        for view in live
    )


def _past_steps(steps: Sequence[View]) -> tuple[PastStep, ...]:
    return tuple(_past_step(step) for step in sorted(steps, key=_place))


def _place(step: View) -> tuple[int, str]:
    index = step.values.get("index")
    return (index if isinstance(index, int) else 0, step.id)


def _past_step(step: View) -> PastStep:
    intent = step.values.get("intent")
    tool = intent.get("toolName") if isinstance(intent, dict) else None
    reason = step.text("rejectReason")
    return PastStep(
        tool=tool if isinstance(tool, str) else "",
        sentence=step.text("sentence"),
        status=step.text("status"),
        feedback=step.text("feedback"),
        edited=_edited(intent, step.values.get("edited")),
        reject_reason=reason if reason in REJECT_REASONS else "",
    )


def _edited(intent: Json, edited: Json) -> str:
    """Return which arguments the person changed, old and new; empty where nothing was edited."""
    was, now = _params(intent), _params(edited)
    if was is None or now is None:
        return ""
    changed = [
        f"{one_line(name, _VALUE_MAX)}: {_shown(was.get(name))} → {_shown(now.get(name))}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]
    return "; ".join(changed)


def _params(held: Json) -> dict[str, Json] | None:
    params = held.get("params") if isinstance(held, dict) else None
    return params if isinstance(params, dict) else None


def _shown(value: Json) -> str:
    """Return a value on one line; what is absent says so."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else canonical_json(value).decode("utf-8")
    return f"“{one_line(text, _VALUE_MAX)}”"
