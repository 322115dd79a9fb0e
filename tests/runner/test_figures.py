"""The figures of a runner: what runs, reminders, summaries and providers came to, in our words."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from mana.domain.own_models import OwnModel
from mana.hub.runner.prices import Prices
from mana.models.rules import ENDPOINT
from mana.models.settings import OFFLINE, ModelSetting, ModelSettings
from mana.planning import compaction
from mana.testing.endpoints import body, model_server
from mana.testing.models import ScriptedModel, calling, says
from mana.testing.postgres import Database
from tests.runner.world import InlineWorkers, World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = pytest.mark.anyio

SUMMARY = (
    "## Goal\nFind.\n## Decisions\n- none\n## Tools Called\n- none\n## Current Progress\nGo on."
)


def figure(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Return a figure by its name without the prefix; what was never counted is 0."""
    return registry.get_sample_value(f"mana_ai_{name}", labels) or 0.0


@pytest.mark.postgres
async def test_reminders_and_summaries_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model was reminded of, and what was folded of a run, is told by rule and by size."""
    monkeypatch.setattr(compaction, "THRESHOLD_PERCENT", 0)
    monkeypatch.setattr(compaction, "KEPT_MIN", 2)

    class Failing(ScriptedModel):
        endpoint = ENDPOINT

        def __init__(self) -> None:
            lost = [
                says("", calling("no_such_tool", {"query": f"{n}" * 400}, id=f"c{n}"))
                for n in range(2)
            ]
            super().__init__([*lost, says(SUMMARY), says("Nothing was found.")])

    async with world(database) as made:
        await made.ready()
        await made.run_now()
        async with made.runner(Failing) as runner:
            assert (await runner.scheduler.tick()).plans_written_back == 1
            told = runner.metrics.registry
    name = "reminders_emitted_total"
    assert figure(told, name, producer="compaction", severity="note") == 1
    assert figure(told, name, producer="retry", severity="warning") == 1
    assert figure(told, "compactions_triggered_total") == 1
    assert figure(told, "compacted_turns_count") == 1
    assert figure(told, "compacted_turns_sum") == 2


async def failed_at(made: World, models: ModelSettings, place: str, own: OwnModel | None) -> str:
    """Have a run fail at an endpoint, and return the word by which figures call it."""
    await made.agent(model="" if own is None else f"own:{own.id}")
    await made.note("note-1")
    await made.mission()
    header = await made.header(endpoints=[place])
    brought = {} if own is None else {"model": own.to_wire()}
    await made.complete(header, {**made.payload(header), **brought})
    await made.run_now()
    workers = InlineWorkers(None)  # type: ignore[arg-type]
    async with made.runner(workers=workers, models=models) as runner:
        await runner.scheduler.tick()
        told = runner.metrics.registry
    (word,) = (
        word
        for word in ("rules", "local", "remote", "own")
        if figure(told, "provider_errors_total", provider=word, kind="auth")
    )
    return word


@pytest.mark.postgres
@pytest.mark.parametrize("word", ["local", "own"])
async def test_who_failed_is_told_in_a_word(database: Database, word: str) -> None:
    """A failure counts for the kind of model that failed, and names no address."""
    async with model_server(body(b"", 401)) as server:
        own = OwnModel("own-1", server.url, "tiny", "key") if word == "own" else None
        listed = () if word == "own" else (ModelSetting("m", server.url, "m"),)
        models = ModelSettings(listed or OFFLINE.models, "any")
        async with world(database, models=models) as made:
            assert await failed_at(made, models, server.url, own) == word


def test_the_words_of_providers() -> None:
    """There are four of them, whatever is set up."""
    far = ModelSetting("far", "https://models.example", "m")
    near = ModelSetting("near", "http://127.0.0.1:11434", "m")
    prices = Prices(ModelSettings((*OFFLINE.models, far, near), "any"))
    places = (ENDPOINT, "http://127.0.0.1:11434", "https://models.example", "https://own.example")
    assert [prices.provider_of(one) for one in places] == ["rules", "local", "remote", "own"]
