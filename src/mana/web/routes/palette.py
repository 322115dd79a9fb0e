"""The command palette: go, create, run, search, all by a few letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from litestar import get
from litestar.types import ControllerRouterHandler

from mana.domain.occurrences import ERRORED
from mana.web.places import Place
from mana.web.running import at_work, waiting
from mana.web.showing import title
from mana.web.visits import Page, Visiting
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.views import MissionView

SHOWN_MAX: Final = 12
RECORDS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the palette: a page to go to, or a post to make."""

    icon: str
    text: str
    path: str
    posts: bool = False
    hint: str = ""
    everywhere: bool = False


def _fixed(here: Place) -> list[Command]:
    """Return what can always be done in a space; what its role does not let write is left out."""
    found = [
        Command("house", t("Go to Home"), "/"),
        Command("inbox", t("Go to Inbox"), "/inbox"),
        Command("notebook-text", t("Go to Notes"), "/notes"),
        Command("list-todo", t("Go to Tasks"), "/tasks"),
        Command("target", t("Go to Missions"), "/missions"),
        Command("bot", t("Go to Agents"), "/agents"),
        Command("history", t("Go to Timeline"), "/timeline"),
        Command("eye", t("Go to Data access"), "/data-access"),
        Command("settings", t("Go to Settings"), "/settings"),
        Command("plus", t("Write a note"), "/notes/new"),
        Command("plus", t("Add a task"), "/tasks#new-task"),
        Command("plus", t("Create a mission"), "/missions/new"),
        Command("plus", t("Create an agent"), "/agents/new"),
        Command("users", t("Go to Spaces"), "/spaces"),
        Command("users", t("Create a space"), "/spaces/new"),
        Command("users", t("Join a space by a link"), "/join"),
        Command("chart-column", t("Go to Usage and caps"), "/usage"),
        Command("cpu", t("Models"), "/settings#model"),
        Command("cpu", t("Add a model of your own"), "/settings/models/new"),
        Command("mail", t("Letters"), "/settings#letters"),
        Command("shield-check", t("Go to Security"), "/security", everywhere=True),
        Command("monitor", t("Devices and sessions"), "/security/devices", everywhere=True),
        Command("lock-open", t("All grants"), "/security/grants", everywhere=True),
        Command("refresh-cw", t("Sync now"), "/sync", posts=True),
        Command("lock", t("Lock"), "/lock", posts=True),
    ]
    return [one for one in found if here.may_write or one.icon != "plus"]


def _of_work(is_stopped: bool) -> Command:
    """Return the one switch for all work."""
    if is_stopped:
        return Command(
            "play", t("Let all work go on"), "/all-work/start", posts=True, everywhere=True
        )
    return Command("octagon-x", t("Stop all work"), "/all-work/stop", posts=True, everywhere=True)


def _of_mission(mission: MissionView, here: Place) -> list[Command]:
    """Return what can be done with a mission."""
    path = f"/missions/{mission.mission_id}"
    found = [Command("target", mission.title, path, hint=t("mission"))]
    if not here.may_write:
        return found
    if mission.hold == ERRORED:
        resume = t("Resume “{title}”", title=mission.title).unescape()
        return [Command("play", resume, f"{path}/resume", posts=True), *found]
    if at_work(mission.runs) or waiting(mission.runs):
        stop = t("Stop “{title}”", title=mission.title).unescape()
        found.insert(0, Command("square", stop, f"{path}/stop", posts=True))
    run = t("Run “{title}” now", title=mission.title).unescape()
    return [Command("play", run, f"{path}/run", posts=True), *found]


def _to_spaces(spaces: list[Place], here: Place) -> list[Command]:
    found = []
    for one in spaces:
        if one.space_id != here.space_id:
            text = t("Switch to {space}", space=one.name).unescape()
            found.append(Command("users", text, one.at or "/", everywhere=True))
    return found


@get("/palette")
async def palette(visit: Visiting) -> Page:
    """Return the commands and records in whose text every typed word stands."""
    typed = visit.request.query_params.get("q", "")
    words = typed.casefold().split()
    device = visit.device
    here = await visit.place()
    commands = _fixed(here) + _to_spaces(await visit.places(), here)
    commands.append(_of_work((await device.work_state()).stopped_ms is not None))
    for mission in await device.missions():
        commands += _of_mission(mission, here)
    for agent in await device.agents():
        commands.append(Command("bot", agent.name, f"/agents/{agent.agent_id}", hint=t("agent")))
    found_commands = [one for one in commands if _matches(one.text, words)]
    shown = sorted(found_commands, key=lambda one: _rank(one.text, words))[:SHOWN_MAX]
    if words:
        for table, named, hint in (
            ("notes", "notebook-text", "note"),
            ("tasks", "list-todo", "task"),
        ):
            found = [
                view
                for view in await device.list(table)
                if _matches(f"{view.text('title')}\n{view.text('content')}", words)
            ]
            shown += [
                Command(named, title(view), f"/{table}/{view.id}", hint=t(hint))
                for view in found[:RECORDS_MAX]
            ]
    values = {"commands": shown, "words": typed, "csrf": visit.session.csrf, "path": "/"}
    return visit.rendered("palette.html", 200, values)


def _matches(text: str, words: list[str]) -> bool:
    folded = text.casefold()
    return all(word in folded for word in words)


def _rank(text: str, words: list[str]) -> int:
    """Return how far a text is from what was typed: begins so, has words that do, holds it."""
    folded = text.casefold()
    if folded.startswith(" ".join(words)):
        return 0
    parts = folded.split()
    return 1 if all(any(part.startswith(word) for part in parts) for word in words) else 2


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (palette,)
