"""Which models a run on the hub calls: what the agent chose, what the grant names, nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.own_models import OwnModel
from mana.models.addresses import OwnModels
from mana.models.settings import OFFLINE, ModelSetting, ModelSettings
from mana.planning.ports import FunctionCall
from mana.testing.endpoints import ModelServer, body, delta, drops, model_server, nobody, says
from mana.testing.postgres import Database
from tests.runner.world import CANARY, InlineWorkers, World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

KEY = "sk-very-private"
CALL = FunctionCall("c1", "create_task", {"title": "Call", "rationale": "It is in a note."})
PLANS = (says("", CALL, usage=(4_000, 40)), says("Done.", usage=(4_000, 40)))


def settings(*servers: ModelServer, own: OwnModels = "any") -> ModelSettings:
    """Return models m0, m1 … at these servers, each with the next as its fall-back."""
    models = [
        ModelSetting(f"m{n}", one.url, "m", fallback=(f"m{n + 1}",) if n + 1 < len(servers) else ())
        for n, one in enumerate(servers)
    ]
    return ModelSettings(tuple(models) or OFFLINE.models, own)


async def run(
    made: World,
    models: ModelSettings,
    *endpoints: str,
    own: OwnModel | None = None,
    choice: str = "",
) -> tuple[str, str]:
    """Grant a mission to these endpoints, run it, and return its state and reason."""
    await made.agent(model=choice)
    await made.note("note-1")
    await made.mission()
    header = await made.header(endpoints=sorted(endpoints))
    payload = made.payload(header)
    if own is not None:
        payload["model"] = own.to_wire()
    await made.complete(header, payload)
    await made.run_now()
    workers = InlineWorkers(None)  # type: ignore[arg-type]
    async with made.runner(workers=workers, models=models) as runner:
        await runner.scheduler.tick()
    line = (await made.status()).occurrences[0]
    return line.state, line.reason or ""


@contextlib.asynccontextmanager
async def planning_server() -> AsyncIterator[ModelServer]:
    """Lend a server that plans one task."""
    async with model_server(*PLANS) as server:
        yield server


async def test_a_person_s_own_model_plans(database: Database) -> None:
    """An endpoint that came sealed in the grant is called with the person's key."""
    async with planning_server() as server, world(database, models=settings()) as made:
        own = OwnModel("own-1", server.url, "tiny", KEY)
        assert await run(made, settings(), server.url, own=own, choice="own:own-1") == ("done", "")
        assert {row.endpoint for row in (await made.audit()).rows} == {server.url}
        assert {asked.body["model"] for asked in server.asked} == {"tiny"}
        assert all(f"Bearer {KEY}" in asked.head for asked in server.asked)
        assert CANARY in server.asked[0].raw.decode()


@pytest.mark.parametrize("own", ["off", "public"])
async def test_the_runner_asks_for_itself(database: Database, own: OwnModels) -> None:
    """Whatever the hub took, a runner that does not allow such endpoints sends nothing there."""
    async with planning_server() as server, world(database, models=settings()) as made:
        models = settings(own=own)
        brought = OwnModel("own-1", server.url, "tiny", KEY)
        state, reason = await run(made, models, server.url, own=brought, choice="own:own-1")
        assert (state, reason) in {("failed", "no-model"), ("skipped", "scope-mismatch")}
        assert server.asked == []


async def test_an_own_model_that_no_header_names_hears_nothing(database: Database) -> None:
    """A model in the sealed part is not called where the header names another place."""
    async with planning_server() as server, planning_server() as other:
        models = settings(other)
        async with world(database, models=models) as made:
            own = OwnModel("own-1", server.url, "tiny", KEY)
            ended = await run(made, models, other.url, own=own, choice="own:own-1")
        assert ended == ("skipped", "scope-mismatch")
        assert (server.asked, other.asked) == ([], [])


async def test_a_fall_back_that_is_named_plans(database: Database) -> None:
    """Where the first model gives up the next one works, if the grant names both."""
    async with model_server(body(b"", 500)) as first, planning_server() as second:
        models = settings(first, second)
        async with world(database, models=models) as made:
            assert await run(made, models, first.url, second.url) == ("done", "")
            rows = (await made.audit()).rows
        assert first.asked
        assert second.asked
        # Before anything was opened, each row says every place that the run could have sent it to.
        assert {row.table_name for row in rows} >= {"notes", "agents", "aiMissions"}
        for row in rows:
            assert sorted((row.endpoint or "").split(" ")) == sorted([first.url, second.url])


async def test_a_dead_endpoint_uses_up_no_cap(database: Database) -> None:
    """What no model worked on counts nothing, at whatever place of a chain; what began counts in
    full, and the line says between two tries what it came to, and that nobody confirmed it.
    """
    busy = body(b"", 429, "Retry-After: 1800")
    cut = drops(delta(content="I"))
    async with model_server(body(b"", 401)) as locked, model_server(busy, cut) as other:
        with nobody() as down:
            models = settings(ModelServer(down), locked, other)
            async with world(database, models=models) as made:
                urls = (down, locked.url, other.url)
                assert await run(made, models, *urls) == ("queued", "")
                line = (await made.status()).occurrences[0]
                assert (line.tries, line.last_reason, line.tokens) == (1, "rate-limit", 0)
                assert parse_iso_ms(line.due_at or "") > now_ms() + 1_700_000
                assert (await made.missions()).tokens_today.get("agent-1", 0) == 0
                await made.mission("mission-2")
                await made.grant("mission-2", endpoints=sorted(urls))
                await made.run_now("mission-2")
                async with made.runner(workers=InlineWorkers(None), models=models) as runner:  # type: ignore[arg-type]
                    await runner.scheduler.tick()
                line = (await made.status("mission-2")).occurrences[0]
                assert (line.state, line.last_reason) == ("queued", "provider")
                assert line.tokens == line.unconfirmed_tokens > 256
                assert (await made.missions()).tokens_today == {"agent-1": line.tokens}


async def test_the_audit_names_no_place_that_hears_nothing(database: Database) -> None:
    """Of what a grant names, the rows of the inputs say only what the agent's own model may ask."""
    async with planning_server() as server, planning_server() as other:
        models = settings(server, other)
        async with world(database, models=models) as made:
            assert await run(made, models, server.url, other.url, choice="m1") == ("done", "")
            rows = (await made.audit("?table=notes")).rows
        assert server.asked == []
        assert [row.endpoint for row in rows] == [other.url]


async def test_a_fall_back_that_is_not_named_hears_nothing(database: Database) -> None:
    """A run fails rather than send what was granted to an endpoint that the person did not name."""
    async with model_server(body(b"", 401)) as first, planning_server() as second:
        models = settings(first, second)
        async with world(database, models=models) as made:
            assert await run(made, models, first.url) == ("failed", "auth")
        assert first.asked
        assert second.asked == []


async def test_a_first_choice_that_is_not_named_is_passed_over(database: Database) -> None:
    """What the grant names of a chain works, and what it does not name hears nothing."""
    async with planning_server() as first, planning_server() as second:
        models = settings(first, second)
        async with world(database, models=models) as made:
            assert await run(made, models, second.url) == ("done", "")
        assert first.asked == []
        assert second.asked


@pytest.mark.parametrize("choice", ["gone", "own:gone"])
async def test_a_model_that_is_gone_is_no_other(database: Database, choice: str) -> None:
    """An agent whose model was taken away does not plan with another."""
    async with planning_server() as server:
        models = replace(settings(server), own_models="any")
        async with world(database, models=models) as made:
            assert await run(made, models, server.url, choice=choice) == ("failed", "no-model")
        assert server.asked == []


async def test_a_malformed_model_opens_nothing(database: Database) -> None:
    """A grant whose model has another form is no grant that a runner can read."""
    wire: dict[str, Json] = {**OwnModel("own-1", "http://127.0.0.1:1", "m").to_wire(), "proxy": "x"}

    class Forged(OwnModel):
        def to_wire(self) -> dict[str, Json]:
            return wire

    async with planning_server() as server, world(database, models=settings()) as made:
        forged = Forged("own-1", server.url, "m")
        ended = await run(made, settings(), server.url, own=forged, choice="own:own-1")
        assert ended == ("skipped", "malformed")
        assert server.asked == []
