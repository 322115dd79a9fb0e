"""Notices wake, and the connection for them comes back."""

from __future__ import annotations

import asyncio

import pytest

from mana.domain.errors import Invalid
from mana.hub.db import Pool
from mana.testing.postgres import Database, connected

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


async def test_notices_arrive(database: Database) -> None:
    """A listener gets an empty payload when it listens, then each notice."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with Pool(database.app_url) as pool:
        await pool.listen("changes", heard.put_nowait)
        assert await heard.get() == ""
        async with connected(database.owner_url) as owner:
            await owner.execute("notify changes, 'space-1'")
        assert await heard.get() == "space-1"


async def test_listener_comes_back(database: Database) -> None:
    """After the server ended the connection, the listener connects again and says so."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with Pool(database.app_url) as pool:
        await pool.listen("changes", heard.put_nowait)
        assert await heard.get() == ""
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where usename = 'mana_app' and datname = current_database()"
            )
            assert await heard.get() == ""
            await owner.execute("notify changes, 'again'")
        assert await heard.get() == "again"


async def test_close_ends_listening(database: Database) -> None:
    """After `close` the callback is not called any more and nothing is left connected."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with Pool(database.app_url) as pool:
        subscription = await pool.listen("changes", heard.put_nowait)
        await subscription.close()
        await heard.get()
        async with connected(database.owner_url) as owner:
            await owner.execute("notify changes, 'late'")
        assert heard.empty()


async def test_channel_names() -> None:
    """A channel's name cannot carry SQL."""
    with pytest.raises(Invalid):
        await Pool("postgresql://x@/x").listen('a"; drop schema mana; --', lambda _payload: None)
