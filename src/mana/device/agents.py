"""Agents as the person keeps them: who they are, what they may do, what they used."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Final, TypedDict

from mana.device.editing import Editing
from mana.device.hub_news import HubNews, Spent
from mana.device.models import own_model
from mana.device.opened import Opened
from mana.device.views import AgentView
from mana.device.writing import Write
from mana.domain.agents import (
    AGENT_MEMORY,
    AGENT_STATES,
    AGENTS,
    OWN_MODEL,
    Agent,
    AgentState,
)
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import RecordId
from mana.domain.iterations import STEPS
from mana.domain.missions import MISSIONS
from mana.domain.policy import PRESETS, Decision, Policy, SpacePolicy, decide, preset_of
from mana.domain.settings import MODELS
from mana.domain.tables import DELETED_AT
from mana.domain.tools import TASK, Effect
from mana.planning.subagents import may_delegate

_EFFECT_WORDS: Final[dict[Effect, dict[Decision, str]]] = {
    "read": {
        "auto": "may read",
        "propose": "reads nothing by itself",
        "deny": "may not read",
    },
    "write": {
        "auto": "writes by itself",
        "propose": "asks before it writes",
        "deny": "never writes",
    },
    "destructive": {
        "auto": "deletes by itself",
        "propose": "asks before it deletes",
        "deny": "never deletes",
    },
    "external": {
        "auto": "sends things out by itself",
        "propose": "asks before it sends anything out",
        "deny": "never sends anything out",
    },
}


class UnknownPreset(Invalid):
    """There is no policy preset of this name."""

    code: ClassVar[str] = "UNKNOWN_PRESET"
    advice: ClassVar[str] = "Choose standard, cautious or aggressive."


class AgentEdit(TypedDict, total=False):
    """The fields of an agent that can be edited. `preset` and `policy` exclude each other.

    Empty text and None clear what is optional. Caps are of a day: in tokens, and in millionths of
    the hub's currency. `model`: as in `ModelChoice.value`.
    """

    name: str
    avatar: str
    role: str
    system_prompt: str
    memory: str
    preset: str
    policy: Policy
    state: AgentState
    tokens_per_day_max: int | None
    cost_per_day_max: int | None
    concurrent_max: int | None
    model: str


_PATHS: Final = {
    "name": "name",
    "avatar": "avatar",
    "role": "role",
    "system_prompt": "systemPrompt",
    "state": "state",
    "tokens_per_day_max": "maxTokensPerDay",
    "cost_per_day_max": "maxCostPerDay",
    "model": "model",
    "concurrent_max": "maxConcurrentMissions",
}


class Agents:
    """The agents of the account."""

    def __init__(
        self,
        opened: Opened,
        editing: Editing,
        news: HubNews,
        space_policy: Callable[[], Awaitable[SpacePolicy]],
    ) -> None:
        self._space_policy = space_policy
        self._opened = opened
        self._editing = editing
        self._news = news

    async def list(self) -> builtins.list[AgentView]:
        """Return the agents: active ones, paused ones, archived ones, each by name."""
        views = await self._opened.book.views(AGENTS.name)
        missions, decided = await self._missions(), await self._decided()
        used = await self._news.used_today()
        shown, space = [], await self._space_policy()
        for view in views:
            agent = await self._opened.agent(view.id)
            words = await self._model_words(agent)
            shown.append(self._view(agent, missions, decided, used, words, space))
        return sorted(
            shown,
            key=lambda one: (AGENT_STATES.index(one.state), one.name.casefold(), one.agent_id),
        )

    async def get(self, agent_id: str) -> AgentView:
        """Return one agent; raise AgentNotFound."""
        agent = await self._opened.agent(agent_id)
        used = await self._news.used_today()
        words = await self._model_words(agent)
        return self._view(
            agent,
            await self._missions(),
            await self._decided(),
            used,
            words,
            await self._space_policy(),
        )

    async def create(
        self,
        name: str,
        *,
        role: str = "",
        avatar: str = "",
        system_prompt: str = "",
        memory: str = "",
        preset: str = "standard",
        tokens_per_day_max: int | None = None,
        cost_per_day_max: int | None = None,
        concurrent_max: int = 1,
        model: str = "",
    ) -> str:
        """Create an agent with its memory; return its id."""
        await self._require_model(model)
        agent_id = RecordId(self._opened.new_id())
        values: dict[str, Json] = {
            "name": _named(name),
            "avatar": avatar,
            "role": role,
            "systemPrompt": system_prompt,
            "policy": _preset(preset).to_wire(),
            "state": "active",
            "maxTokensPerDay": tokens_per_day_max,
            "maxCostPerDay": cost_per_day_max,
            "maxConcurrentMissions": concurrent_max,
            "model": model or None,
        }
        # The memory is there from the start, so that a grant covers what is written into it later.
        remembered = self._remember(agent_id, memory, new=True)
        await self._commit([self._write(agent_id, ChangeKind.CREATE, values), remembered])
        return agent_id

    async def edit(self, agent_id: str, fields: AgentEdit) -> None:
        """Write the named fields; raise Invalid for a value that cannot be."""
        agent = await self._opened.agent(agent_id)
        if "preset" in fields and "policy" in fields:
            raise Invalid("a policy is given by preset or in full, not both")
        unknown = set(fields) - set(AgentEdit.__annotations__)
        if unknown:
            raise Invalid("an agent has no such field")
        values: dict[str, Json] = {
            _PATHS[name]: None if value == "" else value  # type: ignore[misc]
            for name, value in fields.items()
            if name in _PATHS
        }
        if "model" in fields:
            await self._require_model(fields["model"])
        if fields.get("concurrent_max", 1) is None:
            values["maxConcurrentMissions"] = 1
        if "name" in fields:
            values["name"] = _named(fields["name"])
        if "preset" in fields:
            values["policy"] = _preset(fields["preset"]).to_wire()
        if "policy" in fields:
            values["policy"] = fields["policy"].to_wire()
        writes = []
        if values:
            writes.append(self._write(RecordId(agent.id), ChangeKind.UPDATE, values))
        if "memory" in fields and fields["memory"] != agent.memory:
            known = await self._opened.book.view(AGENT_MEMORY.name, agent.id)
            writes.append(self._remember(RecordId(agent.id), fields["memory"], new=known is None))
        await self._commit(writes)

    async def delete(self, agent_id: str) -> None:
        """Delete an agent; nothing more happens in its name, its missions wait for another."""
        agent = await self._opened.agent(agent_id)
        gone: dict[str, Json] = {DELETED_AT: self._opened.now_iso()}
        change = Change(AGENTS.name, RecordId(agent.id), ChangeKind.DELETE, gone)
        await self._opened.book.commit([Write(change, self._opened.person)])

    async def _require_model(self, choice: str) -> None:
        """Raise ModelUnknown for a model of the person's own that is not there."""
        await own_model(self._opened, choice)

    def _write(self, agent_id: RecordId, kind: ChangeKind, values: dict[str, Json]) -> Write:
        for path, value in values.items():
            AGENTS.check(path, value)
        return Write(Change(AGENTS.name, agent_id, kind, values), self._opened.person)

    def _remember(self, agent_id: RecordId, memory: str, *, new: bool) -> Write:
        AGENT_MEMORY.check("content", memory)
        values: dict[str, Json] = {"content": memory}
        if new:
            values["agentId"] = agent_id
        kind = ChangeKind.CREATE if new else ChangeKind.UPDATE
        return Write(Change(AGENT_MEMORY.name, agent_id, kind, values), self._opened.person)

    async def _commit(self, writes: builtins.list[Write]) -> None:
        if writes:
            group = self._opened.new_id() if len(writes) > 1 else None
            await self._opened.book.commit(writes, group=group)

    async def _model_words(self, agent: Agent) -> str:
        """Return which model an agent uses, in words."""
        if not agent.model.startswith(OWN_MODEL):
            return agent.model or "the first that is set up"
        view = await self._opened.book.view(MODELS.name, agent.model.removeprefix(OWN_MODEL))
        if view is None or view.deleted:
            return "one of your own that is gone"
        return f"your own: {view.text('label')}"

    async def _missions(self) -> dict[str, builtins.list[str]]:
        """Return the ids of live missions by agent, by title."""
        found: dict[str, builtins.list[str]] = {}
        views = await self._opened.book.views(MISSIONS.name)
        for view in sorted(views, key=lambda view: view.text("title").casefold()):
            found.setdefault(view.text("agentId"), []).append(view.id)
        return found

    async def _decided(self) -> Counter[tuple[str, str]]:
        """Return how many proposals were approved and rejected, by mission and state."""
        steps = await self._opened.book.views(STEPS.name)
        return Counter(
            (view.text("missionId"), view.text("status"))
            for view in steps
            if view.values.get("decision") == "propose"
        )

    def _view(
        self,
        agent: Agent,
        missions: dict[str, builtins.list[str]],
        decided: Counter[tuple[str, str]],
        used: Mapping[str, Spent],
        model_words: str,
        space: SpacePolicy,
    ) -> AgentView:
        spent = used.get(agent.id, Spent())
        own = tuple(missions.get(agent.id, ()))
        decisions = {
            tool.name: decide(
                tool.name,
                tool.effect,
                agent=agent.policy,
                space=space,
                tainted=True,
                always_asks=tool.always_asks,
            )
            for tool in self._opened.catalogue.tools
        }
        decisions[TASK] = "auto" if may_delegate(agent.policy) else "deny"
        return AgentView(
            agent_id=agent.id,
            name=agent.name,
            avatar=agent.avatar,
            role=agent.role,
            system_prompt=agent.system_prompt,
            memory=agent.memory,
            policy=agent.policy,
            preset=preset_of(agent.policy) if agent.policy is not None else None,
            policy_words=policy_words(agent.policy),
            decisions=decisions,
            state=agent.state,
            tokens_per_day_max=agent.tokens_per_day_max,
            tokens_today=spent.tokens,
            concurrent_max=agent.concurrent_max,
            missions=own,
            accepted=sum(decided[one, "approved"] for one in own),
            rejected=sum(decided[one, "rejected"] for one in own),
            cost_per_day_max=agent.cost_per_day_max,
            cost_today=spent.cost,
            model=agent.model,
            model_words=model_words,
            unconfirmed_tokens_today=spent.unconfirmed_tokens,
            unconfirmed_cost_today=spent.unconfirmed_cost,
        )


def policy_words(policy: Policy | None) -> str:
    """Return what an agent may do, in words; floors are already in them."""
    if policy is None:
        return "may do nothing: its policy cannot be read"
    words: builtins.list[str] = []
    for effect, named in _EFFECT_WORDS.items():
        decision = decide("", effect, agent=policy, space=SpacePolicy(), tainted=True)
        words.append(named[decision])
    if policy.decision(TASK, "read") != policy.decision("", "read"):
        words.append("works with sub-agents" if may_delegate(policy) else "without sub-agents")
    text = "; ".join(words)
    listed = len(set(policy.by_tool) - {TASK})
    if listed:
        text += f"; with {listed} exception{'' if listed == 1 else 's'}"
    return text


def _named(name: str) -> str:
    shown = name.strip()
    if not shown:
        raise Invalid("an agent needs a name")
    return shown


def _preset(name: str) -> Policy:
    found = PRESETS.get(name)
    if found is None:
        raise UnknownPreset("no policy preset of this name")
    return found
