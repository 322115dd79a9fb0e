"""Sends what changes who is in a space, and says it again where somebody else was quicker.

Every move is a compare-and-set on the head of the log. If the head is another one by now, the log
is read again and the same intent is put to it: what stands by then is left, what a rule forbids by
then is refused.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from mana.crypto.envelope import parse_json
from mana.crypto.primitives import Random
from mana.device.errors import SpaceLeft
from mana.device.kept import keep_sealed, meta_of, open_sealed
from mana.device.membership import Hand
from mana.device.opened import Opened
from mana.device.replica import Tx
from mana.device.vault import OpenedVault, SpaceKeys
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import NotFound
from mana.protocol.errors import MembershipMoved
from mana.protocol.messages import MembershipAppend, SignedEntry

ATTEMPTS: Final = 3
Build: TypeAlias = Callable[[SpaceKeys, Hand], MembershipAppend | None]
"""Returns the next entry for a log as it stands; None if what it is to say stands already."""


class Moves:
    """Changes of the membership logs of one unlocked account."""

    def __init__(self, opened: Opened, *, random: Random = os.urandom) -> None:
        self._opened = opened
        self.random: Final = random

    @property
    def vault(self) -> OpenedVault:
        """Return the keys of the account; raise Locked."""
        return self._opened.book.inner().vault

    def hand(self, space: SpaceKeys) -> Hand:
        """Return who signs now in a space: whom its log names, which may be a former identity."""
        vault = self.vault
        own = space.entries[-1].member(vault.account_id)
        named = vault.identity_for(own.signing_key) if own is not None else None
        return Hand(named or vault.identity, self._opened.now_ms(), self.random)

    def space(self, space_id: str) -> SpaceKeys:
        """Return a space that the account is in; raise NotFound, or SpaceLeft for a former one."""
        found = self.vault.space(space_id)
        if found.former:
            raise SpaceLeft("the account is no longer in this space")
        return found

    async def append(self, space_id: str, build: Build) -> bool:
        """Append the entry that `build` returns; say whether anything was appended.

        Raises MembershipMoved if others were quicker each time, MembershipRefused for what a
        rule forbids, Offline if the hub cannot be asked.
        """

        async def send() -> bool:
            space = self.space(space_id)
            append = build(space, self.hand(space))
            if append is None:
                return False
            info = await self._opened.hub.append_member(space_id, append)
            if info.log:
                self.vault.take_space(info)
            else:
                self.vault.depart(space_id, [*space.log, append.entry])
            return True

        return await self._repeated(space_id, send)

    async def close(self, space_id: str, build: Callable[[SpaceKeys, Hand], SignedEntry]) -> None:
        """End a space for everybody; raises as `append`."""

        async def send() -> bool:
            space = self.space(space_id)
            entry = build(space, self.hand(space))
            await self._opened.hub.close_space(space_id, entry)
            self.vault.depart(space_id, [*space.log, entry])
            return True

        await self._repeated(space_id, send)

    async def _repeated(self, space_id: str, send: Callable[[], Awaitable[bool]]) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                moved = await send()
            except MembershipMoved:
                if attempt == ATTEMPTS:
                    raise
                await self.refresh()
                continue
            except NotFound:
                # The hub no longer knows this account there: the signed log has to say so too.
                await self.refresh()
                self.space(space_id)
                raise
            if moved:
                await self.settle()
            return moved
        return False

    async def refresh(self) -> None:
        """Read the spaces anew; raise Offline."""
        await self._opened.book.inner().syncer.refresh_spaces()

    async def settle(self) -> None:
        """Keep what has just been changed, and have sync follow it soon."""
        syncer = self._opened.book.inner().syncer
        await syncer.keep_spaces()
        syncer.spaces_moved()

    # What this device has begun and not finished, by name, sealed

    async def begun(self, name: str) -> dict[str, Json]:
        """Return what was begun here."""
        inner, vault = self._opened.book.inner(), self.vault
        return await inner.replica.read(lambda tx: _begun(tx, vault, name))

    async def note(self, name: str, changes: Mapping[str, Json]) -> None:
        """Write down what was begun; None takes an item off. One transaction, for all processes."""
        inner, vault = self._opened.book.inner(), self.vault

        def work(tx: Tx) -> None:
            items = {**_begun(tx, vault, name), **changes}
            items = {key: value for key, value in items.items() if value is not None}
            kept = canonical_json(items) if items else None
            keep_sealed(tx, vault, meta_of("begun", name), kept)

        await inner.replica.write(work)


def _begun(tx: Tx, vault: OpenedVault, name: str) -> dict[str, Json]:
    raw = open_sealed(tx, vault, meta_of("begun", name))
    found = {} if raw is None else parse_json(raw)
    return found if isinstance(found, dict) else {}
