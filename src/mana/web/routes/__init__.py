"""What can be asked of the page, one file per part of it."""

from __future__ import annotations

from typing import Final

from litestar import Router
from litestar.types import ControllerRouterHandler

from mana.web.places import FOLDER
from mana.web.routes import (
    access,
    agents,
    conflicts,
    entry,
    home,
    inbox,
    live,
    missions,
    models,
    notes,
    palette,
    policy,
    security,
    settings,
    spaces,
    tasks,
    timeline,
    usage,
    welcome,
)

IN_SPACE: Final[tuple[ControllerRouterHandler, ...]] = (
    *home.ROUTES,
    *notes.ROUTES,
    *tasks.ROUTES,
    *inbox.ROUTES,
    *agents.ROUTES,
    *missions.ROUTES,
    *timeline.ROUTES,
    *access.ROUTES,
    *spaces.ROUTES,
    *policy.ROUTES,
    *conflicts.ROUTES,
    *settings.ROUTES,
    *models.ROUTES,
    *usage.ROUTES,
    *palette.ROUTES,
)
"""What there is in every space, under its own address; without one, in the personal space."""

ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    *welcome.ROUTES,
    *entry.ROUTES,
    *security.ROUTES,
    *IN_SPACE,
    *live.ROUTES,
    Router(f"{FOLDER}{{space_id:str}}", route_handlers=[home.scene, *IN_SPACE]),
)
