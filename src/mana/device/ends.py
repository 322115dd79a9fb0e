"""The two ends between which sync moves changes, and how it tells of what moved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from mana.device.hub_client import HubClient
from mana.device.replica import Replica
from mana.device.sealing import Sealer
from mana.device.vault import OpenedVault
from mana.device.views import Notice

CLOCK_OFFSET: Final = "clockOffsetMs"
"""By how much this machine's clock is to be set back, in ms; absent while it is trusted."""


@dataclass(frozen=True, slots=True)
class Ends:
    """One unlocked account and its hub. `announce` tells which tables were touched."""

    replica: Replica
    vault: OpenedVault
    sealer: Sealer
    hub: HubClient
    now_ms: Callable[[], int]
    new_id: Callable[[], str]
    emit: Callable[[Notice], None]
    announce: Callable[[], Awaitable[None]]
