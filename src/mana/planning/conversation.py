"""One conversation with a model: rounds of a request, its reply and the answers to its calls.

The agent's own and each sub-agent's are the same; they share models, money and what the run has
come to. Before a request would outgrow what the model can read at once, earlier rounds are folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mana.domain.encoding import Json, canonical_json
from mana.planning import compaction
from mana.planning.asking import Asking, message_size, request_size
from mana.planning.budget import COMPLETION_TOKENS_MIN, estimated_tokens
from mana.planning.calls import Delegate, Setting, Talk, Work, answer_calls, end_repairs
from mana.planning.compaction import Compaction
from mana.planning.ports import (
    BudgetExceeded,
    Message,
    ModelFailed,
    ModelReply,
    ModelRequest,
    Moment,
    PriceUnknown,
    Progress,
    Purpose,
)
from mana.planning.prompt import one_line
from mana.planning.reminders import (
    Producer,
    Reminder,
    RunState,
    Severity,
    as_messages,
    reminders,
)

TEMPERATURE: Final = 0.3
SUMMARY_MAX: Final = 8_000
_BYTES_USUAL: Final = 4
"""Bytes of a token in ordinary text. Reservations take fewer, to be safe; a run that the model could
still read must not end for that.
"""
CONTEXT_FULL: Final = "context-full"
"""The flag of a plan that ended because its next request was too long for the model."""

StopReason = Literal[
    "finished",
    "length",
    "content-filter",
    "rounds",
    "plan-step-limit",
    "budget",
    "model-failed",
]


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a conversation ended; `error` where a call was refused or gave nothing."""

    stop: StopReason
    error: BudgetExceeded | PriceUnknown | ModelFailed | None = None


@dataclass(frozen=True, slots=True)
class Means:
    """What a conversation has at hand: models, tools, limits, and who watches.

    `schemas_size`: bytes of the tools' schemas. `tokens_before`: what the agent used of its day before the run; `tokens_cap` None: no cap.
    `compactions` gets each fold that is made, `reminded` counts what the model was reminded of.
    """

    asking: Asking
    setting: Setting
    work: Work
    progress: Progress
    schemas: tuple[dict[str, Json], ...]
    schemas_size: int
    purpose: Purpose
    rounds_max: int
    completion_tokens_max: int
    tokens_before: int
    tokens_cap: int | None
    compactions: list[Compaction]
    reminded: Counter[tuple[Producer, Severity]]
    delegate: Delegate | None = None


@dataclass(slots=True)
class _Measure:
    """How long the next request is in tokens, as far as anybody can tell.

    What the provider counted of the last request, where that can be true, and an estimate of what
    came since; without its word an estimate of everything. Money is never reserved by it.
    """

    estimated_last: int = 0
    reported_last: int | None = None

    def of(self, size: int) -> int:
        """Return the measure of a request of so many bytes."""
        estimate = estimated_tokens(size)
        if self.reported_last is None:
            return estimate
        return self.reported_last + max(estimate - self.estimated_last, 0)

    def least(self, size: int) -> int:
        """Return what such a request has at least: as counted, or as ordinary text has it."""
        return size // _BYTES_USUAL if self.reported_last is None else self.of(size)

    def learn(self, size: int, reported: int | None) -> None:
        """Take over what a provider said of a request of so many bytes, if it said anything."""
        self.estimated_last, self.reported_last = estimated_tokens(size), reported


@dataclass(slots=True)
class _Rounds:
    """What the rounds of one conversation remember between them."""

    measure: _Measure = field(default_factory=_Measure)
    fold_tried_at: int = -compaction.SPACING_ROUNDS
    folded: bool = False


async def converse(talk: Talk, means: Means) -> Ending:
    """Lead a conversation to its end and return why it ended.

    `talk` holds what was said, `means.work` what was planned.
    """
    rounds, ending = _Rounds(), Ending("rounds")
    while talk.round < means.rounds_max:
        talk.round += 1
        try:
            reply = await _reply(talk, means, rounds)
        except (BudgetExceeded, PriceUnknown) as refused:
            ending = Ending("budget", refused)
            break
        except ModelFailed as failed:
            ending = Ending("model-failed", failed)
            break
        if reply is None:
            means.work.flag(CONTEXT_FULL)
            ending = Ending("length")
            break
        if reply.finish == "length" or reply.finish == "content-filter":
            means.work.flag(reply.finish)
        talk.summary = reply.content[:SUMMARY_MAX]
        if not reply.calls:
            cut = reply.finish == "length" or reply.finish == "content-filter"
            ending = Ending(reply.finish if cut else "finished")  # type: ignore[arg-type]
            break
        means.progress.phase("tools")
        await answer_calls(
            reply,
            talk,
            means.work,
            means.setting,
            delegate=means.delegate,
            answered=_teller(talk, means, "tools"),
        )
        if means.work.step_limit_hit:
            ending = Ending("plan-step-limit")
            break
    end_repairs(talk, means.work)
    return ending


async def _reply(talk: Talk, means: Means, rounds: _Rounds) -> ModelReply | None:
    """Return the reply of this round; None if the request is too long for the model.

    Raises BudgetExceeded, PriceUnknown or ModelFailed, when there is nothing left to fall back on.
    """
    while True:
        await _fold_if_due(talk, means, rounds)
        size = talk.size + means.schemas_size
        least = rounds.measure.least(size)
        if least >= means.asking.current.context_tokens and talk.round > 1:
            # What a first request holds was granted and limited; later ones grow by the model.
            return None
        request, due = _request(talk, means, rounds, least)
        means.progress.phase("model")
        _teller(talk, means, "model")()
        try:
            reply = await means.asking.ask(request, means.purpose, size=size + _weight(due))
        except (ModelFailed, PriceUnknown) as error:
            if not means.asking.falls_back(error):
                raise
            continue
        rounds.measure.learn(size, None if reply.usage is None else reply.usage.prompt_tokens)
        means.reminded.update((one.producer, one.severity) for one in due)
        rounds.folded = talk.marked = False
        return reply


def _request(
    talk: Talk, means: Means, rounds: _Rounds, least: int
) -> tuple[ModelRequest, tuple[Reminder, ...]]:
    """Return the next request, and what the model is reminded of in this one only.

    `least`: the tokens that it has at least, which leave the rest of the context to the reply.
    """
    model = means.asking.current
    state = RunState(
        round=talk.round,
        outcomes=tuple(talk.outcomes),
        tokens_used=means.tokens_before + means.asking.tokens_counted,
        tokens_max=means.tokens_cap if model.model.metered else None,
        compacted=rounds.folded,
        marked=talk.marked,
    )
    room = max(model.context_tokens - least, COMPLETION_TOKENS_MIN)
    due = reminders(state)
    request = ModelRequest(
        messages=(*talk.messages, *as_messages(due)),
        tools=means.schemas,
        temperature=TEMPERATURE,
        completion_tokens_max=min(means.completion_tokens_max, room),
        heard=_teller(talk, means, "model"),
    )
    return request, due


def _weight(due: Sequence[Reminder]) -> int:
    return sum(map(message_size, as_messages(due)))


def _teller(talk: Talk, means: Means, phase: str) -> Callable[..., None]:
    """Return what tells how far the run is; its argument is what was heard of the reply."""
    work = means.work

    def tell(heard: int = 0) -> None:
        means.progress.moment(Moment(phase, talk.round, work.calls, len(work.steps), heard))

    return tell


async def _fold_if_due(talk: Talk, means: Means, rounds: _Rounds) -> None:
    """Fold earlier rounds into a summary; whatever goes wrong leaves the history as it was.

    Who failed to is not asked again in the next round either: each summary costs a call.
    """
    measured = rounds.measure.of(talk.size + means.schemas_size)
    if talk.round - rounds.fold_tried_at < compaction.SPACING_ROUNDS:
        return
    if not compaction.is_due(measured, means.asking.current.context_tokens):
        return
    fold = compaction.fold_of(talk.messages)
    if fold is None:
        return
    rounds.fold_tried_at = talk.round
    means.progress.phase("compaction")
    try:
        request = compaction.request_for(fold)
        reply = await means.asking.ask(request, "compaction", size=request_size(request))
    except (BudgetExceeded, PriceUnknown, ModelFailed):
        # The round goes on without: its own call then meets the same, and ends the run if need be.
        return
    messages = compaction.folded(fold, reply.content, facts=_facts(means.work))
    if messages is not None:
        talk.begin_anew(messages)
        rounds.folded, rounds.measure = True, _Measure()
        means.compactions.append(Compaction(means.purpose, len(fold.folded)))


def _facts(work: Work) -> list[str]:
    """Return the steps planned so far, as they are: a summary must not lose or invent one."""
    lines = []
    for step in work.steps:
        made = one_line(canonical_json(step.data).decode("utf-8")) if step.data else ""
        lines.append(f"- {step.tool}: {one_line(step.sentence)} → step {step.id} {made}".rstrip())
    return lines


def opening(*messages: Message, offered: frozenset[str]) -> Talk:
    """Return a conversation that begins with these messages."""
    talk = Talk(offered)
    talk.say(*messages)
    return talk
