"""The way between devices and the hub: it loses, delays, doubles and reorders what it carries.

What befalls a request is drawn from the seed, the device and the number of its request, so that a
schedule from which an operation was taken out meets the same weather otherwise.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import httpx

from mana.testing.simulator.loop import Killed, current_process

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class HubRequest:
    """A request as the hub gets it. `target` is path and query."""

    method: str
    target: str
    token: str
    body: bytes


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """The hub's answer."""

    status: int
    body: bytes


class Backend(Protocol):
    """A hub: what it takes in is kept when `handle` returns, or not at all."""

    def handle(self, request: HubRequest, *, crash: bool = False) -> HubAnswer | None:
        """Answer a request; None: the hub died before it committed (`crash`)."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How often something happens to a request, from 0 to 1; `delay_s` is a mean.

    Unless more is said, everything arrives.
    """

    delay_s: float = 0.05
    lost: float = 0.0
    late: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    crash_before: float = 0.0
    crash_after: float = 0.0


@dataclass
class Network:
    """One hub, its clock, and the weather around it."""

    backend: Backend
    seed: str
    now_ms: Callable[[], int]
    say: Callable[[str], None]
    weather: Weather = field(default_factory=Weather)
    hub_down_until_ms: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    wandering_until_s: float = 0.0
    """When the last request arrives that wanders about although nobody waits for it."""

    def transport(self, device: str, is_online: Callable[[], bool]) -> httpx.AsyncBaseTransport:
        """Return a device's way to the hub."""
        return _Transport(self, device, is_online)

    async def carry(
        self, device: str, request: HubRequest, is_online: Callable[[], bool]
    ) -> HubAnswer:
        """Carry a request there and its answer back; raise what httpx would."""
        number = self.sent[device] = self.sent.get(device, 0) + 1
        fate = random.Random(f"{self.seed} {device} {number}")
        weather = self.weather
        label = f"{device}#{number} {request.method} {_short(request.target)}"
        await self._pause(fate.expovariate(1 / weather.delay_s))
        if not is_online():
            self.say(f"{label}: offline")
            raise httpx.ConnectError("offline")
        if fate.random() < weather.doubled:
            for _ in range(fate.choice((1, 1, 2))):
                self._wander(label, request, fate.choice((0.1, 10.0, 3_600.0)) * fate.random())
        if fate.random() < weather.lost:
            self.say(f"{label}: lost")
            await self._pause(fate.choice((0.5, TIMEOUT_S)))
            raise httpx.ConnectTimeout("lost")
        if fate.random() < weather.late:
            self._wander(label, request, TIMEOUT_S + fate.expovariate(1 / 3_600.0))
            await self._pause(TIMEOUT_S)
            raise httpx.ReadTimeout("late")
        answer = self._arrive(label, request, fate)
        await self._pause(fate.expovariate(1 / weather.delay_s))
        if answer is None:
            raise httpx.ReadError("the hub died")
        if fate.random() < weather.answer_lost or not is_online():
            self.say(f"{label}: answer lost")
            raise httpx.ReadError("answer lost")
        return answer

    def _arrive(self, label: str, request: HubRequest, fate: random.Random) -> HubAnswer | None:
        if self.now_ms() < self.hub_down_until_ms:
            self.say(f"{label}: hub is down")
            raise httpx.ConnectError("the hub is down")
        dies_before = fate.random() < self.weather.crash_before
        dies_after = fate.random() < self.weather.crash_after
        answer = self.backend.handle(request, crash=dies_before)
        if dies_before or dies_after:
            self.hub_down_until_ms = self.now_ms() + fate.choice((0, 1_000, 60_000))
            self.say(f"{label}: hub dies {'before' if dies_before else 'after'} the commit")
            return None
        if answer is not None:
            self.say(f"{label}: {_word(answer)}")
        return answer

    def _wander(self, label: str, request: HubRequest, after_s: float) -> None:
        """Let a copy of a request arrive later; nobody waits for its answer."""
        loop = asyncio.get_running_loop()
        self.wandering_until_s = max(self.wandering_until_s, loop.time() + after_s)

        def arrive() -> None:
            if self.now_ms() >= self.hub_down_until_ms:
                answer = self.backend.handle(request)
                self.say(f"{label}: again, {_word(answer)}")

        loop.call_later(after_s, arrive)

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        process = current_process()
        if process is not None:
            process.wait(future)
        loop.call_later(seconds, lambda: None if future.done() else future.set_result(None))
        await future


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, network: Network, device: str, is_online: Callable[[], bool]) -> None:
        self._network = network
        self._device = device
        self._is_online = is_online

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        process = current_process()
        if process is not None and process.is_dead:
            raise Killed
        body = await request.aread()
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        target = request.url.raw_path.decode("ascii")
        sent = HubRequest(request.method, target, token, body)
        try:
            answer = await self._network.carry(self._device, sent, self._is_online)
        except httpx.HTTPError as error:
            error.request = request
            raise
        return httpx.Response(answer.status, content=answer.body, request=request)


def _word(answer: HubAnswer | None) -> str:
    if answer is None:
        return "nothing"
    return "ok" if answer.status < 300 else str(answer.status)


def _short(target: str) -> str:
    """Return a path in which ids are cut to what tells them apart."""
    return "/".join(part[:6] if len(part) > 30 else part for part in target.split("/")[3:])
