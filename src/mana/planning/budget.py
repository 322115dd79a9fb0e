"""What a day's tokens allow, and what counts as spent. Pure; every budget uses these rules.

The provider is not believed: a usage that cannot be true leaves the whole reservation counted.
"""

from __future__ import annotations

import re
from typing import Final

from mana.planning.ports import BudgetExceeded, Usage

COMPLETION_TOKENS_MIN: Final = 256
"""Below this a reply is cut before it is of use, so the call is not made."""

TOKENS_MAX: Final = 2**40
_REASON: Final = re.compile(r"budget:(\d{1,18})/(\d{1,18})")


def fitting(
    prompt_tokens: int, completion_tokens_max: int, *, cap: int | None, counted: int
) -> int:
    """Return how long a reply may be, at most as wanted; raise BudgetExceeded below the floor.

    Prompt and reply together never exceed what the cap leaves beside `counted`.
    """
    if cap is None:
        return completion_tokens_max
    room = cap - counted - prompt_tokens
    if counted >= cap or room < min(COMPLETION_TOKENS_MIN, completion_tokens_max):
        raise BudgetExceeded(left=max(cap - counted, 0), cap=cap)
    return min(completion_tokens_max, room)


def counted_tokens(usage: Usage | None, reserved: int) -> int:
    """Return what a call counts: what was reported if that can be true, else all reserved."""
    if usage is None or not is_sane(usage.prompt_tokens, usage.completion_tokens):
        return reserved
    return usage.total


def is_sane(prompt_tokens: int, completion_tokens: int) -> bool:
    """Say whether these can be numbers of tokens."""
    return 0 <= prompt_tokens <= TOKENS_MAX and 0 <= completion_tokens <= TOKENS_MAX


def is_used_up(cap: int | None, counted: int, *, metered: bool) -> bool:
    """Say whether an agent may not even begin. A cap of 0 stops it with any model."""
    return cap is not None and (cap <= 0 or (metered and counted >= cap))


def budget_reason(left: int, cap: int) -> str:
    """Return why a run was skipped, as ledgers keep it: the word, what was left, and the cap."""
    return f"budget:{max(left, 0)}/{max(cap, 0)}"


def read_budget_reason(reason: str) -> tuple[int, int] | None:
    """Return what was left and the cap, None for another reason or one without numbers."""
    match = _REASON.fullmatch(reason)
    return (int(match[1]), int(match[2])) if match else None
