"""What a space lets agents do without asking, and who decided so when."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.device.policies import NotAcknowledged
from mana.registry.catalogue import load_catalogue
from mana.web.visits import Page, Visiting, text_of
from mana.web.words import t


@get("/space/policy")
async def policy(visit: Visiting) -> Page:
    """Show each tool that asks whatever an agent may, and which of them the space lifts."""
    found = await visit.device.space_policy()
    here = await visit.place()
    tools = {tool.name: tool for tool in load_catalogue().tools}
    lifted = {one.tool: one for one in found.lifted}
    return await visit.page(
        "policy.html",
        tools=[tools[name] for name in found.liftable if name in tools],
        lifted=lifted,
        unknown=[one for name, one in lifted.items() if name not in found.liftable],
        history=found.history,
        may_change=found.may_change and not here.left,
    )


@post("/space/policy/lift")
async def lift(visit: Visiting) -> Page:
    """Let agents use a tool here without asking, if the person said that they mean it."""
    form = await visit.form()
    tool = text_of(form, "tool")
    if text_of(form, "acknowledged") != "yes":
        raise NotAcknowledged("the box is not ticked")
    await visit.device.lift(tool, acknowledged=True)
    said = t("Lifted: agents may {tool} here without asking.", tool=tool.replace("_", " "))
    return visit.go(visit.to("/space/policy"), said)


@post("/space/policy/unlift")
async def unlift(visit: Visiting) -> Page:
    """Let agents ask again before each use of a tool."""
    form = await visit.form()
    tool = text_of(form, "tool")
    await visit.device.unlift(tool)
    said = t("Agents ask again before they {tool}.", tool=tool.replace("_", " "))
    return visit.go(visit.to("/space/policy"), said)


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (policy, lift, unlift)
