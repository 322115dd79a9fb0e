"""Where a Mana keeps its data and finds its hub, by what it is told from outside."""

from __future__ import annotations

import subprocess
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


def test_the_terminal_finds_a_hub_on_a_port_that_the_system_chose(tmp_path: Path) -> None:
    """What `mana up` wrote counts while it runs, before the usual port and after what is named."""
    chosen = "http://127.0.0.1:41234"
    told = {"MANA_HOME": str(tmp_path)}
    places = Places.from_env(told)
    with places.telling_hub(chosen):
        assert (tmp_path / "hub.address").stat().st_mode & 0o777 == 0o600
        for free in (told, {**told, "MANA_HUB_PORT": "0"}):
            assert Places.from_env(free).hub_url(free) == chosen
        for name, value in {
            "MANA_HUB_PORT": "4050",
            "MANA_HUB_URL": "http://127.0.0.1:4050",
        }.items():
            named = {**told, name: value}
            assert Places.from_env(named).hub_url(named) == "http://127.0.0.1:4050"
    assert places.hub_url(told) == "http://127.0.0.1:3050"


@pytest.mark.parametrize("left", ["{gone} http://127.0.0.1:41234", "http://x", "", "x http://x"])
def test_what_a_killed_start_left_behind_names_no_hub(tmp_path: Path, left: str) -> None:
    """A port of a process that is gone may be another's; nothing is sent there."""
    with subprocess.Popen(["true"]) as gone:
        pass
    (tmp_path / "hub.address").write_text(left.format(gone=gone.pid))
    told = {"MANA_HOME": str(tmp_path)}
    assert Places.from_env(told).hub_url(told) == "http://127.0.0.1:3050"


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
