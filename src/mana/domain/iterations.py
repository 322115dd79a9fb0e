"""Iterations, their steps, and the journal: records of what AI planned and did.

Iterations are immutable. A step's `status` and `claimedBy` are guarded: they change only by
compare-and-set on the hub, so one decision wins. A proposal is a step in state `staged`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mana.domain.encoding import Json, canonical_json, sha256
from mana.domain.tables import (
    Choice,
    Document,
    Identifier,
    Moment,
    Sealing,
    Table,
    Text,
    Whole,
    guarded,
    plain,
    sealed,
)

STEP_STATUSES: Final = (
    "planned",
    "staged",
    "executing",
    "approved",
    "rejected",
    "skipped",
    "failed",
    "expired",
)
STEPS_MAX: Final = 25
REJECT_REASONS: Final = ("not-needed", "wrong", "too-much", "not-now", "style", "other")
_KEY: Final = "it chooses the key, and binds the step to its run"

ITERATIONS: Final = Table(
    name="aiIterations",
    app_id="ai",
    sealing=Sealing.MISSION,
    authority=True,
    agents_may_write=False,
    described="Runs of missions; immutable.",
    fields=(
        plain("missionId", Identifier(), because=_KEY, fixed=True),
        plain("scheduledFor", Moment(), because="one occurrence is one iteration", fixed=True),
        plain("source", Choice(("hub", "device")), because="who may have signed it", fixed=True),
        plain("stepIds", Document(4_096), because="devices check that none is missing", fixed=True),
        plain("proof", Document(2_048), because="anyone may check who wrote it", fixed=True),
        sealed("agentName", Text(80)),
        sealed("agentAvatar", Text(16)),
        sealed("missionTitle", Text(200)),
        sealed("summary", Text(8_000)),
        sealed("model", Text(200)),
        sealed("endpoint", Text(500)),
        sealed("promptVersion", Text(64)),
        sealed("usage", Document(512)),
        sealed("stopReason", Text(64)),
        sealed("inputsRead", Document(65_536)),
        sealed("refusals", Document(16_384)),
        sealed("startedAt", Moment()),
        sealed("finishedAt", Moment()),
        sealed("feedback", Text(2_000)),
    ),
)
"""All but `feedback`, which a member writes later, is immutable."""
STEPS: Final = Table(
    name="aiSteps",
    app_id="ai",
    sealing=Sealing.MISSION,
    authority=True,
    agents_may_write=False,
    described="Steps of iterations; those in state staged are proposals.",
    fields=(
        plain("missionId", Identifier(), because=_KEY, fixed=True),
        plain("iterationId", Identifier(), because=_KEY, fixed=True),
        plain("index", Whole(0, STEPS_MAX), because="steps run in their order", fixed=True),
        guarded("status", Choice(STEP_STATUSES), because="the first decision wins, on the hub"),
        guarded("claimedBy", Identifier(), because="one device runs a step, and the hub decides"),
        sealed("intent", Document(65_536)),
        sealed("sentence", Text(2_000)),
        sealed("rationale", Text(4_000)),
        sealed("preview", Document(262_144)),
        sealed("base", Document(65_536)),
        sealed("binding", Text(64)),
        sealed("decision", Choice(("auto", "propose"))),
        sealed("expiresAt", Moment()),
        sealed("feedback", Text(2_000)),
        sealed("rejectReason", Choice(REJECT_REASONS)),
        sealed("edited", Document(262_144)),
        sealed("decidedAt", Moment()),
        sealed("result", Text(2_000)),
    ),
)
"""`edited`: `{params, sentence, preview, base, binding}` of what the person approved instead of what was
proposed, by the same tool. `rejectReason` groups what is said in `feedback`.
"""
JOURNAL: Final = Table(
    name="aiJournal",
    app_id="ai",
    sealing=Sealing.TARGET,
    agents_may_write=False,
    described="Before and after images of AI writes, for revert; purged with their target.",
    fields=(
        plain("targetTable", Identifier(), because="it chooses the key", fixed=True),
        plain("targetId", Identifier(), because="it chooses the key", fixed=True),
        plain("missionId", Identifier(), because="a mission is reverted as a whole", fixed=True),
        plain("iterationId", Identifier(), because="a run is reverted as a whole", fixed=True),
        plain("stepId", Identifier(), because="a step is reverted as a whole", fixed=True),
        plain("revertOf", Identifier(), because="a revert can be reverted", fixed=True),
        plain("revertedAt", Moment(), because="devices agree on what is already reverted"),
        sealed("before", Document(262_144)),
        sealed("after", Document(262_144)),
        sealed("created", Document(16)),
        sealed("sentence", Text(2_000)),
    ),
)


@dataclass(frozen=True, slots=True)
class PathImage:
    """A path of a record at one time: its opened value and its stamp; both None if absent."""

    value: Json
    at: str | None

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form."""
        return {"value": self.value, "at": self.at}


def binding_hash(intent: Json, preview: Json, base: Json) -> str:
    """Return what an approval is bound to: exactly what was shown, on exactly that base."""
    shown: Mapping[str, Json] = {"base": base, "intent": intent, "preview": preview}
    return sha256(canonical_json(shown)).hex()
