"""How long nobody has been there, so that an account that is left open locks itself.

What counts is what a person does; what the device does by itself does not. By default nothing
locks: a locked device works on no mission and lets nobody in, and a household server has nobody
at it. Who wants it sets MANA_AUTO_LOCK_MINUTES, or chooses it for an account on this device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mana.device.records import RecordBook
from mana.device.settings import AUTO_LOCK_MINUTES_MAX
from mana.domain.errors import Invalid

_KEPT: Final = "autoLockMinutes"


class IdleClock:
    """How long a person has been away, by two clocks: the larger counts.

    One that runs on evenly stands still while the machine sleeps, and the wall's can be set back.
    """

    def __init__(self, wall_ms: Callable[[], int], even_s: Callable[[], float]) -> None:
        self._wall_ms = wall_ms
        self._even_s = even_s
        self._seen = (wall_ms(), even_s())

    def touch(self) -> None:
        """Note that a person did something just now."""
        self._seen = (self._wall_ms(), self._even_s())

    def idle_s(self) -> float:
        """Return how long nobody did anything, in seconds."""
        wall_ms, even_s = self._seen
        return max((self._wall_ms() - wall_ms) / 1_000, self._even_s() - even_s)

    def is_over(self, minutes: int) -> bool:
        """Say whether nobody was there for so long; 0 minutes never end."""
        return minutes > 0 and self.idle_s() >= minutes * 60


def require_minutes(minutes: int) -> int:
    """Return a number of minutes after which to lock, 0 for never; raise Invalid."""
    if isinstance(minutes, bool) or not 0 <= minutes <= AUTO_LOCK_MINUTES_MAX:
        raise Invalid(f"an account locks after 0 to {AUTO_LOCK_MINUTES_MAX} minutes; 0: never")
    return minutes


async def auto_lock_minutes(book: RecordBook) -> int:
    """Return after how many minutes this account locks here; 0: never.

    What was chosen for the account on this device comes before the device's setting.
    """
    chosen = await book.kept(_KEPT)
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        return chosen
    return book.settings.auto_lock_minutes


async def choose_auto_lock(book: RecordBook, minutes: int | None) -> None:
    """Choose after how many minutes this account locks here; None: as the device has it."""
    await book.keep(_KEPT, None if minutes is None else require_minutes(minutes))
