"""What a space lets agents do without asking, as far as its owners and admins signed it.

The same for devices and the runner, and the record is plain, so that no key is needed. Each tool
is verified by itself: what cannot be verified lifts nothing, and hides nothing that can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mana.crypto.authority import Authority, Proven, signed_by
from mana.domain.clock import DRIFT_MS_MAX, iso_ms, parse_stamp
from mana.domain.policy import SpacePolicy
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_ID, can_manage
from mana.domain.tables import Table

LIFTED: Final = "lifted"


@dataclass(frozen=True, slots=True)
class Lift:
    """A tool that somebody lifted, and the stamp of it."""

    tool: str
    account_id: str
    at: str


def space_policy_of(authority: Authority, held: Proven | None) -> SpacePolicy:
    """Return what a space lifts, by its record of `spacePolicies`; nothing where there is none."""
    return SpacePolicy(frozenset(lift.tool for lift in lifts_of(authority, held)))


def lifts_of(authority: Authority, held: Proven | None) -> tuple[Lift, ...]:
    """Return the tools that count as lifted, by name and then newest first.

    Each was signed by a device of somebody who manages the space now and managed it then. Whoever
    ceases to manage the space takes along what they alone had lifted.
    """
    if held is None or held.record.deleted:
        return ()
    if (held.record.table, held.record.id) != (SPACE_POLICY.name, SPACE_POLICY_ID):
        return ()
    found: list[Lift] = []
    for path, entry in held.record.entries.items():
        if path.partition("/")[0] == LIFTED and isinstance(entry.value, str):
            account = signed_by_manager(authority, held, path, SPACE_POLICY)
            if account is not None:
                found.append(Lift(entry.value, account, entry.at))
    found.sort(key=lambda lift: lift.at, reverse=True)
    return tuple(sorted(found, key=lambda lift: lift.tool))


def lifted_stamps(authority: Authority, held: Proven) -> dict[str, str]:
    """Return by path the stamps of what was lifted or taken back, as far as it was signed so."""
    return {
        path: entry.at
        for path, entry in held.record.entries.items()
        if path.partition("/")[0] == LIFTED
        and signed_by_manager(authority, held, path, SPACE_POLICY) is not None
    }


def signed_by_manager(authority: Authority, held: Proven, path: str, table: Table) -> str | None:
    """Return the account of the owner or admin who signed this path; None if nobody such did."""
    account = signed_by(authority, held, path, table)
    if account is None or not manages_now(authority, account):
        return None
    return account if managed_at(authority, account, held.record.entries[path].at) else None


def manages_now(authority: Authority, account_id: str) -> bool:
    """Say whether an account is an owner or admin by the newest entry of the log."""
    member = authority.members.get(account_id)
    return member is not None and can_manage(member.role)


def managed_at(authority: Authority, account_id: str, stamp: str) -> bool:
    """Say whether an account was an owner or admin when it gave this stamp, by the log.

    Else a member could sign in advance what counts from the day on which they become an admin.
    Clocks of two devices may differ by as much as the hub takes a stamp from ahead.
    """
    until = iso_ms(parse_stamp(stamp).wall_ms + DRIFT_MS_MAX)
    in_force = authority.entries[:1]
    for entry in authority.entries:
        if entry.created_at <= until:
            in_force = (entry,)
    member = in_force[0].member(account_id) if in_force else None
    return member is not None and can_manage(member.role)
