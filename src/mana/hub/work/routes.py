"""The hub's endpoints for the work of an account (docs/protocol/engine.md, 1 and 3)."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Endpoint
from mana.hub.work.service import WorkService
from mana.protocol.messages import SetWork, WorkState

WORK: Final = "/api/v1/me/ai-work"


def work_routes(service: WorkService) -> tuple[Endpoint, ...]:
    """Return the endpoints that tell, stop and cap the work of an account."""

    async def state(call: Call) -> WorkState:
        return await service.state(call.tenant)

    async def change(call: Call) -> WorkState:
        return await service.set(call.tenant, call.message(SetWork))

    return (
        Endpoint(
            "GET", WORK, state, "Whether anything runs for the account, its caps", answer=WorkState
        ),
        Endpoint(
            "PUT",
            WORK,
            change,
            "Stop the account's work or lower its caps; signed, also the other way round",
            body=SetWork,
            answer=WorkState,
        ),
    )
