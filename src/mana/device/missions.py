"""Missions as the person keeps them, merged with what the hub and this device know of runs."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, TypedDict

from mana.device.caps import agree_to_caps, caps_here, caps_raised
from mana.device.cases import flags_of
from mana.device.due import arranged_ms, changed_ms, next_ms
from mana.device.grants import Grants
from mana.device.hub_news import HubNews
from mana.device.opened import InputPrivate, Opened
from mana.device.run_ledger import RunLedger
from mana.device.views import CapWait, Cited, GrantView, MissionView, OnChange, RunView
from mana.device.waiting import cap_wait, on_change
from mana.device.words import CURRENCY, errored_words, hold_words, reason_words
from mana.device.writing import Write
from mana.domain.agents import Agent
from mana.domain.cadences import (
    MANUAL,
    Cadence,
    cadence_from_wire,
    describe,
    zone,
)
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Forbidden, Invalid, Unavailable
from mana.domain.ids import RecordId
from mana.domain.iterations import ITERATIONS
from mana.domain.missions import (
    INPUTS_MAX,
    MISSION_STATES,
    MISSIONS,
    RUNS_ON_HUB,
    IfMissed,
    InputRef,
    Mission,
    MissionState,
    mission_from_view,
)
from mana.domain.money import smaller
from mana.domain.occurrences import ERRORED, FAILURES_MAX
from mana.domain.records import View
from mana.domain.tables import DELETED_AT
from mana.planning.budget import read_budget_reason
from mana.protocol.messages import MissionStatus, OccurrenceInfo

NEXT_SHOWN: Final = 3
RUNS_SHOWN: Final = 20
_CAP_DAYS: Final = 3
"""Of so many days use is asked for, so that the whole day under a cap is among it."""
RUNS_HERE: Final = "device"
"""How a caller names this device as the place of a mission."""


class InputNotThere(Invalid):
    """A record that was picked as an input is not on this device, or cannot be one."""

    code: ClassVar[str] = "INPUT_UNKNOWN"
    advice: ClassVar[str] = "Pick the inputs from the list."


class MissionEdit(TypedDict, total=False):
    """The fields of a mission that can be edited; None removes a cap.

    Caps are of a day: in tokens, and in millionths of the hub's currency.
    """

    title: str
    objective: str
    concept: str
    inputs: Sequence[InputRef]
    cadence: Cadence
    zone: str
    agent_id: str
    runs_on: str
    state: MissionState
    if_missed: IfMissed
    tokens_per_day_max: int | None
    cost_per_day_max: int | None


_PLAIN: Final = {
    "state": "state",
    "if_missed": "ifMissed",
    "tokens_per_day_max": "maxTokensPerDay",
    "cost_per_day_max": "maxCostPerDay",
}


@dataclass(frozen=True, slots=True)
class _Past:
    """By mission the summary of its newest iteration, and by iteration its flags."""

    summaries: Mapping[str, str]
    flags: Mapping[str, tuple[str, ...]]


class Missions:
    """The missions of the account."""

    def __init__(self, opened: Opened, grants: Grants, news: HubNews, ledger: RunLedger) -> None:
        self._opened = opened
        self._grants = grants
        self._news = news
        self._ledger = ledger

    async def list(self) -> builtins.list[MissionView]:
        """Return the missions: active, paused, done, archived, each newest written first."""
        views = await self._opened.book.views(MISSIONS.name)
        statuses = await self._news.missions()
        grants = await self._grants.by_mission()
        past = await self._past()
        shown = []
        for view in sorted(views, key=lambda view: (view.written_at, view.id), reverse=True):
            shown.append(await self._view(view, statuses.get(view.id), grants.get(view.id), past))
        return sorted(shown, key=lambda one: MISSION_STATES.index(one.state))

    async def get(self, mission_id: str) -> MissionView:
        """Return one mission; raise MissionNotFound."""
        view = await self._opened.mission_view(mission_id)
        return await self._view(
            view,
            await self._news.mission(mission_id),
            await self._grants.of_mission(mission_id),
            await self._past(),
        )

    async def create(
        self,
        title: str,
        objective: str,
        *,
        agent_id: str,
        inputs: Sequence[InputRef] = (),
        cadence: Cadence = MANUAL,
        zone: str | None = None,
        concept: str = "",
        runs_on: str = RUNS_ON_HUB,
        if_missed: IfMissed = "once",
        tokens_per_day_max: int | None = None,
        cost_per_day_max: int | None = None,
    ) -> str:
        """Create a mission and return its id."""
        mission_id = RecordId(self._opened.new_id())
        fields: MissionEdit = {
            "title": title,
            "objective": objective,
            "concept": concept,
            "inputs": inputs,
            "cadence": cadence,
            "zone": zone or await self._opened.zone(),
            "agent_id": agent_id,
            "runs_on": runs_on,
            "state": "active",
            "if_missed": if_missed,
            "tokens_per_day_max": tokens_per_day_max,
            "cost_per_day_max": cost_per_day_max,
        }
        values = {
            path: value for path, value in (await self._values(fields)).items() if value is not None
        }
        change = Change(MISSIONS.name, mission_id, ChangeKind.CREATE, values)
        await self._opened.book.commit([Write(change, self._opened.person)])
        self._news.moved()
        return mission_id

    async def edit(self, mission_id: str, fields: MissionEdit) -> None:
        """Write the named fields.

        Moving a mission to another place waits for the hub's word, because it runs in one place
        only: raises Offline without it.
        """
        view = await self._opened.mission_view(mission_id)
        unknown = set(fields) - set(MissionEdit.__annotations__)
        if unknown:
            raise Invalid("a mission has no such field")
        values = {
            path: value
            for path, value in (await self._values(fields)).items()
            if view.values.get(path) != value
        }
        if not values:
            return
        moves = "runsOn" in values
        if moves:
            # Asked first: a mission that was moved here while offline would run in both places.
            await self._opened.hub.missions()
        change = Change(MISSIONS.name, view.id, ChangeKind.UPDATE, values)
        await self._opened.book.commit([Write(change, self._opened.person)], wait=moves)
        self._news.moved()

    async def delete(self, mission_id: str) -> None:
        """Delete a mission; its grants end at once, or with the mission when it is synced."""
        view = await self._opened.mission_view(mission_id)
        self._opened.book.require_writable(MISSIONS, mission_id)
        # Another member's grant is theirs or an admin's to end; it ends with the mission anyway.
        with contextlib.suppress(Unavailable, Forbidden):
            await self._grants.revoke_for(mission_id)
        gone: dict[str, Json] = {DELETED_AT: self._opened.now_iso()}
        change = Change(MISSIONS.name, view.id, ChangeKind.DELETE, gone)
        await self._opened.book.commit([Write(change, self._opened.person)])
        self._news.moved()

    async def ask_hub_to_run(self, mission_id: str) -> RunView:
        """Ask the hub for an occurrence now; raise Offline without it."""
        self._opened.book.require_writable(MISSIONS, mission_id)
        await self._opened.book.sync_now()
        info = await self._opened.hub.run_mission(self._opened.space, mission_id)
        self._news.moved()
        return run_view(info)

    async def stop_on_hub(self, mission_id: str) -> None:
        """End the run that the hub works on; raise Offline without it."""
        self._opened.book.require_writable(MISSIONS, mission_id)
        await self._opened.hub.stop_mission(self._opened.space, mission_id)
        self._news.moved()

    async def resume_on_hub(self, mission_id: str) -> None:
        """Let a mission run again that failed too often in a row; raise Offline without the hub."""
        self._opened.book.require_writable(MISSIONS, mission_id)
        await self._opened.hub.resume_mission(self._opened.space, mission_id)
        self._news.moved()

    async def _values(self, fields: MissionEdit) -> dict[str, Json]:
        """Return the checked values of the named fields, by path."""
        values: dict[str, Json] = {}
        if "title" in fields:
            values["title"] = _needed(fields["title"], "title")
        if "objective" in fields:
            values["objective"] = _needed(fields["objective"], "objective")
        if "concept" in fields:
            values["conceptMarkdown"] = fields["concept"]
        if "inputs" in fields:
            values["inputs"] = await self._picked(fields["inputs"])
        if "cadence" in fields:
            values["cadence"] = _cadence(fields["cadence"])
        if "zone" in fields:
            zone(fields["zone"])
            values["timeZone"] = fields["zone"]
        if "agent_id" in fields:
            await self._opened.agent(fields["agent_id"])
            values["agentId"] = fields["agent_id"]
        if "runs_on" in fields:
            values["runsOn"] = self._place(fields["runs_on"])
        for name, path in _PLAIN.items():
            if name in fields:
                values[path] = fields[name]  # type: ignore[literal-required]
        for path, value in values.items():
            MISSIONS.check(path, value)
        return values

    async def _picked(self, inputs: Sequence[InputRef]) -> builtins.list[Json]:
        refs = builtins.list(dict.fromkeys(inputs))
        if len(refs) > INPUTS_MAX:
            raise Invalid(f"a mission looks at up to {INPUTS_MAX} records")
        for ref in refs:
            view = await self._opened.find(ref.table, ref.id)
            offered = self._opened.catalogue.input_kind(ref.table)
            if view is None or view.deleted or offered is None:
                raise InputNotThere("an input is not on this device", detail={"input": ref.key})
            if not self._opened.may_be_input(view):
                raise InputPrivate("an input is private", detail={"input": ref.key})
            if self._opened.catalogue.module_of(ref.table) != ref.module:
                raise InputNotThere("an input names another module", detail={"input": ref.key})
        return [ref.to_wire() for ref in refs]

    def _place(self, runs_on: str) -> str:
        if runs_on == RUNS_HERE:
            return self._opened.place
        if runs_on == RUNS_ON_HUB or runs_on.startswith("device:"):
            return runs_on
        raise Invalid("a mission runs on the hub, or on a device")

    async def _past(self) -> _Past:
        """Return what is told of the iterations."""
        found: dict[str, tuple[str, str]] = {}
        flags: dict[str, tuple[str, ...]] = {}
        for view in await self._opened.book.views(ITERATIONS.name):
            at, mission_id = view.text("scheduledFor"), view.text("missionId")
            flags[view.id] = flags_of(view)
            if mission_id not in found or found[mission_id][0] < at:
                found[mission_id] = (at, view.text("summary"))
        return _Past({mission_id: summary for mission_id, (_, summary) in found.items()}, flags)

    async def _view(
        self,
        view: View,
        status: MissionStatus | None,
        grant: GrantView | None,
        past: _Past,
    ) -> MissionView:
        """Return a mission as it is shown."""
        mission, broken = _readable(view)
        agent = await self._opened.agent_or_none(mission.agent_id)
        cited = await self._cited(mission.inputs)
        runs_here = mission.runs_on == self._opened.place
        runs = await self._runs(mission, status, past)
        failures, failure = await self._failures(mission, status)
        is_errored = runs_here and failures >= FAILURES_MAX
        hold = "malformed" if broken else ERRORED if is_errored else self._hold(mission, status)
        # Where this person is no longer, nobody tells whether it still runs.
        is_followed = mission.state == "active" and not self._opened.book.keys.former
        change, cap = None, None
        if is_followed and not hold:
            change = await self._on_change(mission, view, runs)
            cap = await self._cap_wait(mission, agent, runs)
        return MissionView(
            mission_id=mission.id,
            title=mission.title,
            objective=mission.objective,
            concept=mission.concept,
            inputs=mission.inputs,
            input_titles=cited,
            cadence=mission.cadence,
            cadence_words=describe(mission.cadence),
            zone=mission.zone,
            agent_id=mission.agent_id,
            agent_name=agent.name if agent is not None else "",
            agent_avatar=agent.avatar if agent is not None else "",
            state=mission.state,
            runs_on=mission.runs_on,
            runs_here=runs_here,
            next_ms=self.next_moments(mission, view) if is_followed else (),
            hold=hold,
            hold_words=""
            if mission.state != "active"
            else errored_words(failures, failure)
            if hold == ERRORED
            else hold_words(hold),
            grant=grant,
            runs=runs,
            last_summary=past.summaries.get(mission.id, ""),
            phase=self._ledger.phase(mission.id)
            or next((run.phase for run in runs if run.state == "leased"), ""),
            if_missed=mission.if_missed,
            tokens_per_day_max=mission.tokens_per_day_max,
            cost_per_day_max=mission.cost_per_day_max,
            failures=failures,
            failure=failure,
            failure_words=reason_words("failed", failure) if failure else "",
            on_change=change,
            cap_wait=cap,
            raised_words=await self._raised(mission, agent) if runs_here else "",
        )

    async def agree_to_caps(self, mission_id: str) -> None:
        """Let the caps that a mission and its agent have now hold for its runs on this device."""
        mission = await self._opened.mission(mission_id)
        await agree_to_caps(self._opened, mission, await self._opened.agent(mission.agent_id))

    async def _raised(self, mission: Mission, agent: Agent | None) -> str:
        """Return that another member raised a cap of what runs here; empty if nobody did."""
        agreed = None if agent is None else await caps_here(self._opened, mission, agent)
        if agent is None or agreed is None:
            return ""
        name = await caps_raised(self._opened, mission, agent, agreed)
        if name is None:
            return ""
        return (
            f"{name or 'Another member'} raised a limit of a day. "
            "For runs on this device yours holds until you agree."
        )

    def next_moments(self, mission: Mission, view: View) -> tuple[int, ...]:
        """Return the next three due moments by the cadence."""
        found: builtins.list[int] = []
        due_ms = next_ms(mission, view, self._opened.now_ms())
        while due_ms is not None and len(found) < NEXT_SHOWN:
            found.append(due_ms)
            due_ms = next_ms(mission, view, due_ms)
        return tuple(found)

    async def _on_change(
        self, mission: Mission, view: View, runs: Sequence[RunView]
    ) -> OnChange | None:
        """Return when a mission on change runs; None for another, or one of another device."""
        here = mission.runs_on == self._opened.place
        if mission.cadence.kind != "onChange" or not (here or mission.runs_on == RUNS_ON_HUB):
            return None
        marks = await self._ledger.marks(mission.id) if here else None
        return on_change(
            mission.cadence,
            changes=changed_ms(await self._opened.stored(mission.inputs)),
            runs=runs,
            here=marks,
            since_ms=max(marks.after_ms if marks is not None else 0, arranged_ms(view)),
            now_ms=self._opened.now_ms(),
        )

    async def _cap_wait(
        self, mission: Mission, agent: Agent | None, runs: Sequence[RunView]
    ) -> CapWait | None:
        """Return the used-up cap that a mission waits for; None if it waits for none."""
        if not any(read_budget_reason(run.reason) for run in runs):
            return None
        work, used = await self._news.work(), await self._news.usage(_CAP_DAYS)
        caps: dict[tuple[str, str], int | None] = {}
        # In a shared space what holds may be less than what a member has set.
        if not self._opened.book.keys.shared:
            caps["mission", "tokens"] = mission.tokens_per_day_max
            caps["mission", "cost"] = mission.cost_per_day_max
            if agent is not None:
                caps["agent", "tokens"] = agent.tokens_per_day_max
                caps["agent", "cost"] = agent.cost_per_day_max
        if work is not None:
            caps["account", "tokens"] = smaller(
                work.tokens_per_day_max, work.hub_tokens_per_day_max
            )
            caps["account", "cost"] = smaller(work.cost_per_day_max, work.hub_cost_per_day_max)
        account_id = self._opened.account_id
        return cap_wait(
            runs,
            caps=caps,
            ids={"mission": mission.id, "agent": mission.agent_id, "account": account_id},
            used=used.lines if used is not None else (),
            currency=await self._news.currency(),
            now_ms=self._opened.now_ms(),
        )

    async def _failures(self, mission: Mission, status: MissionStatus | None) -> tuple[int, str]:
        """Return how often a mission failed in a row where it runs, and why the last time."""
        if mission.runs_on == self._opened.place:
            marks = await self._ledger.marks(mission.id)
            return marks.failures, marks.failure
        if status is None:
            return 0, ""
        return status.failures, status.failure or ""

    def _hold(self, mission: Mission, status: MissionStatus | None) -> str:
        if mission.runs_on == RUNS_ON_HUB and status is not None:
            return status.hold or ""
        return ""

    async def _runs(
        self, mission: Mission, status: MissionStatus | None, past: _Past
    ) -> tuple[RunView, ...]:
        """Return the hub's ledger and this device's runs together, newest first."""
        currency = await self._news.currency()
        infos = status.occurrences if status is not None else []
        runs = [run_view(info, currency=currency) for info in infos]
        known = {run.occurrence_id for run in runs}
        here = await self._ledger.runs(mission.id, currency=currency)
        runs += [run for run in here if run.occurrence_id not in known]
        runs.sort(key=lambda run: (run.scheduled_ms, run.occurrence_id), reverse=True)
        return tuple(
            replace(run, flags=past.flags.get(run.iteration_id or "", ()))
            for run in runs[:RUNS_SHOWN]
        )

    async def _cited(self, inputs: Sequence[InputRef]) -> tuple[Cited, ...]:
        titles = await self._opened.titles([(ref.table, ref.id) for ref in inputs])
        return tuple(Cited(ref.table, ref.id, titles[ref.table, ref.id]) for ref in inputs)


def run_view(info: OccurrenceInfo, *, currency: str = CURRENCY) -> RunView:
    """Return a line of the hub's ledger, with its reason in words."""
    reason = info.reason or ""
    return RunView(
        occurrence_id=info.occurrence_id,
        scheduled_ms=parse_iso_ms(info.scheduled_for),
        kind=info.kind,
        state=info.state,
        reason=reason,
        reason_words=reason_words(info.state, reason, currency=currency),
        iteration_id=info.iteration_id,
        tokens=info.tokens,
        phase=info.phase or "",
        cost=info.cost,
        tries=info.tries,
        last_reason=info.last_reason or "",
        last_reason_words=reason_words("failed", info.last_reason) if info.last_reason else "",
        due_ms=_due_ms(info),
        started_ms=parse_iso_ms(info.started_at) if info.started_at else 0,
        round=info.round,
        tool_calls=info.tool_calls,
        steps=info.steps,
        heard=info.heard,
        unconfirmed_tokens=info.unconfirmed_tokens,
        unconfirmed_cost=info.unconfirmed_cost,
    )


def _due_ms(info: OccurrenceInfo) -> int | None:
    """Return when an occurrence that waits is worked on, if it is of the future by the hub."""
    return parse_iso_ms(info.due_at) if info.due_at and info.state == "queued" else None


def _readable(view: View) -> tuple[Mission, bool]:
    """Return the mission, without what cannot be read of it, and whether something cannot."""
    try:
        return mission_from_view(view), False
    except Invalid:
        values: Mapping[str, Json] = view.values
        state = values.get("state")
        return (
            Mission(
                id=view.id,
                title=view.text("title"),
                objective=view.text("objective"),
                concept=view.text("conceptMarkdown"),
                inputs=(),
                cadence=MANUAL,
                zone="UTC",
                agent_id=view.text("agentId"),
                state=state if state in MISSION_STATES else "paused",  # type: ignore[arg-type]
                runs_on=view.text("runsOn") or RUNS_ON_HUB,
                grant_id=None,
            ),
            True,
        )


def _cadence(cadence: Cadence) -> Json:
    wire = cadence.to_wire()
    cadence_from_wire(wire)
    return wire


def _needed(text: str, what: str) -> str:
    shown = text.strip()
    if not shown:
        raise Invalid(f"a mission needs its {what}")
    return shown
