"""Dispatch: the only caller of `tool.run`.

`dispatch` answers an agent's reads and turns its writes into planned steps; it applies
nothing. `execute` returns the changes of a person's own action, or of a step that may run now,
for the device to apply. Every change is checked here against what its tool may touch, so that
a module cannot reach further than it declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar, Final, Literal

import msgspec

from mana.domain.actors import Actor
from mana.domain.agents import AGENT_MEMORY
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Conflict, Forbidden, Invalid, ManaError, NotFound, TooLarge
from mana.domain.ids import RecordId, StepId, created_id
from mana.domain.iterations import binding_hash
from mana.domain.policy import Decision, Policy, SpacePolicy, decide
from mana.domain.records import Records, View, with_changes
from mana.domain.tables import DELETED_AT, Table, defaults
from mana.domain.tools import PROPOSE_MEMORY, Call, Outcome, Tool, parse_call
from mana.registry.catalogue import Catalogue
from mana.registry.schemas import RATIONALE, RATIONALE_MAX

ARGUMENTS_BYTES_MAX: Final = 65_536
CHANGES_MAX: Final = 100
SENTENCE_MAX: Final = 2_000
PREVIEW_BYTES_MAX: Final = 262_144
BASE_BYTES_MAX: Final = 65_536
AFTER_STEP: Final = "step:"
"""In a base, before the id of the step of the same run that wrote the path last."""

_KINDS: Final = {kind.value: kind for kind in ChangeKind}
StepDecision = Literal["auto", "propose"]
Consent = Literal["policy", "approved"]
"""`approved`: a person accepted exactly this step. `policy`: nobody was asked."""


class ToolDenied(Forbidden):
    """The policy denies this tool to this agent."""

    code: ClassVar[str] = "TOOL_DENIED"
    advice: ClassVar[str] = "Allow the tool in the agent's policy, or leave it."


class NeedsApproval(Forbidden):
    """The policy wants a person to decide, and none has."""

    code: ClassVar[str] = "NEEDS_APPROVAL"
    advice: ClassVar[str] = "Decide on the proposal in the inbox."


class TableForbidden(Forbidden):
    """A tool would change a table that it does not own, or that agents may not write."""

    code: ClassVar[str] = "TABLE_FORBIDDEN"
    advice: ClassVar[str] = "Report it to the maker of the module."


class ChangeForbidden(Forbidden):
    """A tool returned a change that its kind of call may not make."""

    code: ClassVar[str] = "CHANGE_FORBIDDEN"
    advice: ClassVar[str] = "Report it to the maker of the module."


class FieldUnreadable(Conflict):
    """A field that would be written over holds something that cannot be opened here."""

    code: ClassVar[str] = "FIELD_UNREADABLE"
    advice: ClassVar[str] = "Do it on a device that holds the record's key."


class ToolFailed(Conflict):
    """A tool broke down; its module has a defect. What it said is not repeated."""

    code: ClassVar[str] = "TOOL_FAILED"
    advice: ClassVar[str] = "Report it to the maker of the module."


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what decides for them. `agent` is None if its policy is missing: deny.

    `tainted`: record text or foreign text is in the model's context. People and the system
    are not asked.
    """

    actor: Actor
    agent: Policy | None = None
    space: SpacePolicy = field(default_factory=SpacePolicy)
    tainted: bool = True

    def decision(self, tool: Tool) -> Decision:
        """Return the decision for a tool."""
        if self.actor.kind != "ai":
            return "auto"
        return decide(
            tool.name,
            tool.effect,
            agent=self.agent,
            space=self.space,
            tainted=self.tainted,
            always_asks=tool.always_asks,
        )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A write that a run planned, as it is shown, bound and kept.

    `preview`: `[{table, id, op, before, after}]`, both by path. `base`: by `table:id` the stamp
    of each path that would change, None where the path is absent, `step:<id>` where an earlier
    step of the run writes it; a record that this step creates has no base.
    """

    id: StepId
    index: int
    tool: str
    arguments: Mapping[str, Json]
    rationale: str
    decision: StepDecision
    sentence: str
    preview: Sequence[Json]
    base: Mapping[str, Json]
    binding: str
    changes: tuple[Change, ...]
    message: str
    data: Json = None

    @property
    def intent(self) -> dict[str, Json]:
        """Return what would be called: `{kind, toolName, params}`."""
        return intent_of(self.tool, self.arguments)


@dataclass(frozen=True, slots=True)
class Answered:
    """A read, or a write that comes to nothing."""

    message: str
    data: Json = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A write that became a step."""

    step: PlannedStep


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that did not happen. `repairable`: the arguments are at fault."""

    code: str
    message: str
    repairable: bool = False


class PlannedRecords:
    """Records as they would be after the steps planned so far; new ids come from a step.

    An agent sees no memory but its own, whatever the records hold.
    """

    def __init__(
        self,
        records: Records,
        actor: Actor,
        changes: Sequence[Change] = (),
        step: StepId | None = None,
    ) -> None:
        self._records = records
        self._actor = actor
        self._changes = tuple(changes)
        self._new_id = created_ids(step) if step is not None else None
        self._issued: set[str] = set()

    @property
    def today(self) -> str:
        """Return the current day in the person's zone."""
        return self._records.today

    @property
    def now(self) -> str:
        """Return the current moment."""
        return self._records.now

    def get(self, table: Table, record_id: str) -> View:
        """Return one live record; raise NotFound otherwise."""
        touched = any((c.table, c.record_id) == (table.name, record_id) for c in self._changes)
        if not touched and self._may_see(table, record_id):
            return self._records.get(table, record_id)
        for view in self.all(table):
            if view.id == record_id:
                return view
        raise NotFound(f"no record of {table.name} with this id can be read here")

    def all(self, table: Table) -> Sequence[View]:
        """Return the live records: those that the plan touches last first, then by writing."""
        views = [view for view in self._records.all(table) if self._may_see(table, view.id)]
        touched = {
            change.record_id: position
            for position, change in enumerate(self._changes)
            if change.table == table.name
        }
        if not touched:
            return views
        live = [view for view in with_changes(views, table, self._changes) if not view.deleted]
        return sorted(
            live,
            key=lambda view: (touched.get(view.id, -1), view.written_at, view.id),
            reverse=True,
        )

    def _may_see(self, table: Table, record_id: str) -> bool:
        if table.name != AGENT_MEMORY.name or self._actor.kind != "ai":
            return True
        return record_id == self._actor.principal_id

    def new(self, table: Table, values: Mapping[str, Json]) -> Change:
        """Return the change that creates a record with these values and the defaults."""
        if self._new_id is None:
            change = self._records.new(table, values)
            self._issued.add(change.record_id)
            return change
        merged = {**defaults(table), **values}
        for path, value in merged.items():
            table.check(path, value)
        return Change(table.name, self.next_id(), ChangeKind.CREATE, merged)

    def next_id(self) -> RecordId:
        """Return the id of the next record that the step creates."""
        if self._new_id is None:
            raise Invalid("these records belong to no step")
        fresh = self._new_id()
        self._issued.add(fresh)
        return fresh

    def is_issued(self, record_id: str) -> bool:
        """Say whether this id was given out here, so that a tool cannot name its own."""
        return record_id in self._issued

    def edit(self, view: View, values: Mapping[str, Json]) -> Change:
        """Return the change that writes these values to an existing record."""
        return Change(view.table, view.id, ChangeKind.UPDATE, dict(values))


def created_ids(step: StepId) -> Callable[[], RecordId]:
    """Return a source of the ids of the records that a step creates, in their order."""
    ordinals = count()
    return lambda: created_id(step, next(ordinals))


def intent_of(tool: str, arguments: Mapping[str, Json]) -> dict[str, Json]:
    """Return the stored form of a call."""
    return {"kind": "toolCall", "toolName": tool, "params": dict(arguments)}


def call_of_intent(intent: Json) -> tuple[str, dict[str, Json]]:
    """Return tool name and arguments of a stored intent; raise Invalid for another shape."""
    if not isinstance(intent, dict) or set(intent) != {"kind", "toolName", "params"}:
        raise Invalid("an intent is {kind, toolName, params}")
    name, arguments = intent["toolName"], intent["params"]
    if intent["kind"] != "toolCall" or not isinstance(name, str) or not isinstance(arguments, dict):
        raise Invalid("an intent is {kind: toolCall, toolName, params}")
    return name, arguments


def is_offered(tool: Tool, caller: Caller) -> bool:
    """Say whether a model may see this tool; a read that is not auto can never be answered."""
    decision = caller.decision(tool)
    return decision == "auto" if tool.effect == "read" else decision != "deny"


def dispatch(
    name: str,
    arguments: Json,
    *,
    caller: Caller,
    catalogue: Catalogue,
    records: Records,
    step: StepId,
    index: int,
    planned: Sequence[PlannedStep] = (),
) -> Answered | Planned | Refused:
    """Return what an agent's call comes to; nothing is applied.

    `step` and `index` name the step that a write becomes. `planned` are the steps before it in
    the same run, whose effects this call sees.
    """
    try:
        tool = catalogue.tool(name)
        decision = caller.decision(tool)
        if decision == "deny" or (tool.effect == "read" and decision != "auto"):
            raise ToolDenied("the policy denies this tool")
    except ManaError as error:
        return Refused(error.code, error.message)
    try:
        stripped, rationale = split_rationale(tool, arguments)
        call = parse_call(tool, stripped)
    except ManaError as error:
        return Refused(error.code, error.message, repairable=True)
    before = [change for earlier in planned for change in earlier.changes]
    view = PlannedRecords(records, caller.actor, before, step)
    try:
        outcome = _run(tool, call, view)
        _check(tool, outcome.changes, view, catalogue, caller.actor)
        if tool.effect == "read" or (tool.effect != "external" and not outcome.changes):
            return Answered(outcome.message, outcome.data)
        return Planned(
            _step(
                tool,
                call,
                outcome,
                rationale=rationale,
                decision="auto" if decision == "auto" else "propose",
                records=view,
                catalogue=catalogue,
                step=step,
                index=index,
                planned=planned,
            )
        )
    except ManaError as error:
        return Refused(error.code, error.message, repairable=isinstance(error, Invalid | NotFound))


def execute(
    name: str,
    arguments: Json,
    *,
    caller: Caller,
    catalogue: Catalogue,
    records: Records,
    consent: Consent = "policy",
) -> Outcome:
    """Return the answer and the changes of a call that may happen now; the device applies them.

    For a person's own action, and for an agent's step: the policy is asked again, so that the
    stricter answer wins. Raises ToolDenied, NeedsApproval, Invalid, or what the tool refuses.
    """
    check_decision(name, caller=caller, catalogue=catalogue, consent=consent)
    tool = catalogue.tool(name)
    stripped, _ = split_rationale(tool, arguments)
    view = PlannedRecords(records, caller.actor)
    outcome = _run(tool, parse_call(tool, stripped), view)
    _check(tool, outcome.changes, view, catalogue, caller.actor)
    return outcome


def check_decision(name: str, *, caller: Caller, catalogue: Catalogue, consent: Consent) -> None:
    """Ask the policy again for a step whose shown changes are to be applied as they are.

    Raises UnknownTool, ToolDenied or NeedsApproval.
    """
    decision = caller.decision(catalogue.tool(name))
    if decision == "deny":
        raise ToolDenied("the policy denies this tool")
    if decision == "propose" and consent != "approved":
        raise NeedsApproval("the policy asks a person first")


def changes_of_preview(
    preview: Json,
    *,
    tool: str,
    step: StepId,
    caller: Caller,
    catalogue: Catalogue,
    records: Records,
) -> tuple[Change, ...]:
    """Return exactly the changes that a step's preview shows, checked as if its tool made them.

    An approval is bound to what was shown, so this, and not a second run of the tool, is what
    an approved step does. Raises Invalid for another shape, and what dispatch would refuse.
    """
    declared = catalogue.tool(tool)
    if not isinstance(preview, list) or len(preview) > CHANGES_MAX:
        raise Invalid("a preview is a list of changes")
    changes: list[Change] = []
    for item in preview:
        if not isinstance(item, dict) or set(item) != {"table", "id", "op", "before", "after"}:
            raise Invalid("a previewed change is {table, id, op, before, after}")
        table, record_id, after = item["table"], item["id"], item["after"]
        if not isinstance(table, str) or not isinstance(record_id, str):
            raise Invalid("a previewed change names its table and record")
        kind = _KINDS.get(str(item["op"]))
        if kind is None or not isinstance(after, dict):
            raise Invalid("a previewed change has an op and an after")
        changes.append(Change(table, RecordId(record_id), kind, after))
    view = PlannedRecords(records, caller.actor, step=step)
    for change in changes:
        if change.kind is ChangeKind.CREATE and change.record_id != view.next_id():
            raise ChangeForbidden("a created record's id is not derived from its step")
    _check(declared, changes, view, catalogue, caller.actor)
    return tuple(changes)


def moved_paths(
    base: Json,
    *,
    stamp_of: Callable[[str, str], str | None],
    is_of_step: Callable[[str, str, StepId], bool],
) -> tuple[str, ...]:
    """Return the `table:id` and path of what no longer stands on this base; empty: it stands.

    `stamp_of(key, path)` gives the current stamp, None where the path is absent;
    `is_of_step(key, path, step)` says whether that step's own write is what stands there.
    Raises Invalid for a base of another shape.
    """
    if not isinstance(base, dict):
        raise Invalid("a base is an object")
    moved: list[str] = []
    for key, paths in base.items():
        if not isinstance(paths, dict):
            raise Invalid("a base holds stamps by path")
        for path, at in paths.items():
            if at is not None and not isinstance(at, str):
                raise Invalid("a base holds stamps by path")
            if at is not None and at.startswith(AFTER_STEP):
                stands = is_of_step(key, path, StepId(at.removeprefix(AFTER_STEP)))
            else:
                stands = stamp_of(key, path) == at
            if not stands:
                moved.append(f"{key} {path}")
    return tuple(moved)


def bounded(name: str, arguments: Json) -> dict[str, Json]:
    """Return the arguments of a call; raise Invalid unless they are an object within its size."""
    if not isinstance(arguments, dict):
        raise Invalid(f"{name}: the arguments are not a JSON object")
    if len(canonical_json(arguments)) > ARGUMENTS_BYTES_MAX:
        raise TooLarge(f"{name}: the arguments are larger than {ARGUMENTS_BYTES_MAX} bytes")
    return arguments


def split_rationale(tool: Tool, arguments: Json) -> tuple[Json, str]:
    """Return the arguments without the model's rationale, and the rationale, cut to its limit.

    Raises Invalid where the arguments are no object, or are larger than any call.
    """
    arguments = bounded(tool.name, arguments)
    if tool.effect == "read":
        return arguments, ""
    raw = arguments.get(RATIONALE)
    rationale = raw.strip()[:RATIONALE_MAX] if isinstance(raw, str) else ""
    return {name: value for name, value in arguments.items() if name != RATIONALE}, rationale


def _run(tool: Tool, call: Call, records: Records) -> Outcome:
    """Run the tool, the one place that does. A defect in a module is no way out of dispatch."""
    try:
        return tool.run(call, records)
    except ManaError:
        raise
    except Exception as error:
        raise ToolFailed(f"{tool.name} broke down") from error


def _sentence(tool: Tool, call: Call, records: Records) -> str:
    """Return the wording of the proposal, on one line within its limit."""
    try:
        words = " ".join(tool.sentence(call, records).split())
    except ManaError:
        raise
    except Exception as error:
        raise ToolFailed(f"{tool.name} broke down") from error
    return words if len(words) <= SENTENCE_MAX else words[: SENTENCE_MAX - 1] + "…"


def _check(
    tool: Tool,
    changes: Sequence[Change],
    records: PlannedRecords,
    catalogue: Catalogue,
    actor: Actor,
) -> None:
    """Refuse changes beyond what the tool declares; raise the reason."""
    if changes and tool.effect == "read":
        raise ChangeForbidden(f"{tool.name} reads only, and returned changes")
    if len(changes) > CHANGES_MAX:
        raise TooLarge(f"{tool.name} would change more than {CHANGES_MAX} records")
    seen: set[tuple[str, str]] = set()
    for change in changes:
        table = catalogue.table(change.table)
        if not _is_own_memory(tool, change, actor):
            if catalogue.module_of(table.name) != tool.module or table.authority:
                raise TableForbidden(f"{tool.name} may not change {table.name}")
            if actor.kind == "ai" and not table.agents_may_write:
                raise TableForbidden(f"agents may not change {table.name}")
        if (change.table, change.record_id) in seen:
            raise ChangeForbidden(f"{tool.name} changes one record twice")
        seen.add((change.table, change.record_id))
        _check_change(table, change, records)


def _is_own_memory(tool: Tool, change: Change, actor: Actor) -> bool:
    """Say whether this is the one change of what decides that an agent may propose."""
    return (
        tool.name == PROPOSE_MEMORY
        and actor.kind == "ai"
        and (change.table, change.record_id) == (AGENT_MEMORY.name, actor.principal_id)
        and change.kind is ChangeKind.UPDATE
        and set(change.values) == {"content"}
    )


def _check_change(table: Table, change: Change, records: PlannedRecords) -> None:
    """Refuse a change whose paths, values or record are not those of an ordinary write."""
    if change.guards or not change.values:
        raise ChangeForbidden(f"a change of {table.name} is empty or guarded")
    if (change.kind is ChangeKind.DELETE) != (change.values.get(DELETED_AT) is not None):
        raise ChangeForbidden(f"a change of {table.name} sets a tombstone without deleting")
    for path, value in change.values.items():
        declared = table.field_at(path)
        if declared.guarded or (declared.fixed and change.kind is not ChangeKind.CREATE):
            raise ChangeForbidden(f"{table.name}.{declared.name} does not change")
        table.check(path, value)
    if change.kind is ChangeKind.CREATE:
        if not records.is_issued(change.record_id):
            raise ChangeForbidden(f"a new record of {table.name} has an id of the tool's own")
        return
    view = records.get(table, change.record_id)
    written = {path.partition("/")[0] for path in change.values}
    if change.kind is ChangeKind.UPDATE and written & set(view.sealed_fields):
        raise FieldUnreadable(f"a field of {table.name} cannot be opened here")


def _step(
    tool: Tool,
    call: Call,
    outcome: Outcome,
    *,
    rationale: str,
    decision: StepDecision,
    records: PlannedRecords,
    catalogue: Catalogue,
    step: StepId,
    index: int,
    planned: Sequence[PlannedStep],
) -> PlannedStep:
    """Return the step of a write, with its preview, base and binding."""
    arguments: dict[str, Json] = {
        name: value for name, value in msgspec.to_builtins(call).items() if value is not None
    }
    preview: list[Json] = []
    base: dict[str, Json] = {}
    for change in outcome.changes:
        table = catalogue.table(change.table)
        old: View | None = None
        if change.kind is not ChangeKind.CREATE:
            old = records.get(table, change.record_id)
            base[f"{change.table}:{change.record_id}"] = _base(change, old, planned)
        before = {path: old.values.get(path) for path in change.values} if old else {}
        preview.append(
            {
                "table": change.table,
                "id": change.record_id,
                "op": change.kind.value,
                "before": before,
                "after": dict(change.values),
            }
        )
    if len(canonical_json(preview)) > PREVIEW_BYTES_MAX or len(canonical_json(base)) > (
        BASE_BYTES_MAX
    ):
        raise TooLarge(f"{tool.name} would change more than one proposal can show")
    return PlannedStep(
        id=step,
        index=index,
        tool=tool.name,
        arguments=arguments,
        rationale=rationale,
        decision=decision,
        sentence=_sentence(tool, call, records),
        preview=preview,
        base=base,
        binding=binding_hash(intent_of(tool.name, arguments), preview, base),
        changes=outcome.changes,
        message=outcome.message,
        data=outcome.data,
    )


def _base(change: Change, view: View, planned: Sequence[PlannedStep]) -> dict[str, Json]:
    """Return by path what must still stand when the change is made."""
    at: dict[str, Json] = {}
    for path in change.values:
        at[path] = view.stamps.get(path)
        for earlier in planned:
            for other in earlier.changes:
                same = (other.table, other.record_id) == (change.table, change.record_id)
                if same and (path in other.values or other.kind is ChangeKind.CREATE):
                    # Whether that step was accepted must be known before this one is.
                    at[path] = f"{AFTER_STEP}{earlier.id}"
    return at
