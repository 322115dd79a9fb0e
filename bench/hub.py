"""A hub of its own process for the measurements; it tells its port as under `mana up`.

The same application and server as `mana hub`; only what a password costs is lowered, so that
accounts for the measurement are made at once.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import uvloop

from mana.cli.lifelines import announcer, stop_event
from mana.crypto.passwords import HashCost
from mana.hub.app import build, serve, settle_memory
from mana.hub.settings import HubSettings
from mana.models.settings import load_models
from mana.testing.accounts import CHEAP


async def run() -> None:
    """Serve until a signal."""
    settings = HubSettings(
        home=Path(os.environ["MANA_HOME"]),
        database_url=os.environ["MANA_APP_DATABASE_URL"],
        models=load_models(Path(os.environ["MANA_HOME"]), os.environ, with_keys=False),
        kdf_floor=CHEAP,
        hash_cost=HashCost(t=1, m_kib=8, p=1),
    )

    announce = announcer(os.environ, "hub")
    with stop_event(os.environ) as stopping:
        hub = build(settings)
        settle_memory()
        await serve(
            hub,
            host="127.0.0.1",
            port=0,
            ready=lambda port: announce({"port": port}),
            stop=stopping,
        )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
