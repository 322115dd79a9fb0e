"""An endpoint of the person's own travels sealed in a grant, and is read strictly."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mana.crypto.errors import Malformed
from mana.crypto.grants import countersign_grant, seal_grant
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.grants import SUITES, header_from_wire
from mana.domain.ids import RecordId
from mana.domain.money import COST_PER_DAY_MAX, Price
from mana.domain.own_models import OwnModel, own_model_from_view, own_model_from_wire
from mana.domain.records import View
from mana.domain.settings import MODELS
from mana.hub.runner.dialogue import GrantMaterial
from mana.hub.runner.opening import GrantKeys, open_keys, read_grant
from mana.protocol.messages import Signature
from tests.grants.test_bytes import DEVICE, HUB

KEY = "sk-very-private"
OWN = OwnModel("own-1", "https://models.example/v1", "tiny", KEY, Price(1, 2), 8_192)
RUNNER = RunnerPrivateKey.generate()
HEADER = header_from_wire(
    {
        "version": "v2",
        "grantId": "00000000-0000-4000-8000-000000000001",
        "accountId": "00000000-0000-4000-8000-000000000002",
        "spaceId": "5" * 64,
        "missionId": "mission-1",
        "agentId": "agent-1",
        "tables": ["notes"],
        "recordIds": ["notes:note-1"],
        "endpoints": ["https://models.example"],
        "issuedAt": "2026-11-21T05:00:00.000Z",
        "expiresAt": "2026-11-28T05:00:00.000Z",
        "suite": SUITES[0],
        "runnerKeyId": RUNNER.public().key_id(),
    }
)


def record(values: dict[str, Json]) -> View:
    """Return an opened record of the person's models."""
    stamp = "2026-11-21T05:00:00.000Z-0000-00000000-0000-4000-8000-000000000009"
    return View(MODELS.name, RecordId("own-1"), values, dict.fromkeys(values, stamp))


def opened(**more: Json) -> GrantKeys:
    """Seal a payload with these members as a device does, and open it as the runner does."""
    key: dict[str, Json] = {"k": b64(bytes(32)), "e": "s1"}
    payload: dict[str, Json] = {
        "records": {"notes:note-1": key},
        "support": {},
        "iterationKey": key,
        **more,
    }
    header = HEADER.canonical()
    runner = RUNNER.public().wrap_key(HEADER.suite)
    grant = seal_grant(header, HEADER.mission_id, payload, runner=runner, device=DEVICE)
    material = GrantMaterial(
        header=header.decode(),
        wrapped_key=b64(grant.wrapped_key),
        sealed_keys=grant.sealed_keys,
        signature=Signature("device-1", b64(grant.signature)),
        hub_signature=b64(countersign_grant(HUB, header, grant)),
    )
    verified = read_grant(material, device=DEVICE.public(), hub=HUB.public())
    return open_keys(HEADER, verified, runner=RUNNER)


@pytest.mark.parametrize(
    "own",
    [
        OWN,
        dataclasses.replace(OWN, price=None),
        dataclasses.replace(OWN, context_tokens=None, key=""),
    ],
)
def test_the_runner_reads_what_the_device_sealed(own: OwnModel) -> None:
    """Address, name, key, prices and context arrive whole; a grant without one has none."""
    assert opened(model=own.to_wire()).model == own
    assert opened().model is None


def test_the_key_is_never_shown() -> None:
    """Neither key nor address of an own model stand in what is printed of a grant."""
    shown = repr(opened(model=OWN.to_wire()))
    assert KEY not in shown
    assert "models.example" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../x"},
        {"id": 5},
        {"url": ""},
        {"url": "https://x/" + "a" * 500},
        {"model": None},
        {"model": ["tiny"]},
        {"key": None},
        {"key": "k" * 1_001},
        {"promptPrice": -1},
        {"promptPrice": True},
        {"promptPrice": 1.5},
        {"completionPrice": COST_PER_DAY_MAX + 1},
        {"completionPrice": None},
        {"contextTokens": 1_023},
        {"contextTokens": "8192"},
        {"proxy": "http://x"},
    ],
)
def test_another_form_opens_nothing(change: dict[str, Json]) -> None:
    """A model with a member of another form, or one more, makes the whole grant malformed."""
    with pytest.raises(Malformed) as refused:
        opened(model={**OWN.to_wire(), **change})
    assert KEY not in f"{refused.value} {refused.value.detail}"


@pytest.mark.parametrize("value", [None, [], "https://models.example", {}])
def test_what_is_no_model_opens_nothing(value: Any) -> None:
    """The member is a model or is not there."""
    with pytest.raises(Malformed):
        opened(model=value)


@pytest.mark.parametrize("missing", ["id", "url", "model", "key", "promptPrice"])
def test_a_member_that_lacks_opens_nothing(missing: str) -> None:
    """Nothing is guessed, and one price alone is none."""
    wire = OWN.to_wire()
    del wire[missing]
    with pytest.raises(Invalid):
        own_model_from_wire(wire)


def test_a_record_becomes_a_model() -> None:
    """The person's record gives the same model; one price alone counts as none."""
    values: dict[str, Json] = {
        "label": "Mine",
        "url": " https://models.example/v1 ",
        "model": "tiny",
        "key": KEY,
        "promptPrice": 1,
        "completionPrice": 2,
        "contextTokens": 8_192,
    }
    assert own_model_from_view(record(values)) == OWN
    del values["completionPrice"]
    assert own_model_from_view(record(values)).price is None
    del values["url"]
    with pytest.raises(Invalid):
        own_model_from_view(record(values))
