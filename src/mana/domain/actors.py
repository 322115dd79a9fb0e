"""Who made a change. Passed explicitly, never an ambient slot.

On the wire: `{kind, principalId, missionId?, iterationId?, teamId?}` and nothing that a
person or a model wrote: display names and rationale are sealed in the step or journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mana.domain.encoding import Json
from mana.domain.errors import Invalid

ActorKind = Literal["user", "ai", "system"]
Origin = Literal["user", "agent", "system", "migration"]
ORIGINS: Final = ("user", "agent", "system", "migration")
_SYSTEM_PREFIX: Final = "system:"
_WIRE: Final = {
    "kind": "kind",
    "principal_id": "principalId",
    "mission_id": "missionId",
    "iteration_id": "iterationId",
    "team_id": "teamId",
}


@dataclass(frozen=True, slots=True)
class Actor:
    """A person, an agent at work on a mission, or the system itself."""

    kind: ActorKind
    principal_id: str
    mission_id: str | None = None
    iteration_id: str | None = None
    team_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse an agent without its mission and iteration: no anonymous AI write exists."""
        if self.kind not in ("user", "ai", "system"):
            raise Invalid("actor kind is not user, ai or system")
        if not self.principal_id or len(self.principal_id) > 128:
            raise Invalid("actor has no principal")
        if self.kind == "ai" and not (self.mission_id and self.iteration_id):
            raise Invalid("an AI actor names its mission and its iteration")
        if self.kind != "ai" and (self.mission_id or self.iteration_id):
            raise Invalid("only an AI actor names a mission or an iteration")
        if self.kind == "system" and not self.principal_id.startswith(_SYSTEM_PREFIX):
            raise Invalid("a system actor is named system:<part>")

    def to_wire(self) -> dict[str, Json]:
        """Return the wire form; absent members are left out, so the bytes are canonical."""
        return {
            wire: value
            for name, wire in _WIRE.items()
            if (value := getattr(self, name)) is not None
        }


def actor_from_wire(value: object) -> Actor:
    """Return the actor of a wire form; raise Invalid for any other shape."""
    if not isinstance(value, dict) or not set(value) <= set(_WIRE.values()):
        raise Invalid("actor has members that are not known")
    if not all(isinstance(member, str) and len(member) <= 128 for member in value.values()):
        raise Invalid("actor members are short strings")
    if "kind" not in value or "principalId" not in value:
        raise Invalid("actor has no kind or no principal")
    return Actor(**{name: value[wire] for name, wire in _WIRE.items() if wire in value})


def person(account_id: str) -> Actor:
    """Return the actor of a person at a device."""
    return Actor("user", account_id)


def agent_at_work(agent_id: str, mission_id: str, iteration_id: str) -> Actor:
    """Return the actor of an agent in one iteration of one mission."""
    return Actor("ai", agent_id, mission_id, iteration_id)


def origin_of(actor: Actor) -> Origin:
    """Return where a write by this actor comes from (reference: engine 2.5)."""
    if actor.kind == "ai":
        return "agent"
    if actor.kind == "system":
        return "migration" if actor.principal_id == "system:migration" else "system"
    return "user"
