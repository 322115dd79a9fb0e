"""Reminders: short notes to the model for one request, computed from the run's state alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WARN_PERCENT: Final = 75
RETRY_ROUND_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class RunState:
    """What reminders look at. `outcomes`: of each call so far, whether it succeeded."""

    round: int
    outcomes: tuple[bool, ...]
    tokens_used: int
    tokens_max: int | None


def reminders(state: RunState) -> tuple[str, ...]:
    """Return the reminders that are due, the budget's before the retry's."""
    return tuple(text for text in (_budget(state), _retry(state)) if text)


def _budget(state: RunState) -> str:
    """Return a note on the day's budget from three quarters on."""
    cap = state.tokens_max
    if cap is None or cap <= 0 or state.tokens_used * 100 < cap * WARN_PERCENT:
        return ""
    spent = f"{state.tokens_used} of {cap} tokens of today's budget are used"
    if state.tokens_used >= cap:
        return f"{spent}. Finish now with a summary; the next call may be refused."
    return f"{spent} ({round(state.tokens_used * 100 / cap)}%). Be brief and finish soon."


def _retry(state: RunState) -> str:
    """Return a note when the last two calls failed, late in the run."""
    if state.round < RETRY_ROUND_MIN or len(state.outcomes) < 2 or any(state.outcomes[-2:]):
        return ""
    return "The last two calls failed. Do not try them again; say in the summary what is missing."
