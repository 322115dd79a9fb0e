"""The hub's endpoints for the work of an account (docs/protocol/engine.md, 1 and 3)."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Endpoint
from mana.hub.work.store import WorkStore
from mana.protocol.messages import SetWork, WorkState

WORK: Final = "/api/v1/me/ai-work"


def work_routes(store: WorkStore) -> tuple[Endpoint, ...]:
    """Return the endpoints that tell, stop and cap the work of an account."""

    async def state(call: Call) -> WorkState:
        async with store.work(call.tenant) as work:
            return await work.state()

    async def change(call: Call) -> WorkState:
        asked = call.message(SetWork)
        async with store.work(call.tenant) as work:
            await work.set(asked)
            return await work.state()

    return (
        Endpoint(
            "GET", WORK, state, "Whether anything runs for the account, its caps", answer=WorkState
        ),
        Endpoint(
            "PUT",
            WORK,
            change,
            "Stop the account's work or let it go on, and set its caps",
            body=SetWork,
            answer=WorkState,
        ),
    )
