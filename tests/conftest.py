"""What every test shares: the event loop, how hard laws are tried, and the browser."""

from __future__ import annotations

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count every test that drives a browser as slow, marked or not."""
    for item in items:
        if "browser_path" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.slow)


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
