"""Push, pull and state, between the edge and the store."""

from __future__ import annotations

from collections.abc import Callable

from mana.domain.errors import Invalid, NotFound
from mana.domain.ids import DeviceId, SpaceId, require_space_id, require_uuid
from mana.hub.sync.store import SyncStore
from mana.hub.sync.validate import Writer, WriterKind
from mana.hub.tenants import Tenant
from mana.protocol.messages import (
    SCHEMA_VERSION,
    PullAnswer,
    PushAnswer,
    PushRequest,
)


class SchemaUnsupported(Invalid):
    """The batch is written in a schema that this hub does not know."""

    code = "SCHEMA_UNSUPPORTED"
    advice = "Update the hub."


class SyncService:
    """What a device asks of sync."""

    def __init__(self, store: SyncStore, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    async def push(self, tenant: Tenant, space: str, request: PushRequest) -> PushAnswer:
        """Append a batch of the account's device."""
        if request.schema_version != SCHEMA_VERSION:
            raise SchemaUnsupported("the batch has another schema version")
        device = DeviceId(require_uuid(request.device_id, "device id"))
        space_id = space_of(space)
        return await self._store.push(
            tenant,
            space_id,
            Writer(WriterKind.DEVICE, tenant.account, device),
            request.changes,
            now_ms=self._now_ms(),
            seen=request.heads.get(space_id, 0),
        )

    async def pull(self, tenant: Tenant, space: str, *, after: int, limit: int) -> PullAnswer:
        """Return the changes after a cursor."""
        return await self._store.pull(
            tenant, space_of(space), after=after, limit=limit, now_ms=self._now_ms()
        )

    async def state(self, tenant: Tenant, space: str, *, page: str | None) -> bytes:
        """Return one page of the merged records, a `StateAnswer` in its wire form."""
        return await self._store.state(tenant, space_of(space), page=page, now_ms=self._now_ms())

    async def state_of(self, tenant: Tenant, space: str, table: str, record_id: str) -> bytes:
        """Return one merged record, or none."""
        return await self._store.state_of(
            tenant, space_of(space), table, record_id, now_ms=self._now_ms()
        )


def space_of(text: str) -> SpaceId:
    """Return the space id of a path; what has another form is no space that exists."""
    try:
        return require_space_id(text)
    except Invalid:
        raise NotFound("there is no such space here") from None
