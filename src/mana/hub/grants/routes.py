"""The hub's endpoints for grants, missions and the audit (docs/protocol/grants.md, 1, 2 and 6)."""

from __future__ import annotations

from mana.hub.grants.service import GrantService
from mana.hub.http.endpoints import Call, Endpoint
from mana.hub.runner.audit import AUDIT_QUERY
from mana.protocol.messages import (
    AuditAnswer,
    GrantCompletion,
    GrantHeaderAnswer,
    GrantInfo,
    GrantRequest,
    GrantsAnswer,
    MissionsAnswer,
    MissionStatus,
    OccurrenceInfo,
    RevokeGrant,
    RunnerInfo,
)

COMPLETION_BYTES_MAX = 5 * 1024 * 1024
GRANT = "/api/v1/me/ai-mission-grant"
MISSION = "/api/v1/spaces/{spaceId}/missions/{missionId}"


def grants_endpoints(service: GrantService) -> tuple[Endpoint, ...]:
    """Return the endpoints of the register, the run ledger and the audit."""

    async def runner(_call: Call) -> RunnerInfo:
        return await service.runner_info()

    async def request(call: Call) -> GrantHeaderAnswer:
        return await service.request(call.tenant, call.message(GrantRequest))

    async def complete(call: Call) -> GrantInfo:
        return await service.complete(
            call.tenant, call.path["grantId"], call.message(GrantCompletion)
        )

    async def grants(call: Call) -> GrantsAnswer:
        return await service.grants(call.tenant)

    async def revoke(call: Call) -> None:
        await service.revoke(call.tenant, call.path["grantId"])

    async def end(call: Call) -> None:
        await service.revoke(call.tenant, call.path["grantId"], call.message(RevokeGrant))

    async def missions(call: Call) -> MissionsAnswer:
        return await service.missions(call.tenant)

    async def run_now(call: Call) -> OccurrenceInfo:
        return await service.run_now(call.tenant, call.path["spaceId"], call.path["missionId"])

    async def stop(call: Call) -> MissionStatus:
        return await service.stop(call.tenant, call.path["spaceId"], call.path["missionId"])

    async def resume(call: Call) -> MissionStatus:
        return await service.resume(call.tenant, call.path["spaceId"], call.path["missionId"])

    async def audit(call: Call) -> AuditAnswer:
        return await service.audit(call)

    return (
        Endpoint(
            "GET", "/api/v1/runner", runner, "The runner's keys and models", answer=RunnerInfo
        ),
        Endpoint(
            "POST",
            GRANT,
            request,
            "Ask for the header of a grant",
            body=GrantRequest,
            answer=GrantHeaderAnswer,
            status=201,
        ),
        Endpoint(
            "POST",
            f"{GRANT}/{{grantId}}/complete",
            complete,
            "Complete a grant",
            body=GrantCompletion,
            answer=GrantInfo,
            bytes_max=COMPLETION_BYTES_MAX,
        ),
        Endpoint("DELETE", f"{GRANT}/{{grantId}}", revoke, "Revoke a grant, for ever", status=204),
        Endpoint(
            "POST",
            f"{GRANT}/{{grantId}}/revoke",
            end,
            "Revoke a grant, for ever, by a device's signed word",
            body=RevokeGrant,
            status=204,
        ),
        Endpoint("GET", f"{GRANT}s", grants, "Grants of the account's spaces", answer=GrantsAnswer),
        Endpoint(
            "GET",
            "/api/v1/me/missions",
            missions,
            "Schedules and runs of the account's missions",
            answer=MissionsAnswer,
        ),
        Endpoint(
            "POST",
            f"{MISSION}/run",
            run_now,
            "Run a mission now",
            answer=OccurrenceInfo,
            status=202,
        ),
        Endpoint(
            "POST", f"{MISSION}/stop", stop, "Stop what runs of a mission", answer=MissionStatus
        ),
        Endpoint(
            "POST",
            f"{MISSION}/resume",
            resume,
            "Let a mission that failed too often go on",
            answer=MissionStatus,
        ),
        Endpoint(
            "GET",
            "/api/v1/me/ai-audit",
            audit,
            "What the runner has opened",
            answer=AuditAnswer,
            query=AUDIT_QUERY,
        ),
    )
