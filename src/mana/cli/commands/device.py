"""`mana device`: the person's side, with the page."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from mana.cli.lifelines import announcer, stop_event
from mana.cli.places import Places
from mana.device.app import build
from mana.device.settings import DeviceSettings
from mana.web.app import serve


def device() -> None:
    """Serve the page of this device; the hub is the one that MANA_HUB_URL names."""
    places = Places.from_env(os.environ)
    places.make_home()
    settings = DeviceSettings.from_env({**os.environ, "MANA_HUB_URL": places.hub_url(os.environ)})
    asyncio.run(_serve(replace(settings, home=places.home)))


async def _serve(settings: DeviceSettings) -> None:
    announce = announcer(os.environ, "device")
    host = build(settings)

    def ready(address: str) -> None:
        announce({"url": address, "demo_url": f"{address}demo/{host.demo_link_token()}"})

    try:
        with stop_event(os.environ) as stopping:
            await serve(host, settings, ready=ready, until=stopping.wait())
    finally:
        await host.close()
