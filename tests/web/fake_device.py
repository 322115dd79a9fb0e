"""A device in memory, for the page's tests: the same calls, no keys, no hub, no disk.

It plays the main job: a mission that is run proposes changes; approving applies them, reverting
takes them back. Its times are those of the machine, because the page shows them in words.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mana.device.errors import Locked, NotYourRecord, Offline, WrongPassword
from mana.device.views import (
    AgentView,
    Bucket,
    Cited,
    Conflict,
    Consent,
    DataAccess,
    FieldDiff,
    GrantView,
    MissionView,
    ModelView,
    Notice,
    Proposal,
    Reading,
    RecordDiff,
    RefusedChange,
    RevertPreview,
    RunnerView,
    RunView,
    Status,
    SyncStatus,
    TimelineLine,
)
from mana.device.words import errored_words
from mana.domain.cadences import MANUAL, Cadence, describe, next_due
from mana.domain.encoding import Json
from mana.domain.errors import Conflict as Clash
from mana.domain.errors import Forbidden, Invalid, NotFound
from mana.domain.ids import RecordId
from mana.domain.missions import InputRef
from mana.domain.occurrences import ERRORED
from mana.domain.policy import PRESETS, SpacePolicy, decide, preset_of
from mana.domain.records import View, Visibility
from mana.domain.tools import TASK
from mana.planning.subagents import may_delegate
from mana.protocol.errors import WorkStopped
from mana.registry.catalogue import load_catalogue
from tests.web.fake_deciding import FakeDeciding
from tests.web.fake_security import FakeKeyring, FakeLinks, FakeSecurity
from tests.web.fake_spaces import FakeSpaces
from tests.web.fake_work import FakeWork

RULES = ModelView(
    "rules", "rules (offline)", "Fixed rules on this machine; it understands little.", True
)
MINUTE = 60_000
HOUR = 60 * MINUTE


def now() -> int:
    """Return the moment in ms."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class KnownAccount:
    """An account as the first page lists it."""

    account_id: str
    login: str
    display_name: str
    demo: bool
    unlocked: bool
    locked_because: str = ""


class FakeDevice(FakeWork, FakeDeciding, FakeSpaces):
    """One unlocked account, in one of its spaces; `first` is the one of the personal space."""

    def __init__(
        self,
        account_id: str,
        login: str,
        display_name: str,
        *,
        demo: bool,
        first: FakeDevice | None = None,
        space_id: str = "",
    ) -> None:
        super().__init__(first or self, space_id or f"personal-{account_id}")
        self.account_id = account_id
        self.login = login
        self.display_name = display_name
        self.demo = demo
        self.locked = False
        self.online = True
        self.tried = True
        self.run_takes_s = 0.0
        self._ids = itertools.count(1) if first is None else first._ids
        self._listeners: list[asyncio.Queue[Notice]] = [] if first is None else first._listeners
        self._records: dict[str, dict[str, View]] = {"notes": {}, "tasks": {}}
        self._agents: dict[str, AgentView] = {}
        self._missions: dict[str, MissionView] = {}
        self._steps: dict[str, Proposal] = {}
        self._buckets: dict[str, Bucket] = {}
        self._grants: dict[str, GrantView] = {}
        self._readings: list[Reading] = []
        self._refused: dict[str, RefusedChange] = {}
        self._undo: dict[str, tuple[str, str, Mapping[str, Json] | None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._init_work(first)
        self._init_deciding()
        self.security = FakeSecurity(login) if first is None else first.security
        self.sessions = self.security.sessions
        self.links = FakeLinks() if first is None else first.links
        self.keyring = FakeKeyring(self.security)

    def _id(self, kind: str) -> str:
        return f"{kind}-{self.account_id}-{next(self._ids)}"

    def _check(self) -> None:
        if self.first.locked:
            raise Locked("the account is locked")

    def tell(self, topic: str, *tables: str) -> None:
        """Tell every subscriber."""
        for listener in self._listeners:
            listener.put_nowait(Notice(topic, frozenset(tables)))

    async def subscribe_to(self, queue: asyncio.Queue[Notice]) -> AsyncIterator[Notice]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    def subscribe(self) -> AsyncIterator[Notice]:
        self._check()
        queue: asyncio.Queue[Notice] = asyncio.Queue()
        self._listeners.append(queue)
        return self.subscribe_to(queue)

    def _beside(self, space_id: str) -> FakeDevice:
        names = (self.account_id, self.login, self.display_name)
        return FakeDevice(*names, demo=self.demo, first=self, space_id=space_id)

    async def status(self) -> Status:
        self._check()
        if self.first is not self:
            return await self.first.status()
        waiting = {one.space_id: len(await one.inbox()) for one in self.everywhere()}
        due = [one.next_ms[0] for one in await self.missions() if one.next_ms]
        return Status(
            self.account_id,
            self.login,
            self.display_name,
            self.security.mode,
            self.demo,
            self.locked,
            SyncStatus(
                "online" if self.first.online and self.first.tried else "offline",
                now() - 2_000,
                0 if self.first.online else 3,
                len(self._refused),
                "OFFLINE" if self.first.tried and not self.first.online else "",
                self.troubles,
            ),
            RunnerView("runner-1", "9F2C 41B7 D05A E863", (RULES,)),
            RULES,
            min(due, default=None),
            sum(waiting.values()),
            waiting,
        )

    async def sync_now(self) -> SyncStatus:
        if not self.first.online:
            raise Offline("the hub cannot be reached")
        return (await self.status()).sync

    # Records

    async def list(self, table: str, *, include_deleted: bool = False) -> builtins.list[View]:
        self._check()
        found = [one for one in self._records[table].values() if include_deleted or not one.deleted]
        return found[::-1]

    async def get(self, table: str, record_id: str) -> View:
        self._check()
        if record_id not in self._records[table]:
            raise NotFound("there is no such record")
        return self._records[table][record_id]

    async def create(
        self, table: str, values: Mapping[str, Json], *, visibility: Visibility = "space"
    ) -> str:
        self._check()
        new = self._id(table)
        mine = View(table, RecordId(new), {}, author_id=self.account_id, visibility=visibility)
        self._require_writer()
        self._records[table][new] = mine
        self._write(table, new, values)
        return new

    async def set_visibility(self, table: str, record_id: str, visibility: Visibility) -> None:
        found = await self.get(table, record_id)
        self._require_writer()
        if found.author_id != self.account_id:
            raise NotYourRecord("somebody else made it")
        if not self.first.online:
            raise Offline("the hub cannot be reached")
        self._records[table][record_id] = replace(found, visibility=visibility)
        self.tell("records", table)

    async def edit(self, table: str, record_id: str, values: Mapping[str, Json]) -> None:
        await self.get(table, record_id)
        self._write(table, record_id, values)

    async def delete(self, table: str, record_id: str) -> None:
        found = await self.get(table, record_id)
        self._records[table][record_id] = replace(found, deleted=True)
        self.tell("records", table)

    async def restore(self, table: str, record_id: str) -> None:
        found = await self.get(table, record_id)
        self._records[table][record_id] = replace(found, deleted=False)
        self.tell("records", table)

    def _write(self, table: str, record_id: str, values: Mapping[str, Json]) -> None:
        self._require_writer()
        declared = load_catalogue().table(table)
        for path, value in values.items():
            declared.check(path, value)
        old = self._records[table].get(record_id, View(table, record_id, {}))  # type: ignore[arg-type]
        self._records[table][record_id] = replace(old, values={**old.values, **values})
        self.tell("records", table)

    async def inputs(self) -> builtins.list[tuple[InputRef, str]]:
        found = []
        for module, table in (("notes", "notes"), ("todo", "tasks")):
            for view in await self.list(table):
                found.append((InputRef(module, table, view.id), self._title(view)))
        return found

    def _title(self, view: View) -> str:
        return view.text("title") or view.text("content")[:40]

    # Agents

    async def agents(self) -> builtins.list[AgentView]:
        self._check()
        return [await self.agent(agent_id) for agent_id in self._agents]

    async def agent(self, agent_id: str) -> AgentView:
        self._check()
        if agent_id not in self._agents:
            raise NotFound("there is no such agent")
        found = self._agents[agent_id]
        states = [one.state for one in self._steps.values() if one.agent_id == agent_id]
        return replace(
            found,
            missions=tuple(k for k, v in self._missions.items() if v.agent_id == agent_id),
            accepted=states.count("approved"),
            rejected=states.count("rejected"),
            decisions={
                tool.name: decide(
                    tool.name, tool.effect, agent=found.policy, space=SpacePolicy(), tainted=True
                )
                for tool in load_catalogue().tools
            }
            | {TASK: "auto" if may_delegate(found.policy) else "deny"},
        )

    async def create_agent(
        self,
        name: str,
        *,
        role: str = "",
        avatar: str = "",
        system_prompt: str = "",
        memory: str = "",
        preset: str = "standard",
        tokens_per_day_max: int | None = None,
        **more: Any,
    ) -> str:
        self._check()
        new = self._id("agent")
        self._agents[new] = AgentView(
            new,
            name,
            avatar,
            role,
            system_prompt,
            memory,
            PRESETS[preset],
            preset,
            "may read; asks before it writes; asks before it deletes; "
            "asks before it sends anything out",
            {},
            "active",
            tokens_per_day_max,
            640 if self.demo else 0,
            1,
            (),
            0,
            0,
            **more,
        )
        self.tell("records", "agents")
        return new

    async def edit_agent(self, agent_id: str, **fields: Any) -> None:
        found = await self.agent(agent_id)
        if "preset" in fields:
            fields["policy"] = PRESETS[fields["preset"]]
        for name in ("role", "system_prompt", "memory"):
            if name in fields:
                fields[name] = fields[name] or ""
        if "policy" in fields:
            fields["preset"] = preset_of(fields["policy"])
        self._agents[agent_id] = replace(found, **fields)
        self.tell("records", "agents")

    # Missions

    async def missions(self) -> builtins.list[MissionView]:
        self._check()
        return [await self.mission(mission_id) for mission_id in self._missions]

    async def mission(self, mission_id: str) -> MissionView:
        self._check()
        if mission_id not in self._missions:
            raise NotFound("there is no such mission")
        found = self._missions[mission_id]
        after, due = now(), []
        while found.state == "active" and len(due) < 3:
            at = next_due(found.cadence, found.zone, anchor_ms=0, after_ms=after)
            if at is None:
                break
            due.append(at)
            after = at
        grant = next((g for g in self._grants.values() if g.mission_id == mission_id), None)
        held = found.runs_on == "hub" and (grant is None or grant.state != "active")
        agent = self._agents[found.agent_id]
        return replace(
            found,
            agent_name=agent.name,
            agent_avatar=agent.avatar,
            input_titles=tuple(
                Cited(ref.table, ref.id, self._title(self._records[ref.table][ref.id]))
                for ref in found.inputs
            ),
            cadence_words=describe(found.cadence),
            next_ms=tuple(due),
            hold=found.hold or ("no-grant" if held else ""),
            hold_words=(
                errored_words(found.failures, found.failure)
                if found.hold == ERRORED
                else "Waits for your grant."
                if held
                else ""
            ),
            grant=grant,
        )

    async def create_mission(
        self,
        title: str,
        objective: str,
        *,
        agent_id: str,
        inputs: Sequence[InputRef] = (),
        cadence: Cadence = MANUAL,
        zone: str | None = None,
        concept: str = "",
        runs_on: str = "hub",
        **limits: Any,
    ) -> str:
        self._check()
        new = self._id("mission")
        self._missions[new] = MissionView(
            new,
            title,
            objective,
            concept,
            tuple(inputs),
            (),
            cadence,
            "",
            zone or "UTC",
            agent_id,
            "",
            "",
            "active",
            runs_on,
            runs_on != "hub",
            (),
            "",
            "",
            None,
            (),
            **limits,
        )
        self.tell("missions", "aiMissions")
        return new

    async def edit_mission(self, mission_id: str, **fields: Any) -> None:
        await self.mission(mission_id)
        if "runs_on" in fields:
            fields["runs_here"] = fields["runs_on"] != "hub"
        self._missions[mission_id] = replace(self._missions[mission_id], **fields)
        self.tell("missions", "aiMissions")

    async def delete_mission(self, mission_id: str) -> None:
        await self.mission(mission_id)
        del self._missions[mission_id]
        self.tell("missions", "aiMissions")

    async def run_now(self, mission_id: str) -> RunView | None:
        found = await self.mission(mission_id)
        if self.first.work.stopped_ms is not None:
            raise WorkStopped("all work is stopped")
        if found.runs_on == "hub" and not self.first.online:
            raise Offline("the hub cannot be reached")
        run = RunView(self._id("run"), now(), "manual", "leased", "", "", None, 0, "model")
        if found.runs_on == "hub" and (found.grant is None or found.grant.state != "active"):
            skipped = replace(
                run,
                state="skipped",
                reason="no-grant",
                reason_words="Nothing is granted.",
                phase="",
            )
            self._set(mission_id, runs=(skipped, *found.runs))
            return skipped
        self._set(mission_id, runs=(run, *found.runs), phase="model")
        stop = self._stops[mission_id] = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), self.run_takes_s)
        if stop.is_set():
            words = "It was stopped."
            ended = replace(run, state="failed", reason="stopped", reason_words=words, phase="")
            self._set(mission_id, runs=(ended, *found.runs), phase="")
            return ended
        iteration = self._propose(found)
        done = replace(run, state="done", iteration_id=iteration, tokens=212, phase="")
        self._set(mission_id, runs=(done, *found.runs), phase="")
        return done

    def _set(self, mission_id: str, **fields: Any) -> None:
        self._missions[mission_id] = replace(self._missions[mission_id], **fields)
        self.tell("missions", "aiMissions", "aiSteps")

    def progress(self, mission_id: str, **fields: Any) -> None:
        """Let the run that goes on say how far it is."""
        run, *before = self._missions[mission_id].runs
        self._set(mission_id, runs=(replace(run, **fields), *before))

    async def stop_mission(self, mission_id: str) -> None:
        await self.mission(mission_id)
        if mission_id in self._stops:
            self._stops[mission_id].set()

    async def stop_all(self) -> None:
        for stop in self._stops.values():
            stop.set()

    async def resume_mission(self, mission_id: str) -> None:
        self._set(mission_id, hold="", failures=0, failure="", failure_words="")

    async def agree_to_caps(self, mission_id: str) -> None:
        self._set(mission_id, raised_words="")

    def _propose(self, mission: MissionView, *, at: int | None = None) -> str:
        iteration = self._id("iteration")
        at = at or now()
        cited = mission.input_titles
        for ref in cited:
            self._readings.insert(
                0,
                Reading(
                    len(self._readings) + 1,
                    at,
                    f"The runner read “{ref.title}” for “{mission.title}”, and gave it to rules (offline).",
                    mission.mission_id,
                    mission.title,
                    ref.table,
                    ref.record_id,
                    ref.title,
                    "opened",
                    "",
                    "rules",
                ),
            )
        lines = []
        base = Proposal(
            "",
            iteration,
            mission.mission_id,
            mission.title,
            mission.agent_id,
            mission.agent_name,
            mission.agent_avatar,
            at,
            "staged",
            "create_task",
            {},
            "",
            (),
            "Your note says “call the dentist by Friday”, and there is no task for it yet.",
            cited[:1],
            "In your own space; nobody else sees it.",
            "rules (offline)",
            212,
            at + 72 * HOUR,
            True,
        )
        new = self._id("tasks")
        add = replace(
            base,
            step_id=self._id("step"),
            sentence="Add task “Call the dentist”, due 2026-11-27",
            params={"title": "Call the dentist", "dueDate": "2026-11-27"},
            diffs=(
                RecordDiff(
                    "tasks",
                    new,
                    "Call the dentist",
                    "insert",
                    (
                        FieldDiff("title", None, "Call the dentist"),
                        FieldDiff("dueDate", None, "2026-11-27"),
                        FieldDiff("priority", None, "medium"),
                    ),
                ),
            ),
        )
        steps = [add]
        note = next((ref for ref in cited if ref.table == "notes"), None)
        if note is not None:
            old = self._records["notes"][note.record_id].text("content")
            text = old + "\n\nSummary: one call, two errands."
            steps.append(
                replace(
                    base,
                    step_id=self._id("step"),
                    tool="append_to_note",
                    sentence=f"Add text to note “{note.title}”",
                    rationale="A short summary helps to find the note again.",
                    diffs=(
                        RecordDiff(
                            "notes",
                            note.record_id,
                            note.title,
                            "update",
                            (
                                FieldDiff(
                                    "content",
                                    old,
                                    text,
                                    (
                                        ("same", old[-80:]),
                                        ("new", "\n\nSummary: one call, two errands."),
                                    ),
                                ),
                            ),
                        ),
                    ),
                )
            )
        for step in steps:
            self._steps[step.step_id] = step
            lines.append(TimelineLine(step.step_id, step.sentence, "proposed", (), step.diffs, at))
        self._buckets[iteration] = Bucket(
            iteration,
            mission.mission_id,
            mission.title,
            mission.agent_id,
            mission.agent_name,
            mission.agent_avatar,
            at,
            "Read 3 notes and 5 tasks; found one promise without a task.",
            "hub",
            "rules (offline)",
            212,
            tuple(lines),
            False,
            False,
        )
        self._missions[mission.mission_id] = replace(
            self._missions[mission.mission_id],
            last_summary="Read 3 notes and 5 tasks; found one promise without a task.",
        )
        return iteration

    # Grants

    async def consent(
        self, mission_id: str, *, inputs: Sequence[InputRef] | None = None, days: int = 7
    ) -> Consent:
        if not self.first.online:
            raise Offline("the hub cannot be reached")
        found = await self.mission(mission_id)
        named = ", ".join(f"“{one.title}”" for one in found.input_titles)
        return Consent(
            mission_id,
            found.title,
            found.agent_name,
            found.input_titles,
            "9F2C 41B7 D05A E863",
            (RULES,),
            days,
            (
                f"“{found.title}” may read {len(found.inputs)} records: {named}.",
                f"They are read for {found.agent_name} by the runner of your hub. Its fingerprint is 9F2C 41B7 D05A E863.",
                "The text is given to the model rules (offline), on the hub's own machine.",
                "It reads nothing else, and changes nothing: what it wants to change comes to your inbox.",
                f"This ends by itself after {days} days.",
                "Every reading is written down before it happens, and you see it under Data access.",
                "You can end it at any moment with Revoke; then the next reading is refused.",
            ),
        )

    async def grant(self, mission_id: str, *, days: int = 7) -> GrantView:
        found = await self.mission(mission_id)
        new = GrantView(
            self._id("grant"),
            mission_id,
            found.title,
            tuple(one.title for one in found.input_titles),
            ("rules",),
            now(),
            now() + days * 24 * HOUR,
            "active",
        )
        self._grants = {new.grant_id: new, **self._grants}
        self.tell("missions", "aiMissions")
        return new

    async def revoke(self, grant_id: str) -> None:
        if grant_id not in self._grants:
            raise NotFound("there is no such grant")
        self._grants[grant_id] = replace(self._grants[grant_id], state="revoked")
        self.tell("missions", "aiMissions")

    async def grants(self) -> builtins.list[GrantView]:
        return list(self._grants.values())

    # Inbox and timeline

    async def inbox(self, *, decided: bool = False) -> builtins.list[Proposal]:
        self._check()
        found = [one for one in self._steps.values() if (one.state == "staged") != decided]
        return sorted(found, key=lambda one: -one.planned_ms)

    async def proposal(self, step_id: str) -> Proposal:
        self._check()
        if step_id not in self._steps:
            raise NotFound("there is no such proposal")
        return self._steps[step_id]

    async def approve(
        self,
        step_id: str,
        *,
        arguments: Mapping[str, Json] | None = None,
        feedback: str = "",
    ) -> Proposal:
        found = self._waiting(step_id)
        if arguments is not None:
            found = await self.edited_as_seen(step_id, arguments)
        for diff in found.diffs:
            old = self._records[diff.table].get(diff.record_id)
            journal = self._id("journal")
            self._undo[step_id] = (diff.table, diff.record_id, None if old is None else old.values)
            self._write(diff.table, diff.record_id, {one.name: one.after for one in diff.fields})
            self._line(found, "done", (journal,))
        return self._decided(found, "approved", feedback)

    async def reject(self, step_id: str, *, reason_code: str = "", reason: str = "") -> Proposal:
        found = self._waiting(step_id)
        self._line(found, "rejected", ())
        return self._decided(replace(found, reject_reason=reason_code), "rejected", reason)

    def _decided(self, step: Proposal, state: str, feedback: str) -> Proposal:
        self._steps[step.step_id] = replace(step, state=state, feedback=feedback)
        self.tell("records", "aiSteps")
        return self._steps[step.step_id]

    def _line(self, step: Proposal, state: str, journal: tuple[str, ...]) -> None:
        bucket = self._buckets[step.iteration_id]
        lines = tuple(
            replace(
                one,
                state=state,
                journal_ids=journal or one.journal_ids,
                sentence=step.sentence,
                edited=step.edited,
                note="You changed it before you approved it." if step.edited else one.note,
            )
            if one.step_id == step.step_id
            else one
            for one in bucket.lines
        )
        states = {one.state for one in lines}
        self._buckets[step.iteration_id] = replace(
            bucket,
            lines=lines,
            revertible="done" in states,
            reverted="reverted" in states and "done" not in states,
        )

    async def timeline(
        self, *, limit: int = 100, mission_id: str | None = None
    ) -> builtins.list[Bucket]:
        self._check()
        found = [one for one in self._buckets.values() if mission_id in (None, one.mission_id)]
        return sorted(found, key=lambda one: -one.at_ms)[:limit]

    def _targets(self, target: str) -> builtins.list[TimelineLine]:
        kind, _, which = target.partition(":")
        wanted = "reverted" if kind == "revert" else "done"
        return [
            line
            for bucket in self._buckets.values()
            for line in bucket.lines
            if line.state == wanted
            and which in (line.step_id, bucket.iteration_id, bucket.mission_id, *line.journal_ids)
        ]

    async def revert_preview(self, target: str) -> RevertPreview:
        self._check()
        conflicts = []
        restored = []
        for line in self._targets(target):
            for diff in line.diffs:
                back = tuple(FieldDiff(f.name, f.after, f.before) for f in diff.fields)
                op = {"insert": "delete"}.get(diff.op, diff.op)
                if target.startswith("revert:"):
                    back, op = diff.fields, diff.op
                view = self._records[diff.table][diff.record_id]
                moved = [f for f in diff.fields if view.values.get(f.name) != f.after]
                if moved and op == "update" and not target.startswith("revert:"):
                    conflicts += [
                        Conflict(
                            diff.table, diff.record_id, diff.title, f.name, "You changed it since."
                        )
                        for f in moved
                    ]
                else:
                    restored.append(RecordDiff(diff.table, diff.record_id, diff.title, op, back))
        return RevertPreview(target, tuple(restored), tuple(conflicts))

    async def revert(self, target: str) -> RevertPreview:
        preview = await self.revert_preview(target)
        redo = target.startswith("revert:")
        for line in self._targets(target):
            step = self._steps[line.step_id]
            for diff in line.diffs:
                if (diff.record_id) not in {one.record_id for one in preview.restored}:
                    continue
                view = self._records[diff.table][diff.record_id]
                if diff.op == "insert":
                    self._records[diff.table][diff.record_id] = replace(view, deleted=not redo)
                else:
                    values = {f.name: f.after if redo else f.before for f in diff.fields}
                    self._write(diff.table, diff.record_id, values)
                self._line(step, "done" if redo else "reverted", (self._id("journal"),))
        self.tell("records", "notes", "tasks")
        return preview

    # Data access, refused changes

    async def data_access(
        self, *, mission_id: str | None = None, limit: int = 200, before: int | None = None
    ) -> DataAccess:
        self._check()
        found = [one for one in self._readings if mission_id in (None, one.mission_id)]
        return DataAccess(
            tuple(found[:limit]),
            tuple(self._grants.values()),
            True,
            f"Complete, {len(self._readings)} entries, checked on this device just now.",
            len(self._readings),
        )

    async def refused(self) -> builtins.list[RefusedChange]:
        return [one for each in self.everywhere() for one in each._refused.values()]

    async def retry_refused(self, change_id: str) -> None:
        self._refused.pop(change_id)

    async def drop_refused(self, change_id: str) -> None:
        self._refused.pop(change_id)

    async def set_display_name(self, name: str) -> None:
        if len(name) > 80:
            raise Invalid("a name has at most 80 characters")
        self.display_name = name
        self.tell("records", "userSettings")

    def refuse(self) -> None:
        """Let the hub have refused a change."""
        self._refused["change-1"] = RefusedChange(
            "change-1",
            "notes",
            "x",
            "Plan for the trip",
            "TOO_LARGE",
            "It is larger than the hub takes.",
            now() - HOUR,
            self.space_id,
        )


class FakeHost:
    """The device process: accounts and the demo."""

    def __init__(self, *, seeded: bool = False) -> None:
        self._devices: dict[str, FakeDevice] = {}
        self._passwords: dict[str, str] = {}
        self._demo_token = secrets.token_urlsafe(16)
        self.seeded = seeded
        self.online = True
        self.people: list[str] = []
        self._on_lock: list[Callable[[str], None]] = []

    def on_lock(self, callback: Callable[[str], None]) -> None:
        self._on_lock.append(callback)

    def person_here(self, account_id: str) -> None:
        self.people.append(account_id)

    def accounts(self) -> list[KnownAccount]:
        return [
            KnownAccount(one.account_id, one.login, one.display_name, one.demo, not one.locked)
            for one in self._devices.values()
        ]

    def device(self, account_id: str) -> FakeDevice:
        if account_id not in self._devices:
            raise NotFound("this account is not on this device")
        if self._devices[account_id].locked:
            raise Locked("the account is locked")
        return self._devices[account_id]

    async def sign_up(
        self,
        login: str,
        password: str,
        *,
        display_name: str,
        mode: str = "standard",
        demo: bool = False,
        invite: str | None = None,
        zone: str = "UTC",
    ) -> FakeDevice:
        if any(one.login == login for one in self._devices.values()):
            raise Clash("this login name is taken")
        if len(password) < 8:
            raise Invalid("a password has at least 8 characters")
        account_id = f"a{len(self._devices) + 1}"
        device = FakeDevice(account_id, login, display_name, demo=demo)
        device.online = self.online
        device.security.mode, device.security.password = mode, password
        if mode == "zero-knowledge":
            await device.security.new_recovery_code()
        self._devices[account_id] = device
        self._passwords[account_id] = password
        return device

    async def sign_in(self, login: str, password: str) -> FakeDevice:
        for device in self._devices.values():
            if device.login == login and self._passwords[device.account_id] == password:
                device.locked = False
                return device
        raise WrongPassword("login name or password is wrong")

    async def lock(self, account_id: str) -> None:
        device = self._devices[account_id]
        device.locked = True
        for callback in self._on_lock:
            callback(account_id)
        device.tell("lock")

    async def sign_out(self, account_id: str, *, force: bool = False) -> None:
        if not self._devices[account_id].online and not force:
            raise Offline("what waits cannot be pushed")
        del self._devices[account_id]

    async def remove_account(self, account_id: str, password: str) -> None:
        if self._passwords[account_id] != password:
            raise WrongPassword("the password is wrong")
        del self._devices[account_id]

    async def start_demo(self) -> FakeDevice:
        for device in self._devices.values():
            if device.demo:
                device.locked = False
                return device
        device = await self.sign_up("demo", "demo-password", display_name="Demo", demo=True)
        await seed(device)
        return device

    async def remove_demo(self) -> None:
        for device in list(self._devices.values()):
            if device.demo:
                del self._devices[device.account_id]

    def demo_link_token(self) -> str:
        return self._demo_token

    async def redeem_demo_token(self, token: str) -> FakeDevice:
        if token != self._demo_token:
            raise Forbidden("the link was used before")
        self._demo_token = secrets.token_urlsafe(16)
        return await self.start_demo()

    async def auto_lock_minutes(self, account_id: str) -> int:
        return self.device(account_id).security.minutes

    async def set_auto_lock(self, account_id: str, minutes: int | None) -> None:
        self.device(account_id).security.minutes = minutes or 0

    async def close(self) -> None:
        return None


NOTES = (
    (
        "Garden",
        "Order bulbs before the frost. The apple tree wants a stake.\n\nAsk Jo about the fence.",
    ),
    (
        "Diary 20 November",
        "Slept badly. Promised Mum to call the dentist by Friday.\n\nThe talk went well; Rita wants the slides.",
    ),
    (
        "Talk on small gardens",
        "Outline:\n- why small\n- three plots\n- what fails\n\nSlides are due on Tuesday.",
    ),
)
TASKS = (
    ("Send the slides to Rita", "2026-11-24", "high"),
    ("Buy tulip bulbs", "2026-11-20", "medium"),
    ("Book the train to Graz", None, "medium"),
    ("Return the library books", "2026-12-01", "low"),
    ("Mend the bicycle", None, "low"),
)


async def seed(device: FakeDevice) -> None:
    """Put in what the demo starts with, and what a week of work leaves behind."""
    for title, content in NOTES:
        await device.create(
            "notes", {"title": title, "content": content, "isPinned": title == "Garden"}
        )
    for title, due, priority in TASKS:
        values: dict[str, Json] = {"title": title, "priority": priority, "isCompleted": False}
        await device.create("tasks", values | ({"dueDate": due} if due else {}))
    mira = await device.create_agent(
        "Mira",
        role="Looks through the week and keeps promises from being forgotten.",
        memory="- Fridays are for errands.\n- Mum is called Anna.",
        tokens_per_day_max=2_000,
    )
    inputs = [ref for ref, _ in await device.inputs()]
    mission = await device.create_mission(
        "Weekly review",
        "Find promises in my notes that have no task yet, and overdue tasks.",
        agent_id=mira,
        inputs=inputs,
        cadence=Cadence("weekly", day_of_week=0, at_hour=10),
        zone="Europe/Vienna",
    )
    await device.grant(mission)
    found = await device.mission(mission)
    device._propose(found, at=now() - 26 * HOUR)
    for proposal in await device.inbox():
        await device.approve(proposal.step_id)
    await device.run_now(mission)
