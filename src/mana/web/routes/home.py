"""The scene: notes and tasks as cards, each at its most useful."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import NotFound
from mana.web.routes.notes import sorted_notes
from mana.web.routes.tasks import task_lists
from mana.web.visits import Named, Page, Visit, Visiting, record_id, text_of
from mana.web.words import t


async def home_page(visit: Visit) -> Page:
    """Return the scene."""
    device = visit.device
    still_open, done = task_lists(await device.list("tasks"))
    return await visit.page(
        "home.html",
        notes=sorted_notes(await device.list("notes")),
        tasks=still_open,
        done=done,
        missions=[one for one in await device.missions() if one.state == "active"],
    )


@get("/")
async def scene(visit: Visiting) -> Page:
    """Show the scene of the space that the address names."""
    return await home_page(visit)


@post("/all-work/stop")
async def stop_work(visit: Visiting) -> Page:
    """Stop every mission of the account, here at once and everywhere as soon as it is heard."""
    form = await visit.form()
    stopped = await visit.device.stop_work()
    said = t("All work is stopped.")
    if not stopped.hub_told:
        said = t("All work is stopped here. The hub is told as soon as it can be reached.")
    return visit.go(visit.back(form, "/"), said)


@post("/all-work/start")
async def start_work(visit: Visiting) -> Page:
    """Let missions run again, everywhere."""
    form = await visit.form()
    going = await visit.device.start_work()
    said = t("Missions run again, as planned.")
    if not going.hub_told:
        said = t("Missions run again here. The hub is told as soon as it can be reached.")
    return visit.go(visit.back(form, "/"), said)


@post("/all-work/hub")
async def accept_hub(visit: Visiting) -> Page:
    """Take the hub for another than it was, because whoever runs it says so."""
    form = await visit.form()
    await visit.device.accept_hub(text_of(form, "hub"))
    said = t("What you sign is for this hub from now on.")
    return visit.go(visit.back(form, "/"), said)


@get("/menu")
async def menu(visit: Visiting) -> Page:
    """Show the parts that have no place in a phone's bottom bar."""
    return await visit.page("menu.html")


@get("/peek/{table:str}/{wanted:str}")
async def peek(visit: Visiting, table: Named, wanted: Named) -> Page:
    """Show a record that a proposal cites, beside it."""
    if table not in ("notes", "tasks"):
        raise NotFound("records of this table are not shown")
    found = await visit.device.get(table, record_id(wanted))
    return visit.rendered("peek.html", 200, {"record": found})


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    stop_work,
    start_work,
    accept_hub,
    menu,
    peek,
)
