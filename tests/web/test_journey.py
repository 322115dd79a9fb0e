"""The main job in a real browser, by keys alone."""

from __future__ import annotations

from playwright.sync_api import Page

from tests.web.conftest import Served
from tests.web.journey import play


def test_the_main_job_needs_no_pointer(page: Page, served: Served) -> None:
    """A person goes from sign-up to revert with the keyboard only."""
    play(page, served.url)
