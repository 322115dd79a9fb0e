"""One unlocked account: everything that the page and the terminal may ask of it.

A facade. Each group of methods belongs to one operation beside this file, which holds the
rules; this class only names them in one place, so that page and terminal need to know no more.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from mana.device.acceptance import acceptance, rejections
from mana.device.views import (
    Acceptance,
    AgentView,
    Bucket,
    ConflictView,
    Consent,
    DataAccess,
    EditForm,
    GrantView,
    HeldView,
    InvitationView,
    MemberView,
    MissionView,
    ModelChoice,
    ModelView,
    Notice,
    OwnModelView,
    Proposal,
    RefusedChange,
    RejectedFor,
    RevertPreview,
    RunView,
    SpacePolicyView,
    SpaceView,
    Status,
    SyncStatus,
    UsageView,
    WorkView,
)
from mana.domain.cadences import MANUAL, Cadence
from mana.domain.encoding import Json
from mana.domain.missions import RUNS_ON_HUB, IfMissed, InputRef
from mana.domain.records import View, Visibility
from mana.domain.tools import Outcome
from mana.protocol.messages import NotifyState, SetNotify

if TYPE_CHECKING:
    from mana.device.agents import AgentEdit
    from mana.device.keyring import Remembering
    from mana.device.links import Links
    from mana.device.missions import MissionEdit
    from mana.device.models import OwnModelEdit
    from mana.device.operations import Operations
    from mana.device.security import Security
    from mana.device.sessions import Sessions
    from mana.device.work import Caps


class Device:
    """One unlocked account of this device, in one of its spaces: at first the personal one.

    Every method that reads or writes raises `Locked` once the account is locked. Errors are
    those of `mana.domain.errors`; `Unavailable` with code OFFLINE where the hub is needed.
    """

    def __init__(self, operations: Operations) -> None:
        self._of = operations
        self._devices: dict[str, Device] = {operations.opened.space: self}
        self.account_id: str = operations.opened.account_id
        self.login: str = operations.opened.login
        self.space_id: str = operations.opened.space

    @property
    def links(self) -> Links:
        """Return what answers new devices that ask to be unlocked by this one."""
        return self._of.links

    @property
    def sessions(self) -> Sessions:
        """Return the sessions, devices and second factors of the account."""
        return self._of.sessions

    @property
    def keyring(self) -> Remembering:
        """Return what lets the account open without its password on this device."""
        return self._of.keyring

    def in_space(self, space_id: str) -> Device:
        """Return this account in another of its spaces, the same object each time; NotFound.

        Status, sync, notices, settings, data access and what was refused are those of the whole
        account, whichever space is asked.
        """
        operations = self._of.in_space(space_id)
        found = self._devices.get(space_id)
        if found is None:
            found = Device(operations)
            found._devices = self._devices
            self._devices[space_id] = found
        return found

    @property
    def security(self) -> Security:
        """Return what the person can see and change of the keys of this account."""
        return self._of.security

    async def status(self) -> Status:
        """Return the status line: account, lock, sync, runner, model, next run, to decide."""
        return await self._of.status()

    def subscribe(self) -> AsyncIterator[Notice]:
        """Return notices from now on; a slow subscriber gets them merged, never all lost."""
        return self._of.notices.subscribe()

    async def sync_now(self) -> SyncStatus:
        """Push and pull once; raise Unavailable (OFFLINE) when the hub cannot be reached."""
        return await self._of.sync_now()

    async def start(self) -> None:
        """Start what runs by itself in every space: sync, due missions, planned steps."""
        await self._of.first.start()

    async def close(self) -> None:
        """Stop what runs by itself and wait until it has stopped."""
        await self._of.first.close()

    # Spaces

    async def spaces(self) -> builtins.list[SpaceView]:
        """Return the account's spaces: the personal one first, former ones last."""
        return await self._of.spaces.spaces()

    async def create_space(self, name: str, space_type: str, *, description: str = "") -> str:
        """Found a shared space with this account as its owner; return its id. Needs the hub."""
        return await self._of.spaces.create_space(name, space_type, description=description)

    async def edit_space(self, name: str | None = None, description: str | None = None) -> None:
        """Rename this space, or say what it is for; owners and admins, offline too."""
        await self._of.spaces.edit_space(self.space_id, name=name, description=description)

    async def members(self) -> builtins.list[MemberView]:
        """Return the members of this space."""
        return await self._of.spaces.members(self.space_id)

    async def confirm_fingerprint(self, account_id: str, fingerprint: str) -> None:
        """Say that the person compared a member's fingerprint; raise FingerprintMoved for another.

        It is shown as compared from then on, in every space and on every device of the account.
        """
        await self._of.spaces.confirm_fingerprint(self.space_id, account_id, fingerprint)

    async def set_role(self, account_id: str, role: str) -> None:
        """Give a member of this space another role. Needs the hub."""
        await self._of.spaces.set_role(self.space_id, account_id, role)

    async def remove_member(self, account_id: str) -> None:
        """Remove a member of this space, who can read nothing that is written from then on."""
        await self._of.spaces.remove_member(self.space_id, account_id)

    async def transfer(self, account_id: str) -> None:
        """Make a member the owner of this space, and this account an admin. Needs the hub."""
        await self._of.spaces.transfer(self.space_id, account_id)

    async def leave(self) -> None:
        """Leave this space; what this device has of it stays readable here. Needs the hub."""
        await self._of.spaces.leave(self.space_id)

    async def close_space(self) -> None:
        """End this space for everybody; only an owner may. Needs the hub."""
        await self._of.spaces.close_space(self.space_id)

    async def forget_space(self) -> None:
        """Remove this former space from this device, with all that is here of it."""
        await self._of.forget_space(self.space_id)
        self._devices.pop(self.space_id, None)

    async def reread(self) -> None:
        """Read this space anew from the hub, over what is held here; nothing held goes.

        For a hub that was set back, or that named a place in its log that is none. What this
        device wrote and the hub lacks is sent again. Needs the hub; if it goes away meanwhile, a
        later sync goes on.
        """
        await self._of.spaces.reread(self.space_id)

    async def held_only(self) -> builtins.list[HeldView]:
        """Return what this device holds of this space and the hub did not show when reread."""
        return await self._of.spaces.held_only(self.space_id)

    async def invite(self, role: str, *, days: int = 7, label: str = "") -> InvitationView:
        """Invite somebody into this space; the view holds the link. Needs the hub."""
        return await self._of.spaces.invite(self.space_id, role, days=days, label=label)

    async def invitations(self) -> builtins.list[InvitationView]:
        """Return the invitations into this space."""
        return await self._of.spaces.invitations(self.space_id)

    async def withdraw_invitation(self, invitation_id: str) -> None:
        """Withdraw an invitation into this space. Needs the hub."""
        await self._of.spaces.withdraw_invitation(self.space_id, invitation_id)

    async def join(self, link: str) -> InvitationView:
        """Accept an invitation by its link; a device of the inviter then lets this person in."""
        return await self._of.spaces.join(link)

    async def joining(self) -> builtins.list[InvitationView]:
        """Return the invitations that this person accepted and waits for."""
        return await self._of.spaces.joining()

    # Records

    async def list(self, table: str, *, include_deleted: bool = False) -> builtins.list[View]:
        """Return the records of a table, newest written first."""
        return await self._of.records.list(table, include_deleted=include_deleted)

    async def get(self, table: str, record_id: str) -> View:
        """Return one record, also a deleted one; raise NotFound if it never was."""
        return await self._of.records.get(table, record_id)

    async def create(
        self, table: str, values: Mapping[str, Json], *, visibility: Visibility = "space"
    ) -> str:
        """Create a record with these values by field name and return its id.

        `visibility` private: in a shared space, for this person alone.
        """
        return await self._of.records.create(table, values, visibility=visibility)

    async def set_visibility(self, table: str, record_id: str, visibility: Visibility) -> None:
        """Make an own record private, or share it with the space. Needs the hub.

        What others read before cannot be unread. Raises NotYourRecord (NOT_YOUR_RECORD) and
        VisibilityFixed (VISIBILITY_FIXED).
        """
        await self._of.records.set_visibility(table, record_id, visibility)

    async def edit(self, table: str, record_id: str, values: Mapping[str, Json]) -> None:
        """Write these values by field name; fields that are not named stay."""
        await self._of.records.edit(table, record_id, values)

    async def delete(self, table: str, record_id: str) -> None:
        """Delete a record; it can be restored."""
        await self._of.records.delete(table, record_id)

    async def restore(self, table: str, record_id: str) -> None:
        """Bring a deleted record back."""
        await self._of.records.restore(table, record_id)

    async def use_tool(self, name: str, arguments: Mapping[str, Json]) -> Outcome:
        """Run a tool as the person, and apply its changes at once."""
        return await self._of.records.use_tool(name, arguments)

    async def inputs(self) -> builtins.list[tuple[InputRef, str]]:
        """Return what can be picked as a mission's input, each with its title."""
        return await self._of.records.inputs()

    # Agents

    async def agents(self) -> builtins.list[AgentView]:
        """Return the agents, archived ones last."""
        return await self._of.agents.list()

    async def agent(self, agent_id: str) -> AgentView:
        """Return one agent; raise NotFound."""
        return await self._of.agents.get(agent_id)

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
        cost_per_day_max: int | None = None,
        concurrent_max: int = 1,
        model: str = "",
    ) -> str:
        """Create an agent with a preset's policy and return its id.

        Caps are of a day: in tokens, and in millionths of the hub's currency. `model`: as in
        `ModelChoice.value`.
        """
        return await self._of.agents.create(
            name,
            role=role,
            avatar=avatar,
            system_prompt=system_prompt,
            memory=memory,
            preset=preset,
            tokens_per_day_max=tokens_per_day_max,
            cost_per_day_max=cost_per_day_max,
            concurrent_max=concurrent_max,
            model=model,
        )

    async def edit_agent(self, agent_id: str, **fields: Unpack[AgentEdit]) -> None:
        """Write the named fields: name, avatar, role, system_prompt, memory, preset or policy,
        state, tokens_per_day_max, cost_per_day_max, concurrent_max, model. None clears a cap.
        """
        await self._of.agents.edit(agent_id, fields)

    async def delete_agent(self, agent_id: str) -> None:
        """Delete an agent; nothing more happens in its name, its missions wait for another."""
        await self._of.agents.delete(agent_id)

    # Missions

    async def missions(self) -> builtins.list[MissionView]:
        """Return the missions, newest written first, archived ones last."""
        return await self._of.missions.list()

    async def mission(self, mission_id: str) -> MissionView:
        """Return one mission with its runs; raise NotFound."""
        return await self._of.missions.get(mission_id)

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
        runs_on: str = RUNS_ON_HUB,
        if_missed: IfMissed = "once",
        tokens_per_day_max: int | None = None,
        cost_per_day_max: int | None = None,
    ) -> str:
        """Create a mission and return its id.

        `zone` None: the person's. `runs_on` is `hub`, or `device` for this device. `if_missed`:
        what becomes of moments that passed while nothing could run. Caps are of a day: in tokens,
        and in millionths of the hub's currency.
        """
        return await self._of.missions.create(
            title,
            objective,
            agent_id=agent_id,
            inputs=inputs,
            cadence=cadence,
            zone=zone,
            concept=concept,
            runs_on=runs_on,
            if_missed=if_missed,
            tokens_per_day_max=tokens_per_day_max,
            cost_per_day_max=cost_per_day_max,
        )

    async def edit_mission(self, mission_id: str, **fields: Unpack[MissionEdit]) -> None:
        """Write the named fields: title, objective, concept, inputs, cadence, zone, agent_id,
        runs_on, state, if_missed, tokens_per_day_max, cost_per_day_max (None clears a cap).

        Moving it between hub and device needs the hub.
        """
        await self._of.missions.edit(mission_id, fields)

    async def agree_to_caps(self, mission_id: str) -> None:
        """Let the caps that a mission has now hold for its runs on this device, whoever set them."""
        await self._of.missions.agree_to_caps(mission_id)

    async def delete_mission(self, mission_id: str) -> None:
        """Delete a mission and revoke its grant."""
        await self._of.missions.delete(mission_id)

    async def run_now(self, mission_id: str) -> RunView | None:
        """Run a mission now.

        On the hub: asks for an occurrence and returns it as it stands (needs the hub). On this
        device: runs here and returns when it has finished.
        """
        return await self._of.run_now(mission_id)

    async def stop_mission(self, mission_id: str) -> None:
        """Stop a mission's run, on the hub (needs it) or here; what it had not done is not done.

        Raises Conflict (MISSION_ELSEWHERE) for a run of another device.
        """
        await self._of.stop_mission(mission_id)

    async def resume_mission(self, mission_id: str) -> None:
        """Let a mission run again that failed too often in a row; raises as `stop_mission`."""
        await self._of.resume_mission(mission_id)

    # All work, and what it may cost

    async def stop_work(self) -> WorkView:
        """Stop every mission of the account, here at once and everywhere else after a sync.

        Nothing runs by itself from then on; the person still approves and rejects.
        """
        return await self._of.work.stop()

    async def start_work(self) -> WorkView:
        """Let missions run again, everywhere."""
        return await self._of.work.start()

    async def work_state(self) -> WorkView:
        """Return whether missions run, the account's caps, and what was used in 24 hours."""
        return await self._of.work.state()

    async def set_caps(self, **caps: Unpack[Caps]) -> WorkView:
        """Set the account's caps of a day; None removes one, what is not named stays.

        `tokens_per_day_max`, and `cost_per_day_max` in millionths of the currency. Needs the hub.
        """
        return await self._of.work.set_caps(caps)

    async def accept_hub(self, named: str) -> WorkView:
        """Take the hub for another than it was, by the beginning of the id that it has now.

        Only after whoever runs it has said that this is meant to be so. Raises Invalid for another
        beginning, and Offline.
        """
        return await self._of.work.accept_hub(named)

    async def usage(self, days: int = 30) -> UsageView:
        """Return tokens and costs by day, for the account and each agent and mission."""
        return await self._of.usage.days(days)

    # Models

    async def own_models(self) -> builtins.list[OwnModelView]:
        """Return the model endpoints that the person brought; never their keys."""
        return await self._of.own_models.list()

    async def add_own_model(
        self,
        label: str,
        url: str,
        model: str,
        *,
        key: str = "",
        prompt_price: int | None = None,
        completion_price: int | None = None,
        context_tokens: int | None = None,
    ) -> str:
        """Add a model endpoint and return its id; an agent uses it as `own:<id>`.

        Prices are millionths of the hub's currency per million tokens.
        """
        return await self._of.own_models.add(
            label,
            url,
            model,
            key=key,
            prompt_price=prompt_price,
            completion_price=completion_price,
            context_tokens=context_tokens,
        )

    async def edit_own_model(self, model_id: str, **fields: Unpack[OwnModelEdit]) -> None:
        """Write the named fields, as in `add_own_model`; None or blank clears what is optional.

        Grants that carry it are minted anew, where nobody needs to be asked.
        """
        await self._of.own_models.edit(model_id, fields)
        await self._of.mint_anew()

    async def remove_own_model(self, model_id: str) -> None:
        """Remove a model endpoint, with its key; agents that use it wait for another."""
        await self._of.own_models.remove(model_id)

    async def device_models(self) -> builtins.list[ModelView]:
        """Return the models that this device itself is set up with, the first choice first."""
        return builtins.list(self._of.own_models.here())

    async def model_choices(self) -> builtins.list[ModelChoice]:
        """Return the models that an agent can be given."""
        return await self._of.own_models.choices()

    # Letters

    async def notifications(self) -> NotifyState:
        """Return whether the hub writes a letter when something waits. Needs the hub."""
        return await self._of.opened.hub.notifications()

    async def set_notifications(
        self,
        *,
        address: str | None = None,
        code: str | None = None,
        enabled: bool | None = None,
    ) -> NotifyState:
        """Give an address, confirm it with the code that was sent there, or switch letters."""
        wanted = SetNotify(address=address, code=code, enabled=enabled)
        return await self._of.opened.hub.set_notifications(wanted)

    # Grants

    async def consent(
        self, mission_id: str, *, inputs: Sequence[InputRef] | None = None, days: int = 7
    ) -> Consent:
        """Return the consent text of a grant: who reads what, where it goes, how long.

        `inputs` None: the mission's. Nothing is granted.
        """
        return await self._of.grants.consent(mission_id, inputs=inputs, days=days)

    async def grant(self, mission_id: str, *, days: int = 7) -> GrantView:
        """Grant the mission's inputs to the runner whose fingerprint the consent showed.

        Raises Conflict (CONSENT_STALE) if runner, models or inputs are not those shown.
        """
        return await self._of.grants.grant(mission_id, days=days)

    async def revoke(self, grant_id: str) -> None:
        """End a grant for ever, before the next reading."""
        await self._of.grants.revoke(grant_id)

    async def grants(self) -> builtins.list[GrantView]:
        """Return the grants of this space, newest first, those of other members too."""
        return await self._of.grants.list()

    # Inbox

    async def inbox(self, *, decided: bool = False) -> builtins.list[Proposal]:
        """Return what waits for a decision, newest first; with `decided`, what was decided."""
        return await self._of.inbox.list(decided=decided)

    async def proposal(self, step_id: str) -> Proposal:
        """Return one proposal in any state; raise NotFound."""
        return await self._of.inbox.get(step_id)

    async def edit_form(self, step_id: str) -> EditForm:
        """Return the parameters of a proposed call, as the person may change them."""
        return await self._of.inbox.edit_form(step_id)

    async def edit_preview(self, step_id: str, arguments: Mapping[str, Json]) -> Proposal:
        """Return what would happen with other arguments (`faults`: what is wrong with them).

        Nothing is written. A parameter that is not named is not given.
        """
        return await self._of.inbox.edit_preview(step_id, arguments)

    async def preview_all(self, step_ids: Sequence[str]) -> builtins.list[Proposal]:
        """Return steps of one run as they would be done together, in their order."""
        return await self._of.inbox.preview_all(step_ids)

    async def approve(
        self,
        step_id: str,
        *,
        arguments: Mapping[str, Json] | None = None,
        feedback: str = "",
    ) -> Proposal:
        """Approve and execute exactly what was shown, once.

        With `arguments` instead of those of the agent, as `edit_preview` showed it. Raises
        Conflict: PROPOSAL_MOVED (shown again, approve the new preview), EDIT_UNSEEN (look at the
        preview of the edit first), PROPOSAL_DECIDED (by another device), PROPOSAL_IMPOSSIBLE,
        PROPOSAL_EXPIRED; Forbidden: PROPOSAL_UNVERIFIED, PROPOSAL_DENIED, PROPOSAL_FOR_OTHERS;
        Invalid: EDIT_REFUSED.
        """
        return await self._of.inbox.approve(step_id, arguments=arguments, feedback=feedback)

    async def approve_all(
        self, step_ids: Sequence[str], *, feedback: str = ""
    ) -> builtins.list[Proposal]:
        """Approve steps of one run together, in its order: all of them happen, or none.

        Raises as `approve`, and Invalid (NOT_ONE_RUN); `detail.stepId` names the step at fault.
        """
        return await self._of.inbox.approve_all(step_ids, feedback=feedback)

    async def reject(self, step_id: str, *, reason_code: str = "", reason: str = "") -> Proposal:
        """Reject a proposal; the reason is the agent's feedback.

        `reason_code`: not-needed, wrong, too-much, not-now, style, other, or none.
        """
        return await self._of.inbox.reject(step_id, reason_code=reason_code, reason=reason)

    async def reject_all(
        self, step_ids: Sequence[str], *, reason_code: str = "", reason: str = ""
    ) -> builtins.list[Proposal]:
        """Reject steps of one run, all or none."""
        return await self._of.inbox.reject_all(step_ids, reason_code=reason_code, reason=reason)

    async def comment(self, iteration_id: str, text: str) -> None:
        """Say something of a whole run to its agent; blank takes it back."""
        await self._of.inbox.comment(iteration_id, text)

    async def acceptance(self, agent_id: str) -> Acceptance:
        """Return how the proposals of an agent fared: in all, by tool, by week."""
        return await acceptance(self._of.opened, agent_id)

    async def rejections(self, mission_id: str) -> builtins.list[RejectedFor]:
        """Return for which reasons proposals of a mission were rejected, counted."""
        return await rejections(self._of.opened, mission_id)

    # What agents may do in this space without asking

    async def space_policy(self) -> SpacePolicyView:
        """Return the tools that agents may use here without asking, by whom and since when."""
        return await self._of.policies.view()

    async def lift(self, tool: str, *, acknowledged: bool) -> None:
        """Let agents use a destructive or external tool here without asking.

        Owners and admins only. Raises NOT_LIFTABLE, NOT_ACKNOWLEDGED, MANAGERS_ONLY.
        """
        await self._of.policies.lift(tool, acknowledged=acknowledged)

    async def unlift(self, tool: str) -> None:
        """Let agents ask again before each use of a tool. Owners and admins only."""
        await self._of.policies.unlift(tool)

    # Timeline

    async def timeline(
        self, *, limit: int = 100, mission_id: str | None = None
    ) -> builtins.list[Bucket]:
        """Return what AI did, one bucket per iteration, newest first."""
        return await self._of.timeline.buckets(limit=limit, mission_id=mission_id)

    async def revert_preview(self, target: str) -> RevertPreview:
        """Return what a revert would restore and what it would leave.

        `target`: `step:<id>`, `iteration:<id>`, `mission:<id>`, or `revert:<journal id>`,
        which takes a revert back.
        """
        return await self._of.journal.preview(target)

    async def revert(self, target: str) -> RevertPreview:
        """Revert, and return what was restored and what was left."""
        return await self._of.journal.revert(target)

    # Data access

    async def data_access(
        self, *, mission_id: str | None = None, limit: int = 200, before: int | None = None
    ) -> DataAccess:
        """Return the runner's readings, newest first, and what the chain's check says."""
        return await self._of.first.audit.data_access(
            mission_id=mission_id, limit=limit, before=before
        )

    async def refused(self) -> builtins.list[RefusedChange]:
        """Return the changes that the hub refused; they block nothing."""
        return await self._of.records.refused()

    async def retry_refused(self, change_id: str) -> None:
        """Send a refused change again."""
        await self._of.records.retry_refused(change_id)

    async def drop_refused(self, change_id: str) -> None:
        """Forget a refused change; the record shows again what the hub holds."""
        await self._of.records.drop_refused(change_id)

    # Conflicts

    async def conflicts(self) -> builtins.list[ConflictView]:
        """Return what this person wrote here and something newer overwrote, in any space."""
        return builtins.list(await self._of.conflicts.list())

    async def restore_conflict(self, conflict_id: str) -> None:
        """Write again what was overwritten."""
        await self._of.conflicts.restore(conflict_id)

    async def dismiss_conflict(self, conflict_id: str) -> None:
        """Leave it as it stands, and forget what was overwritten."""
        await self._of.conflicts.dismiss(conflict_id)

    async def zone(self) -> str:
        """Return the person's time zone, a name such as Europe/Vienna; UTC if none is set."""
        return await self._of.opened.zone()

    async def set_display_name(self, name: str) -> None:
        """Set the name by which the person is addressed."""
        await self._of.records.set_display_name(name)
        await self._of.spaces.display_name_changed()

    async def create_invite(self) -> str:
        """Return an invitation to this hub, for one account; administrators only."""
        return (await self._of.opened.hub.create_invite()).invite
