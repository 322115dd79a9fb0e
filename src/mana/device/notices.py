"""Notices to whoever watches an account: merged for the slow, never all lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mana.device.views import Notice


class Notices:
    """Hands notices to subscribers; each has the topics and tables that it has not heard."""

    def __init__(self) -> None:
        self._waiting: set[_Subscriber] = set()
        self._closed = False

    def say(self, notice: Notice) -> None:
        """Tell everybody."""
        for subscriber in self._waiting:
            subscriber.hear(notice)

    def subscribe(self) -> AsyncIterator[Notice]:
        """Return notices from now on; it ends when the account is locked or closed."""
        subscriber = _Subscriber()
        if self._closed:
            subscriber.end()
        else:
            self._waiting.add(subscriber)
        return self._listen(subscriber)

    def close(self) -> None:
        """End all subscriptions."""
        self._closed = True
        for subscriber in self._waiting:
            subscriber.end()

    async def _listen(self, subscriber: _Subscriber) -> AsyncIterator[Notice]:
        try:
            while (notice := await subscriber.next()) is not None:
                yield notice
        finally:
            self._waiting.discard(subscriber)


class _Subscriber:
    def __init__(self) -> None:
        self._unheard: dict[str, frozenset[str]] = {}
        self._event = asyncio.Event()
        self._ended = False

    def hear(self, notice: Notice) -> None:
        known = self._unheard.get(notice.topic, frozenset())
        self._unheard[notice.topic] = known | notice.tables
        self._event.set()

    def end(self) -> None:
        self._ended = True
        self._event.set()

    async def next(self) -> Notice | None:
        while not self._unheard:
            if self._ended:
                return None
            self._event.clear()
            await self._event.wait()
        topic = next(iter(self._unheard))
        return Notice(topic, self._unheard.pop(topic))
