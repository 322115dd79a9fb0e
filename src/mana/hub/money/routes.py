"""Endpoints about money."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Endpoint, TextQuery, WholeQuery
from mana.hub.money.service import DAYS_MAX, MoneyService
from mana.protocol.messages import ReservedTokens, ReserveTokens, SettleTokens, UsageAnswer

RESERVATIONS: Final = "/api/v1/spaces/{spaceId}/missions/{missionId}/reservations"


def money_routes(service: MoneyService) -> tuple[Endpoint, ...]:
    """Return the endpoints of a service."""

    async def usage(call: Call) -> UsageAnswer:
        return await service.usage(call.tenant, call.whole("days"), call.text("by"))

    async def reserve(call: Call) -> ReservedTokens:
        return await service.reserve(
            call.session, call.path["spaceId"], call.path["missionId"], call.message(ReserveTokens)
        )

    async def settle(call: Call) -> None:
        await service.settle(
            call.tenant,
            call.path["spaceId"],
            call.path["missionId"],
            call.path["reservationId"],
            call.message(SettleTokens),
        )

    return (
        Endpoint(
            "GET",
            "/api/v1/me/ai-usage",
            usage,
            "Tokens and costs of the account",
            answer=UsageAnswer,
            query=(
                WholeQuery("days", "how many days back", default=7, low=1, high=DAYS_MAX),
                TextQuery("by", "`hour` (at most 31 days) or `day`", length_max=4),
            ),
        ),
        Endpoint(
            "POST",
            RESERVATIONS,
            reserve,
            "Reserve tokens for a run on a device",
            body=ReserveTokens,
            answer=ReservedTokens,
            status=201,
        ),
        Endpoint(
            "POST",
            f"{RESERVATIONS}/{{reservationId}}/settle",
            settle,
            "Tell what a reservation came to, once",
            body=SettleTokens,
            status=204,
        ),
    )
