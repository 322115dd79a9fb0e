"""Spaces, roles, what a space may hold, and the rules of the signed membership log.

The space id is the hash of its signed first entry, so a hub cannot swap one space for
another. Bytes: docs/protocol/crypto.md, *Membership*; rules: docs/protocol/sync.md, 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from mana.domain.encoding import Json
from mana.domain.errors import Forbidden, Invalid
from mana.domain.ids import require_uuid
from mana.domain.tables import (
    Choice,
    Identifier,
    Moment,
    Shape,
    Table,
    Text,
    plain,
    sealed,
)

SpaceType = Literal["personal", "brand", "club", "family", "team", "practice", "user"]
SHARED_TYPES: Final = ("brand", "club", "family", "team", "practice")
SPACE_TYPES: Final = ("personal", *SHARED_TYPES, "user")
"""`user` is the reserved scope of one person: profile and settings, never shared."""
Role = Literal["owner", "admin", "member", "viewer"]
ROLES: Final = ("owner", "admin", "member", "viewer")
MEMBERS_MAX: Final = 200

_EVERYWHERE: Final = frozenset({"mana", "ai", "todo", "tags", "links", "timeblocks"})
MODULES: Final[Mapping[str, frozenset[str]]] = {
    name: _EVERYWHERE | frozenset(modules.split())
    for name, modules in {
        "brand": "social-relay mail contacts calendar storage landing website presi cards picture"
        " quotes news-research research-lab companion times notes photos invoices activity goals"
        " comic",
        "club": "contacts calendar events mail storage research-lab club-members club-finance"
        " invoices finance landing website presi cards quotes companion times notes photos"
        " activity goals comic",
        "family": "contacts calendar events mail storage website recipes places presi cards photos"
        " notes companion goals activity wetter wisekeep firsts comic",
        "team": "contacts calendar events storage mail website news-research research-lab presi"
        " cards picture notes quotes invoices companion times activity goals comic",
        "practice": "contacts calendar storage mail website invoices finance times notes presi"
        " cards quotes companion research-lab activity goals comic",
    }.items()
}
"""By shared type the sync apps that it holds. A personal space holds every one."""

PROFILE_ID: Final = "space"
PROFILE: Final = Table(
    name="spaceProfile",
    app_id="mana",
    agents_may_write=False,
    written_by="managers",
    described="How a shared space is called; written by owners and admins.",
    fields=(sealed("name", Text(80)), sealed("description", Text(2_000))),
)
SPACE_POLICY_ID: Final = "policy"
SPACE_POLICY: Final = Table(
    name="spacePolicies",
    app_id="ai",
    authority=True,
    agents_may_write=False,
    written_by="managers",
    described="Which destructive or external tools a space lets agents use without asking.",
    fields=(
        plain(
            "lifted",
            Identifier(),
            because="the runner decides by it, and no grant carries a key for it",
            shape=Shape.SET,
        ),
    ),
)
SPACE_POLICY_AUDIT: Final = Table(
    name="spacePolicyAudit",
    app_id="ai",
    authority=True,
    agents_may_write=False,
    written_by="managers",
    described="Each change of a space's policy: append only.",
    fields=(
        sealed("tool", Identifier()),
        sealed("action", Choice(("added", "removed"))),
        sealed("at", Moment()),
    ),
)
MEMBER_NAMES: Final = Table(
    name="spaceMembers",
    app_id="mana",
    agents_may_write=False,
    written_by="self",
    described="How each member is called in a space; the record's id is the account's.",
    fields=(sealed("displayName", Text(80)),),
)


class MembershipRefused(Forbidden):
    """A change of who is in a space breaks a rule; `detail.reason` says which."""

    code = "MEMBERSHIP_REFUSED"
    advice = "See who is in the space and as what; an owner can change that."


WORDS: Final[Mapping[str, str]] = {
    "closed": "the space is closed",
    "closing": "only an owner can close a space",
    "keys-changed": "nobody changes the public keys of somebody else",
    "leaving": "whoever leaves changes nothing else",
    "no-owner": "a space always has an owner: hand it over first, or close it",
    "not-a-member": "they or you are not in this space any more",
    "not-invited": "nobody invited this account into the space",
    "one-person": "a space of one person is never shared",
    "role": "your role in the space does not let you do this",
    "rotation": "the key of the space was changed by somebody at the same time",
    "too-many": f"a space has at most {MEMBERS_MAX} members",
    "unchanged": "that is so already",
}
"""What a rule of the membership log says to a person, by `detail.reason`; some never meet one."""


@dataclass(frozen=True, slots=True)
class Member:
    """An account in a space, with the public keys that others check it by (base64)."""

    account_id: str
    role: Role
    signing_key: str
    hpke_key: str

    def to_wire(self) -> dict[str, Json]:
        """Return the wire form."""
        return {
            "accountId": self.account_id,
            "role": self.role,
            "signingKey": self.signing_key,
            "hpkeKey": self.hpke_key,
        }

    @property
    def keys(self) -> tuple[str, str]:
        """Return both public keys, signing and HPKE."""
        return self.signing_key, self.hpke_key


@dataclass(frozen=True, slots=True)
class MembershipEntry:
    """One entry of the log: it commits to the previous hash, members and the key version."""

    previous: str
    space_type: SpaceType
    members: tuple[Member, ...]
    key_version: int
    key_check: str
    created_at: str
    author_id: str
    nonce: str

    def to_wire(self) -> dict[str, Json]:
        """Return the wire form."""
        return {
            "version": "v1",
            "previous": self.previous,
            "type": self.space_type,
            "members": [member.to_wire() for member in self.members],
            "keyVersion": self.key_version,
            "keyCheck": self.key_check,
            "createdAt": self.created_at,
            "authorId": self.author_id,
            "nonce": self.nonce,
        }

    def member(self, account_id: str) -> Member | None:
        """Return the account's membership, if it has one."""
        return next((one for one in self.members if one.account_id == account_id), None)


def can_write(role: Role) -> bool:
    """Say whether a role may write records, and so grant and decide."""
    return role != "viewer"


def can_manage(role: Role) -> bool:
    """Say whether a role may invite, remove and rename."""
    return role in ("owner", "admin")


def holds(space_type: str, app_id: str) -> bool:
    """Say whether a space of this type takes records of a sync app."""
    return space_type in ("personal", "user") or app_id in MODULES.get(space_type, frozenset())


def require_first(entry: MembershipEntry) -> None:
    """Raise MembershipRefused unless a space may begin so: one owner, the first key."""
    members = entry.members
    if len(members) != 1 or members[0].account_id != entry.author_id or entry.previous:
        raise _refused("first")
    if members[0].role != "owner" or entry.key_version != 1:
        raise _refused("first")


def require_next(previous: MembershipEntry, entry: MembershipEntry) -> None:
    """Raise MembershipRefused unless `entry` may follow; hashes and signatures are not its job.

    The rules, in the order of docs/protocol/sync.md, 6.
    """
    author = previous.member(entry.author_id)
    if not previous.members:
        raise _refused("closed")
    if entry.space_type != previous.space_type:
        raise _refused("type-changed")
    if author is None:
        raise _refused("not-a-member")
    grown = entry.key_version - previous.key_version
    if grown not in (0, 1) or (grown == 0) != (entry.key_check == previous.key_check):
        raise _refused("key-version")
    before = {one.account_id: one for one in previous.members}
    after = {one.account_id: one for one in entry.members}
    if is_rekeyed(previous, entry):
        # Signed with the keys before, it is the same person; with anything else in the same
        # entry nobody could tell what they meant to say with which hand.
        mine = after.get(author.account_id)
        if mine is None or before != {
            **after,
            author.account_id: _with_keys(mine, author.keys),
        }:
            raise _refused("keys-changed")
        if grown and not can_manage(author.role):
            raise _refused("role")
        return
    if entry.space_type not in SHARED_TYPES and before != after:
        raise _refused("one-person")
    if before == after and not grown:
        # Anybody could make the log grow without end by it, and everybody has to check it.
        raise _refused("unchanged")
    if len(after) > MEMBERS_MAX:
        raise _refused("too-many")
    if not after:
        if author.role != "owner" or grown:
            raise _refused("closing")
        return
    if all(one.role != "owner" for one in after.values()):
        raise _refused("no-owner")
    gone = before.keys() - after.keys()
    if author.account_id in gone:
        if len(gone) > 1 or grown or any(before.get(name) != one for name, one in after.items()):
            raise _refused("leaving")
        return
    _require_role(author, before, after, bool(grown))
    if gone and not grown:
        raise _refused("rotation")


def is_rekeyed(previous: MembershipEntry, entry: MembershipEntry) -> bool:
    """Say whether somebody who is in both entries has other public keys in the second."""
    return any(
        (old := previous.member(one.account_id)) is not None and old.keys != one.keys
        for one in entry.members
    )


def _with_keys(member: Member, keys: tuple[str, str]) -> Member:
    return replace(member, signing_key=keys[0], hpke_key=keys[1])


def _require_role(
    author: Member, before: Mapping[str, Member], after: Mapping[str, Member], grown: bool
) -> None:
    """Raise unless the author's role covers what they change about others and the key."""
    changed = [
        one
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
        for one in (before.get(name), after.get(name))
        if one is not None
    ]
    if author.role == "owner":
        return
    if author.role != "admin" and (changed or grown):
        raise _refused("role")
    if any(one.role not in ("member", "viewer") for one in changed):
        raise _refused("role")


def rotation_due(entries: Sequence[MembershipEntry]) -> bool:
    """Say whether somebody who left knows the key that is in use, by the entries in order."""
    newest = entries[-1]
    knew = {
        one.account_id
        for entry in entries
        if entry.key_version == newest.key_version
        for one in entry.members
    }
    return bool(newest.members) and not knew <= {one.account_id for one in newest.members}


def _refused(reason: str) -> MembershipRefused:
    words = WORDS.get(reason, "the membership log does not allow this entry")
    return MembershipRefused(words, detail={"reason": reason})


def _is_text(value: object, length_max: int) -> bool:
    return isinstance(value, str) and len(value) <= length_max


def entry_from_wire(value: object) -> MembershipEntry:
    """Return the entry of a wire form; raise Invalid for any other shape."""
    names = ("previous", "type", "keyCheck", "createdAt", "authorId", "nonce")
    if not isinstance(value, dict) or value.get("version") != "v1" or len(value) != 9:
        raise Invalid("membership entry is not of version v1")
    if not all(_is_text(value.get(name), 128) for name in names):
        raise Invalid("membership entry lacks a member")
    version, members = value.get("keyVersion"), value.get("members")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Invalid("membership entry names no key version")
    if value["type"] not in SPACE_TYPES or not isinstance(members, list):
        raise Invalid("membership entry names no type or no members")
    if not members and not value["previous"]:
        raise Invalid("a space begins with a member")
    found: list[Member] = []
    for item in members:
        if not isinstance(item, dict) or set(item) != {
            "accountId",
            "role",
            "signingKey",
            "hpkeKey",
        }:
            raise Invalid("a member is {accountId, role, signingKey, hpkeKey}")
        if item["role"] not in ROLES or not all(_is_text(part, 2_048) for part in item.values()):
            raise Invalid("a member is {accountId, role, signingKey, hpkeKey}")
        found.append(
            Member(
                require_uuid(item["accountId"], "account id"),
                item["role"],
                item["signingKey"],
                item["hpkeKey"],
            )
        )
    if len({one.account_id for one in found}) != len(found):
        raise Invalid("an account is a member once")
    return MembershipEntry(
        previous=value["previous"],
        space_type=value["type"],
        members=tuple(found),
        key_version=version,
        key_check=value["keyCheck"],
        created_at=value["createdAt"],
        author_id=require_uuid(value["authorId"], "account id"),
        nonce=value["nonce"],
    )
