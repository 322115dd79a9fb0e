"""Steps as this device takes them: verified, opened, shown as they would be done now.

What a step shows is bound: intent, preview and base stamps by a hash that the runner signed. If
what it would change has moved since, the preview is made anew by the same tool on the records
of now, and is another binding, which a person has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from mana.device.diffs import preview_diffs
from mana.device.journal import (
    decide_change_id,
    images_before,
    journal_id,
    journal_write,
)
from mana.device.opened import Opened
from mana.device.trust import Trust
from mana.device.views import Cited, Proposal, RecordDiff
from mana.device.writing import Write
from mana.domain.actors import agent_at_work
from mana.domain.agents import AGENTS, Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid, ManaError, NotFound
from mana.domain.ids import RecordId, StepId, derived_id
from mana.domain.iterations import ITERATIONS, JOURNAL, STEPS, binding_hash
from mana.domain.missions import MISSIONS
from mana.domain.records import Entry, Records, Snapshot, View
from mana.planning.dispatch import (
    Caller,
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


class StepNotFound(NotFound):
    """There is no such step on this device."""

    code: ClassVar[str] = "PROPOSAL_NOT_FOUND"


class StepDone(Conflict):
    """The journal holds this step's effects: it was executed before."""

    code: ClassVar[str] = "STEP_DONE"
    advice: ClassVar[str] = "Look at the timeline; what it did can be reverted there."


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
        return Caller(actor, policy, tainted=True)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a step would do now. `trouble` says why it cannot be done; then nothing is shown."""

    preview: Json
    binding: str
    sentence: str
    moved: bool = False
    trouble: str = ""


class Steps:
    """Reads steps and says what they would do now."""

    def __init__(self, opened: Opened, trust: Trust) -> None:
        self._opened = opened
        self._trust = trust

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
        return Case(
            step=step,
            iteration=iteration,
            agent=await self._agent(agent_id),
            agent_id=agent_id or "unknown",
            mission_title=await self._mission_title(step, iteration),
            tool=tool,
            params=params,
            preview=preview,
            base=base,
            binding=binding,
            verified=verified,
            reason=reason,
            grantor="" if iteration is None else await self._trust.grantor(iteration),
            for_others=await self.is_for_others(step),
        )

    async def is_for_others(self, step: View) -> bool:
        """Say whether a step is for another member to decide, or for who manages the space."""
        if not self._opened.book.keys.shared:
            return False
        iteration = await self._opened.book.view(ITERATIONS.name, step.text("iterationId"))
        return iteration is not None and await self._trust.is_for_others(iteration)

    async def shown(self, case: Case, records: Records) -> Shown:
        """Return what a step would do now: as it was planned, or anew where its base moved."""
        stands, waits = await self._base_stands(case)
        if stands:
            try:
                changes_of_preview(
                    case.preview,
                    tool=case.tool,
                    step=StepId(case.id),
                    caller=case.caller,
                    catalogue=self._opened.catalogue,
                    records=records,
                )
                return Shown(case.preview, case.binding, case.step.text("sentence"))
            except ManaError:
                # The record is gone, or the module has changed: only the tool can say.
                pass
        again = _plan_again(case, self._opened.catalogue, records)
        if again.trouble and waits:
            return Shown([], "", case.step.text("sentence"), trouble=waits)
        if again.binding == case.binding:
            return Shown(case.preview, case.binding, case.step.text("sentence"))
        return again

    async def effects(
        self,
        case: Case,
        shown: Shown,
        decision: Change,
        *,
        consent: Consent,
        records: Records,
        decision_id: str,
    ) -> list[Write]:
        """Return the whole group of a step that happens: decision, effects and journal.

        The policy is asked again here: raises ToolDenied, NeedsApproval or UnknownTool; raises
        StepDone if it was executed before.
        """
        opened = self._opened
        check_decision(case.tool, caller=case.caller, catalogue=opened.catalogue, consent=consent)
        changes = changes_of_preview(
            shown.preview,
            tool=case.tool,
            step=StepId(case.id),
            caller=case.caller,
            catalogue=opened.catalogue,
            records=records,
        )
        writes = [Write(decision, opened.person, change_id=decision_id)]
        for change in changes:
            key = (case.id, change.table, change.record_id)
            record = await opened.book.record(change.table, change.record_id)
            paths = await opened.book.opened_paths(change.table, change.record_id)
            writes.append(Write(change, case.caller.actor, change_id=decide_change_id(*key)))
            entry_id = journal_id(*key)
            if await opened.book.view(JOURNAL.name, entry_id) is not None:
                # Whatever the hub says of its status: what was done once is not done again.
                raise StepDone("the step was executed before", detail={"stepId": case.id})
            writes.append(
                journal_write(
                    entry_id=entry_id,
                    step=case.step,
                    change=change,
                    before=images_before(change, paths, record),
                    sentence=shown.sentence,
                    author=opened.person,
                    change_id=derived_id("change", case.id, "aiJournal", entry_id, "decide"),
                    created=change.kind is ChangeKind.CREATE,
                )
            )
        return writes

    async def snapshot(self, case: Case) -> Snapshot:
        """Return the records of now, in the mission's own day."""
        mission = await self._opened.book.view(MISSIONS.name, case.step.text("missionId"))
        return await self._opened.snapshot(mission.text("timeZone") if mission else None)

    async def proposal(self, case: Case, shown: Shown | None) -> Proposal:
        """Return a step as the person reads it. `shown` None: as it was planned."""
        opened, step, iteration = self._opened, case.step, case.iteration
        preview = case.preview if shown is None else shown.preview
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
            params=case.params,
            sentence=step.text("sentence") if shown is None else shown.sentence,
            diffs=await self.diffs(preview),
            rationale=step.text("rationale"),
            cited=named_first(await self.cited(iteration), step.text("rationale")),
            reach=self._reach(case.tool),
            model=iteration.text("model") if iteration is not None else "",
            tokens=tokens_of(iteration),
            expires_ms=expires_ms,
            verified=case.verified,
            moved=shown.moved if shown is not None else False,
            feedback=step.text("feedback"),
            trouble=self._trouble(case, shown),
            for_others=case.for_others,
        )

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

    async def _mission_title(self, step: View, iteration: View | None) -> str:
        view = await self._opened.book.view(MISSIONS.name, step.text("missionId"))
        if view is not None and view.text("title"):
            return view.text("title")
        return iteration.text("missionTitle") if iteration is not None else ""

    async def _base_stands(self, case: Case) -> tuple[bool, str]:
        """Say whether what would change is as it was planned on, and what it waits for."""
        entries: dict[tuple[str, str], Entry] = {}
        for key in case.base if isinstance(case.base, dict) else ():
            table, _, record_id = key.partition(":")
            record = await self._opened.book.record(table, record_id)
            if record is not None:
                entries.update({(key, path): one for path, one in record.entries.items()})
        undone: list[str] = []

        def stamp_of(key: str, path: str) -> str | None:
            entry = entries.get((key, path))
            return entry.at if entry is not None else None

        def is_of_step(key: str, path: str, earlier: StepId) -> bool:
            entry = entries.get((key, path))
            table, _, record_id = key.partition(":")
            wanted = decide_change_id(earlier, table, record_id)
            if entry is not None and entry.change_id == wanted:
                return True
            undone.append(earlier)
            return False

        try:
            moved = moved_paths(case.base, stamp_of=stamp_of, is_of_step=is_of_step)
        except Invalid:
            return False, ""
        return not moved, await self._waits_for(undone[0]) if undone else ""

    async def _waits_for(self, step_id: str) -> str:
        step = await self._opened.book.view(STEPS.name, step_id)
        if step is not None and step.text("status") in ("staged", "planned", "executing"):
            return "It rests on an earlier step of the same run; decide on that one first."
        return ""

    def _agent_name(self, case: Case) -> str:
        if case.agent is not None:
            return case.agent.name
        return case.iteration.text("agentName") if case.iteration is not None else ""

    def _agent_avatar(self, case: Case) -> str:
        if case.agent is not None:
            return case.agent.avatar
        return case.iteration.text("agentAvatar") if case.iteration is not None else ""

    def _reach(self, tool: str) -> str:
        try:
            effect = self._opened.catalogue.tool(tool).effect
        except NotFound:
            return "This version does not know the tool."
        if effect == "external":
            return "Leaves this machine."
        if self._opened.book.keys.shared:
            return "Stays in this space; its members see it."
        return "Stays in your own space; nobody else sees it."

    def _trouble(self, case: Case, shown: Shown | None) -> str:
        if not case.verified:
            return case.reason
        if shown is not None and shown.trouble:
            return shown.trouble
        at = case.step.stamps.get("status", "")
        if case.status in ("approved", "rejected") and not at.endswith(self._opened.device_id):
            return "Decided on another device."
        return case.step.text("result") if case.status in ("failed", "skipped") else ""


def _plan_again(case: Case, catalogue: Catalogue, records: Records) -> Shown:
    """Return the step planned anew on the records of now; nothing is applied."""
    sentence = case.step.text("sentence")
    result = dispatch(
        case.tool,
        dict(case.params),
        caller=case.caller,
        catalogue=catalogue,
        records=records,
        step=StepId(case.id),
        index=case.index,
    )
    if isinstance(result, Planned):
        planned = result.step
        return Shown(list(planned.preview), planned.binding, planned.sentence, moved=True)
    if isinstance(result, Refused):
        words = {
            "TOOL_DENIED": "The agent's policy denies this now.",
            "NOT_FOUND": "What it would change is gone.",
        }.get(result.code, f"It can no longer be done: {result.message}.")
        return Shown([], "", sentence, moved=True, trouble=words)
    return Shown([], "", sentence, moved=True, trouble="It would change nothing any more.")


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
    return sum(value for value in usage.values() if isinstance(value, int))


def in_order(steps: Sequence[View]) -> list[View]:
    """Return steps by their place in the run."""

    def place(view: View) -> tuple[int, str]:
        index = view.values.get("index")
        return (index if isinstance(index, int) else 0, view.id)

    return sorted(steps, key=place)


def moment(now_ms: int) -> str:
    """Return a moment as records hold it."""
    return iso_ms(now_ms)
