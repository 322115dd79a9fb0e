"""A device host in memory, for tests of what the terminal asks and says.

It keeps the promises of `mana.device` that the terminal relies on: passwords, locks, records with
tombstones, one decision per proposal, revert and redo. Nothing is sealed and nothing is sent.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mana.device.errors import Locked, Offline, VisibilityFixed, WrongPassword
from mana.device.inbox import ProposalMoved
from mana.device.invitations import LinkMalformed
from mana.device.links import LinkView
from mana.device.timeline import EDITED
from mana.device.views import (
    AgentView,
    Bucket,
    Cited,
    ConflictView,
    Consent,
    DataAccess,
    FieldDiff,
    GrantView,
    HeldView,
    InvitationView,
    MemberView,
    MissionView,
    ModelView,
    Proposal,
    Reading,
    RecordDiff,
    RefusedChange,
    RevertPreview,
    RunnerView,
    RunView,
    SpaceView,
    Status,
    SyncStatus,
    TimelineLine,
)
from mana.domain.cadences import MANUAL, Cadence, describe
from mana.domain.clock import Stamp
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, NotFound
from mana.domain.ids import DeviceId, RecordId, derived_id, step_id
from mana.domain.missions import InputRef
from mana.domain.policy import PRESETS
from mana.domain.records import View, Visibility
from mana.domain.tools import Outcome
from mana.protocol.errors import (
    InvalidCredentials,
    TwoFactorFailed,
    TwoFactorRequired,
    WorkStopped,
)
from mana.protocol.messages import FactorAnswer
from tests.cli.fake_spaces import FINGERPRINT, FakeSpace, empty_contents
from tests.web.fake_deciding import FakeDeciding
from tests.web.fake_security import DIGITS, FakeKeyring, FakeLinks, FakeSecurity
from tests.web.fake_work import FakeWork

NOW_MS = 1_795_244_580_000
"""Saturday 21 November 2026, 07:03 UTC."""
DEVICE_ID = DeviceId("01933c5e-0000-7000-8000-000000000001")
RULES = ModelView("rules:", "rules", "rules, no language model", local=True)
MODULES = {"notes": "notes", "tasks": "todo"}


@dataclass(frozen=True)
class Known:
    """An account as the host lists it."""

    account_id: str
    login: str
    display_name: str
    demo: bool
    unlocked: bool


class FakeDevice(FakeWork, FakeDeciding):
    """One account in memory, in its personal space."""

    def __init__(
        self,
        login: str,
        *,
        mode: str = "standard",
        demo: bool = False,
        shared: dict[str, FakeSpace] | None = None,
        friends: builtins.list[str] | None = None,
    ) -> None:
        self.login = login
        self.account_id = derived_id("fake-account", login)
        self.demo = demo
        self.security = FakeSecurity(login, mode=mode)
        self.sessions, self.links = self.security.sessions, FakeLinks()
        self.keyring = FakeKeyring(self.security)
        self.display_name = login
        self.online = True
        self.administrator = True
        self.locked = False
        self.waiting = 0
        self.pushes = 0
        self._made = 0
        self._now_ms = NOW_MS
        self.tables: dict[str, dict[str, View]]
        self.agent_views: dict[str, AgentView]
        self.mission_views: dict[str, MissionView]
        self.grant_views: dict[str, GrantView]
        self.proposals: dict[str, Proposal]
        self.reverted: set[str]
        self.moved: set[str]
        self.__dict__.update(empty_contents())
        self.refused_changes: dict[str, RefusedChange] = {}
        self.overwritten: dict[str, ConflictView] = {}
        self.troubles: dict[str, str] = {}
        self.held: dict[str, builtins.list[HeldView]] = {}
        self.space_id = self.personal_id = derived_id("fake-space", login)
        self.shared = shared if shared is not None else {}
        self.friends = friends if friends is not None else []
        self.comments: dict[str, str] = {}
        self._init_work(None)
        self._init_deciding()

    # What the parts that this shares with the page's fake ask of it

    @property
    def _steps(self) -> dict[str, Proposal]:  # type: ignore[override]
        return self.proposals

    @property
    def _buckets(self) -> dict[str, Bucket]:
        return _Said(self)

    def _check(self) -> None:
        self._open()

    def everywhere(self) -> Sequence[FakeDevice]:
        return ()

    def tell(self, topic: str, table: str = "") -> None:
        self.waiting += topic == "records"

    # The account

    async def status(self) -> Status:
        waiting = {
            one.space_id: len(await self.in_space(one.space_id).inbox())
            for one in await self.spaces()
        }
        return Status(
            account_id=self.account_id,
            login=self.login,
            display_name=self.display_name,
            mode=self.security.mode,
            demo=self.demo,
            locked=False,
            sync=self._sync(),
            runner=RunnerView("key-1", "1f3a 77c0 9e42", (RULES,)),
            device_model=RULES,
            next_run_ms=None,
            to_decide=sum(waiting.values()),
            to_decide_by_space=waiting,
            hub_url="http://127.0.0.1:3050",
        )

    async def sync_now(self) -> SyncStatus:
        if not self.online:
            raise Offline("the hub cannot be reached")
        self._let_in()
        self.waiting = 0
        self.pushes += 1
        return self._sync()

    async def set_display_name(self, name: str) -> None:
        self.display_name = name

    async def create_invite(self) -> str:
        return "K7QM-2R9D"

    def _sync(self) -> SyncStatus:
        link = "online" if self.online else "offline"
        refused = len(self.refused_changes)
        return SyncStatus(link, NOW_MS, self.waiting, refused, troubles=self.troubles)

    # Spaces

    async def spaces(self) -> builtins.list[SpaceView]:
        views = [
            one.view(self.account_id)
            for one in self.shared.values()
            if self.account_id in one.members or self.account_id in one.former
        ]
        own = SpaceView(self.personal_id, "personal", "Personal", "owner", 1)
        return [own, *sorted(views, key=lambda one: (one.left, one.name, one.space_id))]

    def in_space(self, space_id: str) -> FakeDevice:
        root = self.__dict__.get("root", self)
        if space_id == self.personal_id:
            return root
        if space_id not in self.shared:
            raise NotFound("this account has no such space")
        return _InSpace(root, self.shared[space_id])

    @property
    def here(self) -> FakeSpace:
        return self.shared[self.space_id]

    async def create_space(self, name: str, space_type: str, *, description: str = "") -> str:
        self._hub()
        space_id = self._id("space").replace("-", "") * 2
        made = FakeSpace(space_id, space_type, name, description, {})
        made.take(self.account_id, self.display_name, "owner")
        self.shared[space_id] = made
        return space_id

    async def edit_space(self, name: str | None = None, description: str | None = None) -> None:
        self.here.name = self.here.name if name is None else name
        self.here.description = self.here.description if description is None else description
        self.waiting += 1

    async def members(self) -> builtins.list[MemberView]:
        if self.space_id == self.personal_id:
            sign = FINGERPRINT.format(1)
            return [MemberView(self.account_id, self.display_name, "owner", sign, own=True)]
        return [
            replace(one, own=one.account_id == self.account_id)
            for one in self.here.members.values()
        ]

    async def set_role(self, account_id: str, role: str) -> None:
        self._hub()
        self.here.give_role(account_id, role)

    async def remove_member(self, account_id: str) -> None:
        self._hub()
        self.here.put_out(account_id)

    async def transfer(self, account_id: str) -> None:
        self._hub()
        self.here.give_role(account_id, "owner")
        self.here.give_role(self.account_id, "admin")

    async def leave(self) -> None:
        self._hub()
        self.here.put_out(self.account_id)

    async def close_space(self) -> None:
        self._hub()
        self.here.closed = True

    async def forget_space(self) -> None:
        self.here.require_former(self.account_id)
        self.here.former.discard(self.account_id)
        self.here.members.pop(self.account_id, None)

    async def reread(self) -> None:
        self._hub()
        self.troubles.pop(self.space_id, None)

    async def held_only(self) -> builtins.list[HeldView]:
        return self.held.get(self.space_id, [])

    async def invite(self, role: str, *, days: int = 7, label: str = "") -> InvitationView:
        self._hub()
        return self.here.invite(role, expires_ms=NOW_MS + days * 86_400_000, label=label)

    async def invitations(self) -> builtins.list[InvitationView]:
        self._hub()
        return builtins.list(self.here.invitations.values())[::-1]

    async def withdraw_invitation(self, invitation_id: str) -> None:
        self._hub()
        one = self.here.invitations[invitation_id]
        self.here.invitations[invitation_id] = replace(one, state="withdrawn", link="")

    async def join(self, link: str) -> InvitationView:
        """Accept: whoever made the invitation lets this account in at its next sync."""
        self._hub()
        for space in self.shared.values():
            for ident, one in space.invitations.items():
                if one.state == "open" and one.link == link.strip():
                    sign = FINGERPRINT.format(len(space.members) + 1)
                    taken = replace(one, state="accepted", link="", fingerprint=sign)
                    space.invitations[ident] = taken
                    space.accepted[ident] = self.account_id, self.display_name
                    return taken
        raise LinkMalformed("this is not a link of an invitation")

    async def joining(self) -> builtins.list[InvitationView]:
        self._hub()
        return [
            one
            for space in self.shared.values()
            for ident, one in space.invitations.items()
            if one.state == "accepted" and space.accepted[ident][0] == self.account_id
        ]

    def _let_in(self) -> None:
        for space in self.shared.values():
            role = space.view(self.account_id).role
            for ident, one in builtins.list(space.invitations.items()):
                if one.state == "open" and self.friends and role:
                    name = self.friends.pop(0)
                    space.accepted[ident] = derived_id("fake-account", name.casefold()), name
                elif one.state != "accepted" or role not in ("owner", "admin"):
                    continue
                space.invitations[ident] = replace(one, state="joined", link="")
                space.take(*space.accepted[ident], one.role)

    def _hub(self) -> None:
        if not self.online:
            raise Offline("the hub cannot be reached")

    # Records

    async def list(self, table: str, *, include_deleted: bool = False) -> builtins.list[View]:
        self._open()
        found = [v for v in self.tables[table].values() if include_deleted or not v.deleted]
        return sorted(found, key=lambda view: view.written_at, reverse=True)

    async def get(self, table: str, record_id: str) -> View:
        if record_id not in self.tables[table]:
            raise NotFound("no record of this id is on this device")
        return self.tables[table][record_id]

    async def create(
        self, table: str, values: Mapping[str, Json], *, visibility: Visibility = "space"
    ) -> str:
        self._open()
        self._require_shared(visibility)
        defaults: dict[str, Json] = (
            {"priority": "medium", "isCompleted": False} if table == "tasks" else {}
        )
        record_id = RecordId(self._id("record"))
        view = replace(View(table, record_id, {}), visibility=visibility)
        self._write(view, {**defaults, **values})
        return record_id

    async def set_visibility(self, table: str, record_id: str, visibility: Visibility) -> None:
        self._hub()
        self._require_shared("private")
        self._write(replace(await self.get(table, record_id), visibility=visibility), {})

    def _require_shared(self, visibility: Visibility) -> None:
        if visibility == "private" and self.space_id == self.personal_id:
            raise VisibilityFixed("nobody else reads your own space")

    async def edit(self, table: str, record_id: str, values: Mapping[str, Json]) -> None:
        self._write(await self.get(table, record_id), values)

    async def delete(self, table: str, record_id: str) -> None:
        self._write(replace(await self.get(table, record_id), deleted=True), {})

    async def restore(self, table: str, record_id: str) -> None:
        self._write(replace(await self.get(table, record_id), deleted=False), {})

    async def use_tool(self, name: str, arguments: Mapping[str, Json]) -> Outcome:
        if name == "append_to_note":
            view = await self.get("notes", str(arguments["noteId"]))
            text = f"{view.text('content')}\n\n{arguments['content']}".strip()
            self._write(view, {"content": text})
            return Outcome("The text is added to the note.")
        assert name == "complete_task"
        view = await self.get("tasks", str(arguments["taskId"]))
        if view.values.get("isCompleted") is True:
            raise Conflict("the task is already completed")
        self._write(view, {"isCompleted": True})
        return Outcome("The task is completed.")

    async def inputs(self) -> builtins.list[tuple[InputRef, str]]:
        return [
            (InputRef(MODULES[table], table, view.id), view.text("title"))
            for table in self.tables
            for view in await self.list(table)
            if view.values.get("isCompleted") is not True
        ]

    def _write(self, view: View, values: Mapping[str, Json]) -> None:
        self._now_ms += 1_000
        at = str(Stamp(self._now_ms - 3_600_000, 0, DEVICE_ID))
        stamps = {**view.stamps, **dict.fromkeys(values or ("deletedAt",), at)}
        written = {**view.values, **values}
        self.tables[view.table][view.id] = replace(view, values=written, stamps=stamps)
        self.waiting += 1

    # Agents

    async def agents(self) -> builtins.list[AgentView]:
        return builtins.list(self.agent_views.values())

    async def agent(self, agent_id: str) -> AgentView:
        return self.agent_views[agent_id]

    async def create_agent(self, name: str, *, preset: str = "standard", **fields: Any) -> str:
        agent_id = self._id("agent")
        words = "may read; asks before it writes; asks before it deletes"
        self.agent_views[agent_id] = AgentView(
            agent_id=agent_id,
            name=name,
            policy=PRESETS[preset],
            preset=preset,
            policy_words=words if preset == "standard" else preset,
            decisions={"create_task": "propose", "list_tasks": "auto"},
            state="active",
            tokens_today=0,
            missions=(),
            accepted=0,
            rejected=0,
            **fields,
        )
        return agent_id

    async def edit_agent(self, agent_id: str, **fields: Any) -> None:
        if "preset" in fields:
            fields["policy"] = PRESETS[fields["preset"]]
        self.agent_views[agent_id] = replace(self.agent_views[agent_id], **fields)

    # Missions

    async def missions(self) -> builtins.list[MissionView]:
        return builtins.list(self.mission_views.values())

    async def mission(self, mission_id: str) -> MissionView:
        return self.mission_views[mission_id]

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
        **more: Any,
    ) -> str:
        mission_id = self._id("mission")
        agent = self.agent_views[agent_id]
        self.agent_views[agent_id] = replace(agent, missions=(*agent.missions, mission_id))
        self.mission_views[mission_id] = MissionView(
            mission_id=mission_id,
            title=title,
            objective=objective,
            concept=concept,
            inputs=tuple(inputs),
            input_titles=self._cited(inputs),
            cadence=cadence,
            cadence_words=describe(cadence),
            zone=zone or "UTC",
            agent_id=agent_id,
            agent_name=agent.name,
            agent_avatar=agent.avatar,
            state="active",
            runs_on=runs_on,
            runs_here=runs_on == "device",
            next_ms=() if cadence is MANUAL else (NOW_MS + 86_400_000,),
            hold="",
            hold_words="",
            grant=None,
            runs=(),
            **more,
        )
        return mission_id

    async def edit_mission(self, mission_id: str, **fields: Any) -> None:
        if "inputs" in fields:
            fields["inputs"] = tuple(fields["inputs"])
            fields["input_titles"] = self._cited(fields["inputs"])
        if "cadence" in fields:
            fields["cadence_words"] = describe(fields["cadence"])
        self.mission_views[mission_id] = replace(self.mission_views[mission_id], **fields)

    async def delete_mission(self, mission_id: str) -> None:
        del self.mission_views[mission_id]

    async def stop_mission(self, mission_id: str) -> None:
        self._hub()
        self._ended(mission_id, state="failed", reason="stopped", reason_words="It was stopped.")

    async def resume_mission(self, mission_id: str) -> None:
        self._hub()
        self.set_mission(mission_id, hold="", hold_words="", failures=0, failure="")

    async def agree_to_caps(self, mission_id: str) -> None:
        self.set_mission(mission_id, raised_words="")

    def set_mission(self, mission_id: str, **fields: Any) -> None:
        """Let a mission stand otherwise: errored, with other runs."""
        self.mission_views[mission_id] = replace(self.mission_views[mission_id], **fields)

    def _ended(self, mission_id: str, **fields: Any) -> None:
        runs = self.mission_views[mission_id].runs
        going = ("queued", "leased", "running")
        ended = tuple(replace(run, **fields) if run.state in going else run for run in runs)
        self.set_mission(mission_id, runs=ended)

    async def run_now(self, mission_id: str) -> RunView:
        """Run: the mission proposes one task."""
        if self.work.stopped_ms is not None:
            raise WorkStopped("all work is stopped")
        mission = self.mission_views[mission_id]
        iteration = derived_id("fake-iteration", mission_id, str(len(mission.runs)))
        run = RunView(iteration, NOW_MS, "manual", "done", "", "", iteration, 412)
        self.mission_views[mission_id] = replace(mission, runs=(run, *mission.runs))
        for index, title in enumerate(("Call the dentist", "Water the plants")):
            self.propose(mission, step_id(iteration, index), title)  # type: ignore[arg-type]
        return run

    def propose(self, mission: MissionView, step: str, title: str) -> None:
        """Add a proposal of a new task."""
        task_id = derived_id("created", step, "0")
        diff = RecordDiff("tasks", task_id, title, "insert", (FieldDiff("title", None, title),))
        self.proposals[step] = Proposal(
            step_id=step,
            iteration_id=step.rpartition("-")[0],
            mission_id=mission.mission_id,
            mission_title=mission.title,
            agent_id=mission.agent_id,
            agent_name=mission.agent_name,
            agent_avatar=mission.agent_avatar,
            planned_ms=NOW_MS - 120_000,
            state="staged",
            tool="create_task",
            params={"title": title},
            sentence=f"Add task “{title}”",
            diffs=(diff,),
            rationale="It stands in a note and in no task.",
            cited=mission.input_titles[:1],
            reach="Your personal space, which nobody else sees.",
            model="rules",
            tokens=412,
            expires_ms=NOW_MS + 7 * 86_400_000,
            verified=True,
        )

    # Grants

    async def consent(
        self, mission_id: str, *, inputs: Sequence[InputRef] | None = None, days: int = 7
    ) -> Consent:
        mission = self.mission_views[mission_id]
        records = mission.input_titles
        lines = (
            f"“{mission.title}” may read {len(records)} records.",
            "They are read by the runner with the fingerprint 1f3a 77c0 9e42.",
            f"This ends by itself after {days} days.",
        )
        return Consent(
            mission_id,
            mission.title,
            mission.agent_name,
            records,
            "1f3a 77c0 9e42",
            (RULES,),
            days,
            lines,
        )

    async def grant(self, mission_id: str, *, days: int = 7) -> GrantView:
        if not self.online:
            raise Offline("the hub cannot be reached")
        mission = self.mission_views[mission_id]
        made = GrantView(
            grant_id=self._id("grant"),
            mission_id=mission_id,
            mission_title=mission.title,
            titles=tuple(cited.title for cited in mission.input_titles),
            endpoints=("rules:",),
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + days * 86_400_000,
            state="active",
        )
        self.grant_views[made.grant_id] = made
        self.mission_views[mission_id] = replace(mission, grant=made)
        return made

    async def revoke(self, grant_id: str) -> None:
        self.grant_views[grant_id] = replace(self.grant_views[grant_id], state="revoked")

    async def grants(self) -> builtins.list[GrantView]:
        return builtins.list(self.grant_views.values())[::-1]

    # Inbox

    async def inbox(self, *, decided: bool = False) -> builtins.list[Proposal]:
        return [one for one in self.proposals.values() if (one.state != "staged") is decided]

    async def proposal(self, step: str) -> Proposal:
        return self.proposals[step]

    async def approve(
        self, step: str, *, arguments: Mapping[str, Json] | None = None, feedback: str = ""
    ) -> Proposal:
        if step in self.moved:
            raise ProposalMoved("it is shown again")
        if arguments is not None:
            self.proposals[step] = await self.edited_as_seen(step, arguments)
        one = self._decided(step, "approved", feedback)
        diff = one.diffs[0]
        title = diff.fields[0].after
        self._write(View("tasks", RecordId(diff.record_id), {}), {"title": title})
        return one

    async def reject(self, step: str, *, reason_code: str = "", reason: str = "") -> Proposal:
        decided = self._decided(step, "rejected", reason)
        self.proposals[step] = replace(decided, reject_reason=reason_code)
        return self.proposals[step]

    def _decided(self, step: str, state: str, feedback: str) -> Proposal:
        if self.proposals[step].state != "staged":
            raise Conflict("the proposal is decided")
        self.proposals[step] = replace(self.proposals[step], state=state, feedback=feedback)
        return self.proposals[step]

    # Timeline

    async def timeline(
        self, *, limit: int = 100, mission_id: str | None = None
    ) -> builtins.list[Bucket]:
        buckets = [
            self._bucket(mission, run)
            for mission in self.mission_views.values()
            for run in mission.runs
            if mission_id in (None, mission.mission_id)
        ]
        return buckets[:limit]

    def _bucket(self, mission: MissionView, run: RunView) -> Bucket:
        iteration = run.iteration_id or ""
        lines = tuple(
            TimelineLine(
                step_id=one.step_id,
                sentence=one.sentence,
                state=self._line_state(one),
                journal_ids=(derived_id("journal", one.step_id),),
                diffs=one.diffs,
                at_ms=one.planned_ms,
                note=one.feedback or (EDITED if one.edited else ""),
                edited=one.edited,
            )
            for one in self.proposals.values()
            if one.iteration_id == iteration
        )
        done = [line for line in lines if line.state in ("done", "reverted")]
        return Bucket(
            iteration_id=iteration,
            mission_id=mission.mission_id,
            mission_title=mission.title,
            agent_id=mission.agent_id,
            agent_name=mission.agent_name,
            agent_avatar=mission.agent_avatar,
            at_ms=run.scheduled_ms,
            summary="Found two things to do in your notes.",
            source="hub",
            model="rules",
            tokens=run.tokens,
            lines=lines,
            revertible=any(line.state == "done" for line in lines),
            reverted=bool(done) and all(line.state == "reverted" for line in done),
            feedback=self.comments.get(iteration, ""),
        )

    def _line_state(self, one: Proposal) -> str:
        if one.step_id in self.reverted:
            return "reverted"
        return {"staged": "proposed", "approved": "done"}.get(one.state, one.state)

    async def revert_preview(self, target: str) -> RevertPreview:
        kind, _, ident = target.partition(":")
        found = [
            one
            for one in self.proposals.values()
            if one.state == "approved"
            and (one.step_id in self.reverted) is (kind == "revert")
            and ident
            in {
                "step": (one.step_id,),
                "iteration": (one.iteration_id,),
                "mission": (one.mission_id,),
                "revert": (derived_id("journal", one.step_id),),
            }[kind]
        ]
        if not found:
            raise NotFound("nothing stands behind this that could be reverted")
        gone = kind != "revert"
        diffs = tuple(
            replace(one.diffs[0], op="delete" if gone else "update", fields=()) for one in found
        )
        return RevertPreview(target, diffs, ())

    async def revert(self, target: str) -> RevertPreview:
        shown = await self.revert_preview(target)
        for diff in shown.restored:
            step = next(
                s for s, one in self.proposals.items() if one.diffs[0].record_id == diff.record_id
            )
            self.reverted ^= {step}
            view = await self.get("tasks", diff.record_id)
            self._write(replace(view, deleted=diff.op == "delete"), {})
        return shown

    # Data access

    async def data_access(
        self, *, mission_id: str | None = None, limit: int = 200, before: int | None = None
    ) -> DataAccess:
        readings = tuple(
            Reading(
                seq=1,
                at_ms=NOW_MS - 180_000,
                sentence=f"The runner read “{title}” for “{one.mission_title}”, and sent it to rules.",
                mission_id=one.mission_id,
                mission_title=one.mission_title,
                table="notes",
                record_id="",
                title=title,
                status="ok",
                reason="",
                endpoint="rules:",
            )
            for one in self.grant_views.values()
            for title in one.titles
            if mission_id in (None, one.mission_id)
        )
        words = "complete, checked on this device just now"
        grants = tuple(self.grant_views.values())
        return DataAccess(readings[:limit], grants, True, words, len(readings))

    async def refused(self) -> builtins.list[RefusedChange]:
        return builtins.list(self.refused_changes.values())

    async def retry_refused(self, change_id: str) -> None:
        del self.refused_changes[change_id]
        self.waiting += 1

    async def drop_refused(self, change_id: str) -> None:
        del self.refused_changes[change_id]

    async def conflicts(self) -> builtins.list[ConflictView]:
        return builtins.list(self.overwritten.values())

    async def restore_conflict(self, conflict_id: str) -> None:
        one = self.overwritten.pop(conflict_id)
        device = self.in_space(one.space_id)
        await device.edit(one.table, one.record_id, {each.field: each.was for each in one.fields})

    async def dismiss_conflict(self, conflict_id: str) -> None:
        del self.overwritten[conflict_id]

    def _cited(self, inputs: Sequence[InputRef]) -> tuple[Cited, ...]:
        return tuple(
            Cited(ref.table, ref.id, self.tables[ref.table][ref.id].text("title")) for ref in inputs
        )

    def _id(self, what: str) -> str:
        self._made += 1
        return derived_id("fake", self.login, what, str(self._made))

    def _open(self) -> None:
        if self.locked:
            raise Locked("the account is locked")


class _Said(dict[str, Bucket]):
    """The runs of a device by id; what is said of one is kept there."""

    def __init__(self, device: FakeDevice) -> None:
        buckets = [
            device._bucket(mission, run)
            for mission in device.mission_views.values()
            for run in mission.runs
        ]
        super().__init__({one.iteration_id: one for one in buckets})
        self.device = device

    def __setitem__(self, iteration_id: str, bucket: Bucket) -> None:
        self.device.comments[iteration_id] = bucket.feedback


class _InSpace(FakeDevice):
    """The same account in a shared space: its own contents there, all else its own."""

    def __init__(self, root: FakeDevice, space: FakeSpace) -> None:
        self.__dict__.update(space.contents, root=root, space_id=space.space_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["root"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["root"], name, value)


@dataclass(frozen=True)
class FakeSettings:
    """What a device is called."""

    name: str = "Linux"


@dataclass
class FakePending:
    """A new device whose link goes on at each look."""

    host: FakeHost
    login: str
    looks: int = 0

    async def poll(self) -> LinkView:
        self.looks += 1
        state = ("waiting", "revealed", "approved")[min(self.looks, 3) - 1]
        digits = DIGITS if self.looks > 1 else None
        return LinkView("1a2b3c4d" * 4, "Linux", state, digits)  # type: ignore[arg-type]

    async def finish(self) -> FakeDevice:
        self.host.devices[self.login] = self.host.hub[self.login]
        return self.host.devices[self.login]

    async def close(self) -> None:
        self.host.given_up += 1


@dataclass
class FakeHost:
    """A device host in memory. Closing it locks its accounts, as the end of a process does."""

    passwords: dict[str, str] = field(default_factory=dict)
    devices: dict[str, FakeDevice] = field(default_factory=dict)
    hub: dict[str, FakeDevice] = field(default_factory=dict)
    shared: dict[str, FakeSpace] = field(default_factory=dict)
    friends: list[str] = field(default_factory=list)
    """Who uses the next open invitation, each when the inviter's device syncs."""
    closed: int = 0
    given_up: int = 0
    totp: str = ""
    """The code that a sign-in asks for; empty: none."""
    settings: FakeSettings = FakeSettings()

    def accounts(self) -> list[Known]:
        return [
            Known(one.account_id, one.login, one.display_name, one.demo, not one.locked)
            for one in self.devices.values()
        ]

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
        if login in self.devices:
            raise Conflict("this login is taken")
        self.passwords[login] = password
        self.devices[login] = FakeDevice(
            login, mode=mode, demo=demo, shared=self.shared, friends=self.friends
        )
        self.devices[login].display_name = display_name
        self.devices[login].security.password = password
        if mode == "zero-knowledge":
            await self.devices[login].security.new_recovery_code()
        self.hub[login] = self.devices[login]
        return self.devices[login]

    async def sign_in(
        self, login: str, password: str, *, factor: FactorAnswer | None = None
    ) -> FakeDevice:
        hub = self.hub.get(login)
        if hub is None or (hub.security.password or self.passwords.get(login)) != password:
            raise WrongPassword("the password does not open this account")
        if self.totp and login not in self.devices and factor is None:
            raise TwoFactorRequired("a second factor is needed", detail={"kinds": ["totp"]})
        if factor is not None and factor.totp != self.totp:
            raise TwoFactorFailed("the code is not right")
        self.devices[login] = self.hub[login]
        self.devices[login].locked = False
        return self.devices[login]

    async def recover(self, login: str, code: str, new_password: str) -> FakeDevice:
        hub = self.hub[login]
        if code != hub.security.code:
            raise InvalidCredentials("login or recovery code is wrong")
        hub.security.password = new_password
        return await self.sign_in(login, new_password)

    async def reset(self, login: str, token: str, new_password: str) -> FakeDevice:
        if token != "token-of-the-operator":
            raise InvalidCredentials("login or token is wrong")
        self.hub[login].security.password = new_password
        return await self.sign_in(login, new_password)

    async def begin_link(self, login: str, name: str) -> FakePending:
        return FakePending(self, login)

    async def set_auto_lock(self, account_id: str, minutes: int | None) -> None:
        self.device(account_id).security.minutes = minutes or 0

    def device(self, account_id: str) -> FakeDevice:
        return next(one for one in self.devices.values() if one.account_id == account_id)

    async def start_demo(self) -> FakeDevice:
        if "demo-1" not in self.devices:
            await self.sign_up("demo-1", "", display_name="Demo", demo=True)
        self.devices["demo-1"].locked = False
        return self.devices["demo-1"]

    async def remove_demo(self) -> None:
        del self.devices["demo-1"]

    async def sign_out(self, account_id: str, *, force: bool = False) -> None:
        one = self.device(account_id)
        if one.waiting and not force:
            raise Conflict("changes wait that the hub lacks")
        del self.devices[one.login]

    async def remove_account(self, account_id: str, password: str) -> None:
        del self.devices[self.device(account_id).login]

    async def close(self) -> None:
        self.closed += 1
        for one in self.devices.values():
            one.locked = True
