"""Conflicts: what this person wrote and something newer replaced, to look at and to restore."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.web.visits import Named, Page, Visiting
from mana.web.words import t

SHOWN_MAX: Final = 8
"""How many are shown at once: more would be scrolled over, not looked at."""


@get("/conflicts")
async def conflicts(visit: Visiting) -> Page:
    """Show what was written here beside what stands now, newest first."""
    found = await visit.account.conflicts()
    return await visit.page(
        "conflicts.html", conflicts=found[:SHOWN_MAX], more=max(0, len(found) - SHOWN_MAX)
    )


@post("/conflicts/{conflict_id:str}/restore")
async def restore_conflict(visit: Visiting, conflict_id: Named) -> Page:
    """Write again what was replaced."""
    await visit.account.restore_conflict(conflict_id)
    return visit.go(visit.to("/conflicts"), t("What you wrote stands again."))


@post("/conflicts/{conflict_id:str}/dismiss")
async def dismiss_conflict(visit: Visiting, conflict_id: Named) -> Page:
    """Leave the newer edit as it stands."""
    await visit.account.dismiss_conflict(conflict_id)
    return visit.go(visit.to("/conflicts"), t("The newer edit stays."))


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    conflicts,
    restore_conflict,
    dismiss_conflict,
)
