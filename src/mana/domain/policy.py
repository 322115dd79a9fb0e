"""Which decision a tool call by an AI actor gets: auto, propose or deny.

The strictest of the agent's policy, the space's and the floor wins. People and the system
are not asked. A missing agent means deny, not default (DESIGN 7, *Policy*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.tools import Effect

Decision = Literal["auto", "propose", "deny"]
DECISIONS: Final = ("auto", "propose", "deny")
EFFECTS: Final = ("read", "write", "destructive", "external")
CALLS_PER_WINDOW_MAX: Final = 30
WINDOW_MS: Final = 60_000
EXTERNAL_PER_RUN_MAX: Final = 10
_STRICTNESS: Final[Mapping[Decision, int]] = {"auto": 0, "propose": 1, "deny": 2}


@dataclass(frozen=True, slots=True)
class Policy:
    """An agent's policy: by tool name, else by the tool's effect."""

    by_effect: Mapping[Effect, Decision]
    by_tool: Mapping[str, Decision] = field(default_factory=dict)

    def decision(self, tool: str, effect: Effect) -> Decision:
        """Return this policy's own decision; an effect that it does not list is denied."""
        listed = self.by_tool.get(tool)
        return listed if listed is not None else self.by_effect.get(effect, "deny")

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form, `{tools, defaultsByEffect}`."""
        effects: dict[str, Json] = dict(self.by_effect.items())
        return {"tools": dict(self.by_tool), "defaultsByEffect": effects}


@dataclass(frozen=True, slots=True)
class SpacePolicy:
    """What a space lifts from the floor: names of destructive or external tools."""

    lifted: frozenset[str] = frozenset()


STANDARD: Final = Policy(
    {"read": "auto", "write": "propose", "destructive": "propose", "external": "propose"}
)
CAUTIOUS: Final = Policy(
    {"read": "auto", "write": "propose", "destructive": "deny", "external": "deny"}
)
AGGRESSIVE: Final = Policy(
    {"read": "auto", "write": "auto", "destructive": "propose", "external": "propose"}
)
PRESETS: Final[Mapping[str, Policy]] = {
    "standard": STANDARD,
    "cautious": CAUTIOUS,
    "aggressive": AGGRESSIVE,
}


def strictest(*decisions: Decision) -> Decision:
    """Return the strictest of the decisions."""
    return max(decisions, key=_STRICTNESS.__getitem__)


def floor(
    tool: str, effect: Effect, space: SpacePolicy, *, tainted: bool, always_asks: bool = False
) -> Decision:
    """Return the least strict decision that any policy may reach for this call.

    `tainted`: record text or foreign text is in the model's context, so an external call is
    always proposed, whatever the space has lifted. `always_asks`: as the tool declares.
    """
    if always_asks:
        return "propose"
    if effect in ("read", "write"):
        return "auto"
    if effect == "external" and tainted:
        return "propose"
    return "auto" if tool in space.lifted else "propose"


def decide(
    tool: str,
    effect: Effect,
    *,
    agent: Policy | None,
    space: SpacePolicy,
    tainted: bool,
    always_asks: bool = False,
) -> Decision:
    """Return the decision for an AI actor. `agent` is None when it is missing or deleted."""
    if agent is None:
        return "deny"
    least = floor(tool, effect, space, tainted=tainted, always_asks=always_asks)
    return strictest(agent.decision(tool, effect), least)


def is_too_often(moments_ms: Sequence[int], now_ms: int) -> bool:
    """Say whether one more call of a tool would be too many after those at these moments.

    A clock that was set back counts every later moment: it never makes room.
    """
    recent = sum(1 for moment in moments_ms if moment > now_ms - WINDOW_MS)
    return recent >= CALLS_PER_WINDOW_MAX


def policy_from_wire(value: Json) -> Policy:
    """Return the policy of a stored form; raise Invalid for any other shape or word."""
    if not isinstance(value, dict) or not set(value) <= {"tools", "defaultsByEffect"}:
        raise Invalid("policy is {tools, defaultsByEffect}")
    tools, effects = value.get("tools", {}), value.get("defaultsByEffect", {})
    if not isinstance(tools, dict) or not isinstance(effects, dict):
        raise Invalid("policy is {tools, defaultsByEffect}")
    if not set(effects) <= set(EFFECTS):
        raise Invalid("policy names an effect that does not exist")
    if any(word not in DECISIONS for word in (*tools.values(), *effects.values())):
        raise Invalid("policy decisions are auto, propose and deny")
    return Policy({**effects}, {**tools})  # type: ignore[dict-item]


def preset_of(policy: Policy) -> str | None:
    """Return the preset's name if the policy is one, for the page."""
    return next((name for name, known in PRESETS.items() if known == policy), None)
