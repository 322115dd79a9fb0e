"""The inbox: what waits for the person, and what becomes of their decision.

An approval executes exactly what was shown last, once: decision, effects and journal are one group,
the decision is guarded on the hub, and every id in it is derived, so that a second approval
here is nothing and one on another device has exactly one winner. Steps that are approved together
are one group too: all of them happen, in the order of their run, or none.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from mana.device.cases import Case, Shown, Together
from mana.device.errors import ChangeRefused, Offline
from mana.device.forms import parameters_of
from mana.device.journal import decide_change_id
from mana.device.opened import Opened
from mana.device.steps import (
    FEEDBACK_MAX,
    StepDone,
    StepNotFound,
    Steps,
    decision,
    moment,
)
from mana.device.views import EditForm, Proposal
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Forbidden, Invalid, ManaError, NotFound
from mana.domain.ids import RecordId, derived_id
from mana.domain.iterations import ITERATIONS, REJECT_REASONS, STEPS
from mana.domain.records import Snapshot, View
from mana.planning.dispatch import NeedsApproval, ToolDenied

SEEN: Final = "seen-previews"
SEEN_MAX: Final = 200
_EDIT: Final = " edit"
"""After a step's id, under which is kept what was shown of the person's edit of it."""
DECIDED_SHOWN: Final = 200
DECIDED: Final = frozenset({"approved", "rejected", "skipped", "failed", "expired"})


class ProposalDecided(Conflict):
    """Somebody decided on this proposal before."""

    code: ClassVar[str] = "PROPOSAL_DECIDED"
    advice: ClassVar[str] = "Look at it again; it shows what became of it."


class ProposalMoved(Conflict):
    """What it would change has moved since it was shown."""

    code: ClassVar[str] = "PROPOSAL_MOVED"
    advice: ClassVar[str] = "Look at the new preview, then decide."


class ProposalUnverified(Forbidden):
    """The run that it belongs to cannot be verified."""

    code: ClassVar[str] = "PROPOSAL_UNVERIFIED"
    advice: ClassVar[str] = "It can be rejected, not approved."


class ProposalForOthers(Forbidden):
    """Another member granted the run that it belongs to."""

    code: ClassVar[str] = "PROPOSAL_FOR_OTHERS"
    advice: ClassVar[str] = "Who granted the mission decides on it, or who manages the space."


class ProposalDenied(Forbidden):
    """The agent's policy denies this now, or the agent is gone."""

    code: ClassVar[str] = "PROPOSAL_DENIED"
    advice: ClassVar[str] = "Allow the tool in the agent's policy, or reject the proposal."


class ProposalImpossible(Conflict):
    """It can no longer be done."""

    code: ClassVar[str] = "PROPOSAL_IMPOSSIBLE"
    advice: ClassVar[str] = "Reject it; the proposal says why it cannot be done."


class ProposalExpired(Conflict):
    """Its time has passed."""

    code: ClassVar[str] = "PROPOSAL_EXPIRED"
    advice: ClassVar[str] = "Run the mission again."


class EditRefused(Invalid):
    """The tool does not take these arguments; `detail` says which one, and why."""

    code: ClassVar[str] = "EDIT_REFUSED"
    advice: ClassVar[str] = "Correct what is named, and look at the preview again."


class EditUnseen(Conflict):
    """What would happen with these arguments was not shown on this device yet."""

    code: ClassVar[str] = "EDIT_UNSEEN"
    advice: ClassVar[str] = "Look at the preview of your change, then approve it."


class NotOneRun(Invalid):
    """Only steps of one run are decided on together."""

    code: ClassVar[str] = "NOT_ONE_RUN"
    advice: ClassVar[str] = "Decide on the steps of each run by themselves."


class UnknownReason(Invalid):
    """There is no such reason for a rejection."""

    code: ClassVar[str] = "UNKNOWN_REASON"
    advice: ClassVar[str] = "Choose one of the reasons that are offered, or say it in words."


class RunNotFound(NotFound):
    """There is no such run on this device."""

    code: ClassVar[str] = "RUN_NOT_FOUND"
    advice: ClassVar[str] = "Look at the timeline; it lists the runs that are here."


class Inbox:
    """Proposals and the person's decisions on them."""

    def __init__(self, opened: Opened, steps: Steps) -> None:
        self._opened = opened
        self._steps = steps
        self._seen: dict[str, str] | None = None
        is_first = opened.space == opened.book.personal_space
        self._kept_as = SEEN if is_first else f"{SEEN}:{opened.space}"
        # One decision at a time: the next one must see what the last one changed.
        self._deciding = asyncio.Lock()

    async def list(self, *, decided: bool = False) -> builtins.list[Proposal]:
        """Return proposals, newest first: those that wait, or those that were decided."""
        views = [view for view in await self._steps.views() if _is_proposal(view)]
        found: builtins.list[Proposal] = []
        if decided:
            views = sorted(
                (view for view in views if view.text("status") in DECIDED),
                key=lambda view: (view.text("decidedAt") or view.written_at, view.id),
                reverse=True,
            )[:DECIDED_SHOWN]
            for view in views:
                found.append(await self._steps.proposal(await self._steps.case_of(view), None))
            return found
        for view in views:
            if view.text("status") == "staged":
                proposal = await self._look(await self._steps.case_of(view))
                if proposal.state == "staged":
                    found.append(proposal)
        # Newest run first; within a run in its own order, because later steps rest on earlier.
        found.sort(key=lambda one: one.step_id)
        found.sort(key=lambda one: one.planned_ms, reverse=True)
        return found

    async def count(self) -> int:
        """Return how many proposals wait for this person."""
        now_ms = self._opened.now_ms()
        waiting = 0
        for view in await self._steps.views():
            if _is_proposal(view) and view.text("status") == "staged":
                expires = view.text("expiresAt")
                is_open = not expires or expires > moment(now_ms)
                waiting += is_open and not await self._steps.is_for_others(view)
        return waiting

    async def get(self, step_id: str) -> Proposal:
        """Return one proposal in any state; raise StepNotFound."""
        case = await self._steps.case(step_id)
        if case.status == "staged":
            return await self._look(case)
        return await self._steps.proposal(case, None)

    # Looking at what else could happen

    async def edit_form(self, step_id: str) -> EditForm:
        """Return the parameters of a proposed call, as a person may change them.

        Raises StepNotFound, or UnknownTool where this version does not know the tool.
        """
        case = await self._steps.case(step_id)
        tool = self._opened.catalogue.tool(case.tool)
        items = case.preview if isinstance(case.preview, builtins.list) else []
        tables = [str(item.get("table")) for item in items if isinstance(item, dict)]
        titles = await self._opened.titles(
            [
                (table, value)
                for table in dict.fromkeys(tables)
                for value in case.params.values()
                if isinstance(value, str)
            ]
        )

        def named(value: str) -> tuple[str, str]:
            known = [(table, title) for (table, one), title in titles.items() if one == value]
            return next(((table, title) for table, title in known if title), ("", ""))

        return EditForm(
            step_id=case.id,
            tool=case.tool,
            described=tool.description,
            parameters=parameters_of(tool, case.params, named),
        )

    async def edit_preview(self, step_id: str, arguments: Mapping[str, Json]) -> Proposal:
        """Return what would happen with other arguments, and what is wrong with them.

        Nothing is written; from now on `approve` takes these arguments. Raises as `approve` does
        where nothing of the step can be approved.
        """
        async with self._deciding:
            case = await self._decidable(step_id)
            records, shown = await self._now(case, arguments=arguments)
            if not shown.trouble:
                await self._saw(f"{case.id}{_EDIT}", shown, records.now)
            return await self._steps.proposal(case, shown)

    async def preview_all(self, step_ids: Sequence[str]) -> builtins.list[Proposal]:
        """Return these steps of one run as they would be done together, in their order.

        Nothing is written; from now on `approve_all` takes them so.
        """
        async with self._deciding:
            found: builtins.list[Proposal] = []
            together = Together()
            for case in await self._of_one_run(step_ids):
                records, shown = await self._now(case, together=together)
                if case.verified and case.agent is not None and not shown.trouble:
                    await self._displayed(case, shown, records.now)
                    with contextlib.suppress(ManaError):
                        await self._effects(case, shown, records, together, {})
                found.append(await self._steps.proposal(case, shown))
            return found

    # Deciding

    async def approve(
        self,
        step_id: str,
        *,
        arguments: Mapping[str, Json] | None = None,
        feedback: str = "",
    ) -> Proposal:
        """Approve a proposal and execute exactly what was shown.

        With `arguments` the same tool does it as the person wants it, as `edit_preview` showed it.
        Raises ProposalDecided, ProposalExpired, ProposalForOthers, ProposalUnverified,
        ProposalDenied, ProposalImpossible, EditRefused, EditUnseen, or ProposalMoved the first
        time after its base moved.
        """
        said = _feedback(feedback)
        async with self._deciding:
            case = await self._decidable(step_id)
            writes = await self._approval(case, Together(), arguments=arguments, said=said)
            change_id = str(writes[0].change_id)
            await self._commit([case], writes, derived_id("group", case.id, change_id))
            return await self.get(step_id)

    async def approve_all(
        self, step_ids: Sequence[str], *, feedback: str = ""
    ) -> builtins.list[Proposal]:
        """Approve steps of one run together, in its order: all of them happen, or none.

        Later steps see what earlier ones are about to write. Raises as `approve`, with the step at
        fault as `detail.stepId`; then nothing was changed.
        """
        said = _feedback(feedback)
        async with self._deciding:
            cases = await self._of_one_run(step_ids)
            together = Together()
            writes: builtins.list[Write] = []
            for case in cases:
                writes += await self._approval(case, together, said=said)
            group = derived_id("group", *(str(write.change_id) for write in writes))
            await self._commit(cases, writes, group)
        return [await self.get(case.id) for case in cases]

    async def reject(self, step_id: str, *, reason_code: str = "", reason: str = "") -> Proposal:
        """Reject a proposal; nothing happens. Raises as `reject_all`."""
        return (await self.reject_all([step_id], reason_code=reason_code, reason=reason))[0]

    async def reject_all(
        self, step_ids: Sequence[str], *, reason_code: str = "", reason: str = ""
    ) -> builtins.list[Proposal]:
        """Reject steps of one run, all or none; nothing happens.

        `reason_code` is one of REJECT_REASONS or empty, `reason` what the agent is told. Raises
        UnknownReason, ProposalDecided, ProposalExpired or ProposalForOthers.
        """
        said = _feedback(reason)
        if reason_code and reason_code not in REJECT_REASONS:
            raise UnknownReason(f"a reason is one of: {', '.join(REJECT_REASONS)}")
        async with self._deciding:
            cases = await self._of_one_run(step_ids)
            extra = self._said(said)
            if reason_code:
                extra["rejectReason"] = reason_code
            writes: builtins.list[Write] = []
            for case in cases:
                change = decision(case.id, "rejected", guards={"status": "staged"}, extra=extra)
                # Another id than an approval's: the hub would take the later for a resend.
                change_id = derived_id("change", case.id, STEPS.name, case.id, "reject")
                writes.append(Write(change, self._opened.person, change_id=change_id))
            group = derived_id("group", *(str(write.change_id) for write in writes))
            await self._commit(cases, writes, group)
        return [await self.get(case.id) for case in cases]

    async def comment(self, iteration_id: str, text: str) -> None:
        """Say something of a whole run, for the agent to read before the next; blank takes it back.

        Raises RunNotFound.
        """
        said = _feedback(text)
        view = await self._opened.book.view(ITERATIONS.name, iteration_id)
        if view is None or view.deleted:
            raise RunNotFound("no run of this id is on this device")
        if said == view.text("feedback"):
            return
        values: dict[str, Json] = {"feedback": said or None}
        change = Change(ITERATIONS.name, RecordId(view.id), ChangeKind.UPDATE, values)
        await self._opened.book.commit([Write(change, self._opened.person)])

    async def expire(self) -> None:
        """Close proposals whose time has passed, so that every device shows them so."""
        now_ms = self._opened.now_ms()
        for view in await self._steps.views():
            expires = view.text("expiresAt")
            if view.text("status") != "staged" or not expires or expires > moment(now_ms):
                continue
            change = decision(view.id, "expired", guards={"status": "staged"}, extra={})
            change_id = derived_id("change", view.id, STEPS.name, view.id, "expire")
            await self._opened.book.commit(
                [Write(change, self._opened.person, change_id=change_id)]
            )

    # Within

    async def _approval(
        self,
        case: Case,
        together: Together,
        *,
        arguments: Mapping[str, Json] | None = None,
        said: str = "",
    ) -> builtins.list[Write]:
        """Return the writes of an approval, its decision first; raise what stands against it."""
        detail: dict[str, object] = {"stepId": case.id}
        if not case.verified:
            raise ProposalUnverified(case.reason, detail=detail)
        if case.agent is None:
            raise ProposalDenied("the agent is gone", detail=detail)
        extra = self._said(said)
        edited = arguments is not None
        records, shown = await self._now(case, arguments=arguments, together=together)
        if shown.faults:
            fault = shown.faults[0]
            refused = {**detail, "path": fault.path, "reason": fault.reason}
            raise EditRefused("the tool does not take these arguments", detail=refused)
        if shown.trouble:
            raise ProposalImpossible(shown.trouble, detail=detail)
        if edited and shown.params == case.params:
            # Nothing was changed by it: it is what was proposed.
            edited = False
            records, shown = await self._now(case, together=together)
        seen = (await self._seen_of(f"{case.id}{_EDIT}" if edited else case.id))[0]
        if edited and seen != shown.binding:
            await self._saw(f"{case.id}{_EDIT}", shown, records.now)
            if seen:
                raise ProposalMoved("your change is shown again", detail=detail)
            raise EditUnseen("your change was not shown yet", detail=detail)
        if not edited and (seen or case.binding) != shown.binding:
            await self._displayed(case, shown, records.now)
            raise ProposalMoved("it is shown again", detail=detail)
        if edited:
            extra["edited"] = shown.to_wire()
        return await self._effects(case, shown, records, together, extra)

    async def _effects(
        self,
        case: Case,
        shown: Shown,
        records: Snapshot,
        together: Together,
        extra: Mapping[str, Json],
    ) -> builtins.list[Write]:
        change = decision(case.id, "approved", guards={"status": "staged"}, extra=extra)
        change_id = decide_change_id(case.id, STEPS.name, case.id)
        if "edited" in extra:
            # Two different decisions never bear one id, or the hub would take one for the other.
            change_id = derived_id("change", change_id, "edited", shown.binding)
        detail = {"stepId": case.id}
        try:
            return await self._steps.effects(
                case,
                shown,
                change,
                consent="approved",
                records=records,
                decision_id=change_id,
                together=together,
            )
        except (ToolDenied, NeedsApproval) as error:
            raise ProposalDenied(error.message, detail=detail) from error
        except StepDone as error:
            raise ProposalDecided(error.message, detail=detail) from error
        except NotFound as error:
            raise ProposalImpossible(error.message, detail=detail) from error

    def _said(self, said: str) -> dict[str, Json]:
        extra: dict[str, Json] = {"decidedAt": self._opened.now_iso()}
        if said:
            extra["feedback"] = said
        return extra

    async def _of_one_run(self, step_ids: Sequence[str]) -> builtins.list[Case]:
        """Return undecided steps of one run in its order, each once; raise for any other."""
        cases = [await self._decidable(step_id) for step_id in dict.fromkeys(step_ids)]
        if len({case.step.text("iterationId") for case in cases}) != 1:
            raise NotOneRun("these are not steps of one run")
        return sorted(cases, key=lambda case: (case.index, case.id))

    async def _decidable(self, step_id: str) -> Case:
        try:
            case = await self._steps.case(step_id)
        except StepNotFound as error:
            error.detail["stepId"] = step_id
            raise
        if case.status != "staged":
            detail = {"stepId": step_id, "state": case.status}
            raise ProposalDecided(f"it is {case.status or 'no proposal'}", detail=detail)
        if case.for_others:
            raise ProposalForOthers("another member granted it", detail={"stepId": step_id})
        expires_ms = case.expires_ms
        if expires_ms is not None and expires_ms <= self._opened.now_ms():
            raise ProposalExpired("its time has passed", detail={"stepId": step_id})
        return case

    async def _commit(self, cases: Sequence[Case], writes: Sequence[Write], group: str) -> None:
        """Write the group and ask the hub who was first; offline, it is asked later."""
        try:
            await self._opened.book.commit(writes, group=group, wait=True)
        except Offline:
            return
        except ChangeRefused as error:
            # The winner is known now; what was tried here needs no second look.
            for write in writes:
                with contextlib.suppress(NotFound):
                    await self._opened.book.drop_refused(str(write.change_id))
            with contextlib.suppress(Offline):
                await self._opened.book.sync_now()
            now = [await self._steps.case(case.id) for case in cases]
            fault = next((case for case in now if case.status != "staged"), now[0])
            detail = {"stepId": fault.id, "state": fault.status}
            raise ProposalDecided("another device was first", detail=detail) from error

    # What was shown

    async def _look(self, case: Case) -> Proposal:
        """Return a waiting proposal as it would be done now, and remember what was shown.

        One that rests on an earlier step which waits too is shown as it was planned, until
        somebody asks for it by itself.
        """
        if not case.verified:
            return await self._steps.proposal(case, None)
        records, shown = await self._now(case)
        if shown.waits and (await self._seen_of(case.id))[0] != shown.binding:
            planned = Shown(
                case.preview, case.binding, case.step.text("sentence"), waits=shown.waits
            )
            await self._forget(case.id)
            return await self._steps.proposal(case, planned)
        if not shown.trouble:
            await self._displayed(case, shown, records.now)
        return await self._steps.proposal(case, shown)

    async def _now(
        self,
        case: Case,
        *,
        arguments: Mapping[str, Json] | None = None,
        together: Together | None = None,
    ) -> tuple[Snapshot, Shown]:
        """Return the records of now and what a step would do on them.

        What writes the time of day shows the moment at which it was shown, as long as nothing
        else moved: else it would be another preview at each look, and never be approved.
        """

        async def shown_on(records: Snapshot) -> Shown:
            if arguments is None:
                return await self._steps.shown(case, records, together)
            over = records if together is None else together.over(records)
            return self._steps.edited(case, arguments, over)

        records = await self._steps.snapshot(case)
        binding, at = await self._seen_of(case.id if arguments is None else f"{case.id}{_EDIT}")
        if at:
            then = replace(records, now=at)
            shown = await shown_on(then)
            if shown.binding == binding:
                return then, shown
        return records, await shown_on(records)

    async def _displayed(self, case: Case, shown: Shown, at: str) -> None:
        """Remember what was shown of a step; nothing where it is what was planned."""
        if shown.binding == case.binding:
            await self._forget(case.id)
        else:
            await self._saw(case.id, shown, at)

    async def _seen_of(self, name: str) -> tuple[str, str]:
        """Return binding and moment of what was last shown under a name, if it was kept."""
        binding, _, at = (await self._known()).get(name, "").partition(" ")
        return binding, at

    async def _saw(self, name: str, shown: Shown, at: str) -> None:
        seen = await self._known()
        if (await self._seen_of(name))[0] != shown.binding:
            seen.pop(name, None)
            seen[name] = f"{shown.binding} {at}"
            for old in builtins.list(seen)[:-SEEN_MAX]:
                del seen[old]
            await self._keep(seen)

    async def _forget(self, name: str) -> None:
        seen = await self._known()
        if seen.pop(name, None) is not None:
            await self._keep(seen)

    async def _keep(self, seen: Mapping[str, str]) -> None:
        kept: dict[str, Json] = {**seen}
        await self._opened.book.keep(self._kept_as, kept)

    async def _known(self) -> dict[str, str]:
        if self._seen is None:
            kept = await self._opened.book.kept(self._kept_as)
            items = kept.items() if isinstance(kept, dict) else ()
            self._seen = {step_id: str(binding) for step_id, binding in items}
        return self._seen


def _is_proposal(view: View) -> bool:
    """Say whether a step is the person's to decide, by its sealed decision or its status."""
    if view.text("status") == "staged" or view.text("decidedAt"):
        return True
    return view.values.get("decision") == "propose"


def _feedback(text: str) -> str:
    said = text.strip()
    if len(said) > FEEDBACK_MAX:
        raise Invalid(f"feedback has at most {FEEDBACK_MAX} characters")
    return said
