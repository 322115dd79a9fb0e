"""Reservations, settlements and sums, in PostgreSQL: one round trip for any number of calls.

Within one transaction money comes last, and each of `settle` and `reserve` at most once, in this
order: they hold the account's sums until it ends, and nothing may be waited for behind those.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from mana.domain.errors import Invalid
from mana.domain.ids import AgentId, MissionId, OccurrenceId, SpaceId
from mana.domain.money import COST_PER_DAY_MAX, Price
from mana.hub.db import Row, Tenancy, Transaction, load_queries
from mana.hub.moments import iso_of
from mana.hub.tenants import Tenant
from mana.planning.budget import (
    BYTES_PER_TOKEN,
    COMPLETION_TOKENS_MIN,
    TOKENS_MAX,
    Cap,
    budget_reason,
    counted,
)
from mana.planning.ports import CAP_SCOPES, CapUnit, ModelCall, Usage
from mana.protocol.messages import UsageLine

_QUERIES: Final = load_queries("mana.hub.money")
_UNITS: Final[tuple[tuple[CapUnit, str], ...]] = (("tokens", "token"), ("cost", "cost"))

Span: TypeAlias = Literal["hour", "day"]


@dataclass(frozen=True, slots=True)
class Run:
    """Whose caps count for a call: a mission's and an agent's, besides those of the account."""

    space_id: SpaceId
    mission_id: MissionId
    agent_id: AgentId


@dataclass(frozen=True, slots=True)
class ReserveFor:
    """One call of a run that the runner is to allow.

    `call.model` is kept as it is: for a model of the person's own it must be empty, as its name is
    text of theirs. What such a one takes, at a price that they say, does not count for the hub.
    """

    run: Run
    occurrence_id: OccurrenceId
    prompt_tokens: int
    completion_tokens_max: int
    call: ModelCall


@dataclass(frozen=True, slots=True)
class Granted:
    """A reservation that stands once the transaction has committed; the reply may be shorter."""

    reservation: str
    prompt_tokens: int
    completion_tokens_max: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not allowed, as ledgers keep it: `budget:…`, `no-price` or a gate's word."""

    reason: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a call of the runner's came to; without a usage all that was reserved counts.

    `released`: nothing counts, as it is certain that no model worked on it.
    """

    granted: Granted
    usage: Usage | None
    released: bool = False


@dataclass(frozen=True, slots=True)
class Spent:
    """What a day has taken: tokens, and costs in millionths.

    Of them the unconfirmed ones are reserved, or the worst case of calls whose model never said.
    """

    tokens: int = 0
    cost: int = 0
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens that a device wants to split among calls of its own; `least` 0: whatever is left."""

    tokens: int
    least: int
    price: Price | None


async def reserve(tx: Transaction, asks: Sequence[ReserveFor]) -> list[Granted | Refusal]:
    """Reserve each call in its order, in full or for a shorter reply, or refuse it.

    Raises Invalid for what cannot be a number of tokens or a price; then nothing is reserved.
    """
    rows = await _reserve(
        tx,
        [ask.run for ask in asks],
        [str(ask.occurrence_id) for ask in asks],
        prompts=[ask.prompt_tokens for ask in asks],
        replies=[ask.completion_tokens_max for ask in asks],
        floors=[min(ask.completion_tokens_max, COMPLETION_TOKENS_MIN) for ask in asks],
        calls=[ask.call for ask in asks],
        holder=None,
    )
    return [_answer(row, ask.prompt_tokens) for row, ask in zip(rows, asks, strict=True)]


async def settle(tx: Transaction, settled: Sequence[Settlement]) -> int:
    """Replace the runner's reservations by what was used; return the tokens that count.

    A usage that cannot be true, or none, counts what was reserved. Once settled it stays so.
    """
    ids = [one.granted.reservation for one in settled]
    usages = [_believed(one) for one in settled]
    return await _settle(tx, ids, usages, [Usage()] * len(ids), [1] * len(ids), by_device=False)


async def caps_of(tx: Transaction, runs: Sequence[Run]) -> list[tuple[Cap, ...]]:
    """Return for each run the caps that count, as a reservation by the runner would see them.

    Nothing is locked: it tells whether to begin, and each call asks again.
    """
    rows = await tx.all(
        _QUERIES["caps"],
        [run.space_id for run in runs],
        [run.mission_id for run in runs],
        [run.agent_id for run in runs],
        True,
    )
    by_place = {row["place"]: row for row in rows}
    return [_caps(row, by_place) for row in rows]


async def agent_today(tx: Transaction, space: SpaceId, agent: AgentId) -> Spent:
    """Return what an agent has used in the day, by whomever; what is reserved counts in full."""
    return _spent(await tx.one(_QUERIES["agent_today"], space, agent))


async def agents_today(tx: Transaction) -> dict[str, Spent]:
    """Return what each agent of the account's spaces has used in the day, if anything."""
    rows = await tx.all(_QUERIES["agents_today"])
    return {row["agent_id"]: _spent(row) for row in rows}


async def account_today(tx: Transaction) -> Spent:
    """Return what the account has used in the day."""
    return _spent(await tx.one(_QUERIES["account_today"]))


class MoneyStore:
    """What devices reserve, and what a person has spent, each in a transaction of its own."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    @contextlib.asynccontextmanager
    async def opened(self, tenant: Tenant) -> AsyncIterator[Slices]:
        """Open a transaction for an account."""
        async with self._tenancy.transaction(tenant) as tx:
            yield Slices(tx)

    async def usage(self, tenant: Tenant, span: Span, days: int) -> list[UsageLine]:
        """Return what the account used by hours or days, those of so many days, oldest first."""
        async with self._tenancy.transaction(tenant) as tx:
            rows = await tx.all(_QUERIES["usage"], span, timedelta(days=days))
        return [
            UsageLine(
                hour=iso_of(row["since"]),
                scope=row["scope"],
                id=row["id"],
                tokens=int(row["tokens"]),
                cost=int(row["cost"]),
                model_calls=int(row["calls"]),
                space_id=row["space_id"],
                unconfirmed_tokens=max(int(row["tokens"] - row["confirmed_tokens"]), 0),
                unconfirmed_cost=max(int(row["cost"] - row["confirmed_cost"]), 0),
            )
            for row in rows
        ]


class Slices:
    """The statements about what devices reserve, within one open transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    async def role(self, space: SpaceId) -> str | None:
        """Return the account's role in a space, None if it is no member."""
        role: str | None = await self._tx.value(_QUERIES["role"], space)
        return role

    async def holder(self, session_id: str) -> str:
        """Return who holds what is reserved in a session: its device, else the session."""
        found: str | None = await self._tx.value(_QUERIES["holder"], session_id)
        return found or session_id

    async def reserve(self, run: Run, wanted: Slice, *, holder: str) -> Granted | Refusal:
        """Reserve a slice; what it costs is not the hub's, so the hub's cap does not count."""
        (row,) = await _reserve(
            self._tx,
            [run],
            [""],
            prompts=[0],
            replies=[wanted.tokens],
            floors=[wanted.least],
            # Where a device sends its calls is its own matter, and may be text of the person.
            calls=[ModelCall("", "", wanted.price)],
            holder=holder,
        )
        return _answer(row, 0)

    async def day(self, run: Run) -> dict[str, Spent]:
        """Return what a mission and an agent have used in the day, by scope, and keep it so."""
        place = (run.space_id, run.mission_id, run.agent_id)
        await self._tx.one(_QUERIES["lock_day"], *place)
        return {row["scope"]: _spent(row) for row in await self._tx.all(_QUERIES["day"], *place)}

    async def open_count(self, run: Run, holder: str) -> int:
        """Return how many reservations of the day a device has not settled, for one mission."""
        found: int = await self._tx.value(
            _QUERIES["open_slices"], run.space_id, run.mission_id, holder
        )
        return found

    async def asked(self, space: SpaceId, mission: MissionId, reservation: str) -> int | None:
        """Return how many tokens one of the account's devices asked for, None if it is not there."""
        found: int | None = await self._tx.value(_QUERIES["slice"], reservation, space, mission)
        return found

    async def settle(
        self, reservation: str, usage: Usage | None, *, unconfirmed: Usage, calls: int
    ) -> None:
        """Replace a reservation by what was used, unless it is settled already.

        `unconfirmed`: what of it is the worst case of calls whose model never said.
        """
        await _settle(self._tx, [reservation], [usage], [unconfirmed], [calls], by_device=True)


async def _reserve(
    tx: Transaction,
    runs: Sequence[Run],
    occurrences: Sequence[str],
    *,
    prompts: Sequence[int],
    replies: Sequence[int],
    floors: Sequence[int],
    calls: Sequence[ModelCall],
    holder: str | None,
) -> list[Row]:
    for prompt, reply in zip(prompts, replies, strict=True):
        if prompt < 0 or reply < 0 or prompt + reply > TOKENS_MAX:
            raise Invalid("this cannot be a number of tokens")
    prices = [call.price for call in calls]
    for price in prices:
        if price is not None and not (
            0 <= price.prompt <= COST_PER_DAY_MAX and 0 <= price.completion <= COST_PER_DAY_MAX
        ):
            raise Invalid("this cannot be a price")
    return await tx.all(
        _QUERIES["reserve"],
        [run.space_id for run in runs],
        [run.mission_id for run in runs],
        [run.agent_id for run in runs],
        occurrences,
        prompts,
        replies,
        floors,
        [call.endpoint for call in calls],
        [call.model for call in calls],
        [call.purpose for call in calls],
        [None if price is None else price.prompt for price in prices],
        [None if price is None else price.completion for price in prices],
        holder,
    )


async def _settle(
    tx: Transaction,
    reservations: Sequence[str],
    usages: Sequence[Usage | None],
    unconfirmed: Sequence[Usage],
    calls: Sequence[int],
    *,
    by_device: bool,
) -> int:
    """Settle what is not settled yet; return the tokens that count."""
    rows = await tx.all(
        _QUERIES["settle"],
        reservations,
        [None if usage is None else usage.prompt_tokens for usage in usages],
        [None if usage is None else usage.completion_tokens for usage in usages],
        [one.prompt_tokens for one in unconfirmed],
        [one.completion_tokens for one in unconfirmed],
        calls,
        by_device,
    )
    return sum(row["tokens"] for row in rows)


def _answer(row: Row, prompt_tokens: int) -> Granted | Refusal:
    if row["usage_id"] is not None:
        return Granted(row["usage_id"], prompt_tokens, row["reply"])
    if row["reason"] == "budget":
        return Refusal(budget_reason(row["remaining"], row["cap"], row["scope"], row["unit"]))
    return Refusal(row["reason"])


def _believed(one: Settlement) -> Usage | None:
    """Return the usage that counts: the runner saw no byte, and judges by what it granted."""
    if one.released:
        return Usage()
    return counted(
        one.usage,
        sent_bytes=one.granted.prompt_tokens * BYTES_PER_TOKEN,
        reply_bytes=0,
        completion_tokens_max=one.granted.completion_tokens_max,
    )


def _caps(row: Row, by_place: dict[int, Row]) -> tuple[Cap, ...]:
    found = []
    for scope in CAP_SCOPES:
        # A sum stands with the first run under its mission or agent.
        sums = by_place[row[f"{scope}_at"]] if scope in ("mission", "agent") else row
        for unit, name in _UNITS:
            cap = row[f"{scope}_{name}_cap"]
            if cap is not None:
                found.append(Cap(scope, unit, cap, sums[f"{scope}_{name}s"]))
    return tuple(found)


def _spent(row: Row | None) -> Spent:
    if row is None:
        return Spent()
    tokens, cost = int(row["tokens"]), int(row["cost"])
    return Spent(
        tokens,
        cost,
        max(tokens - int(row["confirmed_tokens"]), 0),
        max(cost - int(row["confirmed_cost"]), 0),
    )
