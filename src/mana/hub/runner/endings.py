"""How occurrences end in the ledger, and what is counted of it once that is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from mana.domain.occurrences import ERRORED, FailReason, SkipReason
from mana.hub.runner import scheduling
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import RULES
from mana.hub.runner.queue import End
from mana.hub.runner.scheduling import Locked
from mana.hub.runner.store import Ledger
from mana.planning.budget import read_budget_reason
from mana.planning.ports import FAILURE_KINDS

_GRANT_REASONS: Final = frozenset(
    {
        "no-grant",
        "not-configured",
        "expired",
        "revoked",
        "wrap-rejected",
        "malformed",
        "signature-rejected",
        "scope-mismatch",
        "key-rotated",
        "not-a-member",
        "set-back",
    }
)
STOPPED: Final = "stopped"
_SKIPS: Final = frozenset(get_args(SkipReason))
_FAILURES: Final = frozenset(get_args(FailReason))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an occurrence. `took` False: the lease is another's by now.

    `again`: it is tried again, instead of having ended. `errored`: its mission failed too often.
    """

    state: str
    reason: str | None = None
    took: bool = True
    again: bool = False
    errored: bool = False


async def end_all(
    ledger: Ledger, ends: Sequence[End], *, locked: Locked | None = None
) -> list[Outcome]:
    """End occurrences, or put them back for another try, where their fences are current.

    `locked`: see `scheduling.ended_all`.
    """
    if not ends:
        return []
    found = await scheduling.ended_all(ledger, ends, locked=locked)
    return [
        Outcome(
            one.state,
            one.reason,
            took=ended.took,
            again=ended.retry_ms is not None,
            errored=ended.hold == ERRORED and one.state == "failed",
        )
        for one, ended in zip(ends, found, strict=True)
    ]


def is_skip(reason: str) -> bool:
    """Say whether a run may end as skipped for this reason."""
    return word_of(reason) in _SKIPS


def failure_of(reason: str) -> str:
    """Return the class of a failure, `internal` for a word that is none."""
    return reason if reason in _FAILURES else "internal"


def word_of(reason: str) -> str:
    """Return a reason without the numbers that the one of budgets may have."""
    return "budget" if read_budget_reason(reason) is not None else reason


def count(metrics: Metrics, outcome: Outcome, *, provider: str = RULES) -> None:
    """Count what became of an occurrence. `provider`: a word for the model that it called last."""
    if not outcome.took:
        return
    metrics.errored.inc(outcome.errored)
    if outcome.again:
        metrics.retried.labels(outcome.reason or "").inc()
    reason = outcome.reason or ""
    if outcome.state == "done":
        metrics.decisions.labels("ran").inc()
    elif outcome.state == "skipped":
        if reason in _GRANT_REASONS:
            metrics.grant_skips.labels(reason).inc()
        else:
            metrics.decisions.labels(f"skipped-{word_of(reason)}").inc()
    elif reason in FAILURE_KINDS:
        metrics.parse_failures.inc()
        metrics.provider_errors.labels(provider, reason).inc()
    elif reason == "crash":
        metrics.crashes.inc()
    else:
        metrics.mission_errors.inc()
