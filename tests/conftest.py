"""What every test shares: the event loop, how hard laws are tried, and the browser."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from tools import browser

pytest_plugins = ["mana.testing.plugin"]

# Deadlines and "too slow" would measure the machine, which other work shares.
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=50,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("deep", settings.get_profile("ci"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Of the person's settings the tests keep these. With the others they would meet the person's own
# data, database and paid model.
KEPT_SETTINGS = frozenset(
    {
        "MANA_CHROMIUM",
        "MANA_POSTGRES_BIN",
        "MANA_PROMTOOL",
        "MANA_REQUIRE_BROWSER",
        "MANA_REQUIRE_PROMTOOL",
    }
)


def pytest_configure() -> None:
    """Forget the person's settings before any test or fixture can see them.

    What is collected stays: to look for garbage meanwhile would take a fifth of that time.
    """
    gc.disable()
    for name in list(os.environ):
        if name.startswith(("MANA_", "TICK_")) and name not in KEPT_SETTINGS:
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a test needs by the fixtures that it asks for; a browser counts as slow.

    Files with a slow test come first, so that no process is left alone with a long one at the end.
    """
    for item in items:
        needed = getattr(item, "fixturenames", ())
        if "browser_path" in needed:
            item.add_marker(pytest.mark.browser)
        if "postgres" in needed:
            item.add_marker(pytest.mark.postgres)
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Look for garbage again."""
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def throw_away_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Point whatever names no home of its own at a folder that goes away, not at the person's."""
    home = tmp_path_factory.mktemp("home")
    os.environ["MANA_HOME"] = str(home)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run `@pytest.mark.anyio` tests on plain asyncio, as the device and the runner do."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Return the path of a browser; without one, skip in one line, or fail where it is required."""
    path = browser.find()
    if path is not None:
        return path
    if browser.is_required():
        pytest.fail(browser.MISSING, pytrace=False)
    pytest.skip(browser.MISSING)
