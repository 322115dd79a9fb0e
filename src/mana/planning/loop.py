"""The planning loop: a model, native function calls, a few rounds, and a plan at the end.

Nothing is applied here. The model is treated as an attacker: only tools that were offered are
accepted, arguments are validated, calls, steps, rounds and the text that reaches the model are
bounded, and the worst case of each model call is reserved before it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

from mana.domain.actors import agent_at_work
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid
from mana.domain.ids import IterationId, step_id
from mana.domain.iterations import STEPS_MAX
from mana.domain.policy import Policy, SpacePolicy
from mana.domain.records import Records
from mana.planning.budget import is_sane
from mana.planning.dispatch import (
    Answered,
    Caller,
    Planned,
    PlannedStep,
    Refused,
    dispatch,
    is_offered,
)
from mana.planning.ports import (
    Budget,
    BudgetExceeded,
    FunctionCall,
    Message,
    Model,
    ModelCall,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Progress,
    Usage,
)
from mana.planning.prompt import PROMPT_VERSION, PlanInput, prompt
from mana.planning.reminders import RunState, reminders
from mana.registry.catalogue import Catalogue
from mana.registry.schemas import RATIONALE

ROUNDS_MAX: Final = 5
CALLS_PER_ROUND_MAX: Final = 10
COMPLETION_TOKENS_MAX: Final = 4_096
TEMPERATURE: Final = 0.3
INPUT_CHARS_MAX: Final = 100_000
SUMMARY_MAX: Final = 8_000
REFUSALS_MAX: Final = 50
_CONTENT_MAX: Final = 16_000
_BYTES_PER_TOKEN: Final = 3
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

StopReason = Literal[
    "finished",
    "length",
    "content-filter",
    "rounds",
    "plan-step-limit",
    "budget",
    "cancelled",
    "model-failed",
]


class InputTooLarge(Invalid):
    """The mission's inputs hold more text than one run may send to a model."""

    code: ClassVar[str] = "INPUT_SIZE_LIMIT"
    advice: ClassVar[str] = "Give the mission fewer or shorter inputs."


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call of the model that did not happen, and why."""

    tool: str
    code: str
    message: str
    round: int

    def to_wire(self) -> dict[str, Json]:
        """Return the stored form."""
        return {
            "tool": self.tool,
            "code": self.code,
            "message": self.message,
            "round": self.round,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run came to. `flags` name replies that the provider cut or filtered.

    `usage` counts what providers reported; the budget also counts calls that reported nothing.
    """

    summary: str
    steps: tuple[PlannedStep, ...]
    refusals: tuple[Refusal, ...]
    usage: Usage
    rounds: int
    stop_reason: StopReason
    model: str
    endpoint: str
    prompt_version: str
    flags: tuple[str, ...] = ()

    def refusals_within(self, bytes_max: int) -> list[Json]:
        """Return the stored form of the first refusals, as many as the bytes can hold."""
        kept: list[Json] = [refusal.to_wire() for refusal in self.refusals]
        while kept and len(canonical_json(kept)) > bytes_max:
            kept.pop()
        return kept


@dataclass(slots=True)
class _Run:
    """What one run has come to so far."""

    messages: list[Message]
    steps: list[PlannedStep] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    rounds: int = 0
    flags: list[str] = field(default_factory=list)
    summary: str = ""
    outcomes: list[bool] = field(default_factory=list)
    repairs: dict[str, Refusal | None] = field(default_factory=dict)
    step_limit_hit: bool = False
    seen: dict[tuple[str, bytes], int] = field(default_factory=dict)
    call_ids: set[str] = field(default_factory=set)
    input_chars: int = 0

    def refuse(self, refusal: Refusal) -> None:
        """Keep a refusal; beyond the limit only the first ones are of interest."""
        if len(self.refusals) < REFUSALS_MAX:
            self.refusals.append(refusal)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What stays the same during one run."""

    caller: Caller
    catalogue: Catalogue
    records: Records
    iteration_id: IterationId
    offered: frozenset[str]
    steps_max: int
    calls_per_round_max: int
    cancelled: Callable[[], bool]


async def run(
    plan_input: PlanInput,
    *,
    model: Model,
    catalogue: Catalogue,
    policy: Policy | None,
    space_policy: SpacePolicy,
    records: Records,
    budget: Budget,
    progress: Progress,
    iteration_id: IterationId,
    rounds_max: int = ROUNDS_MAX,
    steps_max: int = STEPS_MAX,
    calls_per_round_max: int = CALLS_PER_ROUND_MAX,
    completion_tokens_max: int = COMPLETION_TOKENS_MAX,
    cancelled: Callable[[], bool] = lambda: False,
) -> Plan:
    """Return the plan of one run.

    Raises InputTooLarge before anything is sent; BudgetExceeded or ModelFailed if the run
    ended so without a single step. With steps it ends as `budget` or `model-failed` instead:
    what was planned is not thrown away.
    """
    input_chars = sum(len(item.content) for item in plan_input.inputs)
    if input_chars > INPUT_CHARS_MAX:
        raise InputTooLarge(f"inputs hold more than {INPUT_CHARS_MAX} characters")
    progress.phase("prompt")
    # A mission's own text is record text, so the context is tainted from the first message.
    actor = agent_at_work(plan_input.agent.id, plan_input.mission.id, iteration_id)
    caller = Caller(actor, policy, space_policy, tainted=True)
    offered = [tool for tool in catalogue.tools if is_offered(tool, caller)]
    setting = _Setting(
        caller=caller,
        catalogue=catalogue,
        records=records,
        iteration_id=iteration_id,
        offered=frozenset(tool.name for tool in offered),
        steps_max=min(steps_max, STEPS_MAX),
        calls_per_round_max=calls_per_round_max,
        cancelled=cancelled,
    )
    schemas = tuple(catalogue.schema(tool.name) for tool in offered)
    so_far = _Run(list(prompt(plan_input, rounds_max=rounds_max)), input_chars=input_chars)
    stop: StopReason = "rounds"
    while so_far.rounds < rounds_max:
        if cancelled():
            stop = "cancelled"
            break
        so_far.rounds += 1
        progress.phase("model")
        request = ModelRequest(
            messages=(*so_far.messages, *_reminders(plan_input, so_far, metered=model.metered)),
            tools=schemas,
            temperature=TEMPERATURE,
            completion_tokens_max=completion_tokens_max,
        )
        try:
            reply = await _complete(model, request, budget, so_far)
        except BudgetExceeded:
            if not so_far.steps:
                raise
            stop = "budget"
            break
        except ModelFailed:
            if not so_far.steps:
                raise
            stop = "model-failed"
            break
        if reply.finish in ("length", "content-filter") and reply.finish not in so_far.flags:
            so_far.flags.append(reply.finish)
        reply = replace(reply, content=_writable(reply.content))
        so_far.summary = reply.content[:SUMMARY_MAX]
        if not reply.calls:
            stop = "finished"
            if reply.finish == "length" or reply.finish == "content-filter":
                stop = reply.finish
            break
        progress.phase("tools")
        ended = _take_calls(reply, setting, so_far)
        if ended is not None:
            stop = ended
            break
    for pending in so_far.repairs.values():
        if pending is not None:
            so_far.refuse(pending)
    progress.phase("done")
    return Plan(
        summary=so_far.summary,
        steps=tuple(so_far.steps),
        refusals=tuple(so_far.refusals),
        usage=so_far.usage,
        rounds=so_far.rounds,
        stop_reason=stop,
        model=model.name,
        endpoint=model.endpoint,
        prompt_version=PROMPT_VERSION,
        flags=tuple(so_far.flags),
    )


def worst_case(request: ModelRequest) -> int:
    """Return the tokens that a call may cost at most."""
    return prompt_tokens(request) + request.completion_tokens_max


def prompt_tokens(request: ModelRequest) -> int:
    """Return the tokens that reading a request may cost at most, by the size of what is sent."""
    sent: list[Json] = [
        [
            message.role,
            message.content,
            message.call_id,
            [[call.id, call.name, call.arguments] for call in message.calls],
        ]
        for message in request.messages
    ]
    size = len(canonical_json([sent, list(request.tools)]))
    return -(-size // _BYTES_PER_TOKEN)


async def _complete(
    model: Model, request: ModelRequest, budget: Budget, so_far: _Run
) -> ModelReply:
    """Reserve the worst case, call the model, settle; without a usage the reservation counts.

    A model that is not metered costs nothing, whatever it reports.
    """
    if not model.metered:
        return await model.complete(request)
    call = ModelCall(model.endpoint, model.name)
    reservation = await budget.reserve(prompt_tokens(request), request.completion_tokens_max, call)
    request = replace(request, completion_tokens_max=reservation.completion_tokens_max)
    try:
        reply = await model.complete(request)
    except ModelFailed:
        await budget.settle(reservation.id, None)
        raise
    usage = reply.usage
    if usage is not None and not is_sane(usage.prompt_tokens, usage.completion_tokens):
        usage = None
    await budget.settle(reservation.id, usage)
    so_far.usage = so_far.usage + (usage or Usage())
    return reply


def _take_calls(reply: ModelReply, setting: _Setting, so_far: _Run) -> StopReason | None:
    """Answer the calls of one reply, in their order; return why the run ends, if it does."""
    taken = reply.calls[: setting.calls_per_round_max]
    named = [(call, _call_id(call, so_far)) for call in taken]
    so_far.messages.append(
        Message(
            "assistant",
            reply.content[:_CONTENT_MAX],
            calls=tuple(_echo(call, call_id, setting) for call, call_id in named),
        )
    )
    for call, call_id in named:
        if setting.cancelled():
            return "cancelled"
        answer = _take_call(call, setting, so_far)
        so_far.outcomes.append(answer["success"] is True)
        text = canonical_json(answer).decode("utf-8")
        so_far.messages.append(Message("tool", text, call_id=call_id))
    dropped = len(reply.calls) - len(taken)
    if dropped:
        message = f"{dropped} calls beyond {setting.calls_per_round_max} in one round were dropped"
        so_far.refuse(Refusal("", "CALLS_PER_ROUND", message, so_far.rounds))
    return "plan-step-limit" if so_far.step_limit_hit else None


def _take_call(call: FunctionCall, setting: _Setting, so_far: _Run) -> dict[str, Json]:
    """Return the answer to one call, as the model sees it."""
    tool = call.name if _NAME.fullmatch(call.name) else "(malformed name)"
    if call.name not in setting.offered:
        return _refused(tool, Refused("TOOL_NOT_OFFERED", "there is no such tool here"), so_far)
    is_read = setting.catalogue.tool(call.name).effect == "read"
    key = (call.name, _fingerprint(call.arguments))
    # A read may be repeated once the plan has changed what it would answer.
    if so_far.seen.get(key) is not None and (not is_read or so_far.seen[key] == len(so_far.steps)):
        return _refused(tool, Refused("DUPLICATE_CALL", "this call was made before"), so_far)
    if not is_read and len(so_far.steps) >= setting.steps_max:
        so_far.step_limit_hit = True
        limit = f"a plan has at most {setting.steps_max} steps"
        return _refused(tool, Refused("PLAN_STEP_LIMIT", limit), so_far)
    index = len(so_far.steps)
    result = dispatch(
        call.name,
        call.arguments,
        caller=setting.caller,
        catalogue=setting.catalogue,
        records=setting.records,
        step=step_id(setting.iteration_id, index),
        index=index,
        planned=so_far.steps,
    )
    if isinstance(result, Refused):
        return _refused(tool, result, so_far)
    so_far.repairs.pop(tool, None)
    so_far.seen[key] = len(so_far.steps)
    if isinstance(result, Planned):
        so_far.steps.append(result.step)
        return _planned(result.step)
    return _answered(tool, result, so_far)


def _planned(step: PlannedStep) -> dict[str, Json]:
    """Return the answer to a write: what it is now, its step, and the ids it will create."""
    status = "planned" if step.decision == "auto" else "proposed"
    data: dict[str, Json] = {"status": status, "stepId": step.id}
    if isinstance(step.data, dict):
        data = {**step.data, **data}
    message = f"{status}: {step.sentence}"
    return {"success": True, "message": message, "data": data}


def _answered(tool: str, result: Answered, so_far: _Run) -> dict[str, Json]:
    """Return the answer to a read, as long as the run's text stays within its limit."""
    answer: dict[str, Json] = {"success": True, "message": result.message, "data": result.data}
    size = len(canonical_json(answer))
    if so_far.input_chars + size > INPUT_CHARS_MAX:
        limit = f"a run reads at most {INPUT_CHARS_MAX} characters"
        return _refused(tool, Refused("INPUT_SIZE_LIMIT", limit), so_far)
    so_far.input_chars += size
    return answer


def _refused(tool: str, refused: Refused, so_far: _Run) -> dict[str, Json]:
    """Return the answer to a refused call; the first fault in arguments may be repaired."""
    refusal = Refusal(tool, refused.code, refused.message[:500], so_far.rounds)
    if refused.repairable and tool not in so_far.repairs:
        # Counted as a refusal at the end of the run, unless a valid call takes its place.
        so_far.repairs[tool] = refusal
        message = f"{refusal.message}. Correct the arguments and call once more, or leave it."
    else:
        if refused.repairable:
            so_far.repairs[tool] = None
        so_far.refuse(refusal)
        message = f"{refusal.message}. Refused; do not repeat this call."
    return {"success": False, "message": message, "data": {"code": refused.code}}


def _call_id(call: FunctionCall, so_far: _Run) -> str:
    """Return the provider's id of a call, or our own where it is unusable or taken."""
    call_id = call.id
    if not _CALL_ID.fullmatch(call_id) or call_id in so_far.call_ids:
        call_id = f"call-{so_far.rounds}-{len(so_far.call_ids)}"
        while call_id in so_far.call_ids:
            call_id += "-"
    so_far.call_ids.add(call_id)
    return call_id


def _echo(call: FunctionCall, call_id: str, setting: _Setting) -> FunctionCall:
    """Return a call as the history keeps it: what was refused unseen is not sent back."""
    known = call.name in setting.offered
    name = call.name if known else "unknown_tool"
    try:
        small = len(canonical_json(call.arguments)) <= _CONTENT_MAX
    except Invalid:
        small = False
    kept = known and small and isinstance(call.arguments, dict)
    return FunctionCall(call_id, name, call.arguments if kept else {})


def _fingerprint(arguments: Json) -> bytes:
    """Return the one byte form of arguments without their rationale; empty if they have none."""
    if isinstance(arguments, dict):
        arguments = {name: value for name, value in arguments.items() if name != RATIONALE}
    try:
        return canonical_json(arguments)
    except Invalid:
        return b""


def _writable(text: str) -> str:
    """Return text that has a UTF-8 form: half characters are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _reminders(plan_input: PlanInput, so_far: _Run, *, metered: bool) -> list[Message]:
    """Return what the model is reminded of in this request only."""
    state = RunState(
        round=so_far.rounds,
        outcomes=tuple(so_far.outcomes),
        tokens_used=plan_input.tokens_today + so_far.usage.total,
        tokens_max=plan_input.agent.tokens_per_day_max if metered else None,
    )
    return [Message("system", f"<reminder>{text}</reminder>") for text in reminders(state)]
