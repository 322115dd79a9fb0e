"""Money on a device: what its calls reserve at the hub, and what it owes the hub's ledger.

Each call is on the disk of this device before it is made, so what a crash cut off counts in full.
With the hub in reach each call is reserved there, under every cap. Without it a call is made only
from a slice that was reserved before, or where no cap is set; then it is reported afterwards. All
processes of this device share what is kept. Normative: docs/protocol/engine.md, 3.

The hub is told numbers and prices: neither where a model is nor what it is called.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Final, TypeVar

import msgspec

from mana.device.caps import caps_as_set, granted_caps
from mana.device.holders import Holder
from mana.device.opened import Opened
from mana.domain.agents import AGENTS, Agent
from mana.domain.encoding import Json
from mana.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    ManaError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from mana.domain.grants import GrantCaps
from mana.domain.missions import MISSIONS, Mission
from mana.domain.money import Price, smaller
from mana.planning.budget import (
    COMPLETION_TOKENS_MIN,
    Cap,
    counted_tokens,
    fitting,
    used_up,
)
from mana.planning.ports import (
    CAP_SCOPES,
    BudgetExceeded,
    ModelCall,
    PriceUnknown,
    Reservation,
    Usage,
)
from mana.protocol.messages import ReserveTokens, SettleTokens, WorkState

KEPT: Final = "spend"
KEPT_WORK: Final = "work"
PATIENCE_S: Final = 5.0
SILENT_MS: Final = 30_000
"""For how long a hub that did not answer is not asked again before a call."""
SLICE_TOKENS: Final = 16_000
SLICE_TOKENS_MIN: Final = 2_000
SLICE_LIFE_MS: Final = 6 * 60 * 60 * 1_000
REFUSED_KEPT_MS: Final = 25 * 60 * 60 * 1_000
"""What the hub takes no report of is dropped when the day that it counted in is over."""
DAY_MS: Final = 24 * 60 * 60 * 1_000
_T = TypeVar("_T")


class HubNeeded(BudgetExceeded):
    """There is a cap, the hub cannot be asked, and nothing is reserved for this device."""

    code: ClassVar[str] = "BUDGET_NEEDS_HUB"
    advice: ClassVar[str] = "Connect to the hub; under a cap nothing is spent without its word."


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is under way: its worst case, and the process that makes it."""

    prompt: int
    completion: int
    holder: str

    @property
    def tokens(self) -> int:
        """Return the worst case."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Held:
    """Tokens that this device may spend, or spent, for one mission.

    `reservation`: by which the hub knows them, empty for what it is not told of yet. `tokens`: how
    many are reserved there. `prompt`, `completion`, `cost`: used by `made` calls that are over; of
    them `open_prompt`, `open_completion` are the worst case of calls whose model never said.
    `over`: no further call is made of it. `slice`: held for a time without the hub.
    """

    id: str
    space_id: str
    mission_id: str
    agent_id: str
    at_ms: int
    reservation: str = ""
    tokens: int = 0
    prompt: int = 0
    completion: int = 0
    cost: int = 0
    made: int = 0
    prompt_price: int | None = None
    completion_price: int | None = None
    calls: dict[str, Call] = field(default_factory=dict)
    over: bool = False
    slice: bool = False
    open_prompt: int = 0
    open_completion: int = 0

    @property
    def price(self) -> Price | None:
        """Return the price at which it was reserved; None: nobody said one."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return Price(self.prompt_price, self.completion_price)

    @property
    def counted(self) -> int:
        """Return what was used, and what the calls under way may use."""
        return self.prompt + self.completion + sum(call.tokens for call in self.calls.values())

    @property
    def unconfirmed(self) -> Usage:
        """Return what of that no model has said."""
        return sum(
            (Usage(call.prompt, call.completion) for call in self.calls.values()),
            Usage(self.open_prompt, self.open_completion),
        )

    @property
    def cost_unconfirmed(self) -> int:
        """Return what of `cost_counted` no model has said."""
        unsaid = self.unconfirmed
        return min(self.cost_of(unsaid.prompt_tokens, unsaid.completion_tokens), self.cost_counted)

    @property
    def cost_counted(self) -> int:
        """Return what was spent, and what the calls under way may cost."""
        open_calls = self.calls.values()
        return self.cost + sum(self.cost_of(call.prompt, call.completion) for call in open_calls)

    def cost_of(self, prompt: int, completion: int) -> int:
        """Return what so many tokens cost; 0 where nobody said a price."""
        return self.price.cost(prompt, completion) if self.price is not None else 0

    def closed(self) -> Held:
        """Return this as over, if it was for the calls that were made of it alone."""
        return self if self.slice else replace(self, over=not self.calls)

    def after(self, name: str, usage: Usage | None) -> Held:
        """Return this once a call is over; without a usage its worst case was used."""
        call = self.calls[name]
        worst = Usage(call.prompt, call.completion)
        used = _sane(usage) or worst
        unsaid = worst if _sane(usage) is None else Usage()
        return replace(
            self,
            prompt=self.prompt + used.prompt_tokens,
            completion=self.completion + used.completion_tokens,
            open_prompt=self.open_prompt + unsaid.prompt_tokens,
            open_completion=self.open_completion + unsaid.completion_tokens,
            cost=self.cost + self.cost_of(used.prompt_tokens, used.completion_tokens),
            made=self.made + 1,
            calls={key: one for key, one in self.calls.items() if key != name},
        )


@dataclass(frozen=True, slots=True)
class Purse:
    """Whose tokens a run spends: the mission, its agent and their space.

    `agreed`: what this device's person agreed to pay, whatever other members set; None where nobody
    else sets it.
    """

    space_id: str
    mission: Mission
    agent: Agent
    agreed: GrantCaps | None = None

    def caps(self, account: WorkState) -> tuple[Cap, ...]:
        """Return the caps that hold, as far as they are known here; nothing is counted yet."""
        held = caps_as_set(self.mission, self.agent).within(self.agreed or GrantCaps())
        wanted = (
            ("mission", "tokens", held.mission_tokens),
            ("agent", "tokens", held.agent_tokens),
            ("account", "tokens", smaller(account.tokens_per_day_max, account.hub_tokens_per_day_max)),
            ("mission", "cost", held.mission_cost),
            ("agent", "cost", held.agent_cost),
            ("account", "cost", smaller(account.cost_per_day_max, account.hub_cost_per_day_max)),
        )  # fmt: skip
        return tuple(
            Cap(scope, unit, cap, 0)  # type: ignore[arg-type]
            for scope, unit, cap in wanted
            if cap is not None
        )


class Budgets:
    """What this device reserved and spent for one account, in all of its spaces."""

    def __init__(self, opened: Opened, holder: Holder) -> None:
        self._opened = opened
        self._holder = holder
        self._silent_until_ms = 0
        self._open: set[str] = set()
        self._reporting = asyncio.Lock()
        self.moved: Callable[[], None] = _nothing
        """Called when the hub's sums have changed by what was done here."""

    def of_run(self, purse: Purse) -> RunBudget:
        """Return the budget of one run."""
        return RunBudget(self, purse)

    # What is known of the caps

    async def note_work(self, work: WorkState) -> None:
        """Keep what the hub said of the account's caps, for when it cannot be asked."""
        raw = msgspec.to_builtins(work)
        await self._opened.book.keep_changed(KEPT_WORK, lambda _: (raw, None))

    async def work(self) -> WorkState:
        """Return what the hub said last of the account's caps."""
        try:
            return msgspec.convert(await self._opened.book.kept(KEPT_WORK), WorkState)
        except msgspec.ValidationError:
            return WorkState()

    async def refusal(self, purse: Purse, *, metered: bool, priced: bool) -> str | None:
        """Return why a run may not even begin, by the caps of 0; None if it may."""
        caps = [cap for cap in purse.caps(await self.work()) if cap.cap == 0]
        return used_up(caps, metered=metered, priced=priced)

    # One call

    async def reserve(
        self, purse: Purse, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve the worst case of one call; raise BudgetExceeded, HubNeeded or PriceUnknown."""
        self._holder.hold()
        floor = prompt_tokens + min(COMPLETION_TOKENS_MIN, completion_tokens_max)
        most = prompt_tokens + completion_tokens_max
        held = self._new(purse, call.price)
        got = await self._ask(held, most, floor, purse.agreed)
        if got is not None:
            reservation, tokens = got
            granted = min(completion_tokens_max, tokens - prompt_tokens)
            held = replace(held, reservation=reservation, tokens=tokens)
            return await self._begin(held, prompt_tokens, granted)
        caps = purse.caps(await self.work())
        if call.price is None and any(cap.unit == "cost" for cap in caps):
            raise PriceUnknown("a cap of costs is set, and the model has no price")
        if not caps:
            return await self._begin(held, prompt_tokens, completion_tokens_max)
        taken = await self._from_slice(held, prompt_tokens, completion_tokens_max)
        if taken is not None:
            return taken
        first = caps[0]
        raise HubNeeded(left=0, cap=first.cap, scope=first.scope, unit=first.unit)

    async def settle(self, reservation: str, usage: Usage | None, *, tell: bool) -> None:
        """Replace a call's worst case by what was used; `tell`: the hub too, if it can be told."""

        def change(all_held: dict[str, Held]) -> Held | None:
            held = _with_call(all_held, reservation)
            if held is not None:
                held = all_held[held.id] = held.after(reservation, usage).closed()
            return held

        held = await self._change(change)
        self._open.discard(reservation)
        if tell and held is not None and held.over and not self._is_silent():
            with contextlib.suppress(ManaError):
                await self._report(held.id)

    # What runs by itself

    async def recover(self) -> None:
        """Count in full what a process that died left open."""

        def change(all_held: dict[str, Held]) -> None:
            for held in builtins.list(all_held.values()):
                for name, call in held.calls.items():
                    if call.holder == self._holder.name:
                        if name in self._open:
                            continue
                    elif self._holder.is_alive(call.holder):
                        continue
                    held = held.after(name, None)
                all_held[held.id] = held.closed()

        await self._change(change)

    async def report(self) -> None:
        """Tell the hub of all that is over; what it does not take waits, for a day at most."""
        now_ms = self._opened.now_ms()
        await self._change(_ending_slices(now_ms))
        for held in await self.all():
            if not held.over or self._is_silent():
                continue
            try:
                await self._report(held.id)
            except (Conflict, Forbidden, Invalid, NotFound):
                if now_ms - held.at_ms > REFUSED_KEPT_MS:
                    await self._change(_dropping(held.id))

    async def keep_slice(self, purse: Purse, price: Price | None, *, due_ms: int | None) -> None:
        """Hold a slice for a mission that is due while the hub may be out of reach.

        Only under a cap, and never more than a quarter of the smallest one in tokens.
        """
        caps = purse.caps(await self.work())
        now_ms = self._opened.now_ms()
        is_soon = due_ms is not None and due_ms <= now_ms + SLICE_LIFE_MS
        if not caps or not is_soon or self._is_silent():
            return
        if any(one.slice and one.mission_id == purse.mission.id for one in await self.all()):
            return
        smallest = min((cap.cap for cap in caps if cap.unit == "tokens"), default=SLICE_TOKENS * 4)
        most = min(SLICE_TOKENS, smallest // 4)
        if most < SLICE_TOKENS_MIN:
            return
        held = replace(self._new(purse, price), slice=True)
        try:
            got = await self._ask(held, most, SLICE_TOKENS_MIN, purse.agreed)
        except (BudgetExceeded, PriceUnknown):
            return
        if got is not None:
            reserved = replace(held, reservation=got[0], tokens=got[1])
            await self._change(_putting(reserved))

    # What is known here alone

    async def all(self) -> builtins.list[Held]:
        """Return everything that is reserved or not reported yet, oldest first."""
        return builtins.list(_read(await self._opened.book.kept(KEPT)).values())

    async def unreported(self) -> builtins.list[Held]:
        """Return what the hub has not been told of."""
        return [held for held in await self.all() if not held.reservation]

    async def unreported_today(self) -> builtins.list[Held]:
        """Return what was used here in 24 hours and the hub does not know."""
        since_ms = self._opened.now_ms() - DAY_MS
        return [held for held in await self.unreported() if held.at_ms > since_ms]

    # Within

    def _new(self, purse: Purse, price: Price | None) -> Held:
        return Held(
            id=self._opened.new_id(),
            space_id=purse.space_id,
            mission_id=purse.mission.id,
            agent_id=purse.agent.id,
            at_ms=self._opened.now_ms(),
            prompt_price=price.prompt if price is not None else None,
            completion_price=price.completion if price is not None else None,
        )

    async def _begin(self, held: Held, prompt: int, completion: int) -> Reservation:
        """Keep a call before it is made, and return its reservation."""
        name = self._opened.new_id()
        call = Call(prompt, completion, self._holder.name)
        with self._opening(name):
            await self._change(_putting(replace(held, calls={name: call})))
        return Reservation(name, completion)

    @contextlib.contextmanager
    def _opening(self, name: str) -> Iterator[None]:
        """Take a call as one of this process; if it is cut off here, it counts in full."""
        self._open.add(name)
        try:
            yield
        except BaseException:
            self._open.discard(name)
            raise

    async def _from_slice(self, wanted: Held, prompt: int, completion: int) -> Reservation | None:
        """Take a call from a slice of the mission that holds it at no lower price."""
        name, since_ms = self._opened.new_id(), wanted.at_ms - SLICE_LIFE_MS

        def change(all_held: dict[str, Held]) -> Reservation | None:
            for held in all_held.values():
                is_its = (held.mission_id, held.agent_id) == (wanted.mission_id, wanted.agent_id)
                is_usable = held.slice and not held.over and held.at_ms > since_ms
                if not is_its or not is_usable or not _covers(held.price, wanted.price):
                    continue
                try:
                    granted = fitting(prompt, completion, cap=held.tokens, counted=held.counted)
                except BudgetExceeded:
                    continue
                call = Call(prompt, granted, self._holder.name)
                all_held[held.id] = replace(held, calls={**held.calls, name: call})
                return Reservation(name, granted)
            return None

        with self._opening(name):
            return await self._change(change)

    async def _ask(
        self, held: Held, most: int, least: int, agreed: GrantCaps | None
    ) -> tuple[str, int] | None:
        """Reserve at the hub: its reservation and the tokens; None where it cannot be asked.

        Raises BudgetExceeded or PriceUnknown.
        """
        if self._is_silent():
            return None
        wanted = ReserveTokens(
            agent_id=held.agent_id,
            tokens=most,
            tokens_min=least,
            prompt_price=held.prompt_price,
            completion_price=held.completion_price,
            caps=None if agreed is None else granted_caps(agreed),
        )
        hub = self._opened.hub
        if not await self._told(held):
            return None
        for again in (True, False):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    got = await hub.reserve_tokens(held.space_id, held.mission_id, wanted)
                self.moved()
                if got.tokens < least:
                    return None
                return got.reservation_id, min(got.tokens, most)
            except NotFound:
                # What was written here a moment ago may not have reached the hub.
                if not again or not await self._synced():
                    return None
            except BudgetExceeded as error:
                raise _exceeded(error) from None
            except PriceUnknown:
                raise
            except Conflict:
                return None
            except (TimeoutError, Unavailable, Unauthenticated):
                self._silent_until_ms = self._opened.now_ms() + SILENT_MS
                return None
        return None

    async def _told(self, held: Held) -> bool:
        """Say whether the hub knows the caps as they are here, which it counts against."""
        keys = [(AGENTS.name, held.agent_id), (MISSIONS.name, held.mission_id)]
        try:
            book = self._opened.in_space(held.space_id).book
        except NotFound:
            return False
        return not await book.waits(keys) or (await self._synced() and not await book.waits(keys))

    async def _synced(self) -> bool:
        try:
            await self._opened.book.sync_now()
        except (Unavailable, Unauthenticated):
            return False
        return True

    async def _report(self, name: str) -> None:
        """Settle what is over at the hub; raise what it says against it."""
        async with self._reporting:
            held = _read(await self._opened.book.kept(KEPT)).get(name)
            if held is None:
                return
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if held.reservation or held.made:
                        await self._settled(held)
            except (TimeoutError, Unavailable, Unauthenticated):
                self._silent_until_ms = self._opened.now_ms() + SILENT_MS
                return
            await self._change(_dropping(name))
            self.moved()

    async def _settled(self, held: Held) -> None:
        hub, place = self._opened.hub, (held.space_id, held.mission_id)
        if not held.reservation:
            wanted = ReserveTokens(
                agent_id=held.agent_id,
                tokens=held.prompt + held.completion,
                tokens_min=0,
                prompt_price=held.prompt_price,
                completion_price=held.completion_price,
            )
            got = await hub.reserve_tokens(*place, wanted)
            held = replace(held, reservation=got.reservation_id, tokens=got.tokens)
            await self._change(_putting(held))
        used = SettleTokens(
            prompt_tokens=held.prompt,
            completion_tokens=held.completion,
            model_calls=held.made,
            unconfirmed_prompt_tokens=held.open_prompt,
            unconfirmed_completion_tokens=held.open_completion,
        )
        await hub.settle_tokens(*place, held.reservation, used)

    def _is_silent(self) -> bool:
        now_ms = self._opened.now_ms()
        return now_ms < self._silent_until_ms <= now_ms + SILENT_MS

    async def _change(self, change: Callable[[dict[str, Held]], _T]) -> _T:
        def work(before: Json) -> tuple[Json, _T]:
            all_held = _read(before)
            answer = change(all_held)
            return [asdict(held) for held in all_held.values()], answer

        return await self._opened.book.keep_changed(KEPT, work)


class RunBudget:
    """The budget of one run; what it counted is known when it has ended.

    Of `tokens` and `cost` the unconfirmed ones are the worst case of calls whose model never said.
    """

    def __init__(self, budgets: Budgets, purse: Purse) -> None:
        self._budgets = budgets
        self._purse = purse
        self._calls: dict[str, tuple[int, int, ModelCall]] = {}
        self.tokens = 0
        self.cost = 0
        self.unconfirmed_tokens = 0
        self.unconfirmed_cost = 0

    async def reserve(
        self, prompt_tokens: int, completion_tokens_max: int, call: ModelCall
    ) -> Reservation:
        """Reserve the worst case of one call; raise BudgetExceeded or PriceUnknown."""
        got = await self._budgets.reserve(self._purse, prompt_tokens, completion_tokens_max, call)
        self._calls[got.id] = (prompt_tokens, got.completion_tokens_max, call)
        return got

    async def settle(self, reservation: str, usage: Usage | None) -> None:
        """Replace a reservation by what was used; what cannot be true counts it in full."""
        await self._settle(reservation, usage, tell=True)

    async def release(self, reservation: str) -> None:
        """Give a reservation back, as no model worked on its call."""
        await self._settle(reservation, Usage(), tell=True)

    async def _settle(self, reservation: str, usage: Usage | None, *, tell: bool) -> None:
        prompt, completion, call = self._calls.pop(reservation)
        used = _sane(usage) or Usage(prompt, completion)
        cost = 0
        if call.price is not None:
            cost = call.price.cost(used.prompt_tokens, used.completion_tokens)
        self.tokens += used.total
        self.cost += cost
        if _sane(usage) is None:
            self.unconfirmed_tokens += used.total
            self.unconfirmed_cost += cost
        await self._budgets.settle(reservation, usage, tell=tell)

    async def end(self) -> None:
        """Count in full the calls that were cut off; the hub is told later."""
        for reservation in builtins.list(self._calls):
            await self._settle(reservation, None, tell=False)


def _nothing() -> None:
    return None


def _sane(usage: Usage | None) -> Usage | None:
    """Return a usage that can be numbers of tokens."""
    return None if usage is None or counted_tokens(usage, -1) < 0 else usage


def _covers(reserved: Price | None, wanted: Price | None) -> bool:
    """Say whether tokens that were reserved at one price may be spent at another."""
    if reserved is None or wanted is None:
        return reserved is None and wanted is None
    return wanted.prompt <= reserved.prompt and wanted.completion <= reserved.completion


def _with_call(all_held: dict[str, Held], name: str) -> Held | None:
    return next((held for held in all_held.values() if name in held.calls), None)


def _putting(held: Held) -> Callable[[dict[str, Held]], None]:
    return lambda all_held: all_held.update({held.id: held})


def _dropping(name: str) -> Callable[[dict[str, Held]], None]:
    def change(all_held: dict[str, Held]) -> None:
        all_held.pop(name, None)

    return change


def _ending_slices(now_ms: int) -> Callable[[dict[str, Held]], None]:
    def change(all_held: dict[str, Held]) -> None:
        for held in builtins.list(all_held.values()):
            if held.slice and not held.calls and not 0 <= now_ms - held.at_ms <= SLICE_LIFE_MS:
                all_held[held.id] = replace(held, over=True)

    return change


def _exceeded(error: BudgetExceeded) -> BudgetExceeded:
    """Return the hub's refusal with its numbers, which travel in the detail."""
    match error.detail:
        case {"left": int(left), "cap": int(cap), "scope": str(scope), "unit": "tokens" | "cost" as unit}:  # fmt: skip
            if scope in CAP_SCOPES:
                return BudgetExceeded(left=left, cap=cap, scope=scope, unit=unit)  # type: ignore[arg-type]
    return BudgetExceeded(left=0, cap=0)


def _read(kept: Json) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for item in kept if isinstance(kept, list) else []:
        try:
            held = msgspec.convert(item, Held)
        except msgspec.ValidationError:
            continue
        found[held.id] = held
    return found
