"""What the operator's commands read and write: wraps of master keys under the hub's KEK, of all
accounts, through the doors made for it, and the limits of the hub's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mana.hub.db import Row, Tenancy, load_queries, retried
from mana.hub.runner.rebuilding import Rebuilt, rebuild_all
from mana.hub.runner.rows import to_ms
from mana.hub.secrets import KekRing

Q: Final = load_queries("mana.hub.operating")


class KekStore:
    """Makes wraps anew, a batch in a transaction."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def left(self, kek_id: str) -> int:
        """Return how many wraps name another KEK than this one."""
        async with self._tenancy.door() as tx:
            found: int = await tx.value(Q["kek_left"], kek_id)
        return found

    async def rewrap(self, keks: KekRing, kek_id: str, limit: int) -> int:
        """Bring some wraps under the KEK in force, which is `kek_id`; return how many.

        Raises SecretsUnusable, and changes none of them, if one does not open.
        """

        async def once() -> int:
            async with self._tenancy.door() as tx:
                rows = await tx.all(Q["kek_batch"], kek_id, limit)
                for row in rows:
                    account = row["account_id"]
                    master_key = keks.unwrap(row["kek_wrap"], row["kek_id"], account)
                    made = keks.wrap(master_key, account)
                    await tx.execute(Q["set_kek_wrap"], account, made.wrapped, made.kek_id)
            return len(rows)

        return await retried(once)

    async def finish(self, kek_id: str, destroy: Callable[[], None]) -> bool:
        """Call `destroy` if no wrap names another KEK; return whether it was called.

        Every transaction that wraps holds the lock until it commits, so none can commit later
        under a KEK that it read before; those that begin later read the file anew.
        """
        async with self._tenancy.door() as tx:
            await tx.value(Q["hold_kek"])
            if await tx.value(Q["kek_left"], kek_id):
                return False
            destroy()
        return True


@dataclass(frozen=True, slots=True)
class HubLimits:
    """What the operator sets for the whole hub; None: no cap. Costs are millionths.

    `stopped_ms`: since when nothing runs.
    """

    stopped_ms: int | None
    runs_max: int
    runs_per_account_max: int
    jitter_ms: int
    tokens_per_day_max: int | None
    cost_per_day_max: int | None
    account_tokens_per_day_max: int | None
    account_cost_per_day_max: int | None


class WorkLimitStore:
    """Reads and sets the limits of the hub's work."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def limits(self) -> HubLimits:
        """Return the limits in force."""
        async with self._tenancy.door() as tx:
            rows = await tx.all(Q["limits"])
        return _limits(rows[0])

    async def stop(self, *, stopped: bool) -> HubLimits:
        """Stop all work of the hub or let it go on; whoever works on a run is told at once."""
        async with self._tenancy.door() as tx:
            await tx.value(Q["hold_turns"])
            rows = await tx.all(Q["set_stopped"], stopped)
        return _limits(rows[0])

    async def set(self, limits: Mapping[str, int | None]) -> HubLimits:
        """Set limits by name; those that are not named stay. None, for a cap, removes it."""
        async with self._tenancy.door() as tx:
            rows = await tx.all(Q["set_limits"], dict(limits))
        return _limits(rows[0])

    async def rebuild(self) -> Rebuilt:
        """Make the snapshots of all missions and agents anew from their records."""
        return await rebuild_all(self._tenancy)


def _limits(row: Row) -> HubLimits:
    stopped = row["stopped_at"]
    return HubLimits(
        stopped_ms=None if stopped is None else to_ms(stopped),
        runs_max=row["runs_max"],
        runs_per_account_max=row["runs_per_account_max"],
        jitter_ms=row["jitter_ms"],
        tokens_per_day_max=row["tokens_per_day_max"],
        cost_per_day_max=row["cost_per_day_max"],
        account_tokens_per_day_max=row["account_tokens_per_day_max"],
        account_cost_per_day_max=row["account_cost_per_day_max"],
    )
