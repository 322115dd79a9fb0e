"""Models of the person's own: kept sealed, chosen by agents, called here, carried by grants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mana.device import grants as granting
from mana.device.granted_models import granted_models
from mana.device.grants import ConsentStale
from mana.device.hub_client import HubClient
from mana.device.models import OwnModels, candidates
from mana.device.settings import DeviceSettings
from mana.domain.agents import Agent
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, NotFound
from mana.domain.money import Price
from mana.domain.own_models import OwnModel
from mana.models.addresses import OwnEndpointRefused
from mana.models.choose import ModelUnknown
from mana.models.settings import ModelSettings, load_models
from mana.protocol.messages import ModelInfo, RunnerInfo
from mana.testing.endpoints import model_server, says
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission

pytestmark = pytest.mark.anyio
on_hub = pytest.mark.postgres
KEY = "sk-very-private"
URL = "https://models.example/v1"


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Json]]:
    """Return what is sealed into grants from now on."""
    seen: list[Mapping[str, Json]] = []
    seal = granting.seal_grant

    def noting(header: bytes, mission: str, payload: Mapping[str, Json], **rest: Any) -> Any:
        seen.append(payload)
        return seal(header, mission, payload, **rest)

    monkeypatch.setattr(granting, "seal_grant", noting)
    return seen


@on_hub
async def test_own_model_is_kept_sealed_and_its_key_is_never_shown(home: Household) -> None:
    """A model comes back as it was written, without its key, which no request shows either."""
    ada = await home.person()
    made = await ada.add_own_model(
        "Small", URL, "tiny", key=KEY, prompt_price=1, completion_price=2, context_tokens=8_192
    )
    (view,) = await ada.own_models()
    assert (view.model_id, view.label, view.url, view.host, view.model) == (
        made,
        "Small",
        URL,
        "models.example",
        "tiny",
    )
    assert (view.has_key, view.prompt_price, view.completion_price, view.context_tokens) == (
        True,
        1,
        2,
        8_192,
    )
    assert KEY not in repr(view)
    await ada.sync_now()
    assert not any(
        part in body
        for _, _, body in home.places[0].wire.seen
        for part in (KEY.encode(), b"models.example", b"tiny")
    )
    phone = await home.second()
    await phone.sync_now()
    assert await phone.own_models() == [view]
    await ada.edit_own_model(made, label="Tiny", prompt_price=None, completion_price=None)
    (view,) = await ada.own_models()
    assert (view.label, view.prompt_price, view.has_key) == ("Tiny", None, True)
    await ada.edit_own_model(made, key=None)
    assert not (await ada.own_models())[0].has_key
    await ada.edit_own_model(made, key=KEY)
    await ada.remove_own_model(made)
    assert await ada.own_models() == []
    gone = await operations(ada).opened.book.view("aiModels", made)
    assert gone is not None
    assert gone.values.get("key") is None
    with pytest.raises(NotFound):
        await ada.edit_own_model(made, label="Again")


@on_hub
@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://models.example"},
        {"url": "https://me:secret@models.example"},
        {"url": ""},
        {"label": " "},
        {"model": ""},
        {"key": "two\nlines"},
        {"prompt_price": 5},
        {"prompt_price": -1, "completion_price": 1},
        {"context_tokens": 3},
    ],
)
async def test_model_that_cannot_be_called_is_not_kept(home: Household, wrong: Any) -> None:
    """What no endpoint can have is refused when it is written, and nothing is kept."""
    ada = await home.person()
    with pytest.raises(Invalid):
        await ada.add_own_model(**{"label": "A", "url": URL, "model": "m", **wrong})
    assert await ada.own_models() == []


@on_hub
async def test_agent_chooses_a_model_and_clears_the_choice(home: Household) -> None:
    """An agent names a model; what optional fields it has can be cleared again."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny")
    agent = await ada.create_agent(
        "Mira", model=f"own:{own}", tokens_per_day_max=5, cost_per_day_max=6, concurrent_max=3
    )
    view = await ada.agent(agent)
    assert (view.model, view.model_words) == (f"own:{own}", "your own: Small")
    assert (view.tokens_per_day_max, view.cost_per_day_max, view.concurrent_max) == (5, 6, 3)
    assert (await ada.own_models())[0].used_by == ("Mira",)
    choices = {one.value: one.where for one in await ada.model_choices()}
    assert choices[""] == "both"
    assert choices[f"own:{own}"] == "own"
    with pytest.raises(ModelUnknown):
        await ada.edit_agent(agent, model="own:nothing")
    await ada.edit_agent(
        agent,
        model="",
        role="",
        system_prompt="",
        memory="",
        avatar="",
        tokens_per_day_max=None,
        cost_per_day_max=None,
        concurrent_max=None,
    )
    view = await ada.agent(agent)
    assert (view.model, view.role, view.system_prompt, view.memory, view.avatar) == ("",) * 5
    assert (view.tokens_per_day_max, view.cost_per_day_max, view.concurrent_max) == (None, None, 1)


@on_hub
async def test_run_here_calls_the_own_model_with_its_key(home: Household) -> None:
    """A mission of this device whose agent names an own model is planned by that and no other."""
    other = ScriptedModel()
    async with model_server(says("Nothing to do.")) as server:
        ada = await home.person(model=other)
        own = await ada.add_own_model(
            "Small", server.url, "tiny", key=KEY, prompt_price=1_000, completion_price=1_000
        )
        mission, _, _ = await planned_mission(ada, runs_on="device")
        agent = (await ada.agents())[0].agent_id
        await ada.edit_agent(agent, model=f"own:{own}")
        run = await ada.run_now(mission)
        assert run is not None
        assert (run.state, other.requests) == ("done", [])
        assert [one.body["model"] for one in server.asked] == ["tiny"]
        assert f"Bearer {KEY}" in server.asked[0].head
        await ada.remove_own_model(own)
        run = await ada.run_now(mission)
        assert run is not None
        assert (run.state, run.reason) == ("failed", "no-model")
        assert other.requests == []


@on_hub
async def test_grant_carries_the_own_model_and_names_it(
    home: Household, sealed: list[Mapping[str, Json]]
) -> None:
    """The consent says whose model it is and that its key goes along; the header names its origin."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    await ada.edit_agent((await ada.agents())[0].agent_id, model=f"own:{own}")
    consent = await ada.consent(mission)
    said = " ".join(consent.lines)
    assert "your own model tiny, at https://models.example" in said
    assert "Its key leaves your devices with this grant" in said
    assert KEY not in said
    granted = await ada.grant(mission)
    assert (granted.endpoints, granted.state) == (("https://models.example",), "active")
    (payload,) = sealed
    assert payload["model"] == {"id": own, "url": URL, "model": "tiny", "key": KEY}
    assert (await ada.grants())[0].stale_reason == ""


@on_hub
async def test_grant_without_an_own_model_carries_none(
    home: Household, sealed: list[Mapping[str, Json]]
) -> None:
    """A model of the person's own goes into no grant of an agent that does not name it."""
    ada = await home.person()
    await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    granted = await ada.grant(mission) if await ada.consent(mission) else None
    assert granted is not None
    assert granted.endpoints == ("rules:offline",)
    (payload,) = sealed
    assert "model" not in payload


@on_hub
async def test_grant_is_minted_anew_when_its_own_model_changes(
    home: Household, sealed: list[Mapping[str, Json]]
) -> None:
    """Another key at the same place goes to the runner without a question; another place asks."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    await ada.edit_agent((await ada.agents())[0].agent_id, model=f"own:{own}")
    await ada.consent(mission)
    first = await ada.grant(mission)
    await ada.sync_now()
    assert len(sealed) == 1
    await ada.edit_own_model(own, key="sk-new")
    assert len(sealed) == 2
    assert sealed[1]["model"] == {"id": own, "url": URL, "model": "tiny", "key": "sk-new"}
    standing = [grant for grant in await ada.grants() if grant.state == "active"]
    assert [grant.grant_id for grant in standing] != [first.grant_id]
    assert standing[0].expires_ms < first.expires_ms
    assert standing[0].endpoints == first.endpoints
    await ada.sync_now()
    assert len(sealed) == 2
    await ada.edit_own_model(own, url="https://elsewhere.example/v1")
    await ada.sync_now()
    assert len(sealed) == 2
    (grant,) = [grant for grant in await ada.grants() if grant.state in ("active", "stale")]
    assert (grant.state, "another model" in grant.stale_reason) == ("stale", True)


@on_hub
async def test_another_device_mints_anew_what_was_edited_since(
    home: Household, sealed: list[Mapping[str, Json]]
) -> None:
    """A device that did not make the grant knows by the edit's time that it carries another key."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    await ada.edit_agent((await ada.agents())[0].agent_id, model=f"own:{own}")
    await ada.consent(mission)
    await ada.grant(mission)
    phone = await home.second()
    await phone.sync_now()
    await phone.sync_now()
    assert len(sealed) == 1
    home.clock.ahead_ms += 60_000
    await phone.edit_own_model(own, key="sk-new")
    assert len(sealed) == 2


@on_hub
async def test_consent_holds_for_the_model_that_it_showed(home: Household) -> None:
    """A model that was edited after the consent is not handed over by it."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    await ada.edit_agent((await ada.agents())[0].agent_id, model=f"own:{own}")
    await ada.consent(mission)
    await ada.edit_own_model(own, model="huge")
    with pytest.raises(ConsentStale):
        await ada.grant(mission)
    await ada.edit_agent((await ada.agents())[0].agent_id, model="")
    with pytest.raises(ConsentStale):
        await ada.grant(mission)


@on_hub
async def test_hub_that_takes_no_own_models_gets_none(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the operator allows none, the consent says so, and nothing is granted."""
    ada = await home.person()
    own = await ada.add_own_model("Small", URL, "tiny", key=KEY)
    mission, _, _ = await planned_mission(ada)
    await ada.edit_agent((await ada.agents())[0].agent_id, model=f"own:{own}")
    asked = HubClient.runner

    async def strict(self: HubClient) -> RunnerInfo:
        return msgspec.structs.replace(await asked(self), own_models=False)

    monkeypatch.setattr(HubClient, "runner", strict)
    with pytest.raises(OwnEndpointRefused):
        await ada.consent(mission)
    assert await ada.grants() == []


def info(*models: ModelInfo, own_models: bool = True) -> RunnerInfo:
    return RunnerInfo("k", "f", "p", [*models], own_models=own_models)


def one(alias: str, endpoint: str, *fallback: str) -> ModelInfo:
    return ModelInfo(endpoint, alias, alias, False, alias=alias, fallback=[*fallback])


async def test_grant_names_the_chain_of_the_choice_and_no_more() -> None:
    """Only the agent's model and its fall-backs may receive the text."""
    runner = info(
        one("small", "https://a.example", "large"),
        one("large", "https://b.example"),
        one("other", "https://c.example"),
    )
    assert granted_models("", runner, None).endpoints == ("https://a.example", "https://b.example")
    assert granted_models("other", runner, None).endpoints == ("https://c.example",)
    assert [view.alias for view in granted_models("small", runner, None).views] == [
        "small",
        "large",
    ]
    with pytest.raises(ModelUnknown):
        granted_models("gone", runner, None)
    older = info(ModelInfo("https://a.example", "m", "m", False))
    assert granted_models("", older, None).endpoints == ("https://a.example",)
    own = OwnModel("1", URL, "tiny", KEY, Price(1, 2))
    mine = granted_models("own:1", runner, own)
    assert (mine.endpoints, mine.views[0].key_goes_along) == (("https://models.example",), True)
    assert mine.digest != granted_models("own:1", runner, replace(own, key="x")).digest
    with pytest.raises(OwnEndpointRefused):
        granted_models("own:1", info(own_models=False), own)


async def test_device_reads_its_own_file_of_models(tmp_path: Path) -> None:
    """A device uses the aliases of its models.toml, each with its fall-backs, or the environment's."""
    (tmp_path / "models.toml").write_text(
        '[[models]]\nalias = "small"\nurl = "http://127.0.0.1:1/v1"\nmodel = "s"\n'
        'fallback = ["large"]\n'
        '[[models]]\nalias = "large"\nurl = "https://b.example/v1"\nmodel = "l"\n'
        "prompt_price = 1\ncompletion_price = 2\n"
    )
    settings = DeviceSettings.from_env({"MANA_HOME": str(tmp_path), "MANA_LLM_URL": "http://x/v1"})
    listed = load_models(settings.home, settings.environ, own_models="any")
    found = await candidates(Listed(listed), agent("small"))  # type: ignore[arg-type]
    assert [one.model.name for one in found] == ["s", "l"]
    assert [one.price for one in found] == [Price(0, 0), Price(1_000_000, 2_000_000)]
    shown = OwnModels(Listed(listed), None).here()  # type: ignore[arg-type]
    assert [(one.alias, one.prompt_price, one.completion_price) for one in shown] == [
        ("small", 0, 0),
        ("large", 1_000_000, 2_000_000),
    ]
    with pytest.raises(ModelUnknown):
        await candidates(Listed(listed), agent("gone"))  # type: ignore[arg-type]
    (tmp_path / "models.toml").unlink()
    plain = load_models(settings.home, settings.environ, own_models="any")
    assert [one.url for one in plain.models] == ["http://x/v1"]


class Listed:
    """What `candidates` asks of an account that names no model of its own."""

    def __init__(self, listed: ModelSettings) -> None:
        self.listed = listed
        self.connections = None


def agent(model: str) -> Agent:
    return Agent("a", "A", "", "", "", "", None, "active", None, 1, model=model)
