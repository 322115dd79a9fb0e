"""Shared spaces as devices make them, without a device: entries, wraps, invitations.

Everything is real and signed; a test may replace any part of it to see it refused.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from mana.crypto.invitations import acceptance_mac, invitation_token, new_secret, token_hash
from mana.crypto.keys import SpaceKeyName, key_check, new_key, wrap_space_key
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import entry_hash, sign_entry
from mana.crypto.vaults import sign_private_keys
from mana.domain.clock import iso_ms
from mana.domain.ids import SpaceId
from mana.domain.spaces import Member, MembershipEntry, Role, SpaceType, entry_from_wire
from mana.protocol.messages import (
    AcceptInvitation,
    KeyWrap,
    MembershipAppend,
    MemberWrap,
    NewInvitation,
    PrivateKeys,
    SignedEntry,
)
from mana.testing.accounts import FoundedSpace, NewAccount, found_space

DAY_MS = 24 * 60 * 60 * 1_000


@dataclass(frozen=True, slots=True)
class MadeSpace:
    """A shared space as its members know it: the log, and the space keys by version."""

    space_id: SpaceId
    type: SpaceType
    log: tuple[SignedEntry, ...]
    keys: Mapping[int, bytes] = field(repr=False)
    founded: FoundedSpace = field(repr=False)

    @property
    def newest(self) -> MembershipEntry:
        """Return the newest entry."""
        return entry_from_wire(self.log[-1].entry)

    @property
    def head(self) -> str:
        """Return the hash that the next entry names."""
        return hash_of(self.log[-1])

    def grown(self, signed: SignedEntry, keys: Mapping[int, bytes] | None = None) -> MadeSpace:
        """Return the space after an entry, and with the keys that came by it."""
        return replace(self, log=(*self.log, signed), keys={**self.keys, **(keys or {})})


@dataclass(frozen=True, slots=True)
class Step:
    """A next entry with its wraps, and the space as it is once the hub took it."""

    append: MembershipAppend
    after: MadeSpace


@dataclass(frozen=True, slots=True)
class MadeInvitation:
    """An invitation with the secret that only its link holds."""

    secret: bytes = field(repr=False)
    space_id: SpaceId
    new: NewInvitation

    def accepted_by(self, account: NewAccount) -> AcceptInvitation:
        """Return what the account sends to accept it."""
        member = member_of(account, "member")
        mac = acceptance_mac(
            self.secret,
            self.space_id,
            self.new.invitation_id,
            account_id=member.account_id,
            signing_key=member.signing_key,
            hpke_key=member.hpke_key,
        )
        token = invitation_token(self.secret, self.space_id, self.new.invitation_id)
        return AcceptInvitation(space_id=self.space_id, token=b64(token), mac=b64(mac))


def hash_of(signed: SignedEntry) -> str:
    """Return the hash of a signed entry."""
    return entry_hash(signed.entry, unb64(signed.signature))


def member_of(account: NewAccount, role: Role) -> Member:
    """Return an account as a member."""
    public = account.identity.public()
    return Member(
        account.account_id,
        role,
        b64(public.signing_key.to_bytes()),
        b64(public.hpke_key.to_bytes()),
    )


def shared_space(owner: NewAccount, space_type: SpaceType = "team", *, now_ms: int) -> MadeSpace:
    """Found a shared space; `.founded.new` is what the hub is sent."""
    made = found_space(owner.identity, space_type, now_ms=now_ms)
    return MadeSpace(made.space_id, space_type, (made.new.first,), {1: made.space_key}, made)


def signed_by(author: NewAccount, entry: MembershipEntry) -> SignedEntry:
    """Sign an entry with the author's identity."""
    signature = sign_entry(author.identity.signing_key, entry.to_wire())
    return SignedEntry(entry=entry.to_wire(), signature=b64(signature))


def next_entry(
    space: MadeSpace,
    author: NewAccount,
    members: Sequence[Member],
    *,
    now_ms: int,
    key: bytes = b"",
) -> MembershipEntry:
    """Return the entry that makes these the members; with `key`, under the next key version."""
    newest, nonce = space.newest, os.urandom(16).hex()
    version = newest.key_version + (1 if key else 0)
    return replace(
        newest,
        previous=space.head,
        members=tuple(members),
        key_version=version,
        key_check=key_check(key, nonce, version) if key else newest.key_check,
        created_at=iso_ms(now_ms),
        author_id=author.account_id,
        nonce=nonce,
    )


def wrap_of(space: MadeSpace, account: NewAccount, version: int, key: bytes) -> MemberWrap:
    """Wrap a key of a space to an account."""
    name = SpaceKeyName("s", space.space_id, version, account.account_id)
    wrapped = wrap_space_key(key, account.identity.public().hpke_key, name)
    return MemberWrap(account_id=account.account_id, version=version, wrapped=wrapped)


def private_wrap(space: MadeSpace, account: NewAccount, version: int) -> KeyWrap:
    """Wrap a new private key of a space to its owner."""
    name = SpaceKeyName("p", space.space_id, version, account.account_id)
    wrapped = wrap_space_key(new_key(), account.identity.public().hpke_key, name)
    return KeyWrap(kind="p", version=version, wrapped=wrapped)


def private_keys(space: MadeSpace, account: NewAccount, *versions: int) -> PrivateKeys:
    """Return new private keys of a space, signed by their owner."""
    return signed_keys(space, account, [private_wrap(space, account, one) for one in versions])


def signed_keys(space: MadeSpace, account: NewAccount, wraps: Sequence[KeyWrap]) -> PrivateKeys:
    """Return private keys of a space as an account signs them."""
    key, named = account.identity.signing_key, [(one.version, one.wrapped) for one in wraps]
    signature = sign_private_keys(key, account.account_id, space.space_id, named)
    return PrivateKeys(wraps=list(wraps), signature=b64(signature))


def adding(
    space: MadeSpace, author: NewAccount, joiner: NewAccount, role: Role, *, now_ms: int
) -> Step:
    """Add a member, with every version of the key."""
    members = (*space.newest.members, member_of(joiner, role))
    signed = signed_by(author, next_entry(space, author, members, now_ms=now_ms))
    wraps = [wrap_of(space, joiner, version, key) for version, key in space.keys.items()]
    return Step(MembershipAppend(entry=signed, wraps=wraps), space.grown(signed))


def removing(
    space: MadeSpace,
    author: NewAccount,
    gone: NewAccount,
    staying: Sequence[NewAccount],
    *,
    now_ms: int,
) -> Step:
    """Remove a member under a new key, wrapped to all who stay."""
    members = [one for one in space.newest.members if one.account_id != gone.account_id]
    return rotating(space, author, members, staying, now_ms=now_ms)


def rotating(
    space: MadeSpace,
    author: NewAccount,
    members: Sequence[Member],
    wrapped_to: Sequence[NewAccount],
    *,
    now_ms: int,
) -> Step:
    """Write the next key version for these members."""
    key = new_key()
    entry = next_entry(space, author, members, now_ms=now_ms, key=key)
    signed = signed_by(author, entry)
    wraps = [wrap_of(space, one, entry.key_version, key) for one in wrapped_to]
    after = space.grown(signed, {entry.key_version: key})
    return Step(MembershipAppend(entry=signed, wraps=wraps), after)


def rekeying(
    space: MadeSpace,
    before: NewAccount,
    after: NewAccount,
    members: Sequence[NewAccount] = (),
    *,
    now_ms: int,
    private: Sequence[int] = (1,),
    rotate: bool = False,
) -> Step:
    """Name an account's new public keys, and wrap to them what it holds.

    `private`: the versions of its private keys. `rotate`: with the next key for these members.
    """
    key = new_key() if rotate else b""
    named = [
        member_of(after, one.role) if one.account_id == after.account_id else one
        for one in space.newest.members
    ]
    entry = next_entry(space, before, named, now_ms=now_ms, key=key)
    wraps = [wrap_of(space, after, version, held) for version, held in space.keys.items()]
    wraps += [wrap_of(space, one, entry.key_version, key) for one in members if key]
    append = MembershipAppend(
        entry=signed_by(before, entry),
        wraps=wraps,
        private_wraps=[private_wrap(space, after, version) for version in private],
    )
    after_keys = {entry.key_version: key} if key else {}
    return Step(append, space.grown(append.entry, after_keys))


def leaving(space: MadeSpace, leaver: NewAccount, *, now_ms: int) -> Step:
    """Let a member leave."""
    members = [one for one in space.newest.members if one.account_id != leaver.account_id]
    signed = signed_by(leaver, next_entry(space, leaver, members, now_ms=now_ms))
    return Step(MembershipAppend(entry=signed), space.grown(signed))


def reroling(
    space: MadeSpace, author: NewAccount, account: NewAccount, role: Role, *, now_ms: int
) -> Step:
    """Give a member another role."""
    members = [
        replace(one, role=role) if one.account_id == account.account_id else one
        for one in space.newest.members
    ]
    signed = signed_by(author, next_entry(space, author, members, now_ms=now_ms))
    return Step(MembershipAppend(entry=signed), space.grown(signed))


def closing(space: MadeSpace, owner: NewAccount, *, now_ms: int) -> SignedEntry:
    """Return the entry that closes a space."""
    return signed_by(owner, next_entry(space, owner, (), now_ms=now_ms))


def invitation(
    space: MadeSpace, role: Role, *, now_ms: int, days: int = 7, invitation_id: str | None = None
) -> MadeInvitation:
    """Make an invitation."""
    secret, made = new_secret(), invitation_id or str(uuid.uuid4())
    new = NewInvitation(
        invitation_id=made,
        role=role,
        token_hash=token_hash(invitation_token(secret, space.space_id, made)),
        expires_at=iso_ms(now_ms + days * DAY_MS),
    )
    return MadeInvitation(secret, space.space_id, new)


def changed(append: MembershipAppend, author: NewAccount, **members: object) -> MembershipAppend:
    """Return an append whose entry has other members of its wire form, signed anew."""
    entry = {**append.entry.entry, **members}
    signature = b64(sign_entry(author.identity.signing_key, entry))
    return msgspec.structs.replace(append, entry=SignedEntry(entry=entry, signature=signature))
