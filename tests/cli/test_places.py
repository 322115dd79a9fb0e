"""Where a Mana keeps its data and finds its hub, by what it is told from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mana.cli.commands import device
from mana.cli.places import Places
from mana.device.settings import DeviceSettings


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ({}, "http://127.0.0.1:3050"),
        ({"MANA_HUB_PORT": "4050"}, "http://127.0.0.1:4050"),
        ({"MANA_HUB_HOST": "0.0.0.0"}, "http://127.0.0.1:3050"),
        ({"MANA_HUB_HOST": "192.168.1.20"}, "http://192.168.1.20:3050"),
        ({"MANA_HUB_HOST": "0.0.0.0", "MANA_HUB_URL": "https://m.test"}, "https://m.test"),
    ],
)
def test_devices_find_the_hub_where_it_is(told: dict[str, str], url: str) -> None:
    """A hub that listens for other machines is found by its own, and links name its address."""
    assert Places.from_env(told).hub_url(told) == url


def test_a_device_alone_keeps_its_data_where_every_command_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`mana device` and the other commands share one data folder, also when none is named."""
    told: list[DeviceSettings] = []

    async def serve(settings: DeviceSettings) -> None:
        told.append(settings)

    for name, value in {"XDG_DATA_HOME": str(tmp_path), "MANA_HUB_URL": "http://hub.test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MANA_HOME", raising=False)
    changed: Any = device
    monkeypatch.setattr(changed, "_serve", serve)
    device.device()
    assert [(one.home, one.hub_url) for one in told] == [(tmp_path / "mana", "http://hub.test")]
