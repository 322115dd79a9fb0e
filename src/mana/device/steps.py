"""Steps as this device takes them: verified, opened, shown as they would be done now.

What a step shows is bound: intent, preview and base stamps by a hash that the runner signed. If
what it would change has moved since, or the person changes its arguments, the preview is made anew
by the same tool on the records of now, and is another binding, which nobody has seen before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from mana.device.cases import (
    Case,
    Shown,
    Together,
    approved_edit,
    cost_of,
    flags_of,
    planned_ms,
    tokens_of,
    tool_of,
    written_by,
)
from mana.device.diffs import outgoing_diff, preview_diffs
from mana.device.forms import faults_of
from mana.device.journal import (
    decide_change_id,
    images_before,
    journal_id,
    journal_write,
)
from mana.device.opened import Opened, stamp_ms
from mana.device.policies import Policies
from mana.device.trust import Trust
from mana.device.unseen import visible
from mana.device.views import Cited, Fault, Proposal, Proposed, RecordDiff
from mana.device.writing import Write
from mana.domain.agents import AGENT_MEMORY, AGENTS, Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Conflict, Invalid, ManaError, NotFound
from mana.domain.ids import RecordId, StepId, derived_id
from mana.domain.iterations import ITERATIONS, JOURNAL, STEPS, binding_hash
from mana.domain.missions import MISSIONS
from mana.domain.policy import Decision, is_too_often
from mana.domain.records import Entry, Records, Snapshot, View
from mana.domain.tables import Table
from mana.domain.tools import Effect
from mana.planning.dispatch import (
    Consent,
    Planned,
    Refused,
    call_of_intent,
    changes_of_preview,
    check_decision,
    dispatch,
    moved_paths,
)
from mana.registry.catalogue import Catalogue

FEEDBACK_MAX: Final = 2_000
_UNDECIDED: Final = ("staged", "planned", "executing")
_NOT_DONE: Final = {
    "rejected": "was rejected",
    "expired": "was not decided in time",
    "skipped": "was denied",
    "failed": "could not be done",
}


class StepNotFound(NotFound):
    """There is no such step on this device."""

    code: ClassVar[str] = "PROPOSAL_NOT_FOUND"


class StepDone(Conflict):
    """The journal holds this step's effects: it was executed before."""

    code: ClassVar[str] = "STEP_DONE"
    advice: ClassVar[str] = "Look at the timeline; what it did can be reverted there."


@dataclass(frozen=True, slots=True)
class _Base:
    """Whether a step stands on what it was planned on; else which earlier step it rests on."""

    stands: bool
    waits: str = ""
    lost: str = ""


class Steps:
    """Reads steps and says what they would do now."""

    def __init__(self, opened: Opened, trust: Trust, policies: Policies) -> None:
        self._opened = opened
        self._trust = trust
        self._policies = policies

    async def views(self) -> list[View]:
        """Return all steps."""
        return await self._opened.book.views(STEPS.name)

    async def case(self, step_id: str) -> Case:
        """Return one step with what it hangs on; raise StepNotFound."""
        step = await self._opened.book.view(STEPS.name, step_id)
        if step is None or step.deleted:
            raise StepNotFound("no proposal of this id is on this device")
        return await self.case_of(step)

    async def case_of(self, step: View) -> Case:
        """Return a step with what it hangs on."""
        opened = self._opened
        iteration = await opened.book.view(ITERATIONS.name, step.text("iterationId"))
        verified, reason = await self._verify(step, iteration)
        written_by = step.actors.get("intent")
        agent_id = written_by.principal_id if written_by is not None else ""
        if iteration is not None and not agent_id:
            actor = iteration.actors.get("missionId")
            agent_id = actor.principal_id if actor is not None else ""
        tool, params = "", dict[str, Json]()
        intent, preview, base = (step.values.get(name) for name in ("intent", "preview", "base"))
        binding = step.text("binding")
        try:
            tool, params = call_of_intent(intent)
            if binding_hash(intent, preview, base) != binding:
                verified, reason = False, "What it shows is not what it is bound to."
        except Invalid:
            verified, reason = False, "What it would do cannot be read here."
        mission = await opened.book.view(MISSIONS.name, step.text("missionId"))
        return Case(
            step=step,
            iteration=iteration,
            agent=await self._agent(agent_id),
            agent_id=agent_id or "unknown",
            mission_title=_mission_title(mission, iteration),
            tool=tool,
            params=params,
            preview=preview,
            base=base,
            binding=binding,
            verified=verified,
            reason=reason,
            grantor="" if iteration is None else await self._trust.grantor(iteration),
            for_others=await self.is_for_others(step),
            space=await self._policies.space_policy(),
            mission_state=_mission_state(mission),
        )

    async def is_for_others(self, step: View) -> bool:
        """Say whether a step is for another member to decide, or for who manages the space."""
        if not self._opened.book.keys.shared:
            return False
        iteration = await self._opened.book.view(ITERATIONS.name, step.text("iterationId"))
        return iteration is not None and await self._trust.is_for_others(iteration)

    async def decision_now(self, case: Case) -> tuple[Decision, str]:
        """Return what may become of a step without a person, and why not more, where that is new.

        Raises UnknownTool. What would come too often, or whose agent or mission is not at work any
        more, is the person's to decide.
        """
        word = case.caller.decision(self._opened.catalogue.tool(case.tool))
        if word != "auto":
            return word, ""
        if case.agent is None or case.agent.state != "active":
            return "propose", "Its agent is not active any more, so you decide."
        if case.mission_state != "active":
            return "propose", "Its mission is not active any more, so you decide."
        moments = [
            stamp_ms(view.stamps.get("status"))
            for view in await self.views()
            if view.text("status") == "approved"
            and not view.text("decidedAt")
            and written_by(view) == case.agent_id
            and tool_of(view) == case.tool
        ]
        if is_too_often(moments, self._opened.now_ms()):
            return "propose", "It came too soon after many others like it, so you decide."
        return "auto", ""

    async def shown(self, case: Case, records: Snapshot, together: Together | None = None) -> Shown:
        """Return what a step would do now: as it was planned, or anew where its base moved.

        `together`: what earlier steps write in the same decision.
        """
        together = together or Together()
        over = together.over(records)
        base = await self._stands(case, together)
        sentence = case.step.text("sentence")
        if base.stands:
            try:
                changes_of_preview(
                    case.preview,
                    tool=case.tool,
                    step=StepId(case.id),
                    caller=case.caller,
                    catalogue=self._opened.catalogue,
                    records=over,
                )
                return Shown(case.preview, case.binding, sentence, base=case.base)
            except ManaError:
                # The record is gone, or the module has changed: only the tool can say.
                pass
        again = _plan(case, case.params, self._opened.catalogue, over)
        if again.trouble and (base.waits or base.lost):
            trouble = base.waits or base.lost
            return Shown([], "", sentence, trouble=trouble, waits=base.waits)
        if again.binding == case.binding:
            return Shown(case.preview, case.binding, sentence, base=case.base)
        return replace(again, moved=True, waits=base.waits)

    def edited(self, case: Case, arguments: Mapping[str, Json], records: Snapshot) -> Shown:
        """Return what a step would do now with arguments of the person; nothing is applied."""
        given = {name: value for name, value in arguments.items() if value is not None}
        sentence = case.step.text("sentence")
        try:
            tool = self._opened.catalogue.tool(case.tool)
        except NotFound:
            return Shown([], "", sentence, trouble="This version does not know the tool.")
        faults = faults_of(tool, given)
        if faults:
            trouble = "Some of it cannot be taken as it is."
            return Shown([], "", sentence, trouble=trouble, params=given, faults=faults)
        return _plan(case, given, self._opened.catalogue, records, by_person=True)

    async def effects(
        self,
        case: Case,
        shown: Shown,
        decision: Change,
        *,
        consent: Consent,
        records: Snapshot,
        decision_id: str,
        together: Together | None = None,
    ) -> list[Write]:
        """Return the whole group of a step that happens: decision, effects and journal.

        The policy is asked again here: raises ToolDenied, NeedsApproval or UnknownTool; raises
        StepDone if it was executed before. What it changes is added to `together`.
        """
        opened, together = self._opened, together or Together()
        check_decision(case.tool, caller=case.caller, catalogue=opened.catalogue, consent=consent)
        changes = changes_of_preview(
            shown.preview,
            tool=case.tool,
            step=StepId(case.id),
            caller=case.caller,
            catalogue=opened.catalogue,
            records=together.over(records),
        )
        writes = [Write(decision, opened.person, change_id=decision_id)]
        for change in changes:
            key = (case.id, change.table, change.record_id)
            record = await opened.book.record(change.table, change.record_id)
            paths = await opened.book.opened_paths(change.table, change.record_id)
            # What decides over agents is never written in an agent's name.
            decides = opened.catalogue.table(change.table).authority
            actor = opened.person if decides else case.caller.actor
            writes.append(Write(change, actor, change_id=decide_change_id(*key)))
            entry_id = journal_id(*key)
            if await opened.book.view(JOURNAL.name, entry_id) is not None:
                # Whatever the hub says of its status: what was done once is not done again.
                raise StepDone("the step was executed before", detail={"stepId": case.id})
            writes.append(
                journal_write(
                    entry_id=entry_id,
                    step=case.step,
                    change=change,
                    before=together.before(change, images_before(change, paths, record)),
                    sentence=shown.sentence,
                    author=opened.person,
                    change_id=derived_id("change", case.id, "aiJournal", entry_id, "decide"),
                    created=change.kind is ChangeKind.CREATE,
                )
            )
            together.add(case.id, change)
        return writes

    async def snapshot(self, case: Case) -> Snapshot:
        """Return the records of now, in the mission's own day."""
        mission = await self._opened.book.view(MISSIONS.name, case.step.text("missionId"))
        records = await self._opened.snapshot(mission.text("timeZone") if mission else None)
        memories = await self._opened.book.views(AGENT_MEMORY.name)

        def load(table: Table) -> Sequence[View]:
            return memories if table.name == AGENT_MEMORY.name else records.load(table)

        return replace(records, load=load)

    async def proposal(self, case: Case, shown: Shown | None) -> Proposal:
        """Return a step as the person reads it. `shown` None: as it was planned, or approved."""
        opened, step, iteration = self._opened, case.step, case.iteration
        edit = approved_edit(case) if shown is None else shown if shown.params else None
        now = edit or shown
        preview = case.preview if now is None else now.preview
        params = case.params if edit is None else edit.params or {}
        state, expires_ms = case.status, case.expires_ms
        if state == "staged" and expires_ms is not None and expires_ms <= opened.now_ms():
            state = "expired"
        return Proposal(
            step_id=step.id,
            iteration_id=step.text("iterationId"),
            mission_id=step.text("missionId"),
            mission_title=case.mission_title,
            agent_id=case.agent_id,
            agent_name=self._agent_name(case),
            agent_avatar=self._agent_avatar(case),
            planned_ms=planned_ms(step, iteration),
            state=state,
            tool=case.tool,
            params=params,
            sentence=visible(step.text("sentence") if now is None else now.sentence),
            diffs=await self.diffs(preview) + self._outgoing(case.tool, params),
            rationale=visible(step.text("rationale")),
            cited=named_first(await self.cited(iteration), step.text("rationale")),
            reach=self._reach(case.tool),
            model=iteration.text("model") if iteration is not None else "",
            tokens=tokens_of(iteration),
            cost=cost_of(iteration),
            flags=flags_of(iteration),
            expires_ms=expires_ms,
            verified=case.verified,
            moved=shown.moved if shown is not None else False,
            feedback=step.text("feedback"),
            trouble=self._trouble(case, shown),
            for_others=case.for_others,
            note=_note(case, shown),
            edited=edit is not None,
            proposed=None if edit is None else await self._proposed(case),
            faults=() if shown is None else shown.faults,
            reject_reason=step.text("rejectReason"),
        )

    async def _proposed(self, case: Case) -> Proposed:
        diffs = await self.diffs(case.preview) + self._outgoing(case.tool, case.params)
        return Proposed(visible(case.step.text("sentence")), case.params, diffs)

    def _outgoing(self, tool: str, params: Mapping[str, Json]) -> tuple[RecordDiff, ...]:
        """Return what a step would send: whatever its sentence says, all of it is to be seen."""
        if self._effect(tool) != "external":
            return ()
        return (outgoing_diff(tool, params),)

    async def diffs(self, preview: Json) -> tuple[RecordDiff, ...]:
        """Return a preview as differences, with the titles that records have now."""
        items = preview if isinstance(preview, list) else []
        keys = [
            (str(item.get("table")), str(item.get("id")))
            for item in items
            if isinstance(item, dict)
        ]
        titles = await self._opened.titles(keys)
        return preview_diffs(
            preview,
            lambda table, record_id: titles.get((table, record_id), ""),
            self._opened.title_field,
        )

    async def cited(self, iteration: View | None) -> tuple[Cited, ...]:
        """Return the inputs that a run read."""
        read = iteration.values.get("inputsRead") if iteration is not None else None
        pairs = [
            (table, record_id)
            for key in (read if isinstance(read, list) else [])
            for table, _, record_id in [str(key).partition(":")]
        ]
        titles = await self._opened.titles(pairs)
        return tuple(
            Cited(table, record_id, titles[table, record_id]) for table, record_id in pairs
        )

    async def _verify(self, step: View, iteration: View | None) -> tuple[bool, str]:
        if iteration is None:
            return False, "The run that it belongs to is not here yet."
        named = iteration.values.get("stepIds")
        if not isinstance(named, list) or step.id not in named:
            return False, "The run that it names does not know it."
        if iteration.text("missionId") != step.text("missionId"):
            return False, "It belongs to another mission than its run."
        return await self._trust.verify(iteration)

    async def _agent(self, agent_id: str) -> Agent | None:
        """Return the agent if it is there and signed by a device; else None, which denies."""
        if not agent_id:
            return None
        agent = await self._opened.agent_or_none(agent_id)
        if agent is None or not await self._opened.book.is_verified(AGENTS.name, agent_id):
            return None
        return agent

    async def _stands(self, case: Case, together: Together) -> _Base:
        """Say whether what would change is as it was planned on, and else what it rests on."""
        entries: dict[tuple[str, str], Entry] = {}
        opened: dict[tuple[str, str], Json] = {}
        made_by: dict[str, set[str]] = {}
        for key in case.base if isinstance(case.base, dict) else ():
            table, _, record_id = key.partition(":")
            record = await self._opened.book.record(table, record_id)
            if record is not None:
                values = await self._opened.book.opened_paths(table, record_id)
                entries.update({(key, path): one for path, one in record.entries.items()})
                opened.update({(key, path): value for path, value in values.items()})
                made_by[key] = {one.change_id for one in record.entries.values()}
        before = _before(case.preview)
        earlier_steps: list[str] = []

        def stamp_of(key: str, path: str) -> str | None:
            entry = entries.get((key, path))
            return entry.at if entry is not None else None

        def is_of_step(key: str, path: str, earlier: StepId) -> bool:
            # Done otherwise than it was planned, an earlier step is another base: only what it
            # was to leave there can be built on.
            table, _, record_id = key.partition(":")
            written = together.written.get((table, record_id), {})
            if path in written:
                by, value = written[path]
                return by == earlier and _same(value, before.get((key, path)))
            if together.made.get((table, record_id)) == earlier:
                return before.get((key, path)) is None
            entry = entries.get((key, path))
            wanted = decide_change_id(earlier, table, record_id)
            if entry is not None and entry.change_id == wanted:
                return _same(opened.get((key, path)), before.get((key, path)))
            if entry is None and wanted in made_by.get(key, ()):
                return before.get((key, path)) is None
            earlier_steps.append(earlier)
            return False

        try:
            moved = moved_paths(case.base, stamp_of=stamp_of, is_of_step=is_of_step)
        except Invalid:
            return _Base(stands=False)
        if not earlier_steps:
            return _Base(stands=not moved)
        step = await self._opened.book.view(STEPS.name, earlier_steps[0])
        status = "" if step is None else step.text("status")
        if status in _UNDECIDED:
            words = "It rests on an earlier step of the same run; decide on that one first."
            return _Base(stands=False, waits=words)
        if status in _NOT_DONE:
            words = f"It rests on an earlier step of the same run, which {_NOT_DONE[status]}."
            return _Base(stands=False, lost=words)
        return _Base(stands=False)

    def _agent_name(self, case: Case) -> str:
        if case.agent is not None:
            return case.agent.name
        return case.iteration.text("agentName") if case.iteration is not None else ""

    def _agent_avatar(self, case: Case) -> str:
        if case.agent is not None:
            return case.agent.avatar
        return case.iteration.text("agentAvatar") if case.iteration is not None else ""

    def _effect(self, tool: str) -> Effect | None:
        try:
            return self._opened.catalogue.tool(tool).effect
        except NotFound:
            return None

    def _reach(self, tool: str) -> str:
        effect = self._effect(tool)
        if effect is None:
            return "This version does not know the tool."
        if effect == "external":
            return "Leaves this machine."
        if self._opened.book.keys.shared:
            return "Stays in this space; its members see it."
        return "Stays in your own space; nobody else sees it."

    def _trouble(self, case: Case, shown: Shown | None) -> str:
        if not case.verified:
            return case.reason
        if case.status == "staged" and case.agent is None:
            return "Its agent is gone; it can be rejected, not approved."
        if shown is not None and shown.trouble:
            return shown.trouble
        at = case.step.stamps.get("status", "")
        if case.status in ("approved", "rejected") and not at.endswith(self._opened.device_id):
            return "Decided on another device."
        return case.step.text("result") if case.status in ("failed", "skipped") else ""


def _plan(
    case: Case,
    arguments: Mapping[str, Json],
    catalogue: Catalogue,
    records: Records,
    *,
    by_person: bool = False,
) -> Shown:
    """Return the step planned anew on these records; nothing is applied."""
    sentence = case.step.text("sentence")
    params = dict(arguments) if by_person else None
    result = dispatch(
        case.tool,
        dict(arguments),
        caller=case.caller,
        catalogue=catalogue,
        records=records,
        step=StepId(case.id),
        index=case.index,
    )
    if isinstance(result, Planned):
        planned = result.step
        return Shown(
            list(planned.preview),
            planned.binding,
            planned.sentence,
            base=dict(planned.base),
            params=planned.arguments if by_person else None,
        )
    if isinstance(result, Refused):
        words = {
            "TOOL_DENIED": "The agent's policy denies this now.",
            "NOT_FOUND": "What it would change is gone.",
        }.get(result.code, f"It can no longer be done: {result.message}.")
        if by_person and result.repairable and result.code != "NOT_FOUND":
            faults = (Fault("", result.message),)
            return Shown([], "", sentence, trouble=words, params=params, faults=faults)
        return Shown([], "", sentence, trouble=words, params=params)
    nothing = "It would change nothing any more."
    return Shown([], "", sentence, trouble=nothing, params=params)


def _note(case: Case, shown: Shown | None) -> str:
    """Return what else is to be known of a step that waits."""
    if case.status != "staged":
        return ""
    if shown is not None and shown.waits:
        return shown.waits
    if not case.mission_state:
        return "Its mission was deleted; you can still decide on it."
    return case.step.text("result")


def _before(preview: Json) -> dict[tuple[str, str], Json]:
    """Return by `table:id` and path what a preview says that stands there."""
    found: dict[tuple[str, str], Json] = {}
    for item in preview if isinstance(preview, list) else []:
        match item:
            case {"table": str(table), "id": str(record_id), "before": dict(before)}:
                key = f"{table}:{record_id}"
                found.update({(key, path): value for path, value in before.items()})
    return found


def _same(left: Json, right: Json) -> bool:
    return canonical_json(left) == canonical_json(right)


def _mission_title(mission: View | None, iteration: View | None) -> str:
    if mission is not None and mission.text("title"):
        return mission.text("title")
    return iteration.text("missionTitle") if iteration is not None else ""


def _mission_state(mission: View | None) -> str:
    if mission is None or mission.deleted:
        return ""
    return mission.text("state") or "active"


def decision(
    step_id: str, status: str, *, guards: Mapping[str, Json], extra: Mapping[str, Json]
) -> Change:
    """Return the guarded change of a step's status."""
    values: dict[str, Json] = {"status": status, **extra}
    return Change(STEPS.name, RecordId(step_id), ChangeKind.UPDATE, values, guards)


def named_first(cited: Sequence[Cited], reason: str) -> tuple[Cited, ...]:
    """Return inputs with those first that a reason names by their titles in quotes."""

    def is_unnamed(one: Cited) -> bool:
        title = " ".join(one.title.split())
        return not title or f"“{title}”" not in reason

    return tuple(sorted(cited, key=is_unnamed))


def moment(now_ms: int) -> str:
    """Return a moment as records hold it."""
    return iso_ms(now_ms)
