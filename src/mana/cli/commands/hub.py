"""`mana hub`: accounts, spaces, sync, the grant register."""

from __future__ import annotations

import asyncio
import os

import uvloop

from mana.cli.lifelines import announcer, stop_event
from mana.cli.places import Places
from mana.hub.app import build, serve, settle_memory
from mana.hub.schema.store import addresses
from mana.hub.settings import HubSettings


def hub() -> None:
    """Serve the hub on the database that MANA_DATABASE_URL names."""
    places = Places.from_env(os.environ)
    places.make_home()
    settings = HubSettings.from_env(os.environ, database_url=_database(), home=places.home)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


def _database() -> str:
    named = os.environ.get("MANA_APP_DATABASE_URL", "").strip()
    return named or addresses(os.environ).app


async def _serve(settings: HubSettings) -> None:
    announce = announcer(os.environ, "hub")
    with stop_event(os.environ) as stopping:
        built = build(settings)
        settle_memory()
        await serve(
            built,
            host=settings.host,
            port=settings.port,
            ready=lambda port: announce({"url": f"http://{settings.host}:{port}"}),
            stop=stopping,
        )
