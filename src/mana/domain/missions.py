"""Missions: standing goals given to an agent, and what of them the hub may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mana.domain.cadences import MANUAL, Cadence, cadence_from_wire
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import require_record_id
from mana.domain.money import COST_PER_DAY_MAX, TOKENS_PER_DAY_MAX, whole_or_none
from mana.domain.records import View
from mana.domain.tables import Choice, Document, Identifier, Table, Text, Whole, plain, sealed

MissionState = Literal["active", "paused", "done", "archived"]
MISSION_STATES: Final = ("active", "paused", "done", "archived")
IfMissed = Literal["once", "skip", "all"]
IF_MISSED: Final = ("once", "skip", "all")
"""What becomes of due moments that passed while nothing could run: the newest runs once for all, or
none runs, or each of the newest `MISSED_RUN_MAX` runs. The others are in the ledger as missed.
"""
RUNS_ON_HUB: Final = "hub"
INPUTS_MAX: Final = 200

MISSIONS: Final = Table(
    name="aiMissions",
    app_id="ai",
    authority=True,
    agents_may_write=False,
    title_field="title",
    described="Standing goals given to an agent.",
    fields=(
        sealed("title", Text(200)),
        sealed("objective", Text(8_000)),
        sealed("conceptMarkdown", Text(20_000)),
        sealed("inputs", Document(65_536)),
        sealed("grantId", Identifier()),
        plain(
            "state",
            Choice(MISSION_STATES),
            because="the hub starts active missions only",
            default="active",
        ),
        plain("cadence", Document(1_024), because="the hub must know when a mission is due"),
        plain("timeZone", Text(64), because="the hub must know when a mission is due"),
        plain("agentId", Identifier(), because="the hub applies the agent's state and budget"),
        plain(
            "runsOn",
            Text(64),
            because="a mission runs in one place, and the hub must know whether it is that place",
            default=RUNS_ON_HUB,
        ),
        plain(
            "ifMissed",
            Choice(IF_MISSED),
            because="the hub decides what becomes of moments that passed while it was down",
            default="once",
        ),
        plain(
            "maxTokensPerDay",
            Whole(0, TOKENS_PER_DAY_MAX),
            because="the hub stops a mission at its budget before a model is called",
        ),
        plain(
            "maxCostPerDay",
            Whole(0, COST_PER_DAY_MAX),
            because="the hub stops a mission at its budget before a model is called",
        ),
    ),
)
"""`maxCostPerDay`: millionths of the hub's currency, as everywhere where costs are kept."""


@dataclass(frozen=True, slots=True, order=True)
class InputRef:
    """A record that a mission looks at: its module, table and id."""

    module: str
    table: str
    id: str

    @property
    def key(self) -> str:
        """Return `table:id`, as grants name it."""
        return f"{self.table}:{self.id}"

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form."""
        return {"module": self.module, "table": self.table, "id": self.id}


@dataclass(frozen=True, slots=True)
class Mission:
    """An opened mission."""

    id: str
    title: str
    objective: str
    concept: str
    inputs: tuple[InputRef, ...]
    cadence: Cadence
    zone: str
    agent_id: str
    state: MissionState
    runs_on: str
    grant_id: str | None
    if_missed: IfMissed = "once"
    tokens_per_day_max: int | None = None
    cost_per_day_max: int | None = None


def inputs_from_wire(value: Json) -> tuple[InputRef, ...]:
    """Return the inputs of a stored form, in order, without doubles."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > INPUTS_MAX:
        raise Invalid(f"inputs are a list of at most {INPUTS_MAX}")
    found: dict[InputRef, None] = {}
    for item in value:
        if not isinstance(item, dict) or set(item) != {"module", "table", "id"}:
            raise Invalid("an input is {module, table, id}")
        if not all(isinstance(part, str) and 0 < len(part) <= 128 for part in item.values()):
            raise Invalid("an input is {module, table, id}")
        require_record_id(str(item["id"]))
        found[InputRef(str(item["module"]), str(item["table"]), str(item["id"]))] = None
    return tuple(found)


def mission_from_view(view: View) -> Mission:
    """Return the mission of an opened record; raise Invalid if a deciding field is malformed."""
    state = view.values.get("state", "active")
    if state not in MISSION_STATES:
        raise Invalid("mission state is not known")
    cadence = view.values.get("cadence")
    grant_id = view.values.get("grantId")
    if_missed = view.values.get("ifMissed")
    return Mission(
        id=view.id,
        title=view.text("title"),
        objective=view.text("objective"),
        concept=view.text("conceptMarkdown"),
        inputs=inputs_from_wire(view.values.get("inputs")),
        cadence=MANUAL if cadence is None else cadence_from_wire(cadence),
        zone=view.text("timeZone") or "UTC",
        agent_id=view.text("agentId"),
        state=state,  # type: ignore[arg-type]
        runs_on=view.text("runsOn") or RUNS_ON_HUB,
        grant_id=grant_id if isinstance(grant_id, str) else None,
        if_missed=if_missed if if_missed in IF_MISSED else "once",  # type: ignore[arg-type]
        tokens_per_day_max=whole_or_none(view, "maxTokensPerDay"),
        cost_per_day_max=whole_or_none(view, "maxCostPerDay"),
    )
