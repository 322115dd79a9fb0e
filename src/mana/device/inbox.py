"""The inbox: what waits for the person, and what becomes of their decision.

An approval executes exactly what was shown, once: decision, effects and journal are one group,
the decision is guarded on the hub, and every id in it is derived, so that a second approval
here is nothing and one on another device has exactly one winner.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from mana.device.errors import ChangeRefused, Offline
from mana.device.journal import decide_change_id
from mana.device.opened import Opened
from mana.device.steps import FEEDBACK_MAX, Case, Shown, StepDone, Steps, decision, moment
from mana.device.views import Proposal
from mana.device.writing import Write
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Forbidden, Invalid, NotFound
from mana.domain.ids import derived_id
from mana.domain.iterations import STEPS
from mana.domain.records import Snapshot, View
from mana.planning.dispatch import NeedsApproval, ToolDenied

SEEN: Final = "seen-previews"
SEEN_MAX: Final = 100
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

    async def approve(self, step_id: str, *, feedback: str = "") -> Proposal:
        """Approve a proposal and execute exactly what was shown.

        Raises ProposalDecided, ProposalExpired, ProposalForOthers, ProposalUnverified,
        ProposalDenied, ProposalImpossible, or ProposalMoved the first time after its base moved.
        """
        said = _feedback(feedback)
        async with self._deciding:
            case = await self._undecided(step_id)
            if not case.verified:
                raise ProposalUnverified(case.reason, detail={"stepId": step_id})
            if case.agent is None:
                raise ProposalDenied("the agent is gone", detail={"stepId": step_id})
            records, shown = await self._now(case)
            if shown.trouble:
                raise ProposalImpossible("it can no longer be done", detail={"stepId": step_id})
            if shown.moved and (await self._seen_of(step_id))[0] != shown.binding:
                await self._saw(case, shown, records.now)
                raise ProposalMoved("it is shown again", detail={"stepId": step_id})
            extra: dict[str, Json] = {"decidedAt": self._opened.now_iso()}
            if said:
                extra["feedback"] = said
            change = decision(case.id, "approved", guards={"status": "staged"}, extra=extra)
            change_id = decide_change_id(case.id, STEPS.name, case.id)
            try:
                writes = await self._steps.effects(
                    case,
                    shown,
                    change,
                    consent="approved",
                    records=records,
                    decision_id=change_id,
                )
            except (ToolDenied, NeedsApproval) as error:
                raise ProposalDenied(error.message, detail={"stepId": step_id}) from error
            except StepDone as error:
                raise ProposalDecided(error.message, detail={"stepId": step_id}) from error
            except NotFound as error:
                raise ProposalImpossible(error.message, detail={"stepId": step_id}) from error
            await self._commit(case, writes, change_id)
            return await self.get(step_id)

    async def reject(self, step_id: str, *, reason: str = "") -> Proposal:
        """Reject a proposal; nothing happens. Raises ProposalDecided or ProposalExpired."""
        said = _feedback(reason)
        async with self._deciding:
            case = await self._undecided(step_id)
            extra: dict[str, Json] = {"decidedAt": self._opened.now_iso()}
            if said:
                extra["feedback"] = said
            change = decision(case.id, "rejected", guards={"status": "staged"}, extra=extra)
            # Another id than an approval's: the hub would take the later for a resend.
            change_id = derived_id("change", case.id, STEPS.name, case.id, "reject")
            await self._commit(
                case, [Write(change, self._opened.person, change_id=change_id)], change_id
            )
            return await self.get(step_id)

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

    async def _undecided(self, step_id: str) -> Case:
        case = await self._steps.case(step_id)
        if case.status != "staged":
            detail = {"stepId": step_id, "state": case.status}
            raise ProposalDecided(f"it is {case.status or 'no proposal'}", detail=detail)
        if case.for_others:
            raise ProposalForOthers("another member granted it", detail={"stepId": step_id})
        expires_ms = case.expires_ms
        if expires_ms is not None and expires_ms <= self._opened.now_ms():
            raise ProposalExpired("its time has passed", detail={"stepId": step_id})
        return case

    async def _commit(self, case: Case, writes: Sequence[Write], change_id: str) -> None:
        """Write the group and ask the hub who was first; offline, it is asked later."""
        group = derived_id("group", case.id, change_id)
        try:
            await self._opened.book.commit(writes, group=group, wait=True)
        except Offline:
            return
        except ChangeRefused as error:
            # The winner is known now; what was tried here needs no second look.
            with contextlib.suppress(NotFound):
                await self._opened.book.drop_refused(change_id)
            with contextlib.suppress(Offline):
                await self._opened.book.sync_now()
            state = (await self._steps.case(case.id)).status
            detail = {"stepId": case.id, "state": state}
            raise ProposalDecided("another device was first", detail=detail) from error

    async def _look(self, case: Case) -> Proposal:
        """Return a waiting proposal as it would be done now, and remember what was shown."""
        if not case.verified:
            return await self._steps.proposal(case, None)
        records, shown = await self._now(case)
        if shown.moved and not shown.trouble:
            await self._saw(case, shown, records.now)
        return await self._steps.proposal(case, shown)

    async def _now(self, case: Case) -> tuple[Snapshot, Shown]:
        """Return the records of now and what a step would do on them.

        What writes the time of day shows the moment at which it was shown, as long as nothing
        else moved: else it would be another preview at each look, and never be approved.
        """
        records = await self._steps.snapshot(case)
        binding, at = await self._seen_of(case.id)
        if at:
            then = replace(records, now=at)
            shown = await self._steps.shown(case, then)
            if shown.binding == binding:
                return then, shown
        return records, await self._steps.shown(case, records)

    async def _seen_of(self, step_id: str) -> tuple[str, str]:
        """Return binding and moment of what was last shown of a step that moved."""
        binding, _, at = (await self._known()).get(step_id, "").partition(" ")
        return binding, at

    async def _saw(self, case: Case, shown: Shown, at: str) -> None:
        seen = await self._known()
        if (await self._seen_of(case.id))[0] != shown.binding:
            seen.pop(case.id, None)
            seen[case.id] = f"{shown.binding} {at}"
            for old in builtins.list(seen)[:-SEEN_MAX]:
                del seen[old]
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
