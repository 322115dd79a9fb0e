"""Occurrences: one due moment of a mission is worked on once, whoever crashes.

`(mission, scheduled_for)` is unique. The hub's ledger keeps each with its end state and a
reason that the person can read.
"""

from __future__ import annotations

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
]
FailReason = Literal["crash", "model", "refused-reply", "inputs", "internal"]
HOLDING: Final = frozenset({"no-grant", "expired", "revoked"})
"""Reasons that hold the mission's schedule until the person grants again."""

FAIL_POINTS: Final = (
    "after_lease",
    "after_audit",
    "after_open",
    "after_model",
    "before_commit",
    "after_commit",
)
"""Places at which a test may kill the runner (`MANA_FAIL_POINT`), in the order of the work."""
