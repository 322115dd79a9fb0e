"""`mana agent`: who works for the person, and what each may do."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mana.cli.caps import (
    CostOption,
    TokensOption,
    currency_of,
    optional_cost,
    optional_tokens,
    used_words,
)
from mana.cli.commands.model import chosen_model
from mana.cli.naming import resolve, shorts
from mana.cli.opening import on_account
from mana.cli.output import Answer, Block, Facts, Line, Rows
from mana.cli.spaces import option
from mana.cli.text import agent_words, counted, one_line
from mana.device import names
from mana.device.desk import Device
from mana.device.names import called, tool_words
from mana.device.views import AcceptRate, AgentView
from mana.domain.errors import Invalid
from mana.domain.money import cap_words
from mana.domain.policy import PRESETS, Decision, Policy
from mana.domain.tools import TASK

if TYPE_CHECKING:
    from mana.device.agents import AgentEdit


class Preset(StrEnum):
    """What an agent may do, as a whole."""

    STANDARD = "standard"
    CAUTIOUS = "cautious"
    AGGRESSIVE = "aggressive"


agent = typer.Typer(
    help="Agents: who works for you, and what each may do.",
    no_args_is_help=True,
    add_completion=False,
)

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Name, id or start of an id.")]
RoleOption = Annotated[str | None, typer.Option("--role", help="Its role, in a sentence.")]
AvatarOption = Annotated[str | None, typer.Option("--avatar", help="One sign or emoji.")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="How it shall work.")]
MemoryOption = Annotated[str | None, typer.Option("--memory", help="What it shall remember.")]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        "--policy",
        help="standard: asks before it writes. cautious: never deletes or sends anything out. "
        "aggressive: writes by itself.",
    ),
]
SubAgentsOption = Annotated[
    bool | None,
    typer.Option(
        "--sub-agents/--no-sub-agents",
        help="Whether it may give parts of its work to sub-agents, which have its rights and budget.",
    ),
]
AtOnceOption = Annotated[
    int | None,
    typer.Option("--at-once", min=1, max=100, help="How many missions it may run at once."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help='Which model it uses, as `mana model choices`; "": the first that is set up.',
    ),
]


@agent.command()
@on_account(fresh=False)
async def create(
    device: Device,
    name: Annotated[str, typer.Argument(help="Its name.")],
    role: RoleOption = None,
    avatar: AvatarOption = None,
    prompt: PromptOption = None,
    memory: MemoryOption = None,
    policy: PresetOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    cost: CostOption = None,
    at_once: AtOnceOption = None,
) -> Answer:
    """Create an agent."""
    agent_id = await device.create_agent(
        name,
        role=role or "",
        avatar=avatar or "",
        system_prompt=prompt or "",
        memory=memory or "",
        preset=(policy or Preset.STANDARD).value,
        tokens_per_day_max=None if tokens is None else optional_tokens(tokens),
        cost_per_day_max=None if cost is None else optional_cost(cost),
        concurrent_max=at_once or 1,
        model=await chosen_model(device, model or ""),
    )
    made = await device.agent(agent_id)
    return Answer(
        {"agent": made},
        [f"Created agent “{one_line(made.name, 80)}”: {made.policy_words}."],
        wrote=True,
    )


@agent.command("list")
@on_account()
async def list_agents(device: Device) -> Answer:
    """List agents."""
    agents = await device.agents()
    ids = shorts(one.agent_id for one in agents)
    rows = [
        (ids[one.agent_id], one.state, one.preset or "own", str(len(one.missions)), named(one))
        for one in agents
    ]
    blocks: list[Block] = [Rows(("ID", "STATE", "POLICY", "MISSIONS", "NAME"), rows, flexible=4)]
    if not agents:
        blocks = [
            Line(
                f"No agents yet. Create one: mana agent create NAME{await option(device)}", "quiet"
            )
        ]
    return Answer({"agents": agents}, blocks)


@agent.command()
@on_account()
async def show(device: Device, agent_name: AgentArgument) -> Answer:
    """Show an agent: its role, memory, and what it may do."""
    one = await find_agent(device, agent_name)
    titles = {mission.mission_id: mission.title for mission in await device.missions()}
    currency = await currency_of(device)
    limit = cap_words(one.tokens_per_day_max, one.cost_per_day_max, currency)
    used = used_words(
        one.tokens_today,
        one.cost_today,
        currency,
        unconfirmed_tokens=one.unconfirmed_tokens_today,
        unconfirmed_cost=one.unconfirmed_cost_today,
    )
    fared = await device.acceptance(one.agent_id)
    decisions = [
        (tool_words(tool), called(names.DECISIONS, decision))
        for tool, decision in sorted(one.decisions.items())
    ]
    blocks: list[Block] = [
        Line(named(one), "title"),
        Facts(
            [
                ("Id", one.agent_id),
                ("State", one.state),
                ("Role", one.role),
                ("May", one.policy_words),
                ("Model", one.model_words or one.model or "the first that is set up"),
                ("Used in 24 hours", f"{used} ({f'at most {limit}' if limit else 'no limit'})"),
                ("At once", counted(one.concurrent_max, "mission")),
                ("Missions", ", ".join(titles.get(ident, ident) for ident in one.missions)),
                ("Decided", _fared_words(fared.total)),
                ("Prompt", one.system_prompt),
                ("Memory", one.memory),
            ]
        ),
        "",
        Rows(("MAY", "HOW"), decisions),
    ]
    return Answer({"agent": one, "acceptance": fared}, blocks)


@agent.command()
@on_account()
async def edit(
    device: Device,
    agent_name: AgentArgument,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    role: RoleOption = None,
    avatar: AvatarOption = None,
    prompt: PromptOption = None,
    memory: MemoryOption = None,
    policy: PresetOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    cost: CostOption = None,
    at_once: AtOnceOption = None,
    sub_agents: SubAgentsOption = None,
) -> Answer:
    """Change an agent; an empty text or a limit of `none` takes it away."""
    one = await find_agent(device, agent_name)
    fields: AgentEdit = {}
    if name is not None:
        fields["name"] = name
    if role is not None:
        fields["role"] = role
    if avatar is not None:
        fields["avatar"] = avatar
    if prompt is not None:
        fields["system_prompt"] = prompt
    if memory is not None:
        fields["memory"] = memory
    if policy is not None:
        fields["preset"] = policy.value
    if model is not None:
        fields["model"] = await chosen_model(device, model)
    if sub_agents is not None:
        base = PRESETS[fields.pop("preset")] if policy is not None else one.policy
        fields["policy"] = _with_sub_agents(base, allowed=sub_agents)
    if at_once is not None:
        fields["concurrent_max"] = at_once
    if tokens is not None:
        fields["tokens_per_day_max"] = optional_tokens(tokens)
    if cost is not None:
        fields["cost_per_day_max"] = optional_cost(cost)
    if not fields:
        raise Invalid("nothing to change was given")
    await device.edit_agent(one.agent_id, **fields)
    return await _changed(device, one, "Changed")


@agent.command()
@on_account()
async def pause(device: Device, agent_name: AgentArgument) -> Answer:
    """Pause an agent: nothing runs in its name until it is resumed."""
    one = await find_agent(device, agent_name)
    await device.edit_agent(one.agent_id, state="paused")
    return await _changed(device, one, "Paused")


@agent.command()
@on_account()
async def resume(device: Device, agent_name: AgentArgument) -> Answer:
    """Let a paused or archived agent work again."""
    one = await find_agent(device, agent_name)
    await device.edit_agent(one.agent_id, state="active")
    return await _changed(device, one, "Resumed")


@agent.command()
@on_account()
async def archive(device: Device, agent_name: AgentArgument) -> Answer:
    """Put an agent away; its missions wait."""
    one = await find_agent(device, agent_name)
    await device.edit_agent(one.agent_id, state="archived")
    waiting = f"; {counted(len(one.missions), 'mission')} will wait" if one.missions else ""
    return await _changed(device, one, "Archived", waiting)


def _with_sub_agents(base: Policy | None, *, allowed: bool) -> Policy:
    """Return a policy that lets an agent have sub-agents, or not; raise Invalid without one."""
    if base is None:
        raise Invalid("the agent's policy cannot be read; give it one with --policy")
    by_tool = {name: decision for name, decision in base.by_tool.items() if name != TASK}
    word: Decision = "auto" if allowed else "deny"
    # What its policy says of reading is enough where it says the same.
    if base.by_effect.get("read", "deny") != word:
        by_tool[TASK] = word
    return Policy(base.by_effect, by_tool)


def _fared_words(rate: AcceptRate) -> str:
    """Return what became of an agent's proposals."""
    edited = f" ({rate.edited} of them changed)" if rate.edited else ""
    words = f"{rate.approved} approved{edited}, {rate.rejected} rejected"
    if rate.expired:
        words += f", {rate.expired} that nobody decided on"
    return words if rate.percent is None else f"{words}: {rate.percent} % approved"


async def find_agent(device: Device, named_so: str) -> AgentView:
    """Return the one agent that a person names."""
    agents = await device.agents()
    found = resolve(named_so, [(one.agent_id, one.name) for one in agents], "agent")
    return await device.agent(found)


def named(one: AgentView) -> str:
    """Return the agent's name with its avatar."""
    return agent_words(one.name, one.avatar)


async def _changed(device: Device, one: AgentView, verb: str, more: str = "") -> Answer:
    after = await device.agent(one.agent_id)
    words = f"{verb} agent “{one_line(after.name, 80)}”{more}."
    return Answer({"agent": after}, [words], wrote=True)
