"""`mana runner`: works on due missions, as a process of its own."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import structlog

from mana.cli.lifelines import announcer, stop_event
from mana.cli.places import Places
from mana.hub.runner.app import build, serve
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.tracing import tracing_from
from mana.hub.schema.store import addresses
from mana.models.choose import model_infos

_log: Final = structlog.get_logger("mana.runner")


def runner() -> None:
    """Serve the runner on the database that MANA_DATABASE_URL names."""
    places = Places.from_env(os.environ)
    places.make_home()
    named = os.environ.get("MANA_RUNNER_DATABASE_URL", "").strip()
    settings = RunnerSettings.from_env(
        os.environ, database_url=named or addresses(os.environ).runner, home=places.home
    )
    asyncio.run(_serve(settings))


async def _serve(settings: RunnerSettings) -> None:
    announce = announcer(os.environ, "runner")
    models = model_infos(settings.models)
    for model in models:
        # Where text will go is said in the log too, before any could go there.
        _log.info(
            "model",
            alias=model.alias,
            name=model.model,
            endpoint=model.endpoint,
            what=model.description,
        )
    with stop_event(os.environ) as stopping:
        await serve(
            build(settings, tracing=tracing_from(os.environ)),
            ready=lambda port: announce(
                {"url": f"http://{settings.host}:{port}", "model": models[0].description}
            ),
            stop=stopping,
        )
