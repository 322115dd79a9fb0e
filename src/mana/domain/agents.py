"""Agents: named AI workers with a role, memory, policy and budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mana.domain.errors import Invalid
from mana.domain.money import COST_PER_DAY_MAX, TOKENS_PER_DAY_MAX, whole_or_none
from mana.domain.policy import Policy, policy_from_wire
from mana.domain.records import View
from mana.domain.tables import Choice, Document, Identifier, Table, Text, Whole, plain, sealed

AgentState = Literal["active", "paused", "archived"]
AGENT_STATES: Final = ("active", "paused", "archived")

AGENTS: Final = Table(
    name="agents",
    app_id="ai",
    authority=True,
    agents_may_write=False,
    title_field="name",
    described="Named AI workers.",
    fields=(
        sealed("name", Text(80)),
        sealed("avatar", Text(16)),
        sealed("role", Text(2_000)),
        sealed("systemPrompt", Text(8_000)),
        sealed("policy", Document(16_384)),
        sealed("model", Text(160)),
        plain(
            "state",
            Choice(AGENT_STATES),
            because="the runner must not start an agent that is paused",
            default="active",
        ),
        plain(
            "maxTokensPerDay",
            Whole(0, TOKENS_PER_DAY_MAX),
            because="the hub stops an agent at its budget before a model is called",
        ),
        plain(
            "maxCostPerDay",
            Whole(0, COST_PER_DAY_MAX),
            because="the hub stops an agent at its budget before a model is called",
        ),
        plain(
            "maxConcurrentMissions",
            Whole(1, 100),
            because="the hub limits how many missions of an agent run at once",
            default=1,
        ),
    ),
)
"""`model`: an alias of the runner's or device's models, or `own:<id>` of the person's own (a record of
`aiModels`); empty: the first that there is.
"""
OWN_MODEL: Final = "own:"
AGENT_MEMORY: Final = Table(
    name="agentMemory",
    app_id="ai",
    authority=True,
    agents_may_write=False,
    described="What an agent remembers, edited by the person; its id is the agent's.",
    fields=(
        plain("agentId", Identifier(), because="it belongs to that agent", fixed=True),
        sealed("content", Text(8_000)),
    ),
)


@dataclass(frozen=True, slots=True)
class Agent:
    """An opened agent, ready for planning. `policy` is None if it cannot be read: deny."""

    id: str
    name: str
    avatar: str
    role: str
    system_prompt: str
    memory: str
    policy: Policy | None
    state: AgentState
    tokens_per_day_max: int | None
    concurrent_max: int
    cost_per_day_max: int | None = None
    model: str = ""


def agent_from_view(view: View, memory: View | None) -> Agent:
    """Return the agent of an opened record; an unreadable policy becomes None, which denies."""
    policy: Policy | None
    try:
        policy = policy_from_wire(view.values.get("policy"))
    except Invalid:
        policy = None
    state = view.values.get("state", "active")
    concurrent = view.values.get("maxConcurrentMissions")
    return Agent(
        id=view.id,
        name=view.text("name"),
        avatar=view.text("avatar"),
        role=view.text("role"),
        system_prompt=view.text("systemPrompt"),
        memory=memory.text("content") if memory is not None else "",
        policy=None if view.deleted else policy,
        state=state if state in ("active", "paused") else "archived",  # type: ignore[arg-type]
        tokens_per_day_max=whole_or_none(view, "maxTokensPerDay"),
        concurrent_max=concurrent if isinstance(concurrent, int) else 1,
        cost_per_day_max=whole_or_none(view, "maxCostPerDay"),
        model=view.text("model"),
    )
