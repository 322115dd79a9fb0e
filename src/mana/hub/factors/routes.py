"""The endpoints of second factors."""

from __future__ import annotations

from mana.hub.factors.service import FactorService
from mana.hub.http.endpoints import Call, Endpoint, Reply
from mana.protocol.messages import (
    FactorsAnswer,
    FactorSetup,
    FinishFactor,
    NewFactor,
    RemoveFactor,
)


def factor_routes(factors: FactorService) -> list[Endpoint]:
    """Return the endpoints."""

    async def listed(call: Call) -> Reply:
        return await factors.factors(call.tenant)

    async def begin(call: Call) -> Reply:
        return await factors.begin(call.session, call.message(NewFactor))

    async def finish(call: Call) -> Reply:
        answer = call.message(FinishFactor).answer
        await factors.finish(call.session, call.path["factorId"], answer)
        return None

    async def remove(call: Call) -> Reply:
        removal = call.message(RemoveFactor)
        await factors.remove(call.session, call.path["factorId"], removal)
        return None

    path = "/api/v1/me/factors"
    return [
        Endpoint("GET", path, listed, "Second factors", answer=FactorsAnswer),
        Endpoint(
            "POST",
            path,
            begin,
            "Begin to add a second factor",
            body=NewFactor,
            answer=FactorSetup,
            status=201,
        ),
        Endpoint(
            "POST",
            f"{path}/{{factorId}}/finish",
            finish,
            "Let a second factor count, by its first answer",
            body=FinishFactor,
            status=204,
        ),
        Endpoint(
            "DELETE",
            f"{path}/{{factorId}}",
            remove,
            "Remove a second factor",
            body=RemoveFactor,
            status=204,
        ),
    ]
