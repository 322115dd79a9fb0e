"""What a person decides with a device in memory: edits, groups, comments, acceptance, policy.

An edit changes what stands in the preview's fields of the same names; nothing is checked but what
a test needs to see refused.
"""

from __future__ import annotations

import builtins
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mana.device.errors import ManagersOnly
from mana.device.forms import parameters_of
from mana.device.inbox import (
    EditUnseen,
    NotOneRun,
    ProposalDecided,
    ProposalForOthers,
    ProposalImpossible,
)
from mana.device.policies import NotAcknowledged
from mana.device.views import (
    Acceptance,
    AcceptRate,
    AcceptWeek,
    EditForm,
    Fault,
    LiftedTool,
    ModelChoice,
    PolicyChange,
    Proposal,
    Proposed,
    RejectedFor,
    SpacePolicyView,
    ToolAcceptance,
)
from mana.domain.encoding import Json
from mana.domain.errors import NotFound
from mana.registry.catalogue import load_catalogue

if TYPE_CHECKING:
    from tests.web.fake_device import FakeDevice

WEEK_MS = 7 * 24 * 60 * 60 * 1_000


class FakeDeciding:
    """The part of the fake device that knows what people decide."""

    _steps: dict[str, Proposal]

    def _init_deciding(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.lifted: dict[str, LiftedTool] = {}
        self.policy_history: builtins.list[PolicyChange] = []
        self.policy_is_mine = True
        self.moves_together = ""
        self.stands_in_the_way = ""

    @property
    def _all(self) -> FakeDevice:
        return self  # type: ignore[return-value]

    def set_step(self, step_id: str, **fields: Any) -> None:
        """Let a proposal stand otherwise: moved, under another's grant, impossible."""
        self._steps[step_id] = replace(self._steps[step_id], **fields)
        self._all.tell("records", "aiSteps")

    def _waiting(self, step_id: str) -> Proposal:
        if step_id not in self._steps:
            raise NotFound("there is no such proposal")
        found = self._steps[step_id]
        detail: dict[str, object] = {"stepId": step_id}
        if found.state != "staged":
            raise ProposalDecided(f"it is {found.state}", detail=detail)
        if found.for_others:
            raise ProposalForOthers("another member granted it", detail=detail)
        return found

    # Edits

    async def edit_form(self, step_id: str) -> EditForm:
        self._all._check()
        found = await self._all.proposal(step_id)
        tool = load_catalogue().tool(found.tool)
        titles = {diff.record_id: (diff.table, diff.title) for diff in found.diffs}
        named = parameters_of(tool, found.params, lambda value: titles.get(value, ("", "")))
        return EditForm(step_id, found.tool, tool.description, named)

    async def edit_preview(self, step_id: str, arguments: Mapping[str, Json]) -> Proposal:
        found = self._waiting(step_id)
        if arguments.get("title") == "":
            fault = Fault("title", "Expected `str` of length >= 1")
            return replace(found, edited=True, params=dict(arguments), faults=(fault,))
        diffs = tuple(
            replace(
                diff,
                fields=tuple(
                    replace(one, after=arguments.get(one.name, one.after), words=())
                    for one in diff.fields
                ),
            )
            for diff in found.diffs
        )
        self.seen.add((step_id, repr(sorted(arguments.items(), key=str))))
        if dict(arguments) == dict(found.params):
            return found
        said = f"Add task “{arguments['title']}”" if "title" in arguments else found.sentence
        return replace(
            found,
            sentence=said,
            params=dict(arguments),
            diffs=diffs,
            edited=True,
            proposed=Proposed(found.sentence, found.params, found.diffs),
        )

    async def edited_as_seen(self, step_id: str, arguments: Mapping[str, Json]) -> Proposal:
        """Return an edit if it was previewed as it is."""
        if (step_id, repr(sorted(arguments.items(), key=str))) not in self.seen:
            raise EditUnseen("your change was not shown yet", detail={"stepId": step_id})
        return await self.edit_preview(step_id, arguments)

    # Groups

    async def preview_all(self, step_ids: Sequence[str]) -> builtins.list[Proposal]:
        found = [self._waiting(step_id) for step_id in step_ids]
        if len({one.iteration_id for one in found}) != 1:
            raise NotOneRun("these are not steps of one run")
        return [
            replace(one, sentence=f"{one.sentence} {self.moves_together}".strip())
            for one in sorted(found, key=lambda one: one.step_id)
        ]

    async def approve_all(
        self, step_ids: Sequence[str], *, feedback: str = ""
    ) -> builtins.list[Proposal]:
        await self.preview_all(step_ids)
        if self.stands_in_the_way in step_ids:
            detail: dict[str, object] = {"stepId": self.stands_in_the_way}
            raise ProposalImpossible("the note is gone", detail=detail)
        return [await self._all.approve(one, feedback=feedback) for one in step_ids]

    async def reject_all(
        self, step_ids: Sequence[str], *, reason_code: str = "", reason: str = ""
    ) -> builtins.list[Proposal]:
        await self.preview_all(step_ids)
        return [
            await self._all.reject(one, reason_code=reason_code, reason=reason) for one in step_ids
        ]

    async def comment(self, iteration_id: str, text: str) -> None:
        buckets = self._all._buckets
        if iteration_id not in buckets:
            raise NotFound("no run of this id is on this device")
        buckets[iteration_id] = replace(buckets[iteration_id], feedback=text)
        self._all.tell("records", "aiIterations")

    # How they fared

    async def acceptance(self, agent_id: str) -> Acceptance:
        decided = [
            one
            for one in self._steps.values()
            if one.agent_id == agent_id and one.state in ("approved", "rejected")
        ]

        def rate(found: Sequence[Proposal]) -> AcceptRate:
            states = Counter(one.state for one in found)
            percent = states["approved"] * 100 // len(found) if found else None
            edited = sum(one.edited for one in found)
            return AcceptRate(states["approved"], edited, states["rejected"], 0, percent, None)

        tools = sorted({one.tool for one in decided})
        now = time.time_ns() // 1_000_000
        states = Counter(one.state for one in decided)
        weeks = [AcceptWeek(now - n * WEEK_MS, 0, 0) for n in range(12, 1, -1)]
        newest = AcceptWeek(now - WEEK_MS, states["approved"], states["rejected"])
        return Acceptance(
            agent_id,
            rate(decided),
            tuple(
                ToolAcceptance(tool, rate([one for one in decided if one.tool == tool]))
                for tool in tools
            ),
            (*weeks, newest),
        )

    async def rejections(self, mission_id: str) -> builtins.list[RejectedFor]:
        found = [
            one
            for one in self._steps.values()
            if one.mission_id == mission_id and one.state == "rejected"
        ]
        return [
            RejectedFor(
                code,
                sum(one.reject_reason == code for one in found),
                max(one.planned_ms for one in found if one.reject_reason == code),
                tuple(one.feedback for one in found if one.reject_reason == code and one.feedback),
            )
            for code in sorted({one.reject_reason for one in found})
        ]

    # The space's policy

    async def space_policy(self) -> SpacePolicyView:
        self._all._check()
        liftable = [
            one.name
            for one in load_catalogue().tools
            if one.effect in ("destructive", "external") and not one.always_asks
        ]
        return SpacePolicyView(
            tuple(self.lifted.values()),
            tuple(liftable),
            self.policy_is_mine,
            tuple(self.policy_history),
        )

    async def lift(self, tool: str, *, acknowledged: bool) -> None:
        if not self.policy_is_mine:
            raise ManagersOnly("only owners and admins change it")
        if not acknowledged:
            raise NotAcknowledged("nobody said that they mean it")
        effect, me = load_catalogue().tool(tool).effect, self._all
        at = time.time_ns() // 1_000_000
        self.lifted[tool] = LiftedTool(tool, effect, me.account_id, me.display_name, at)
        self._changed(tool, "added", at)

    async def unlift(self, tool: str) -> None:
        if not self.policy_is_mine:
            raise ManagersOnly("only owners and admins change it")
        if self.lifted.pop(tool, None) is not None:
            self._changed(tool, "removed", time.time_ns() // 1_000_000)

    def _changed(self, tool: str, action: str, at: int) -> None:
        me = self._all
        self.policy_history.insert(
            0, PolicyChange(tool, action, me.account_id, me.display_name, at)
        )

    # Models

    async def model_choices(self) -> builtins.list[ModelChoice]:
        return [
            ModelChoice("", "the first that is set up", "both"),
            ModelChoice("big", "big", "hub"),
            ModelChoice("own:m1", "Kitchen box", "own"),
        ]
