"""What can be asked of the page, one file per part of it."""

from __future__ import annotations

from typing import Final

from litestar.types import ControllerRouterHandler

from mana.web.routes import (
    access,
    agents,
    home,
    inbox,
    live,
    missions,
    notes,
    palette,
    settings,
    tasks,
    timeline,
    welcome,
)

ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    *welcome.ROUTES,
    *home.ROUTES,
    *notes.ROUTES,
    *tasks.ROUTES,
    *inbox.ROUTES,
    *agents.ROUTES,
    *missions.ROUTES,
    *timeline.ROUTES,
    *access.ROUTES,
    *settings.ROUTES,
    *palette.ROUTES,
    *live.ROUTES,
)
