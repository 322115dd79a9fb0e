"""The runner's HTTP surface, its keys, and that a device can check what it wrote."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mana.crypto.envelope import Binding, RecordKey, open_field
from mana.crypto.keys import mission_key
from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import RunnerWrite, verify_runner_write
from mana.domain.errors import Invalid
from mana.domain.iterations import ITERATIONS, STEPS, binding_hash
from mana.domain.tables import Table
from mana.hub.runner.app import Runner
from mana.hub.runner.keys import RunnerKeys, load_service_key
from mana.hub.runner.settings import RunnerSettings
from mana.hub.runner.workers import ProcessWorkers
from mana.hub.runner.writeback import run_digest
from mana.protocol.messages import StateRecord
from mana.testing.postgres import Database, connected
from tests.runner.processes import gone, has_ended
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]


@asynccontextmanager
async def client(runner: Runner) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=runner.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://runner.test") as http:
        yield http


def opened(made: World, record: StateRecord, table: Table) -> dict[str, object]:
    """Open a record of a run as the person's device does."""
    key = RecordKey.derive(mission_key(made.space.space_key, "mission-1"), record.table, record.id)
    found: dict[str, object] = {}
    for path, entry in record.fields.items():
        value = entry.value
        if table.field_at(path).sealed:
            binding = Binding(
                made.space.space_id, record.table, record.id, path, entry.at, dict(entry.actor)
            )
            value = open_field(key, value, binding=binding)
        table.check(path, value)
        found[path] = value
    return found


@pytest.mark.postgres
@pytest.mark.anyio
async def test_device_can_verify_and_open(database: Database) -> None:
    """From the records alone a device checks who wrote an iteration, and reads it."""
    async with world(database) as made:
        header = await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        state = await made.ada.state()
        (iteration,) = [one for one in state.records if one.table == "aiIterations"]
        steps = [one for one in state.records if one.table == "aiSteps"]
        proof = iteration.fields["proof"].value
        records = [
            (one.table, one.id, {path: field.value for path, field in one.fields.items()})
            for one in (iteration, *steps)
        ]
        assert proof["digest"] == run_digest(records)
        key = await made.runner_key()
        assert proof["keyId"] == key.key_id() == header.runner_key_id
        write = RunnerWrite(
            mission="mission-1",
            scheduled_for=proof["scheduledFor"],
            grant=proof["grantId"],
            fence=proof["fence"],
            digest=proof["digest"],
            audit_seq=proof["auditSeq"],
            audit_hash=proof["auditHash"],
        )
        verify_runner_write(key.signing_key, write, unb64(proof["signature"]))
        audit = await made.audit()
        assert (audit.head_seq, audit.head_hash) == (proof["auditSeq"], proof["auditHash"])
        values = opened(made, iteration, ITERATIONS)
        assert values["stepIds"] == [one.id for one in sorted(steps, key=lambda one: one.id)]
        for one in steps:
            step = opened(made, one, STEPS)
            assert "plumber" in str(step["sentence"])
            assert step["binding"] == binding_hash(
                step["intent"],  # type: ignore[arg-type]
                step["preview"],  # type: ignore[arg-type]
                step["base"],  # type: ignore[arg-type]
            )


@pytest.mark.postgres
@pytest.mark.anyio
async def test_second_run_knows_the_first(database: Database) -> None:
    """A later run reads what earlier ones proposed, with audit rows, and does not repeat it."""
    async with world(database) as made:
        await made.ready()
        async with made.runner() as runner:
            await made.run_now()
            await runner.scheduler.tick()
            await made.run_now()
            stats = await runner.scheduler.tick()
        assert stats.plans_written_back == 1
        state = await made.ada.state()
        iterations = [one for one in state.records if one.table == "aiIterations"]
        steps = [one for one in state.records if one.table == "aiSteps"]
        assert (len(iterations), len(steps)) == (2, 1)
        tables = [row.table_name for row in (await made.audit()).rows]
        assert tables.count("aiIterations") == 1
        assert tables.count("aiSteps") == 1


@pytest.mark.postgres
@pytest.mark.anyio
async def test_surface(database: Database) -> None:
    """Health, figures and audit answer; a tick needs the service key, and one runs at a time."""
    async with world(database) as made:
        await made.ready()
        async with made.runner() as runner, client(runner) as http:
            health = (await http.get("/health")).json()
            assert health["service"] == "mana-ai"
            assert health["tick"] == {"enabled": False, "running": False}
            for headers in ({}, {"x-service-key": "wrong"}):
                answer = await http.post("/internal/tick", headers=headers)
                assert answer.status_code == 401
            await made.run_now()
            key = {"x-service-key": "service"}
            one, two = await asyncio.gather(
                http.post("/internal/tick", headers=key), http.post("/internal/tick", headers=key)
            )
            answers = sorted((one.json(), two.json()), key=lambda one: len(one["errors"]))
            assert answers[0]["plansWrittenBack"] == 1
            assert answers[1]["errors"] == ["overlap-skipped"]
            assert set(answers[0]) == {
                "scannedAt",
                "dueMissionCount",
                "plansProduced",
                "plansWrittenBack",
                "parseFailures",
                "errors",
            }
            figures = (await http.get("/metrics")).text
            assert "mana_ai_plans_written_back_total 1.0" in figures
            assert 'mana_ai_agent_decisions_total{decision="ran"} 1.0' in figures
            assert "mana_ai_ticks_total 1.0" in figures
            assert (await http.get("/api/v1/me/ai-audit")).status_code == 401
            token = {"authorization": f"Bearer {made.ada.tokens.access_token}"}
            rows = (await http.get("/api/v1/me/ai-audit?limit=2", headers=token)).json()
            assert len(rows["rows"]) == 2
            assert rows["headSeq"] == 3


@pytest.mark.postgres
@pytest.mark.anyio
async def test_a_session_that_ended_is_told_nothing(database: Database) -> None:
    """The runner tells the audit to whoever's session stands, however long their token would hold."""
    async with world(database) as made, made.runner() as runner, client(runner) as http:
        token = {"authorization": f"Bearer {made.ada.tokens.access_token}"}
        assert (await http.get("/api/v1/me/ai-audit", headers=token)).status_code == 200
        for column, wants in (
            ("ended_at = now()", "SESSION_ENDED"),
            ("revoked = true", "DEVICE_REVOKED"),
        ):
            async with connected(database.owner_url) as owner:
                await owner.execute(f"update mana.sessions set {column}")
            answer = await http.get("/api/v1/me/ai-audit", headers=token)
            assert (answer.status_code, answer.json()["code"]) == (401, wants)


def settings(home: Path, **options: str) -> RunnerSettings:
    return RunnerSettings.from_env(options, database_url="postgresql://x@/x", home=home)


def test_keys_are_made_once(tmp_path: Path) -> None:
    """The runner's key is made once, readable to its account only, the public half beside it."""
    first = RunnerKeys(settings(tmp_path)).current
    assert RunnerKeys(settings(tmp_path)).current.to_pem() == first.to_pem()
    for name in ("runner/runner.key", "runner.pub"):
        mode = (tmp_path / "secrets" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert load_service_key(settings(tmp_path)) == load_service_key(settings(tmp_path))
    assert load_service_key(settings(tmp_path, MANA_SERVICE_KEY="given")) == "given"


def test_keys_may_be_given(tmp_path: Path) -> None:
    """A whole bundle, or the RSA key of the reference, may come from the settings."""
    given = RunnerPrivateKey.generate()
    found = RunnerKeys(settings(tmp_path, MANA_AI_PRIVATE_KEY_PEM=given.to_pem())).current
    assert found.public().key_id() == given.public().key_id()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MANA_RUNNER_PORT", "none"),
        ("TICK_INTERVAL_MS", "1"),
        ("TICK_ENABLED", "perhaps"),
        ("MANA_FAIL_POINT", "nowhere"),
    ],
)
def test_settings_name_what_is_wrong(tmp_path: Path, name: str, value: str) -> None:
    """A setting that cannot be used is refused by its name."""
    with pytest.raises(Invalid, match=name):
        settings(tmp_path, **{name: value})


@pytest.mark.postgres
@pytest.mark.anyio
async def test_rsa_suite(database: Database) -> None:
    """A grant that is wrapped by RSA, as the reference does it, opens too."""
    async with world(database) as made:
        await made.agent()
        await made.memory()
        await made.note("note-1")
        await made.mission()
        await made.grant(suite="rsa-oaep-2048-sha256")
        await made.run_now()
        async with made.runner() as runner:
            assert (await runner.scheduler.tick()).plans_written_back == 1
        assert "agentMemory" in {row.table_name for row in (await made.audit()).rows}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
@pytest.mark.anyio
async def test_workers_leave_nothing_behind() -> None:
    """A worker ends when its runner closes the pipe, whatever it was doing."""
    workers = ProcessWorkers()
    worker = await workers.start()
    assert not has_ended(worker.pid)
    await worker.close()
    await gone(worker.pid)
    await workers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits are read from /proc")
def test_no_core_dumps() -> None:
    """A process that forbade dumps cannot leave its memory in a file, nor be traced."""
    script = (
        "from mana.hub.runner.isolation import forbid_dumps; forbid_dumps();"
        "import ctypes, resource;"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(0, 0) 0"


@pytest.mark.postgres
@pytest.mark.anyio
async def test_operators_see_states_and_times(database: Database) -> None:
    """Whoever has the service key sees where missions stand; no sealed value, title or note."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner() as runner, client(runner) as http:
            key = {"x-service-key": "service"}
            await http.post("/internal/tick", headers=key)
            path = f"/internal/missions/{made.ada.account.account_id}"
            assert (await http.get(path)).status_code == 401
            assert (await http.get("/internal/missions/ada", headers=key)).status_code == 400
            answer = await http.get(path, headers=key)
            found = answer.json()["missions"]
            assert [(one["missionId"], one["runs"][0]["state"]) for one in found] == [
                ("mission-1", "done")
            ]
            assert set(found[0]) <= {
                "missionId", "nextRunAt", "hold", "failures", "failure", "runs",
            }  # fmt: skip
            assert set(found[0]["runs"][0]) <= {
                "scheduledFor", "kind", "state", "reason", "startedAt", "finishedAt",
            }  # fmt: skip
            assert "enc:" not in answer.text
