"""Every setting that there is stands in docs/settings.md, with the default that it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import pytest

from mana.device.settings import DeviceSettings
from mana.domain.errors import Invalid
from mana.hub.runner.settings import RunnerSettings
from mana.hub.settings import HubSettings

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "settings.md"
_NAME: Final = re.compile(r"(?:MANA|TICK|OTEL|XDG)_[A-Z_]+[A-Z]")
_READ: Final = re.compile(rf"[\"']({_NAME.pattern})[\"']")
_ROW: Final = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \| .+ \|$", re.M)
FIELDS: Final = {
    "MANA_HUB_PORT": (HubSettings, "port"),
    "MANA_HUB_HOST": (HubSettings, "host"),
    "MANA_SIGNUP": (HubSettings, "sign_ups"),
    "MANA_PASSKEY_DOMAIN": (HubSettings, "passkey_domain"),
    "MANA_CURRENCY": (HubSettings, "currency"),
    "MANA_HUB_POOL_SIZE": (HubSettings, "pool_size"),
    "MANA_ISSUER": (HubSettings, "issuer"),
    "MANA_RUNNER_PORT": (RunnerSettings, "port"),
    "MANA_RUNNER_HOST": (RunnerSettings, "host"),
    "MANA_RUNNER_CONCURRENCY": (RunnerSettings, "concurrency"),
    "MANA_RUNNER_RUN_S_MAX": (RunnerSettings, "run_s_max"),
    "MANA_RUNNER_LEASE_S": (RunnerSettings, "lease_s"),
    "MANA_RUNNER_HEARTBEAT_S": (RunnerSettings, "heartbeat_s"),
    "TICK_INTERVAL_MS": (RunnerSettings, "tick_interval_ms"),
    "TICK_ENABLED": (RunnerSettings, "tick_enabled"),
    "MANA_DEVICE_PORT": (DeviceSettings, "port"),
    "MANA_DEVICE_HOST": (DeviceSettings, "host"),
    "MANA_AUTO_LOCK_MINUTES": (DeviceSettings, "auto_lock_minutes"),
}
"""Settings whose default is a value: of which class and field."""


@cache
def read_settings() -> frozenset[str]:
    """Return the name of every variable that the code reads: each is a text of its own there."""
    return frozenset(
        name
        for path in (ROOT / "src").rglob("*.py")
        if "testing" not in path.parts
        for name in _READ.findall(path.read_text("utf-8"))
    )


def rows(page: Path) -> dict[str, str]:
    """Return what a page's tables say: each name's default."""
    found = _ROW.findall(page.read_text("utf-8"))
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_setting_is_on_the_page() -> None:
    """The page names each variable that the code reads, and none besides."""
    text = PAGE.read_text("utf-8")
    assert set(_NAME.findall(text)) == read_settings()
    assert set(rows(PAGE)) == read_settings() - {"MANA_READY_FD", "MANA_LIFELINE"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_default_is_the_one_that_holds(name: str, tmp_path: Path) -> None:
    """What the page says stands where nobody says anything is what the process then does."""
    made: dict[type, Callable[[], object]] = {
        HubSettings: partial(HubSettings.from_env, {}, database_url="", home=tmp_path),
        RunnerSettings: partial(RunnerSettings.from_env, {}, database_url="", home=tmp_path),
        DeviceSettings: partial(DeviceSettings.from_env, {}),
    }
    which, field = FIELDS[name]
    assert rows(PAGE)[name].strip("`") == str(getattr(made[which](), field)).replace("True", "true")


def test_the_first_page_says_the_same() -> None:
    """README repeats some of them, with the same names, and leads to the page."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert "docs/settings.md" in text
    assert set(_NAME.findall(text)) <= read_settings()
    known = rows(PAGE)
    for name, default in rows(ROOT / "README.md").items():
        assert default.strip("`").split()[0] == known[name].strip("`").split()[0], name


@pytest.mark.parametrize(
    ("lease", "heartbeat", "renews"),
    [
        ("", "", 15),
        ("20", "", 5),
        ("2", "", 1),
        ("20", "10", 10),
        ("20", "11", None),
        ("1", "1", None),
    ],
)
def test_a_lease_is_renewed_before_it_ends(
    lease: str, heartbeat: str, renews: int | None, tmp_path: Path
) -> None:
    """No setting lets a runner lose what it works on, and pay for it twice."""
    environ = {"MANA_RUNNER_LEASE_S": lease, "MANA_RUNNER_HEARTBEAT_S": heartbeat}
    if renews is None:
        with pytest.raises(Invalid, match="MANA_RUNNER_"):
            RunnerSettings.from_env(environ, database_url="", home=tmp_path)
        return
    made = RunnerSettings.from_env(environ, database_url="", home=tmp_path)
    assert made.heartbeat_s == renews
