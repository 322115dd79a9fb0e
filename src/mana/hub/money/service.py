"""What devices reserve before they spend, and what a person has spent, between edge and store."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mana.domain.errors import Forbidden, Invalid, ManaError, NotFound
from mana.domain.ids import (
    AgentId,
    MissionId,
    SpaceId,
    require_record_id,
    require_space_id,
    require_uuid,
)
from mana.domain.money import Price
from mana.hub.http.endpoints import Session
from mana.hub.money.store import MoneyStore, Refusal, Run, Slice, Slices, Span, Spent
from mana.hub.tenants import Tenant
from mana.planning.budget import Cap, counted_slice, fitting_all, read_budget_reason
from mana.planning.ports import BudgetExceeded, CapScope, CapUnit, PriceUnknown, Usage
from mana.protocol.errors import ReservationsFull
from mana.protocol.messages import (
    GrantedCaps,
    ReservedTokens,
    ReserveTokens,
    SettleTokens,
    UsageAnswer,
)

SLICES_MAX: Final = 8
"""How many reservations a device may hold at a time for one mission."""
DAYS_MAX: Final = 92
DAYS_BY_HOUR_MAX: Final = 31


class MoneyService:
    """Answers for one hub, whose costs are all in one currency."""

    def __init__(self, store: MoneyStore, *, currency: str) -> None:
        self._store = store
        self._currency = currency

    async def usage(self, tenant: Tenant, days: int, by: str | None) -> UsageAnswer:
        """Return what the account used; without `by` in hours, or in days where that is too long."""
        span: Span = "hour" if days <= DAYS_BY_HOUR_MAX else "day"
        if by == "day":
            span = "day"
        elif by not in (None, span):
            raise Invalid(f"by is day, or hour for at most {DAYS_BY_HOUR_MAX} days")
        return UsageAnswer(
            currency=self._currency, lines=await self._store.usage(tenant, span, days)
        )

    async def reserve(
        self, session: Session, space: str, mission: str, asked: ReserveTokens
    ) -> ReservedTokens:
        """Reserve tokens for calls of a device, for this mission and agent of the space.

        Raises NotFound, Forbidden for a viewer, BudgetExceeded, PriceUnknown, ReservationsFull.
        """
        if asked.tokens_min > asked.tokens:
            raise Invalid("tokensMin is at most tokens")
        space_id, mission_id = _mission(space, mission)
        run = Run(space_id, mission_id, AgentId(require_record_id(asked.agent_id)))
        wanted = Slice(asked.tokens, asked.tokens_min, _price(asked))
        async with self._store.opened(session.tenant) as slices:
            await _require_member(slices, space_id)
            holder = await slices.holder(session.session_id)
            if asked.caps is not None and asked.tokens_min:
                wanted = await _agreed(slices, run, wanted, asked.caps)
            found = await slices.reserve(run, wanted, holder=holder)
            if isinstance(found, Refusal):
                raise _error(found)
            # What is counted is locked since the reservation, and goes with it if it is too much.
            if await slices.open_count(run, holder) > SLICES_MAX:
                raise ReservationsFull(
                    "the device holds as many reservations as it may", detail={"open": SLICES_MAX}
                )
        return ReservedTokens(reservation_id=found.reservation, tokens=found.completion_tokens_max)

    async def settle(
        self, tenant: Tenant, space: str, mission: str, reservation: str, told: SettleTokens
    ) -> None:
        """Replace a reservation of one of the account's devices by what was used.

        Once settled it stays so. What cannot be true counts the reservation in full.
        """
        space_id, mission_id = _mission(space, mission)
        require_uuid(reservation, "reservation id")
        usage = Usage(told.prompt_tokens, told.completion_tokens)
        unconfirmed = Usage(
            min(told.unconfirmed_prompt_tokens, told.prompt_tokens),
            min(told.unconfirmed_completion_tokens, told.completion_tokens),
        )
        async with self._store.opened(tenant) as slices:
            asked = await slices.asked(space_id, mission_id, reservation)
            if asked is None:
                raise NotFound("there is no such reservation for this mission")
            believed = counted_slice(usage, asked=asked, calls=told.model_calls)
            await slices.settle(
                reservation, believed, unconfirmed=unconfirmed, calls=told.model_calls
            )


def _mission(space: str, mission: str) -> tuple[SpaceId, MissionId]:
    return require_space_id(space), MissionId(require_record_id(mission))


async def _agreed(slices: Slices, run: Run, wanted: Slice, agreed: GrantedCaps) -> Slice:
    """Return a slice as far as the caps that the device's person agreed to hold it.

    Raises BudgetExceeded, PriceUnknown. What is only reported is not asked, for it was spent.
    """
    day = await slices.day(run)
    mission, agent = day.get("mission", Spent()), day.get("agent", Spent())
    sums: tuple[tuple[CapScope, CapUnit, int | None, int], ...] = (
        ("mission", "tokens", agreed.mission_tokens, mission.tokens),
        ("mission", "cost", agreed.mission_cost, mission.cost),
        ("agent", "tokens", agreed.agent_tokens, agent.tokens),
        ("agent", "cost", agreed.agent_cost, agent.cost),
    )
    caps = [Cap(scope, unit, cap, used) for scope, unit, cap, used in sums if cap is not None]
    # A device splits what it holds as it likes, so the dearer of the two prices counts.
    dearest = None if wanted.price is None else max(wanted.price.prompt, wanted.price.completion)
    price = None if dearest is None else Price(dearest, dearest)
    fits = wanted.tokens
    for one in caps:
        fits = min(fits, fitting_all(0, wanted.tokens, [one], price))
        if fits < wanted.least:
            raise one.exceeded()
    return replace(wanted, tokens=fits)


def _price(asked: ReserveTokens) -> Price | None:
    if asked.prompt_price is None or asked.completion_price is None:
        return None
    return Price(asked.prompt_price, asked.completion_price)


async def _require_member(slices: Slices, space: SpaceId) -> None:
    """Raise unless the account may let missions of the space run."""
    role = await slices.role(space)
    if role is None:
        raise NotFound("there is no such mission in this space")
    if role == "viewer":
        raise Forbidden("the role may not run missions in this space")


def _error(refusal: Refusal) -> ManaError:
    budget = read_budget_reason(refusal.reason)
    if budget is not None:
        return BudgetExceeded(
            left=budget.left, cap=budget.cap, scope=budget.scope, unit=budget.unit
        )
    if refusal.reason == "no-price":
        return PriceUnknown("a cap of costs is set, and no price was given")
    what = "agent" if refusal.reason == "agent-missing" else "mission"
    return NotFound(f"there is no such {what} in this space")
