"""Calls of a model, answered: only what was offered, within the limits of the run, in their order.

Every call has exactly one answer, whatever it is. The first fault in arguments may be repaired
once; everything else that does not happen is a refusal, which the run keeps.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid
from mana.domain.ids import IterationId, step_id
from mana.domain.records import Records
from mana.domain.tools import TASK
from mana.planning.asking import message_size
from mana.planning.dispatch import Answered, Caller, Planned, PlannedStep, Refused, dispatch
from mana.planning.guardrails import INPUT_CHARS_MAX, Rates, before_call, before_step
from mana.planning.markers import is_marked
from mana.planning.ports import FunctionCall, Message, ModelReply
from mana.registry.catalogue import Catalogue
from mana.registry.schemas import RATIONALE

REFUSALS_MAX: Final = 50
CONTENT_MAX: Final = 16_000
MARKED: Final = "marker"
"""The flag of a plan whose material, or whose calls, bear the mark of an injected instruction."""
_REFUSAL_CHARS_MAX: Final = 500
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Answer = dict[str, Json]
Delegate = Callable[[FunctionCall], Awaitable["Answer | Refused"]]


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
class Setting:
    """What stays the same during one run, for the agent and its sub-agents alike."""

    caller: Caller
    catalogue: Catalogue
    records: Records
    iteration_id: IterationId
    steps_max: int
    calls_per_round_max: int


@dataclass(slots=True)
class Work:
    """What one run has come to so far, by the agent and its sub-agents together."""

    rates: Rates
    chars_read: int
    steps: list[PlannedStep] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    calls: int = 0
    step_limit_hit: bool = False
    writes_seen: set[tuple[str, bytes]] = field(default_factory=set)

    def refuse(self, refusal: Refusal) -> None:
        """Keep a refusal; beyond the limit only the first ones are of interest."""
        if len(self.refusals) < REFUSALS_MAX:
            self.refusals.append(refusal)

    def flag(self, name: str) -> None:
        """Note something about the run, once."""
        if name not in self.flags:
            self.flags.append(name)

    def has_room(self, size: int) -> bool:
        """Take so many characters of what the run may read; say whether they were left."""
        if self.chars_read + size > INPUT_CHARS_MAX:
            return False
        self.chars_read += size
        return True


@dataclass(slots=True)
class Talk:
    """One conversation with a model: the agent's, or a sub-agent's.

    `size`: bytes of all messages. `marked`: new material bears a mark that was not reminded of.
    """

    offered: frozenset[str]
    messages: list[Message] = field(default_factory=list)
    size: int = 0
    round: int = 0
    summary: str = ""
    outcomes: list[bool] = field(default_factory=list)
    marked: bool = False
    repairs: dict[str, Refusal | None] = field(default_factory=dict)
    reads_seen: dict[tuple[str, bytes], int] = field(default_factory=dict)
    call_ids: set[str] = field(default_factory=set)

    def say(self, *messages: Message) -> None:
        """Add messages to the history."""
        self.messages += messages
        self.size += sum(map(message_size, messages))

    def begin_anew(self, messages: Sequence[Message]) -> None:
        """Put another history in place of this one; what was read may be read again."""
        self.messages.clear()
        self.size = 0
        self.reads_seen.clear()
        self.say(*messages)


async def answer_calls(
    reply: ModelReply,
    talk: Talk,
    work: Work,
    setting: Setting,
    *,
    delegate: Delegate | None,
    answered: Callable[[], None],
) -> None:
    """Answer the calls of one reply, in their order. `answered` is told after each of them.

    `delegate` answers calls of `task`; None where there is no such call.
    """
    taken = reply.calls[: setting.calls_per_round_max]
    named = [(call, _call_id(call, talk)) for call in taken]
    talk.say(
        Message(
            "assistant",
            reply.content[:CONTENT_MAX],
            calls=tuple(_echo(call, call_id, talk) for call, call_id in named),
        )
    )
    for call, call_id in named:
        answer = await _answer(call, talk, work, setting, delegate)
        work.calls += 1
        talk.outcomes.append(answer["success"] is True)
        talk.say(Message("tool", canonical_json(answer).decode("utf-8"), call_id=call_id))
        answered()
    dropped = len(reply.calls) - len(taken)
    if dropped:
        message = f"{dropped} calls beyond {setting.calls_per_round_max} in one round were dropped"
        work.refuse(Refusal("", "CALLS_PER_ROUND", message, talk.round))


def end_repairs(talk: Talk, work: Work) -> None:
    """Keep as refusals the faults that no later call has mended."""
    for pending in talk.repairs.values():
        if pending is not None:
            work.refuse(pending)
    talk.repairs.clear()


async def _answer(
    call: FunctionCall, talk: Talk, work: Work, setting: Setting, delegate: Delegate | None
) -> Answer:
    """Return the answer to one call, as the model sees it."""
    tool = call.name if _NAME.fullmatch(call.name) else "(malformed name)"
    if call.name not in talk.offered:
        return _refused(tool, Refused("TOOL_NOT_OFFERED", "there is no such tool here"), talk, work)
    if is_marked(call.arguments):
        work.flag(MARKED)
    if too_often := work.rates.taken(call.name):
        return _refused(tool, too_often, talk, work)
    if call.name == TASK and delegate is not None:
        result = await delegate(call)
        if isinstance(result, Refused):
            return _refused(tool, result, talk, work)
        talk.repairs.pop(tool, None)
        return result
    return _taken(call, talk, work, setting)


def _taken(call: FunctionCall, talk: Talk, work: Work, setting: Setting) -> Answer:
    """Return the answer to a call of a tool of the catalogue."""
    tool, catalogue = call.name, setting.catalogue
    is_read = catalogue.tool(tool).effect == "read"
    key = (tool, _fingerprint(call.arguments))
    # A read may be repeated once the plan has changed what it would answer.
    if key in work.writes_seen or talk.reads_seen.get(key) == len(work.steps):
        return _refused(tool, Refused("DUPLICATE_CALL", "this call was made before"), talk, work)
    if not is_read and len(work.steps) >= setting.steps_max:
        work.step_limit_hit = True
        limit = f"a plan has at most {setting.steps_max} steps"
        return _refused(tool, Refused("PLAN_STEP_LIMIT", limit), talk, work)
    blocked = before_call(tool, call.arguments, catalogue=catalogue, planned=work.steps)
    if blocked is not None:
        return _refused(tool, blocked, talk, work)
    index = len(work.steps)
    result = dispatch(
        tool,
        call.arguments,
        caller=setting.caller,
        catalogue=catalogue,
        records=setting.records,
        step=step_id(setting.iteration_id, index),
        index=index,
        planned=work.steps,
    )
    if isinstance(result, Planned):
        refused = before_step(result.step, catalogue=catalogue, planned=work.steps)
        result = refused if refused is not None else result
    if isinstance(result, Refused):
        return _refused(tool, result, talk, work)
    talk.repairs.pop(tool, None)
    if isinstance(result, Planned):
        work.writes_seen.add(key)
        work.steps.append(result.step)
        return _planned(result.step)
    talk.reads_seen[key] = len(work.steps)
    return _answered(tool, result, talk, work)


def _planned(step: PlannedStep) -> Answer:
    """Return the answer to a write: what it is now, its step, and the ids it will create."""
    status = "planned" if step.decision == "auto" else "proposed"
    data: dict[str, Json] = {"status": status, "stepId": step.id}
    if isinstance(step.data, dict):
        data = {**step.data, **data}
    return {"success": True, "message": f"{status}: {step.sentence}", "data": data}


def _answered(tool: str, result: Answered, talk: Talk, work: Work) -> Answer:
    """Return the answer to a read, as long as the run's text stays within its limit."""
    answer: Answer = {"success": True, "message": result.message, "data": result.data}
    if not work.has_room(len(canonical_json(answer))):
        limit = f"a run reads at most {INPUT_CHARS_MAX} characters"
        return _refused(tool, Refused("INPUT_SIZE_LIMIT", limit), talk, work)
    if is_marked(answer):
        work.flag(MARKED)
        talk.marked = True
    return answer


def _refused(tool: str, refused: Refused, talk: Talk, work: Work) -> Answer:
    """Return the answer to a refused call; the first fault in arguments may be repaired."""
    refusal = Refusal(tool, refused.code, refused.message[:_REFUSAL_CHARS_MAX], talk.round)
    if refused.repairable and tool not in talk.repairs:
        # Counted as a refusal at the end of the run, unless a valid call takes its place.
        talk.repairs[tool] = refusal
        message = f"{refusal.message}. Correct the arguments and call once more, or leave it."
    else:
        if refused.repairable:
            talk.repairs[tool] = None
        work.refuse(refusal)
        message = f"{refusal.message}. Refused; do not repeat this call."
    return {"success": False, "message": message, "data": {"code": refused.code}}


def _call_id(call: FunctionCall, talk: Talk) -> str:
    """Return the provider's id of a call, or our own where it is unusable or taken."""
    call_id = call.id
    if not _CALL_ID.fullmatch(call_id) or call_id in talk.call_ids:
        call_id = f"call-{talk.round}-{len(talk.call_ids)}"
        while call_id in talk.call_ids:
            call_id += "-"
    talk.call_ids.add(call_id)
    return call_id


def _echo(call: FunctionCall, call_id: str, talk: Talk) -> FunctionCall:
    """Return a call as the history keeps it: what was refused unseen is not sent back."""
    known = call.name in talk.offered
    name = call.name if known else "unknown_tool"
    try:
        small = len(canonical_json(call.arguments)) <= CONTENT_MAX
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
