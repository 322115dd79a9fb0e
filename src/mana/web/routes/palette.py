"""The command palette: go, create, run, search, all by a few letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from litestar import get
from litestar.types import ControllerRouterHandler

from mana.web.places import Place
from mana.web.showing import title
from mana.web.visits import Page, Visiting
from mana.web.words import t

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
        Command("shield-check", t("Go to Security"), "/security", everywhere=True),
        Command("monitor", t("Devices and sessions"), "/security/devices", everywhere=True),
        Command("lock-open", t("All grants"), "/security/grants", everywhere=True),
        Command("refresh-cw", t("Sync now"), "/sync", posts=True),
        Command("lock", t("Lock"), "/lock", posts=True),
    ]
    return [one for one in found if here.may_write or one.icon != "plus"]


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
    words = visit.request.query_params.get("q", "").casefold().split()
    device = visit.device
    here = await visit.place()
    commands = _fixed(here) + _to_spaces(await visit.places(), here)
    for mission in await device.missions():
        run = t("Run “{title}” now", title=mission.title)
        if here.may_write:
            commands.append(
                Command("play", run.unescape(), f"/missions/{mission.mission_id}/run", True)
            )
        commands.append(
            Command("target", mission.title, f"/missions/{mission.mission_id}", hint=t("mission"))
        )
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
    return visit.rendered(
        "palette.html", 200, {"commands": shown, "csrf": visit.session.csrf, "path": "/"}
    )


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
