"""The register: who may grant what, and that what has ended never changes again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.domain.clock import parse_iso_ms
from mana.domain.grants import LIFE_MS_DEFAULT, LIFE_MS_MAX, LIFE_MS_MIN
from mana.hub.db import Pool, Tenancy
from mana.hub.db.errors import AccessRefused
from mana.hub.runner.keys import PUBLIC_FILE
from mana.hub.tenants import Tenant
from mana.protocol.messages import GrantRequest, GrantsAnswer, Signature
from mana.testing.postgres import Database, connected, database_text
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

PATH = "/api/v1/me/ai-mission-grant"


def asked(**options: Any) -> GrantRequest:
    given: dict[str, Any] = {
        "mission_id": "mission-1",
        "tables": ["notes"],
        "record_ids": ["notes:note-1"],
        "endpoints": ["rules:offline"],
        **options,
    }
    return GrantRequest(**given)


async def founded(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.mission()


async def grants(made: World) -> GrantsAnswer:
    answer = await made.ada.call("GET", f"{PATH}s")
    return msgspec.json.decode(answer.content, type=GrantsAnswer)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"mission_id": "none"}, 404, "NOT_FOUND"),
        ({"agent_id": "none"}, 400, "BAD_REQUEST"),
        ({"record_ids": ["notes:none"]}, 404, "NOT_FOUND"),
        ({"record_ids": ["tasks:note-1"]}, 400, "BAD_REQUEST"),
        ({"record_ids": []}, 400, "BAD_REQUEST"),
        ({"endpoints": []}, 400, "BAD_REQUEST"),
        ({"endpoints": ["https://a.test", "https://b.test"]}, 400, "ENDPOINT_UNKNOWN"),
        ({"endpoints": ["rules:offline", "http://own.test"]}, 400, "OWN_ENDPOINT_REFUSED"),
        ({"endpoints": ["https://own.test/v1"]}, 400, "OWN_ENDPOINT_REFUSED"),
        ({"endpoints": ["https://127.0.0.1"]}, 400, "OWN_ENDPOINT_REFUSED"),
        ({"endpoints": ["rules:online"]}, 400, "OWN_ENDPOINT_REFUSED"),
        ({"suite": "none"}, 400, "BAD_REQUEST"),
        ({"space_id": "0" * 64}, 404, "NOT_FOUND"),
    ],
)
async def test_refused_requests(
    database: Database, options: dict[str, Any], status: int, code: str
) -> None:
    """A header is made only for a mission, agent, records and models that are there."""
    async with world(database) as made:
        await founded(made)
        answer = await made.ada.call("POST", PATH, asked(**options))
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("ttl_ms", "life_ms"),
    [(None, LIFE_MS_DEFAULT), (1, LIFE_MS_MIN), (10**12, LIFE_MS_MAX), (7_200_000, 7_200_000)],
)
async def test_life_is_clamped(database: Database, ttl_ms: int | None, life_ms: int) -> None:
    """A grant lives from one hour to thirty days, and seven days if nothing is asked."""
    async with world(database) as made:
        await founded(made)
        header = await made.header(ttl_ms=ttl_ms)
        assert parse_iso_ms(header.expires_at) - parse_iso_ms(header.issued_at) == life_ms


async def test_not_configured(database: Database) -> None:
    """Without a runner's public key nothing can be granted; it is found as soon as it is there."""
    async with world(database) as made:
        await founded(made)
        path = made.home / "secrets" / PUBLIC_FILE
        text = path.read_text()
        path.unlink()
        for method, where, body in (("POST", PATH, asked()), ("GET", "/api/v1/runner", None)):
            answer = await made.ada.call(method, where, body)
            assert (answer.status_code, answer.json()["code"]) == (503, "GRANT_NOT_CONFIGURED")
        path.write_text(text)
        assert (await made.ada.call("POST", PATH, asked())).status_code == 201


async def test_life_of_a_grant(database: Database) -> None:
    """A newer grant replaces the older one; sealed keys are gone from all that have ended."""
    async with world(database) as made:
        await founded(made)
        first = await made.grant()
        second = await made.grant()
        states = {one.header["grantId"]: one.state for one in (await grants(made)).grants}
        assert states == {first.grant_id: "replaced", second.grant_id: "active"}
        await made.revoke(second)
        await made.revoke(second)
        states = {one.header["grantId"]: one.state for one in (await grants(made)).grants}
        assert states == {first.grant_id: "replaced", second.grant_id: "revoked"}
        assert (await made.status()).hold == "revoked"
        async with connected(database.owner_url) as connection:
            kept = await connection.fetchval(
                "select count(*) from mana_ai.grants"
                " where sealed_keys is not null or wrapped_key is not null"
            )
        assert kept == 0


async def test_revoked_for_ever(database: Database) -> None:
    """No path leads back from revoked: not the protocol's, and not a statement of the hub's role."""
    async with world(database) as made:
        await founded(made)
        header = await made.header()
        done = await made.completion(header)
        await made.revoke(header)
        answer = await made.ada.call("POST", f"{PATH}/{header.grant_id}/complete", done)
        assert (answer.status_code, answer.json()["code"]) == (409, "GRANT_ENDED")
        async with Pool(database.app_url) as pool:
            for statement in (
                (
                    "update mana_ai.grants set state = 'active', ended_at = null,"
                    " sealed_keys = 'x', wrapped_key = 'x'"
                ),
                "update mana_ai.grants set ended_at = now()",
            ):
                with pytest.raises(AccessRefused):
                    async with Tenancy(pool).transaction(Tenant(made.ada.account.account_id)) as tx:
                        await tx.execute(statement)
            async with Tenancy(pool).transaction(Tenant(made.ada.account.account_id)) as tx:
                assert await tx.execute("delete from mana_ai.grants") == 0


async def test_scope_is_fixed(database: Database) -> None:
    """The scope and life of an active grant cannot be changed, whoever the statement is by."""
    async with world(database) as made:
        await made.ready()
        async with Pool(database.app_url) as pool:
            for change in (
                "header = '{}'",
                "expires_at = now() + interval '1 year'",
                "sealed_keys = 'x'",
                "state = 'pending'",
            ):
                with pytest.raises((AccessRefused, Exception)) as caught:
                    async with Tenancy(pool).transaction(Tenant(made.ada.account.account_id)) as tx:
                        await tx.execute(f"update mana_ai.grants set {change}")
                assert caught.value.sqlstate in ("42501", "23514")  # type: ignore[attr-defined]


@pytest.mark.parametrize("member", ["wrapped_key", "sealed_keys", "signature", "signer"])
async def test_completion_must_verify(database: Database, member: str) -> None:
    """A completion with any other byte, or by a device that is not registered, is refused."""
    async with world(database) as made:
        await founded(made)
        header = await made.header()
        done = await made.completion(header)
        signature = done.signature
        other: dict[str, Any] = {
            "wrapped_key": {"wrapped_key": "AAAA"},
            "sealed_keys": {"sealed_keys": done.sealed_keys[:-4] + "AAAA"},
            "signature": {"signature": Signature(signer=signature.signer, value="A" * 86 + "==")},
            "signer": {
                "signature": Signature(
                    signer="00000000-0000-4000-8000-000000000000", value=signature.value
                )
            },
        }
        changed = msgspec.structs.replace(done, **other[member])
        answer = await made.ada.call("POST", f"{PATH}/{header.grant_id}/complete", changed)
        assert (answer.status_code, answer.json()["code"]) == (400, "GRANT_REFUSED")


async def test_pending_for_an_hour(database: Database) -> None:
    """A header that is not completed within an hour is void."""
    async with world(database) as made:
        await founded(made)
        header = await made.header()
        done = await made.completion(header)
        async with connected(database.owner_url) as connection:
            await connection.execute("alter table mana_ai.grants disable trigger guard_grant")
            await connection.execute(
                "update mana_ai.grants set created_at = now() - interval '61 minutes'"
            )
            await connection.execute("alter table mana_ai.grants enable trigger guard_grant")
        answer = await made.ada.call("POST", f"{PATH}/{header.grant_id}/complete", done)
        assert (answer.status_code, answer.json()["code"]) == (409, "GRANT_ENDED")


async def test_strangers_see_nothing(database: Database) -> None:
    """Another account sees no grant, mission or audit row of this one, and can end none."""
    async with world(database) as made:
        header = await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        bob = await made.served.sign_up("bob")
        assert (await bob.call("GET", f"{PATH}s")).json()["grants"] == []
        assert (await bob.call("GET", "/api/v1/me/missions")).json()["missions"] == []
        assert (await bob.call("GET", "/api/v1/me/ai-audit?missionId=mission-1")).json()[
            "rows"
        ] == []
        for method, path in (
            ("DELETE", f"{PATH}/{header.grant_id}"),
            ("POST", f"/api/v1/spaces/{made.ada.space}/missions/mission-1/run"),
        ):
            assert (await bob.call(method, path)).status_code == 404


@pytest.mark.parametrize(
    ("limit", "rows"), [("0", 1), ("-5", 1), ("5000", 3), ("2", 2), ("200", 3)]
)
async def test_audit_pages(database: Database, limit: str, rows: int) -> None:
    """The audit is paged newest first, with a limit from 1 to 1000 and the head of its chain."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        answer = await made.audit(f"?limit={limit}")
        assert len(answer.rows) == rows
        assert answer.head_seq == answer.rows[0].seq == 3
        assert answer.head_hash == answer.rows[0].hash
        assert answer.more == (rows < 3)
        rest = await made.audit(f"?before={answer.rows[-1].seq}")
        assert [row.seq for row in rest.rows] == list(range(answer.rows[-1].seq - 1, 0, -1))


async def test_deleted_account_leaves_nothing(database: Database) -> None:
    """When an account is removed, so are its grants, runs, audit, snapshots and use of tokens."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        body = {"loginKey": b64(made.ada.account.login_key)}
        assert (await made.ada.call("DELETE", "/api/v1/me", body)).status_code == 204
        text = await database_text(database.owner_url)
        assert made.ada.account.account_id not in text
        assert made.ada.space not in text
