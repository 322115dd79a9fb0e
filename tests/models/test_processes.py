"""Hub and runner read the same models; the hub says what there is and holds no key of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import SigningKey
from mana.hub.grants.service import GrantService, RunnerKeyFile
from mana.hub.runner.settings import RunnerSettings
from mana.hub.settings import HubSettings
from mana.models.addresses import OwnModels
from mana.models.choose import model_infos
from mana.models.settings import ModelsInvalid
from mana.protocol.messages import ModelInfo

KEY = "sk-very-private"
FILE = f"""
[[models]]
alias = "large"
url = "https://models.example"
model = "m-1"
key = "{KEY}"
prompt_price = 2.5
completion_price = 10
context_tokens = 128_000
fallback = ["near"]

[[models]]
alias = "near"
url = "http://127.0.0.1:1"
model = "m-2"
"""


def test_both_read_the_same_and_one_has_the_keys(tmp_path: Path) -> None:
    """The hub names the models that the runner calls, and a dump of the hub shows no key."""
    (tmp_path / "models.toml").write_text(FILE)
    hub = HubSettings.from_env({}, database_url="", home=tmp_path)
    runner = RunnerSettings.from_env({}, database_url="", home=tmp_path)
    assert model_infos(hub.models) == model_infos(runner.models)
    assert [one.key for one in hub.models.models] == ["", ""]
    assert [one.key for one in runner.models.models] == [KEY, ""]
    assert KEY not in f"{hub} {runner}"


def test_neither_starts_on_a_file_that_cannot_be_meant(tmp_path: Path) -> None:
    """What is wrong with the models is told before anything runs."""
    (tmp_path / "models.toml").write_text(FILE.replace("near", "far", 1))
    for settings in (HubSettings, RunnerSettings):
        with pytest.raises(ModelsInvalid):
            settings.from_env({}, database_url="", home=tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize(("own", "allowed"), [("off", False), ("public", True), ("any", True)])
async def test_people_are_told(own: OwnModels, allowed: bool, tmp_path: Path) -> None:
    """A device learns each model with its prices, context and chain, and whether it may bring one."""
    (tmp_path / "models.toml").write_text(FILE)
    settings = HubSettings.from_env({"MANA_OWN_MODELS": own}, database_url="", home=tmp_path)
    pem = RunnerPrivateKey.generate().public().to_pem()
    service = GrantService(
        None,  # type: ignore[arg-type]  # what is asked for stands in no database
        RunnerKeyFile(tmp_path / "runner.pub", pem=pem),
        SigningKey.generate(),
        model_infos(settings.models),
        settings.models.own_models,
    )
    told = await service.runner_info()
    assert told.own_models is allowed
    assert told.models[0] == ModelInfo(
        endpoint="https://models.example",
        model="m-1",
        description="m-1: text goes to models.example",
        local=False,
        alias="large",
        fallback=["near"],
        prompt_price=2_500_000,
        completion_price=10_000_000,
        context_tokens=128_000,
    )
    near = told.models[1]
    assert (near.alias, near.local, near.prompt_price, near.completion_price) == (
        "near",
        True,
        0,
        0,
    )
