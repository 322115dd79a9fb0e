"""Agents: their portraits, what they remember and what they may do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.device.views import MissionView, RejectedFor
from mana.domain.errors import Invalid
from mana.domain.policy import DECISIONS, EFFECTS, PRESETS, Decision, Policy
from mana.domain.tools import PROPOSE_MEMORY, TASK, Effect
from mana.registry.catalogue import load_catalogue
from mana.web.amounts import amount_of
from mana.web.running import raises, saved_words
from mana.web.visits import Named, Page, Visit, Visiting, record_id, text_of
from mana.web.words import t

TOKENS_MAX: Final = 1_000_000_000
MISSIONS_MAX: Final = 50
AT_ONCE_MAX: Final = 100
SAID_MAX: Final = 5


@get("/agents")
async def agents(visit: Visiting) -> Page:
    """List the agents."""
    return await visit.page("agents.html", agents=await visit.device.agents())


@get("/agents/new")
async def new_agent(visit: Visiting) -> Page:
    """Show the form of a new agent."""
    await visit.require_writer()
    device = visit.device
    return await visit.page(
        "agent_new.html",
        models=await device.model_choices(),
        currency=(await device.work_state()).currency,
    )


@get("/agents/{agent_id:str}")
async def agent(visit: Visiting, agent_id: Named) -> Page:
    """Show an agent's portrait."""
    device = visit.device
    found = await device.agent(record_id(agent_id))
    missions = [one for one in await device.missions() if one.agent_id == found.agent_id]
    waiting = [one for one in await device.inbox() if one.agent_id == found.agent_id]
    return await visit.page(
        "agent.html",
        agent=found,
        missions=missions,
        running=[one for one in missions if one.phase],
        waiting=waiting,
        remembering=[one for one in waiting if one.tool == PROPOSE_MEMORY],
        presets=tuple(PRESETS),
        tools=load_catalogue().tools,
        effects=EFFECTS,
        decisions=DECISIONS,
        acceptance=await device.acceptance(found.agent_id),
        reasons=await _rejections(visit, missions),
        models=await device.model_choices(),
        currency=(await device.work_state()).currency,
    )


async def _rejections(visit: Visit, missions: Sequence[MissionView]) -> list[RejectedFor]:
    """Return for which reasons an agent's proposals were rejected, over all of its missions."""
    by_reason: dict[str, list[RejectedFor]] = {}
    for mission in missions[:MISSIONS_MAX]:
        for one in await visit.device.rejections(mission.mission_id):
            by_reason.setdefault(one.reason, []).append(one)
    found = [
        RejectedFor(
            reason,
            sum(one.count for one in group),
            max(one.newest_ms for one in group),
            tuple(said for one in group for said in one.said)[:SAID_MAX],
        )
        for reason, group in by_reason.items()
    ]
    return sorted(found, key=lambda one: (-one.count, -one.newest_ms))


@post("/agents")
async def create_agent(visit: Visiting) -> Page:
    """Create an agent."""
    form = await visit.form()
    new_id = await visit.device.create_agent(
        _name(form),
        role=text_of(form, "role").strip(),
        avatar=text_of(form, "avatar").strip(),
        system_prompt=text_of(form, "system_prompt").strip(),
        preset=text_of(form, "preset") or "standard",
        tokens_per_day_max=_tokens(form),
        cost_per_day_max=amount_of(text_of(form, "cost_per_day_max")),
        model=text_of(form, "model"),
    )
    return visit.go(visit.to(f"/agents/{new_id}"), t("The agent is there. Give it a mission."))


@post("/agents/{agent_id:str}")
async def save_agent(visit: Visiting, agent_id: Named) -> Page:
    """Write who an agent is and its budget."""
    form, device = await visit.form(), visit.device
    found = await device.agent(record_id(agent_id))
    tokens, cost = _tokens(form), amount_of(text_of(form, "cost_per_day_max"))
    await device.edit_agent(
        found.agent_id,
        name=_name(form),
        avatar=text_of(form, "avatar").strip(),
        role=text_of(form, "role").strip(),
        system_prompt=text_of(form, "system_prompt").strip(),
        tokens_per_day_max=tokens,
        cost_per_day_max=cost,
        concurrent_max=_at_once(form),
        model=text_of(form, "model"),
    )
    is_raised = raises((tokens, cost), (found.tokens_per_day_max, found.cost_per_day_max))
    theirs = [one for one in await device.missions() if one.agent_id == found.agent_id]
    said = saved_words(theirs if is_raised else [])
    return visit.go(visit.to(f"/agents/{agent_id}"), said)


@post("/agents/{agent_id:str}/memory")
async def save_memory(visit: Visiting, agent_id: Named) -> Page:
    """Write what an agent remembers."""
    form = await visit.form()
    await visit.device.edit_agent(record_id(agent_id), memory=text_of(form, "memory"))
    return visit.go(visit.to(f"/agents/{agent_id}"), t("Its memory is saved."))


@post("/agents/{agent_id:str}/preset")
async def choose_preset(visit: Visiting, agent_id: Named) -> Page:
    """Give an agent a preset's policy."""
    form = await visit.form()
    await visit.device.edit_agent(record_id(agent_id), preset=text_of(form, "preset"))
    return visit.go(visit.to(f"/agents/{agent_id}"), t("What it may do is saved."))


@post("/agents/{agent_id:str}/policy")
async def save_policy(visit: Visiting, agent_id: Named) -> Page:
    """Write an agent's policy, effect by effect and tool by tool."""
    form = await visit.form()
    by_effect: dict[Effect, Decision] = {}
    for effect in EFFECTS:
        by_effect[effect] = _decision(text_of(form, f"effect-{effect}"))
    by_tool: dict[str, Decision] = {}
    for name in (TASK, *(tool.name for tool in load_catalogue().tools)):
        chosen = text_of(form, f"tool-{name}")
        if chosen:
            by_tool[name] = _decision(chosen)
    await visit.device.edit_agent(record_id(agent_id), policy=Policy(by_effect, by_tool))
    return visit.go(visit.to(f"/agents/{agent_id}"), t("What it may do is saved."))


@post("/agents/{agent_id:str}/state")
async def set_state(visit: Visiting, agent_id: Named) -> Page:
    """Pause an agent, let it go on, or put it away."""
    form = await visit.form()
    wanted = text_of(form, "state")
    if wanted == "active":
        await visit.device.edit_agent(record_id(agent_id), state="active")
        said = t("It may work again.")
    elif wanted == "paused":
        await visit.device.edit_agent(record_id(agent_id), state="paused")
        said = t("Paused. Nothing of it runs; what it proposed still waits for you.")
    elif wanted == "archived":
        await visit.device.edit_agent(record_id(agent_id), state="archived")
        said = t("Archived. Nothing happens in its name any more.")
    else:
        raise Invalid("an agent is active, paused or archived")
    return visit.go(visit.to(f"/agents/{agent_id}"), said)


def _name(form: FormMultiDict) -> str:
    named = text_of(form, "name").strip()
    if not named:
        raise Invalid("an agent needs a name")
    return named


def _tokens(form: FormMultiDict) -> int | None:
    typed = text_of(form, "tokens_per_day_max").replace(",", "").strip()
    if not typed:
        return None
    if not typed.isascii() or not typed.isdigit() or int(typed) > TOKENS_MAX:
        raise Invalid("a budget is a whole number of tokens, or empty for none")
    return int(typed)


def _at_once(form: FormMultiDict) -> int:
    typed = text_of(form, "concurrent_max").strip() or "1"
    is_number = typed.isascii() and typed.isdigit() and len(typed) <= len(str(AT_ONCE_MAX))
    if not is_number or not 1 <= int(typed) <= AT_ONCE_MAX:
        raise Invalid(f"an agent works on 1 to {AT_ONCE_MAX} missions at once")
    return int(typed)


def _decision(text: str) -> Decision:
    if text not in DECISIONS:
        raise Invalid("a decision is auto, propose or deny")
    return cast(Decision, text)


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    agents,
    new_agent,
    agent,
    create_agent,
    save_agent,
    save_memory,
    choose_preset,
    save_policy,
    set_state,
)
