"""The endpoints of sessions, of revoked devices and of the security log."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Endpoint, Reply, TextQuery, WholeQuery
from mana.hub.security.log import SecurityLog
from mana.hub.security.service import SecurityService
from mana.protocol.messages import DeviceRevocation, SecurityEvents, SessionsAnswer

EVENTS_MAX: Final = 200


def security_routes(security: SecurityService, log: SecurityLog) -> list[Endpoint]:
    """Return the endpoints."""

    async def sessions(call: Call) -> Reply:
        return await security.sessions(call.session)

    async def end(call: Call) -> Reply:
        await security.end_session(call.session, call.path["sessionId"])
        return None

    async def revoke(call: Call) -> Reply:
        revocation = call.message(DeviceRevocation)
        await security.revoke_device(call.session, call.path["deviceId"], revocation)
        return None

    async def events(call: Call) -> Reply:
        return await log.events(call.tenant, before=call.text("before"), limit=call.whole("limit"))

    self_ = "/api/v1/me"
    return [
        Endpoint("GET", f"{self_}/sessions", sessions, "Sessions", answer=SessionsAnswer),
        Endpoint("DELETE", f"{self_}/sessions/{{sessionId}}", end, "End a session", status=204),
        Endpoint(
            "POST",
            f"{self_}/devices/{{deviceId}}/revoke",
            revoke,
            "Revoke a device for ever",
            body=DeviceRevocation,
            status=204,
        ),
        Endpoint(
            "GET",
            f"{self_}/security",
            events,
            "What happened to keys and sessions",
            answer=SecurityEvents,
            query=(
                TextQuery("before", "Only lines before this moment (ISO 8601)", 32),
                WholeQuery("limit", "How many lines", 50, 1, EVENTS_MAX, clamps=True),
            ),
        ),
    ]
