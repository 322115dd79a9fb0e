"""The page in a real browser: live, at every width, in both lights."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Dialog, Page, Request, expect

from mana.domain.errors import Conflict
from tests.web.conftest import Served
from tests.web.fitting import NARROW, SCHEMES, require_fit
from tests.web.journey import Hands

PATHS = ("/", "/notes", "/tasks", "/inbox", "/agents", "/missions", "/missions/new", "/timeline")
MORE_PATHS = ("/data-access", "/settings", "/settings/models/new", "/usage", "/agents/new", "/menu")


def test_what_changes_elsewhere_appears_by_itself(demo_page: Page, served: Served) -> None:
    """A record that another device wrote comes onto the open page without a reload."""
    served.run(served.device.create("tasks", {"title": "From the phone", "isCompleted": False}))
    expect(demo_page.locator("#main")).to_contain_text("From the phone")


def test_a_live_change_takes_nothing_from_whoever_types(demo_page: Page, served: Served) -> None:
    """Focus, typed text and open parts stay while the page around them is brought up to date."""
    demo_page.goto(f"{served.url}/notes")
    demo_page.locator(".notes a").first.click()
    field = demo_page.locator("#note-content")
    field.focus()
    demo_page.keyboard.press("Control+End")
    demo_page.keyboard.insert_text(" and not yet saved")
    served.run(served.device.run_now(served.run(served.device.missions())[0].mission_id))
    expect(demo_page.locator(".nav-inbox .count")).to_have_text("4")
    expect(field).to_be_focused()
    expect(field).to_have_value(re.compile("and not yet saved$"))
    demo_page.keyboard.press("Control+s")
    expect(demo_page.locator("#toasts")).to_contain_text("Saved.")
    expect(demo_page.locator("#note-content")).to_have_value(re.compile("and not yet saved$"))


def test_quick_add_is_empty_and_focused_again(demo_page: Page) -> None:
    """After a task was added, the next one can be typed at once."""
    hands = Hands(demo_page)
    for title in ("First", "Second"):
        hands.fill("#new-task-title", title)
        demo_page.keyboard.press("Enter")
        hands.see(title)
        expect(demo_page.locator("#new-task-title")).to_have_value("")
        expect(demo_page.locator("#new-task-title")).to_be_focused()


def test_a_proposal_is_decided_by_keys(demo_page: Page, served: Served) -> None:
    """`x` and `A` approve what is ticked; decided cards fold where they are; `u` takes one back."""
    demo_page.goto(f"{served.url}/inbox")
    cards = demo_page.locator("[data-proposal]")
    expect(cards).to_have_count(2)
    demo_page.keyboard.press("j")
    demo_page.keyboard.press("x")
    demo_page.keyboard.press("Shift+A")
    expect(cards).to_have_count(1)
    expect(demo_page.locator("#main > .inbox > .plan > .folded")).to_have_count(1)
    demo_page.keyboard.press("a")
    expect(cards).to_have_count(0)
    expect(demo_page.locator("#toasts")).to_contain_text("Done.")
    demo_page.keyboard.press("u")
    expect(demo_page.locator("#toasts")).to_contain_text("taken back")


def test_a_refused_form_keeps_what_was_typed(demo_page: Page, served: Served) -> None:
    """When the device refuses, the problem appears above the form, which stays as it was."""

    async def refuse(*_: object, **__: object) -> str:
        raise Conflict("the disk is full")

    served.device.create = refuse  # type: ignore[method-assign]
    demo_page.goto(f"{served.url}/notes/new")
    hands = Hands(demo_page)
    hands.fill("#note-title", "Precious")
    hands.fill("#note-content", "words")
    demo_page.keyboard.press("Control+s")
    hands.see("The disk is full.", within="#alert")
    expect(demo_page.locator("#note-title")).to_have_value("Precious")
    expect(demo_page.locator("#note-content")).to_have_value("words")


def test_locking_elsewhere_clears_the_page(demo_page: Page, served: Served) -> None:
    """Once the account is locked, an open page shows shapes instead of what it showed."""
    expect(demo_page.locator("#main")).to_contain_text("Garden")
    served.run(served.host.lock(served.device.account_id))
    expect(demo_page.locator("#main")).to_contain_text("Locked")
    expect(demo_page.locator("body")).not_to_contain_text("Garden")


def test_a_cited_input_opens_beside_its_proposal(demo_page: Page, served: Served) -> None:
    """What a proposal cites can be read without leaving the inbox, or losing one's place."""
    demo_page.goto(f"{served.url}/inbox")
    hands = Hands(demo_page)
    demo_page.keyboard.press("j")
    hands.enter("[data-proposal] .cited a")
    expect(demo_page.locator(".peek").first).to_contain_text("what fails")
    expect(demo_page.locator("[data-proposal]").first.locator(".cited a")).to_be_focused()
    assert demo_page.url.endswith("/inbox")


def test_unsaved_words_are_not_left_without_a_question(demo_page: Page, served: Served) -> None:
    """Going away from a note that is not saved asks first, and staying keeps what was typed."""
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    demo_page.on("dialog", stay)
    demo_page.goto(f"{served.url}/notes/new")
    hands = Hands(demo_page)
    hands.fill("#note-title", "Half a thought")
    hands.enter('.rail a[href="/tasks"]')
    expect(demo_page.locator("#note-title")).to_have_value("Half a thought")
    assert asked == ["What you typed is not saved. Leave it?"]
    demo_page.locator("#note-title").focus()
    demo_page.keyboard.press("Control+s")
    hands.see("Sealed before it leaves")


def test_long_work_shows_its_phase(demo_page: Page, served: Served) -> None:
    """A run that takes long does not hold the page: it shows the phase, then the result."""
    device = served.device
    device.run_takes_s = 2.0
    mission = served.run(device.missions())[0].mission_id
    demo_page.goto(f"{served.url}/missions/{mission}")
    Hands(demo_page).enter("#run-now")
    expect(demo_page.locator(".progress")).to_contain_text("Asking the model")
    expect(demo_page.locator("#to-inbox")).to_contain_text("4 proposals")
    expect(demo_page.locator(".progress")).to_have_count(0)


def test_offline_is_said_quietly(demo_page: Page, served: Served) -> None:
    """Without the hub the status line says so, with what waits, and nothing else changes."""
    served.device.online = False
    served.device.tell("sync")
    expect(demo_page.locator(".status")).to_contain_text("offline")
    expect(demo_page.locator(".status")).to_contain_text("3 wait")
    expect(demo_page.locator("#main")).to_contain_text("Garden")


def test_drawer_and_cards_by_keys(demo_page: Page) -> None:
    """`i` opens the inbox beside the page, a digit goes to its card, `?` lists the keys."""
    demo_page.keyboard.press("i")
    expect(demo_page.locator(".drawer")).to_contain_text("2 to decide")
    demo_page.keyboard.press("Escape")
    expect(demo_page.locator(".drawer")).to_be_hidden()
    demo_page.keyboard.press("2")
    expect(demo_page.locator("[data-card]").nth(1)).to_be_focused()
    demo_page.keyboard.press("?")
    expect(demo_page.locator("#keys")).to_be_visible()


def test_nothing_is_asked_of_elsewhere(page: Page, served: Served) -> None:
    """The page makes no request but to its own device."""
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    for path in PATHS:
        page.goto(served.url + path)
    assert all(url.startswith(served.url + "/") for url in asked)


def test_every_page_fits_its_width(browser: Browser, served: Served) -> None:
    """No page scrolls sideways, and its words stand out from its paper, in both lights."""
    context = browser.new_context(viewport=NARROW)
    page = context.new_page()
    page.goto(served.url)
    require_fit(page, "the door")
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    mission = served.run(served.device.missions())[0]
    more = (f"/missions/{mission.mission_id}", f"/missions/{mission.mission_id}/grant")
    for path in (*PATHS, *MORE_PATHS, *more, f"/agents/{mission.agent_id}"):
        page.goto(served.url + path)
        require_fit(page, path)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRASTS) == [], scheme
    context.close()


CONTRASTS = """() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
    const [r, g, b] = parts.map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const wanted = [];
  for (const paper of ["--paper", "--paper-2"]) {
    wanted.push(["--ink", paper, 7], ["--ink-2", paper, 7], ["--line-2", paper, 3]);
    for (const sign of ["--ok", "--warn", "--stop", "--accent"]) wanted.push([sign, paper, 4.5]);
  }
  wanted.push(["--ok", "--ok-soft", 4.5], ["--warn", "--warn-soft", 4.5]);
  wanted.push(["--ink", "--stop-soft", 7], ["--accent-ink", "--accent", 4.5], ["--ink-2", "--paper-3", 4.5]);
  return wanted.filter(([a, b, least]) => contrast(a, b) < least).map((one) => one.join(" "));
}"""


def test_unsaved_words_outlive_a_lost_session(demo_page: Page, served: Served) -> None:
    """After a new start of the device the typed text stays, and is saved after signing in."""
    demo_page.goto(f"{served.url}/notes")
    demo_page.locator(".notes a").first.click()
    demo_page.locator("#note-content").fill("typed before the start")
    demo_page.context.clear_cookies()
    demo_page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    served.run(served.device.create("tasks", {"title": "Anything", "isCompleted": False}))
    expect(demo_page.locator("#alert")).to_contain_text("You are signed out here")
    expect(demo_page.locator("#note-content")).to_have_value("typed before the start")
    with demo_page.context.expect_page() as opened:
        demo_page.locator("#signed-out a").click()
    opened.value.locator("#demo").click()
    expect(opened.value).to_have_title("Home · Mana")
    opened.value.close()
    demo_page.bring_to_front()
    demo_page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(demo_page.locator("#signed-out")).to_have_count(0)
    demo_page.locator("[data-save]").click()
    expect(demo_page.locator("#toasts")).to_contain_text("Saved.")
    expect(demo_page.locator("#note-content")).to_have_value("typed before the start")


def test_a_new_sign_in_elsewhere_spoils_no_open_form(demo_page: Page, served: Served) -> None:
    """A tab with unsaved words takes the token of the session that another tab began."""
    demo_page.goto(f"{served.url}/notes")
    demo_page.locator(".notes a").first.click()
    demo_page.locator("#note-content").fill("typed before")
    token = demo_page.locator("#note-form input[name=csrf]")
    before = token.input_value()
    other = demo_page.context.new_page()
    other.goto(f"{served.url}/welcome")
    other.locator("#demo").click()
    expect(other).to_have_title("Home · Mana")
    other.close()
    demo_page.bring_to_front()
    served.run(served.device.create("tasks", {"title": "Anything", "isCompleted": False}))
    expect(token).not_to_have_value(before)
    demo_page.locator("[data-save]").click()
    expect(demo_page.locator("#toasts")).to_contain_text("Saved.")


def test_a_locked_page_opens_when_another_tab_unlocks(demo_page: Page, served: Served) -> None:
    """Coming back to a tab that was locked shows it open, once it is."""
    demo_page.goto(f"{served.url}/notes")
    served.run(served.host.lock(served.device.account_id))
    expect(demo_page).to_have_title("Locked · Mana")
    other = demo_page.context.new_page()
    other.goto(f"{served.url}/notes")
    other.get_by_role("button", name="Open the demo").click()
    expect(other).to_have_title("Home · Mana")
    other.close()
    demo_page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(demo_page).to_have_title("Notes · Mana")


def test_the_main_forms_work_in_a_browser_without_scripts(browser: Browser, served: Served) -> None:
    """A real browser's plain posts pass the doors: a task is added, a proposal approved."""
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
        page.goto(f"{served.url}/tasks")
        page.locator("#new-task-title").fill("Without a script")
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_contain_text("Without a script")
        page.goto(f"{served.url}/inbox")
        page.locator("button[data-key=a]").first.click()
        expect(page.locator("#toasts")).to_contain_text("Done.")
    finally:
        context.close()
