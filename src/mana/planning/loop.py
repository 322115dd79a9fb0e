"""The planning loop: a model, native function calls, a few rounds, and a plan at the end.

Nothing is applied here. The model is treated as an attacker: only tools that were offered are
accepted, arguments are validated, calls, steps, rounds and the text that reaches the model are
bounded, and the worst case of each model call is reserved before it is made. To end a run early,
cancel its task: no step comes out, and a reservation that is open stays counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mana.domain.actors import agent_at_work
from mana.domain.agents import AGENT_MEMORY
from mana.domain.encoding import Json, canonical_json
from mana.domain.ids import IterationId
from mana.domain.iterations import STEPS_MAX
from mana.domain.policy import Policy, SpacePolicy
from mana.domain.records import Records
from mana.domain.tools import PROPOSE_MEMORY, TASK, Tool
from mana.planning.asking import Asking, FallBack, Spent
from mana.planning.calls import MARKED, Refusal, Setting, Work
from mana.planning.compaction import Compaction
from mana.planning.conversation import Means, StopReason, converse, opening
from mana.planning.dispatch import Caller, PlannedStep, is_offered
from mana.planning.guardrails import Rates, after_planning, size_before_planning
from mana.planning.markers import is_marked
from mana.planning.ports import Budget, Candidate, Progress, Usage
from mana.planning.prompt import PlanInput, material, now_line, prompt
from mana.planning.reminders import Producer, Severity
from mana.planning.subagents import SCHEMA, SCHEMA_SIZE, SubAgent, SubAgents, may_delegate
from mana.planning.version import PROMPT_VERSION
from mana.registry.catalogue import Catalogue

ROUNDS_MAX: Final = 5
CALLS_PER_ROUND_MAX: Final = 10
COMPLETION_TOKENS_MAX: Final = 4_096
_FALLBACKS_KEPT_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run came to. `model` and `endpoint` are of the model that answered last.

    `usage` counts what providers reported, `spent` the same by model and purpose; the budget also
    counts calls that reported nothing. `reminded` counts what models were reminded of. `flags`: `length` and `content-filter` where a provider cut a reply,
    `context-full` where the run ended because it grew too long, `marker` where material or calls
    read like injected instructions.
    """

    summary: str
    steps: tuple[PlannedStep, ...]
    refusals: tuple[Refusal, ...]
    usage: Usage
    spent: tuple[Spent, ...]
    rounds: int
    calls: int
    stop_reason: StopReason
    model: str
    endpoint: str
    prompt_version: str
    flags: tuple[str, ...] = ()
    compactions: tuple[Compaction, ...] = ()
    reminded: Mapping[tuple[Producer, Severity], int] = field(default_factory=dict)
    sub_agents: tuple[SubAgent, ...] = ()
    fallbacks: tuple[FallBack, ...] = ()

    @property
    def cost(self) -> int | None:
        """Return what `usage` cost, in millionths; None where a model without a price used some."""
        total = 0
        for one in self.spent:
            if one.price is None and one.usage.total:
                return None
            if one.price is not None:
                total += one.price.cost(one.usage.prompt_tokens, one.usage.completion_tokens)
        return total

    def refusals_within(self, bytes_max: int) -> list[Json]:
        """Return the stored form of the first refusals, as many as the bytes can hold."""
        kept: list[Json] = [refusal.to_wire() for refusal in self.refusals]
        while kept and len(canonical_json(kept)) > bytes_max:
            kept.pop()
        return kept

    def usage_to_wire(self) -> dict[str, Json]:
        """Return the stored form of what the run used, for the iteration's field `usage`."""
        facts: dict[str, Json] = {
            "promptTokens": self.usage.prompt_tokens,
            "completionTokens": self.usage.completion_tokens,
            "modelCalls": sum(one.calls for one in self.spent),
            "flags": list[Json](self.flags),
        }
        for name, purpose in (("subAgentTokens", "sub-agent"), ("compactionTokens", "compaction")):
            facts[name] = sum(one.usage.total for one in self.spent if one.purpose == purpose)
        if (cost := self.cost) is not None:
            facts["cost"] = cost
        facts["subAgents"] = len(self.sub_agents)
        facts["compactions"] = len(self.compactions)
        facts["fallbacks"] = [one.kind for one in self.fallbacks[:_FALLBACKS_KEPT_MAX]]
        return facts


def stands_still() -> int:
    """Return the same moment always: the clock of who has none, by which every call is recent."""
    return 0


async def run(
    plan_input: PlanInput,
    *,
    models: Sequence[Candidate],
    catalogue: Catalogue,
    policy: Policy | None,
    space_policy: SpacePolicy,
    records: Records,
    budget: Budget,
    progress: Progress,
    iteration_id: IterationId,
    clock_ms: Callable[[], int] = stands_still,
    rounds_max: int = ROUNDS_MAX,
    steps_max: int = STEPS_MAX,
    calls_per_round_max: int = CALLS_PER_ROUND_MAX,
    completion_tokens_max: int = COMPLETION_TOKENS_MAX,
) -> Plan:
    """Return the plan of one run. The first of the models is the choice, the others fall-backs.

    Raises InputTooLarge before anything is sent; BudgetExceeded, PriceUnknown or ModelFailed if
    the run ended so without a single step. With steps it ends as `budget` or `model-failed`
    instead: what was planned is not thrown away. GuardrailBlocked where the plan may not stand.
    """
    progress.phase("prompt")
    # A mission's own text is record text, so the context is tainted from the first message.
    actor = agent_at_work(plan_input.agent.id, plan_input.mission.id, iteration_id)
    caller = Caller(actor, policy, space_policy, tainted=True)
    setting = Setting(
        caller, catalogue, records, iteration_id, min(steps_max, STEPS_MAX), calls_per_round_max
    )
    messages = prompt(plan_input, rounds_max=rounds_max)
    work = Work(Rates(clock_ms), size_before_planning(messages))
    tools, delegates = _offered(setting), may_delegate(policy)
    compactions: list[Compaction] = []
    reminded = Counter[tuple[Producer, Severity]]()
    asking = Asking(models, budget)
    means = Means(
        asking=asking,
        setting=setting,
        work=work,
        progress=progress,
        schemas=tuple(catalogue.schema(tool.name) for tool in tools),
        schemas_size=sum(catalogue.schema_size(tool.name) for tool in tools),
        purpose="plan",
        rounds_max=rounds_max,
        completion_tokens_max=completion_tokens_max,
        tokens_before=plan_input.tokens_today,
        tokens_cap=plan_input.agent.tokens_per_day_max,
        compactions=compactions,
        reminded=reminded,
    )
    sub_agents = SubAgents(means, tools, now=now_line(plan_input))
    if delegates:
        means = replace(
            means,
            schemas=(*means.schemas, SCHEMA),
            schemas_size=means.schemas_size + SCHEMA_SIZE,
            delegate=sub_agents.answer,
        )
    names = [tool.name for tool in tools] + [TASK] * delegates
    talk = opening(*messages, offered=frozenset(names))
    if is_marked(material(plan_input)):
        work.flag(MARKED)
        talk.marked = True
    ending = await converse(talk, means)
    if ending.error is not None and not work.steps:
        raise ending.error
    after_planning(work.steps, catalogue)
    progress.phase("done")
    return Plan(
        summary=talk.summary,
        steps=tuple(work.steps),
        refusals=tuple(work.refusals),
        usage=asking.usage,
        spent=asking.spent,
        rounds=talk.round,
        calls=work.calls,
        stop_reason=ending.stop,
        model=asking.current.model.name,
        endpoint=asking.current.model.endpoint,
        prompt_version=PROMPT_VERSION,
        flags=tuple(work.flags),
        compactions=tuple(compactions),
        reminded=dict(reminded),
        sub_agents=tuple(sub_agents.made),
        fallbacks=tuple(asking.fallbacks),
    )


def _offered(setting: Setting) -> list[Tool]:
    """Return the tools that a model may see: what policy allows, and a memory where it has one."""
    agent_id = setting.caller.actor.principal_id
    own = any(view.id == agent_id for view in setting.records.all(AGENT_MEMORY))
    return [
        tool
        for tool in setting.catalogue.tools
        if is_offered(tool, setting.caller) and (own or tool.name != PROPOSE_MEMORY)
    ]
