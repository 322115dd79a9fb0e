"""Guardrails: what a run may send, plan and call, judged without asking anybody.

Three places: before planning (what would be sent), before a call is taken (arguments, and how
often), and after planning (the plan as a whole). A person cannot switch them off. What blocks a
run raises; what blocks a call is a refusal that the model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from mana.domain.encoding import Json
from mana.domain.errors import Conflict
from mana.domain.iterations import STEPS_MAX
from mana.domain.policy import EXTERNAL_PER_RUN_MAX, is_too_often
from mana.domain.tools import Effect
from mana.planning.dispatch import PlannedStep, Refused
from mana.planning.ports import Message
from mana.registry.catalogue import Catalogue

INPUT_CHARS_MAX: Final = 100_000
"""Characters that a run may send or read, over everything: persona, memory, mission, inputs, history,
and what its reads answer.
"""
_IRREVOCABLE: Final[tuple[Effect, ...]] = ("destructive", "external")


class GuardrailBlocked(Conflict):
    """A guardrail ended the run; its name is in `detail`."""

    code: ClassVar[str] = "GUARDRAIL"
    advice: ClassVar[str] = "Look at the mission's text and inputs, or give it a smaller task."

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message, detail={"guardrail": name})


class InputTooLarge(GuardrailBlocked):
    """What the run would send to a model is more text than one run may send."""

    code: ClassVar[str] = "INPUT_SIZE_LIMIT"
    advice: ClassVar[str] = "Give the mission fewer or shorter inputs."

    def __init__(self) -> None:
        super().__init__(
            "input-size-limit", f"a run sends at most {INPUT_CHARS_MAX} characters to a model"
        )


def size_before_planning(messages: Sequence[Message]) -> int:
    """Return how many characters a run starts with; raise InputTooLarge beyond the limit."""
    size = sum(len(message.content) for message in messages)
    if size > INPUT_CHARS_MAX:
        raise InputTooLarge
    return size


@dataclass(slots=True)
class Rates:
    """How often the run called each tool, and when. `clock_ms` may stand still: then all counts."""

    clock_ms: Callable[[], int]
    _moments: dict[str, list[int]] = field(default_factory=dict)

    def taken(self, tool: str) -> Refused | None:
        """Count a call of a tool, or return why it is one too many."""
        now_ms = self.clock_ms()
        moments = self._moments.setdefault(tool, [])
        if is_too_often(moments, now_ms):
            return Refused("RATE_LIMIT", "this tool was called too often within a minute")
        moments.append(now_ms)
        return None


def before_call(
    tool: str, arguments: Json, *, catalogue: Catalogue, planned: Sequence[PlannedStep]
) -> Refused | None:
    """Return why a call may not even be tried, None if it may."""
    if catalogue.tool(tool).effect == "external":
        sent = sum(1 for step in planned if catalogue.tool(step.tool).effect == "external")
        if sent >= EXTERNAL_PER_RUN_MAX:
            limit = f"a run has at most {EXTERNAL_PER_RUN_MAX} steps that leave this machine"
            return Refused("EXTERNAL_LIMIT", limit)
    blank = _blank_text(catalogue.schema(tool), arguments)
    if blank is not None:
        return Refused("EMPTY_TEXT", f"{tool}: {blank} is empty", repairable=True)
    return None


def before_step(
    step: PlannedStep, *, catalogue: Catalogue, planned: Sequence[PlannedStep]
) -> Refused | None:
    """Return why a step may not join the plan, None if it may."""
    if _repeats_destruction(step, planned, catalogue):
        message = "an earlier step does this to the same record, and cannot be taken back"
        return Refused("DUPLICATE_DESTRUCTIVE", message)
    return None


def after_planning(steps: Sequence[PlannedStep], catalogue: Catalogue) -> None:
    """Judge a plan as a whole, whatever made it; raise GuardrailBlocked."""
    if len(steps) > STEPS_MAX:
        raise GuardrailBlocked("plan-step-limit", f"a plan has at most {STEPS_MAX} steps")
    for position, step in enumerate(steps):
        if _repeats_destruction(step, steps[:position], catalogue):
            raise GuardrailBlocked(
                "duplicate-destructive-tool", "a plan destroys the same record twice"
            )


def _repeats_destruction(
    step: PlannedStep, planned: Sequence[PlannedStep], catalogue: Catalogue
) -> bool:
    """Say whether an earlier step does what cannot be taken back to a record of this step."""
    if catalogue.tool(step.tool).effect not in _IRREVOCABLE:
        return False
    mine = {(change.table, change.record_id) for change in step.changes}
    return any(
        not mine.isdisjoint((change.table, change.record_id) for change in earlier.changes)
        for earlier in planned
        if earlier.tool == step.tool
    )


def _blank_text(schema: Mapping[str, Json], arguments: Json) -> str | None:
    """Return the name of a required text that holds nothing but white space."""
    function = schema.get("function")
    parameters = function.get("parameters") if isinstance(function, dict) else None
    required = parameters.get("required") if isinstance(parameters, dict) else None
    if not isinstance(required, list) or not isinstance(arguments, dict):
        return None
    for name in required:
        value = arguments.get(str(name))
        if isinstance(value, str) and not value.strip():
            return str(name)
    return None
