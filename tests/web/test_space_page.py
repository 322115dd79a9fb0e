"""Spaces in a real browser: switched by keys, live, at every width, and without scripts."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import Served
from tests.web.fake_device import FakeDevice
from tests.web.fake_spaces import LINK, seed_family
from tests.web.fitting import NARROW, require_fit
from tests.web.journey import Hands

PATHS = ("", "/notes", "/tasks", "/notes/new", "/space", "/inbox")
LONG = "Donaudampfschifffahrtsgesellschaftskapitänswitwenverein" + "x" * 25


def family_of(served: Served) -> FakeDevice:
    return served.run(seed_family(served.device))


def test_spaces_are_switched_by_keys(demo_page: Page, served: Served) -> None:
    """`s` opens the switcher; a space keeps the part of the page; back returns to the other."""
    family = family_of(served)
    demo_page.goto(f"{served.url}/tasks")
    hands = Hands(demo_page)
    demo_page.keyboard.press("s")
    expect(demo_page.locator("#spaces a").first).to_be_focused()
    demo_page.keyboard.press("Escape")
    expect(demo_page.locator("#spaces ul")).to_be_hidden()
    hands.enter("#spaces summary")
    hands.enter(f'#spaces a[href="/s/{family.space_id}/tasks"]')
    hands.see("Call the chimney sweep")
    expect(demo_page.locator("#spaces summary")).to_contain_text("The Lindens")
    demo_page.keyboard.press("g")
    demo_page.keyboard.press("n")
    expect(demo_page).to_have_url(f"{served.url}/s/{family.space_id}/notes")
    hands.see("Holidays")
    hands.command("Switch to Personal")
    hands.see("Buy tulip bulbs")
    expect(demo_page).to_have_url(f"{served.url}/")
    demo_page.go_back()
    hands.see("Holidays")


def test_what_others_do_appears_by_itself(demo_page: Page, served: Served) -> None:
    """Members, roles and what was overwritten come onto the open page without a reload."""
    family = family_of(served)
    demo_page.goto(f"{served.url}/s/{family.space_id}/space")
    expect(demo_page.locator(".member")).to_have_count(3)
    link = demo_page.locator(".copy input")
    expect(link).to_have_value(LINK)
    expect(demo_page.get_by_role("button", name="Copy")).to_be_visible()
    demo_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    demo_page.get_by_role("button", name="Copy").click()
    expect(demo_page.locator("#toasts")).to_contain_text("The link is copied.")
    assert demo_page.evaluate("navigator.clipboard.readText()") == LINK

    async def meanwhile() -> None:
        family.let_in("rita", "Rita", "member")
        note = (await family.list("notes"))[0].id
        family.overwrite(note, "mine", "theirs")

    served.run(meanwhile())
    expect(demo_page.locator(".member")).to_have_count(4)
    expect(demo_page.locator(".quiet-banner")).to_contain_text("in 2 records")

    async def out() -> None:
        family.become(role="viewer")

    served.run(out())
    expect(demo_page.locator("#invite")).to_have_count(0)
    expect(demo_page.locator(".banner").last).to_contain_text("You are a viewer here")


def test_the_secret_of_a_link_stays_here(demo_page: Page, served: Served) -> None:
    """A link that is opened leaves the address at once, fills the form, and goes in no address."""
    asked: list[str] = []
    demo_page.on("request", lambda request: asked.append(request.url))
    fragment = LINK.partition("#")[2]
    demo_page.goto(f"{served.url}/join#{fragment}")
    expect(demo_page.locator("#join-link")).to_have_value(f"{served.url}/join#{fragment}")
    expect(demo_page).to_have_url(f"{served.url}/join")
    demo_page.locator("#accept").click()
    expect(demo_page.locator("#joining")).to_contain_text("Waits until a device of the person")
    fresh = demo_page.context.browser
    assert fresh is not None
    other = fresh.new_context().new_page()
    other.on("request", lambda request: asked.append(request.url))
    other.goto(f"{served.url}/join#{fragment}")
    expect(other.locator("#invited")).to_contain_text("You were invited to a space.")
    other.locator("#sign-up-login").fill("bo")
    other.locator("#sign-up-password").fill("four quiet herons")
    other.locator("#sign-up").click()
    expect(other.locator("#join-link")).to_have_value(re.compile(fragment.replace(".", "[.]")))
    other.context.close()
    assert not any("s" * 43 in url for url in asked)
    assert "s" * 43 not in demo_page.content()


def test_every_page_of_a_space_fits_its_width(browser: Browser, served: Served) -> None:
    """No name, however long, makes a page scroll sideways, and each control has a name."""
    context = browser.new_context(viewport=NARROW)
    page = context.new_page()
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    family = family_of(served)

    async def lengthen() -> None:
        family.let_in("long", LONG, "member")
        family.become(name=LONG)

    served.run(lengthen())
    note = served.run(family.list("notes"))[0].id
    paths = [f"/s/{family.space_id}{path}" for path in (*PATHS, f"/notes/{note}", "/conflicts")]
    for path in (*paths, "/spaces", "/spaces/new", "/join"):
        page.goto(served.url + path)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        require_fit(page, path)
    context.close()


def test_spaces_need_no_scripts(browser: Browser, served: Served) -> None:
    """Switching, inviting, copying by hand and removing work in a browser without scripts."""
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
        family = family_of(served)
        page.goto(f"{served.url}/notes")
        page.locator("#spaces summary").click()
        page.locator("#spaces").get_by_role("link", name="The Lindens").click()
        expect(page.locator("#main")).to_contain_text("Holidays")
        page.goto(f"{served.url}/s/{family.space_id}/space")
        expect(page.locator(".copy button")).to_be_hidden()
        page.locator("#invite").click()
        expect(page.locator(".copy input")).to_have_count(2)
        bo = page.locator("#m-bo")
        bo.locator("summary").first.click()
        bo.get_by_text("Remove from the space").click()
        bo.get_by_role("button", name="Remove", exact=True).click()
        expect(page.locator("#toasts")).to_contain_text("Bo is out, and the space has a new key.")
    finally:
        context.close()
