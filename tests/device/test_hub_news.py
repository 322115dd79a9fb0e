"""What the hub says is remembered: a page never waits long, or often, for a silent hub."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mana.device import hub_client, hub_news
from mana.device.errors import Offline
from mana.device.hub_client import HubClient
from mana.device.hub_news import OFFLINE_MS, HubNews

pytestmark = pytest.mark.anyio


class SilentHub:
    """A hub that takes every question and answers none."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def missions(self) -> Any:
        self.asked.append("missions")
        await asyncio.Event().wait()

    async def grants(self) -> Any:
        self.asked.append("grants")
        await asyncio.Event().wait()

    async def runner(self) -> Any:
        self.asked.append("runner")
        await asyncio.Event().wait()


async def test_a_silent_hub_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question without an answer speaks for all, until it is time to ask again."""
    monkeypatch.setattr(hub_news, "PATIENCE_S", 0.01)
    hub, clock = SilentHub(), [1_000_000]
    news = HubNews(SimpleNamespace(hub=hub, now_ms=lambda: clock[0]))  # type: ignore[arg-type]
    for _ in range(2):
        assert (await news.missions(), await news.grants(), await news.runner()) == ({}, [], None)
    assert hub.asked == ["missions"]
    news.moved()
    assert await news.grants() == []
    assert hub.asked == ["missions"]
    clock[0] += OFFLINE_MS
    assert await news.grants() == []
    assert hub.asked == ["missions", "grants"]


async def test_data_access_does_not_wait_for_a_silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings of a hub that says nothing are given up as offline, while somebody looks."""

    async def silent(*_: object, **__: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(hub_client, "AUDIT_PATIENCE_S", 0.01)
    monkeypatch.setattr(HubClient, "_call", silent)
    asking = HubClient("http://hub.invalid")
    with pytest.raises(Offline):
        await asking.audit()
    await asking.close()
