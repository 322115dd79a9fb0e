"""The endpoints of letters (docs/protocol/engine.md, 7)."""

from __future__ import annotations

from mana.hub.http.endpoints import Call, Endpoint, Reply
from mana.hub.letters.service import LetterService
from mana.protocol.messages import NotifyState, SetNotify

PATH = "/api/v1/me/notifications"


def letter_routes(letters: LetterService) -> list[Endpoint]:
    """Return the endpoints."""

    async def state(call: Call) -> Reply:
        return await letters.state(call.tenant)

    async def put(call: Call) -> Reply:
        return await letters.set(call.tenant, call.message(SetNotify))

    return [
        Endpoint("GET", PATH, state, "Whether letters are sent", answer=NotifyState),
        Endpoint(
            "PUT",
            PATH,
            put,
            "Give an address for letters, confirm it, or switch them off",
            body=SetNotify,
            answer=NotifyState,
        ),
    ]
