"""The records of one unlocked account: opened for reading, stamped and sealed for writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mana.device.hub_client import HubClient
from mana.device.settings import DeviceSettings
from mana.device.views import Notice, RefusedChange, SyncStatus
from mana.domain.actors import Actor, Origin
from mana.domain.changes import Change
from mana.domain.encoding import Json
from mana.domain.ids import SpaceId
from mana.domain.records import Record, View, Visibility
from mana.protocol.messages import Proof, Signature
from mana.registry.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Write:
    """A planned change with who makes it. `change_id` is given where it is derived."""

    change: Change
    actor: Actor
    visibility: Visibility = "space"
    change_id: str | None = None
    origin: Origin | None = None


class RecordBook:
    """Access to the records of one unlocked account; raises Locked once it is locked."""

    account_id: str
    login: str
    mode: str
    demo: bool
    device_id: str
    personal_space: SpaceId
    user_space: SpaceId
    settings: DeviceSettings
    catalogue: Catalogue
    hub: HubClient

    async def views(self, table: str, *, include_deleted: bool = False) -> list[View]:
        """Return the records of a table, newest written first."""
        raise NotImplementedError

    async def view(self, table: str, record_id: str) -> View | None:
        """Return one record, also a deleted one; None if there is none."""
        raise NotImplementedError

    async def record(self, table: str, record_id: str) -> Record | None:
        """Return one record as it is stored, with its sealed entries."""
        raise NotImplementedError

    async def commit(
        self, writes: Sequence[Write], *, group: str | None = None, wait: bool = False
    ) -> list[str]:
        """Write, in one transaction, and return the change ids.

        Values are by path; a field's name alone also takes the whole value of a set, list or
        counter. A write whose change id was made before is left out. `wait`: push at once and
        raise ChangeRefused if the hub refuses one, Offline if it cannot be asked (what was
        written then stays and is sent later).
        """
        raise NotImplementedError

    async def proofs(self, table: str, record_id: str) -> dict[str, Proof]:
        """Return, by change id, the signatures that stand behind a record."""
        raise NotImplementedError

    async def is_verified(self, table: str, record_id: str) -> bool:
        """Say whether every path stems from a change that a member's device signed."""
        raise NotImplementedError

    async def record_secret(self, table: str, record_id: str) -> tuple[bytes, str]:
        """Return the record's key and the class and version that it opens, such as `s1`."""
        raise NotImplementedError

    async def mission_secret(self, mission_id: str) -> tuple[bytes, str]:
        """Return the parent key of a mission's runs and its class and version, such as `m1`."""
        raise NotImplementedError

    def sign(self, purpose: str, *parts: str | bytes) -> Signature:
        """Sign a statement with this device's key."""
        raise NotImplementedError

    def on_change(self, callback: Callable[[Notice], None]) -> Callable[[], None]:
        """Call back after local commits, pulls and refusals; return what ends it."""
        raise NotImplementedError

    async def keep(self, name: str, value: Json) -> None:
        """Keep a value on this device only, sealed; None forgets it."""
        raise NotImplementedError

    async def kept(self, name: str) -> Json:
        """Return what was kept under a name, or None."""
        raise NotImplementedError

    async def status(self) -> SyncStatus:
        """Return the truth about sync."""
        raise NotImplementedError

    async def sync_now(self) -> SyncStatus:
        """Push and pull once; raise Offline when the hub cannot be reached."""
        raise NotImplementedError

    async def refused(self) -> list[RefusedChange]:
        """Return the changes that the hub refused."""
        raise NotImplementedError

    async def retry_refused(self, change_id: str) -> None:
        """Send a refused change again, with its group."""
        raise NotImplementedError

    async def drop_refused(self, change_id: str) -> None:
        """Forget a refused change, with its group."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start live sync."""
        raise NotImplementedError

    async def lock(self) -> None:
        """Stop sync, drop every key from memory and close the replica."""
        raise NotImplementedError


class Iterations:
    """Which iterations are to be obeyed."""

    async def iteration_verified(
        self,
        iteration_id: str,
        *,
        headers: Mapping[str, object],
        runners: Mapping[str, object],
    ) -> tuple[bool, str]:
        """Say whether an iteration's proof holds, and the reason if not."""
        raise NotImplementedError
