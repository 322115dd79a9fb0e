"""What the hub says of missions, grants and its runner, remembered for a moment.

A page asks for several lists at once, and offline is normal: the last answer stands until the
hub can be asked again. Nothing here decides; what decides is verified where it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from mana.device.opened import Opened
from mana.device.views import ModelView, RunnerView
from mana.device.words import CURRENCY
from mana.domain.errors import NotFound, Unauthenticated, Unavailable
from mana.planning.ports import Usage
from mana.protocol.messages import (
    GrantInfo,
    MissionsAnswer,
    MissionStatus,
    ModelInfo,
    RunnerInfo,
    UsageAnswer,
    WorkState,
)

FRESH_MS: Final = 2_000
RUNNER_FRESH_MS: Final = 60_000
OFFLINE_MS: Final = 10_000
QUIET_MS: Final = RUNNER_FRESH_MS
PATIENCE_S: Final = 5.0
PATIENCE_KEPT_S: Final = 2.0
"""How long to wait where an earlier answer can stand in."""

T = TypeVar("T")


@dataclass
class _Kept(Generic[T]):
    """The last answer to one question; `value` is None until there was one."""

    value: T | None = None
    due_ms: int | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Used(Protocol):
    """What was used for an agent: tokens, and millionths of the currency."""

    @property
    def agent_id(self) -> str:
        """Return the agent."""

    @property
    def counted(self) -> int:
        """Return tokens, the worst case of calls under way among them."""

    @property
    def cost_counted(self) -> int:
        """Return what they cost."""

    @property
    def unconfirmed(self) -> Usage:
        """Return what of the tokens no model has said."""

    @property
    def cost_unconfirmed(self) -> int:
        """Return what those cost."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens, what they cost in millionths, and how much of both no model has said."""

    tokens: int = 0
    cost: int = 0
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


class HubNews:
    """Answers of the hub, kept for two seconds, or until something says that they moved."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._missions: _Kept[MissionsAnswer] = _Kept()
        self._grants: _Kept[list[GrantInfo]] = _Kept()
        self._runner: _Kept[RunnerInfo] = _Kept()
        self._usage: dict[int, _Kept[UsageAnswer]] = {}
        self._silent_until_ms = 0
        self.used_here: Callable[[], Awaitable[Sequence[Used]]] = _none
        """What runs on this device used in 24 hours and the hub was not told of yet."""

    def moved(self) -> None:
        """Ask again at the next question."""
        self._missions.due_ms = self._grants.due_ms = None
        for kept in self._usage.values():
            kept.due_ms = None

    async def mission(self, mission_id: str) -> MissionStatus | None:
        """Return what the hub knows of a mission; None if it said nothing of it."""
        return (await self.missions()).get(mission_id)

    async def missions(self) -> dict[str, MissionStatus]:
        """Return what the hub knows of each mission."""
        answer = await self._ask(self._missions, self._opened.hub.missions, FRESH_MS)
        return {one.mission_id: one for one in answer.missions} if answer is not None else {}

    async def work(self) -> WorkState | None:
        """Return whether the hub works for the account, and its caps; None if it never said."""
        answer = await self._ask(self._missions, self._opened.hub.missions, FRESH_MS)
        return answer.work if answer is not None else None

    async def currency(self) -> str:
        """Return the hub's currency; the usual one as long as it has not said."""
        said = await self.work()
        return said.currency if said is not None else CURRENCY

    async def used_today(self) -> dict[str, Spent]:
        """Return what was used in 24 hours by agent, on the hub and here."""
        answer = await self._ask(self._missions, self._opened.hub.missions, FRESH_MS)
        used: dict[str, Spent] = {}
        if answer is not None:
            for agent_id in {*answer.tokens_today, *answer.cost_today}:
                used[agent_id] = Spent(
                    answer.tokens_today.get(agent_id, 0),
                    answer.cost_today.get(agent_id, 0),
                    answer.unconfirmed_tokens_today.get(agent_id, 0),
                    answer.unconfirmed_cost_today.get(agent_id, 0),
                )
        for one in await self.used_here():
            known = used.get(one.agent_id, Spent())
            used[one.agent_id] = Spent(
                known.tokens + one.counted,
                known.cost + one.cost_counted,
                known.unconfirmed_tokens + one.unconfirmed.total,
                known.unconfirmed_cost + one.cost_unconfirmed,
            )
        return used

    async def usage(self, days: int) -> UsageAnswer | None:
        """Return the hub's ledger of so many days, or its last answer; None if there was none."""
        kept = self._usage.setdefault(days, _Kept())
        return await self._ask(kept, lambda: self._opened.hub.usage(days), FRESH_MS)

    async def grants(self) -> list[GrantInfo]:
        """Return the register's grants of this account, newest first."""
        return await self._ask(self._grants, self._opened.hub.grants, FRESH_MS) or []

    async def runner(self) -> RunnerView | None:
        """Return the hub's runner, for the status line; the consent asks anew."""
        info = await self.runner_info()
        if info is None:
            return None
        return RunnerView(info.key_id, info.fingerprint, model_views(info.models))

    async def runner_info(self) -> RunnerInfo | None:
        """Return the hub's runner as the hub tells of it; None if it never did."""
        return await self._ask(self._runner, self._opened.hub.runner, RUNNER_FRESH_MS)

    async def _ask(
        self, kept: _Kept[T], question: Callable[[], Awaitable[T]], fresh_ms: int
    ) -> T | None:
        async with kept.asking:
            now_ms = self._opened.now_ms()
            if now_ms < self._silent_until_ms <= now_ms + OFFLINE_MS:
                return kept.value
            if kept.due_ms is None or not now_ms < kept.due_ms <= now_ms + QUIET_MS:
                try:
                    async with asyncio.timeout(
                        PATIENCE_S if kept.value is None else PATIENCE_KEPT_S
                    ):
                        kept.value = await question()
                    kept.due_ms = now_ms + fresh_ms
                except (Unauthenticated, NotFound):
                    kept.due_ms = now_ms + OFFLINE_MS
                except TimeoutError:
                    # A hub that is silent to one question is so to all: one wait, not three.
                    kept.due_ms = self._silent_until_ms = self._opened.now_ms() + OFFLINE_MS
                except Unavailable:
                    # A page must not wait again and again for a hub that is not there.
                    kept.due_ms = now_ms + OFFLINE_MS
            return kept.value


async def _none() -> Sequence[Used]:
    return ()


def model_views(models: Iterable[ModelInfo]) -> tuple[ModelView, ...]:
    """Return models as people see them, in their order."""
    return tuple(
        ModelView(
            one.endpoint,
            one.model,
            one.description,
            one.local,
            one.alias,
            prompt_price=one.prompt_price,
            completion_price=one.completion_price,
            context_tokens=one.context_tokens,
        )
        for one in models
    )
