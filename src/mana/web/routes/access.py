"""Data access: who read what for which mission, and what may still be read."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.web.places import Place
from mana.web.visits import Named, Page, Visit, Visiting, record_id
from mana.web.words import t


@get("/data-access")
async def data_access(visit: Visiting) -> Page:
    """Show readings and grants."""
    asked = visit.request.query_params
    before = asked.get("before", "")
    homes = await _homes(visit)
    found = await visit.device.data_access(
        mission_id=asked.get("mission") or None,
        before=int(before) if before.isascii() and before.isdigit() else None,
    )
    active = [one for one in found.grants if one.state in ("active", "stale")]
    ended = [one for one in found.grants if one.state not in ("active", "stale")]
    return await visit.page("access.html", access=found, active=active, ended=ended, homes=homes)


async def _homes(visit: Visit) -> dict[str, Place]:
    """Return the space of each grant: data access is that of the whole account."""
    return {
        grant.grant_id: place
        for place in await visit.places()
        for grant in await visit.account.in_space(place.space_id).grants()
    }


@post("/grants/{grant_id:str}/revoke")
async def revoke(visit: Visiting, grant_id: Named) -> Page:
    """End a grant for ever."""
    form = await visit.form()
    wanted = record_id(grant_id)
    home = (await _homes(visit)).get(wanted)
    device = visit.device if home is None else visit.account.in_space(home.space_id)
    await device.revoke(wanted)
    return visit.go(visit.back(form, "/data-access"), t("Revoked. The next reading is refused."))


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (data_access, revoke)
