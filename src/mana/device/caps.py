"""Caps of a mission and its agent as far as this account has signed them.

In a shared space any member who may write sets them, and one pays: the grantor of what runs on the
hub, the person of a device for what runs there. A cap that the payer's own device wrote counts as it
stands; one that somebody else wrote counts only within what the payer has agreed to before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from mana.crypto.authority import Proof, signed_by
from mana.device.opened import Opened
from mana.domain.agents import AGENTS, Agent
from mana.domain.errors import Invalid
from mana.domain.grants import GrantCaps, caps_from_wire
from mana.domain.missions import MISSIONS, Mission
from mana.domain.records import Record
from mana.domain.spaces import MEMBER_NAMES
from mana.domain.tables import Table
from mana.protocol.messages import GrantedCaps

TOKENS: Final = "maxTokensPerDay"
COST: Final = "maxCostPerDay"
AGREED: Final = "agreed-caps"
"""Under which what was agreed to is kept, for each mission by itself."""


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
