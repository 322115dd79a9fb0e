"""What the hub checks of a next entry of a membership log before it stores a byte. Pure.

The rules that every device checks too are in `domain.spaces`; here are those that only the hub
can keep: who is added was invited and accepted, and every key wrap that is needed came along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mana.crypto.authority import verify_next
from mana.crypto.primitives import unb64
from mana.crypto.signatures import entry_hash
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Forbidden, Invalid
from mana.domain.ids import AccountId, SpaceId
from mana.domain.spaces import Member, MembershipEntry, MembershipRefused, entry_from_wire
from mana.hub.accounts.founding import check_short, check_wrap
from mana.protocol.codec import check_value
from mana.protocol.errors import MembershipMoved
from mana.protocol.messages import KeyWrap, MemberWrap, SignedEntry


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of a log as the hub has it, with its place from 1 and its hash."""

    number: int
    entry: MembershipEntry
    hash: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What somebody who accepted an invitation joins with."""

    invitation_id: str
    account_id: str
    role: str
    signing_key: str
    hpke_key: str

    def admits(self, member: Member) -> bool:
        """Say whether the member of an entry is who accepted this, as it was offered."""
        return (self.account_id, self.role, self.signing_key, self.hpke_key) == (
            member.account_id,
            member.role,
            member.signing_key,
            member.hpke_key,
        )


@dataclass(frozen=True, slots=True)
class Move:
    """A next entry that holds, and what it changes."""

    signed: SignedEntry
    entry: MembershipEntry
    hash: str
    before: MembershipEntry

    @property
    def accounts(self) -> list[str]:
        """Return who is in the space after it."""
        return [one.account_id for one in self.entry.members]

    @property
    def concerned(self) -> list[str]:
        """Return who was in the space before it or is after it."""
        before = (one.account_id for one in self.before.members)
        return list(dict.fromkeys([*before, *self.accounts]))

    @property
    def added(self) -> list[Member]:
        """Return who is new."""
        return [one for one in self.entry.members if self.before.member(one.account_id) is None]

    @property
    def gone(self) -> list[str]:
        """Return who is out."""
        members = self.before.members
        return [one.account_id for one in members if self.entry.member(one.account_id) is None]

    @property
    def reroled(self) -> list[Member]:
        """Return who stays with another role, as they are now."""
        return [
            one
            for one in self.entry.members
            if (old := self.before.member(one.account_id)) is not None and old.role != one.role
        ]

    @property
    def rekeyed(self) -> Member | None:
        """Return who has other public keys after it, which can only be its author."""
        return next(
            (
                one
                for one in self.entry.members
                if (old := self.before.member(one.account_id)) is not None and old.keys != one.keys
            ),
            None,
        )

    def without(self, *roles: str) -> list[str]:
        """Return who was in the space before it and has none of these roles after it."""
        kept = {one.account_id for one in self.entry.members if one.role in roles}
        return [one.account_id for one in self.before.members if one.account_id not in kept]


def hash_of(signed: SignedEntry) -> str:
    """Return the hash of an entry as it came; raise Invalid or CryptoFailed for none."""
    check_value(signed.entry)
    return entry_hash(signed.entry, unb64(signed.signature))


def check_move(space_id: SpaceId, head: Head, signed: SignedEntry, account: AccountId) -> Move:
    """Return the move that an entry is; raise unless it may follow and the caller signed it.

    MembershipMoved: it follows another entry than the newest. MembershipRefused: it breaks a
    rule. SignatureRejected: its author did not sign it.
    """
    check_value(signed.entry)
    entry = entry_from_wire(signed.entry)
    if entry.previous != head.hash:
        raise MembershipMoved("the membership log has another head by now")
    if entry.author_id != account:
        raise Forbidden("an entry is sent by the account that it names as its author")
    parse_iso_ms(entry.created_at)
    check_short(entry.key_check, "the check value of the space key")
    entry, found = verify_next(space_id, head.entry, [head.hash], signed)
    return Move(signed, entry, found, head.entry)


def check_invited(move: Move, accepted: Iterable[Acceptance]) -> list[str]:
    """Return the invitations by which the new members come; raise MembershipRefused otherwise."""
    used = []
    known = list(accepted)
    for member in move.added:
        found = next((one for one in known if one.admits(member)), None)
        if found is None:
            raise MembershipRefused(
                "a new member did not accept an invitation for this role with these keys",
                detail={"reason": "not-invited"},
            )
        used.append(found.invitation_id)
    return used


def check_wraps(move: Move, wraps: Sequence[MemberWrap]) -> None:
    """Raise Invalid unless exactly those wraps came along that this entry calls for.

    A new key version: one for every member. A new member: the current version, and any older. Who
    replaces their keys: any version of their own; what they cannot open they cannot wrap anew.
    """
    version = move.entry.key_version
    added = {one.account_id for one in move.added}
    needed = set(move.accounts) if version != move.before.key_version else added
    rekeyed = {move.rekeyed.account_id} if move.rekeyed is not None else set[str]()
    given: set[tuple[str, int]] = set()
    for wrap in wraps:
        name = (wrap.account_id, wrap.version)
        is_needed = wrap.version == version and wrap.account_id in needed | rekeyed
        is_older = 1 <= wrap.version < version and wrap.account_id in added | rekeyed
        if name in given or not (is_needed or is_older):
            raise Invalid("a wrap is there twice, or nobody needs it")
        check_wrap(wrap.wrapped)
        given.add(name)
    if any((account, version) not in given for account in needed):
        raise Invalid("a member would lack the key of the space")


def check_private_wraps(move: Move, wraps: Sequence[KeyWrap], standing: Collection[int]) -> None:
    """Raise unless who replaces their keys sends their private keys too, and nobody else any.

    `standing`: the versions that the hub keeps. MembershipMoved if the newest of them is missing:
    another device of the account made it meanwhile.
    """
    if move.rekeyed is None and wraps:
        raise Invalid("private keys come along only with other public ones")
    given = {wrap.version for wrap in wraps}
    if len(given) != len(wraps) or not given <= set(standing):
        raise Invalid("a private key is there twice, or is not kept here")
    for wrap in wraps:
        if wrap.kind != "p":
            raise Invalid("what is not a private key is among them")
        check_wrap(wrap.wrapped)
    if move.rekeyed is not None and standing and max(standing) not in given:
        raise MembershipMoved("the account has another private key here by now")


def log_to_wire(entries: Iterable[Mapping[str, Json]], last: SignedEntry) -> list[Json]:
    """Return a whole log as JSON, with its last entry."""
    log: list[Json] = [{"entry": row["entry"], "signature": row["signature"]} for row in entries]
    return [*log, {"entry": last.entry, "signature": last.signature}]
