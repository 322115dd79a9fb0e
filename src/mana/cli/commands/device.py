"""`mana device`: the person's side, with the page."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import Final

from mana.cli.lifelines import announcer, stop_event
from mana.cli.places import Places
from mana.device.app import DeviceHost, build
from mana.device.settings import DeviceSettings
from mana.domain.errors import ManaError
from mana.web.app import serve

_log: Final = logging.getLogger("mana.device")


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

    opening = asyncio.create_task(_open_remembered(host))
    try:
        with stop_event(os.environ) as stopping:
            await serve(host, settings, ready=ready, until=stopping.wait())
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await host.close()


async def _open_remembered(host: DeviceHost) -> None:
    """Open what the person lets open by the system's keyring, which may take its time."""
    try:
        await host.open_remembered()
    except ManaError as error:
        _log.warning("an account waits for its password: %s", error.code)
