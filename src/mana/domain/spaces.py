"""Spaces, roles, and the signed membership log.

The space id is the hash of its signed first entry, so a hub cannot swap one space for
another. Bytes: docs/protocol/crypto.md, *Membership*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import require_uuid

SpaceType = Literal["personal", "brand", "club", "family", "team", "practice", "user"]
SPACE_TYPES: Final = ("personal", "brand", "club", "family", "team", "practice", "user")
"""`user` is the reserved scope of one person: profile and settings, never shared."""
Role = Literal["owner", "admin", "member", "viewer"]
ROLES: Final = ("owner", "admin", "member", "viewer")


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


def entry_from_wire(value: object) -> MembershipEntry:
    """Return the entry of a wire form; raise Invalid for any other shape."""
    names = ("previous", "type", "keyCheck", "createdAt", "authorId", "nonce")
    if not isinstance(value, dict) or value.get("version") != "v1" or len(value) != 9:
        raise Invalid("membership entry is not of version v1")
    if not all(isinstance(value.get(name), str) for name in names):
        raise Invalid("membership entry lacks a member")
    version, members = value.get("keyVersion"), value.get("members")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Invalid("membership entry names no key version")
    if value["type"] not in SPACE_TYPES or not isinstance(members, list) or not members:
        raise Invalid("membership entry names no type or no members")
    found: list[Member] = []
    for item in members:
        if not isinstance(item, dict) or set(item) != {
            "accountId",
            "role",
            "signingKey",
            "hpkeKey",
        }:
            raise Invalid("a member is {accountId, role, signingKey, hpkeKey}")
        if item["role"] not in ROLES or not all(isinstance(part, str) for part in item.values()):
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
