"""Runs in words: how far one is, what it waits for, how it ended, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Final

from jinja2 import Environment
from markupsafe import Markup, escape

from mana.device import names
from mana.device.words import spent_words
from mana.domain.money import amount_words
from mana.domain.occurrences import ERRORED
from mana.web import words
from mana.web.visits import now_ms
from mana.web.words import counted, t

if TYPE_CHECKING:
    from mana.device.views import MissionView, ModelView, OwnModelView, RunView

_RETRIED: Final = {
    "timeout": "a time-out",
    "provider": "trouble at the model’s endpoint",
    "rate-limit": "too many calls at the model’s endpoint",
    "refused-reply": "an answer that could not be used",
}
_OF_MODELS: Final = frozenset(
    {"auth", "model", "no-model", "provider", "rate-limit", "refused-reply", "timeout"}
)
"""Ways to fail in which a person asks which model it was."""


def equip(templates: Environment) -> None:
    """Give templates what they may use of this."""
    templates.filters |= {
        "run": run_words,
        "run_kind": lambda run: (
            _named(names.KINDS, run.kind) if run.kind in ("manual", "change") else Markup("")
        ),
        "retry": retry_words,
        "how_far": how_far,
        "phase": lambda name: _named(names.PHASES, name),
        "cost": amount_words,
        "spent": spent,
        "by_clock": lambda ms: words.moment(ms, now_ms()),
        "price": price_words,
        "since": since,
        "due_day": lambda day: words.day_name(date.fromisoformat(day)),
    }


def at_work(runs: Sequence[RunView]) -> RunView | None:
    """Return the run that goes on or comes next without waiting for a time."""
    now = now_ms()
    return next(
        (
            run
            for run in runs
            if run.state == "leased" or (run.state == "queued" and not _is_later(run, now))
        ),
        None,
    )


def waiting(runs: Sequence[RunView]) -> RunView | None:
    """Return a run that failed in a way that is tried again later."""
    now = now_ms()
    return next(
        (run for run in runs if run.state == "queued" and run.tries and _is_later(run, now)), None
    )


def shown(runs: Sequence[RunView]) -> list[RunView]:
    """Return the lines of the ledger; a run of a moment to come is shown as the next run."""
    now = now_ms()
    return [run for run in runs if run.state != "queued" or run.scheduled_ms <= now]


def run_words(run: RunView) -> Markup:
    """Return how a run stands or ended."""
    if run.state == "failed" and run.reason == "stopped":
        return t("Stopped")
    if run.state == "queued" and _is_later(run, now_ms()):
        return t("Waits")
    return _named(names.RUN_STATES, run.state)


def retry_words(run: RunView) -> Markup:
    """Return when a run that waits goes on, and what happened before; empty where nothing did."""
    if run.state == "queued" and run.due_ms is not None and _is_later(run, now_ms()):
        at = words.moment(run.due_ms, now_ms())
        if not run.tries:
            return t("starts {at}", at=at)
        if run.last_reason in _RETRIED:
            return t("tries again {at}, after {what}", at=at, what=t(_RETRIED[run.last_reason]))
        return t("tries again {at}. {why}", at=at, why=run.last_reason_words)
    if run.tries:
        return counted(run.tries, "after 1 try that failed", "after {n} tries that failed")
    return Markup("")


def how_far(run: RunView) -> list[Markup]:
    """Return the numbers that a run at work tells of itself, those that say something."""
    parts = (
        (run.round, t("round {n}", n=run.round)),
        (run.tool_calls, counted(run.tool_calls, "1 tool call", "{n} tool calls")),
        (run.steps, counted(run.steps, "1 step", "{n} steps")),
        (run.heard, counted(run.heard, "1 character of the reply", "{n} characters of the reply")),
    )
    return [words for number, words in parts if number]


def spent(run: RunView, currency: str) -> str:
    """Return what a run used so far, and how much of it is a worst case."""
    return spent_words(run.tokens, run.unconfirmed_tokens, run.cost, run.unconfirmed_cost, currency)


def price_words(model: ModelView | OwnModelView, currency: str) -> Markup:
    """Return what a model costs per million tokens, sent and replied."""
    prompt, completion = model.prompt_price, model.completion_price
    if prompt is None or completion is None:
        return t("no price")
    if not prompt and not completion:
        return t("free")
    return t(
        "{sent} sent, {replied} replied, for a million tokens",
        sent=amount_words(prompt, currency),
        replied=amount_words(completion, currency),
    )


def failed_by_model(mission: MissionView) -> bool:
    """Say whether the last run of a mission, or its last try, failed by its model."""
    last = mission.runs[0] if mission.runs else None
    why = "" if last is None else last.last_reason if last.state == "queued" else last.reason
    return why in _OF_MODELS or (mission.hold == ERRORED and mission.failure in _OF_MODELS)


def raises(now: Sequence[int | None], before: Sequence[int | None]) -> bool:
    """Say whether a cap is higher than it was, or gone."""
    return any(
        was is not None and (one is None or one > was) for one, was in zip(now, before, strict=True)
    )


def saved_words(raised: Sequence[MissionView]) -> Markup:
    """Return that something is saved, and where a cap that was raised does not hold yet."""
    others = [
        one for one in raised if one.grant and one.grant.state == "active" and not one.grant.own
    ]
    if not others:
        return t("Saved.")
    return t(
        "Saved. On the hub the higher limit holds only once whoever granted {title} grants again.",
        title=Markup(", ").join(Markup("“{}”").format(one.title) for one in others),
    )


def since(ms: int) -> Markup:
    """Return a moment that passed by the clock, with its day if it was not today."""
    at, now = words.local(ms), words.local(now_ms())
    named = f"{at:%H:%M}"
    if at.date() != now.date():
        named = t("{day} at {time}", day=words.day_words(at.date(), now.date()), time=named)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        words.iso(ms), words.exact(ms), named
    )


def _is_later(run: RunView, now: int) -> bool:
    return run.due_ms is not None and run.due_ms > now


def _named(known: Mapping[str, str], name: str) -> Markup:
    found = known.get(name)
    return escape(name) if found is None else t(found)
