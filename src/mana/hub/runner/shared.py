"""What all parts of a running runner share: what it was told, its counts of a pass, its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from mana.domain.ids import AccountId, SpaceId
from mana.domain.occurrences import SkipReason
from mana.hub.runner import gates
from mana.hub.runner.keys import RunnerKeys
from mana.hub.runner.ledger import Lease, RegisteredGrant
from mana.hub.runner.memory import RunnerMemory
from mana.hub.runner.store import Transaction
from mana.models.settings import ModelSettings
from mana.protocol.messages import ChangeMessage

ERRORS_MAX: Final = 50
log: Final = structlog.get_logger("mana.runner")


class Append(Protocol):
    """How the runner's changes get into the log: hub sync, within the finishing transaction."""

    async def __call__(
        self,
        tx: Transaction,
        account: AccountId,
        space: SpaceId,
        changes: Sequence[ChangeMessage],
        *,
        key_id: str,
        now_ms: int,
    ) -> Sequence[str | None]:
        """Append and merge as the runner of this key.

        Returns for each change the code of the sync protocol why the log refused it, or None.
        """


@dataclass(slots=True)
class TickStats:
    """What one pass came to (reference: engine 18.4)."""

    scanned_at: str
    due_mission_count: int = 0
    plans_produced: int = 0
    plans_written_back: int = 0
    parse_failures: int = 0
    errors: list[str] = field(default_factory=list)

    def fail(self, lease: Lease, code: str) -> None:
        """Note a failure by code; ids and codes are ours, so nobody's text gets out."""
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(f"mission={lease.mission_id}: {code}")


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same while a runner lives. `fail` ends the process at a named place."""

    name: str
    keys: RunnerKeys
    memory: RunnerMemory
    hub_key: Callable[[], str]
    models: ModelSettings
    concurrency: int
    lease_s: int
    heartbeat_s: int
    run_s_max: int
    fail_point: str | None
    fail: Callable[[], None]

    def grant_refusal(self, grant: RegisteredGrant | None) -> SkipReason | None:
        """Return why a grant is not in force for this runner, None if it is."""
        return gates.grant_refusal(
            grant, key_refusal=self.keys.refusal, has_ended=self.memory.has_ended
        )
