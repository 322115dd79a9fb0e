"""The next entry of a membership log, as this account would sign it. Pure.

Each function takes a space as this device has verified it and returns what the hub is asked to
append: the signed entry and the key wraps that it needs. What a rule forbids is refused here
already (`MembershipRefused`), so that nothing is sent that every other device would refuse.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from mana.crypto.authority import public_identity
from mana.crypto.identity import PrivateIdentity
from mana.crypto.keys import SpaceKeyName, key_check, new_key, wrap_space_key
from mana.crypto.primitives import Random, b64
from mana.crypto.signatures import sign_entry
from mana.device.vault import SpaceKeys
from mana.domain.clock import iso_ms
from mana.domain.errors import NotFound
from mana.domain.spaces import Member, MembershipEntry, Role, can_manage, require_next
from mana.protocol.messages import KeyWrap, MembershipAppend, MemberWrap, SignedEntry

_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Hand:
    """Who signs, and when; `random` draws keys and nonces."""

    identity: PrivateIdentity
    now_ms: int
    random: Random = os.urandom


def add(space: SpaceKeys, hand: Hand, newcomer: Member) -> MembershipAppend:
    """Let somebody in, with every key of the space that is held here: they read its history."""
    signed = _entry(space, hand, (*space.members, newcomer))
    keys = sorted(space.space_keys.items())
    return MembershipAppend(
        entry=signed, wraps=[_wrap(space, newcomer, version, key) for version, key in keys]
    )


def remove(space: SpaceKeys, hand: Hand, account_id: str) -> MembershipAppend:
    """Put a member out, with a new key for those who stay, in one entry."""
    require_member(space, account_id)
    return _rotated(space, hand, _others(space.members, account_id))


def rotate(space: SpaceKeys, hand: Hand) -> MembershipAppend:
    """Give the space a new key, because somebody who left knows the one in use."""
    return _rotated(space, hand, space.members)


def rekey(space: SpaceKeys, hand: Hand, identity: PrivateIdentity) -> MembershipAppend:
    """Name the account's identity of now, and wrap to it all that is held of the space.

    The hand signs with the identity that the log names. Who manages changes the key of the space
    too: whoever has the identity before could open it.
    """
    public = identity.public()
    own = replace(
        require_member(space, hand.identity.account_id),
        signing_key=b64(public.signing_key.to_bytes()),
        hpke_key=b64(public.hpke_key.to_bytes()),
    )
    members = [own if one.account_id == own.account_id else one for one in space.members]
    wraps = [_wrap(space, own, version, key) for version, key in sorted(space.space_keys.items())]
    private_wraps = [
        KeyWrap(kind="p", version=version, wrapped=_wrapped(space, own, "p", version, key))
        for version, key in sorted(space.private_keys.items())
    ]
    if can_manage(own.role):
        append = _rotated(space, hand, members)
    else:
        append = MembershipAppend(entry=_entry(space, hand, members))
    return MembershipAppend(
        entry=append.entry, wraps=[*wraps, *append.wraps], private_wraps=private_wraps
    )


def set_role(space: SpaceKeys, hand: Hand, account_id: str, role: Role) -> MembershipAppend:
    """Give a member another role."""
    require_member(space, account_id)
    return MembershipAppend(entry=_entry(space, hand, _with_role(space, {account_id: role})))


def transfer(space: SpaceKeys, hand: Hand, account_id: str) -> MembershipAppend:
    """Make a member an owner, and the signer an admin."""
    require_member(space, account_id)
    roles: dict[str, Role] = {hand.identity.account_id: "admin", account_id: "owner"}
    return MembershipAppend(entry=_entry(space, hand, _with_role(space, roles)))


def leave(space: SpaceKeys, hand: Hand) -> MembershipAppend:
    """Leave a space to the others; the key stays as it is, until one of them changes it."""
    own = hand.identity.account_id
    require_member(space, own)
    return MembershipAppend(entry=_entry(space, hand, _others(space.members, own)))


def close(space: SpaceKeys, hand: Hand) -> SignedEntry:
    """End a space for everybody."""
    return _entry(space, hand, ())


def require_member(space: SpaceKeys, account_id: str) -> Member:
    """Return a member of the newest entry; raise NotFound."""
    found = space.entries[-1].member(account_id)
    if found is None:
        raise NotFound("no such member is in this space")
    return found


def _rotated(space: SpaceKeys, hand: Hand, members: Sequence[Member]) -> MembershipAppend:
    key = new_key(random=hand.random)
    signed = _entry(space, hand, members, new=key)
    version = space.version + 1
    return MembershipAppend(
        entry=signed, wraps=[_wrap(space, member, version, key) for member in members]
    )


def _entry(
    space: SpaceKeys, hand: Hand, members: Iterable[Member], *, new: bytes | None = None
) -> SignedEntry:
    """Return the signed entry that follows the newest one; `new` is the key of a new version."""
    newest = space.entries[-1]
    nonce = hand.random(_NONCE_BYTES).hex()
    version, check = newest.key_version, newest.key_check
    if new is not None:
        version, check = version + 1, key_check(new, nonce, version + 1)
    entry = MembershipEntry(
        previous=space.verified.head,
        space_type=newest.space_type,
        members=tuple(members),
        key_version=version,
        key_check=check,
        created_at=iso_ms(hand.now_ms),
        author_id=hand.identity.account_id,
        nonce=nonce,
    )
    require_next(newest, entry)
    wire = entry.to_wire()
    return SignedEntry(entry=wire, signature=b64(sign_entry(hand.identity.signing_key, wire)))


def _wrap(space: SpaceKeys, member: Member, version: int, key: bytes) -> MemberWrap:
    wrapped = _wrapped(space, member, "s", version, key)
    return MemberWrap(account_id=member.account_id, version=version, wrapped=wrapped)


def _wrapped(
    space: SpaceKeys, member: Member, kind: Literal["s", "p"], version: int, key: bytes
) -> str:
    name = SpaceKeyName(kind, space.space_id, version, member.account_id)
    return wrap_space_key(key, public_identity(member).hpke_key, name)


def _others(members: Iterable[Member], account_id: str) -> tuple[Member, ...]:
    return tuple(one for one in members if one.account_id != account_id)


def _with_role(space: SpaceKeys, roles: dict[str, Role]) -> tuple[Member, ...]:
    return tuple(replace(one, role=roles.get(one.account_id, one.role)) for one in space.members)
