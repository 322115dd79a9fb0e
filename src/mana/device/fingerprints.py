"""Whose keys the person has compared, and who has others since: nobody is taken for who they were.

What was compared is in the person's own settings, sealed, so it holds on all of their devices. A
first meeting is shown as not compared, which is no warning; other keys of somebody are one until
the person says that they compared them. Normative: docs/protocol/sync.md, 6.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias

from mana.crypto.authority import public_identity
from mana.device.opened import Opened
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Conflict
from mana.domain.ids import RecordId
from mana.domain.records import View
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.spaces import Member, MembershipEntry

COMPARED: Final = "comparedKeys"
Comparison: TypeAlias = Literal["own", "compared", "not-compared", "changed"]
"""`changed`: this member had other keys when the person saw or compared them before."""


class FingerprintMoved(Conflict):
    """The member has other keys by now than those that were compared."""

    code: ClassVar[str] = "FINGERPRINT_MOVED"
    advice: ClassVar[str] = "Look at the members again, and compare what is shown now."


@dataclass(frozen=True, slots=True)
class Seen:
    """A member's fingerprint, since when it is another (ISO; None: never), and what it is worth."""

    fingerprint: str
    changed_at: str | None
    comparison: Comparison


class Fingerprints:
    """What the person of one unlocked account compared."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def of(self, members: Iterable[Member], entries: Iterable[MembershipEntry]) -> list[Seen]:
        """Return what the person knows of these members of a log, since they are in it."""
        own, compared = self._opened.account_id, await self._compared()
        log = list(itertools.dropwhile(lambda one: one.member(own) is None, entries))
        return [self._seen(member, log, compared) for member in members]

    async def confirm(self, member: Member, fingerprint: str) -> None:
        """Keep that the person compared this fingerprint; raise FingerprintMoved for another."""
        if public_identity(member).fingerprint() != fingerprint:
            raise FingerprintMoved("these are not the keys of the member any more")
        pair = _pair(member.account_id, fingerprint)
        if pair in await self._compared():
            return
        kind = ChangeKind.UPDATE if await self._settings() is not None else ChangeKind.CREATE
        # An element by itself: what another device added meanwhile stays.
        values: dict[str, Json] = {f"{COMPARED}/new": pair}
        change = Change(SETTINGS.name, RecordId(SETTINGS_ID), kind, values)
        await self._opened.book.commit([Write(change, self._opened.person)])

    def _seen(
        self, member: Member, log: Iterable[MembershipEntry], compared: frozenset[str]
    ) -> Seen:
        fingerprint = public_identity(member).fingerprint()
        changed_at = keys_changed_at(log, member.account_id)
        others = any(one.startswith(f"{member.account_id} ") for one in compared)
        comparison: Comparison = "not-compared"
        if member.account_id == self._opened.account_id:
            comparison = "own"
        elif _pair(member.account_id, fingerprint) in compared:
            comparison = "compared"
        elif others or changed_at is not None:
            comparison = "changed"
        return Seen(fingerprint, changed_at, comparison)

    async def _compared(self) -> frozenset[str]:
        settings = await self._settings()
        found = settings.values.get(COMPARED) if settings is not None else None
        return frozenset(str(one) for one in found) if isinstance(found, list) else frozenset()

    async def _settings(self) -> View | None:
        return await self._opened.book.view(SETTINGS.name, SETTINGS_ID)


def keys_changed_at(entries: Iterable[MembershipEntry], account_id: str) -> str | None:
    """Return when an account was last named with other keys than before; None: never.

    By the word of who wrote that entry. Who comes back with other keys has changed them too.
    """
    keys, changed_at = None, None
    for entry in entries:
        member = entry.member(account_id)
        if member is None:
            continue
        if keys is not None and member.keys != keys:
            changed_at = entry.created_at
        keys = member.keys
    return changed_at


def _pair(account_id: str, fingerprint: str) -> str:
    return f"{account_id} {fingerprint}"
