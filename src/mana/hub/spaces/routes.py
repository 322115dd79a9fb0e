"""The endpoints of spaces."""

from __future__ import annotations

from mana.hub.http.endpoints import Call, Endpoint, Reply
from mana.hub.spaces.store import SpaceStore
from mana.hub.sync.service import space_of
from mana.protocol.messages import DevicesAnswer, SpacesAnswer


def space_routes(spaces: SpaceStore) -> list[Endpoint]:
    """Return the endpoints that list spaces and the devices in them."""

    async def list_spaces(call: Call) -> Reply:
        return SpacesAnswer(spaces=await spaces.spaces(call.tenant))

    async def devices(call: Call) -> Reply:
        space_id = space_of(call.path["spaceId"])
        return DevicesAnswer(devices=await spaces.devices(call.tenant, space_id))

    return [
        Endpoint("GET", "/api/v1/spaces", list_spaces, "The account's spaces", answer=SpacesAnswer),
        Endpoint(
            "GET",
            "/api/v1/spaces/{spaceId}/devices",
            devices,
            "Devices of the members of a space",
            answer=DevicesAnswer,
        ),
    ]
