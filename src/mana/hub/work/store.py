"""Stops and caps of an account, in PostgreSQL; the statements work inside an open transaction."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from mana.domain.clock import iso_ms
from mana.hub.db import Tenancy, Transaction, load_queries
from mana.hub.money.store import account_today
from mana.hub.runner.rows import to_ms
from mana.hub.tenants import Tenant
from mana.protocol.messages import SetWork, WorkState

_Q: Final = load_queries("mana.hub.work")


@dataclass(frozen=True, slots=True)
class Work:
    """The statements about the work of the account whose transaction this is."""

    tx: Transaction
    currency: str

    async def state(self) -> WorkState:
        """Return whether anything runs for the account, its caps, and what its day has taken."""
        row = await self.tx.one(_Q["state"])
        spent = await account_today(self.tx)
        if row is None:
            return WorkState(currency=self.currency)
        stopped = row["stopped_at"]
        return WorkState(
            currency=self.currency,
            tokens_today=spent.tokens,
            cost_today=spent.cost,
            stopped_at=None if stopped is None else iso_ms(to_ms(stopped)),
            hub_stopped=row["hub_stopped"],
            tokens_per_day_max=row["tokens_per_day_max"],
            cost_per_day_max=row["cost_per_day_max"],
            hub_tokens_per_day_max=row["account_tokens_per_day_max"],
            hub_cost_per_day_max=row["account_cost_per_day_max"],
        )

    async def set(self, asked: SetWork) -> None:
        """Stop everything of the account or let it go on, and set its caps."""
        if asked.stopped:
            await self.tx.value(_Q["hold_turns"])
            await self.tx.value(_Q["stop_runs"])
        if asked.stopped is not None:
            await self.tx.execute(_Q["set_stopped"], asked.stopped)
            await self.tx.value(_Q["notify_due"])
        if asked.tokens_per_day_max is not None or asked.cost_per_day_max is not None:
            await self.tx.execute(_Q["set_caps"], asked.tokens_per_day_max, asked.cost_per_day_max)


class WorkStore:
    """Opens transactions about the work of an account."""

    def __init__(self, tenancy: Tenancy, currency: str) -> None:
        self._tenancy = tenancy
        self._currency = currency

    @contextlib.asynccontextmanager
    async def work(self, tenant: Tenant) -> AsyncIterator[Work]:
        """Open the account's work."""
        async with self._tenancy.transaction(tenant) as tx:
            yield Work(tx, self._currency)
