"""The page of a fake device, served on this machine, and a browser to look at it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from mana.device.settings import DeviceSettings
from mana.web.app import serve
from tests.web.fake_device import FakeDevice, FakeHost

T = TypeVar("T")
WAIT_MS = 30_000
"""A test waits for what happens, not for how fast the machine is that makes keys and draws pages.
Shorter than the minute after which a page looks by itself, which would hide what it missed."""
expect.set_options(timeout=WAIT_MS)
BROWSER_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@dataclass
class Served:
    """A page that answers, with the fake behind it."""

    url: str
    host: FakeHost
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the device's loop, as another device or the runner would."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    @property
    def device(self) -> FakeDevice:
        """Return the one account that is there."""
        (known,) = self.host.accounts()
        return self.host.device(known.account_id)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Serve the page of a fake device on a free port, in a thread of its own."""
    started = threading.Event()
    found: list[Served] = []
    ending: list[asyncio.Event] = []

    async def main() -> None:
        host, end = FakeHost(), asyncio.Event()
        ending.append(end)

        def ready(url: str) -> None:
            found.append(Served(url.rstrip("/"), host, asyncio.get_running_loop()))
            started.set()

        await serve(host, DeviceSettings(home=tmp_path), 0, ready, until=end.wait())  # type: ignore[arg-type]

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(20)
    yield found[0]
    found[0].loop.call_soon_threadsafe(ending[0].set)
    thread.join(10)
    assert not thread.is_alive(), "the page did not stop"


# Not for the whole session: while it lives, its event loop counts as running in this process,
# and every asynchronous test that comes after it would fail.
@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    """Start a browser once for the tests of a file."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=browser_path, headless=True, args=list(BROWSER_ARGS)
        )
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Open a browser's profile that knows nothing, and see that nothing in it complains."""
    fresh = browser.new_context(viewport={"width": 1280, "height": 860})
    fresh.set_default_timeout(WAIT_MS)
    yield fresh
    fresh.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """Open a page; an error of a script or a breach of the content policy fails the test."""
    complaints: list[str] = []
    opened = context.new_page()
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    yield opened
    assert complaints == []


@pytest.fixture
def demo_page(served: Served, page: Page) -> Page:
    """Open the demo by its link; at the end the browser leaves before the server does."""
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    return page
