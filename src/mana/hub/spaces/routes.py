"""The endpoints of spaces."""

from __future__ import annotations

from mana.hub.http.endpoints import Call, Endpoint, Reply
from mana.hub.spaces.service import SpaceService
from mana.protocol.messages import (
    BATCH_BYTES_MAX,
    CloseSpace,
    DevicesAnswer,
    MembershipAppend,
    NewSpace,
    PrivateKeys,
    SpaceInfo,
    SpacesAnswer,
)


def space_routes(spaces: SpaceService) -> list[Endpoint]:
    """Return the endpoints of spaces, their membership and their devices."""

    async def list_spaces(call: Call) -> Reply:
        return await spaces.spaces(call.tenant)

    async def create(call: Call) -> Reply:
        return await spaces.create(call.tenant, call.message(NewSpace))

    async def close(call: Call) -> Reply:
        await spaces.close(call.tenant, call.path["spaceId"], call.message(CloseSpace))
        return None

    async def append(call: Call) -> Reply:
        return await spaces.append(
            call.tenant, call.path["spaceId"], call.message(MembershipAppend)
        )

    async def add_keys(call: Call) -> Reply:
        keys = call.message(PrivateKeys)
        await spaces.add_private_keys(call.tenant, call.path["spaceId"], keys)
        return None

    async def retire_key(call: Call) -> Reply:
        await spaces.retire_key(call.tenant, call.path["spaceId"], call.path["key"])
        return None

    async def devices(call: Call) -> Reply:
        return await spaces.devices(call.tenant, call.path["spaceId"])

    all_, one = "/api/v1/spaces", "/api/v1/spaces/{spaceId}"
    return [
        Endpoint("GET", all_, list_spaces, "The account's spaces", answer=SpacesAnswer),
        Endpoint(
            "POST",
            all_,
            create,
            "Found a shared space",
            body=NewSpace,
            answer=SpaceInfo,
            status=201,
        ),
        Endpoint(
            "DELETE",
            one,
            close,
            "Close a space and remove everything of it",
            body=CloseSpace,
            status=204,
            bytes_max=BATCH_BYTES_MAX,
        ),
        Endpoint(
            "POST",
            f"{one}/members",
            append,
            "Append to the membership log of a space",
            body=MembershipAppend,
            answer=SpaceInfo,
            bytes_max=BATCH_BYTES_MAX,
        ),
        Endpoint(
            "POST",
            f"{one}/keys",
            add_keys,
            "Keep the account's own private keys of a space",
            body=PrivateKeys,
            status=204,
        ),
        Endpoint(
            "DELETE",
            f"{one}/keys/{{key}}",
            retire_key,
            "Forget the account's own wrap of an older key that nothing counts on",
            status=204,
        ),
        Endpoint(
            "GET",
            f"{one}/devices",
            devices,
            "Devices of the members of a space",
            answer=DevicesAnswer,
        ),
    ]
