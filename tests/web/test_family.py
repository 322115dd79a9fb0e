"""Two people and one space, in two real browsers: found, invite, share, hide, conflict, remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.cli.started import address, up

pytestmark = pytest.mark.slow
LONG_MS = 30_000
PASSWORD = "four quiet herons walking"
People = Callable[[str], Page]


@pytest.fixture
def people(browser: Browser) -> Iterator[People]:
    """Give each person a browser of their own; an error of a script fails the test."""
    complaints: list[str] = []
    contexts = []

    def arrive(name: str) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        context.set_default_timeout(LONG_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"{name}: {error}"))
        return page

    yield arrive
    for context in contexts:
        context.close()
    assert complaints == []


def sign_up(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.locator("#sign-up-login").fill(name.lower())
    page.locator("#sign-up-name").fill(name)
    page.locator("#sign-up-password").fill(PASSWORD)
    page.locator("#sign-up").click()
    expect(page).to_have_title("Home · Mana")


def write(page: Page, space: str, title: str, text: str) -> None:
    page.goto(f"{space}/notes/new")
    page.locator("#note-title").fill(title)
    page.locator("#note-content").fill(text)
    page.locator("[data-save]").click()
    expect(page.locator(".sharing")).to_contain_text("You made it.")


def test_a_family_shares_hides_and_parts(people: People, tmp_path: Path) -> None:
    """Ada and Bo share a space live; what is private vanishes, who is
    removed keeps what they had and gets nothing more.
    """
    asked: list[str] = []
    with up(tmp_path / "home") as (_, lines):
        url = address(lines).rstrip("/")
        ada, bo = people("ada"), people("bo")
        for page in (ada, bo):
            page.on("request", lambda request: asked.append(request.url))
        sign_up(ada, url, "Ada")
        sign_up(bo, url, "Bo")

        ada.goto(f"{url}/spaces/new")
        ada.locator("#space-name").fill("The Lindens")
        ada.locator("#create-space").click()
        expect(ada).to_have_title("The Lindens · Mana")
        space = ada.url.removesuffix("/space")
        ada.locator("#invite-label").fill("Bo")
        ada.locator("#invite").click()
        link = ada.locator(".copy input").input_value()
        secret = link.partition("#")[2]

        # The link may be opened at the own page: the secret leaves the address before anything.
        bo.goto(f"{url}/join#{secret}")
        expect(bo.locator("#join-link")).to_have_value(f"{url}/join#{secret}")
        assert "#" not in bo.url
        bo.locator("#accept").click()
        expect(bo.locator(".tiles").first).to_contain_text("The Lindens")
        expect(ada.locator(".members")).to_contain_text("Bo")
        assert not any(secret.split(".")[3] in one for one in asked)

        write(ada, space, "Shopping", "Milk and bread.")
        bo.goto(f"{space}/notes")
        expect(bo.locator(".notes")).to_contain_text("Shopping")
        ada.goto(f"{space}/notes")
        write(bo, space, "Holidays", "Graz in May.")
        expect(ada.locator(".notes")).to_contain_text("Holidays")

        bo.goto(f"{space}/notes")
        bo.get_by_role("link", name="Shopping").click()
        expect(bo.locator(".sharing")).to_contain_text("By Ada")
        bo.locator("#note-content").fill("Lamp oil.")
        bo.locator("[data-save]").click()
        # Bo had read what he replaced, so nobody is told of a conflict.
        ada.get_by_role("link", name="Shopping").click()
        expect(ada.locator("#note-content")).to_have_value("Lamp oil.")
        expect(ada.locator("#see-conflicts")).to_have_count(0)

        ada.goto(f"{space}/notes")
        bo.goto(f"{space}/notes")
        ada.get_by_role("link", name="Shopping").click()
        ada.locator("#hide").click()
        expect(ada.locator(".sharing")).to_contain_text("Only you see this")
        expect(bo.locator(".notes")).not_to_contain_text("Shopping")
        expect(bo.locator(".notes")).to_contain_text("Holidays")

        ada.goto(f"{space}/space")
        member = ada.locator(".member", has_text="Bo")
        member.locator("summary").first.click()
        member.get_by_text("Remove from the space").click()
        member.get_by_role("button", name="Remove", exact=True).click()
        expect(ada.locator(".member")).to_have_count(1)
        expect(bo.locator(".banner")).to_contain_text("You are no longer in this space.")
        write(ada, space, "After Bo", "Nothing for him.")
        bo.goto(f"{space}/notes")
        expect(bo.locator(".notes")).to_contain_text("Holidays")
        expect(bo.locator("#new-note")).to_have_count(0)
        expect(bo.locator("#main")).not_to_contain_text("After Bo")
        bo.goto(f"{space}/space")
        bo.locator("#forget summary").click()
        bo.locator("#do-forget").click()
        expect(bo).to_have_title("Spaces · Mana")
        expect(bo.locator("#main")).not_to_contain_text("The Lindens")
