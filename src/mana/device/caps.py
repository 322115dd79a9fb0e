"""Caps of a mission and its agent as far as this account has signed them.

In a shared space any member who may write sets them, and one pays: the grantor of what runs on the
hub, the person of a device for what runs there. A cap that the payer's own device wrote counts as it
stands; one that somebody else wrote counts only within what the payer has agreed to before.

When the payer last set a cap is noted in their own settings, sealed: a device that is new there would
else grant what stood before, if the hub kept the newest from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from mana.crypto.authority import Proof, signed_by
from mana.device.editing import Editing
from mana.device.opened import Opened
from mana.domain.agents import AGENTS, Agent
from mana.domain.errors import Conflict, Invalid
from mana.domain.grants import GrantCaps, caps_from_wire
from mana.domain.missions import MISSIONS, Mission
from mana.domain.records import Record
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.spaces import MEMBER_NAMES
from mana.domain.tables import Table
from mana.protocol.messages import GrantedCaps

TOKENS: Final = "maxTokensPerDay"
COST: Final = "maxCostPerDay"
AGREED: Final = "agreed-caps"
"""Under which what was agreed to is kept, for each mission by itself."""
CAPS_SET: Final = "capsSet"
NOTED_MAX: Final = 400


class CapWithheld(Conflict):
    """A limit that the person set last has not come to this device, only an older one."""

    code: ClassVar[str] = "CAP_WITHHELD"
    advice: ClassVar[str] = (
        "Sync again. If it stays, the hub keeps it back: grant from the device where you set it, or "
        "set the limit anew here."
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """A record with its proofs, as they are verified."""

    record: Record
    proofs: Mapping[str, Proof]


def caps_as_set(mission: Mission, agent: Agent) -> GrantCaps:
    """Return the caps as mission and agent have them, whoever set them."""
    return GrantCaps(
        mission.tokens_per_day_max,
        mission.cost_per_day_max,
        agent.tokens_per_day_max,
        agent.cost_per_day_max,
    )


def granted_caps(caps: GrantCaps) -> GrantedCaps:
    """Return caps as the hub is asked for them."""
    return msgspec.convert(caps.to_wire(), GrantedCaps)


async def caps_agreed(
    opened: Opened, mission: Mission, agent: Agent, before: GrantCaps
) -> GrantCaps:
    """Return what this account agreed to: what it has set since, else what it had agreed to before."""
    now = caps_as_set(mission, agent)
    of_mission, of_agent = (MISSIONS, mission.id), (AGENTS, agent.id)
    return GrantCaps(
        now.mission_tokens if await _is_own(opened, *of_mission, TOKENS) else before.mission_tokens,
        now.mission_cost if await _is_own(opened, *of_mission, COST) else before.mission_cost,
        now.agent_tokens if await _is_own(opened, *of_agent, TOKENS) else before.agent_tokens,
        now.agent_cost if await _is_own(opened, *of_agent, COST) else before.agent_cost,
    )


async def caps_here(opened: Opened, mission: Mission, agent: Agent) -> GrantCaps | None:
    """Return what the person of this device agreed to for runs here; None where nobody else sets it.

    Before anything was agreed to, it is what stands when the device first looks: the person placed
    the mission here.
    """
    if not opened.book.keys.shared:
        return None
    known = await _agreed(opened, mission.id)
    before = caps_as_set(mission, agent) if known is None else known
    agreed = await caps_agreed(opened, mission, agent, before)
    if agreed != known:
        await _agree(opened, mission.id, agreed)
    return agreed


async def agree_to_caps(opened: Opened, mission: Mission, agent: Agent) -> None:
    """Let the caps as they are now hold for runs on this device."""
    await _agree(opened, mission.id, caps_as_set(mission, agent))


async def caps_raised(
    opened: Opened, mission: Mission, agent: Agent, agreed: GrantCaps
) -> str | None:
    """Return the name of who raised a cap beyond what was agreed to, empty if it is not known.

    None: nobody did.
    """
    now = caps_as_set(mission, agent)
    places = (
        (MISSIONS, mission.id, TOKENS, now.mission_tokens, agreed.mission_tokens),
        (MISSIONS, mission.id, COST, now.mission_cost, agreed.mission_cost),
        (AGENTS, agent.id, TOKENS, now.agent_tokens, agreed.agent_tokens),
        (AGENTS, agent.id, COST, now.agent_cost, agreed.agent_cost),
    )
    for table, record_id, path, cap, most in places:
        if most is not None and (cap is None or cap > most):
            account = await _signer(opened, table, record_id, path)
            if account != opened.account_id:
                return await _name(opened, account)
    return None


async def note_caps(opened: Opened) -> None:
    """Note when this account last set each cap of a shared space, as far as the hub has it.

    Any of its devices does, so what one wrote offline, or before there were notes, is noted too.
    """
    if not opened.book.keys.shared:
        return
    noted = await _noted(opened)
    found = {
        (path, str(view.id)): view.stamps[path]
        for table in (MISSIONS, AGENTS)
        for view in await opened.book.views(table.name)
        for path in (TOKENS, COST)
        if view.values.get(path) is not None
        and view.stamps[path] > noted.get((path, view.id), "")
        # The hub may yet ask for another stamp of what waits.
        and not await opened.book.waits([(table.name, view.id)])
        and await _is_own(opened, table, view.id, path)
    }
    if found:
        newest = sorted({**noted, **found}.items(), key=lambda one: one[1])[-NOTED_MAX:]
        values = [f"{path} {record_id} {at}" for (path, record_id), at in newest]
        await Editing(opened).write_settings({CAPS_SET: [*values]})


async def require_caps_shown(opened: Opened, mission: Mission, agent: Agent) -> None:
    """Raise CapWithheld if this account set a cap of these later than this device was shown."""
    noted = await _noted(opened)
    for table, record_id in ((MISSIONS, mission.id), (AGENTS, agent.id)):
        view = await opened.book.view(table.name, record_id)
        stamps = view.stamps if view is not None else {}
        for path in (TOKENS, COST):
            if stamps.get(path, "") < noted.get((path, record_id), ""):
                raise CapWithheld("a limit that was set last is not here")


async def _noted(opened: Opened) -> dict[tuple[str, str], str]:
    """Return the newest stamp that is noted of each cap, by path and record id."""
    view = await opened.book.view(SETTINGS.name, SETTINGS_ID)
    kept = view.values.get(CAPS_SET) if view is not None else None
    found: dict[tuple[str, str], str] = {}
    for one in kept if isinstance(kept, list) else []:
        path, _, rest = str(one).partition(" ")
        record_id, _, at = rest.partition(" ")
        found[path, record_id] = max(at, found.get((path, record_id), ""))
    return found


async def _agreed(opened: Opened, mission_id: str) -> GrantCaps | None:
    """Return what was agreed to for a mission; None if nothing was, or it cannot be read."""
    try:
        kept = await opened.book.kept(f"{AGREED}:{mission_id}")
        return None if kept is None else caps_from_wire(kept)
    except Invalid:
        return None


async def _agree(opened: Opened, mission_id: str, caps: GrantCaps) -> None:
    await opened.book.keep(f"{AGREED}:{mission_id}", caps.to_wire())


async def _is_own(opened: Opened, table: Table, record_id: str, path: str) -> bool:
    return await _signer(opened, table, record_id, path) == opened.account_id


async def _signer(opened: Opened, table: Table, record_id: str, path: str) -> str | None:
    """Return the account whose device wrote a path, None if nothing shows it."""
    book = opened.book
    record = await book.record(table.name, record_id)
    if record is None:
        return None
    authority = book.inner().syncer.authority(book.space)
    proofs = await book.proofs(table.name, record_id)
    return signed_by(authority, _Held(record, proofs), path, table)


async def _name(opened: Opened, account_id: str | None) -> str:
    view = await opened.book.view(MEMBER_NAMES.name, account_id) if account_id else None
    return "" if view is None else view.text("displayName")
