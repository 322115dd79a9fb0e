"""Occurrences: one due moment of a mission is worked on once, whoever crashes.

`(mission, scheduled_for)` is unique. The hub's ledger keeps each with its end state and a
reason that the person can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

LEASES_MAX: Final = 3
LEASE_S: Final = 60
HEARTBEAT_S: Final = 15
MISSED_KEPT_MAX: Final = 100

SkipReason = Literal[
    "mission-not-active",
    "agent-missing",
    "agent-paused",
    "agent-archived",
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
    "concurrency",
    "budget",
    "no-price",
    "stopped",
]
FailReason = Literal[
    "crash",
    "provider",
    "timeout",
    "rate-limit",
    "auth",
    "refused-reply",
    "guardrail",
    "inputs",
    "no-model",
    "stopped",
    "internal",
]
"""Why a run failed. `model` stands in ledgers of earlier versions for the first four of a model."""

HOLDING: Final = frozenset({"no-grant", "expired", "revoked"})
"""Reasons that hold the mission's schedule until the person grants again."""

ERRORED: Final = "errored"
"""What holds a mission that failed `FAILURES_MAX` times in a row, until the person resumes it."""

FAILURES_MAX: Final = 5
RETRIES_MS: Final[Mapping[str, tuple[int, ...]]] = {
    "provider": (60_000, 300_000, 900_000),
    "timeout": (60_000, 300_000),
    "rate-limit": (60_000, 300_000, 900_000),
    "refused-reply": (60_000,),
}
"""By class of failure how long an occurrence waits before it is tried again, and how often.

What is not listed would fail again in the same way: it waits for its next due moment. A retry is
the same occurrence, so nothing happens twice, and never later than the next due moment.
"""

RETRY_ASKED_MS_MAX: Final = 60 * 60 * 1_000
"""How long an endpoint may ask to be left alone. A retry heeds it where it is longer than its class."""

FAIL_POINTS: Final = (
    "after_lease",
    "after_audit",
    "after_open",
    "after_model",
    "before_commit",
    "after_commit",
)
"""Places at which a test may kill the runner (`MANA_FAIL_POINT`), in the order of the work."""
