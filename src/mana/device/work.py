"""All work of an account, stopped or not: the person's word, and that the hub has the same.

The word is a sealed setting in the person's own scope, so it holds on every device after its sync,
and offline on this one at once. The hub is told as soon as it can be reached, and told again when it
says something else. What the person does themselves goes on: approving, rejecting, editing.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Literal, TypedDict

from mana.device.budgets import PATIENCE_S, Budgets
from mana.device.editing import Editing
from mana.device.hub_news import HubNews
from mana.device.opened import Opened
from mana.device.views import WorkView
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Invalid, NotFound, Unauthenticated, Unavailable
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.protocol.errors import WorkStopped
from mana.protocol.messages import SetWork, WorkState

STOPPED_AT: Final = "workStoppedAt"
_ROUNDS: Final = 3
"""How often the hub is told in a row while it or the person's word moves."""


class Caps(TypedDict, total=False):
    """Caps of the account for a day; None removes one."""

    tokens_per_day_max: int | None
    cost_per_day_max: int | None


class Work:
    """Whether anything runs by itself for the account."""

    def __init__(
        self,
        opened: Opened,
        records: Editing,
        news: HubNews,
        budgets: Budgets,
    ) -> None:
        self._opened = opened
        self._records = records
        self._news = news
        self._budgets = budgets
        self._telling = asyncio.Lock()
        self._told: bool | None = None

    async def stopped_ms(self) -> int | None:
        """Return since when all work is stopped; None if it goes on."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        said = view.text(STOPPED_AT) if view is not None else ""
        if not said:
            return None
        try:
            return parse_iso_ms(said)
        except Invalid:
            return 0  # It cannot be read when; that it was said is enough.

    async def require_going(self) -> None:
        """Raise WorkStopped while all work is stopped."""
        if await self.stopped_ms() is not None:
            raise WorkStopped("all work is stopped")

    async def stop(self) -> WorkView:
        """Stop all work, here at once and everywhere else as soon as they hear of it."""
        if await self.stopped_ms() is None:
            await self._records.write_settings({STOPPED_AT: self._opened.now_iso()})
        await self.tell()
        return await self.state()

    async def start(self) -> WorkView:
        """Let work go on, here and everywhere."""
        if await self.stopped_ms() is not None:
            await self._records.write_settings({STOPPED_AT: None})
        await self.tell()
        return await self.state()

    async def set_caps(self, caps: Caps) -> WorkView:
        """Set the named caps of the account at the hub, None to remove; raise Offline without it."""
        wanted = SetWork(
            tokens_per_day_max=_cap(caps, "tokens_per_day_max"),
            cost_per_day_max=_cap(caps, "cost_per_day_max"),
        )
        await self._heard(await self._opened.hub.set_work(wanted))
        return await self.state()

    async def state(self) -> WorkView:
        """Return whether work goes on, what the hub says of it, and what was used."""
        said, stopped_ms = await self._news.work(), await self.stopped_ms()
        if said is not None:
            await self._budgets.note_work(said)
        known = said or await self._budgets.work()
        told = self._told
        if told is None and said is not None:
            told = said.stopped_at is not None
        used = await self._budgets.unreported_today()
        return WorkView(
            stopped_ms=stopped_ms,
            hub_told=told is not None and told == (stopped_ms is not None),
            hub_stopped=known.hub_stopped,
            currency=known.currency,
            tokens_today=known.tokens_today + sum(held.counted for held in used),
            cost_today=known.cost_today + sum(held.cost_counted for held in used),
            tokens_per_day_max=known.tokens_per_day_max,
            cost_per_day_max=known.cost_per_day_max,
            hub_tokens_per_day_max=known.hub_tokens_per_day_max,
            hub_cost_per_day_max=known.hub_cost_per_day_max,
        )

    async def tell(self) -> None:
        """Tell the hub the person's word if it has another; nothing happens without the hub.

        It is asked before the newest settings are fetched: what it was told by another device was
        in the settings by then, so neither undoes what the other said.
        """
        async with self._telling:
            with contextlib.suppress(TimeoutError, Unavailable, Unauthenticated, NotFound):
                for _ in range(_ROUNDS):
                    async with asyncio.timeout(PATIENCE_S):
                        said = await self._opened.hub.work()
                    await self._heard(said)
                    if self._told == (await self.stopped_ms() is not None):
                        return
                    await self._opened.book.sync_now()
                    wanted = await self.stopped_ms() is not None
                    if self._told == wanted:
                        return
                    async with asyncio.timeout(PATIENCE_S):
                        await self._opened.hub.set_work(SetWork(stopped=wanted))

    async def _heard(self, said: WorkState) -> None:
        self._told = said.stopped_at is not None
        await self._budgets.note_work(said)
        self._news.moved()


def _cap(caps: Caps, name: Literal["tokens_per_day_max", "cost_per_day_max"]) -> int | None:
    """Return a cap as the hub is told: -1 removes it, None leaves it."""
    if name not in caps:
        return None
    cap = caps[name]
    if cap is not None and cap < 0:
        raise Invalid("a cap is a whole number from 0, or none")
    return -1 if cap is None else cap
