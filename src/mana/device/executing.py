"""Steps that policy lets run by themselves: claimed on the hub, then executed by one device.

The policy is asked before the claim and again before the execution, and the stricter answer wins.
All ids are derived, so a crash in between repeats nothing.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Awaitable, Callable

from mana.device.cases import Case, in_order
from mana.device.errors import ChangeRefused, Offline
from mana.device.journal import decide_change_id
from mana.device.opened import Opened
from mana.device.steps import StepDone, Steps, decision
from mana.device.writing import Write
from mana.domain.encoding import Json
from mana.domain.errors import ManaError, NotFound, Unauthenticated
from mana.domain.ids import derived_id
from mana.domain.iterations import STEPS


class Executing:
    """What this device executes by itself in one space, one step after the other."""

    def __init__(
        self, opened: Opened, steps: Steps, *, may_go_on: Callable[[], Awaitable[bool]]
    ) -> None:
        self._opened = opened
        self._steps = steps
        self._may_go_on = may_go_on
        self._executing = asyncio.Lock()

    async def run_planned(self) -> builtins.list[str]:
        """Claim and execute steps that policy lets run by themselves; return those done."""
        done: builtins.list[str] = []
        async with self._executing:
            asked = False
            for view in in_order(await self._steps.views()):
                status = view.text("status")
                mine = view.text("claimedBy") == self._opened.device_id
                if status != "planned" and not (status == "executing" and mine):
                    continue
                if not await self._may_go_on():
                    return done
                case = await self._steps.case_of(view)
                # What runs by itself runs where it was granted: the policy was read by them.
                if not case.verified or case.grantor not in ("", self._opened.account_id):
                    continue
                if status == "planned":
                    if not await self._claim(case):
                        continue
                elif not self._born_here(case) and not asked:
                    # A claim counts when the hub took it; it may still wait in the outbox.
                    try:
                        await self._opened.book.sync_now()
                    except (Offline, Unauthenticated):
                        return done
                    asked = True
                if await self._execute(case.id):
                    done.append(case.id)
        return done

    async def _claim(self, case: Case) -> bool:
        """Ask the policy, then claim on the hub; return whether the step is this device's."""
        expires_ms = case.expires_ms
        if expires_ms is not None and expires_ms <= self._opened.now_ms():
            await self._set(case, "planned", "expired", "")
            return False
        if await self._demoted(case, "planned"):
            return False
        if (await self._opened.book.status()).link != "online":
            return False
        device = self._opened.device_id
        change = decision(
            case.id,
            "executing",
            guards={"status": "planned", "claimedBy": None},
            extra={"claimedBy": device},
        )
        change_id = derived_id("change", case.id, STEPS.name, case.id, "claim", device)
        try:
            await self._opened.book.commit(
                [Write(change, self._opened.person, change_id=change_id)], wait=True
            )
        except Offline:
            return False
        except ChangeRefused:
            with contextlib.suppress(NotFound):
                await self._opened.book.drop_refused(change_id)
            return False
        return True

    async def _execute(self, step_id: str) -> bool:
        """Execute a step that is claimed; the policy is asked again, for it may have moved."""
        case = await self._steps.case(step_id)
        if case.status != "executing" or case.step.text("claimedBy") != self._opened.device_id:
            return False
        if await self._demoted(case, "executing"):
            return False
        records = await self._steps.snapshot(case)
        shown = await self._steps.shown(case, records)
        if shown.trouble:
            await self._set(case, "executing", "failed", shown.trouble)
            return False
        change = decision(case.id, "approved", guards={"status": "executing"}, extra={})
        change_id = decide_change_id(case.id, STEPS.name, case.id)
        try:
            writes = await self._steps.effects(
                case, shown, change, consent="policy", records=records, decision_id=change_id
            )
        except StepDone:
            # Its effects are here: only its status was lost, or put back.
            await self._set(case, "executing", "approved", "")
            return False
        except ManaError as error:
            await self._set(case, "executing", "failed", f"It could not be done: {error.code}.")
            return False
        await self._opened.book.commit(writes, group=derived_id("group", case.id, "execute"))
        return True

    async def _demoted(self, case: Case, status: str) -> bool:
        """Say whether policy is stricter than when it was planned; the stricter answer wins."""
        # What may run by itself follows from the sealed decision, not from the plain status.
        try:
            word, why = await self._steps.decision_now(case)
        except NotFound:
            await self._set(case, status, "skipped", "This version does not know the tool.")
            return True
        if case.agent is None or word == "deny":
            await self._set(case, status, "skipped", "The agent's policy denies this now.")
            return True
        if word == "propose" or case.step.values.get("decision") != "auto":
            await self._set(case, status, "staged", why)
            return True
        return False

    async def _set(self, case: Case, was: str, status: str, result: str) -> None:
        extra: dict[str, Json] = {"result": result} if result else {}
        change = decision(case.id, status, guards={"status": was}, extra=extra)
        change_id = derived_id("change", case.id, STEPS.name, case.id, was, status)
        await self._opened.book.commit([Write(change, self._opened.person, change_id=change_id)])

    def _born_here(self, case: Case) -> bool:
        """Say whether this device made the step, so that nobody else can have claimed it."""
        at = case.step.stamps.get("intent", "")
        source = case.iteration.text("source") if case.iteration is not None else ""
        return source == "device" and at.endswith(self._opened.device_id)
