"""Which hub this account's words are for: the one that a device met first, and no other.

A word on the account's work names its hub, so that no other hub can use it. The hub says itself what
it is called; were that believed each time, whoever stands between could collect a word for another.
So each device keeps the first name that it hears, and a device that is new takes the one that the
person's devices share, sealed. Normative: docs/protocol/engine.md, 3; decision 0016.
"""

from __future__ import annotations

from typing import ClassVar, Final

from mana.crypto.work import is_hub_id
from mana.device.editing import Editing
from mana.device.errors import Offline
from mana.device.opened import Opened
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.protocol.replication import HubDistrusted

KEPT_HUB: Final = "work-hub"
SHARED_HUB: Final = "workHub"
NAMED_MIN: Final = 8
"""How much of a hub's id a person has to repeat, so that they have looked at it."""


class HubChanged(HubDistrusted):
    """The hub calls itself another than the one that this account's words are for."""

    code: ClassVar[str] = "HUB_CHANGED"
    advice: ClassVar[str] = (
        "Nothing is signed for it. Ask whoever runs the hub: with its secrets restored it is the old "
        "one. If it is meant to be another, `mana work` says what to type. If it says no name that a "
        "hub has, it is too old, and has to be brought up to date."
    )


class KnownHub:
    """The hub of one unlocked account, by `WorkState.hub`: 64 hex digits."""

    def __init__(self, opened: Opened, records: Editing) -> None:
        self._opened = opened
        self._records = records

    async def known(self) -> str:
        """Return what the hub was called when it was met; empty before."""
        return await self._kept() or await self._shared()

    async def meet(self, said: str) -> bool:
        """Keep what the hub is called, the first time; say whether it is the one that is known.

        What no hub is called is kept nowhere, and is never the one.
        """
        if not is_hub_id(said):
            return False
        known = await self.known() or said
        if not await self._kept():
            await self._opened.book.keep(KEPT_HUB, known)
        return said == known

    async def require(self, said: str) -> None:
        """Raise HubChanged unless the hub is the one that is known."""
        if not is_hub_id(said):
            raise HubChanged("the hub says no name that a hub has")
        if not await self.meet(said):
            raise HubChanged("the hub calls itself another than before")

    async def unshared(self) -> dict[str, Json]:
        """Return what the person's other devices should know and do not; what they share stays."""
        known = await self.known()
        return {SHARED_HUB: known} if known and not await self._shared() else {}

    async def accept(self, said: str, named: str) -> None:
        """Take the hub for another from now on, here and for devices to come.

        `named`: the beginning of its id as the person was told it; raises Invalid if it is not, and
        HubChanged where the hub says no name. Offline: the person's settings cannot be read.
        """
        if not is_hub_id(said):
            raise HubChanged("the hub says no name that a hub has")
        wanted = named.strip().lower()
        if len(wanted) < NAMED_MIN or not said.startswith(wanted):
            raise Invalid(f"the hub's name begins with {said[:NAMED_MIN]}; this is another")
        book = self._opened.book
        if not await book.is_read(SETTINGS.name):
            raise Offline("what the person's other devices know of the hub cannot be read")
        await book.keep(KEPT_HUB, said)
        if await self._shared() != said:
            for row in await book.untaken(SETTINGS.name, SETTINGS_ID):
                # An older note that was refused would stand beside this one.
                if row.state == "refused" and SHARED_HUB in row.message.fields:
                    await book.drop_refused(row.message.change_id)
            await self._records.write_settings({SHARED_HUB: said})

    async def _shared(self) -> str:
        """Return what the person's devices share; empty if that is nothing that a hub is called."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        shared = view.text(SHARED_HUB) if view is not None else ""
        return shared if is_hub_id(shared) else ""

    async def _kept(self) -> str:
        kept = await self._opened.book.kept(KEPT_HUB)
        return kept if isinstance(kept, str) and is_hub_id(kept) else ""
