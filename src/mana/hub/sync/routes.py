"""The endpoints of sync."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import (
    Call,
    Document,
    Endpoint,
    EventStream,
    Reply,
    TextQuery,
    WholeQuery,
)
from mana.hub.sync.live import LiveHub
from mana.hub.sync.service import SyncService
from mana.protocol.errors import UpgradeNeeded
from mana.protocol.messages import (
    BATCH_BYTES_MAX,
    PULL_LIMIT_MAX,
    PullAnswer,
    PushAnswer,
    PushRequest,
    StateAnswer,
)

SOCKET_PATH: Final = "/api/v1/live/socket"
_SPACE: Final = "/api/v1/spaces/{spaceId}"


def sync_routes(sync: SyncService, live: LiveHub) -> list[Endpoint]:
    """Return push, pull, state and the live stream."""

    async def push(call: Call) -> Reply:
        return await sync.push(call.tenant, call.path["spaceId"], call.message(PushRequest))

    async def pull(call: Call) -> Reply:
        return await sync.pull(
            call.tenant,
            call.path["spaceId"],
            after=call.whole("after"),
            limit=call.whole("limit"),
        )

    async def state(call: Call) -> Reply:
        space, page = call.path["spaceId"], call.text("page")
        return Document(await sync.state(call.tenant, space, page=page))

    async def state_of(call: Call) -> Reply:
        path = call.path
        record = path["spaceId"], path["table"], path["recordId"]
        return Document(await sync.state_of(call.tenant, *record))

    async def listen(call: Call) -> Reply:
        live.require_room(call.session)
        return EventStream(live.events(call.session))

    async def upgrade(_call: Call) -> Reply:
        raise UpgradeNeeded("this path speaks WebSocket only")

    return [
        Endpoint(
            "POST",
            f"{_SPACE}/changes",
            push,
            "Push changes",
            body=PushRequest,
            answer=PushAnswer,
            bytes_max=BATCH_BYTES_MAX,
        ),
        Endpoint(
            "GET",
            f"{_SPACE}/changes",
            pull,
            "Pull the changes after a cursor",
            answer=PullAnswer,
            query=(
                WholeQuery("after", "The cursor: the last seq that is known"),
                WholeQuery(
                    "limit", "How many changes at most", PULL_LIMIT_MAX, low=1, high=PULL_LIMIT_MAX
                ),
            ),
        ),
        Endpoint(
            "GET",
            f"{_SPACE}/records",
            state,
            "The merged records, page by page",
            answer=StateAnswer,
            query=(TextQuery("page", "`next` of the page before"),),
        ),
        Endpoint(
            "GET",
            f"{_SPACE}/records/{{table}}/{{recordId}}",
            state_of,
            "One merged record, or none",
            answer=StateAnswer,
        ),
        Endpoint(
            "GET",
            "/api/v1/live",
            listen,
            "Notices of what moved",
            media_type="text/event-stream",
        ),
        Endpoint(
            "GET",
            SOCKET_PATH,
            upgrade,
            "Notices of what moved, over a WebSocket",
            status=101,
            signed_in=False,
        ),
    ]
