"""The operator's work. Each step can be cut off anywhere, and is then simply asked for again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mana.domain.errors import Invalid, NotFound
from mana.domain.money import COST_PER_DAY_MAX, TOKENS_PER_DAY_MAX
from mana.hub.accounts.founding import login_name
from mana.hub.accounts.store import AccountStore, hash_of, new_token
from mana.hub.operating.store import HubLimits, KekStore, WorkLimitStore
from mana.hub.runner.rebuilding import Rebuilt
from mana.hub.secrets import KekRing, destroy_old_keks, draw_kek, load, rotating
from mana.protocol.errors import ZeroKnowledgeActive

RESET_LIFE_MS: Final = 24 * 60 * 60 * 1_000
BATCH: Final = 100
"""Wraps that are made anew in one transaction; whoever changes such a vault waits for it."""


class LoginUnknown(NotFound):
    """No account of this hub has this login name."""

    code = "LOGIN_UNKNOWN"
    advice = "Check how the login name is written."


class LimitInvalid(Invalid):
    """A limit of the hub's work is not known, or is outside of what it can be."""

    code = "LIMIT_INVALID"
    advice = "See `mana hub limits --help` for the limits and what they can be."


LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "runs_max": (1, 10_000),
    "runs_per_account_max": (1, 10_000),
    "jitter_ms": (0, 3_600_000),
}
"""By limit of the hub's work the lowest and the highest."""
CAPS: Final[Mapping[str, tuple[int, int]]] = {
    "tokens_per_day_max": (0, TOKENS_PER_DAY_MAX),
    "cost_per_day_max": (0, COST_PER_DAY_MAX),
    "account_tokens_per_day_max": (0, TOKENS_PER_DAY_MAX),
    "account_cost_per_day_max": (0, COST_PER_DAY_MAX),
}
"""Those that can be removed, in the same way."""


class Operator:
    """What whoever runs the hub can do that no account can."""

    def __init__(
        self,
        accounts: AccountStore,
        keks: KekStore,
        work: WorkLimitStore,
        folder: Path,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._keks = keks
        self._work = work
        self._folder = folder
        self._now_ms = now_ms

    async def reset(self, login: str) -> str:
        """Return a one-time token (24 hours) for whoever lost the password of a login.

        Raises LoginUnknown, and ZeroKnowledgeActive where the hub could open nothing.
        """
        token = new_token()
        mode = await self._accounts.open_reset(
            login_name(login), hash_of(token), now_ms=self._now_ms(), life_ms=RESET_LIFE_MS
        )
        if mode is None:
            raise LoginUnknown("there is no account with this login")
        if mode != "standard":
            raise ZeroKnowledgeActive("the account is in zero-knowledge mode")
        return token

    async def stop_work(self, *, stopped: bool) -> HubLimits:
        """Stop all runs of all accounts, or let them go on; the hub may run meanwhile."""
        return await self._work.stop(stopped=stopped)

    async def limits(self, wanted: Mapping[str, int | None]) -> HubLimits:
        """Set limits of the hub's work and return all that are in force; raise LimitInvalid."""
        for name, value in wanted.items():
            low, high = {**LIMITS, **CAPS}.get(name, (0, -1))
            if value is None and name in CAPS:
                continue
            if value is None or not low <= value <= high:
                raise LimitInvalid(f"{name} is a number from {low} to {high}")
        return await (self._work.set(wanted) if wanted else self._work.limits())

    async def rebuild(self) -> Rebuilt:
        """Make the plain side of all missions and agents anew from their records."""
        return await self._work.rebuild()

    async def rotate_kek(self, told: Callable[[int, int], None]) -> None:
        """Put a new KEK in force, make every wrap anew, then destroy the old KEK.

        `told`: how many wraps are made anew, of how many. A change that was cut off goes on
        where it was. Raises SecretsUnusable if a wrap does not open: the old KEK is kept then.
        """
        load(self._folder)
        with rotating(self._folder):
            drawn = draw_kek(self._folder)
            ring, kek_id = KekRing(lambda: drawn), drawn.kek_id
            done, left = 0, await self._keks.left(kek_id)
            told(done, left)
            while not await self._keks.finish(kek_id, lambda: destroy_old_keks(self._folder)):
                done += await self._keks.rewrap(ring, kek_id, BATCH)
                told(done, max(done, left))
