"""What must hold before anything is opened, and the reason that the person reads otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mana.crypto.runners import RunnerPrivateKey
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.hub.runner.store import from_ms
from mana.hub.runner.workers import ProcessWorkers
from mana.planning.asking import prompt_tokens
from mana.planning.ports import ModelFailed, ModelReply, ModelRequest, Usage
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database, connected
from tests.runner.world import CANARY, World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


class Scripted(ScriptedModel):
    """A scripted model that stands where the grant allows one."""

    endpoint = "rules:offline"


async def run_once(made: World, mission: str = "mission-1", **options: Any) -> tuple[str, str]:
    """Run a mission now; return the state and reason of that occurrence."""
    await made.run_now(mission)
    async with made.runner(**options) as runner:
        await runner.scheduler.tick()
    line = (await made.status(mission)).occurrences[0]
    return line.state, line.reason or ""


async def owner(made: World, sql: str, *values: object) -> None:
    async with connected(made.database.owner_url) as connection:
        await connection.execute(sql, *values)


async def altered(made: World, column: str, value: object) -> None:
    """Change the register behind its own back, as whoever has the database could."""
    async with connected(made.database.owner_url) as connection:
        await connection.execute("alter table mana_ai.grants disable trigger guard_grant")
        await connection.execute(f"update mana_ai.grants set {column} = $1", value)
        await connection.execute("alter table mana_ai.grants enable trigger guard_grant")


async def no_grant(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.mission()


async def paused_agent(made: World) -> None:
    await made.ready(state="paused")


async def archived_agent(made: World) -> None:
    await made.ready(state="archived")


async def revoked(made: World) -> None:
    await made.revoke(await made.ready())


async def expired(made: World) -> None:
    await made.ready()
    async with connected(made.database.owner_url) as connection:
        await connection.execute("alter table mana_ai.grants disable trigger guard_grant")
        await connection.execute("update mana_ai.grants set expires_at = now()")
        await connection.execute("alter table mana_ai.grants enable trigger guard_grant")


async def other_runner(made: World) -> None:
    await made.ready()
    await altered(made, "runner_key_id", "0" * 64)


async def no_budget(made: World) -> None:
    await made.ready(maxTokensPerDay=0)


async def other_agent(made: World) -> None:
    await made.ready()
    await made.agent("agent-2")
    await made.edit_mission(agentId="agent-2")


async def rotated(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.mission()
    header = await made.header()
    payload = made.payload(header)
    support: Any = payload["support"]
    support["aiMissions:mission-1"]["e"] = "s2"
    await made.complete(header, payload)


async def wrong_key(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.mission()
    header = await made.header()
    payload = made.payload(header)
    support: Any = payload["support"]
    support["aiMissions:mission-1"]["k"] = support["agents:agent-1"]["k"]
    await made.complete(header, payload)


async def other_records(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.note("note-2")
    await made.mission()
    header = await made.header()
    payload = made.payload(header)
    records: Any = payload["records"]
    records["notes:note-2"] = records["notes:note-1"]
    await made.complete(header, payload)


async def wrapped_for_another(made: World) -> None:
    await made.agent()
    await made.note("note-1")
    await made.mission()
    header = await made.header()
    made.wrap_for = RunnerPrivateKey.generate().public()
    await made.complete(header)


REFUSALS: list[tuple[Callable[[World], Awaitable[None]], str]] = [
    (no_grant, "no-grant"),
    (paused_agent, "agent-paused"),
    (archived_agent, "agent-archived"),
    (revoked, "revoked"),
    (expired, "expired"),
    (other_runner, "not-configured"),
    (no_budget, "budget:agent:tokens:0/0"),
    (other_agent, "scope-mismatch"),
    (rotated, "key-rotated"),
    (wrong_key, "malformed"),
    (other_records, "malformed"),
    (wrapped_for_another, "wrap-rejected"),
]


@pytest.mark.parametrize(
    ("prepare", "reason"), REFUSALS, ids=lambda one: getattr(one, "__name__", one)
)
async def test_refused_with_its_reason(
    database: Database, prepare: Callable[[World], Awaitable[None]], reason: str
) -> None:
    """A gate that refuses ends the occurrence as skipped, with its reason and no iteration."""
    async with world(database) as made:
        await prepare(made)
        assert await run_once(made) == ("skipped", reason)
        state = await made.ada.state()
        assert not [one for one in state.records if one.table in ("aiIterations", "aiSteps")]
        if reason in ("no-grant", "expired", "revoked"):
            assert (await made.status()).hold == reason


def mutated(name: str, value: Json) -> Callable[[dict[str, Json]], dict[str, Json]]:
    return lambda wire: {**wire, name: value}


HEADERS = [
    (mutated("recordIds", ["notes:note-1", "notes:note-2"]), "signature-rejected"),
    (mutated("expiresAt", None), "signature-rejected"),
    (mutated("missionId", "mission-2"), "scope-mismatch"),
    (mutated("endpoints", ["https://evil.test", "rules:offline"]), "signature-rejected"),
    (mutated("suite", "none"), "malformed"),
]


@pytest.mark.parametrize(("change", "reason"), HEADERS)
async def test_mutated_header_opens_nothing(
    database: Database, change: Callable[[dict[str, Json]], dict[str, Json]], reason: str
) -> None:
    """A header that anyone changed after the device signed it opens nothing and says why."""
    async with world(database) as made:
        header = await made.ready()
        wire = change(header.to_wire())
        if wire["expiresAt"] is None:
            later_ms = parse_iso_ms(header.expires_at) + 60_000
            wire["expiresAt"] = iso_ms(later_ms)
            await altered(made, "expires_at", from_ms(later_ms))
        text = msgspec.json.encode(wire, order="sorted").decode()
        await altered(made, "header", text)
        assert await run_once(made) == ("skipped", reason)
        assert not [row for row in (await made.audit()).rows if row.status == "ok"]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("signature", "signature-rejected"),
        ("hub_signature", "signature-rejected"),
        ("sealed_keys", "signature-rejected"),
        ("signer", "not-a-member"),
    ],
)
async def test_mutated_material_opens_nothing(database: Database, column: str, reason: str) -> None:
    """Signatures and sealed keys that are not those of the device open nothing."""
    async with world(database) as made:
        await made.ready()
        other = {
            "signature": "A" * 86 + "==",
            "hub_signature": "A" * 86 + "==",
            "sealed_keys": "gk:2:AAAAAAAAAAAAAAAA.AAAA",
            "signer": "00000000-0000-4000-8000-000000000000",
        }
        await altered(made, column, other[column])
        assert await run_once(made) == ("skipped", reason)
        assert not (await made.audit()).rows


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("expires_at", datetime(2030, 1, 1, tzinfo=UTC)),
        ("suite", "rsa-oaep-2048-sha256"),
        ("agent_id", "agent-2"),
    ],
)
async def test_register_says_what_was_signed(
    database: Database, column: str, value: object
) -> None:
    """A row that tells another life, suite or agent than its signed header opens nothing."""
    async with world(database) as made:
        await made.ready()
        await altered(made, column, value)
        assert await run_once(made) == ("skipped", "scope-mismatch")
        assert not (await made.audit()).rows


@pytest.mark.parametrize(
    "statement",
    [
        "update mana.records set proofs = '{\"x\": 1}' where table_name = 'aiMissions'",
        "update mana.records set fields = '[1]' where table_name = 'agents'",
        "update mana.records set fields = jsonb_set(fields::jsonb, '{title,actor}', '7')",
        "alter table mana_ai.grants disable trigger all; update mana_ai.grants set signature = 'x'",
    ],
    ids=["proofs", "record", "actor", "signature"],
)
async def test_row_of_another_form(database: Database, statement: str) -> None:
    """A row that is not even of the known form is told as malformed, not as a crash."""
    async with world(database) as made:
        await made.ready()
        await owner(made, statement)
        assert await run_once(made) == ("skipped", "malformed")
        assert not (await made.audit()).rows


async def test_forged_mission_is_not_obeyed(database: Database) -> None:
    """A mission whose plain fields the hub changed is not obeyed: no device signed them."""
    async with world(database) as made:
        await made.ready()
        await owner(
            made,
            "update mana.records set fields = jsonb_set(fields::jsonb, '{timeZone,value}',"
            " '\"UTC\"') where table_name = 'aiMissions'",
        )
        assert await run_once(made) == ("skipped", "signature-rejected")


async def test_withheld_path_is_not_obeyed(database: Database) -> None:
    """A mission of which the hub withholds a signed path is not obeyed."""
    async with world(database) as made:
        await made.ready()
        await owner(
            made,
            "update mana.records set fields = fields::jsonb - 'objective' where table_name = 'aiMissions'",
        )
        assert await run_once(made) == ("skipped", "signature-rejected")


async def test_input_after_the_grant(database: Database) -> None:
    """An input that was added after the grant is noted as a violation and left out."""
    async with world(database) as made:
        await made.ready()
        await made.note("note-2", "- [ ] secret second note")
        inputs: list[Json] = [
            {"module": "notes", "table": "notes", "id": one} for one in ("note-1", "note-2")
        ]
        await made.edit_mission(inputs=inputs)
        model = Scripted()
        assert await run_once(made, model=lambda: model) == ("done", "")
        sent = "".join(
            message.content for request in model.requests for message in request.messages
        )
        assert "plumber" in sent
        assert "secret second note" not in sent
        rows = (await made.audit()).rows
        assert [(row.record_id, row.status) for row in rows if row.table_name == "notes"] == [
            ("note-2", "scope-violation"),
            ("note-1", "ok"),
        ]


async def test_revoked_after_the_lease(database: Database, opened: list[str]) -> None:
    """A grant that is revoked after the gates and before the audit opens nothing."""
    async with world(database) as made:
        header = await made.ready()
        await made.run_now()
        async with made.runner() as runner:
            workers: Any = runner.workers
            start = workers.start

            async def late() -> Any:
                await made.revoke(header)
                return await start()

            workers.start = late
            await runner.scheduler.tick()
        line = (await made.status()).occurrences[0]
        assert (line.state, line.reason) == ("skipped", "revoked")
        # The word to stop may come before the run has even asked for its audit.
        assert {row.status for row in (await made.audit()).rows} <= {"revoked"}
        assert opened == []


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("update mana.memberships set role = 'viewer'", "failed"),
        ("delete from mana.memberships; update mana.spaces set members = '{}'", None),
    ],
)
async def test_lost_role(database: Database, statement: str, status: str | None) -> None:
    """An account that may not write any more, or was removed, has nothing opened for it."""
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        await owner(made, statement)
        async with made.runner() as runner:
            await runner.scheduler.tick()
        async with connected(database.owner_url) as connection:
            line = await connection.fetchrow("select state, reason from mana_ai.occurrences")
        assert tuple(line) == ("skipped", "not-a-member")
        rows = (await made.audit()).rows
        assert {row.status for row in rows} == ({status} if status else set())


async def test_budget_of_a_day(database: Database) -> None:
    """A reservation that was never settled counts in full; the next call is refused."""
    async with world(database) as made:
        await made.ready(maxTokensPerDay=6_600)

        def mute(_request: ModelRequest) -> ModelReply:
            return ModelReply("Done.", (), "stop", None)

        assert await run_once(made, model=lambda: Scripted([mute])) == ("done", "")
        spent = (await made.missions()).tokens_today["agent-1"]
        assert 4_096 < spent <= 6_600
        assert await run_once(made, model=lambda: Scripted([mute])) == (
            "skipped",
            f"budget:agent:tokens:{6_600 - spent}/6600",
        )


async def test_rules_cost_nothing(database: Database) -> None:
    """An agent whose cap is far below a call's worst case runs with the offline rules."""
    async with world(database) as made:
        await made.ready(maxTokensPerDay=10)
        assert await run_once(made) == ("done", "")
        assert (await made.missions()).tokens_today == {}


async def test_a_small_cap_gets_a_shorter_reply(database: Database) -> None:
    """A cap below the usual worst case is granted smaller, and is never passed."""
    async with world(database) as made:
        await made.ready(maxTokensPerDay=5_000)
        model = Scripted([says("Done.", usage=Usage(4_000, 1_000))])
        assert await run_once(made, model=lambda: model) == ("done", "")
        (request,) = model.requests
        assert 256 <= request.completion_tokens_max < 4_096
        assert prompt_tokens(request) + request.completion_tokens_max == 5_000
        again = Scripted()
        assert await run_once(made, model=lambda: again) == (
            "skipped",
            "budget:agent:tokens:0/5000",
        )
        assert again.requests == []


async def test_too_little_is_said_so(database: Database) -> None:
    """Where nothing was used but no call fits, the ledger does not say that it was used."""
    async with world(database) as made:
        await made.ready(maxTokensPerDay=10)
        model = Scripted()
        assert await run_once(made, model=lambda: model) == ("skipped", "budget:agent:tokens:10/10")
        assert model.requests == []


async def test_settled_tokens(database: Database) -> None:
    """What the model reports replaces the reservation, in the ledger and in today's use."""
    async with world(database) as made:
        await made.ready()
        reply = says("Done.", usage=Usage(1_000, 200))
        assert await run_once(made, model=lambda: Scripted([reply])) == ("done", "")
        assert (await made.missions()).tokens_today == {"agent-1": 1_200}
        assert (await made.status()).occurrences[0].tokens == 1_200


@pytest.mark.parametrize("kind", ["timeout", "refused-reply"])
async def test_failing_model(database: Database, kind: Any) -> None:
    """What may pass is tried again later, and the ledger says which class of failure it was."""
    async with world(database) as made:
        await made.ready()
        failing = Scripted([ModelFailed(kind)])
        assert await run_once(made, model=lambda: failing) == ("queued", "")
        line = (await made.status()).occurrences[0]
        assert (line.tries, line.last_reason) == (1, kind)


async def test_a_key_that_the_model_refuses(database: Database) -> None:
    """What would fail again in the same way ends the occurrence at once, with its class."""
    async with world(database) as made:
        await made.ready()
        failing = Scripted([ModelFailed("auth")])
        assert await run_once(made, model=lambda: failing) == ("failed", "auth")


async def test_defect_in_a_worker(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    """What nobody foresaw ends the run as internal, once, and its message goes nowhere."""

    class Broken(Scripted):
        async def complete(self, request: ModelRequest) -> ModelReply:
            raise ValueError(request.messages[-1].content)

    async with world(database) as made:
        await made.ready()
        assert await run_once(made, model=Broken) == ("failed", "internal")
    assert CANARY not in "".join(capfd.readouterr())


async def test_concurrency(database: Database) -> None:
    """Of an agent that may do one mission at a time, the second waits and runs later."""
    async with world(database) as made:
        await made.agent(maxConcurrentMissions=1)
        await made.note("note-1")
        for mission in ("mission-1", "mission-2"):
            await made.mission(mission)
            await made.grant(mission)
            await made.run_now(mission)
        running, most = 0, 0

        class Slow(Scripted):
            async def complete(self, request: ModelRequest) -> ModelReply:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.2)
                running -= 1
                return says("Done.")

        async with made.runner(Slow) as runner:
            await runner.scheduler.tick()
            await owner(made, "update mana_ai.occurrences set due_at = now()")
            await runner.scheduler.tick()
            waited = runner.metrics.decisions.labels("skipped-concurrency")
        assert most == 1
        assert next(iter(waited.collect())).samples[0].value >= 1
        for one in ("mission-1", "mission-2"):
            assert [line.state for line in (await made.status(one)).occurrences] == ["done"]


async def test_hostile_calls_become_proposals_only(database: Database) -> None:
    """Whatever a model calls, only steps within the agent's policy come out, none executed."""
    async with world(database) as made:
        await made.ready()
        model = Scripted(
            [
                says(
                    "",
                    calling("create_task", {"title": "pay"}, id="a"),
                    calling("set_policy", {"all": "auto"}, id="b"),
                    calling("create_note", {"title": 5}, id="c"),
                )
            ]
        )
        assert await run_once(made, model=lambda: model) == ("done", "")
        state = await made.ada.state()
        steps = [one for one in state.records if one.table == "aiSteps"]
        assert [one.fields["status"].value for one in steps] == ["staged"]
        assert not [one for one in state.records if one.table == "tasks"]


async def test_worker_processes(database: Database) -> None:
    """The same run in a worker process of its own; the process ends with its run."""
    async with world(database) as made:
        await made.ready()
        assert await run_once(made, workers=ProcessWorkers()) == ("done", "")
