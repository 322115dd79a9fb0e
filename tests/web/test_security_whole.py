"""A passkey from a real browser to the real hub, and back at the door."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.cli.started import address, up
from tests.web.test_security_page import PASSWORD, authenticator, signed_up

pytestmark = pytest.mark.slow


def test_a_passkey_opens_the_door(context: BrowserContext, page: Page, tmp_path: Path) -> None:
    """What the browser makes the hub takes, and at the next sign-in password alone is not enough."""
    with up(tmp_path / "home") as (_, lines):
        url = address(lines).rstrip("/").replace("127.0.0.1", "localhost")
        authenticator(context, page)
        signed_up(page, url, mode="zero-knowledge")
        expect(page.locator("#kit")).to_be_visible()
        page.goto(f"{url}/security")
        page.click("#add-passkey summary")
        page.fill("#passkey-name", "Blue key")
        page.click("#do-passkey")
        page.click("#finish")
        expect(page.locator("#factors")).to_contain_text("Blue key")
        page.goto(f"{url}/settings")
        page.click("#sign-out")
        expect(page.locator("#sign-in-login")).to_be_visible()
        page.fill("#sign-in-login", "ada")
        page.fill("#sign-in-password", PASSWORD)
        page.keyboard.press("Enter")
        page.click("#use-passkey")
        expect(page.locator("#to-security")).to_contain_text("zero-knowledge")
