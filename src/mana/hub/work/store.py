"""Stops and caps of an account, in PostgreSQL; the statements work inside an open transaction."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from mana.crypto.work import Limits, WorkWord
from mana.domain.clock import iso_ms
from mana.hub.db import Row, Tenancy, Transaction, load_queries
from mana.hub.money.store import account_today
from mana.hub.runner.rows import limits_of, to_ms
from mana.hub.tenants import Tenant
from mana.protocol.messages import Signature, SignedWork, WorkState

_Q: Final = load_queries("mana.hub.work")


@dataclass(frozen=True, slots=True)
class Place:
    """What every answer on work says of its hub: the currency, and what words call the hub."""

    currency: str = "USD"
    hub: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """What holds for an account now, and how often that has moved."""

    limits: Limits
    revision: int


@dataclass(frozen=True, slots=True)
class Work:
    """The statements about the work of the account whose transaction this is."""

    tx: Transaction
    place: Place

    async def state(self) -> WorkState:
        """Return whether anything runs for the account, its caps, and what its day has taken."""
        row = await self.tx.one(_Q["state"])
        spent = await account_today(self.tx)
        if row is None:
            return WorkState(currency=self.place.currency, hub=self.place.hub)
        stopped = row["stopped_at"]
        return WorkState(
            currency=self.place.currency,
            tokens_today=spent.tokens,
            cost_today=spent.cost,
            unconfirmed_tokens_today=spent.unconfirmed_tokens,
            unconfirmed_cost_today=spent.unconfirmed_cost,
            stopped_at=None if stopped is None else iso_ms(to_ms(stopped)),
            hub_stopped=row["hub_stopped"],
            tokens_per_day_max=row["tokens_per_day_max"],
            cost_per_day_max=row["cost_per_day_max"],
            hub_tokens_per_day_max=row["account_tokens_per_day_max"],
            hub_cost_per_day_max=row["account_cost_per_day_max"],
            hub=self.place.hub,
            revision=row["revision"],
            signed=_signed(row),
        )

    async def held(self, *, stops: bool) -> Holding:
        """Return what holds, which nobody else changes until the transaction ends.

        `stops`: it is about to be stopped. Nothing is leased meanwhile then, so that what runs and
        what is stopped is the same; who leases comes before who changes the account's row.
        """
        if stops:
            await self.tx.value(_Q["hold_turns"])
        row = await self.tx.one(_Q["held"])
        return Holding(Limits(), 0) if row is None else Holding(limits_of(row), row["revision"])

    async def put(self, limits: Limits, *, revision: int) -> None:
        """Let these hold from now on, and end or wake what follows."""
        if limits.stopped:
            await self.tx.value(_Q["stop_runs"])
        await self.tx.execute(
            _Q["put"],
            limits.stopped,
            limits.tokens_per_day_max,
            limits.cost_per_day_max,
            revision,
        )
        if not limits.stopped:
            await self.tx.value(_Q["notify_due"])

    async def put_word(self, word: WorkWord, signature: Signature) -> None:
        """Keep what a device signed, in the place of the word before."""
        text = word.canonical().decode("utf-8")
        await self.tx.execute(_Q["put_word"], text, signature.signer, signature.value)


class WorkStore:
    """Opens transactions about the work of an account."""

    def __init__(self, tenancy: Tenancy, place: Place) -> None:
        self._tenancy = tenancy
        self.place = place

    @contextlib.asynccontextmanager
    async def work(self, tenant: Tenant) -> AsyncIterator[Work]:
        """Open the account's work."""
        async with self._tenancy.transaction(tenant) as tx:
            yield Work(tx, self.place)


def _signed(row: Row) -> SignedWork | None:
    """Return the word of a row; one that cannot be read is none, and a device says so."""
    if row["word"] is None:
        return None
    try:
        return msgspec.convert(
            {
                "word": msgspec.json.decode(row["word"]),
                "signature": {"signer": row["signer"], "value": row["signature"]},
            },
            SignedWork,
        )
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
