"""What a space lets agents do without asking: who lifted it when, and what counts here.

A tool is lifted for this device only if an owner or admin signed it, and the record of that change
is here, and no later record says that it was taken back: of what the hub shows, the stricter wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from mana.crypto.authority import Authority, Proof
from mana.crypto.policies import LIFTED, Lift, lifts_of, signed_by_manager
from mana.device.opened import Opened, stamp_ms
from mana.device.views import LiftedTool, PolicyChange, SpacePolicyView
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid, NotFound, TooLarge
from mana.domain.ids import RecordId
from mana.domain.policy import SpacePolicy
from mana.domain.records import Record, View
from mana.domain.spaces import (
    MEMBER_NAMES,
    SPACE_POLICY,
    SPACE_POLICY_AUDIT,
    SPACE_POLICY_ID,
    can_manage,
)
from mana.domain.tables import DELETED_AT
from mana.domain.tools import Tool

LIFTED_MAX: Final = 50
HISTORY_MAX: Final = 50
_NEW: Final = f"{LIFTED}/new"
"""Stands for an element whose token follows from its value and the record's key."""


class NotLiftable(Invalid):
    """Only destructive and external tools ask whatever the agent's policy says."""

    code: ClassVar[str] = "NOT_LIFTABLE"
    advice: ClassVar[str] = "Set what an agent may do in its own policy."


class NotAcknowledged(Conflict):
    """A space lets agents do something without asking only if a person said that they mean it."""

    code: ClassVar[str] = "NOT_ACKNOWLEDGED"
    advice: ClassVar[str] = "Confirm that agents may use this tool here without asking."


@dataclass(frozen=True, slots=True)
class _Held:
    """A record with its proofs, as they are verified."""

    record: Record
    proofs: Mapping[str, Proof]


@dataclass(frozen=True, slots=True)
class _Known:
    """What counted when the records were as `marks` says, for the authority of that time."""

    authority: Authority
    marks: tuple[object, ...]
    lifts: tuple[Lift, ...]


class Policies:
    """The policy of one space."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._known: _Known | None = None

    async def space_policy(self) -> SpacePolicy:
        """Return what agents may do here without asking; nothing where that is not certain."""
        return SpacePolicy(frozenset(lift.tool for lift in await self._lifts()))

    async def view(self) -> SpacePolicyView:
        """Return the policy as the person reads it, with its newest changes."""
        lifted: dict[str, LiftedTool] = {}
        for lift in await self._lifts():
            tool = self._tool(lift.tool)
            effect = tool.effect if tool is not None else ""
            name = await self._name(lift.account_id)
            one = LiftedTool(lift.tool, effect, lift.account_id, name, stamp_ms(lift.at))
            lifted.setdefault(lift.tool, one)
        role = self._opened.book.keys.role
        return SpacePolicyView(
            lifted=tuple(lifted.values()),
            liftable=tuple(
                tool.name for tool in self._opened.catalogue.tools if _is_liftable(tool)
            ),
            may_change=role is not None and can_manage(role),
            history=await self._history(),
        )

    async def lift(self, tool: str, *, acknowledged: bool) -> None:
        """Let agents use a tool here without asking, as far as their own policies do.

        Nothing happens if it is lifted already. Raises UnknownTool, NotLiftable, NotAcknowledged,
        ManagersOnly.
        """
        declared = self._opened.catalogue.tool(tool)
        if not _is_liftable(declared):
            raise NotLiftable(f"{tool} is no destructive or external tool that may be lifted")
        if not acknowledged:
            raise NotAcknowledged("nobody said that they mean it")
        standing = {lift.tool for lift in await self._lifts()}
        if tool in standing:
            return
        if len(standing) >= LIFTED_MAX:
            raise TooLarge(f"a space lifts at most {LIFTED_MAX} tools")
        await self._change(tool, {_NEW: tool}, "added")

    async def unlift(self, tool: str) -> None:
        """Let agents ask again before each use of a tool; nothing happens if they do.

        Raises ManagersOnly.
        """
        paths = await self._opened.book.opened_paths(SPACE_POLICY.name, SPACE_POLICY_ID)
        gone: dict[str, Json] = {
            path: None for path, value in paths.items() if value == tool and path != DELETED_AT
        }
        if gone:
            await self._change(tool, gone, "removed")

    async def _change(self, tool: str, values: Mapping[str, Json], action: str) -> None:
        """Write a change of the policy with its record, which comes after it."""
        opened = self._opened
        standing = await opened.book.view(SPACE_POLICY.name, SPACE_POLICY_ID)
        written = dict(values)
        if standing is not None and standing.deleted:
            written[DELETED_AT] = None
        kind = ChangeKind.CREATE if standing is None else ChangeKind.UPDATE
        policy = Change(SPACE_POLICY.name, RecordId(SPACE_POLICY_ID), kind, written)
        said: dict[str, Json] = {"tool": tool, "action": action, "at": opened.now_iso()}
        record = Change(SPACE_POLICY_AUDIT.name, RecordId(opened.new_id()), ChangeKind.CREATE, said)
        await opened.book.commit(
            [Write(policy, opened.person), Write(record, opened.person)], group=opened.new_id()
        )

    async def _lifts(self) -> tuple[Lift, ...]:
        """Return what counts as lifted, verified again only after something moved."""
        book = self._opened.book
        record = await book.record(SPACE_POLICY.name, SPACE_POLICY_ID)
        if record is None:
            return ()
        authority = book.inner().syncer.authority(book.space)
        audits = await book.views(SPACE_POLICY_AUDIT.name, include_deleted=True)
        marks = (
            *await book.marks([(SPACE_POLICY.name, SPACE_POLICY_ID)]),
            *((view.id, view.written_at) for view in audits),
        )
        known = self._known
        if known is None or known.authority is not authority or known.marks != marks:
            proofs = await book.proofs(SPACE_POLICY.name, SPACE_POLICY_ID)
            said = await self._said(authority, audits)
            lifts = tuple(
                lift
                for lift in lifts_of(authority, _Held(record, proofs))
                if _stands(lift, said.get(lift.tool, {}))
            )
            known = self._known = _Known(authority, marks, lifts)
        return known.lifts

    async def _said(self, authority: Authority, audits: list[View]) -> dict[str, dict[str, str]]:
        """Return by tool and action the newest stamp of a record that a manager signed."""
        found: dict[str, dict[str, str]] = {}
        for view in audits:
            record = await self._opened.book.record(view.table, view.id)
            if record is None or "action" not in record.entries:
                continue
            proofs = await self._opened.book.proofs(view.table, view.id)
            held = _Held(record, proofs)
            if any(
                path not in record.entries
                or signed_by_manager(authority, held, path, SPACE_POLICY_AUDIT) is None
                for path in ("tool", "action")
            ):
                continue
            by_action = found.setdefault(view.text("tool"), {})
            action, at = view.text("action"), record.entries["action"].at
            by_action[action] = max(at, by_action.get(action, ""))
        return found

    async def _history(self) -> tuple[PolicyChange, ...]:
        views = await self._opened.book.views(SPACE_POLICY_AUDIT.name)
        newest = sorted(views, key=lambda view: (view.stamps.get("action", ""), view.id))
        changes: list[PolicyChange] = []
        for view in reversed(newest[-HISTORY_MAX:]):
            actor = view.actors.get("action")
            account = actor.principal_id if actor is not None else ""
            changes.append(
                PolicyChange(
                    tool=view.text("tool"),
                    action=view.text("action"),
                    account_id=account,
                    name=await self._name(account),
                    at_ms=stamp_ms(view.stamps.get("action")),
                )
            )
        return tuple(changes)

    async def _name(self, account_id: str) -> str:
        view = await self._opened.book.view(MEMBER_NAMES.name, account_id)
        return "" if view is None else view.text("displayName")

    def _tool(self, name: str) -> Tool | None:
        try:
            return self._opened.catalogue.tool(name)
        except NotFound:
            return None


def _is_liftable(tool: Tool) -> bool:
    """Say whether a space may let agents use this tool without asking."""
    return tool.effect in ("destructive", "external") and not tool.always_asks


def _stands(lift: Lift, said: Mapping[str, str]) -> bool:
    """Say whether the record of a lift is here, and none that it was taken back later."""
    return said.get("added", "") >= lift.at > said.get("removed", "")
