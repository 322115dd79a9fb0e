"""What must hold before a run: plain facts in, a documented reason out. Pure.

Order: mission, agent, grant, concurrency, budget (the last two are counted in the database).
"""

from __future__ import annotations

from collections.abc import Callable

from mana.crypto.envelope import parse_json
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.grants import SUITES, GrantHeader, header_from_wire
from mana.domain.occurrences import SkipReason
from mana.hub.runner.ledger import AgentSnapshot, MissionSnapshot, RegisteredGrant


def mission_refusal(mission: MissionSnapshot | None) -> SkipReason | None:
    """Return why a mission does not run, None if it may."""
    if mission is None or not mission.runs_here:
        return "mission-not-active"
    return None


def agent_refusal(agent: AgentSnapshot | None) -> SkipReason | None:
    """Return why an agent does not work, None if it may."""
    if agent is None or agent.deleted:
        return "agent-missing"
    if agent.state == "paused":
        return "agent-paused"
    if agent.state != "active":
        return "agent-archived"
    return None


def grant_refusal(
    grant: RegisteredGrant | None,
    *,
    key_refusal: Callable[[str], SkipReason | None],
    has_ended: Callable[[str], bool],
) -> SkipReason | None:
    """Return why a grant is not in force, None if it is. Signatures are for the worker.

    `key_refusal` tells why a runner's key does not open, and `has_ended` what was seen to end,
    whatever the database says by now.
    """
    if grant is None:
        return "no-grant"
    if grant.state == "revoked" or has_ended(grant.grant_id):
        return "revoked"
    if grant.state == "expired" or grant.expired:
        return "expired"
    if grant.state != "active" or grant.sealed_keys is None or grant.wrapped_key is None:
        return "no-grant"
    if grant.suite not in SUITES:
        return "not-configured"
    return key_refusal(grant.runner_key_id)


def read_header(text: str) -> GrantHeader:
    """Return the header of its stored text; raise Invalid unless it is exactly that text."""
    try:
        value: Json = parse_json(text.encode("utf-8"))
    except CryptoFailed:
        raise Invalid("the header of a grant is not JSON") from None
    header = header_from_wire(value)
    if header.canonical() != text.encode("utf-8"):
        raise Invalid("the header of a grant is not canonical")
    return header


def register_refusal(grant: RegisteredGrant, header: GrantHeader) -> SkipReason | None:
    """Return `scope-mismatch` where a row of the register tells otherwise than its header.

    The columns are what the database judges by; the header is what a device signed.
    """
    told = (grant.grant_id, grant.account_id, grant.space_id, grant.mission_id, grant.agent_id)
    signed = (
        header.grant_id,
        header.account_id,
        header.space_id,
        header.mission_id,
        header.agent_id,
    )
    if told != signed or (grant.suite, grant.runner_key_id) != (header.suite, header.runner_key_id):
        return "scope-mismatch"
    return None if grant.expires_ms == parse_iso_ms(header.expires_at) else "scope-mismatch"


def header_fits(header: GrantHeader, *, account: str, space: str, mission: str, agent: str) -> bool:
    """Say whether a header is that of the mission at hand."""
    return (header.account_id, header.space_id, header.mission_id, header.agent_id) == (
        account,
        space,
        mission,
        agent,
    )
