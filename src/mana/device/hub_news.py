"""What the hub says of missions, grants and its runner, remembered for a moment.

A page asks for several lists at once, and offline is normal: the last answer stands until the
hub can be asked again. Nothing here decides; what decides is verified where it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from mana.device.opened import Opened
from mana.device.views import ModelView, RunnerView
from mana.domain.errors import NotFound, Unauthenticated, Unavailable
from mana.protocol.messages import GrantInfo, MissionsAnswer, MissionStatus, RunnerInfo

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


class HubNews:
    """Answers of the hub, kept for two seconds, or until something says that they moved."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._missions: _Kept[MissionsAnswer] = _Kept()
        self._grants: _Kept[list[GrantInfo]] = _Kept()
        self._runner: _Kept[RunnerInfo] = _Kept()
        self._silent_until_ms = 0
        self.tokens_here: Callable[[], Awaitable[dict[str, int]]] = _none
        """Tokens that runs on this device used in 24 hours, by agent."""

    def moved(self) -> None:
        """Ask again at the next question."""
        self._missions.due_ms = self._grants.due_ms = None

    async def mission(self, mission_id: str) -> MissionStatus | None:
        """Return what the hub knows of a mission; None if it said nothing of it."""
        return (await self.missions()).get(mission_id)

    async def missions(self) -> dict[str, MissionStatus]:
        """Return what the hub knows of each mission."""
        answer = await self._ask(self._missions, self._opened.hub.missions, FRESH_MS)
        return {one.mission_id: one for one in answer.missions} if answer is not None else {}

    async def tokens_today(self) -> dict[str, int]:
        """Return tokens used in 24 hours by agent, on the hub and here."""
        answer = await self._ask(self._missions, self._opened.hub.missions, FRESH_MS)
        used = dict(answer.tokens_today) if answer is not None else {}
        for agent_id, tokens in (await self.tokens_here()).items():
            used[agent_id] = used.get(agent_id, 0) + tokens
        return used

    async def grants(self) -> list[GrantInfo]:
        """Return the register's grants of this account, newest first."""
        return await self._ask(self._grants, self._opened.hub.grants, FRESH_MS) or []

    async def runner(self) -> RunnerView | None:
        """Return the hub's runner, for the status line; the consent asks anew."""
        info = await self._ask(self._runner, self._opened.hub.runner, RUNNER_FRESH_MS)
        if info is None:
            return None
        return RunnerView(info.key_id, info.fingerprint, model_views(info))

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


async def _none() -> dict[str, int]:
    return {}


def model_views(info: RunnerInfo) -> tuple[ModelView, ...]:
    """Return the runner's models, for people."""
    return tuple(
        ModelView(one.endpoint, one.model, one.description, one.local) for one in info.models
    )
