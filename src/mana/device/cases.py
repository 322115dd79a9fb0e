"""A step with what it hangs on, and what it would do, or did: plain values, read off the records.

Nothing here reads or decides. `steps.py` makes these, and says what a step would do now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mana.device.names import FLAGS
from mana.device.views import Fault
from mana.domain.actors import agent_at_work
from mana.domain.agents import Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.iterations import PathImage, binding_hash
from mana.domain.policy import SpacePolicy
from mana.domain.records import Snapshot, View, with_changes
from mana.domain.tables import Table
from mana.planning.dispatch import Caller, intent_of


@dataclass(frozen=True, slots=True)
class Case:
    """A step with what it hangs on. `agent` is None where it is missing: deny."""

    step: View
    iteration: View | None
    agent: Agent | None
    agent_id: str
    mission_title: str
    tool: str
    params: Mapping[str, Json]
    preview: Json
    base: Json
    binding: str
    verified: bool
    reason: str
    grantor: str = ""
    """Who granted the run, where it is the hub's and that is known."""
    for_others: bool = False
    """Another member granted the run, and it is for them, or a manager, to decide."""
    space: SpacePolicy = field(default_factory=SpacePolicy)
    mission_state: str = ""
    """Empty where the mission is gone."""

    @property
    def id(self) -> str:
        """Return the step's id."""
        return self.step.id

    @property
    def status(self) -> str:
        """Return the guarded status."""
        return self.step.text("status")

    @property
    def index(self) -> int:
        """Return the step's place in its run."""
        index = self.step.values.get("index")
        return index if isinstance(index, int) else 0

    @property
    def expires_ms(self) -> int | None:
        """Return when the proposal ends by itself."""
        text = self.step.text("expiresAt")
        try:
            return parse_iso_ms(text) if text else None
        except Invalid:
            return None

    @property
    def caller(self) -> Caller:
        """Return the agent as the caller of its tool, under its policy of now."""
        actor = agent_at_work(
            self.agent_id, self.step.text("missionId"), self.step.text("iterationId")
        )
        policy = self.agent.policy if self.agent is not None else None
        return Caller(actor, policy, space=self.space, tainted=True)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a step would do now. `trouble` says why it cannot be done; then nothing is shown.

    `waits`: it rests on an earlier step that nobody decided on yet. `params` are those of the
    person, where they gave others than the agent, and `faults` what is wrong with them.
    """

    preview: Json
    binding: str
    sentence: str
    moved: bool = False
    trouble: str = ""
    waits: str = ""
    base: Json = None
    params: Mapping[str, Json] | None = None
    faults: tuple[Fault, ...] = ()

    def to_wire(self) -> dict[str, Json]:
        """Return what is kept of an edit: `{params, sentence, preview, base, binding}`."""
        return {
            "params": dict(self.params or {}),
            "sentence": self.sentence,
            "preview": self.preview,
            "base": self.base,
            "binding": self.binding,
        }


@dataclass(slots=True)
class Together:
    """What earlier steps of the same decision are about to write, as later ones see it."""

    changes: list[Change] = field(default_factory=list)
    written: dict[tuple[str, str], dict[str, tuple[str, Json]]] = field(default_factory=dict)
    """By table and record, and path: the step that writes last, and its value."""
    made: dict[tuple[str, str], str] = field(default_factory=dict)
    """By table and record the step that creates it."""

    def add(self, step_id: str, change: Change) -> None:
        """Note one change of an earlier step."""
        key = (change.table, change.record_id)
        self.changes.append(change)
        if change.kind is ChangeKind.CREATE:
            self.made[key] = step_id
        paths = self.written.setdefault(key, {})
        paths.update({path: (step_id, value) for path, value in change.values.items()})

    def over(self, records: Snapshot) -> Snapshot:
        """Return the records as they will be after these changes."""
        if not self.changes:
            return records

        def load(table: Table) -> Sequence[View]:
            return with_changes(records.load(table), table, self.changes)

        return replace(records, load=load)

    def before(self, change: Change, images: Mapping[str, PathImage]) -> dict[str, PathImage]:
        """Return what a later change of the same decision replaces."""
        key = (change.table, change.record_id)
        written = self.written.get(key, {})
        return {
            path: PathImage(written[path][1], None) if path in written else images[path]
            for path in change.values
            if path in written or path in images
        }


def approved_edit(case: Case) -> Shown | None:
    """Return what the person approved instead of what was proposed; None where they did not.

    It counts only as one with the decision: whatever was written beside it later is nobody's word.
    """
    found, stamps = case.step.values.get("edited"), case.step.stamps
    if case.status != "approved" or not isinstance(found, dict):
        return None
    params, preview, base = found.get("params"), found.get("preview"), found.get("base")
    if stamps.get("edited") != stamps.get("status") or not isinstance(params, dict):
        return None
    binding = found.get("binding")
    if binding_hash(intent_of(case.tool, params), preview, base) != binding:
        return None
    sentence = str(found.get("sentence") or "")
    return Shown(preview, str(binding), sentence, base=base, params=params)


def was_edited(step: View) -> bool:
    """Say whether the person changed a step before they approved it."""
    return (
        step.text("status") == "approved"
        and isinstance(step.values.get("edited"), dict)
        and step.stamps.get("edited") == step.stamps.get("status")
    )


def written_by(step: View) -> str:
    """Return the agent that planned a step; empty where that is not known."""
    actor = step.actors.get("intent")
    return actor.principal_id if actor is not None else ""


def tool_of(step: View) -> str:
    """Return the name of the tool that a step would call; empty where it cannot be read."""
    intent = step.values.get("intent")
    return str(intent.get("toolName") or "") if isinstance(intent, dict) else ""


def planned_ms(step: View, iteration: View | None) -> int:
    """Return when a step was planned: the end of its run."""
    for text in (
        iteration.text("finishedAt") if iteration is not None else "",
        step.created_at[:24],
    ):
        try:
            if text:
                return parse_iso_ms(text)
        except Invalid:
            continue
    return 0


def tokens_of(iteration: View | None) -> int:
    """Return the tokens of a whole run."""
    usage = iteration.values.get("usage") if iteration is not None else None
    if not isinstance(usage, dict):
        return 0
    counted = (usage.get("promptTokens"), usage.get("completionTokens"))
    return sum(tokens for tokens in counted if isinstance(tokens, int))


def cost_of(iteration: View | None) -> int | None:
    """Return what a whole run cost, in millionths; None where nobody can say it."""
    usage = iteration.values.get("usage") if iteration is not None else None
    cost = usage.get("cost") if isinstance(usage, dict) else None
    return cost if isinstance(cost, int) and not isinstance(cost, bool) and cost >= 0 else None


def flags_of(iteration: View | None) -> tuple[str, ...]:
    """Return what is to be known of a run, of what this version has words for."""
    usage = iteration.values.get("usage") if iteration is not None else None
    listed = usage.get("flags") if isinstance(usage, dict) else None
    return tuple(one for one in FLAGS if isinstance(listed, list) and one in listed)


def in_order(steps: Sequence[View]) -> list[View]:
    """Return steps by their place in the run."""

    def place(view: View) -> tuple[int, str]:
        index = view.values.get("index")
        return (index if isinstance(index, int) else 0, view.id)

    return sorted(steps, key=place)
