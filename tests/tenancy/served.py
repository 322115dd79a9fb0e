"""A hub behind a real port, in a thread of its own, for a client that knows no event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from mana.crypto.passwords import HashCost
from mana.hub.app import build, serve
from mana.hub.settings import HubSettings
from mana.testing.accounts import CHEAP
from mana.testing.postgres import Database

START_S = 30.0


@contextlib.contextmanager
def hub_thread(database: Database, home: Path) -> Iterator[str]:
    """Lend the address of a hub that runs until the end."""
    settings = HubSettings(
        home=home,
        database_url=database.app_url,
        kdf_floor=CHEAP,
        hash_cost=HashCost(t=1, m_kib=8, p=1),
        pool_size=4,
    )
    ports: list[int] = []
    failures: list[BaseException] = []
    changed = threading.Event()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def ready(port: int) -> None:
        ports.append(port)
        changed.set()

    async def run() -> None:
        stop = asyncio.Event()
        stops.append((asyncio.get_running_loop(), stop))
        await serve(build(settings), host="127.0.0.1", port=0, ready=ready, stop=stop)

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failures.append(error)
        finally:
            changed.set()

    thread = threading.Thread(target=main, name="hub")
    thread.start()
    try:
        assert changed.wait(START_S)
        assert ports, failures
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        for loop, stop in stops:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
    assert failures == []
